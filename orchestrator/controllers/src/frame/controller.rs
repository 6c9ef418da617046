//! A controller: which changes concern which keys, and what is done about a key.

use super::{Cache, Cached, Change, Clock, Fault, Frame, Key, Queue, Statistics, Written};
use futures::{FutureExt as _, future::BoxFuture};
use jiff::{SignedDuration, Timestamp};
use std::{fmt, panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Makes a controller of the frame; called once, when all start.
pub type Constructor = fn(&Arc<Frame>) -> Controller;

/// When a key is due again although nothing about it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Not before something changes.
    Change,
    /// After this time, or at the next change.
    After(Duration),
}

/// How the work on a key ended.
pub type Outcome = Result<Next, Fault>;

type Reconcile = Arc<dyn Fn(Key) -> BoxFuture<'static, Outcome> + Send + Sync>;
type Wire = Box<dyn FnOnce(&Arc<Queue>) + Send>;
type Ready = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;
type Task = Box<dyn Fn(CancellationToken) -> BoxFuture<'static, Result<(), Fault>> + Send + Sync>;

/// One controller, before it runs.
pub struct Controller {
    name: &'static str,
    workers: usize,
    reconcile: Reconcile,
    wires: Vec<Wire>,
    ready: Vec<Ready>,
    written: Option<Written>,
    tasks: Vec<Task>,
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Controller {
    /// A controller that works on at most `workers` keys at a time, and never twice on one.
    ///
    /// `reconcile` must be safe to be dropped at any await: that is what the end of the process does to it.
    pub fn new<F, R>(name: &'static str, workers: usize, reconcile: F) -> Self
    where
        F: Fn(Key) -> R + Send + Sync + 'static,
        R: Future<Output = Outcome> + Send + 'static,
    {
        Self {
            name,
            workers,
            reconcile: Arc::new(move |key| reconcile(key).boxed()),
            wires: Vec::new(),
            ready: Vec::new(),
            written: None,
            tasks: Vec::new(),
        }
    }

    /// Its name: `deployment-controller`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Calls `map` with every object at the start and with every change; it adds the keys that it concerns to the queue.
    #[must_use]
    pub fn on<K: Cached>(
        self,
        cache: &Arc<Cache<K>>,
        map: impl Fn(&Change<K>, &Queue) + Send + Sync + 'static,
    ) -> Self {
        let mut this = self.needs(cache);
        let cache = Arc::clone(cache);
        this.wires.push(Box::new(move |queue: &Arc<Queue>| {
            let queue = Arc::clone(queue);
            cache.listen(move |change| map(change, &queue));
        }));
        this
    }

    /// Hands the queue to whoever learns by other means than a cache which keys there are.
    #[must_use]
    pub fn fed_by(mut self, feed: impl FnOnce(Arc<Queue>) + Send + 'static) -> Self {
        self.wires
            .push(Box::new(move |queue: &Arc<Queue>| feed(Arc::clone(queue))));
        self
    }

    /// Every change of the kind whose keys are worked on.
    #[must_use]
    pub fn on_own<K: Cached>(self, cache: &Arc<Cache<K>>) -> Self {
        self.on(cache, |change, queue| queue.add(Key::of(&**change.latest())))
    }

    /// Does not work on anything before this cache has synced.
    #[must_use]
    pub fn needs<K: Cached>(mut self, cache: &Arc<Cache<K>>) -> Self {
        let cache = Arc::clone(cache);
        self.ready
            .push(Box::new(move || async move { cache.synced().await }.boxed()));
        self
    }

    /// Does not work on a key before the caches have seen what was written for it.
    #[must_use]
    pub fn after(mut self, written: &Written) -> Self {
        self.written = Some(written.clone());
        self
    }

    /// Something that runs beside the queue, such as a timer over all nodes. It starts when the caches have synced;
    /// if it fails or panics it is started again with growing delays. It ends by itself when its token is cancelled.
    #[must_use]
    pub fn beside<F, R>(mut self, task: F) -> Self
    where
        F: Fn(CancellationToken) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), Fault>> + Send + 'static,
    {
        self.tasks.push(Box::new(move |stop| task(stop).boxed()));
        self
    }

    /// Runs until `stop`; work that is under way is dropped then.
    pub async fn run(self, clock: Clock, statistics: Statistics, stop: CancellationToken) {
        let all = stop.clone();
        let run = self.run_until_stopped(clock, statistics, stop);
        tokio::select! {
            biased;
            () = all.cancelled() => {}
            () = run => {}
        }
    }

    async fn run_until_stopped(self, clock: Clock, statistics: Statistics, stop: CancellationToken) {
        let Self {
            name,
            workers,
            reconcile,
            wires,
            ready,
            written,
            tasks,
        } = self;
        let queue = Arc::new(Queue::new(clock.clone()));
        for wire in wires {
            wire(&queue);
        }
        for ready in ready {
            ready().await;
        }
        tracing::debug!(controller = name, "caches have synced");
        // Dropped with this future, which aborts what is under way.
        let mut running = JoinSet::new();
        for task in tasks {
            running.spawn(keep_running(
                name,
                task,
                clock.clone(),
                statistics.clone(),
                stop.clone(),
            ));
        }
        let free = Arc::new(Semaphore::new(workers.max(1)));
        loop {
            // Never closed.
            let Ok(permit) = Arc::clone(&free).acquire_owned().await else {
                return;
            };
            let key = queue.next().await;
            while running.try_join_next().is_some() {}
            let work = Work {
                name,
                reconcile: Arc::clone(&reconcile),
                written: written.clone(),
                queue: Arc::clone(&queue),
                clock: clock.clone(),
                statistics: statistics.clone(),
            };
            running.spawn(async move {
                work.on(key).await;
                drop(permit);
            });
        }
    }
}

struct Work {
    name: &'static str,
    reconcile: Reconcile,
    written: Option<Written>,
    queue: Arc<Queue>,
    clock: Clock,
    statistics: Statistics,
}

impl Work {
    async fn on(self, key: Key) {
        if let Some(written) = &self.written {
            written.seen(&key).await;
        }
        self.statistics.count(self.name, |it| it.runs += 1);
        // What is due after a delay is so from here on: the clock may be set while the work is done.
        let started = self.clock.now();
        // Unwind safety: reconcilers share only caches and notes, whose locks are never held across an await.
        let work = AssertUnwindSafe(async { (self.reconcile)(key.clone()).await });
        match work.catch_unwind().await {
            Ok(Ok(next)) => {
                self.queue.forget(&key);
                if let Next::After(delay) = next {
                    let delay = SignedDuration::try_from(delay).unwrap_or(SignedDuration::MAX);
                    let due = started.saturating_add(delay).unwrap_or(Timestamp::MAX);
                    self.queue.add_at(key.clone(), due);
                }
            }
            Ok(Err(fault)) => {
                self.statistics.count(self.name, |it| it.failures += 1);
                if fault.is_conflict() || fault.is_not_found() {
                    // The cache was behind others' writes: usual, and over with the next try.
                    tracing::debug!(controller = self.name, key = %key, error = %fault, "again soon");
                } else {
                    tracing::warn!(controller = self.name, key = %key, error = %fault, "failed; again later");
                }
                self.queue.retry(key.clone());
            }
            Err(panic) => {
                self.statistics.count(self.name, |it| it.panics += 1);
                let cause = message(&*panic);
                tracing::error!(controller = self.name, key = %key, cause, "panicked over an object; again later");
                self.queue.retry(key.clone());
            }
        }
        self.queue.done(&key);
    }
}

/// The delay before a task that ended is started again; it grows to a hundred times that.
const RESTART: Duration = Duration::from_millis(200);

async fn keep_running(name: &'static str, task: Task, clock: Clock, statistics: Statistics, stop: CancellationToken) {
    let mut delay = RESTART;
    while !stop.is_cancelled() {
        let run = AssertUnwindSafe(async { task(stop.clone()).await });
        match run.catch_unwind().await {
            Ok(Ok(())) => return,
            Ok(Err(fault)) => {
                statistics.count(name, |it| it.failures += 1);
                tracing::warn!(controller = name, error = %fault, "failed; started again soon");
            }
            Err(panic) => {
                statistics.count(name, |it| it.panics += 1);
                tracing::error!(
                    controller = name,
                    cause = message(&*panic),
                    "panicked; started again soon"
                );
            }
        }
        clock.sleep(delay).await;
        delay = (delay * 2).min(RESTART * 100);
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without words")
}
