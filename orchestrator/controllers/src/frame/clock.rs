//! The time that decides about deadlines, back-offs and schedules. Tests move it.

use jiff::{SignedDuration, Timestamp};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// The longest single sleep: the system's clock may be set meanwhile, so it is looked at again.
const NAP: Duration = Duration::from_secs(60);

/// The system's clock, plus what tests moved it by.
#[derive(Clone, Debug)]
pub struct Clock {
    ahead: Arc<watch::Sender<SignedDuration>>,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            ahead: Arc::new(watch::channel(SignedDuration::ZERO).0),
        }
    }
}

impl Clock {
    /// Now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        Timestamp::now()
            .saturating_add(*self.ahead.borrow())
            .unwrap_or(Timestamp::MAX)
    }

    /// Moves this clock and all its clones ahead; who sleeps is woken when its time has come.
    pub fn advance(&self, by: Duration) {
        let by = SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX);
        self.ahead.send_modify(|it| *it = it.saturating_add(by));
    }

    /// Returns at this time or after.
    pub async fn sleep_until(&self, at: Timestamp) {
        let mut moved = self.ahead.subscribe();
        loop {
            moved.mark_unchanged();
            let left = Duration::try_from(at.duration_since(self.now())).unwrap_or_default();
            if left.is_zero() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(left.min(NAP)) => {}
                // `self` holds the sender, so it cannot have gone.
                _ = moved.changed() => {}
            }
        }
    }

    /// Returns after this time has passed.
    pub async fn sleep(&self, time: Duration) {
        let time = SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX);
        let at = self.now().saturating_add(time).unwrap_or(Timestamp::MAX);
        self.sleep_until(at).await;
    }
}
