//! Sockets, TLS, http/1.1 and h2 in bad hands.

use crate::{requests::MAPS, support::TestServer};
use bytes::Bytes;
use fairlead_apiserver::Settings;
use fairlead_store::testing::EtcdDouble;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, api::ListParams};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName},
};

/// A guard against a test that never ends; nothing is measured with it.
const FOR_EVER: Duration = Duration::from_secs(120);

async fn tls(server: &TestServer, protocols: &[&[u8]]) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(server.running.pki.authority.der().clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|it| it.to_vec()).collect();
    let socket = TcpStream::connect(server.running.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, socket)
        .await
        .unwrap()
}

/// A usual client is served.
async fn others_are_served(server: &TestServer) {
    let maps: Api<ConfigMap> = Api::namespaced(server.client().await, "default");
    let list = tokio::time::timeout(FOR_EVER, maps.list(&ListParams::default())).await;
    list.expect("others wait").unwrap();
    assert_eq!(server.running.server.metrics.faults(), 0);
}

#[tokio::test]
async fn half_open_connections() {
    let server = TestServer::start().await;
    let mut open = Vec::new();
    for n in 0..2_000 {
        let mut socket = TcpStream::connect(server.running.address).await.unwrap();
        if n % 2 == 0 {
            // The beginning of a ClientHello, and of nothing.
            let start: &[u8] = if n % 4 == 0 {
                &[22, 3, 1, 2, 0, 1]
            } else {
                b"GET / HTTP/1.1\r\n"
            };
            // The server may have closed it already.
            let _ = socket.write_all(start).await;
        }
        open.push(socket);
    }
    others_are_served(&server).await;
    // Nobody waits for them for ever.
    for mut socket in open {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(FOR_EVER, socket.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "a half-open connection stays");
    }
}

#[tokio::test]
async fn clients_that_never_finish_their_headers() {
    let server = TestServer::start().await;
    let mut open = Vec::new();
    for (protocols, start) in [
        (&[][..], &b""[..]),
        (&[], b"P"),
        (&[], b"PRI * HT"),
        (&[], b"GET /version HTTP/1.1\r\nhost: x\r\nx-a:"),
        (&[&b"http/1.1"[..]], b"GET /version HT"),
        (&[b"http/1.1"], b"PRI * HTTP/2.0\r\n\r\nS"),
        (&[b"h2"], b""),
        (&[b"h2"], b"PRI * HTTP/2.0\r\n\r\nS"),
    ] {
        let mut stream = tls(&server, protocols).await;
        stream.write_all(start).await.unwrap();
        stream.flush().await.unwrap();
        open.push((stream, start));
    }
    others_are_served(&server).await;
    for (mut stream, start) in open {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(FOR_EVER, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "{:?} waits for ever", String::from_utf8_lossy(start));
    }
}

#[tokio::test]
async fn floods_of_headers() {
    let server = TestServer::start().await;
    let many: String = (0..2_000).map(|n| format!("x-{n}: y\r\n")).collect();
    let long = format!("x: {}\r\n", "y".repeat(2 << 20));
    for headers in [many, long] {
        let mut stream = tls(&server, &[b"http/1.1"]).await;
        let request = format!("GET /version HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
        // The server may close it before all is written.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = vec![0; 12];
        let read = tokio::time::timeout(FOR_EVER, stream.read_exact(&mut answer))
            .await
            .unwrap();
        if read.is_ok() {
            assert_eq!(&answer[..], b"HTTP/1.1 431");
        }
        others_are_served(&server).await;
    }
}

#[tokio::test]
async fn streams_opened_and_dropped() {
    let server = TestServer::start().await;
    let stream = tls(&server, &[b"h2"]).await;
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let mut refused = false;
    for _ in 0..20_000 {
        let request = http::Request::builder()
            .uri(format!("https://localhost{MAPS}"))
            .body(Empty::<Bytes>::new())
            .unwrap();
        if sender.ready().await.is_err() {
            refused = true;
            break;
        }
        // Dropped before it is answered: a reset.
        drop(futures::FutureExt::now_or_never(sender.send_request(request)));
        tokio::task::yield_now().await;
    }
    println!("the connection was {}", if refused { "closed" } else { "kept" });
    others_are_served(&server).await;
    connection.abort();
}

#[tokio::test]
async fn more_at_one_time_than_there_is_room_for() {
    let settings = Settings {
        max_reads: 2,
        max_writes: 1,
        ..Settings::default()
    };
    let server = TestServer::over(Arc::new(EtcdDouble::new()), settings).await;
    let slow = |method: http::Method| {
        // A body that never comes holds its place until the request's time is over.
        let body = StreamBody::new(futures::stream::pending::<
            Result<http_body::Frame<Bytes>, std::io::Error>,
        >());
        let request = http::Request::builder().method(method).uri(MAPS).body(body).unwrap();
        let mut answer = Box::pin(tower::ServiceExt::oneshot(server.admin(), request));
        assert!(futures::FutureExt::now_or_never(&mut answer).is_none());
        answer
    };
    let held = [
        slow(http::Method::GET),
        slow(http::Method::GET),
        slow(http::Method::POST),
    ];
    for method in [http::Method::GET, http::Method::POST] {
        let request = http::Request::builder()
            .method(method)
            // An end of a path is no way around.
            .uri(format!("{MAPS}/z"))
            .body(Empty::<Bytes>::new())
            .unwrap();
        let response = tower::ServiceExt::oneshot(server.admin(), request).await.unwrap();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "1");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let status: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(status["reason"], "TooManyRequests");
    }
    let (code, _) = server.get("/readyz").await;
    assert_eq!(code, 200);
    drop(held);
    assert_eq!(server.get(MAPS).await.0, 200, "places are given back");
}
