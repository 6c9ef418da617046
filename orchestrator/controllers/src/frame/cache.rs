//! One watch per kind for all controllers: a cache with indexes, and who wants to know of changes.

use super::api::revision;
use futures::{StreamExt as _, future::BoxFuture};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    runtime::{WatchStreamExt as _, watcher},
};
use serde::de::DeserializeOwned;
use std::{
    any::{Any, TypeId},
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, RwLock},
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A kind that can be cached: every type of `k8s_openapi`.
pub trait Cached: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static {}
impl<K> Cached for K where K: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static {}

/// What happened to an object. Never both `None`.
#[derive(Clone, Debug)]
pub struct Change<K> {
    /// As it was; `None` if it is new.
    pub old: Option<Arc<K>>,
    /// As it is; `None` if it is gone.
    pub new: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// As it is, or as it was last.
    ///
    /// # Panics
    /// Never: a change without both is not made.
    #[must_use]
    pub fn latest(&self) -> &Arc<K> {
        self.new.as_ref().or(self.old.as_ref()).expect("a change has a side")
    }

    /// Both versions that there are, the old one first.
    pub fn sides(&self) -> impl Iterator<Item = &Arc<K>> {
        self.old.iter().chain(&self.new)
    }
}

/// How far a cache has got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freshness {
    /// Lists that were begun.
    pub lists_begun: u64,
    /// Lists that are complete; the cache has synced when there is one.
    pub lists_done: u64,
    /// The highest `metadata.resourceVersion` that was seen.
    pub revision: u64,
}

type Listener<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;
type Index<K> = (&'static str, fn(&K) -> Option<String>);

/// All objects of a kind as the server told them, without `metadata.managedFields`.
pub struct Cache<K> {
    state: RwLock<State<K>>,
    /// Taken while the state changes and listeners are told, so that they hear every change once and in order.
    listeners: Mutex<Vec<Listener<K>>>,
    freshness: watch::Sender<Freshness>,
}

struct State<K> {
    objects: BTreeMap<(String, String), Arc<K>>,
    by_controller: HashMap<String, HashSet<(String, String)>>,
    /// Objects without a controller, by namespace.
    orphans: HashMap<String, HashSet<(String, String)>>,
    indexes: Vec<Index<K>>,
    indexed: HashMap<(&'static str, String), HashSet<(String, String)>>,
}

fn id<K: Resource>(object: &K) -> (String, String) {
    let meta = object.meta();
    (
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}

fn controller_uid<K: Resource>(object: &K) -> Option<&str> {
    super::controller_of(object).map(|it| it.uid.as_str())
}

fn drop_from<Q: std::hash::Hash + Eq>(map: &mut HashMap<Q, HashSet<(String, String)>>, key: Q, id: &(String, String)) {
    if let std::collections::hash_map::Entry::Occupied(mut entry) = map.entry(key) {
        entry.get_mut().remove(id);
        if entry.get().is_empty() {
            entry.remove();
        }
    }
}

impl<K: Cached> State<K> {
    fn insert(&mut self, object: Arc<K>) -> Option<Arc<K>> {
        let id = id(&*object);
        let old = self.remove(&id);
        match controller_uid(&*object) {
            Some(uid) => self.by_controller.entry(uid.to_owned()).or_default().insert(id.clone()),
            None => self.orphans.entry(id.0.clone()).or_default().insert(id.clone()),
        };
        for (name, pick) in &self.indexes {
            if let Some(value) = pick(&object) {
                self.indexed.entry((*name, value)).or_default().insert(id.clone());
            }
        }
        self.objects.insert(id, object);
        old
    }

    fn remove(&mut self, id: &(String, String)) -> Option<Arc<K>> {
        let old = self.objects.remove(id)?;
        match controller_uid(&*old) {
            Some(uid) => drop_from(&mut self.by_controller, uid.to_owned(), id),
            None => drop_from(&mut self.orphans, id.0.clone(), id),
        }
        for (name, pick) in &self.indexes {
            if let Some(value) = pick(&old) {
                drop_from(&mut self.indexed, (*name, value), id);
            }
        }
        Some(old)
    }

    fn all(&self, ids: Option<&HashSet<(String, String)>>) -> Vec<Arc<K>> {
        let ids = ids.into_iter().flatten();
        let mut found: Vec<_> = ids.filter_map(|id| self.objects.get_key_value(id)).collect();
        found.sort_unstable_by(|a, b| a.0.cmp(b.0));
        found.into_iter().map(|(_, object)| Arc::clone(object)).collect()
    }
}

impl<K: Cached> Default for Cache<K> {
    fn default() -> Self {
        Self {
            state: RwLock::new(State {
                objects: BTreeMap::new(),
                by_controller: HashMap::new(),
                orphans: HashMap::new(),
                indexes: Vec::new(),
                indexed: HashMap::new(),
            }),
            listeners: Mutex::default(),
            freshness: watch::channel(Freshness::default()).0,
        }
    }
}

impl<K: Cached> Cache<K> {
    fn read<T>(&self, read: impl FnOnce(&State<K>) -> T) -> T {
        read(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, write: impl FnOnce(&mut State<K>) -> T) -> T {
        write(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// One object. The namespace is empty for kinds of the cluster.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let id = (namespace.to_owned(), name.to_owned());
        self.read(|state| state.objects.get(&id).cloned())
    }

    /// Everything, by namespace and name.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.read(|state| state.objects.values().cloned().collect())
    }

    /// Everything in a namespace, by name.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.read(|state| {
            let from = (namespace.to_owned(), String::new());
            let here = state.objects.range(from..).take_while(|(id, _)| id.0 == namespace);
            here.map(|(_, object)| Arc::clone(object)).collect()
        })
    }

    /// What the object with this uid controls (`metadata.ownerReferences` with `controller: true`).
    pub fn controlled_by(&self, uid: &str) -> Vec<Arc<K>> {
        self.read(|state| state.all(state.by_controller.get(uid)))
    }

    /// Objects of a namespace that nobody controls.
    pub fn orphans(&self, namespace: &str) -> Vec<Arc<K>> {
        self.read(|state| state.all(state.orphans.get(namespace)))
    }

    /// Adds an index. A second one of the same name is the same and changes nothing.
    pub fn add_index(&self, name: &'static str, pick: fn(&K) -> Option<String>) {
        self.write(|state| {
            if state.indexes.iter().any(|it| it.0 == name) {
                return;
            }
            state.indexes.push((name, pick));
            for (id, object) in &state.objects {
                if let Some(value) = pick(object) {
                    state.indexed.entry((name, value)).or_default().insert(id.clone());
                }
            }
        });
    }

    /// The objects whose index of this name has this value.
    pub fn indexed(&self, name: &'static str, value: &str) -> Vec<Arc<K>> {
        self.read(|state| state.all(state.indexed.get(&(name, value.to_owned()))))
    }

    /// Calls `listener` with everything that there is as new, and then with every change, in order. It runs while the
    /// watch waits, so it must be quick: it adds to queues. It may read this cache, which has the change already.
    pub fn listen(&self, listener: impl Fn(&Change<K>) + Send + Sync + 'static) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let listener: Listener<K> = Box::new(listener);
        for object in self.all() {
            tell(
                &listener,
                &Change {
                    old: None,
                    new: Some(object),
                },
            );
        }
        listeners.push(listener);
    }

    /// How far this cache has got.
    pub fn freshness(&self) -> Freshness {
        *self.freshness.borrow()
    }

    /// Returns when the first list is complete.
    pub async fn synced(&self) {
        let mut freshness = self.freshness.subscribe();
        // `self` holds the sender.
        let _ = freshness.wait_for(|it| it.lists_done > 0).await;
    }

    fn change(&self, objects: impl IntoIterator<Item = Change<K>>) {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = 0;
        for mut change in objects {
            seen = seen.max(
                change
                    .sides()
                    .filter_map(|it| revision(&**it))
                    .max()
                    .unwrap_or_default(),
            );
            change.old = self.write(|state| match (&change.new, &change.old) {
                (Some(new), _) => state.insert(Arc::clone(new)),
                // What the server said last about a deleted object is what it was.
                (None, Some(old)) => state.remove(&id(&**old)).map(|_| Arc::clone(old)),
                (None, None) => None,
            });
            if change.old.is_some() || change.new.is_some() {
                for listener in &*listeners {
                    tell(listener, &change);
                }
            }
        }
        // After all of them: the objects of a list are in no order of revisions.
        self.freshness.send_modify(|it| it.revision = it.revision.max(seen));
    }

    /// Takes what a watcher says.
    pub(super) fn apply(&self, event: watcher::Event<K>, list: &mut Vec<K>) {
        match event.modify(|it| it.meta_mut().managed_fields = None) {
            watcher::Event::Init => {
                list.clear();
                self.freshness.send_modify(|it| it.lists_begun += 1);
            }
            watcher::Event::InitApply(object) => list.push(object),
            watcher::Event::InitDone => {
                let list = std::mem::take(list);
                let ids: HashSet<_> = list.iter().map(id).collect();
                let gone = self.all().into_iter().filter(|it| !ids.contains(&id(&**it)));
                let gone: Vec<_> = gone
                    .map(|it| Change {
                        old: Some(it),
                        new: None,
                    })
                    .collect();
                let news = list.into_iter().filter_map(|it| {
                    let known = self.get(&it.namespace().unwrap_or_default(), &it.name_any());
                    let same = known.is_some_and(|known| {
                        known.meta().resource_version == it.meta().resource_version && known.meta().uid == it.meta().uid
                    });
                    (!same).then(|| Change {
                        old: None,
                        new: Some(Arc::new(it)),
                    })
                });
                self.change(gone.into_iter().chain(news));
                self.freshness.send_modify(|it| it.lists_done = it.lists_begun);
            }
            watcher::Event::Apply(object) => self.change([Change {
                old: None,
                new: Some(Arc::new(object)),
            }]),
            watcher::Event::Delete(object) => self.change([Change {
                old: Some(Arc::new(object)),
                new: None,
            }]),
        }
    }

    async fn follow(self: Arc<Self>, client: Client, fields: &'static str, stop: CancellationToken) {
        let config = watcher::Config {
            field_selector: (!fields.is_empty()).then(|| fields.to_owned()),
            ..watcher::Config::default()
        };
        let events = watcher(Api::<K>::all(client), config).default_backoff();
        let mut events = std::pin::pin!(events);
        let mut list = Vec::new();
        loop {
            let event = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                Some(Ok(event)) => self.apply(event, &mut list),
                Some(Err(error)) => {
                    tracing::warn!(kind = &*K::kind(&()), error = %error, "a watch broke; it is resumed");
                }
                // A watcher never ends.
                None => return,
            }
        }
    }

    /// Passed when this revision was seen.
    pub(super) fn barrier(self: &Arc<Self>, revision: u64) -> Barrier {
        let lists = self.freshness().lists_begun;
        let cache = Arc::clone(self);
        Barrier(Arc::new(move || {
            let mut freshness = cache.freshness.subscribe();
            Box::pin(async move {
                let passed = |it: &Freshness| it.revision >= revision || it.lists_done > lists;
                let _ = freshness.wait_for(passed).await;
            })
        }))
    }

    /// Passed when this object is gone, going, or another of its name.
    pub(super) fn barrier_until_deleted(self: &Arc<Self>, object: &K) -> Barrier {
        let (namespace, name) = id(object);
        let uid = object.uid();
        let cache = Arc::clone(self);
        Barrier(Arc::new(move || {
            let mut freshness = cache.freshness.subscribe();
            let (cache, namespace, name, uid) = (Arc::clone(&cache), namespace.clone(), name.clone(), uid.clone());
            Box::pin(async move {
                let passed = |_: &Freshness| {
                    let now = cache.get(&namespace, &name);
                    now.is_none_or(|it| it.uid() != uid || it.meta().deletion_timestamp.is_some())
                };
                let _ = freshness.wait_for(passed).await;
            })
        }))
    }
}

fn tell<K>(listener: &Listener<K>, change: &Change<K>) {
    // A panic here would end the watch for all; listeners hold nothing that could be left half done.
    if catch_unwind(AssertUnwindSafe(|| listener(change))).is_err() {
        tracing::error!("a listener panicked over a change; that change is lost to it");
    }
}

/// Something that a cache has still to see.
#[derive(Clone)]
pub(super) struct Barrier(Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>);

impl Barrier {
    pub(super) async fn passed(&self) {
        (self.0)().await;
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Barrier")
    }
}

/// A kind and the field selector of those that are kept, empty for all.
type CacheId = (TypeId, &'static str);

/// The caches of all kinds that somebody asked for.
pub struct Caches {
    client: Client,
    stop: CancellationToken,
    tasks: TaskTracker,
    caches: Mutex<HashMap<CacheId, Arc<dyn Any + Send + Sync>>>,
}

impl Caches {
    /// None yet. The client lists and watches; the watches end with `stop`.
    #[must_use]
    pub fn new(client: Client, stop: CancellationToken, tasks: TaskTracker) -> Self {
        Self {
            client,
            stop,
            tasks,
            caches: Mutex::default(),
        }
    }

    /// The cache of a kind. Its watch starts with the first call.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn of<K: Cached>(&self) -> Arc<Cache<K>> {
        self.of_selected("")
    }

    /// The cache of those objects of a kind that a field selector selects: `metadata.name=kube-root-ca.crt`.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn of_selected<K: Cached>(&self, fields: &'static str) -> Arc<Cache<K>> {
        let id = (TypeId::of::<K>(), fields);
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cache) = caches.get(&id)
            && let Ok(cache) = Arc::clone(cache).downcast::<Cache<K>>()
        {
            return cache;
        }
        let cache = Arc::new(Cache::<K>::default());
        caches.insert(id, Arc::clone(&cache) as _);
        self.tasks
            .spawn(Arc::clone(&cache).follow(self.client.clone(), fields, self.stop.clone()));
        cache
    }
}
