//! One upstream: UDP with a socket and an id of its own per question, TCP where that is too small, and its health.

use crate::{
    corefile::{ForwardConfig, HealthCheck},
    message::Answer,
    metrics::ForwardMetrics,
    wire::{HEADER, flag, question, rcode_name, u16_at},
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

/// Most bytes of a datagram that is read.
const DATAGRAM: usize = 4096;
/// Type NS, which a health check asks for.
const NS: u16 = crate::wire::rtype::NS;

/// Who answers questions.
#[derive(Debug)]
pub struct Upstream {
    /// Where.
    pub address: SocketAddr,
    fails: AtomicU32,
    max_fails: u32,
    checking: AtomicBool,
    looping: AtomicBool,
    health: HealthCheck,
    read_timeout: Duration,
    expire: Duration,
    max_idle: usize,
    idle: Mutex<Vec<(TcpStream, Instant)>>,
    metrics: Arc<ForwardMetrics>,
}

impl Upstream {
    /// One that counts as well.
    pub fn new(address: SocketAddr, config: &ForwardConfig, metrics: Arc<ForwardMetrics>) -> Self {
        Self {
            address,
            fails: AtomicU32::new(0),
            max_fails: config.max_fails,
            checking: AtomicBool::new(false),
            looping: AtomicBool::new(false),
            health: config.health.clone(),
            read_timeout: config.read_timeout,
            expire: config.expire,
            max_idle: config.max_idle,
            idle: Mutex::default(),
            metrics,
        }
    }

    /// Has it failed too often?
    pub fn is_down(&self) -> bool {
        self.max_fails > 0 && self.fails.load(Ordering::Relaxed) >= self.max_fails
    }

    /// Does it lead back here?
    pub fn is_looping(&self) -> bool {
        self.looping.load(Ordering::Relaxed)
    }

    /// It leads back here: it is not asked again.
    pub fn exclude(&self) {
        if !self.looping.swap(true, Ordering::Relaxed) {
            tracing::error!(
                upstream = %self.address,
                "this upstream sends questions back to this server, so it is left out; name a resolver that does not \
                 (with systemd-resolved: forward . /run/systemd/resolve/resolv.conf)"
            );
            self.metrics.loops.inc();
        }
    }

    /// It answered.
    pub fn succeeded(&self) {
        self.fails.store(0, Ordering::Relaxed);
    }

    /// It did not: it is asked every now and then until it does.
    pub fn failed(self: &Arc<Self>) {
        self.fails.fetch_add(1, Ordering::Relaxed);
        if self.max_fails == 0 || self.checking.swap(true, Ordering::Relaxed) {
            return;
        }
        let this = Arc::downgrade(self);
        let interval = self.health.interval;
        tokio::spawn(async move {
            // Ends with the upstream, which a reload replaces.
            while let Some(upstream) = this.upgrade() {
                if upstream.is_well().await {
                    upstream.fails.store(0, Ordering::Relaxed);
                    upstream.checking.store(false, Ordering::Relaxed);
                    return;
                }
                upstream.metrics.unhealthy(upstream.address);
                drop(upstream);
                tokio::time::sleep(interval).await;
            }
        });
    }

    /// Any answer is a good one.
    async fn is_well(&self) -> bool {
        let flags = if self.health.recursion { flag::RD } else { 0 };
        let packet = question(0, flags, self.health.domain.wire(), NS, None);
        matches!(timeout(self.read_timeout, self.by_udp(&packet)).await, Ok(Ok(_)))
    }

    /// Asks. `packet` has the id 0, which is replaced.
    ///
    /// # Errors
    /// The network's.
    pub async fn ask(&self, packet: &[u8], by_tcp: bool) -> io::Result<Answer> {
        let started = Instant::now();
        let answer = if by_tcp {
            self.by_tcp(packet).await?
        } else {
            let answer = self.by_udp(packet).await?;
            if answer.truncated() {
                self.by_tcp(packet).await?
            } else {
                answer
            }
        };
        self.metrics
            .answered(self.address, rcode_name(answer.rcode), started.elapsed());
        Ok(answer)
    }

    async fn by_udp(&self, packet: &[u8]) -> io::Result<Answer> {
        let any: IpAddr = if self.address.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        // A socket per question: the kernel draws the port at random, and takes datagrams of this peer alone.
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(self.address).await?;
        let packet = with_id(packet);
        socket.send(&packet).await?;
        let mut buffer = [0; DATAGRAM];
        loop {
            let length = socket.recv(&mut buffer).await?;
            if let Some(answer) = accept(&packet, &buffer[..length]) {
                return Ok(answer);
            }
        }
    }

    async fn by_tcp(&self, packet: &[u8]) -> io::Result<Answer> {
        let packet = with_id(packet);
        // A connection that was idle may have been closed meanwhile: then a new one.
        if let Some(stream) = self.take_idle()
            && let Ok(answer) = self.over(stream, &packet).await
        {
            return Ok(answer);
        }
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        self.over(stream, &packet).await
    }

    async fn over(&self, mut stream: TcpStream, packet: &[u8]) -> io::Result<Answer> {
        let length = u16::try_from(packet.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes(), packet].concat();
        stream.write_all(&framed).await?;
        let mut length = [0; 2];
        stream.read_exact(&mut length).await?;
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer).await?;
        let answer = accept(packet, &answer).ok_or_else(|| io::Error::other("the answer is not to the question"))?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.max_idle {
            idle.push((stream, Instant::now()));
        }
        Ok(answer)
    }

    fn take_idle(&self) -> Option<TcpStream> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(_, since)| since.elapsed() < self.expire);
        idle.pop().map(|(stream, _)| stream)
    }
}

fn with_id(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[..2].copy_from_slice(&rand::random::<[u8; 2]>());
    packet
}

/// Reads an answer if it has the id and the question of `packet`.
fn accept(packet: &[u8], bytes: &[u8]) -> Option<Answer> {
    if bytes.len() < HEADER || u16_at(bytes, 0) != u16_at(packet, 0) {
        return None;
    }
    let answer = Answer::read(bytes)?;
    let question = answer.question().len();
    answer
        .answers(packet.get(HEADER..HEADER + question)?, true)
        .then_some(answer)
}
