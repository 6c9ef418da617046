//! [`Ring`]: the newest changes of one resource, shared by all who watch it.

use crate::{Entry, Revision, WatchEvent};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// How much history a resource keeps in memory.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// So many events are kept however old they are.
    pub min_events: usize,
    /// More than this many are never kept.
    pub max_events: usize,
    /// Events younger than this are kept, within the other bounds.
    pub window: Duration,
    /// Bytes that only the history holds: states that were replaced or deleted.
    pub max_bytes: usize,
}

impl Default for Limits {
    /// The numbers that clients of Kubernetes are used to: 100 to 102 400 events, at least 75 s; and 64 MiB.
    fn default() -> Self {
        Self {
            min_events: 100,
            max_events: 102_400,
            window: Duration::from_secs(75),
            max_bytes: 64 << 20,
        }
    }
}

/// The newest changes of one resource. Positions count events since the cache was opened and are never reused.
#[derive(Debug)]
pub(crate) struct Ring {
    limits: Limits,
    events: VecDeque<(WatchEvent, Instant)>,
    /// Position of the first event that is kept.
    first: u64,
    /// Every change after this revision is kept.
    since: Revision,
    bytes: usize,
}

impl Ring {
    pub(crate) fn new(limits: Limits, since: Revision) -> Self {
        Self {
            limits,
            events: VecDeque::new(),
            first: 0,
            since,
            bytes: 0,
        }
    }

    /// Adds the newest event and forgets what is too old or too much.
    pub(crate) fn push(&mut self, event: WatchEvent, now: Instant) {
        self.bytes += held_by(&event);
        self.events.push_back((event, now));
        while let Some((_, at)) = self.events.front() {
            let old = now.saturating_duration_since(*at) > self.limits.window;
            let kept = self.events.len();
            // The newest always stays: a watcher that is up to date must get it.
            let forget = kept > 1
                && (kept > self.limits.max_events
                    || self.bytes > self.limits.max_bytes
                    || (old && kept > self.limits.min_events));
            if !forget {
                break;
            }
            if let Some((event, _)) = self.events.pop_front() {
                self.bytes -= held_by(&event);
                self.first += 1;
                self.since = event.revision;
            }
        }
    }

    /// Every change after this revision is kept.
    pub(crate) fn since(&self) -> Revision {
        self.since
    }

    /// Position behind the newest event.
    pub(crate) fn end(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    /// Position of the first event after a revision; `None`: some of them are forgotten.
    pub(crate) fn position_after(&self, revision: Revision) -> Option<u64> {
        let after = self.events.partition_point(|(event, _)| event.revision <= revision);
        (revision >= self.since).then_some(self.first + after as u64)
    }

    /// At most `limit` events from a position on; `None`: some of them are forgotten.
    pub(crate) fn from(&self, position: u64, limit: usize) -> Option<Vec<WatchEvent>> {
        let at = usize::try_from(position.checked_sub(self.first)?).ok()?;
        Some(
            self.events
                .iter()
                .skip(at)
                .take(limit)
                .map(|(event, _)| event.clone())
                .collect(),
        )
    }

    /// Revision of the event at a position.
    pub(crate) fn revision_at(&self, position: u64) -> Option<Revision> {
        let at = usize::try_from(position.checked_sub(self.first)?).ok()?;
        self.events.get(at).map(|(event, _)| event.revision)
    }

    /// The event of a revision.
    pub(crate) fn find(&self, revision: Revision) -> Option<&WatchEvent> {
        let at = self.events.partition_point(|(event, _)| event.revision < revision);
        self.events
            .get(at)
            .map(|(event, _)| event)
            .filter(|event| event.revision == revision)
    }
}

/// Bytes that are kept alive by the event and not by the index.
fn held_by(event: &WatchEvent) -> usize {
    [&event.before, &event.deleted]
        .into_iter()
        .flatten()
        .map(|it| size_of::<Entry>() + it.json.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Indexed, Key};
    use bytes::Bytes;
    use std::sync::Arc;

    const LIMITS: Limits = Limits {
        min_events: 3,
        max_events: 6,
        window: Duration::from_secs(10),
        max_bytes: 10 * (1000 + size_of::<Entry>()),
    };

    fn event(revision: Revision, before: usize) -> WatchEvent {
        let key = Key {
            prefix: "core/pods".into(),
            namespace: "a".into(),
            name: "b".into(),
        };
        let before = Arc::new(Entry {
            key,
            json: Bytes::from(vec![b'x'; before]),
            revision: 0,
            indexed: Indexed::default(),
        });
        WatchEvent {
            revision,
            before: Some(before),
            now: None,
            deleted: None,
        }
    }

    fn revisions(ring: &Ring) -> Vec<Revision> {
        ring.events.iter().map(|it| it.0.revision).collect()
    }

    #[test]
    fn keeps_the_window_within_the_bounds() {
        let start = Instant::now();
        let mut ring = Ring::new(LIMITS, 1);
        for revision in 2..=9 {
            ring.push(event(revision, 10), start);
        }
        assert_eq!(
            (revisions(&ring), ring.since()),
            (vec![4, 5, 6, 7, 8, 9], 3),
            "never more than max_events"
        );
        ring.push(event(10, 10), start + LIMITS.window + Duration::from_secs(1));
        assert_eq!(
            (revisions(&ring), ring.since()),
            (vec![8, 9, 10], 7),
            "old ones go, down to min_events"
        );
        for revision in 11..=13 {
            ring.push(event(revision, 4000), start + LIMITS.window + Duration::from_secs(1));
        }
        assert_eq!(revisions(&ring), [12, 13], "bytes bound it too");
        ring.push(event(14, 100_000), start + LIMITS.window + Duration::from_secs(1));
        assert_eq!(revisions(&ring), [14], "the newest stays however large it is");
    }

    #[test]
    fn positions_tell_what_is_forgotten() {
        let mut ring = Ring::new(LIMITS, 1);
        for revision in [5, 7, 9, 11, 13, 15, 17, 19] {
            ring.push(event(revision, 1), Instant::now());
        }
        assert_eq!(ring.since(), 7);
        assert_eq!(ring.position_after(6), None);
        assert_eq!(ring.position_after(7), Some(2));
        assert_eq!(ring.position_after(10), Some(4 - 1));
        assert_eq!(ring.position_after(99), Some(ring.end()));
        assert!(ring.from(1, 9).is_none());
        assert_eq!(
            ring.from(2, 2)
                .unwrap()
                .iter()
                .map(|it| it.revision)
                .collect::<Vec<_>>(),
            [9, 11]
        );
        assert!(ring.from(8, 9).unwrap().is_empty());
        assert_eq!(
            (ring.revision_at(2), ring.revision_at(8), ring.revision_at(0)),
            (Some(9), None, None)
        );
        assert!(ring.find(9).is_some() && ring.find(10).is_none() && ring.find(5).is_none() && ring.find(21).is_none());
    }
}
