//! Connections that a client takes over, tunnelled to a kubelet byte by byte: whatever protocol the two speak.

#[path = "kubectl/kubelet.rs"]
mod kubelet;
#[path = "support/mod.rs"]
mod support;

use fairlead_apiserver::pki::{Identity, Profile};
use serde_json::json;
use std::sync::Arc;
use support::TestServer;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream, rustls};

/// A server with a node, which the stand-in is, and a pod on it.
async fn server() -> TestServer {
    let server = TestServer::start().await;
    let port = kubelet::start(&server.running).await;
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node" },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }],
            "daemonEndpoints": { "kubeletEndpoint": { "Port": port } },
        },
    });
    assert_eq!(server.post("/api/v1/nodes", &node).await.0, 201);
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
    server
        .post("/api/v1/namespaces/default/serviceaccounts", &account)
        .await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" },
        "spec": { "nodeName": "node", "containers": [{ "name": "c", "image": "i" }] },
    });
    let (code, made) = server.post("/api/v1/namespaces/default/pods", &pod).await;
    assert_eq!(code, 201, "{made}");
    server
}

async fn connect(server: &TestServer, profile: &Profile) -> TlsStream<TcpStream> {
    let authority = &server.running.pki.authority;
    let now_s = jiff::Timestamp::now().as_second();
    let (certificate, key) = Identity::issue(authority, profile, now_s).unwrap().der().unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], key)
        .unwrap();
    let address = server.running.address;
    let socket = TcpStream::connect(address).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(address.ip().into(), socket).await.unwrap()
}

/// Sends the head of a request; the head of the answer.
async fn ask(stream: &mut TlsStream<TcpStream>, method: &str, headers: &str) -> String {
    let path = "/api/v1/namespaces/default/pods/p/portforward?ports=80";
    let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n{headers}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(answer).unwrap().to_ascii_lowercase()
}

const PROTOCOLS: [(&str, &str, &str); 2] = [
    ("POST", "Upgrade: SPDY/3.1", "upgrade: spdy/3.1"),
    (
        "GET",
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io",
        "sec-websocket-protocol: spdy/3.1+portforward.k8s.io",
    ),
];

#[tokio::test]
async fn a_taken_over_connection_carries_every_byte_both_ways() {
    let server = server().await;
    for (method, headers, agreed) in PROTOCOLS {
        let mut stream = connect(&server, &Profile::admin()).await;
        let answer = ask(&mut stream, method, headers).await;
        assert!(
            answer.starts_with("http/1.1 101 ") && answer.contains(agreed),
            "{answer}"
        );
        // More than any buffer on the way holds, so that both directions must move at once.
        let sent: Vec<u8> = (0..4_000_000u32).map(|n| (n % 251) as u8).collect();
        let (mut read, mut write) = tokio::io::split(stream);
        let mut back = vec![0; sent.len()];
        // TLS keeps what the socket does not take at once until it is flushed.
        let send = async {
            write.write_all(&sent).await?;
            write.flush().await
        };
        let (written, got) = tokio::join!(send, read.read_exact(&mut back));
        written.unwrap();
        got.unwrap();
        assert!(back == sent, "{method}: bytes changed on the way");
    }
}

#[tokio::test]
async fn who_may_not_gets_no_connection() {
    let server = server().await;
    for (method, headers, _) in PROTOCOLS {
        let mut stream = connect(&server, &Profile::user("jane", None)).await;
        let answer = ask(&mut stream, method, headers).await;
        assert!(answer.starts_with("http/1.1 403 "), "{answer}");
    }
}
