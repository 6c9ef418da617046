//! Requests that are forwarded: to a node's kubelet (log, exec, attach, port-forward, nodes/proxy) and to pods and Services
//! (proxy). Upgraded connections are tunnelled byte by byte, so that WebSocket v5 and v4, SPDY, and SPDY inside WebSocket
//! all pass: what is spoken is between client and kubelet.

mod connect;
mod target;

use crate::{
    handlers::Call,
    http::{Body, body},
    status::{Result, Status},
};
use bytes::Bytes;
pub(crate) use connect::OutgoingTls;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use std::{sync::Arc, time::Duration};

/// Time until there must be a connection.
const PATIENCE: Duration = Duration::from_secs(30);

/// Headers that speak of one connection only (RFC 9110 §7.6.1), and those that say who asks: the kubelet knows this server
/// by its certificate and needs no client's secrets.
const NOT_FORWARDED: [HeaderName; 9] = [
    header::CONNECTION,
    header::HOST,
    header::AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::CONTENT_LENGTH,
];

/// Answers `log`, `exec`, `attach`, `portforward` and `proxy`.
pub(crate) async fn forward(call: &Arc<Call>, bytes: Bytes) -> Result<Response<Body>> {
    let Some(target) = target::find(call)? else {
        let mut nothing = Response::new(body::full(Bytes::new()));
        *nothing.status_mut() = StatusCode::NO_CONTENT;
        return Ok(nothing);
    };
    let upgrade = upgrade_of(&call.headers);
    let mut request = Request::builder()
        .method(call.method.clone())
        .uri(&target.path_and_query);
    if let Some(headers) = request.headers_mut() {
        copy_headers(&call.headers, headers);
        if let Some(protocol) = &upgrade {
            headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
            headers.insert(header::UPGRADE, protocol.clone());
        }
    }
    let request = request
        .header(header::HOST, &target.authority)
        .body(Full::new(bytes))
        .map_err(Status::internal)?;
    let unreachable = |error: &dyn std::fmt::Display| {
        Status::new(
            StatusCode::BAD_GATEWAY,
            "ServiceUnavailable",
            format!("error dialing {}: {error}", target.authority),
        )
    };
    let connected = tokio::time::timeout(PATIENCE, connect::connect(&target, &call.server.outgoing)).await;
    let mut sender = match connected {
        Ok(Ok(sender)) => sender,
        Ok(Err(error)) => return Err(unreachable(&error)),
        Err(_) => return Err(unreachable(&"no connection within 30 s")),
    };
    // The answer may take as long as it takes: the log of a silent container begins with its first line.
    let mut response = tokio::select! {
        () = call.server.stopping() => return Err(Status::unavailable("the server is stopping")),
        answered = sender.send_request(request) => answered.map_err(|error| unreachable(&error))?,
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let client = call
            .on_upgrade
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take();
        let Some(client) = client else {
            return Err(Status::bad_request("this connection cannot be upgraded: use http/1.1"));
        };
        let kubelet = hyper::upgrade::on(&mut response);
        tokio::spawn(tunnel(Arc::clone(call), client, kubelet));
        let mut answer = Response::new(body::full(Bytes::new()));
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *answer.headers_mut() = response.headers().clone();
        return Ok(answer);
    }
    let (parts, incoming) = response.into_parts();
    if call.info.subresource == "log" && !parts.status.is_success() {
        return Err(refusal(parts.status, incoming).await);
    }
    let mut answer = Response::new(incoming.map_err(Into::into).boxed_unsync());
    *answer.status_mut() = parts.status;
    copy_headers(&parts.headers, answer.headers_mut());
    answer.extensions_mut().insert(body::Endless);
    Ok(answer)
}

/// A kubelet says in plain text why there is no log; clients expect a Status with that text.
async fn refusal(code: StatusCode, body: hyper::body::Incoming) -> Status {
    const MOST: usize = 64 << 10;
    let text = http_body_util::Limited::new(body, MOST).collect().await;
    let text = text.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim_end().to_owned();
    match code {
        StatusCode::BAD_REQUEST => Status::bad_request(text),
        StatusCode::NOT_FOUND => Status::new(code, "NotFound", text),
        StatusCode::UNAUTHORIZED => Status::new(code, "Unauthorized", text),
        StatusCode::FORBIDDEN => Status::new(code, "Forbidden", text),
        StatusCode::TOO_MANY_REQUESTS => Status::new(code, "TooManyRequests", text),
        code => Status::new(code, "InternalError", text),
    }
}

/// The protocol that the client wants to change to.
fn upgrade_of(headers: &HeaderMap) -> Option<header::HeaderValue> {
    let connection = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|it| it.to_str().ok());
    let asks = connection
        .flat_map(|it| it.split(','))
        .any(|it| it.trim().eq_ignore_ascii_case("upgrade"));
    headers.get(header::UPGRADE).filter(|_| asks).cloned()
}

fn copy_headers(from: &HeaderMap, to: &mut HeaderMap) {
    for (name, value) in from {
        let private = NOT_FORWARDED.contains(name)
            || *name == header::UPGRADE
            || name.as_str().starts_with("impersonate-")
            || name.as_str() == "keep-alive";
        if !private {
            to.append(name.clone(), value.clone());
        }
    }
}

/// Carries bytes both ways until one side ends, or the server stops.
async fn tunnel(call: Arc<Call>, client: hyper::upgrade::OnUpgrade, kubelet: hyper::upgrade::OnUpgrade) {
    let (client, kubelet) = match tokio::try_join!(client, kubelet) {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(%error, "a connection could not be taken over");
            return;
        }
    };
    let (mut client, mut kubelet) = (TokioIo::new(client), TokioIo::new(kubelet));
    tokio::select! {
        () = call.server.stopping() => {}
        ended = tokio::io::copy_bidirectional(&mut client, &mut kubelet) => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a forwarded connection broke off");
            }
        }
    }
}
