//! [`Watcher`]: a cursor in a resource's ring.

use crate::{Revision, WatchEnd, WatchEvent, resource::Resource};
use std::sync::Arc;
use tokio::sync::watch;

/// Most events that are handed out at once.
const BATCH: usize = 512;

/// A cursor in a resource's ring. It holds no events of its own: one that is not read costs nothing, until the ring has
/// moved on and it ends as [`WatchEnd::Expired`].
#[derive(Debug)]
pub struct Watcher {
    resource: Arc<Resource>,
    woken: watch::Receiver<()>,
    /// Position of the next event.
    next: u64,
    /// Everything up to here was handed out.
    seen: Revision,
}

impl Watcher {
    pub(crate) fn new(resource: Arc<Resource>, next: u64, seen: Revision) -> Self {
        let woken = resource.wake.subscribe();
        Self {
            resource,
            woken,
            next,
            seen,
        }
    }

    /// The next changes, at least one, in order. Waits for them. Cancel-safe.
    ///
    /// # Errors
    /// Why there will be none.
    pub async fn next(&mut self) -> Result<Vec<WatchEvent>, WatchEnd> {
        loop {
            // Marked before looking: what comes while we look wakes us again.
            self.woken.borrow_and_update();
            if let Some(events) = self.ready()? {
                return Ok(events);
            }
            // The sender lives in the resource, which this watcher keeps alive.
            self.woken.changed().await.map_err(|_| WatchEnd::Closed)?;
        }
    }

    /// The next changes that are there already; empty: none.
    ///
    /// # Errors
    /// Why there will be none.
    pub fn try_next(&mut self) -> Result<Vec<WatchEvent>, WatchEnd> {
        Ok(self.ready()?.unwrap_or_default())
    }

    fn ready(&mut self) -> Result<Option<Vec<WatchEvent>>, WatchEnd> {
        let state = self.resource.read();
        let events = state.ring.from(self.next, BATCH).ok_or(WatchEnd::Expired)?;
        let Some(last) = events.last() else {
            return if state.closed { Err(WatchEnd::Closed) } else { Ok(None) };
        };
        self.next += events.len() as u64;
        self.seen = last.revision;
        Ok(Some(events))
    }

    /// Everything up to here was handed out, or concerned other resources: what a bookmark may say.
    pub fn progress(&self) -> Revision {
        let state = self.resource.read();
        if self.next == state.ring.end() {
            // The lock is held: no change of this resource can be counted and not be in the ring.
            self.resource.revision().max(self.seen)
        } else {
            state
                .ring
                .revision_at(self.next)
                .map_or(self.seen, |next| self.seen.max(next - 1))
        }
    }
}
