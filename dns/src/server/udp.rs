//! UDP: one socket and one thread per core, all on one address.

use super::mmsg::{self, BATCH, Inbox, Path};
use crate::engine::{Client, Engine, Later, Outcome};
use arc_swap::ArcSwap;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt};
use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Instant,
};
use tokio::runtime::Handle;

/// Bytes that may wait in a socket: a burst of some thousand questions.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Threads that serve one address.
#[derive(Debug)]
pub(super) struct UdpServer {
    sockets: Vec<Arc<UdpSocket>>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

/// Opens the sockets of one address. With port 0 all get the one that the first got.
pub(super) fn open(address: SocketAddr, count: usize) -> io::Result<Vec<UdpSocket>> {
    let mut address = address;
    if address.port() != 0 {
        // Sockets that share an address are not told of others that share it too: this one would be.
        drop(open_one(address, false)?);
    }
    let mut sockets = Vec::new();
    for _ in 0..count.max(1) {
        let socket = open_one(address, true)?;
        address = socket.local_addr()?;
        sockets.push(socket);
    }
    Ok(sockets)
}

fn open_one(address: SocketAddr, shared: bool) -> io::Result<UdpSocket> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    if shared {
        setsockopt(&fd, sockopt::ReusePort, &true)?;
    }
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &!address.ip().is_unspecified())?;
    }
    // The system's limit holds; a smaller buffer loses bursts, nothing else.
    let _ = setsockopt(&fd, sockopt::RcvBuf, &RECEIVE_BUFFER);
    if address.ip().is_unspecified() {
        mmsg::ask_for_local_address(fd.as_fd(), address.is_ipv6())?;
    }
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrStorage::from(address))?;
    Ok(UdpSocket::from(fd))
}

impl UdpServer {
    /// Serves these sockets until [`Self::stop`]. `first` is the number of the first thread, for counters.
    pub(super) fn start(
        sockets: Vec<UdpSocket>,
        port: u16,
        first: usize,
        engine: &Arc<ArcSwap<Engine>>,
    ) -> io::Result<Self> {
        let mut server = Self {
            sockets: sockets.into_iter().map(Arc::new).collect(),
            threads: Vec::new(),
            stop: Arc::new(AtomicBool::new(false)),
        };
        let runtime = Handle::current();
        for (index, socket) in server.sockets.iter().enumerate() {
            let worker = Worker {
                socket: Arc::clone(socket),
                engine: Arc::clone(engine),
                stop: Arc::clone(&server.stop),
                runtime: runtime.clone(),
                port,
                number: first + index,
            };
            let thread = std::thread::Builder::new().name(format!("dns-udp-{}", first + index));
            server.threads.push(thread.spawn(move || worker.run())?);
        }
        Ok(server)
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for socket in &self.sockets {
            mmsg::wake(socket.as_fd());
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that serves UDP had ended in a panic");
            }
        }
    }
}

struct Worker {
    socket: Arc<UdpSocket>,
    engine: Arc<ArcSwap<Engine>>,
    stop: Arc<AtomicBool>,
    runtime: Handle,
    port: u16,
    number: usize,
}

impl Worker {
    fn run(&self) {
        let _entered = self.runtime.enter();
        let mut inbox = Inbox::new();
        let mut outbox: Vec<Vec<u8>> = (0..BATCH).map(|_| Vec::with_capacity(1500)).collect();
        let mut paths: [Option<Path>; BATCH] = [None; BATCH];
        while !self.stop.load(Ordering::Acquire) {
            let count = match inbox.receive(self.socket.as_fd()) {
                Ok(count) => count,
                Err(error) => {
                    // An error of an earlier answer (ICMP) is told here, once; one that lasts must not spin.
                    if !matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionRefused
                    ) {
                        tracing::warn!(%error, "cannot receive by UDP");
                        std::thread::yield_now();
                    }
                    continue;
                }
            };
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            let now = Instant::now();
            let engine = self.engine.load();
            for index in 0..count {
                paths[index] = inbox.path(index).filter(|path| path.peer.port() != 0);
                let Some(path) = paths[index] else { continue };
                if !self.answer(&engine, inbox.packet(index), &path, now, &mut outbox[index]) {
                    paths[index] = None;
                }
            }
            drop(engine);
            let answers = outbox.iter().zip(&paths).take(count);
            mmsg::send(
                self.socket.as_fd(),
                answers.filter_map(|(bytes, path)| Some((bytes.as_slice(), (*path)?))),
            );
        }
    }

    /// Writes an answer; false if none is to be sent now.
    fn answer(&self, engine: &Arc<Engine>, packet: &[u8], path: &Path, at: Instant, out: &mut Vec<u8>) -> bool {
        let client = Client {
            port: self.port,
            peer: path.peer,
            tcp: false,
            worker: self.number,
            at,
        };
        // A question that panics hurts only itself.
        match catch_unwind(AssertUnwindSafe(|| engine.serve(packet, &client, out))) {
            Ok(Outcome::Reply) => true,
            Ok(Outcome::Nothing) => false,
            Ok(Outcome::Later(later)) => {
                self.later(later, *path);
                false
            }
            Err(_) => {
                engine.metrics.panics.inc();
                false
            }
        }
    }

    fn later(&self, later: Later, path: Path) {
        let socket = Arc::clone(&self.socket);
        self.runtime.spawn(async move {
            let answer = later.run().await;
            if !answer.is_empty() {
                mmsg::send(socket.as_fd(), std::iter::once((answer.as_slice(), path)));
            }
        });
    }
}
