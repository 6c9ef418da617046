//! [`Cache`]: everything that is read, in memory: an index per resource, a ring of events per resource.

use crate::{
    Backend, Change, Key, RangeQuery, Record, Revision, StoreError, Txn, Watcher,
    index::{Index, Iter, Start},
    ring::{Limits, Ring},
    value::with_revision,
};
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::JoinHandle};

/// Objects that are read from the backend at once while the cache fills.
const PAGE: usize = 1_000;
/// Past snapshots that a resource remembers for the next pages of lists.
const REMEMBERED: usize = 4;

/// One object as served.
#[derive(Debug)]
pub struct Entry {
    /// Where.
    pub key: Key,
    /// One JSON object, `metadata.resourceVersion` included, ready to be sent.
    pub json: Bytes,
    /// Revision of its last write: its `resourceVersion`.
    pub revision: Revision,
    /// What selectors and garbage collection ask for.
    pub indexed: Indexed,
}

/// Taken out of the JSON once, at the write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexed {
    /// `metadata.uid`.
    pub uid: Box<str>,
    /// `metadata.labels`, sorted by key.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the resource's selectable fields, in the order of its row.
    pub fields: Box<[Box<str>]>,
    /// `metadata.ownerReferences[].uid`.
    pub owners: Box<[Box<str>]>,
}

/// Knows how to read what the cache indexes. Must not fail: what it cannot read it leaves empty.
pub trait Indexer: Send + Sync + 'static {
    /// Reads one object of the resource `prefix`.
    fn index(&self, key: &Key, json: &[u8]) -> Indexed;
}

/// One change of a resource, shared by all who watch.
#[derive(Clone, Debug)]
pub struct WatchEvent {
    /// Its revision.
    pub revision: Revision,
    /// Before; `None`: it is new.
    pub before: Option<Arc<Entry>>,
    /// After; `None`: deleted. The `json` of a deleted object's last state, carrying the revision of the deletion, is in
    /// `deleted`.
    pub now: Option<Arc<Entry>>,
    /// For a deletion: the last state with the deletion's revision in it.
    pub deleted: Option<Arc<Entry>>,
}

/// Why a watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchEnd {
    /// The watcher was too slow, or asked for what is no longer kept: 410, list again.
    Expired,
    /// The store closes.
    Closed,
}

/// All objects of one resource at one revision. Cheap to take, and it does not change.
#[derive(Clone)]
pub struct Snapshot {
    index: Index,
    revision: Revision,
}

/// Reads and watches of every resource, over one [`Backend`]. Dropping it ends its watches.
pub struct Cache {
    backend: Arc<dyn Backend>,
    shared: Arc<Shared>,
    follower: JoinHandle<()>,
}

/// What the follower writes and everyone reads.
struct Shared {
    indexer: Arc<dyn Indexer>,
    limits: Limits,
    /// The oldest revision from which every change since is known.
    since: Revision,
    /// First and last revisions that were handed out before a crash and lost with it.
    lost: Vec<(Revision, Revision)>,
    resources: RwLock<Resources>,
    /// The newest revision that reads see. Set while the changed resource is locked.
    seen: Arc<AtomicU64>,
    /// The same, for those who wait for it.
    announced: watch::Sender<Revision>,
}

#[derive(Default)]
struct Resources {
    by_prefix: HashMap<Arc<str>, Arc<Resource>>,
    closed: bool,
}

/// One resource.
#[derive(Debug)]
pub(crate) struct Resource {
    state: RwLock<State>,
    pub(crate) wake: watch::Sender<()>,
    seen: Arc<AtomicU64>,
    remembered: Mutex<VecDeque<Snapshot>>,
}

#[derive(Debug)]
pub(crate) struct State {
    index: Index,
    pub(crate) ring: Ring,
    /// Keys share their namespace: one allocation each.
    namespaces: HashSet<Arc<str>>,
    pub(crate) closed: bool,
}

impl Resource {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        // A panic elsewhere cannot leave half a change: the index and the ring are changed without calling foreign code.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest revision that reads see. While this resource is locked, all its changes up to there are visible.
    pub(crate) fn revision(&self) -> Revision {
        self.seen.load(Ordering::Acquire)
    }

    fn remembered(&self) -> MutexGuard<'_, VecDeque<Snapshot>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn existing(&self, prefix: &str) -> Option<Arc<Resource>> {
        self.resources
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .by_prefix
            .get(prefix)
            .cloned()
    }

    /// The resource, made if nothing was known of it: no change of it has happened since the cache was opened.
    fn resource(&self, prefix: &Arc<str>) -> Arc<Resource> {
        if let Some(resource) = self.existing(prefix) {
            return resource;
        }
        let mut resources = self.resources.write().unwrap_or_else(PoisonError::into_inner);
        let closed = resources.closed;
        let resource = resources.by_prefix.entry(Arc::clone(prefix)).or_insert_with(|| {
            Arc::new(Resource {
                state: RwLock::new(State {
                    index: Index::default(),
                    ring: Ring::new(self.limits, self.since),
                    namespaces: HashSet::new(),
                    closed,
                }),
                wake: watch::Sender::new(()),
                seen: Arc::clone(&self.seen),
                remembered: Mutex::default(),
            })
        });
        Arc::clone(resource)
    }

    fn entry(&self, key: Key, stored: &Bytes, revision: Revision) -> Arc<Entry> {
        let json = with_revision(stored, revision);
        let indexed = self.indexer.index(&key, &json);
        Arc::new(Entry {
            key,
            json,
            revision,
            indexed,
        })
    }

    /// Makes changes visible, in order, then wakes who waits for them.
    fn apply(&self, changes: Vec<Change>, now: Instant) {
        let mut touched: Vec<(Arc<str>, Arc<Resource>)> = Vec::new();
        let mut newest = 0;
        for change in changes {
            if change.revision <= self.seen.load(Ordering::Acquire) {
                continue; // Read with the first pages already.
            }
            newest = change.revision;
            let prefix = &change.key.prefix;
            let resource = match touched.iter().rfind(|(known, _)| known == prefix) {
                Some((_, resource)) => Arc::clone(resource),
                None => {
                    let resource = self.resource(prefix);
                    touched.push((Arc::clone(prefix), Arc::clone(&resource)));
                    resource
                }
            };
            self.apply_one(&resource, change, now);
        }
        for (_, resource) in &touched {
            resource.wake.send_replace(());
        }
        if newest > 0 {
            self.announced.send_replace(newest);
        }
    }

    fn apply_one(&self, resource: &Resource, change: Change, now: Instant) {
        let key = resource.write().shared_key(change.key);
        let (written, deleted) = match (&change.now, &change.before) {
            (Some(record), _) => (Some(self.entry(key.clone(), &record.value, change.revision)), None),
            (None, Some(record)) => (None, Some(self.entry(key.clone(), &record.value, change.revision))),
            (None, None) => (None, None),
        };
        let mut state = resource.write();
        let before = match &written {
            Some(entry) => state.index.insert(Arc::clone(entry)),
            None => state.index.remove(&key.namespace, &key.name),
        };
        state.ring.push(
            WatchEvent {
                revision: change.revision,
                before,
                now: written,
                deleted,
            },
            now,
        );
        self.seen.store(change.revision, Ordering::Release);
    }

    /// Ends every watch.
    fn close(&self) {
        let resources: Vec<_> = {
            let mut resources = self.resources.write().unwrap_or_else(PoisonError::into_inner);
            resources.closed = true;
            resources.by_prefix.values().cloned().collect()
        };
        for resource in resources {
            resource.write().closed = true;
            resource.wake.send_replace(());
        }
        self.announced.send_replace(Revision::MAX);
    }

    fn is_closed(&self) -> bool {
        self.resources.read().unwrap_or_else(PoisonError::into_inner).closed
    }

    /// Whether everything that happened up to this revision is known.
    fn check(&self, asked: Revision, newest: Revision) -> Result<(), StoreError> {
        if asked > newest {
            return Err(StoreError::Future { asked, newest });
        }
        match self.lost.iter().find(|(first, last)| (*first..=*last).contains(&asked)) {
            Some((_, last)) => Err(StoreError::Compacted {
                asked,
                oldest: last + 1,
            }),
            None => Ok(()),
        }
    }
}

impl State {
    /// The key, its namespace shared with those of other objects.
    fn shared_key(&mut self, mut key: Key) -> Key {
        match self.namespaces.get(&key.namespace) {
            Some(known) => key.namespace = Arc::clone(known),
            None => {
                self.namespaces.insert(Arc::clone(&key.namespace));
            }
        }
        key
    }
}

impl Cache {
    /// Reads everything there is and follows it from there, with the usual [`Limits`].
    ///
    /// # Errors
    /// What the backend could not read.
    pub async fn open(backend: Arc<dyn Backend>, indexer: Arc<dyn Indexer>) -> Result<Arc<Self>, StoreError> {
        Self::open_with(backend, indexer, Limits::default()).await
    }

    /// Reads everything there is and follows it from there.
    ///
    /// # Errors
    /// What the backend could not read.
    pub async fn open_with(
        backend: Arc<dyn Backend>,
        indexer: Arc<dyn Indexer>,
        limits: Limits,
    ) -> Result<Arc<Self>, StoreError> {
        let first = backend
            .range(RangeQuery {
                limit: PAGE,
                ..RangeQuery::default()
            })
            .await?;
        let revision = first.revision;
        let shared = Arc::new(Shared {
            indexer,
            limits,
            since: revision,
            lost: backend.lost(),
            resources: RwLock::default(),
            seen: Arc::new(AtomicU64::new(revision)),
            announced: watch::Sender::new(revision),
        });
        shared.fill(&*backend, first.records, first.more, revision).await?;
        let changes = backend.watch(None, revision);
        let follower = tokio::spawn(follow(Arc::clone(&shared), changes));
        Ok(Arc::new(Self {
            backend,
            shared,
            follower,
        }))
    }

    /// Writes, and returns when reads of this cache see it. `now` is `None` after a deletion.
    ///
    /// # Errors
    /// As [`Backend::commit`].
    pub async fn commit(&self, txn: Txn) -> Result<WatchEvent, StoreError> {
        let change = self.backend.commit(txn).await?;
        self.seen(change.revision).await?;
        let resource = self.shared.resource(&change.key.prefix);
        if let Some(event) = resource.read().ring.find(change.revision) {
            return Ok(event.clone());
        }
        // Forgotten already: the ring is small, or there were very many others.
        let entry = |record: &Record, revision| self.shared.entry(change.key.clone(), &record.value, revision);
        Ok(WatchEvent {
            revision: change.revision,
            before: change.before.as_ref().map(|it| entry(it, it.modified)),
            now: change.now.as_ref().map(|it| entry(it, it.modified)),
            deleted: change
                .before
                .as_ref()
                .filter(|_| change.now.is_none())
                .map(|it| entry(it, change.revision)),
        })
    }

    /// One object, as of now.
    pub fn get(&self, key: &Key) -> Option<Arc<Entry>> {
        let resource = self.shared.existing(&key.prefix)?;
        let state = resource.read();
        state.index.get(&key.namespace, &key.name).cloned()
    }

    /// All objects of a resource, as of now.
    pub fn snapshot(&self, prefix: &str) -> Snapshot {
        let resource = self.shared.resource(&prefix.into());
        let state = resource.read();
        Snapshot {
            index: state.index.clone(),
            revision: resource.revision(),
        }
    }

    /// All objects of a resource as they were at a revision that the ring still covers.
    ///
    /// # Errors
    /// [`StoreError::Compacted`], [`StoreError::Future`].
    pub fn snapshot_at(&self, prefix: &str, at: Revision) -> Result<Snapshot, StoreError> {
        let resource = self.shared.resource(&prefix.into());
        let (mut nearest, mut later) = {
            let state = resource.read();
            self.shared.check(at, resource.revision())?;
            let oldest = state.ring.since();
            let Some(later) = state
                .ring
                .position_after(at)
                .and_then(|it| state.ring.from(it, usize::MAX))
            else {
                return Err(StoreError::Compacted { asked: at, oldest });
            };
            resource.remembered().retain(|it| it.revision >= oldest);
            (
                Snapshot {
                    index: state.index.clone(),
                    revision: resource.revision(),
                },
                later,
            )
        };
        if later.is_empty() {
            return Ok(Snapshot {
                revision: at,
                ..nearest
            });
        }
        // Pages of one list ask for the same revision again and again.
        let known = resource
            .remembered()
            .iter()
            .filter(|it| it.revision >= at)
            .min_by_key(|it| it.revision)
            .cloned();
        if let Some(known) = known.filter(|it| it.revision < nearest.revision) {
            later.retain(|event| event.revision <= known.revision);
            nearest = known;
        }
        for event in later.iter().rev() {
            match (&event.before, &event.now) {
                (Some(before), _) => drop(nearest.index.insert(Arc::clone(before))),
                (None, Some(now)) => drop(nearest.index.remove(&now.key.namespace, &now.key.name)),
                (None, None) => {}
            }
        }
        nearest.revision = at;
        let mut remembered = resource.remembered();
        if !remembered.iter().any(|it| it.revision == at) {
            remembered.push_back(nearest.clone());
            if remembered.len() > REMEMBERED {
                remembered.pop_front();
            }
        }
        Ok(nearest)
    }

    /// Waits until the cache has seen a revision.
    ///
    /// # Errors
    /// [`StoreError::Future`] when it does not come in time, [`StoreError::Closed`].
    pub async fn wait_for(&self, revision: Revision, at_most: Duration) -> Result<(), StoreError> {
        match tokio::time::timeout(at_most, self.seen(revision)).await {
            Ok(seen) => seen,
            Err(_) => Err(StoreError::Future {
                asked: revision,
                newest: self.revision(),
            }),
        }
    }

    async fn seen(&self, revision: Revision) -> Result<(), StoreError> {
        if self.revision() < revision {
            // The sender lives in `shared`; closing announces `Revision::MAX`.
            let _ = self
                .shared
                .announced
                .subscribe()
                .wait_for(|seen| *seen >= revision)
                .await;
            if self.revision() < revision {
                return Err(StoreError::Closed("nobody follows its changes any more".into()));
            }
        }
        Ok(())
    }

    /// The newest revision that reads see.
    pub fn revision(&self) -> Revision {
        self.shared.seen.load(Ordering::Acquire)
    }

    /// Changes of a resource after a revision.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when the ring no longer covers it; [`StoreError::Future`].
    pub fn watch(&self, prefix: &str, after: Revision) -> Result<Watcher, StoreError> {
        let resource = self.shared.resource(&prefix.into());
        let position = {
            let state = resource.read();
            self.shared.check(after, resource.revision())?;
            let oldest = state.ring.since();
            state
                .ring
                .position_after(after)
                .ok_or(StoreError::Compacted { asked: after, oldest })?
        };
        Ok(Watcher::new(resource, position, after))
    }

    /// The backend below, for compaction and snapshots of the file.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Whether the cache no longer follows the backend: reads go stale and writes fail.
    pub fn is_closed(&self) -> bool {
        self.shared.is_closed()
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.follower.abort();
        self.shared.close();
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("revision", &self.revision())
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Reads every object as it was at `revision`, page by page: the records are not held twice.
    async fn fill(
        &self,
        backend: &dyn Backend,
        mut records: Vec<Record>,
        mut more: bool,
        revision: Revision,
    ) -> Result<(), StoreError> {
        let mut gathered: Option<(Arc<Resource>, Arc<str>, Vec<Arc<Entry>>)> = None;
        loop {
            let after = records.last().map(|it| it.key.clone());
            for record in records {
                if gathered
                    .as_ref()
                    .is_none_or(|(_, prefix, _)| *prefix != record.key.prefix)
                {
                    let prefix = Arc::clone(&record.key.prefix);
                    let next = (self.resource(&prefix), prefix, Vec::new());
                    if let Some((resource, _, entries)) = gathered.replace(next) {
                        resource.write().index = Index::from_sorted(entries);
                    }
                }
                if let Some((resource, prefix, entries)) = &mut gathered {
                    let mut key = resource.write().shared_key(record.key);
                    key.prefix = Arc::clone(prefix);
                    entries.push(self.entry(key, &record.value, record.modified));
                }
            }
            if !more {
                break;
            }
            let query = RangeQuery {
                after,
                limit: PAGE,
                at: Some(revision),
                ..RangeQuery::default()
            };
            let page = backend.range(query).await?;
            (records, more) = (page.records, page.more);
        }
        if let Some((resource, _, entries)) = gathered {
            resource.write().index = Index::from_sorted(entries);
        }
        Ok(())
    }
}

/// Feeds the cache until the backend closes.
async fn follow(shared: Arc<Shared>, mut changes: BoxStream<'static, Result<Vec<Change>, StoreError>>) {
    while let Some(batch) = changes.next().await {
        match batch {
            Ok(changes) => shared.apply(changes, Instant::now()),
            Err(error) => {
                if !matches!(error, StoreError::Closed(_)) {
                    tracing::error!(%error, "the cache can no longer follow the store");
                }
                break;
            }
        }
    }
    shared.close();
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("revision", &self.revision)
            .field("len", &self.len())
            .finish()
    }
}

impl Snapshot {
    /// The revision of which this is the truth.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Objects in the order of namespace and name; of one namespace, or of all with `None`; behind `after` (namespace,
    /// name).
    pub fn entries<'a>(
        &'a self,
        namespace: Option<&'a str>,
        after: Option<(&'a str, &'a str)>,
    ) -> Box<dyn Iterator<Item = &'a Arc<Entry>> + Send + 'a> {
        let first = (namespace.unwrap_or_default(), "");
        let start = match after {
            Some((namespace, name)) if (namespace, name) >= first => Start::After(namespace, name),
            _ => Start::At(first.0, first.1),
        };
        let entries: Iter<'a> = self.index.iter_from(start);
        match namespace {
            None => Box::new(entries),
            Some(namespace) => Box::new(entries.take_while(move |it| &*it.key.namespace == namespace)),
        }
    }

    /// One object.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<Entry>> {
        self.index.get(namespace, name)
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
