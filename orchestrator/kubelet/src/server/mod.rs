//! The kubelet's own HTTPS port: logs, streams into containers, what runs here and what it uses. The API server forwards to
//! it; metrics collectors ask it directly.

mod auth;
mod pods;
mod query;
mod route;
mod stats;
mod streams;
mod tls;

pub use tls::{TlsError, tls_config};

use crate::{
    cri::{Runtime, v1},
    logs,
    table::PodTable,
};
use auth::{Door, User};
use bytes::Bytes;
use futures::{FutureExt as _, TryStreamExt as _};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use jiff::Timestamp;
use query::Query;
use route::{Place, Route};
use serde_json::json;
use std::{convert::Infallible, io, sync::Arc, time::Duration};
use streams::{Streams, What};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

type Body = UnsyncBoxBody<Bytes, logs::LogError>;

/// What the server shows, and whom it asks.
pub struct State {
    /// Name of this node: rights are asked for `nodes/<subresource>` of it.
    pub node_name: String,
    /// What runs here.
    pub table: Arc<PodTable>,
    /// Where it runs.
    pub runtime: Runtime,
    /// Reviews tokens and rights, as this node.
    pub client: kube::Client,
    /// The settings in effect, for `/configz`.
    pub config: serde_json::Value,
    /// The kubelet's own metrics in Prometheus' text format, for `/metrics`.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

/// How long a client has for the TLS handshake, and for the head of each request.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves until `stop`. Connections end with it.
///
/// # Errors
/// A listener that cannot be used any more.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    state: State,
    stop: CancellationToken,
) -> io::Result<()> {
    let door = Door::new(state.client.clone(), state.node_name.clone());
    let shared = Arc::new(Shared { state, door, stop });
    let acceptor = TlsAcceptor::from(tls);
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.stop.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let socket = match accepted {
            Ok((socket, _)) => socket,
            // A client that went away at once, or no descriptor free: there may be one soon.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "a connection to the kubelet's port was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            let stop = shared.stop.clone();
            stop.run_until_cancelled(connection(acceptor, socket, shared)).await;
        });
    }
}

async fn connection(acceptor: TlsAcceptor, socket: TcpStream, shared: Arc<Shared>) {
    // Lines of logs and keystrokes are small and must not wait for each other.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "nodelay");
    }
    let stream = match tokio::time::timeout(PATIENCE, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake with the kubelet failed"),
        Err(_) => return tracing::debug!("a TLS handshake with the kubelet took too long"),
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let user = certificates
        .and_then(<[_]>::first)
        .and_then(User::of_certificate)
        .map(Arc::new);
    let service = service_fn(move |request| {
        let (shared, user) = (Arc::clone(&shared), user.clone());
        async move { Ok::<_, Infallible>(answer(&shared, user.as_deref(), request).await) }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    server.http2().timer(TokioTimer::new());
    let served = server
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the kubelet's port ended");
    }
}

struct Shared {
    state: State,
    door: Door,
    stop: CancellationToken,
}

/// A request that is not served: code and text, which kubectl shows.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    code: StatusCode,
    text: String,
}

impl Refusal {
    fn new(code: StatusCode, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { code, text }
    }
}

impl From<crate::cri::RuntimeError> for Refusal {
    fn from(error: crate::cri::RuntimeError) -> Self {
        let code = match error.code {
            _ if error.is_not_found() => StatusCode::NOT_FOUND,
            tonic::Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(code, error.to_string())
    }
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

fn typed(kind: &'static str, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
/// Source: Prometheus' text exposition format.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

async fn answer(shared: &Arc<Shared>, certificate: Option<&User>, request: Request<Incoming>) -> Response<Body> {
    match served(shared, certificate, request).await {
        Ok(response) => response,
        Err(refusal) => {
            let mut response = typed(TEXT, refusal.text);
            *response.status_mut() = refusal.code;
            response
        }
    }
}

async fn served(
    shared: &Arc<Shared>,
    certificate: Option<&User>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let user = shared.door.who(certificate, request.headers()).await?;
    let Some(route) = Route::parse(request.uri().path()) else {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "404 page not found"));
    };
    if !route.allows(request.method()) {
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed"));
    }
    shared.door.may(&user, &route).await?;
    let state = &shared.state;
    let query = Query::of(request.uri());
    Ok(match route {
        Route::Healthz => typed(TEXT, "ok"),
        Route::Metrics => typed(METRICS, (state.metrics)()),
        Route::Configz => typed(JSON, json!({ "kubeletconfig": state.config }).to_string()),
        Route::Pods => {
            let pods: Vec<_> = state.table.all().into_iter().map(|it| Arc::clone(&it.pod)).collect();
            let pods: Vec<&k8s_openapi::api::core::v1::Pod> = pods.iter().map(|it| &**it).collect();
            let list = json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods });
            typed(JSON, list.to_string())
        }
        Route::MetricsResource => {
            let (stats, failed) = match state.runtime.container_stats(None).await {
                Ok(stats) => (stats, false),
                Err(error) => {
                    tracing::warn!(%error, "no figures of containers");
                    (Vec::new(), true)
                }
            };
            typed(METRICS, stats::resource_metrics(&stats, node_usage()?, failed))
        }
        Route::StatsSummary => {
            let stats = state.runtime.container_stats(None).await?;
            let summary = stats::summary(&state.node_name, &stats, node_usage()?, Timestamp::now());
            typed(JSON, summary.to_string())
        }
        Route::Logs(place) => log(state, &place, &query).await?,
        Route::Run(place) => run(state, &place, &query).await?,
        Route::Exec(place) => {
            let (streams, container_id) = command(state, &place, &query)?;
            let exec = v1::ExecRequest {
                container_id,
                cmd: query.all("command"),
                tty: streams.tty,
                stdin: streams.stdin,
                stdout: streams.stdout,
                stderr: streams.stderr,
            };
            if exec.cmd.is_empty() {
                return Err(Refusal::new(StatusCode::BAD_REQUEST, "you must specify a command"));
            }
            let address = async { Ok(state.runtime.exec(exec).await?) }.boxed();
            streams::connect(request, What::Command(streams), address, shared.stop.clone()).await?
        }
        Route::Attach(place) => {
            let (mut streams, container_id) = command(state, &place, &query)?;
            // Whether there is a terminal was decided when the container was made.
            let spec = pods::pod(&state.table, &place)?;
            streams.tty = has_terminal(&spec.pod, &place.container);
            streams.stderr &= !streams.tty;
            let attach = v1::AttachRequest {
                container_id,
                tty: streams.tty,
                stdin: streams.stdin,
                stdout: streams.stdout,
                stderr: streams.stderr,
            };
            let address = async { Ok(state.runtime.attach(attach).await?) }.boxed();
            streams::connect(request, What::Command(streams), address, shared.stop.clone()).await?
        }
        Route::PortForward(place) => {
            let pod = pods::pod(&state.table, &place)?;
            let Some(pod_sandbox_id) = pod.sandbox_id.clone() else {
                let text = format!("pod {:?} is not running", place.pod);
                return Err(Refusal::new(StatusCode::NOT_FOUND, text));
            };
            let forward = v1::PortForwardRequest {
                pod_sandbox_id,
                port: query.ports()?,
            };
            let address = async { Ok(state.runtime.port_forward(forward).await?) }.boxed();
            streams::connect(request, What::Ports, address, shared.stop.clone()).await?
        }
    })
}

fn node_usage() -> Result<stats::NodeUsage, Refusal> {
    let failed = |error: io::Error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("/proc: {error}"));
    stats::NodeUsage::read().map_err(failed)
}

fn command(state: &State, place: &Place, query: &Query) -> Result<(Streams, String), Refusal> {
    let streams = query.streams()?;
    let pod = pods::pod(&state.table, place)?;
    Ok((streams, pods::running(&pod, place)?))
}

/// `tty` of a container.
fn has_terminal(pod: &k8s_openapi::api::core::v1::Pod, container: &str) -> bool {
    let Some(spec) = &pod.spec else {
        return false;
    };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut found = containers.filter(|it| it.name == container).map(|it| it.tty);
    let mut ephemeral = spec.ephemeral_containers.iter().flatten();
    let tty = found
        .next()
        .or_else(|| ephemeral.find(|it| it.name == container).map(|it| it.tty));
    tty.flatten() == Some(true)
}

async fn log(state: &State, place: &Place, query: &Query) -> Result<Response<Body>, Refusal> {
    let options = query.log_options(Timestamp::now())?;
    let pod = pods::pod(&state.table, place)?;
    let log = pods::log(&pod, place, query.is_set("previous"))?;
    let (runtime, id) = (state.runtime.clone(), log.container_id);
    let alive: logs::Alive = Arc::new(move || {
        let (runtime, id) = (runtime.clone(), id.clone());
        async move {
            match runtime.container_status(&id).await {
                Ok(status) => !matches!(status.state(), v1::ContainerState::ContainerExited),
                // A runtime that is away says nothing about the container.
                Err(error) => !error.is_not_found(),
            }
        }
        .boxed()
    });
    let stream = logs::open(&log.path, options, alive).await;
    let stream = stream.map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let body = StreamBody::new(stream.map_ok(Frame::data));
    let mut response = Response::new(body.boxed_unsync());
    let kind = HeaderValue::from_static("text/plain");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// Runs a command to its end and answers with what it said. The command is one text, split at spaces. Source: the kubelet's
/// `/run`.
async fn run(state: &State, place: &Place, query: &Query) -> Result<Response<Body>, Refusal> {
    let pod = pods::pod(&state.table, place)?;
    let id = pods::running(&pod, place)?;
    let text = query.all("cmd").concat();
    let command: Vec<String> = text.split(' ').map(str::to_owned).collect();
    let answer = state.runtime.exec_sync(&id, command, Duration::ZERO).await?;
    let mut output = [answer.stdout, answer.stderr].concat();
    if answer.exit_code != 0 {
        output.extend(format!("\ncommand '{text}' exited with {}", answer.exit_code).into_bytes());
        let text = String::from_utf8_lossy(&output).into_owned();
        return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, text));
    }
    Ok(typed(TEXT, output))
}
