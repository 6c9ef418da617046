//! A stand-in for a kubelet: logs, exec and attach of containers that do what they are told, over TLS, for who shows the
//! certificate of this cluster's API server.
#![allow(unreachable_pub, reason = "nothing else sees it")]

use fairlead_apiserver::{
    open::Running,
    pki::{Identity, Profile},
};
use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{convert::Infallible, net::Ipv4Addr, sync::Arc};
use tokio::net::TcpListener;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{self, server::WebPkiClientVerifier},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, frame::coding::CloseCode},
    },
};

/// Subprotocols it speaks, the best first. Source: k8s.io/apimachinery/pkg/util/remotecommand.
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

/// Channels of these: the first byte of every message.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const CLOSE: u8 = 255;

/// Serves until the runtime ends; returns its port.
pub async fn start(running: &Running) -> u16 {
    let profile = Profile::kubelet_serving("node", [], [Ipv4Addr::LOCALHOST.into()]);
    let authority = &running.pki.authority;
    let now_s = jiff::Timestamp::now().as_second();
    let (certificate, key) = Identity::issue(authority, &profile, now_s).unwrap().der().unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let stream = acceptor.accept(socket).await.unwrap();
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(answer))
                    .with_upgrades();
                // The other side may go when it has what it wants.
                let _ = connection.await;
            });
        }
    });
    port
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let text = |code: StatusCode, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = code;
        response
    };
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    Ok(match parts.as_slice() {
        ["healthz"] => text(StatusCode::OK, "ok".to_owned()),
        ["containerLogs", namespace, pod, container] => {
            let asked = query.replace('&', " ");
            let lines = format!("first line of {container} in {namespace}/{pod}\nasked for: {asked}\n");
            text(StatusCode::OK, lines)
        }
        ["portForward", ..] => echo(request),
        [what @ ("exec" | "attach"), ..] => upgrade(request, (*what).to_owned(), &query),
        _ => text(StatusCode::NOT_FOUND, format!("no {path}\n")),
    })
}

/// Takes the connection over for whatever protocol is asked for, and gives back every byte.
fn echo(mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let asked = [header::UPGRADE, header::SEC_WEBSOCKET_PROTOCOL];
    for name in asked {
        if let Some(value) = request.headers().get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded.await.unwrap()));
        // The other side may go when it has what it wants.
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    response
}

/// Takes the connection over as a WebSocket.
fn upgrade(mut request: Request<Incoming>, what: String, query: &str) -> Response<Full<Bytes>> {
    let header = |name| request.headers().get(name).and_then(|it| it.to_str().ok());
    let offered = header(header::SEC_WEBSOCKET_PROTOCOL).unwrap_or_default();
    let offered: Vec<&str> = offered.split(',').map(str::trim).collect();
    let protocol = PROTOCOLS.into_iter().find(|it| offered.contains(it));
    let (Some(protocol), Some(key)) = (protocol, header(header::SEC_WEBSOCKET_KEY)) else {
        let mut response = Response::new(Full::new(Bytes::from_static(b"only WebSocket")));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return response;
    };
    let key = derive_accept_key(key.as_bytes());
    let given: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let stream = TokioIo::new(upgraded.await.unwrap());
        let socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
        container(socket, &what, &given).await;
    });
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(&key).unwrap());
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    response
}

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// The commands it knows: `echo WORD…`, `cat`, `fail CODE`. Attaching is watching `echo`.
async fn container(mut socket: Socket, what: &str, given: &[(String, String)]) {
    let words: Vec<&str> = given
        .iter()
        .filter(|(name, _)| name == "command")
        .map(|(_, value)| value.as_str())
        .collect();
    let mut status = r#"{"metadata":{},"status":"Success"}"#.to_owned();
    match words.as_slice() {
        ["echo", words @ ..] => send(&mut socket, STDOUT, &format!("{}\n", words.join(" "))).await,
        ["cat"] => {
            while let Some(Ok(message)) = socket.next().await {
                match message.into_data().as_ref() {
                    [STDIN, text @ ..] => {
                        let text = String::from_utf8_lossy(text).into_owned();
                        send(&mut socket, STDOUT, &text).await;
                    }
                    [CLOSE, STDIN] => break,
                    _ => {}
                }
            }
        }
        ["fail", code] => {
            send(&mut socket, STDERR, "it failed\n").await;
            let message = format!("command terminated with non-zero exit code: {code}");
            let causes = format!(r#"{{"causes":[{{"reason":"ExitCode","message":"{code}"}}]}}"#);
            status = format!(
                r#"{{"metadata":{{}},"status":"Failure","reason":"NonZeroExitCode","message":"{message}","details":{causes}}}"#
            );
        }
        _ if what == "attach" => send(&mut socket, STDOUT, "attached\n").await,
        words => {
            let message = format!("no program {}", words.join(" "));
            status = format!(
                r#"{{"metadata":{{}},"status":"Failure","reason":"InternalError","code":500,"message":"{message}"}}"#
            );
        }
    }
    send(&mut socket, ERROR, &status).await;
    // The client may be gone already.
    let _ = socket
        .close(Some(CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        }))
        .await;
}

async fn send(socket: &mut Socket, channel: u8, text: &str) {
    let mut bytes = vec![channel];
    bytes.extend_from_slice(text.as_bytes());
    // The client may be gone already.
    let _ = socket.send(Message::Binary(bytes.into())).await;
}
