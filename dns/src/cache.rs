//! Answers of upstreams, kept for as long as they say, within bounds.

use crate::{
    corefile::{CacheConfig, Portion, Stale},
    message::Answer,
    name::Name,
    wire::rcode,
};
use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Parts with a lock each.
const SHARDS: usize = 64;
/// Bytes that an entry may have on average; a cache of large answers holds fewer.
const BYTES_PER_ENTRY: usize = 1024;

/// What makes two questions the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Lower-cased wire form.
    pub name: Box<[u8]>,
    /// Type.
    pub qtype: u16,
    /// The client wants DNSSEC records.
    pub dnssec_ok: bool,
    /// The client checks signatures itself.
    pub unchecked: bool,
}

#[derive(Debug)]
struct Kept {
    answer: Arc<Answer>,
    stored: Instant,
    ttl_s: u32,
    hits: u32,
    last_hit: Instant,
    /// Somebody fetches it again, or may not before then.
    refresh_after: Instant,
}

#[derive(Debug, Default)]
struct Shard {
    entries: HashMap<Key, Kept>,
    bytes: usize,
}

/// One half: answers with records, or denials.
#[derive(Debug)]
struct Half {
    portion: Portion,
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
}

/// Counters of a cache.
#[derive(Debug, Default)]
pub struct Counters {
    /// Hits among answers with records, and among denials.
    pub hits: [AtomicU64; 2],
    /// Questions without an answer that is good.
    pub misses: AtomicU64,
    /// Answers fetched before they ended.
    pub prefetches: AtomicU64,
    /// Answers given after they ended.
    pub stale: AtomicU64,
    /// Answers dropped for others.
    pub evictions: AtomicU64,
}

/// A block's cache.
#[derive(Debug)]
pub struct Cache {
    /// What the Corefile says.
    pub config: CacheConfig,
    halves: [Half; 2],
    /// What happened.
    pub counters: Counters,
}

/// An answer that was kept.
#[derive(Clone, Debug)]
pub struct Hit {
    /// The answer.
    pub answer: Arc<Answer>,
    /// Seconds to tell the client.
    pub ttl_s: u32,
    /// It has ended.
    pub stale: bool,
    /// Fetch it again now; nobody else is told so for a while.
    pub refresh: bool,
}

impl Half {
    fn new(portion: Portion) -> Self {
        Self {
            portion,
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard> {
        let index = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or_default();
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn len(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).entries.len())
            .sum()
    }
}

impl Cache {
    /// An empty one.
    pub fn new(config: CacheConfig) -> Self {
        Self {
            halves: [Half::new(config.success), Half::new(config.denial)],
            config,
            counters: Counters::default(),
        }
    }

    /// May anything about this name be kept?
    pub fn covers(&self, name: &Name) -> bool {
        self.config.zones.is_empty() || self.config.zones.iter().any(|zone| name.below(zone).is_some())
    }

    /// Entries of both halves.
    pub fn len(&self) -> [usize; 2] {
        [self.halves[0].len(), self.halves[1].len()]
    }

    /// Is it empty?
    pub fn is_empty(&self) -> bool {
        self.len() == [0, 0]
    }

    /// Looks a question up. Counts it.
    pub fn get(&self, key: &Key, now: Instant) -> Option<Hit> {
        for (index, half) in self.halves.iter().enumerate() {
            let mut shard = half.shard(key);
            let Some(kept) = shard.entries.get_mut(key) else {
                continue;
            };
            let age = now.saturating_duration_since(kept.stored);
            let life = Duration::from_secs(kept.ttl_s.into());
            let stale = age >= life;
            let usable = !stale || self.config.stale.is_some_and(|stale| age < life + stale.within);
            if !usable {
                shard.bytes -= shard.entries.remove(key).map_or(0, |kept| kept.answer.size());
                continue;
            }
            let refresh = (stale || self.popular(kept, age, life, now)) && now >= kept.refresh_after;
            if refresh {
                kept.refresh_after = now
                    + self
                        .config
                        .stale
                        .map_or(Duration::from_secs(2), |it| it.recheck.max(Duration::from_secs(1)));
            }
            kept.last_hit = now;
            kept.hits = kept.hits.saturating_add(1);
            let left = life.saturating_sub(age).as_secs();
            let ttl_s = match self.config.stale {
                Some(Stale { ttl_s, .. }) if stale => ttl_s,
                _ if self.config.keep_ttl => kept.ttl_s,
                _ => u32::try_from(left).unwrap_or(u32::MAX),
            };
            let counter = if stale {
                &self.counters.stale
            } else {
                &self.counters.hits[index]
            };
            counter.fetch_add(1, Ordering::Relaxed);
            if refresh && !stale {
                self.counters.prefetches.fetch_add(1, Ordering::Relaxed);
            }
            return Some(Hit {
                answer: Arc::clone(&kept.answer),
                ttl_s,
                stale,
                refresh,
            });
        }
        self.counters.misses.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// Is it asked for often enough to be fetched before it ends?
    fn popular(&self, kept: &mut Kept, age: Duration, life: Duration, now: Instant) -> bool {
        let Some(prefetch) = self.config.prefetch else {
            return false;
        };
        if now.saturating_duration_since(kept.last_hit) > prefetch.within {
            kept.hits = 0;
        }
        kept.hits + 1 >= prefetch.amount && life.saturating_sub(age) <= life * prefetch.percent / 100
    }

    /// Keeps an answer if it may be kept; the TTL to tell the client, in seconds.
    pub fn put(&self, key: &Key, name: &Name, answer: &Arc<Answer>, now: Instant) -> Option<u32> {
        let positive = answer.positive && answer.rcode == rcode::NOERROR;
        let below = |zones: &[crate::name::Zone]| zones.iter().any(|zone| name.below(zone).is_some());
        if answer.truncated() || !self.covers(name) {
            return None;
        }
        let disabled = if positive {
            &self.config.no_success
        } else {
            &self.config.no_denial
        };
        if below(disabled) {
            return None;
        }
        let half = &self.halves[usize::from(!positive)];
        let ttl_s = match answer.rcode {
            rcode::NOERROR | rcode::NXDOMAIN => {
                let ttl = answer.ttl?;
                ttl.clamp(half.portion.least_s.min(half.portion.most_s), half.portion.most_s)
            }
            // An upstream that fails is asked less often.
            rcode::SERVFAIL | rcode::NOTIMP if !self.config.servfail.is_zero() => {
                u32::try_from(self.config.servfail.as_secs()).unwrap_or(u32::MAX)
            }
            _ => return None,
        };
        // A failure never takes the place of an answer that may still be given late.
        if answer.rcode != rcode::NOERROR
            && answer.rcode != rcode::NXDOMAIN
            && self.config.stale.is_some()
            && self.holds(key)
        {
            return None;
        }
        let other = &self.halves[usize::from(positive)];
        let mut shard = other.shard(key);
        shard.bytes -= shard.entries.remove(key).map_or(0, |kept| kept.answer.size());
        drop(shard);
        self.insert(half, key, answer, ttl_s, now);
        Some(ttl_s)
    }

    fn holds(&self, key: &Key) -> bool {
        self.halves.iter().any(|half| half.shard(key).entries.contains_key(key))
    }

    fn insert(&self, half: &Half, key: &Key, answer: &Arc<Answer>, ttl_s: u32, now: Instant) {
        let most = (half.portion.capacity / SHARDS).max(1);
        if half.portion.capacity == 0 {
            return;
        }
        let mut shard = half.shard(key);
        let kept = Kept {
            answer: Arc::clone(answer),
            stored: now,
            ttl_s,
            hits: 0,
            last_hit: now,
            refresh_after: now,
        };
        shard.bytes += answer.size();
        shard.bytes -= shard
            .entries
            .insert(key.clone(), kept)
            .map_or(0, |kept| kept.answer.size());
        while shard.entries.len() > most || shard.bytes > most * BYTES_PER_ENTRY && shard.entries.len() > 1 {
            // The order of a hash table is as good as random.
            let skip = rand::random::<u32>() as usize % shard.entries.len();
            let victim = shard.entries.keys().cycle().skip(skip).find(|it| *it != key).cloned();
            let Some(victim) = victim else { break };
            shard.bytes -= shard.entries.remove(&victim).map_or(0, |kept| kept.answer.size());
            self.counters.evictions.fetch_add(1, Ordering::Relaxed);
        }
    }
}
