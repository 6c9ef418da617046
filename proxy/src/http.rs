//! The metrics port: `/metrics`, `/proxyMode`, `/configz`, `/healthz` as kube-proxy has them, and `/status`.

use crate::{
    config::KubeProxyConfiguration,
    health::json,
    metrics::{Format, Metrics},
    status::StatusHolder,
};
use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::get,
};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::net::TcpListener;

/// How long `/status?applied_at_least=N` waits at most.
pub const LONG_POLL: Duration = Duration::from_secs(30);

/// What the metrics port answers from.
#[derive(Clone, Debug)]
pub struct Shared {
    /// `/status`, `/proxyMode`.
    pub status: StatusHolder,
    /// `/metrics`.
    pub metrics: Arc<Metrics>,
    /// `/configz`.
    pub config: Arc<KubeProxyConfiguration>,
}

/// The routes of the metrics port.
pub fn metrics_router(shared: Shared) -> Router {
    Router::new()
        .route("/metrics", get(scrape))
        .route(
            "/proxyMode",
            get(async |State(shared): State<Shared>| plain(shared.status.get().mode)),
        )
        .route("/configz", get(configz))
        .route("/healthz", get(async || plain("ok".to_owned())))
        .route("/status", get(status))
        .with_state(shared)
}

/// Plain text with the headers that kube-proxy sets.
fn plain(text: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, text).into_response()
}

async fn scrape(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    let format = Format::negotiate(headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()));
    // Reading maps is system calls: not on a worker that others wait for.
    let body = tokio::task::spawn_blocking(move || shared.metrics.encode(format)).await;
    match body {
        Ok(body) => ([(header::CONTENT_TYPE, format.content_type())], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn configz(State(shared): State<Shared>) -> Response {
    let body = serde_json::json!({ "kubeproxy.config.k8s.io": &*shared.config });
    json(StatusCode::OK, body.to_string())
}

/// The status, with `?applied_at_least=N` as soon as N batches are in the kernel or [`LONG_POLL`] is over; the reader
/// tells the two apart by `applied_events`.
async fn status(State(shared): State<Shared>, uri: Uri) -> Response {
    match applied_at_least(uri.query()) {
        Ok(None) => {}
        Ok(Some(batches)) => {
            _ = tokio::time::timeout(LONG_POLL, shared.status.applied_at_least(batches)).await;
        }
        Err(text) => {
            let reason = format!("applied_at_least={text:?} is not a number of batches\n");
            return (StatusCode::BAD_REQUEST, reason).into_response();
        }
    }
    let answer = tokio::task::spawn_blocking(move || {
        let mut status = shared.status.get();
        status.maps = shared.metrics.maps();
        serde_json::to_string(&status).map_err(|error| error.to_string())
    });
    match answer.await.map_err(|error| error.to_string()).flatten() {
        Ok(body) => json(StatusCode::OK, body),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
    }
}

/// The parameter's value, if it is there; `Err` with the text if it is no number.
fn applied_at_least(query: Option<&str>) -> Result<Option<u64>, String> {
    let mut pairs = query
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='));
    match pairs.find(|(name, _)| *name == "applied_at_least") {
        Some((_, text)) => text.parse().map(Some).map_err(|_| text.to_owned()),
        None => Ok(None),
    }
}

/// An address that cannot be served on.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve on {address}: {source}; {remedy}")]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// What to do.
    pub remedy: String,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// Listens on `address`; `flag` is the one that changes it, with dashes.
///
/// # Errors
/// The address is taken, not local, or not allowed.
pub async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| {
        let remedy = match source.kind() {
            io::ErrorKind::AddrInUse => format!("stop what holds the port (kube-proxy?) or choose another with {flag}"),
            io::ErrorKind::AddrNotAvailable => format!("give an address of this host with {flag}"),
            io::ErrorKind::PermissionDenied => format!("run as root or choose a port from 1024 on with {flag}"),
            _ => format!("choose another address with {flag}"),
        };
        BindError {
            address,
            remedy,
            source,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Status;
    use axum::{body::Body, http::Request};
    use tower::ServiceExt;

    fn shared() -> Shared {
        Shared {
            status: StatusHolder::new(Status {
                mode: "ebpf".to_owned(),
                ..Status::default()
            }),
            metrics: Arc::new(Metrics::new()),
            config: Arc::new(KubeProxyConfiguration {
                mode: "ebpf".to_owned(),
                ..Default::default()
            }),
        }
    }

    async fn get_from(shared: &Shared, path: &str) -> (StatusCode, HeaderMap, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = metrics_router(shared.clone()).oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        (parts.status, parts.headers, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn what_kube_proxy_answers() {
        let shared = shared();
        let (code, headers, body) = get_from(&shared, "/proxyMode").await;
        assert_eq!((code.as_u16(), body.as_str()), (200, "ebpf"));
        assert_eq!(headers["content-type"], "text/plain; charset=utf-8");
        let (_, headers, body) = get_from(&shared, "/configz").await;
        assert_eq!(headers["content-type"], "application/json");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["kubeproxy.config.k8s.io"]["mode"], "ebpf");
        assert_eq!(get_from(&shared, "/healthz").await.2, "ok");
        let (_, headers, body) = get_from(&shared, "/metrics").await;
        assert_eq!(headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
        assert!(body.contains("kubeproxy_sync_proxy_rules_service_changes_total 0\n"));
    }

    #[tokio::test]
    async fn status_round_trips() {
        let shared = shared();
        shared.status.update(|status| status.applied_events = 3);
        let (_, _, body) = get_from(&shared, "/status").await;
        assert_eq!(serde_json::from_str::<Status>(&body).unwrap(), shared.status.get());
        assert_eq!(
            get_from(&shared, "/status?applied_at_least=x").await.0,
            StatusCode::BAD_REQUEST
        );
    }

    #[tokio::test]
    async fn status_waits_for_a_batch() {
        let shared = shared();
        let waiting = tokio::spawn({
            let shared = shared.clone();
            async move { get_from(&shared, "/status?applied_at_least=2").await.2 }
        });
        for applied in [1, 2] {
            tokio::task::yield_now().await;
            shared.status.update(|status| status.applied_events = applied);
        }
        let status: Status = serde_json::from_str(&waiting.await.unwrap()).unwrap();
        assert_eq!(status.applied_events, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn status_does_not_wait_forever() {
        let before = tokio::time::Instant::now();
        let (code, _, body) = get_from(&shared(), "/status?applied_at_least=1").await;
        assert_eq!(code, 200);
        assert_eq!(before.elapsed().as_secs(), LONG_POLL.as_secs());
        assert_eq!(serde_json::from_str::<Status>(&body).unwrap().applied_events, 0);
    }

    #[tokio::test]
    async fn over_a_real_socket() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = bind("127.0.0.1:0".parse().unwrap(), "--metrics-bind-address")
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let error = bind(address, "--metrics-bind-address").await.unwrap_err().to_string();
        assert!(
            error.contains(&address.to_string()) && error.contains("--metrics-bind-address"),
            "{error}"
        );
        let server = tokio::spawn(async move { axum::serve(listener, metrics_router(shared())).await });
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET /proxyMode HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(
            text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\nebpf"),
            "{text}"
        );
        server.abort();
    }
}
