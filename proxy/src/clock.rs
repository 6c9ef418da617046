//! One reading of both clocks, passed as an argument so that logic which depends on time can be tested without waiting.

use jiff::Timestamp;
use tokio::time::Instant;

/// A moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For ages and deadlines: never goes back.
    pub mono: Instant,
    /// For people, and to compare with what other machines wrote.
    pub wall: Timestamp,
}

impl Now {
    /// Reads both clocks.
    pub fn read() -> Self {
        Self {
            mono: Instant::now(),
            wall: Timestamp::now(),
        }
    }
}
