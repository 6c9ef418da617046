//! The client's loops of [`Measure`], on the calling thread.

use super::absorb::pin;
use crate::{
    measure::{Measure, Measured, Work},
    proto::percentile,
};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// Longest wait for anything on the way: a lost packet must not become a long silence.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of a datagram: with Ethernet, IPv4 and UDP headers, 60.
const DATAGRAM: usize = 18;
/// Bytes per write of a stream.
const CHUNK: usize = 128 * 1024;
/// Datagrams between two looks at the clock.
const BURST: usize = 64;
/// Sockets that exist at the same time for [`Work::ConnectCalls`].
const SOCKETS: usize = 256;
/// Failures after which a loop gives up: each may have cost the whole [`PATIENCE`].
const MAX_FAILED: u64 = 20;

/// Runs the loop for its time.
pub(super) fn run(measure: &Measure) -> io::Result<Measured> {
    pin(measure.cpu)?;
    let (dst, time) = (measure.dst, Duration::from_millis(measure.duration_ms));
    match measure.work {
        Work::Connections => connections(dst, time),
        Work::RoundTrips => round_trips(dst, time),
        Work::Datagrams => datagrams(dst, time),
        Work::Stream => stream(dst, time),
        Work::ConnectCalls => connect_calls(dst, time),
    }
}

/// Successes with their durations, and failures.
struct Log {
    begun: Instant,
    time: Duration,
    durations_ns: Vec<u64>,
    failed: u64,
    error: Option<String>,
}

impl Log {
    fn new(time: Duration) -> Self {
        Self {
            // Growing would show up in the percentiles.
            durations_ns: Vec::with_capacity((time.as_micros() as usize / 5).clamp(1_024, 4 << 20)),
            failed: 0,
            error: None,
            time,
            begun: Instant::now(),
        }
    }

    fn goes_on(&self) -> bool {
        self.begun.elapsed() < self.time && self.failed < MAX_FAILED
    }

    fn succeeded(&mut self, from: Instant, to: Instant) {
        self.durations_ns.push((to - from).as_nanos() as u64);
    }

    fn failed(&mut self, error: &io::Error) {
        self.failed += 1;
        self.error.get_or_insert_with(|| error.to_string());
    }

    fn finish(mut self) -> Measured {
        let elapsed_ns = self.begun.elapsed().as_nanos() as u64;
        self.durations_ns.sort_unstable();
        Measured {
            count: self.durations_ns.len() as u64,
            elapsed_ns,
            failed: self.failed,
            error: self.error,
            p50_ns: percentile(&self.durations_ns, 50.0),
            p99_ns: percentile(&self.durations_ns, 99.0),
        }
    }
}

fn tcp_socket(dst: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(dst), Type::STREAM, Some(Protocol::TCP))?;
    // Bounds connect, too (socket(7)).
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn connections(dst: SocketAddr, time: Duration) -> io::Result<Measured> {
    let to = dst.into();
    let mut log = Log::new(time);
    while log.goes_on() {
        let socket = tcp_socket(dst)?;
        socket.set_linger(Some(Duration::ZERO))?;
        let from = Instant::now();
        match socket.connect(&to) {
            Ok(()) => log.succeeded(from, Instant::now()),
            Err(error) => log.failed(&error),
        }
    }
    Ok(log.finish())
}

fn connected(dst: SocketAddr) -> io::Result<TcpStream> {
    let socket = tcp_socket(dst)?;
    socket.connect(&dst.into())?;
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

fn round_trips(dst: SocketAddr, time: Duration) -> io::Result<Measured> {
    let mut stream = connected(dst)?;
    let mut byte = [0];
    let mut log = Log::new(time);
    while log.goes_on() {
        let from = Instant::now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        log.succeeded(from, Instant::now());
    }
    Ok(log.finish())
}

fn datagrams(dst: SocketAddr, time: Duration) -> io::Result<Measured> {
    let socket = Socket::new(Domain::for_address(dst), Type::DGRAM, Some(Protocol::UDP))?;
    socket.connect(&dst.into())?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let payload = [0; DATAGRAM];
    let mut log = Log::new(Duration::ZERO);
    let mut count = 0;
    while log.begun.elapsed() < time && log.failed < MAX_FAILED {
        for _ in 0..BURST {
            match socket.send(&payload) {
                Ok(_) => count += 1,
                Err(error) => log.failed(&error),
            }
        }
    }
    Ok(Measured { count, ..log.finish() })
}

fn stream(dst: SocketAddr, time: Duration) -> io::Result<Measured> {
    let mut stream = connected(dst)?;
    let chunk = vec![0; CHUNK];
    let begun = Instant::now();
    let mut count = 0;
    while begun.elapsed() < time {
        stream.write_all(&chunk)?;
        count += CHUNK as u64;
    }
    // The other end closes once it has read everything.
    stream.shutdown(Shutdown::Write)?;
    io::copy(&mut stream, &mut io::sink())?;
    Ok(Measured {
        count,
        elapsed_ns: begun.elapsed().as_nanos() as u64,
        ..Measured::default()
    })
}

fn connect_calls(dst: SocketAddr, time: Duration) -> io::Result<Measured> {
    let to = dst.into();
    let mut log = Log::new(time);
    while log.goes_on() {
        let sockets: Vec<Socket> = (0..SOCKETS)
            .map(|_| {
                let socket = Socket::new(Domain::for_address(dst), Type::STREAM, Some(Protocol::TCP))?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            })
            .collect::<io::Result<_>>()?;
        for socket in &sockets {
            let from = Instant::now();
            let outcome = socket.connect(&to);
            let to = Instant::now();
            match outcome {
                Err(error) if error.raw_os_error() == Some(libc::EHOSTUNREACH) => log.succeeded(from, to),
                Err(error) => log.failed(&error),
                Ok(()) => log.failed(&io::Error::other("connected, although there is no route")),
            }
        }
    }
    Ok(log.finish())
}
