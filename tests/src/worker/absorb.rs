//! The other end of a client's loop: takes what comes, at as little cost as there can be.

use super::lock;
use crate::{
    measure::{Absorb, Work},
    proto::Serving,
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

/// Connections that may wait to be accepted: more than a client makes before the scheduler lets this end run.
const BACKLOG: i32 = 4_096;
/// Bytes per read of a stream.
const CHUNK: usize = 256 * 1024;

/// Binds the calling thread to a processor.
pub(super) fn pin(cpu: Option<usize>) -> io::Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)?;
    Ok(())
}

#[derive(Default)]
struct Shared {
    stopped: AtomicBool,
    /// Listening or datagram socket, and the connection being served: shut down to wake the thread.
    sockets: Mutex<Vec<Socket>>,
}

struct Running {
    shared: Arc<Shared>,
    /// UDP: datagrams that had arrived in this namespace before.
    before: u64,
    thread: Option<JoinHandle<()>>,
}

/// Running ends by id.
#[derive(Default)]
pub(super) struct Absorbers {
    next: AtomicU64,
    running: Mutex<HashMap<u64, Running>>,
}

impl Absorbers {
    /// Listens, and returns once whatever comes will be taken.
    pub(super) fn start(&self, absorb: &Absorb) -> io::Result<Serving> {
        let (kind, protocol) = match absorb.work {
            Work::Datagrams => (Type::DGRAM, Protocol::UDP),
            Work::Connections | Work::RoundTrips | Work::Stream => (Type::STREAM, Protocol::TCP),
            Work::ConnectCalls => return Err(io::Error::other("connect calls go nowhere")),
        };
        let socket = Socket::new(Domain::for_address(absorb.listen), kind, Some(protocol))?;
        socket.set_reuse_address(true)?;
        socket.bind(&absorb.listen.into())?;
        let addr = socket.local_addr()?.as_socket().unwrap_or(absorb.listen);
        let shared = Arc::new(Shared::default());
        lock(&shared.sockets).push(socket.try_clone()?);
        let before = arrived()?;
        let thread = if kind == Type::DGRAM {
            // "return 0": the socket takes nothing, and the kernel counts an error for each datagram.
            socket.attach_filter(&[SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, 0)])?;
            None
        } else {
            socket.listen(BACKLOG)?;
            let (ready, pinned) = mpsc::channel();
            let (own, work, cpu) = (Arc::clone(&shared), absorb.work, absorb.cpu);
            let thread = std::thread::spawn(move || {
                // Nobody listens only if the actor is ending.
                let _ = ready.send(pin(cpu));
                accept(&own, &socket.into(), work);
            });
            pinned.recv().map_err(io::Error::other)??;
            Some(thread)
        };
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.running).insert(id, Running { shared, before, thread });
        Ok(Serving { id, addr })
    }

    /// Stops one; answers the datagrams that have arrived since its start, in this whole namespace (TCP: 0).
    pub(super) fn stop(&self, id: u64) -> Result<u64, String> {
        let running = lock(&self.running)
            .remove(&id)
            .ok_or_else(|| format!("nothing with id {id} is measured here"))?;
        running.shared.stopped.store(true, Ordering::SeqCst);
        for socket in lock(&running.shared.sockets).drain(..) {
            // Wakes accept and read; a datagram socket says ENOTCONN, and nobody waits for it.
            let _ = socket.shutdown(Shutdown::Both);
        }
        let Some(thread) = running.thread else {
            let now = arrived().map_err(|error| error.to_string())?;
            return Ok(now.saturating_sub(running.before));
        };
        thread.join().map_err(|_| "the measuring thread panicked".to_string())?;
        Ok(0)
    }
}

fn accept(shared: &Shared, listener: &TcpListener, work: Work) {
    let mut buffer = vec![0; CHUNK];
    while !shared.stopped.load(Ordering::SeqCst) {
        let Ok((stream, _)) = listener.accept() else { continue };
        if work == Work::Connections {
            continue;
        }
        if let Ok(copy) = stream.try_clone() {
            lock(&shared.sockets).push(copy.into());
        }
        if shared.stopped.load(Ordering::SeqCst) {
            // Whoever stopped us may have emptied the list before we added to it.
            return;
        }
        // The client sees a connection end; it is the one that judges.
        let _ = match work {
            Work::RoundTrips => echo(stream),
            _ => drain(stream, &mut buffer),
        };
        lock(&shared.sockets).truncate(1);
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn drain(mut stream: TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    while stream.read(buffer)? > 0 {}
    stream.shutdown(Shutdown::Both)
}

/// Datagrams that have reached a UDP socket of this namespace, whether it took them or not, or that found none.
fn arrived() -> io::Result<u64> {
    arrived_in(&std::fs::read_to_string("/proc/net/snmp")?)
        .ok_or_else(|| io::Error::other("/proc/net/snmp has no counters of UDP"))
}

/// From the two `Udp:` lines, names and values.
fn arrived_in(snmp: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let counters = names.split(' ').zip(values.split(' '));
    counters
        .filter(|(name, _)| ["InDatagrams", "NoPorts", "InErrors"].contains(name))
        .map(|(_, value)| value.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Measure;
    use std::net::SocketAddr;

    #[test]
    fn arrivals_are_all_that_reached_udp() {
        let snmp = "Tcp: A\nTcp: 1\nUdp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors\nUdp: 5 2 30 9 30\n";
        assert_eq!(arrived_in(snmp), Some(37));
        assert_eq!(arrived_in("Udp: InDatagrams\n"), None);
        assert_eq!(arrived_in("Udp: InDatagrams\nUdp: many\n"), None);
    }

    fn measured(work: Work) -> (crate::measure::Measured, u64) {
        let absorbers = Absorbers::default();
        let listen: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let cpu = None;
        let serving = absorbers.start(&Absorb { work, listen, cpu }).unwrap();
        let measured = super::super::measure::run(&Measure {
            work,
            dst: serving.addr,
            duration_ms: 50,
            cpu,
        })
        .unwrap();
        (measured, absorbers.stop(serving.id).unwrap())
    }

    #[test]
    fn every_loop_runs_and_ends() {
        for work in [Work::Connections, Work::RoundTrips, Work::Stream, Work::Datagrams] {
            let (seen, arrived) = measured(work);
            assert!(
                seen.count > 0 && seen.elapsed_ns > 0 && seen.failed == 0,
                "{work}: {seen:?}"
            );
            // Other tests may use UDP at the same time.
            assert!(
                work != Work::Datagrams || arrived >= seen.count,
                "{arrived} of {seen:?}"
            );
        }
    }

    #[test]
    fn what_nobody_takes_has_failed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let dst = listener.local_addr().unwrap();
        drop(listener);
        let measure = Measure {
            work: Work::Connections,
            dst,
            duration_ms: 10_000,
            cpu: None,
        };
        let seen = super::super::measure::run(&measure).unwrap();
        assert!(seen.count == 0 && seen.failed == 20, "{seen:?}");
        assert!(seen.error.unwrap().contains("refused"));
    }
}
