//! One connection to a kubelet, a pod or a Service.

use super::target::Target;
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use std::{io, sync::Arc};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, rustls};

/// How this server shows itself to kubelets, and which it believes.
#[derive(Clone)]
pub(crate) struct KubeletTls(pub(crate) Arc<rustls::ClientConfig>);

impl std::fmt::Debug for KubeletTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KubeletTls")
    }
}

/// Connects.
///
/// # Errors
/// As the system or TLS says.
pub(super) async fn connect(target: &Target, tls: &KubeletTls) -> io::Result<SendRequest<Full<Bytes>>> {
    let socket = TcpStream::connect(&target.authority).await?;
    socket.set_nodelay(true)?;
    if !target.tls {
        return start(socket).await;
    }
    let host = target
        .authority
        .rsplit_once(':')
        .map_or(target.authority.as_str(), |(host, _)| host);
    let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = rustls::pki_types::ServerName::try_from(name).map_err(io::Error::other)?;
    start(TlsConnector::from(Arc::clone(&tls.0)).connect(name, socket).await?).await
}

async fn start(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> io::Result<SendRequest<Full<Bytes>>> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a forwarded connection ended");
        }
    });
    Ok(sender)
}
