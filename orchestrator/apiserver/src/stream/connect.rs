//! One connection to a kubelet, a pod or a Service.

use super::target::{Target, Tls};
use arc_swap::ArcSwap;
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

/// How this server shows itself, and whom it believes.
pub(crate) struct OutgoingTls {
    /// To kubelets, with this server's certificate, which may do everything there. Renewed while serving.
    pub(crate) kubelet: ArcSwap<rustls::ClientConfig>,
    /// To pods and Services, as nobody: whoever may use a proxy must not act as this server.
    pub(crate) nobody: Arc<rustls::ClientConfig>,
}

/// Connects.
///
/// # Errors
/// As the system or TLS says.
pub(super) async fn connect(target: &Target, tls: &OutgoingTls) -> io::Result<SendRequest<Full<Bytes>>> {
    let socket = TcpStream::connect(&target.authority).await?;
    socket.set_nodelay(true)?;
    let config = match target.tls {
        Tls::None => return start(socket).await,
        Tls::AsNobody => Arc::clone(&tls.nobody),
        Tls::AsThisServer => tls.kubelet.load_full(),
    };
    let host = target
        .authority
        .rsplit_once(':')
        .map_or(target.authority.as_str(), |(host, _)| host);
    let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = rustls::pki_types::ServerName::try_from(name).map_err(io::Error::other)?;
    start(TlsConnector::from(config).connect(name, socket).await?).await
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
