//! TCP: questions one behind the other, answered as they are ready (RFC 7766).

use crate::engine::{Client, Engine, Outcome};
use arc_swap::ArcSwap;
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long a connection may be silent. Source: RFC 7766 §6.2.3, "of the order of a few seconds".
const IDLE: Duration = Duration::from_secs(10);
/// How long an answer may take to be taken.
const WRITE: Duration = Duration::from_secs(5);
/// Connections at one time.
const MOST_CONNECTIONS: usize = 4096;
/// Connections of one address.
const MOST_PER_PEER: usize = 256;
/// Questions of one connection that wait at one time.
const MOST_WAITING: usize = 64;

/// What the connections of one listener share.
#[derive(Debug)]
pub(super) struct TcpServer {
    port: u16,
    worker: usize,
    engine: Arc<ArcSwap<Engine>>,
    peers: Mutex<HashMap<IpAddr, usize>>,
    room: Arc<Semaphore>,
}

/// A place among the connections.
struct Place {
    server: Arc<TcpServer>,
    peer: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut peers = self.server.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = peers.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                peers.remove(&self.peer);
            }
        }
    }
}

impl TcpServer {
    pub(super) fn new(port: u16, worker: usize, engine: Arc<ArcSwap<Engine>>) -> Arc<Self> {
        Arc::new(Self {
            port,
            worker,
            engine,
            peers: Mutex::default(),
            room: Arc::new(Semaphore::new(MOST_CONNECTIONS)),
        })
    }

    /// Accepts until `stop`.
    pub(super) async fn run(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    // Over a limit: closed at once, which tells the client more than silence.
                    let Some(place) = self.admit(peer.ip()) else { continue };
                    let stop = stop.clone();
                    connections.spawn(async move {
                        tokio::select! {
                            biased;
                            () = stop.cancelled() => {}
                            () = serve(&place, stream, peer) => {}
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept by TCP");
                    // Out of descriptors: wait for connections to end.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        connections.close();
        connections.wait().await;
    }

    fn admit(self: &Arc<Self>, peer: IpAddr) -> Option<Place> {
        let permit = Arc::clone(&self.room).try_acquire_owned().ok()?;
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let count = peers.entry(peer).or_default();
        if *count >= MOST_PER_PEER {
            return None;
        }
        *count += 1;
        Some(Place {
            server: Arc::clone(self),
            peer,
            _permit: permit,
        })
    }
}

async fn serve(place: &Place, stream: TcpStream, peer: SocketAddr) {
    let _ = stream.set_nodelay(true);
    let (mut reader, mut writer) = stream.into_split();
    let (sender, mut answers) = mpsc::channel::<Vec<u8>>(MOST_WAITING);
    let write = async move {
        while let Some(first) = answers.recv().await {
            let mut framed = Vec::new();
            push_frame(&mut framed, &first);
            while let Ok(next) = answers.try_recv() {
                push_frame(&mut framed, &next);
            }
            if !matches!(timeout(WRITE, writer.write_all(&framed)).await, Ok(Ok(()))) {
                return;
            }
        }
    };
    let waiting = Arc::new(Semaphore::new(MOST_WAITING));
    let server = &place.server;
    let read = async move {
        let mut out = Vec::new();
        loop {
            let frame = async {
                let length = reader.read_u16().await?;
                let mut packet = vec![0; usize::from(length)];
                reader.read_exact(&mut packet).await.map(|_| packet)
            };
            let Ok(Ok(packet)) = timeout(IDLE, frame).await else {
                // Silent: but whoever waits for an answer is no idler.
                let _ = waiting.acquire_many(MOST_WAITING as u32).await;
                return;
            };
            let client = Client {
                port: server.port,
                peer,
                tcp: true,
                worker: server.worker,
                at: Instant::now(),
            };
            let engine = server.engine.load_full();
            match engine.serve(&packet, &client, &mut out) {
                Outcome::Reply => {
                    if sender.send(std::mem::take(&mut out)).await.is_err() {
                        return;
                    }
                }
                Outcome::Nothing => return,
                Outcome::Later(later) => {
                    let Ok(permit) = Arc::clone(&waiting).acquire_owned().await else {
                        return;
                    };
                    let sender = sender.clone();
                    tokio::spawn(async move {
                        let answer = later.run().await;
                        let _ = sender.send(answer).await;
                        drop(permit);
                    });
                }
            }
        }
    };
    // Answers that are ready are written after the client has sent its last question.
    tokio::join!(read, write);
}

fn push_frame(framed: &mut Vec<u8>, answer: &[u8]) {
    if let Some(length) = u16::try_from(answer.len()).ok().filter(|length| *length > 0) {
        framed.extend_from_slice(&length.to_be_bytes());
        framed.extend_from_slice(answer);
    }
}
