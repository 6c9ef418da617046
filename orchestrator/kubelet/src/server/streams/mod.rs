//! exec, attach and port-forward: a client's upgraded connection, carried to the runtime's stream server.
//!
//! | client | runtime | between |
//! |---|---|---|
//! | SPDY/3.1 | SPDY/3.1 | bytes |
//! | WebSocket v4 and older | the same | bytes |
//! | WebSocket v5 (exec, attach) | SPDY/3.1 | [`session`]: channels and streams |
//! | SPDY in WebSocket (port-forward) | SPDY/3.1 | [`carry()`]: messages and bytes |

mod carry;
mod dial;
mod session;
mod spdy;
mod way;

use super::{Body, Refusal, full};
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::sync::CancellationToken;
use way::{Purpose, Way, choose, is_passed_on};

/// Streams of a command. Source: the kubelet's names for them in the query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Streams {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) tty: bool,
}

/// What is to be carried.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    /// exec, attach
    Command(Streams),
    /// port-forward
    Ports,
}

/// Asks the runtime for an address, once it is clear that the client can use it.
pub(super) type Address<'a> = BoxFuture<'a, Result<String, Refusal>>;

/// Answers a request for streams. What is carried ends with `stop`.
///
/// # Errors
/// No upgrade, or one that the runtime does not grant.
pub(super) async fn connect(
    mut request: Request<Incoming>,
    what: What,
    address: Address<'_>,
    stop: CancellationToken,
) -> Result<Response<Body>, Refusal> {
    let purpose = match what {
        What::Command(_) => Purpose::Command,
        What::Ports => Purpose::Forward,
    };
    let way = choose(purpose, request.headers()).map_err(|text| Refusal::new(StatusCode::BAD_REQUEST, text))?;
    let accepted = match way {
        Way::Pass => None,
        Way::Translate => Some(accept(request.headers(), way::V5)?),
        Way::Unwrap => Some(accept(request.headers(), way::TUNNEL)?),
    };
    if request.extensions().get::<OnUpgrade>().is_none() {
        let text = "this connection cannot be upgraded: use HTTP/1.1";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, text));
    }
    let url = address.await?;
    let (method, headers) = match way {
        Way::Pass => (request.method().clone(), passed_on(request.headers())),
        Way::Translate => (Method::POST, spdy_headers("v4.channel.k8s.io")),
        Way::Unwrap => (Method::POST, spdy_headers("portforward.k8s.io")),
    };
    let failed = |text| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, text);
    let mut answer = dial::dial(&url, method, headers).await.map_err(failed)?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(refused(answer).await);
    }
    let response = match accepted {
        Some(response) => response,
        None => passed_back(&answer),
    };
    let (client, runtime) = (hyper::upgrade::on(&mut request), hyper::upgrade::on(&mut answer));
    tokio::spawn(async move { stop.run_until_cancelled(carry(client, runtime, way, what)).await });
    Ok(response)
}

async fn carry(client: OnUpgrade, runtime: OnUpgrade, way: Way, what: What) {
    let (client, runtime) = match futures::try_join!(client, runtime) {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(%error, "a connection could not be taken over");
            return;
        }
    };
    let (mut client, mut runtime) = (TokioIo::new(client), TokioIo::new(runtime));
    match (way, what) {
        (Way::Translate, What::Command(streams)) => {
            let wanted = session::Wanted {
                stdin: streams.stdin,
                stdout: streams.stdout,
                stderr: streams.stderr,
                tty: streams.tty,
            };
            carry::translate(carry::websocket(client).await, runtime, wanted).await;
        }
        (Way::Unwrap, _) => carry::unwrap(carry::websocket(client).await, runtime).await,
        _ => {
            if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut runtime).await {
                tracing::debug!(%error, "a carried connection broke off");
            }
        }
    }
}

/// The answer that makes a WebSocket of this request. Source: RFC 6455 §4.2.2.
fn accept(headers: &HeaderMap, protocol: &'static str) -> Result<Response<Body>, Refusal> {
    let key = headers.get(header::SEC_WEBSOCKET_KEY);
    let version = headers.get(header::SEC_WEBSOCKET_VERSION);
    let key = key.filter(|_| version.is_some_and(|it| it == "13"));
    let accept = key.and_then(|it| HeaderValue::from_str(&derive_accept_key(it.as_bytes())).ok());
    let Some(accept) = accept else {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "not a WebSocket of version 13 with a key",
        ));
    };
    let mut response = switching();
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    Ok(response)
}

fn switching() -> Response<Body> {
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response
}

fn passed_on(from: &HeaderMap) -> HeaderMap {
    let kept = from.iter().filter(|(name, _)| is_passed_on(name));
    let mut to = HeaderMap::new();
    for (name, value) in kept {
        to.append(name.clone(), value.clone());
    }
    to
}

fn passed_back(answer: &Response<Incoming>) -> Response<Body> {
    let mut response = switching();
    response.headers_mut().extend(passed_on(answer.headers()));
    response
}

fn spdy_headers(protocol: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert("x-stream-protocol-version", HeaderValue::from_static(protocol));
    headers
}

/// What the runtime says instead of an upgrade.
async fn refused(answer: Response<Incoming>) -> Response<Body> {
    const MOST: usize = 64 << 10;
    let code = answer.status();
    let text = http_body_util::Limited::new(answer.into_body(), MOST).collect().await;
    let text = text.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let mut response = Response::new(full(text));
    *response.status_mut() = code;
    response
}
