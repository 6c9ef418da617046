//! What the test process and an actor say to each other: one JSON object per line, each answered under its id.

use crate::measure::{Absorb, Measure};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// How a client talks to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Transport {
    /// One TCP connection: a header line and a body each way.
    Tcp,
    /// One UDP datagram each way.
    Udp,
    /// One `GET /` over HTTP/1.1.
    Http,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Http => "HTTP",
        })
    }
}

/// One question to a server, with everything about the client's socket that a test may care about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// TCP, UDP or HTTP.
    pub transport: Transport,
    /// Where to: usually a frontend.
    pub dst: SocketAddr,
    /// Source address to bind; port 0 = any.
    pub bind: Option<SocketAddr>,
    /// Bytes to send besides the header; for UDP the size of the datagram (at least the header's).
    pub send_bytes: usize,
    /// Bytes to have sent back, as above.
    pub reply_bytes: usize,
    /// Milliseconds for the whole exchange.
    pub timeout_ms: u64,
    /// UDP only: `connect` the socket; otherwise `sendto` and `recvfrom`.
    pub connected: bool,
    /// UDP only: set DF (`IP_PMTUDISC_DO`) and read path MTU errors from the error queue.
    pub dont_fragment: bool,
}

impl Ask {
    /// A question over `transport` with a timeout of 2 s, a connected socket and no payload.
    pub fn new(transport: Transport, dst: SocketAddr) -> Self {
        Self {
            transport,
            dst,
            bind: None,
            send_bytes: 0,
            reply_bytes: 0,
            timeout_ms: 2_000,
            connected: true,
            dont_fragment: false,
        }
    }

    /// Over TCP.
    pub fn tcp(dst: SocketAddr) -> Self {
        Self::new(Transport::Tcp, dst)
    }

    /// Over UDP.
    pub fn udp(dst: SocketAddr) -> Self {
        Self::new(Transport::Udp, dst)
    }

    /// Over HTTP.
    pub fn http(dst: SocketAddr) -> Self {
        Self::new(Transport::Http, dst)
    }

    /// From this address and port (0 = any).
    pub fn from(mut self, ip: IpAddr, port: u16) -> Self {
        self.bind = Some(SocketAddr::new(ip, port));
        self
    }

    /// With `send` bytes there and `reply` bytes back.
    pub fn bytes(mut self, send: usize, reply: usize) -> Self {
        (self.send_bytes, self.reply_bytes) = (send, reply);
        self
    }

    /// With this much time.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout_ms = timeout.as_millis() as u64;
        self
    }

    /// UDP by `sendto`.
    pub fn unconnected(mut self) -> Self {
        self.connected = false;
        self
    }

    /// UDP with DF set.
    pub fn dont_fragment(mut self) -> Self {
        self.dont_fragment = true;
        self
    }
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Name that the server was started with.
    pub served_by: String,
    /// The client's address as the server sees it.
    pub seen_peer: SocketAddr,
    /// The client's own address (`getsockname`).
    pub local_addr: SocketAddr,
    /// `getpeername` of a connected socket, else the source of the answer.
    pub peer_name: SocketAddr,
    /// Microseconds in `connect` (0 for UDP by `sendto`).
    pub connect_us: u64,
    /// Microseconds for everything.
    pub total_us: u64,
    /// Path MTU that the kernel knows for this socket, bytes (connected sockets only).
    pub path_mtu: Option<u32>,
    /// Body of an HTTP answer, or empty.
    pub body: String,
}

/// Why no answer came.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Failure {
    /// ECONNREFUSED: RST or ICMP port unreachable.
    ConnectionRefused,
    /// ECONNRESET or EPIPE.
    ConnectionReset,
    /// Nothing came in time.
    TimedOut,
    /// EHOSTUNREACH.
    HostUnreachable,
    /// ENETUNREACH.
    NetworkUnreachable,
    /// EMSGSIZE: larger than the path MTU, with DF set.
    MessageTooLong,
    /// EADDRINUSE or EADDRNOTAVAIL.
    AddressInUse,
    /// EPERM or EACCES.
    Denied,
    /// The answer's source is not where the question went.
    WrongSource,
    /// The answer is not what a server of ours says.
    Garbled,
    /// Anything else, by the error's own words.
    Other,
}

/// A failed [`Ask`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AskError {
    /// Why.
    pub kind: Failure,
    /// During what, and the error's own words.
    pub detail: String,
    /// Path MTU learned from an ICMP error, bytes.
    pub path_mtu: Option<u32>,
    /// Microseconds until it failed.
    pub after_us: u64,
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ({})", self.kind, self.detail)?;
        match self.path_mtu {
            Some(mtu) => write!(f, ", path MTU {mtu}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for AskError {}

/// Many questions' outcome.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Answers by server.
    pub by_server: BTreeMap<String, u64>,
    /// Failures by kind.
    pub failed: BTreeMap<String, u64>,
    /// Microseconds in `connect` (for UDP: until the answer), sorted.
    pub latencies_us: Vec<u64>,
}

impl Histogram {
    /// All answers.
    pub fn answered(&self) -> u64 {
        self.by_server.values().sum()
    }

    /// All failures.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// The latency below which `percent` of the answers lie, microseconds; 0 if there are none.
    pub fn percentile_us(&self, percent: f64) -> u64 {
        percentile(&self.latencies_us, percent)
    }
}

/// Nearest-rank percentile of a sorted slice; 0 for an empty one.
pub fn percentile(sorted: &[u64], percent: f64) -> u64 {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

/// A load: the same question again and again until told to stop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// The question; each time on a new socket.
    pub ask: Ask,
    /// Threads that ask.
    pub workers: usize,
    /// Servers that may answer; any other answer is wrong. Empty = any.
    pub expect: Vec<String>,
    /// Microseconds between two questions of one thread, so that a load leaves the processor to what it tests.
    pub pause_us: u64,
}

impl Load {
    /// Two threads with 200 µs between questions.
    pub fn new(ask: Ask, expect: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            ask,
            workers: 2,
            expect: expect.into_iter().map(Into::into).collect(),
            pause_us: 200,
        }
    }
}

/// What a [`Load`] has seen so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Answers by expected server.
    pub ok: BTreeMap<String, u64>,
    /// Answers by any other server.
    pub wrong: BTreeMap<String, u64>,
    /// Failures by kind and detail.
    pub failed: BTreeMap<String, u64>,
    /// Microseconds in `connect` (for UDP: until the answer), sorted; at most 100 000 are kept.
    pub latencies_us: Vec<u64>,
}

impl Tally {
    /// Whether every question was answered by an expected server, and at least one was asked.
    pub fn is_clean(&self) -> bool {
        self.wrong.is_empty() && self.failed.is_empty() && !self.ok.is_empty()
    }

    /// All expected answers.
    pub fn answered(&self) -> u64 {
        self.ok.values().sum()
    }
}

/// A program's outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Output {
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output, lossy UTF-8.
    pub stdout: String,
    /// Standard error, lossy UTF-8.
    pub stderr: String,
}

/// Something an actor does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Operation {
    /// Serve until stopped; answers [`Serving`].
    Serve {
        /// TCP, UDP or HTTP.
        transport: Transport,
        /// Address and port to listen on (port 0 = any).
        listen: SocketAddr,
        /// Name that answers carry.
        name: String,
    },
    /// Stops a server, connections included.
    StopServing(u64),
    /// Asks once; answers `Result<Answer, AskError>`.
    Ask(Ask),
    /// Asks `count` times, `concurrency` at once; answers [`Histogram`].
    AskMany {
        /// The question.
        ask: Ask,
        /// How often.
        count: usize,
        /// Threads.
        concurrency: usize,
    },
    /// Opens a TCP connection or UDP socket, asks once and keeps it; answers `Result<(u64, Answer), AskError>`.
    Open(Ask),
    /// Asks on a kept connection; answers `Result<Answer, AskError>`.
    Exchange {
        /// What [`Operation::Open`] gave.
        conn: u64,
        /// Bytes to send besides the header.
        send_bytes: usize,
        /// Bytes to have sent back.
        reply_bytes: usize,
    },
    /// Closes a kept connection.
    Close(u64),
    /// Begins a load; answers its id.
    LoadStart(Load),
    /// What a load has seen so far; answers [`Tally`].
    LoadPeek(u64),
    /// Ends a load once running questions are answered; answers [`Tally`].
    LoadStop(u64),
    /// Runs a loop of native code for its time; answers [`crate::measure::Measured`].
    Measure(Measure),
    /// Begins to be the other end of such a loop; answers [`Serving`].
    Absorb(Absorb),
    /// Stops that; answers how many datagrams have arrived since (TCP: 0).
    AbsorbStop(u64),
    /// Runs a program to its end in this namespace; answers [`Output`].
    Run {
        /// Name or path.
        program: String,
        /// Arguments.
        args: Vec<String>,
        /// Standard input.
        stdin: String,
    },
    /// Starts a program that lives until [`Operation::Kill`] or the actor's end; answers its pid.
    Spawn {
        /// Path.
        program: String,
        /// Arguments.
        args: Vec<String>,
        /// Environment, added to the actor's own.
        env: Vec<(String, String)>,
        /// File that standard output and error go to.
        log: String,
    },
    /// Runs a program to its end when the actor ends, however that comes about; answers nothing.
    AtEnd {
        /// Path.
        program: String,
        /// Arguments.
        args: Vec<String>,
    },
    /// Sends a signal to a spawned program and waits for its end; SIGKILL follows after `grace_ms`. Answers the exit
    /// code (`None` after a signal), or an error if there is no such program.
    Kill {
        /// What [`Operation::Spawn`] gave.
        pid: i32,
        /// Signal number.
        signal: i32,
        /// Milliseconds before SIGKILL.
        grace_ms: u64,
    },
    /// The exit of a spawned program if it has ended; answers `Option<Option<i32>>`.
    Exited(i32),
    /// `GET path` from `addr`; answers [`HttpReply`].
    HttpGet {
        /// Server.
        addr: SocketAddr,
        /// Path and query.
        path: String,
        /// Milliseconds for everything.
        timeout_ms: u64,
    },
    /// Writes files under /proc/sys, in this namespace; a path that this kernel lacks is passed over when `optional`.
    Sysctl {
        /// Path with slashes, below /proc/sys, and value.
        settings: Vec<(String, String)>,
        /// Whether a missing path is no error.
        optional: bool,
    },
}

/// A running server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// For [`Operation::StopServing`].
    pub id: u64,
    /// Where it listens.
    pub addr: SocketAddr,
}

/// Answer to [`Operation::HttpGet`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpReply {
    /// Status code.
    pub status: u16,
    /// Body, lossy UTF-8.
    pub body: String,
}

/// A line to an actor.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Echoed in the [`Response`].
    pub id: u64,
    /// What to do.
    pub op: Operation,
}

/// A line from an actor. The first one, with id 0, says that its namespaces are ready and holds its pid.
#[derive(Debug, Serialize, Deserialize)]
pub struct Response {
    /// Of the request.
    pub id: u64,
    /// The operation's own type as JSON, or why the actor could not do it.
    pub result: Result<serde_json::Value, String>,
}

/// First line of a question: how much body follows, and how much is wanted back.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Question {
    /// Bytes that follow the line (TCP).
    pub body: usize,
    /// Bytes wanted back.
    pub reply: usize,
    /// Echoed, so that a late answer is not taken for another question's.
    pub nonce: u64,
}

/// First line of a server's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServerLine {
    /// The server.
    pub name: String,
    /// Its client's address.
    pub peer: SocketAddr,
    /// Bytes that follow the line (TCP).
    pub body: usize,
    /// Bytes of body (TCP) or datagram (UDP) that came.
    pub received: usize,
    /// The question's.
    pub nonce: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentile_is_the_nearest_rank() {
        let sorted: Vec<u64> = (1..=100).collect();
        assert_eq!(
            [
                percentile(&sorted, 50.0),
                percentile(&sorted, 99.0),
                percentile(&sorted, 100.0)
            ],
            [50, 99, 100]
        );
        assert_eq!(percentile(&[], 50.0), 0);
        assert_eq!(percentile(&[7], 1.0), 7);
    }

    #[test]
    fn an_operation_survives_the_wire() {
        let ask = Ask::udp("[fd00::1]:53".parse().unwrap()).bytes(1, 2).unconnected();
        let line = serde_json::to_string(&Request {
            id: 3,
            op: Operation::Ask(ask.clone()),
        })
        .unwrap();
        let Request {
            id: 3,
            op: Operation::Ask(back),
        } = serde_json::from_str(&line).unwrap()
        else {
            panic!("{line}")
        };
        assert_eq!(back, ask);
    }
}
