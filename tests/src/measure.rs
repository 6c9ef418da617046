//! What an actor can measure by itself, in loops of native code: a question per packet over the pipe would measure the
//! pipe.

use serde::{Deserialize, Serialize};
use std::{fmt, net::SocketAddr};

/// A loop, and the end that it needs on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Work {
    /// TCP connections, each reset by the client as soon as it is established, so that no port rests in TIME-WAIT.
    Connections,
    /// One byte there and one byte back on one TCP connection.
    RoundTrips,
    /// UDP datagrams of 18 bytes (a minimal Ethernet frame) on one connected socket; the other end drops them unread.
    Datagrams,
    /// One TCP connection, written to as fast as it takes.
    Stream,
    /// `connect` of new non-blocking TCP sockets to an address without a route: what the call costs before the first
    /// packet.
    ConnectCalls,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Connections => "connections",
            Self::RoundTrips => "round trips",
            Self::Datagrams => "datagrams",
            Self::Stream => "stream",
            Self::ConnectCalls => "connect calls",
        })
    }
}

/// A loop of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measure {
    /// Which loop.
    pub work: Work,
    /// Where to: usually a frontend.
    pub dst: SocketAddr,
    /// Milliseconds for the whole loop.
    pub duration_ms: u64,
    /// Processor of the loop's thread, counted from 0; `None` = any.
    pub cpu: Option<usize>,
}

/// The other end of a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absorb {
    /// Of which loop; [`Work::ConnectCalls`] has none.
    pub work: Work,
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// As [`Measure::cpu`].
    pub cpu: Option<usize>,
}

/// What a loop has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// Connections, round trips, datagrams sent, bytes sent, or calls.
    pub count: u64,
    /// Nanoseconds from the first to the end of the last.
    pub elapsed_ns: u64,
    /// How many failed; they are not in `count`.
    pub failed: u64,
    /// The first failure, in the system's words.
    pub error: Option<String>,
    /// Median of one connect, round trip or call, nanoseconds; 0 where single ones are not timed.
    pub p50_ns: u64,
    /// 99th percentile, likewise.
    pub p99_ns: u64,
}

impl Measured {
    /// How many per second.
    pub fn per_second(&self) -> f64 {
        rate(self.count, self.elapsed_ns)
    }
}

/// `count` in `elapsed_ns` nanoseconds, per second; 0 in no time.
pub fn rate(count: u64, elapsed_ns: u64) -> f64 {
    if elapsed_ns == 0 {
        return 0.0;
    }
    count as f64 * 1e9 / elapsed_ns as f64
}
