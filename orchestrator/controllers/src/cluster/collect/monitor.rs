//! Watches the metadata of every kind, also of those that are defined while we run, and feeds the graph.

use super::graph::{Graph, Identity, Misplaced, Node, Uid, Work};
use crate::{
    cluster::discovery::{Found, discover},
    frame::{Clock, Fault, Key, Queue},
};
use futures::StreamExt as _;
use kube::{
    Api, Client,
    core::{DynamicObject, PartialObjectMeta},
    runtime::{WatchStreamExt as _, watcher},
};
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock},
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// After changed definitions: several come together.
const SETTLE: Duration = Duration::from_millis(50);
/// After a group that did not answer.
const AGAIN: Duration = Duration::from_secs(30);
/// Source: upstream ignores events, which own nothing and are owned by nothing.
const IGNORED: [&str; 1] = ["events"];
/// Kinds whose objects bring and take other kinds.
const DEFINING: [(&str, &str); 2] = [
    ("apiextensions.k8s.io", "customresourcedefinitions"),
    ("apiregistration.k8s.io", "apiservices"),
];

type Meta = PartialObjectMeta<DynamicObject>;

/// Group and kind.
type KindKey = (String, String);

/// The graph, and how the kinds in it are reached.
pub(crate) struct Monitor {
    client: Client,
    clock: Clock,
    graph: Mutex<Graph>,
    kinds: RwLock<HashMap<KindKey, Found>>,
    /// Kinds that have not been read once yet.
    unread: watch::Sender<HashSet<KindKey>>,
    /// Asks for another look at which kinds there are.
    rediscover: Notify,
    queue: OnceLock<Arc<Queue>>,
    misplaced: mpsc::UnboundedSender<Misplaced>,
}

fn key_of(found: &Found) -> KindKey {
    (found.resource.group.clone(), found.resource.kind.clone())
}

impl Monitor {
    /// Nothing is watched before [`Monitor::run`]. References that point into other namespaces go to `misplaced`.
    pub(crate) fn new(client: Client, clock: Clock, misplaced: mpsc::UnboundedSender<Misplaced>) -> Self {
        Self {
            client,
            clock,
            graph: Mutex::default(),
            kinds: RwLock::default(),
            // One that nobody has: nothing is read before the first discovery.
            unread: watch::channel(HashSet::from([KindKey::default()])).0,
            rediscover: Notify::new(),
            queue: OnceLock::new(),
            misplaced,
        }
    }

    /// Where work goes; set once.
    pub(crate) fn feed(&self, queue: Arc<Queue>) {
        let _ = self.queue.set(queue);
    }

    /// The graph. Never held across an await.
    pub(crate) fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How objects of a kind are reached; asks for a new discovery if it is unknown.
    pub(crate) fn kind(&self, api_version: &str, kind: &str) -> Option<Found> {
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        let kinds = self.kinds.read().unwrap_or_else(PoisonError::into_inner);
        let found = kinds.get(&(group.to_owned(), kind.to_owned())).cloned();
        if found.is_none() {
            self.rediscover.notify_one();
        }
        found
    }

    /// Returns when every kind has been read once, or could not be.
    pub(crate) async fn read(&self) {
        // `self` holds the sender.
        let _ = self.unread.subscribe().wait_for(HashSet::is_empty).await;
    }

    fn tried(&self, kind: &KindKey) {
        self.unread.send_if_modified(|it| it.remove(kind));
    }

    fn add(&self, work: &[Work]) {
        let Some(queue) = self.queue.get() else { return };
        work.iter().for_each(|it| queue.add(key(it)));
    }

    /// Watches until the token is cancelled.
    ///
    /// # Errors
    /// The list of groups could not be had.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) -> Result<(), Fault> {
        let mut running: HashMap<KindKey, (Found, DropGuard)> = HashMap::new();
        // Dropped with this future, which ends them.
        let mut tasks = JoinSet::new();
        loop {
            let discovered = discover(&self.client).await?;
            for fault in &discovered.faults {
                tracing::warn!(
                    fault,
                    "an API group does not answer; its objects are not looked after until it does"
                );
            }
            let complete = discovered.faults.is_empty();
            let wanted: HashMap<KindKey, Found> = discovered
                .resources
                .into_iter()
                .filter(|it| it.can(&["list", "watch", "delete"]) && !IGNORED.contains(&it.resource.plural.as_str()))
                .map(|it| (key_of(&it), it))
                .collect();
            // What a silent group has is not gone.
            if complete {
                running.retain(|kind, (found, _)| wanted.get(kind) == Some(found));
            }
            {
                let mut kinds = self.kinds.write().unwrap_or_else(PoisonError::into_inner);
                if complete {
                    kinds.clone_from(&wanted);
                } else {
                    kinds.extend(wanted.clone());
                }
            }
            let new: Vec<_> = wanted.into_iter().filter(|it| !running.contains_key(&it.0)).collect();
            self.unread.send_modify(|it| {
                it.remove(&KindKey::default());
                it.extend(new.iter().map(|it| it.0.clone()));
            });
            for (kind, found) in new {
                let token = stop.child_token();
                tasks.spawn(Arc::clone(&self).follow(found.clone(), token.clone()));
                running.insert(kind, (found, token.drop_guard()));
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = self.rediscover.notified() => {}
                () = self.clock.sleep(AGAIN), if !complete => {}
            }
            self.clock.sleep(SETTLE).await;
            while tasks.try_join_next().is_some() {}
        }
    }

    /// One kind, until the token is cancelled: then its objects are not known any more.
    async fn follow(self: Arc<Self>, found: Found, stop: CancellationToken) {
        let kind = key_of(&found);
        let api: Api<Meta> = Api::all_with(self.client.clone(), &found.resource);
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        let place = Place::new(&found);
        let (mut known, mut listed) = (HashSet::<Uid>::new(), HashSet::<Uid>::new());
        loop {
            let event = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                event = events.next() => event,
            };
            match event {
                Some(Ok(watcher::Event::Init)) => listed.clear(),
                Some(Ok(watcher::Event::InitApply(object))) => {
                    listed.extend(self.observe(&place, &object));
                }
                Some(Ok(watcher::Event::InitDone)) => {
                    for uid in known.difference(&listed) {
                        let work = self.graph().gone(uid);
                        self.add(&work);
                    }
                    known = std::mem::take(&mut listed);
                    self.tried(&kind);
                    self.redefine(&found);
                }
                Some(Ok(watcher::Event::Apply(object))) => {
                    known.extend(self.observe(&place, &object));
                    self.redefine(&found);
                }
                Some(Ok(watcher::Event::Delete(object))) => {
                    if let Some(uid) = &object.metadata.uid {
                        known.remove(uid.as_str());
                        let work = self.graph().gone(uid);
                        self.add(&work);
                    }
                    self.redefine(&found);
                }
                Some(Err(error)) => {
                    self.tried(&kind);
                    tracing::debug!(kind = kind.1, %error, "a watch broke; it is resumed");
                    if let watcher::Error::InitialListFailed(_) = error {
                        // Perhaps the kind is gone.
                        self.rediscover.notify_one();
                    }
                }
                // A watcher never ends.
                None => break,
            }
        }
        self.tried(&kind);
        for uid in known.union(&listed) {
            let work = self.graph().gone(uid);
            self.add(&work);
        }
    }

    fn redefine(&self, found: &Found) {
        let resource = (found.resource.group.as_str(), found.resource.plural.as_str());
        if DEFINING.contains(&resource) {
            self.rediscover.notify_one();
        }
    }

    fn observe(&self, place: &Place, object: &Meta) -> Option<Uid> {
        let uid: Uid = object.metadata.uid.as_deref()?.into();
        let node = Node::of(place.identity(object), &object.metadata);
        let (work, misplaced) = self.graph().observe(&uid, &node, &object.metadata);
        self.add(&work);
        for one in misplaced {
            // Nobody reads any more at the end of the process only.
            let _ = self.misplaced.send(one);
        }
        Some(uid)
    }
}

/// A piece of work as a key of the queue.
pub(crate) fn key(work: &Work) -> Key {
    match work {
        Work::Judge(uid) => Key::new("judge", uid),
        Work::Orphan(uid) => Key::new("orphan", uid),
    }
}

/// What objects of a kind share.
struct Place {
    api_version: Arc<str>,
    kind: Arc<str>,
}

impl Place {
    fn new(found: &Found) -> Self {
        Self {
            api_version: found.resource.api_version.as_str().into(),
            kind: found.resource.kind.as_str().into(),
        }
    }

    fn identity(&self, object: &Meta) -> Identity {
        Identity {
            api_version: Arc::clone(&self.api_version),
            kind: Arc::clone(&self.kind),
            namespace: object.metadata.namespace.as_deref().unwrap_or_default().into(),
            name: object.metadata.name.as_deref().unwrap_or_default().into(),
        }
    }
}
