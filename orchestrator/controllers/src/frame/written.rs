//! Read your writes: a controller does not look at caches that are behind what it wrote itself.
//!
//! After a create that the cache has not seen, a second run would create again. So every write is noted with the revision
//! that it got, and the next run over the same key waits until the cache's watch has reached that revision (revisions
//! of one kind can be compared: KEP-5504), or until a list that began after the write is complete.

use super::{Cache, Cached, Key, cache::Barrier};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// What a controller wrote and its caches may not have seen yet, by the key that it was working on.
#[derive(Clone, Debug, Default)]
pub struct Written(Arc<Mutex<HashMap<Key, Vec<Barrier>>>>);

impl Written {
    /// A controller's own, empty.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The write of this object (as the server answered) was done for `key`.
    pub fn note<K: Cached>(&self, key: &Key, cache: &Arc<Cache<K>>, answer: &K) {
        let Some(revision) = super::api::revision(answer) else {
            return;
        };
        self.push(key, cache.barrier(revision));
    }

    /// The object is gone or going, by a delete that was done for `key`.
    pub fn note_deleted<K: Cached>(&self, key: &Key, cache: &Arc<Cache<K>>, object: &K) {
        self.push(key, cache.barrier_until_deleted(object));
    }

    fn push(&self, key: &Key, barrier: Barrier) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(key.clone()).or_default().push(barrier);
    }

    /// Returns when the caches have seen all that was written for this key.
    pub async fn seen(&self, key: &Key) {
        let barriers = {
            let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.get(key).cloned().unwrap_or_default()
        };
        for barrier in &barriers {
            barrier.passed().await;
        }
        // The key's only worker is here, so nothing was added meanwhile.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}
