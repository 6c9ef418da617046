//! Keys that wait for a worker: each once, now or at a time, and never with two workers at once.

use super::{Clock, Key};
use jiff::{SignedDuration, Timestamp};
use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::Notify;

/// The delay after the first failure; it doubles with each further one.
const FIRST_DELAY: Duration = Duration::from_millis(5);
/// The longest delay after failures.
const LONGEST_DELAY: Duration = Duration::from_secs(100);

/// A work queue. Every method may be called from anywhere, and none waits except [`Queue::next`].
#[derive(Debug)]
pub struct Queue {
    clock: Clock,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Key>,
    /// Everything in `ready`, and what must run again once its worker is done.
    dirty: HashSet<Key>,
    working: HashSet<Key>,
    times: BTreeSet<(Timestamp, Key)>,
    due: HashMap<Key, Timestamp>,
    failures: HashMap<Key, u32>,
}

impl State {
    fn add(&mut self, key: Key) {
        if self.dirty.insert(key.clone()) && !self.working.contains(&key) {
            self.ready.push_back(key);
        }
    }

    fn add_at(&mut self, key: Key, at: Timestamp) {
        if let Some(before) = self.due.get(&key) {
            if *before <= at {
                return;
            }
            self.times.remove(&(*before, key.clone()));
        }
        self.due.insert(key.clone(), at);
        self.times.insert((at, key));
    }
}

impl Queue {
    /// An empty queue.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No method panics half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As soon as a worker is free; once, however often it is added before.
    pub fn add(&self, key: Key) {
        self.state().add(key);
        self.changed.notify_one();
    }

    /// After this time, or sooner if it is added for sooner.
    pub fn add_after(&self, key: Key, delay: Duration) {
        let delay = SignedDuration::try_from(delay).unwrap_or(SignedDuration::MAX);
        let at = self.clock.now().saturating_add(delay).unwrap_or(Timestamp::MAX);
        self.add_at(key, at);
    }

    /// At this time, or sooner if it is added for sooner.
    pub fn add_at(&self, key: Key, at: Timestamp) {
        self.state().add_at(key, at);
        self.changed.notify_one();
    }

    /// The work on this key failed: again after a delay that doubles with each failure in a row.
    pub fn retry(&self, key: Key) {
        let delay = {
            let mut state = self.state();
            let failures = state.failures.entry(key.clone()).or_default();
            let delay = FIRST_DELAY.saturating_mul(1 << (*failures).min(20)).min(LONGEST_DELAY);
            *failures = failures.saturating_add(1);
            delay
        };
        self.add_after(key, delay);
    }

    /// The work on this key succeeded: the next failure is a first one.
    pub fn forget(&self, key: &Key) {
        self.state().failures.remove(key);
    }

    /// Failures in a row.
    pub fn failures(&self, key: &Key) -> u32 {
        self.state().failures.get(key).copied().unwrap_or_default()
    }

    /// The next key. Whoever has got it calls [`Queue::done`]; until then nobody else gets the same.
    pub async fn next(&self) -> Key {
        loop {
            let changed = self.changed.notified();
            let first = {
                let mut state = self.state();
                let now = self.clock.now();
                while let Some((at, _)) = state.times.first()
                    && *at <= now
                    && let Some((_, key)) = state.times.pop_first()
                {
                    state.due.remove(&key);
                    state.add(key);
                }
                if let Some(key) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.working.insert(key.clone());
                    return key;
                }
                state.times.first().map(|(at, _)| *at)
            };
            match first {
                None => changed.await,
                Some(at) => tokio::select! {
                    () = changed => {}
                    () = self.clock.sleep_until(at) => {}
                },
            }
        }
    }

    /// The worker is done with the key.
    pub fn done(&self, key: &Key) {
        let mut state = self.state();
        state.working.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.changed.notify_one();
        }
    }
}
