//! The outer door: TLS sockets with h2 and http/1.1.

use crate::{
    core::ApiServer,
    service::{Api, PeerCertificate},
};
use hyper::server::conn::{http1, http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{
    io::{self, Cursor},
    pin::Pin,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

/// Time for a TLS handshake and for the headers of a request: a slow client costs one socket for so long.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time for answers that are being given when the server stops.
const DRAIN: Duration = Duration::from_secs(5);
/// What a client of h2 begins with. Source: RFC 9113 §3.4.
const PREFACE_BYTES: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
/// Pause after the system had no socket for us: it will not have one at once.
const RETRY: Duration = Duration::from_millis(50);

/// Serves until the server stops; then lets open requests end.
pub async fn serve(server: Arc<ApiServer>, listener: TcpListener, tls: TlsAcceptor) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = server.stopping() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, _)) => {
                connections.spawn(connection(Arc::clone(&server), socket, tls.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "no connection could be accepted");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    drop(listener);
    let ended = tokio::time::timeout(DRAIN, async { while connections.join_next().await.is_some() {} });
    if ended.await.is_err() {
        tracing::info!(open = connections.len(), "connections were cut at the stop");
    }
}

async fn connection(server: Arc<ApiServer>, socket: TcpStream, tls: TlsAcceptor) {
    // Small answers must not wait for more to come.
    let _ = socket.set_nodelay(true);
    let mut stream = match tokio::time::timeout(PATIENCE, tls.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let certificate = certificate.map(|it| PeerCertificate(it.as_ref().into()));
    let api = Api(Arc::clone(&server)).map_request(move |mut request: http::Request<hyper::body::Incoming>| {
        if let Some(certificate) = &certificate {
            request.extensions_mut().insert(certificate.clone());
        }
        request
    });
    let service = TowerToHyperService::new(api);
    // Spoken is what was agreed on: hyper's guess at it would wait for the first bytes for ever.
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
        let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
        return drive(&server, connection, http1::UpgradeableConnection::graceful_shutdown).await;
    }
    // hyper waits for the preface for ever too.
    let mut preface = [0; PREFACE_BYTES];
    if !matches!(
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut preface)).await,
        Ok(Ok(_))
    ) {
        return;
    }
    let (read, write) = tokio::io::split(stream);
    let stream = tokio::io::join(Cursor::new(preface).chain(read), write);
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(30))
        .max_concurrent_streams(1000);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    drive(&server, connection, http2::Connection::graceful_shutdown).await;
}

/// Serves a connection to its end; when the server stops, to the end of what is being answered.
async fn drive<C>(server: &ApiServer, connection: C, shut_down: impl FnOnce(Pin<&mut C>))
where
    C: Future<Output = hyper::Result<()>>,
{
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = server.stopping() => {
            shut_down(connection.as_mut());
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// Binds the socket.
///
/// # Errors
/// Names the address.
pub async fn bind(address: std::net::SocketAddr) -> io::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))
}
