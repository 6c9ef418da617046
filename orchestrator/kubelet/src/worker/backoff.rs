//! How long to wait before trying again: 10 s, doubled up to 300 s, and from the start after 10 min of quiet.

use jiff::{SignedDuration, Timestamp};

/// First wait.
pub const FIRST: SignedDuration = SignedDuration::from_secs(10);

/// Longest wait.
pub const LONGEST: SignedDuration = SignedDuration::from_secs(300);

/// How long nothing may have failed for the waits to start over: twice the longest one.
pub const FORGET: SignedDuration = SignedDuration::from_secs(600);

/// The waits of one thing that fails again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The wait in force.
    pub wait: SignedDuration,
    /// When it was last tried again.
    pub tried: Timestamp,
}

impl Backoff {
    /// Until when to wait after a failure at `failed`; `None`: no need to wait. The first failure is free.
    pub fn until(this: Option<&Self>, failed: Timestamp) -> Option<Timestamp> {
        let this = this.filter(|it| !it.forgotten(failed))?;
        Some(failed.saturating_add(this.wait).unwrap_or(Timestamp::MAX))
    }

    /// What holds after trying again at `now` what failed at `failed`.
    pub fn next(this: Option<&Self>, failed: Timestamp, now: Timestamp) -> Self {
        let wait = match this.filter(|it| !it.forgotten(failed)) {
            None => FIRST,
            Some(it) => it.wait.saturating_mul(2).min(LONGEST),
        };
        Self { wait, tried: now }
    }

    fn forgotten(&self, failed: Timestamp) -> bool {
        failed.duration_since(self.tried) > FORGET
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn waits_double_to_the_longest_and_start_over_after_quiet() {
        let mut now = at(1000);
        let mut backoff = None;
        let mut waits = Vec::new();
        for _ in 0..8 {
            // It fails at once each time.
            let until = Backoff::until(backoff.as_ref(), now).unwrap_or(now);
            waits.push(until.duration_since(now).as_secs());
            backoff = Some(Backoff::next(backoff.as_ref(), now, until));
            now = until;
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
        let late = now + SignedDuration::from_secs(601);
        assert_eq!(Backoff::until(backoff.as_ref(), late), None);
        assert_eq!(Backoff::next(backoff.as_ref(), late, late).wait, FIRST);
        let sooner = now + SignedDuration::from_secs(599);
        assert_eq!(Backoff::until(backoff.as_ref(), sooner), Some(sooner + LONGEST));
    }
}
