//! The orchestrator's store.
//!
//! Two layers: a [`Backend`] makes writes durable and numbers them; the [`Cache`] above it answers every read and feeds every
//! watch from memory.
//!
//! * [`RedbStore`] is the backend on the local disk: a write-ahead log that acknowledges, redb behind it.
//! * [`testing::EtcdDouble`] is a backend in memory, for tests.
//! * [`encode`] writes an object as it is stored; the cache serves it with its `metadata.resourceVersion`.
//!
//! One sequence of revisions numbers all writes, and it survives crashes: none is ever given out for a second time. Revisions
//! that a client may have seen and that did not last ([`Backend::lost`]) are refused as compacted, so that it lists again.

pub mod backend;
pub mod cache;
pub mod key;
pub mod redb_store;
pub mod testing;

mod etcd_double;
mod index;
mod resource;
mod ring;
mod value;
mod watcher;

pub use backend::{
    Backend, Change, Durability, Expect, Operation, Range, RangeQuery, Record, Revision, StoreError, Txn,
};
pub use cache::{Cache, Entry, Indexed, Indexer, Snapshot, WatchEnd, WatchEvent};
pub use key::Key;
pub use redb_store::RedbStore;
pub use ring::Limits;
pub use value::{encode, with_revision};
pub use watcher::Watcher;
