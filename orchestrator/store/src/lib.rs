//! The orchestrator's store.
//!
//! Two layers: a [`Backend`] makes writes durable and numbers them (redb, later etcd); the [`Cache`] above it answers every
//! read and feeds every watch from memory.

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
