//! [`Cache`]: everything that is read, in memory: an index per resource, a ring of events per resource.

use crate::{Backend, Key, Revision, StoreError, Txn};
use bytes::Bytes;
use std::{sync::Arc, time::Duration};

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
#[derive(Clone, Debug)]
pub struct Snapshot {
    _private: (),
}

/// A cursor in a resource's ring.
#[derive(Debug)]
pub struct Watcher {
    _private: (),
}

/// Reads and watches of every resource, over one [`Backend`].
pub struct Cache {
    _private: (),
}

impl Cache {
    /// Reads everything there is and follows it from there.
    ///
    /// # Errors
    /// What the backend could not read.
    pub async fn open(backend: Arc<dyn Backend>, indexer: Arc<dyn Indexer>) -> Result<Arc<Self>, StoreError> {
        let _ = (backend, indexer);
        unimplemented!()
    }

    /// Writes, and returns when reads of this cache see it. `None` after a deletion.
    ///
    /// # Errors
    /// As [`Backend::commit`].
    pub async fn commit(&self, txn: Txn) -> Result<WatchEvent, StoreError> {
        let _ = txn;
        unimplemented!()
    }

    /// One object, as of now.
    pub fn get(&self, key: &Key) -> Option<Arc<Entry>> {
        let _ = key;
        unimplemented!()
    }

    /// All objects of a resource, as of now.
    pub fn snapshot(&self, prefix: &str) -> Snapshot {
        let _ = prefix;
        unimplemented!()
    }

    /// All objects of a resource as they were at a revision that the ring still covers.
    ///
    /// # Errors
    /// [`StoreError::Compacted`], [`StoreError::Future`].
    pub fn snapshot_at(&self, prefix: &str, at: Revision) -> Result<Snapshot, StoreError> {
        let _ = (prefix, at);
        unimplemented!()
    }

    /// Waits until the cache has seen a revision.
    ///
    /// # Errors
    /// [`StoreError::Future`] when it does not come in time.
    pub async fn wait_for(&self, revision: Revision, at_most: Duration) -> Result<(), StoreError> {
        let _ = (revision, at_most);
        unimplemented!()
    }

    /// The newest revision that reads see.
    pub fn revision(&self) -> Revision {
        unimplemented!()
    }

    /// Changes of a resource after a revision.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when the ring no longer covers it; [`StoreError::Future`].
    pub fn watch(&self, prefix: &str, after: Revision) -> Result<Watcher, StoreError> {
        let _ = (prefix, after);
        unimplemented!()
    }
}

impl Snapshot {
    /// The revision of which this is the truth.
    pub fn revision(&self) -> Revision {
        unimplemented!()
    }

    /// Objects in the order of namespace and name; of one namespace, or of all with `None`; behind `after` (namespace,
    /// name).
    pub fn entries<'a>(
        &'a self,
        namespace: Option<&'a str>,
        after: Option<(&'a str, &'a str)>,
    ) -> Box<dyn Iterator<Item = &'a Arc<Entry>> + Send + 'a> {
        let _ = (namespace, after);
        unimplemented!()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        unimplemented!()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Watcher {
    /// The next changes, at least one, in order. Waits for them. Cancel-safe.
    ///
    /// # Errors
    /// Why there will be none.
    pub async fn next(&mut self) -> Result<Vec<WatchEvent>, WatchEnd> {
        unimplemented!()
    }

    /// Everything up to here was handed out, or concerned other resources: what a bookmark may say.
    pub fn progress(&self) -> Revision {
        unimplemented!()
    }
}
