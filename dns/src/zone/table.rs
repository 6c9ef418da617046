//! A hash table that readers use without a lock: buckets are small, and a change replaces one.

use arc_swap::{ArcSwap, ArcSwapOption};
use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

/// Entries per bucket at which the table grows.
const LOAD: usize = 2;
/// Buckets of an empty table.
const LEAST: usize = 16;

type Pair<V> = (Box<[u8]>, Arc<V>);
type Bucket<V> = Box<[Pair<V>]>;

/// Keys are bytes; values are shared. One writer at a time, any number of readers, each of which sees every key as it was
/// at some moment of its look-up.
pub(super) struct Table<V> {
    hasher: RandomState,
    buckets: ArcSwap<Box<[ArcSwapOption<Bucket<V>>]>>,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            buckets: ArcSwap::from_pointee(empty(LEAST)),
        }
    }
}

fn empty<V>(count: usize) -> Box<[ArcSwapOption<Bucket<V>>]> {
    (0..count).map(|_| ArcSwapOption::empty()).collect()
}

impl<V> Table<V> {
    fn index(&self, key: &[u8], buckets: usize) -> usize {
        // The number of buckets is a power of two.
        usize::try_from(self.hasher.hash_one(key) & (buckets as u64 - 1)).unwrap_or_default()
    }

    /// Calls `then` with the value of `key`, without touching its count.
    #[inline]
    pub(super) fn with<R>(&self, key: &[u8], then: impl FnOnce(Option<&Arc<V>>) -> R) -> R {
        let buckets = self.buckets.load();
        let bucket = buckets[self.index(key, buckets.len())].load();
        let found = bucket
            .as_deref()
            .and_then(|bucket| bucket.iter().find(|(it, _)| **it == *key));
        then(found.map(|(_, value)| value))
    }

    /// The value of `key`.
    pub(super) fn get(&self, key: &[u8]) -> Option<Arc<V>> {
        self.with(key, |value| value.map(Arc::clone))
    }

    /// Is there a value?
    pub(super) fn contains(&self, key: &[u8]) -> bool {
        self.with(key, |value| value.is_some())
    }

    /// Sets or removes the value of `key`. Call from the one writer; `count` is how many keys there are now.
    pub(super) fn set(&self, key: &[u8], value: Option<Arc<V>>, count: usize) {
        let buckets = self.buckets.load_full();
        let place = &buckets[self.index(key, buckets.len())];
        let old = place.load_full();
        let others = old
            .iter()
            .flat_map(|bucket| bucket.iter())
            .filter(|(it, _)| **it != *key)
            .cloned();
        let bucket: Bucket<V> = others.chain(value.map(|value| (Box::from(key), value))).collect();
        place.store((!bucket.is_empty()).then(|| Arc::new(bucket)));
        if count > buckets.len() * LOAD {
            self.grow(&buckets, count);
        }
    }

    fn grow(&self, old: &[ArcSwapOption<Bucket<V>>], count: usize) {
        let wanted = (count / LOAD + 1).next_power_of_two() * 2;
        let mut sorted: Vec<Vec<Pair<V>>> = (0..wanted).map(|_| Vec::new()).collect();
        for bucket in old.iter().filter_map(ArcSwapOption::load_full) {
            for (key, value) in bucket.iter() {
                sorted[self.index(key, wanted)].push((key.clone(), Arc::clone(value)));
            }
        }
        let buckets = sorted.into_iter().map(|bucket| {
            let bucket = (!bucket.is_empty()).then(|| Arc::new(bucket.into_boxed_slice()));
            ArcSwapOption::new(bucket)
        });
        self.buckets.store(Arc::new(buckets.collect()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_and_shrinks() {
        let table = Table::default();
        for number in 0..1000_u32 {
            let count = usize::try_from(number).unwrap() + 1;
            table.set(&number.to_be_bytes(), Some(Arc::new(number)), count);
        }
        for number in 0..1000_u32 {
            assert_eq!(table.get(&number.to_be_bytes()).as_deref(), Some(&number));
        }
        table.set(&7_u32.to_be_bytes(), Some(Arc::new(70)), 1000);
        table.set(&8_u32.to_be_bytes(), None, 999);
        assert_eq!(table.get(&7_u32.to_be_bytes()).as_deref(), Some(&70));
        assert!(!table.contains(&8_u32.to_be_bytes()));
        assert!(table.contains(&9_u32.to_be_bytes()));
    }
}
