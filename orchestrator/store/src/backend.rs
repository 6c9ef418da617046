//! [`Backend`]: durable, numbered writes. Shaped after what redb and etcd both can promise.

use crate::Key;
use bytes::Bytes;
use futures::{
    future::{self, BoxFuture},
    stream::BoxStream,
};
use std::{io, path::Path};

/// Number of a write; one sequence for the whole store, strictly growing, never reused, also not after a crash. 0: before
/// the first write.
pub type Revision = u64;

/// What a key must look like for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing there.
    Absent,
    /// Last written by this revision.
    At(Revision),
}

/// What to do with the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Write these bytes: one JSON object in the storage version, without `metadata.resourceVersion`.
    Put(Bytes),
    /// Remove it. The bytes are the last state, for those who watch.
    Delete,
}

/// When a write may be acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// After fsync.
    #[default]
    Durable,
    /// At once, with fsync within a second: Leases and Events. A crash may lose the write, but never reuses its revision.
    Relaxed,
}

/// One conditional write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Txn {
    /// Which object.
    pub key: Key,
    /// The condition.
    pub expect: Expect,
    /// The write.
    pub operation: Operation,
    /// When the caller is told.
    pub durability: Durability,
}

/// One object as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where.
    pub key: Key,
    /// What; see [`Operation::Put`].
    pub value: Bytes,
    /// Revision of the write that created it.
    pub created: Revision,
    /// Revision of its last write.
    pub modified: Revision,
}

/// One write that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its number.
    pub revision: Revision,
    /// What is there since; `None`: deleted.
    pub now: Option<Record>,
    /// What was there before.
    pub before: Option<Record>,
    /// Which object.
    pub key: Key,
}

/// What to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeQuery {
    /// Only keys of this resource prefix; `None`: all.
    pub prefix: Option<String>,
    /// Only keys behind this one.
    pub after: Option<Key>,
    /// At most this many; 0: all.
    pub limit: usize,
    /// As it was at this revision; `None`: now.
    pub at: Option<Revision>,
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// In the order of keys.
    pub records: Vec<Record>,
    /// The revision at which this is the truth.
    pub revision: Revision,
    /// There is more behind the last record.
    pub more: bool,
}

/// Why the store could not.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The condition of a [`Txn`] does not hold; what is there instead.
    #[error("{key}: expected {expect:?}, found {}", .found.as_ref().map_or("nothing".into(), |it| format!("revision {}", it.modified)))]
    Conflict {
        /// Which object.
        key: Key,
        /// What the writer expected.
        expect: Expect,
        /// What is there; boxed, for it is large.
        found: Option<Box<Record>>,
    },
    /// The revision was compacted away.
    #[error("revision {asked} is no longer kept; the oldest is {oldest}")]
    Compacted {
        /// What was asked for.
        asked: Revision,
        /// The oldest that can still be read.
        oldest: Revision,
    },
    /// The revision has not happened yet.
    #[error("revision {asked} is in the future; the newest is {newest}")]
    Future {
        /// What was asked for.
        asked: Revision,
        /// The newest there is.
        newest: Revision,
    },
    /// The file does not hold what it should: refuse to serve, restore a snapshot.
    #[error("the store {path} is damaged: {reason}; restore a snapshot with `fairlead store restore`")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The disk or the network.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The store is shutting down, or its writer died.
    #[error("the store is closed: {0}")]
    Closed(String),
}

/// Durable, numbered, conditional writes, and the history behind them.
///
/// Promises that a test suite holds every implementation to: acknowledged writes survive a crash; revisions never go back;
/// a watch from revision R yields every change after R once, in order, or [`StoreError::Compacted`].
pub trait Backend: Send + Sync + 'static {
    /// Writes if the condition holds. Returns the change, after it is as durable as the transaction asks.
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Change, StoreError>>;

    /// Reads.
    fn range(&self, query: RangeQuery) -> BoxFuture<'_, Result<Range, StoreError>>;

    /// Every change after `from`, in batches, without end. With `prefix`, those of one resource. Errors end it:
    /// [`StoreError::Compacted`] when `from` is no longer kept, [`StoreError::Future`] when it has not happened,
    /// [`StoreError::Closed`].
    fn watch(&self, prefix: Option<String>, from: Revision) -> BoxStream<'static, Result<Vec<Change>, StoreError>>;

    /// The first changes after `from` that happened already, and the revision up to which they are all: `from` itself when
    /// there is none. A backend that does not tell says that everything before now is compacted.
    fn history(&self, from: Revision) -> BoxFuture<'_, Result<(Vec<Change>, Revision), StoreError>> {
        let newest = self.revision();
        let result = if from < newest {
            Err(StoreError::Compacted {
                asked: from,
                oldest: newest,
            })
        } else {
            Ok((Vec::new(), from))
        };
        Box::pin(future::ready(result))
    }

    /// Forgets history before this revision, step by step; reads and writes go on meanwhile.
    fn compact(&self, before: Revision) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The newest revision.
    fn revision(&self) -> Revision;

    /// Revisions, first and last, that were acknowledged as [`Durability::Relaxed`] or only set aside, and were lost in a
    /// crash. Who has seen one of them has seen what did not last, and must list again.
    fn lost(&self) -> Vec<(Revision, Revision)> {
        Vec::new()
    }

    /// Writes a consistent copy to a new file.
    fn snapshot<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<Revision, StoreError>>;
}

/// Whether the condition of a transaction holds for what is there.
pub(crate) fn condition(txn: &Txn, found: Option<&Record>) -> Result<(), StoreError> {
    let holds = match (txn.expect, found) {
        // Deleting nothing would be a revision without a change.
        (Expect::Absent, None) => txn.operation != Operation::Delete,
        (Expect::At(revision), Some(record)) => record.modified == revision,
        _ => false,
    };
    if holds {
        return Ok(());
    }
    Err(StoreError::Conflict {
        key: txn.key.clone(),
        expect: txn.expect,
        found: found.cloned().map(Box::new),
    })
}
