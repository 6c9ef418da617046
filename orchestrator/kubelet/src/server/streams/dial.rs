//! Connections to the runtime's stream server.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::Empty;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::net::TcpStream;

/// Time until the runtime must have answered.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks the runtime for an upgrade at an address that it has given out.
///
/// # Errors
/// In words: no connection, no answer.
pub(super) async fn dial(url: &str, method: Method, headers: HeaderMap) -> Result<Response<Incoming>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("stream server of the container runtime: {error}");
    let uri: Uri = url.parse().map_err(|error: http::uri::InvalidUri| failed(&error))?;
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http"));
    let Some(authority) = authority else {
        return Err(failed(&format!(
            "{url} is no http address; it must serve without TLS on loopback"
        )));
    };
    let mut request = Request::builder()
        .method(method)
        .uri(uri.path_and_query().map_or("/", |it| it.as_str()))
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(&error))?;
    *request.headers_mut() = headers;
    let host = HeaderValue::from_str(authority.as_str()).map_err(|error| failed(&error))?;
    request.headers_mut().insert(header::HOST, host);
    request
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    let address = (
        authority.host().trim_matches(['[', ']']).to_owned(),
        authority.port_u16().unwrap_or(80),
    );
    let asking = async {
        let socket = TcpStream::connect(address).await.map_err(|error| failed(&error))?;
        socket.set_nodelay(true).map_err(|error| failed(&error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket))
            .await
            .map_err(|error| failed(&error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to the container runtime ended");
            }
        });
        sender.send_request(request).await.map_err(|error| failed(&error))
    };
    let asked = tokio::time::timeout(PATIENCE, asking).await;
    asked.unwrap_or_else(|_| Err(failed(&"no answer within 30 s")))
}
