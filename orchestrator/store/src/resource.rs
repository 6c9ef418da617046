//! What is behind the cache: every resource's index and ring, filled from the backend and fed by one task.

use crate::{
    Backend, Change, Entry, Indexer, Key, Limits, Range, RangeQuery, Record, Revision, Snapshot, StoreError,
    WatchEvent, index::Index, ring::Ring, value::with_revision,
};
use bytes::Bytes;
use futures::{
    StreamExt,
    stream::{BoxStream, FuturesOrdered},
};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    num::NonZero,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};
use tokio::{
    sync::watch,
    task::{JoinError, spawn_blocking},
};

/// Objects that are read from the backend at once while the cache fills.
const PAGE: usize = 1_000;
/// Most changes from before the opening that are read, of all resources together: what clients miss while the server restarts.
const HISTORY: usize = 10_000;

/// What the follower writes and everyone reads.
pub(crate) struct Shared {
    indexer: Arc<dyn Indexer>,
    limits: Limits,
    /// The oldest revision from which every change since is known.
    since: Revision,
    /// First and last revisions that were handed out before a crash and lost with it.
    lost: Vec<(Revision, Revision)>,
    resources: RwLock<Resources>,
    /// The newest revision that reads see. Set while the changed resource is locked.
    pub(crate) seen: Arc<AtomicU64>,
    /// The same, for those who wait for it.
    pub(crate) announced: watch::Sender<Revision>,
}

#[derive(Default)]
pub(crate) struct Resources {
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
    pub(crate) index: Index,
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

    pub(crate) fn remembered(&self) -> MutexGuard<'_, VecDeque<Snapshot>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    pub(crate) fn existing(&self, prefix: &str) -> Option<Arc<Resource>> {
        self.resources
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .by_prefix
            .get(prefix)
            .cloned()
    }

    /// The resource, made if nothing was known of it: no change of it has happened since the cache was opened.
    pub(crate) fn resource(&self, prefix: &str) -> Arc<Resource> {
        if let Some(resource) = self.existing(prefix) {
            return resource;
        }
        let mut resources = self.resources.write().unwrap_or_else(PoisonError::into_inner);
        let closed = resources.closed;
        let resource = resources.by_prefix.entry(prefix.into()).or_insert_with(|| {
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

    pub(crate) fn entry(&self, key: Key, stored: &Bytes, revision: Revision) -> Arc<Entry> {
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
        let since = state.ring.since();
        state.ring.push(
            WatchEvent {
                revision: change.revision,
                before,
                now: written,
                deleted,
            },
            now,
        );
        if state.ring.since() > since {
            // They would keep alive what the ring has let go.
            let since = state.ring.since();
            resource.remembered().retain(|it| it.revision >= since);
        }
        self.seen.store(change.revision, Ordering::Release);
    }

    /// Ends every watch.
    pub(crate) fn close(&self) {
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

    pub(crate) fn is_closed(&self) -> bool {
        self.resources.read().unwrap_or_else(PoisonError::into_inner).closed
    }

    /// Whether everything that happened up to this revision is known.
    pub(crate) fn check(&self, asked: Revision, newest: Revision) -> Result<(), StoreError> {
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

/// Objects of one resource while they are read.
struct Gathered {
    resource: Arc<Resource>,
    entries: Vec<Arc<Entry>>,
}

impl Gathered {
    fn finish(self) {
        self.resource.write().index = Index::from_sorted(self.entries);
    }
}

/// Puts pages of objects together, each resource's in one index.
#[derive(Default)]
struct Filling {
    gathered: Option<Gathered>,
}

impl Filling {
    fn add(&mut self, shared: &Shared, page: Vec<Arc<Entry>>) {
        for entry in page {
            // They come in the order of keys, so each resource's are together.
            let of_another = |it: &mut Gathered| {
                it.entries
                    .last()
                    .is_some_and(|last| last.key.prefix != entry.key.prefix)
            };
            if let Some(done) = self.gathered.take_if(of_another) {
                done.finish();
            }
            let start = || Gathered {
                resource: shared.resource(&entry.key.prefix),
                entries: Vec::new(),
            };
            self.gathered.get_or_insert_with(start).entries.push(entry);
        }
    }

    fn finish(self) {
        if let Some(done) = self.gathered {
            done.finish();
        }
    }
}

impl Shared {
    /// Reads every object, and the newest history, so that watches go on over a restart. Returns the changes that follow.
    pub(crate) async fn open(
        backend: &dyn Backend,
        indexer: Arc<dyn Indexer>,
        limits: Limits,
    ) -> Result<(Arc<Self>, Changes), StoreError> {
        let first = backend
            .range(RangeQuery {
                limit: PAGE,
                ..RangeQuery::default()
            })
            .await?;
        let revision = first.revision;
        let (since, history) = history(backend, revision, limits).await?;
        let shared = Arc::new(Self {
            indexer,
            limits,
            since,
            lost: backend.lost(),
            resources: RwLock::default(),
            seen: Arc::new(AtomicU64::new(revision)),
            announced: watch::Sender::new(revision),
        });
        Self::fill(&shared, backend, first, revision).await?;
        shared.remember(history);
        Ok((shared, backend.watch(None, revision)))
    }

    /// Reads every object as it was at `revision`, page by page, so that the records are not held twice. While one page is
    /// read, others are indexed.
    async fn fill(
        shared: &Arc<Self>,
        backend: &dyn Backend,
        mut page: Range,
        revision: Revision,
    ) -> Result<(), StoreError> {
        let (mut filling, mut pages) = (Filling::default(), FuturesOrdered::new());
        let at_once = thread::available_parallelism().map_or(1, NonZero::get);
        loop {
            let after = page.records.last().map(|it| it.key.clone());
            let (indexing, records) = (Arc::clone(shared), page.records);
            pages.push_back(spawn_blocking(move || indexing.entries(records)));
            if pages.len() > at_once
                && let Some(done) = pages.next().await
            {
                filling.add(shared, done.map_err(|it| indexer_died(&it))?);
            }
            if !page.more {
                break;
            }
            let query = RangeQuery {
                after,
                limit: PAGE,
                at: Some(revision),
                ..RangeQuery::default()
            };
            page = backend.range(query).await?;
        }
        while let Some(done) = pages.next().await {
            filling.add(shared, done.map_err(|it| indexer_died(&it))?);
        }
        filling.finish();
        Ok(())
    }

    /// What is served of these records; their keys share prefixes and namespaces.
    fn entries(&self, records: Vec<Record>) -> Vec<Arc<Entry>> {
        let mut last: Option<Key> = None;
        let build = |record: Record| {
            let mut key = record.key;
            if let Some(last) = &last {
                if last.prefix == key.prefix {
                    key.prefix = Arc::clone(&last.prefix);
                }
                if last.namespace == key.namespace {
                    key.namespace = Arc::clone(&last.namespace);
                }
            }
            last = Some(key.clone());
            self.entry(key, &record.value, record.modified)
        };
        records.into_iter().map(build).collect()
    }

    /// Puts what happened before the cache was opened into the rings.
    fn remember(&self, history: VecDeque<Change>) {
        let now = Instant::now();
        let mut known: HashMap<Key, Arc<Entry>> = HashMap::new();
        for change in history {
            let resource = self.resource(&change.key.prefix);
            let key = resource.write().shared_key(change.key);
            let before = change.before.as_ref().map(|record| match known.get(&key) {
                Some(entry) if entry.revision == record.modified => Arc::clone(entry),
                _ => self.entry(key.clone(), &record.value, record.modified),
            });
            let deleted = change.before.as_ref().filter(|_| change.now.is_none());
            let deleted = deleted.map(|record| self.entry(key.clone(), &record.value, change.revision));
            let mut state = resource.write();
            let written = change
                .now
                .as_ref()
                .map(|record| match state.index.get(&key.namespace, &key.name) {
                    Some(entry) if entry.revision == record.modified => Arc::clone(entry),
                    _ => self.entry(key.clone(), &record.value, record.modified),
                });
            match &written {
                Some(entry) => known.insert(key, Arc::clone(entry)),
                None => known.remove(&key),
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
        }
    }
}

fn indexer_died(error: &JoinError) -> StoreError {
    StoreError::Closed(format!("the indexer failed on what was stored: {error}"))
}

/// The newest changes up to a revision, and the revision since which these are all.
async fn history(
    backend: &dyn Backend,
    until: Revision,
    limits: Limits,
) -> Result<(Revision, VecDeque<Change>), StoreError> {
    // Revisions that a crash left unused are no changes.
    let unused: u64 = backend.lost().iter().map(|(first, last)| last - first + 1).sum();
    let mut since = until.saturating_sub(limits.max_events.min(HISTORY) as u64 + unused);
    let (mut changes, mut bytes) = (VecDeque::new(), 0);
    let mut at = since;
    while at < until {
        let (batch, reached) = match backend.history(at).await {
            Ok((_, reached)) if reached == at => break,
            Ok(found) => found,
            // Also in the middle of it: a compaction overtook us, or revisions were lost in a crash.
            Err(StoreError::Compacted { oldest, .. }) if oldest > at => {
                (changes, bytes, since, at) = (VecDeque::new(), 0, oldest.min(until), oldest);
                continue;
            }
            Err(error) => return Err(error),
        };
        at = reached;
        for change in batch.into_iter().filter(|it| it.revision <= until) {
            bytes += bytes_of(&change);
            changes.push_back(change);
            while bytes > limits.max_bytes
                && let Some(oldest) = changes.pop_front()
            {
                bytes -= bytes_of(&oldest);
                since = oldest.revision;
            }
        }
    }
    Ok((since, changes))
}

fn bytes_of(change: &Change) -> usize {
    [&change.now, &change.before]
        .into_iter()
        .flatten()
        .map(|it| size_of::<Record>() + it.value.len())
        .sum()
}

/// What a backend's watch yields.
pub(crate) type Changes = BoxStream<'static, Result<Vec<Change>, StoreError>>;

/// Ends every watch when the follower ends, however it ends.
struct Following(Arc<Shared>);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Feeds the cache until the backend closes.
pub(crate) async fn follow(shared: Arc<Shared>, mut changes: Changes) {
    let Following(shared) = &Following(shared);
    while let Some(batch) = changes.next().await {
        match batch {
            Ok(changes) => shared.apply(changes, Instant::now()),
            Err(StoreError::Closed(_)) => return,
            Err(error) => {
                tracing::error!(%error, "the cache can no longer follow the store");
                return;
            }
        }
    }
}
