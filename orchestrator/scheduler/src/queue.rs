//! Pods that wait for a node: to be tried now, after a pause, once something changes, or once their gates are gone.
//!
//! Time is what callers say it is, counted from any moment on.

use crate::{
    pod::{Key, PodInfo},
    verdict::Plugins,
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// Pause after the first failure. Source: `podInitialBackoffSeconds`.
pub const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause. Source: `podMaxBackoffSeconds`.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Pods for which nothing changed are tried again after this, should a change have been misjudged.
/// Source: upstream's `podMaxInUnschedulablePodsDuration`.
pub const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// The pause after a number of failures.
pub fn pause(attempts: u32) -> Duration {
    let doubled = 1_u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
    FIRST_PAUSE.saturating_mul(doubled.max(1)).min(LONGEST_PAUSE)
}

/// Where a pod waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// To be tried now.
    Active,
    /// To be tried at this time.
    Pausing(Duration),
    /// Until something changes, since this time.
    Waiting(Duration),
    /// Until its gates are gone.
    Gated,
    /// It was taken out, and whoever did so will say what came of it.
    Out,
}

/// A pod that waits.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The pod.
    pub pod: Arc<PodInfo>,
    /// How often it was tried.
    pub attempts: u32,
    /// When it could first be tried.
    pub added: Duration,
    /// Where it waits.
    pub place: Place,
    /// Who objected the last time.
    pub objectors: Plugins,
    /// Orders pods of equal priority: since when it has been waiting for its turn.
    since: Duration,
    /// When its pause ends.
    pause_ends: Duration,
    number: u64,
}

type Turn = (Reverse<i32>, Duration, u64, Key);

impl Entry {
    fn turn(&self) -> Turn {
        (
            Reverse(self.pod.priority),
            self.since,
            self.number,
            self.pod.key.clone(),
        )
    }
}

/// All pods that wait.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    entries: BTreeMap<Key, Entry>,
    active: BTreeSet<Turn>,
    pausing: BTreeSet<(Duration, Key)>,
    waiting: BTreeSet<(Duration, Key)>,
    gated: usize,
    numbers: u64,
}

/// How many pods wait where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lengths {
    /// To be tried now.
    pub active: usize,
    /// Pausing after a failure.
    pub pausing: usize,
    /// Until something changes.
    pub waiting: usize,
    /// Until their gates are gone.
    pub gated: usize,
}

impl Queue {
    fn place(&mut self, key: &Key, place: Place, now: Duration) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        match entry.place {
            Place::Active => drop(self.active.remove(&entry.turn())),
            Place::Pausing(until) => drop(self.pausing.remove(&(until, key.clone()))),
            Place::Waiting(since) => drop(self.waiting.remove(&(since, key.clone()))),
            Place::Gated => self.gated -= 1,
            Place::Out => {}
        }
        entry.place = place;
        match place {
            Place::Active => {
                entry.since = now;
                self.active.insert(entry.turn());
            }
            Place::Pausing(until) => drop(self.pausing.insert((until, key.clone()))),
            Place::Waiting(since) => drop(self.waiting.insert((since, key.clone()))),
            Place::Gated => self.gated += 1,
            Place::Out => {}
        }
    }

    /// A pod has no node, or is different. Something that matters about it decides whether it is tried again.
    pub fn set(&mut self, pod: &Arc<PodInfo>, now: Duration) {
        if self.entries.get(&pod.key).is_some_and(|it| it.pod.uid != pod.uid) {
            self.remove(&pod.key);
        }
        let gated = !pod.gates.is_empty();
        let Some(entry) = self.entries.get_mut(&pod.key) else {
            self.numbers += 1;
            let entry = Entry {
                pod: Arc::clone(pod),
                attempts: 0,
                added: now,
                place: Place::Out,
                objectors: Plugins::default(),
                since: now,
                pause_ends: now,
                number: self.numbers,
            };
            self.entries.insert(pod.key.clone(), entry);
            self.place(&pod.key, if gated { Place::Gated } else { Place::Active }, now);
            return;
        };
        if entry.pod == *pod {
            return;
        }
        // Its turn depends on its priority, so that it is taken out before that changes.
        let place = entry.place;
        if place == Place::Active {
            self.place(&pod.key, Place::Out, now);
        }
        let Some(entry) = self.entries.get_mut(&pod.key) else {
            return;
        };
        entry.pod = Arc::clone(pod);
        let ends = entry.pause_ends;
        let next = match place {
            // Whoever took it out says what comes next, and looks at the newest pod then.
            Place::Out => Place::Out,
            _ if gated => Place::Gated,
            Place::Gated if ends > now => Place::Pausing(ends),
            Place::Gated => {
                entry.added = now;
                Place::Active
            }
            Place::Waiting(_) if ends > now => Place::Pausing(ends),
            Place::Waiting(_) => Place::Active,
            place => place,
        };
        if place == Place::Active && next == Place::Active {
            // It keeps its turn.
            let since = entry.since;
            self.place(&pod.key, Place::Active, since);
        } else if place != next {
            self.place(&pod.key, next, now);
        }
    }

    /// A pod is gone, or has a node.
    pub fn remove(&mut self, key: &Key) -> Option<Entry> {
        self.place(key, Place::Out, Duration::ZERO);
        self.entries.remove(key)
    }

    /// The next pod to be tried. It is out until [`Self::failed`], [`Self::erred`] or [`Self::remove`].
    pub fn pop(&mut self, now: Duration) -> Option<Arc<PodInfo>> {
        self.tick(now);
        let (_, _, _, key) = self.active.first().cloned()?;
        self.place(&key, Place::Out, now);
        let entry = self.entries.get_mut(&key)?;
        entry.attempts += 1;
        Some(Arc::clone(&entry.pod))
    }

    fn out(&mut self, key: &Key, uid: &str, now: Duration) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(key)?;
        if entry.place != Place::Out || entry.pod.uid != uid {
            return None;
        }
        entry.pause_ends = now + pause(entry.attempts);
        Some(entry)
    }

    /// There is no node for a pod that was taken out. It waits until something changes that these care for.
    /// `tried` is the pod as it was judged.
    pub fn failed(&mut self, tried: &PodInfo, objectors: Plugins, now: Duration) {
        let Some(entry) = self.out(&tried.key, &tried.uid, now) else {
            return;
        };
        entry.objectors = objectors;
        let place = if entry.pod.gates.is_empty() {
            // What changed about the pod meanwhile may be what it was waiting for.
            if *entry.pod == *tried {
                Place::Waiting(now)
            } else {
                Place::Pausing(entry.pause_ends)
            }
        } else {
            Place::Gated
        };
        self.place(&tried.key, place, now);
    }

    /// Something went wrong with a pod that was taken out. It is tried again after a pause, whatever happens.
    pub fn erred(&mut self, key: &Key, uid: &str, now: Duration) {
        let Some(entry) = self.out(key, uid, now) else {
            return;
        };
        let place = if entry.pod.gates.is_empty() {
            Place::Pausing(entry.pause_ends)
        } else {
            Place::Gated
        };
        self.place(key, place, now);
    }

    /// Something changed: those that it may help are tried again, though not before their pause is over.
    pub fn wake(&mut self, now: Duration, helps: impl Fn(&PodInfo, Plugins) -> bool) -> usize {
        let keys = self.waiting.iter().filter(|(_, key)| {
            let entry = self.entries.get(key);
            entry.is_some_and(|it| it.objectors.is_empty() || helps(&it.pod, it.objectors))
        });
        let keys: Vec<_> = keys.map(|(_, key)| key.clone()).collect();
        for key in &keys {
            let ends = self.entries.get(key).map_or(now, |it| it.pause_ends);
            self.place(
                key,
                if ends > now {
                    Place::Pausing(ends)
                } else {
                    Place::Active
                },
                now,
            );
        }
        keys.len()
    }

    /// Moves those whose time has come.
    pub fn tick(&mut self, now: Duration) {
        while let Some((until, key)) = self.pausing.first().cloned()
            && until <= now
        {
            self.place(&key, Place::Active, now);
        }
        while let Some((since, key)) = self.waiting.first().cloned()
            && since + LONGEST_WAIT <= now
        {
            self.place(&key, Place::Active, now);
        }
    }

    /// When [`Self::tick`] will move one.
    pub fn next_tick(&self) -> Option<Duration> {
        let pausing = self.pausing.first().map(|(until, _)| *until);
        let waiting = self.waiting.first().map(|(since, _)| *since + LONGEST_WAIT);
        pausing.into_iter().chain(waiting).min()
    }

    /// Whether there is one to be tried now.
    pub fn is_idle(&self) -> bool {
        self.active.is_empty()
    }

    /// A pod that waits or is out.
    pub fn get(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// All pods that wait or are out.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.entries.keys()
    }

    /// How many pods wait where.
    pub fn lengths(&self) -> Lengths {
        Lengths {
            active: self.active.len(),
            pausing: self.pausing.len(),
            waiting: self.waiting.len(),
            gated: self.gated,
        }
    }
}
