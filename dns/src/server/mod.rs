//! Sockets: UDP, TCP, and HTTP for health and metrics.

mod http;
mod mmsg;
mod tcp;
mod udp;

use crate::{engine::Engine, metrics::Metrics, watch::Watches};
use anyhow::Context as _;
use arc_swap::ArcSwap;
use axum::Router;
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::AtomicBool},
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// Attempts to find a port that is free for both transports.
const ATTEMPTS: usize = 16;

/// One address that is served by UDP and TCP. Dropped, it is served no more.
#[derive(Debug)]
pub(crate) struct Listener {
    /// As it was asked for.
    pub(crate) wanted: SocketAddr,
    /// Port of the Corefile.
    pub(crate) port: u16,
    /// As it is.
    pub(crate) bound: SocketAddr,
    _udp: udp::UdpServer,
    stop: CancellationToken,
    tcp: Option<JoinHandle<()>>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Listener {
    /// Opens an address and serves it. `first` numbers its threads, for counters.
    ///
    /// # Errors
    /// It cannot be used.
    pub(crate) async fn open(
        wanted: SocketAddr,
        port: u16,
        sockets: usize,
        first: usize,
        engine: &Arc<ArcSwap<Engine>>,
    ) -> anyhow::Result<Self> {
        let (udp, tcp) = match both(wanted, sockets).await {
            // A host without IPv6: the Corefile's wildcard means what there is.
            Err(error) if wanted.ip().is_unspecified() && wanted.is_ipv6() && no_ipv6(&error) => {
                both(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), wanted.port()), sockets).await
            }
            opened => opened,
        }
        .with_context(|| {
            format!(
                "{wanted} cannot be used for DNS; find who has it with `ss -lnup sport = :{}`, or choose another by --listen",
                wanted.port()
            )
        })?;
        let bound = tcp.local_addr().context("the listener has no address")?;
        let udp = udp::UdpServer::start(udp, port, first, engine).context("cannot start threads for UDP")?;
        let stop = CancellationToken::new();
        let server = tcp::TcpServer::new(port, first + sockets, Arc::clone(engine));
        let tcp = tokio::spawn(server.run(tcp, stop.clone()));
        Ok(Self {
            wanted,
            port,
            bound,
            _udp: udp,
            stop,
            tcp: Some(tcp),
        })
    }

    /// Ends it, and waits for connections to end.
    pub(crate) async fn close(mut self) {
        self.stop.cancel();
        if let Some(tcp) = self.tcp.take() {
            let _ = tcp.await;
        }
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// UDP and TCP of one address; a free port is one that is free for both.
async fn both(wanted: SocketAddr, sockets: usize) -> io::Result<(Vec<std::net::UdpSocket>, TcpListener)> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..ATTEMPTS {
        let tcp = TcpListener::bind(wanted).await?;
        let address = tcp.local_addr()?;
        match udp::open(address, sockets) {
            Ok(udp) => return Ok((udp, tcp)),
            Err(error) if wanted.port() == 0 && error.kind() == io::ErrorKind::AddrInUse => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// What an HTTP address serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Page {
    /// `/health`
    Health,
    /// `/ready`
    Ready,
    /// `/metrics`
    Metrics,
}

/// What pages tell.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) lameduck: Arc<AtomicBool>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) watches: Arc<ArcSwap<Vec<Arc<Watches>>>>,
}

/// One HTTP address. Dropped, it is served no more.
#[derive(Debug)]
pub(crate) struct HttpServer {
    pub(crate) page: Page,
    pub(crate) wanted: SocketAddr,
    pub(crate) bound: SocketAddr,
    stop: CancellationToken,
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl HttpServer {
    /// Opens an address and serves a page there.
    ///
    /// # Errors
    /// It cannot be used.
    pub(crate) async fn open(page: Page, wanted: SocketAddr, told: &Told) -> anyhow::Result<Self> {
        let listener = match TcpListener::bind(wanted).await {
            Err(error) if wanted.ip().is_unspecified() && wanted.is_ipv6() && no_ipv6(&error) => {
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, wanted.port())).await
            }
            opened => opened,
        }
        .with_context(|| format!("{wanted} cannot be used for {page:?}; choose another address in the Corefile"))?;
        let bound = listener.local_addr().context("the listener has no address")?;
        let watches = Arc::clone(&told.watches);
        let watches = move || watches.load().to_vec();
        let router: Router = match page {
            Page::Health => http::health(Arc::clone(&told.lameduck)),
            Page::Ready => http::ready(watches),
            Page::Metrics => http::metrics(Arc::clone(&told.metrics), watches),
        };
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stopped).await {
                tracing::error!(%error, ?page, "the server of this page ended");
            }
        });
        Ok(Self {
            page,
            wanted,
            bound,
            stop,
        })
    }
}
