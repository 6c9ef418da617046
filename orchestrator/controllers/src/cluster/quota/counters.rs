//! How many objects of a kind a namespace has, by watches that exist while a quota asks.

use super::cost::Counted;
use crate::{
    cluster::discovery::discover,
    frame::{Fault, Key, Queue},
};
use futures::StreamExt as _;
use kube::{
    Api, Client,
    core::{ApiResource, DynamicObject, PartialObjectMeta},
    runtime::{WatchStreamExt as _, watcher},
};
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Who asks, and what is counted for them.
#[derive(Default)]
struct State {
    wishes: HashMap<Key, HashSet<Counted>>,
    running: HashMap<(String, Counted), Counter>,
}

struct Counter {
    /// `None` before everything was listed once.
    number: Arc<Mutex<Option<usize>>>,
    _running: DropGuard,
}

/// Counts by namespace and kind.
pub(super) struct Counters {
    client: Client,
    state: Mutex<State>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Counters {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            state: Mutex::default(),
        }
    }

    /// Nobody asks for this quota any more; what nobody asks for is not watched.
    pub(super) fn forget(&self, quota: &Key) {
        let mut state = lock(&self.state);
        state.wishes.remove(quota);
        state.prune();
    }

    /// The numbers for a quota; `None` while some are not known, which is over when `queue` gets its key.
    ///
    /// # Errors
    /// The API server does not say what kinds there are.
    pub(super) async fn of(
        &self,
        quota: &Key,
        kinds: &HashSet<Counted>,
        queue: &Arc<Queue>,
    ) -> Result<Option<HashMap<Counted, usize>>, Fault> {
        let missing: Vec<Counted> = {
            let mut state = lock(&self.state);
            state.wishes.insert(quota.clone(), kinds.clone());
            state.prune();
            let runs = |it: &&Counted| {
                state
                    .running
                    .contains_key(&(quota.namespace.to_string(), (*it).clone()))
            };
            kinds.iter().filter(|it| !runs(it)).cloned().collect()
        };
        let found = if missing.is_empty() {
            Vec::new()
        } else {
            discover(&self.client).await?.resources
        };
        let mut state = lock(&self.state);
        for kind in missing {
            let resource = found
                .iter()
                .find(|it| it.namespaced && (&it.resource.group, &it.resource.plural) == (&kind.0, &kind.1));
            // What is not served has no objects.
            let Some(found) = resource else { continue };
            let number = Arc::new(Mutex::new(None));
            let stop = CancellationToken::new();
            let watch = Watch {
                client: self.client.clone(),
                resource: found.resource.clone(),
                quota: quota.clone(),
                number: Arc::clone(&number),
                queue: Arc::clone(queue),
                stop: stop.clone(),
            };
            tokio::spawn(watch.run());
            let counter = Counter {
                number,
                _running: stop.drop_guard(),
            };
            state.running.insert((quota.namespace.to_string(), kind), counter);
        }
        let mut numbers = HashMap::new();
        for kind in kinds {
            let Some(counter) = state.running.get(&(quota.namespace.to_string(), kind.clone())) else {
                continue;
            };
            match *lock(&counter.number) {
                Some(number) => drop(numbers.insert(kind.clone(), number)),
                None => return Ok(None),
            }
        }
        Ok(Some(numbers))
    }
}

impl State {
    fn prune(&mut self) {
        let wishes = &self.wishes;
        self.running.retain(|(namespace, kind), _| {
            let here = wishes.iter().filter(|it| *it.0.namespace == **namespace);
            here.flat_map(|it| it.1).any(|it| it == kind)
        });
    }
}

struct Watch {
    client: Client,
    resource: ApiResource,
    /// One of the quotas that ask; its controller passes news on to the others of the namespace.
    quota: Key,
    number: Arc<Mutex<Option<usize>>>,
    queue: Arc<Queue>,
    stop: CancellationToken,
}

impl Watch {
    async fn run(self) {
        let api: Api<PartialObjectMeta<DynamicObject>> =
            Api::namespaced_with(self.client.clone(), &self.quota.namespace, &self.resource);
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        let (mut names, mut listed) = (HashSet::new(), HashSet::new());
        loop {
            let event = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                Some(Ok(watcher::Event::Init)) => listed.clear(),
                Some(Ok(watcher::Event::InitApply(it))) => drop(listed.insert(it.metadata.name)),
                Some(Ok(watcher::Event::InitDone)) => names = std::mem::take(&mut listed),
                Some(Ok(watcher::Event::Apply(it))) => drop(names.insert(it.metadata.name)),
                Some(Ok(watcher::Event::Delete(it))) => drop(names.remove(&it.metadata.name)),
                Some(Err(error)) => {
                    tracing::debug!(resource = self.resource.plural, %error, "a watch broke; it is resumed");
                    continue;
                }
                // A watcher never ends.
                None => return,
            }
            let before = *lock(&self.number);
            if listed.is_empty() && before != Some(names.len()) {
                *lock(&self.number) = Some(names.len());
                // The key of a namespace's quotas together.
                self.queue.add(Key::new(&self.quota.namespace, ""));
            }
        }
    }
}
