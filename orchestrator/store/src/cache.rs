//! [`Cache`]: everything that is read, in memory: an index per resource, a ring of events per resource.

use crate::{
    Backend, Key, Limits, Record, Revision, StoreError, Txn, Watcher,
    index::{Index, Iter, Start},
    resource::{Shared, follow},
};
use bytes::Bytes;
use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::task::JoinHandle;

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

impl Entry {
    /// The same object with another `metadata.resourceVersion`: for an object that left a selection by this revision.
    #[must_use]
    pub fn at_revision(&self, revision: Revision) -> Self {
        Self {
            key: self.key.clone(),
            json: crate::value::replace_revision(&self.json, self.revision, revision),
            revision,
            indexed: self.indexed.clone(),
        }
    }
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
    pub(crate) index: Index,
    pub(crate) revision: Revision,
}

/// Reads and watches of every resource, over one [`Backend`]. Dropping it ends its watches.
pub struct Cache {
    backend: Arc<dyn Backend>,
    shared: Arc<Shared>,
    follower: JoinHandle<()>,
}

impl Cache {
    /// Reads everything there is and follows it from there, with the usual [`Limits`].
    ///
    /// # Errors
    /// What the backend could not read.
    pub async fn open(backend: Arc<dyn Backend>, indexer: Arc<dyn Indexer>) -> Result<Arc<Self>, StoreError> {
        Self::open_with(backend, indexer, Limits::default()).await
    }

    /// Reads everything there is and follows it from there. What the backend still knows of the time before is kept too, so
    /// that watches go on over a restart.
    ///
    /// # Errors
    /// What the backend could not read.
    pub async fn open_with(
        backend: Arc<dyn Backend>,
        indexer: Arc<dyn Indexer>,
        limits: Limits,
    ) -> Result<Arc<Self>, StoreError> {
        let (shared, changes) = Shared::open(&*backend, indexer, limits).await?;
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
        let resource = self.shared.resource(prefix);
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
        let resource = self.shared.resource(prefix);
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
        let resource = self.shared.resource(prefix);
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
