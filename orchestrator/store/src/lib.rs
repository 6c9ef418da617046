//! The orchestrator's store.
//!
//! Two layers: a [`Backend`] makes writes durable and numbers them (redb, later etcd); the [`Cache`] above it answers every
//! read and feeds every watch from memory.

pub mod backend;
pub mod cache;
pub mod key;

pub use backend::{
    Backend, Change, Durability, Expect, Operation, Range, RangeQuery, Record, Revision, StoreError, Txn,
};
pub use cache::{Cache, Entry, Indexed, Indexer, Snapshot, WatchEnd, WatchEvent, Watcher};
pub use key::Key;
