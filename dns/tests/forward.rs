//! Forwarding and caching, against upstreams of the test that are slow, wrong, cut short, failing or dead.

mod support;

use fairlead_dns::Source;
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, SOA},
    },
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};
use support::{Running, ask_by_udp, nobody, packet, page, tell};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UdpSocket},
    sync::Semaphore,
};

/// Answers by the first label of a name, and remembers who asked what how.
struct Upstream {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    /// Lets `slow` names go, one permit each.
    gate: Arc<Semaphore>,
}

impl Upstream {
    async fn start() -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = Arc::new(UdpSocket::bind(address).await.unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let gate = Arc::new(Semaphore::new(0));
        let (log, slow) = (Arc::clone(&asked), Arc::clone(&gate));
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            loop {
                let (length, peer) = udp.recv_from(&mut buffer).await.unwrap();
                let query = Message::from_vec(&buffer[..length]).unwrap();
                let name = query.queries[0].name().to_string();
                log.lock().unwrap().push(format!("udp {name}"));
                let (udp, slow) = (Arc::clone(&udp), Arc::clone(&slow));
                tokio::spawn(async move {
                    if name.starts_with("slow") {
                        slow.acquire().await.unwrap().forget();
                    }
                    if name.starts_with("lost") {
                        return;
                    }
                    if name.starts_with("wrong") {
                        // Somebody else's id, somebody else's name, half an answer: none is to be believed.
                        let mut forged = answer(&query, false);
                        forged.metadata.id = forged.metadata.id.wrapping_add(1);
                        udp.send_to(&forged.to_vec().unwrap(), peer).await.unwrap();
                        let mut other = query.clone();
                        other.queries[0].set_name(Name::from_ascii("other.example.").unwrap());
                        udp.send_to(&answer(&other, false).to_vec().unwrap(), peer)
                            .await
                            .unwrap();
                        let whole = answer(&query, false).to_vec().unwrap();
                        udp.send_to(&whole[..whole.len() - 3], peer).await.unwrap();
                    }
                    udp.send_to(&answer(&query, false).to_vec().unwrap(), peer)
                        .await
                        .unwrap();
                });
            }
        });
        let log = Arc::clone(&asked);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let log = Arc::clone(&log);
                tokio::spawn(async move {
                    while let Ok(length) = stream.read_u16().await {
                        let mut packet = vec![0; usize::from(length)];
                        stream.read_exact(&mut packet).await.unwrap();
                        let query = Message::from_vec(&packet).unwrap();
                        log.lock().unwrap().push(format!("tcp {}", query.queries[0].name()));
                        let answer = answer(&query, true).to_vec().unwrap();
                        stream.write_u16(answer.len().try_into().unwrap()).await.unwrap();
                        stream.write_all(&answer).await.unwrap();
                    }
                });
            }
        });
        Self { address, asked, gate }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn answer(query: &Message, tcp: bool) -> Message {
    let mut message = query.clone().into_response();
    message.metadata.recursion_available = true;
    message.metadata.response_code = ResponseCode::NoError;
    message.answers.clear();
    let name = query.queries[0].name().clone();
    let address = |last: u8| Record::from_rdata(name.clone(), 300, RData::A(A(Ipv4Addr::new(192, 0, 2, last))));
    match name.to_string().split('.').next().unwrap() {
        "none" => {
            message.metadata.response_code = ResponseCode::NXDomain;
            let zone = Name::from_ascii("example.").unwrap();
            let soa = SOA::new(zone.clone(), zone.clone(), 1, 2, 3, 4, 20);
            message.authorities.push(Record::from_rdata(zone, 300, RData::SOA(soa)));
        }
        "fail" => message.metadata.response_code = ResponseCode::ServFail,
        "big" if !tcp => message.metadata.truncation = true,
        "big" => message.answers.extend((0..100).map(address)),
        _ => message.answers.push(address(1)),
    }
    message
}

async fn serve(upstreams: &[SocketAddr], options: &str, rest: &str) -> Running {
    let to: Vec<String> = upstreams.iter().map(ToString::to_string).collect();
    let text = format!(
        ". {{\n prometheus\n forward . {} {{\n{options}\n}}\n{rest}\n}}",
        to.join(" ")
    );
    Running::start(Source::Text(text), nobody()).await
}

/// An address where nobody answers, and nobody else comes.
async fn dead() -> (SocketAddr, UdpSocket) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    (socket.local_addr().unwrap(), socket)
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_fetched_and_kept() {
    let upstream = Upstream::start().await;
    let server = serve(&[upstream.address], "", "cache 30").await;
    let first = server.ask("a.example", RecordType::A).await;
    assert_eq!(
        (tell(&first).as_str(), first.answers[0].ttl),
        ("NOERROR A 192.0.2.1;", 30)
    );
    assert!(first.metadata.recursion_available);
    for name in ["a.example", "A.exAMPLE"] {
        let again = server.ask(name, RecordType::A).await;
        assert_eq!(tell(&again), "NOERROR A 192.0.2.1;");
        assert_eq!(
            again.queries[0].name().to_string(),
            format!("{name}."),
            "in the asker's spelling"
        );
    }
    assert_eq!(upstream.asked(), ["udp a.example."]);
    for _ in 0..2 {
        let none = server.ask("none.example", RecordType::A).await;
        assert_eq!(
            (tell(&none).as_str(), none.authorities[0].ttl <= 20),
            ("NXDOMAIN -", true)
        );
        assert_eq!(server.tell("fail.example", RecordType::A).await, "SERVFAIL");
    }
    assert_eq!(
        upstream.asked().len(),
        3,
        "denials and failures are kept too: {:?}",
        upstream.asked()
    );
    let (_, text) = page(server.bound.metrics.unwrap(), "/metrics").await;
    for line in [
        "coredns_cache_hits_total{server=\"dns://:53\",zones=\".\",view=\"\",type=\"success\"} 2",
        "coredns_cache_hits_total{server=\"dns://:53\",zones=\".\",view=\"\",type=\"denial\"} 2",
        "coredns_dns_responses_total{server=\"dns://:53\",zone=\".\",view=\"\",rcode=\"NOERROR\",plugin=\"forward\"} 1",
        "coredns_dns_requests_total{server=\"dns://:53\",zone=\".\",view=\"\",proto=\"udp\",family=\"1\",type=\"A\"} 7",
        "coredns_build_info{",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_big_for_udp_is_fetched_by_tcp() {
    let upstream = Upstream::start().await;
    let server = serve(&[upstream.address], "", "cache").await;
    let cut = server.ask("big.example", RecordType::A).await;
    assert!(cut.metadata.truncation && !cut.answers.is_empty() && cut.answers.len() < 100);
    assert_eq!(upstream.asked(), ["udp big.example.", "tcp big.example."]);
    let mut stream = tokio::net::TcpStream::connect(server.bound.dns[0]).await.unwrap();
    // Two questions at once, as RFC 7766 lets clients ask.
    for name in ["big.example", "a.example"] {
        let packet = packet(name, RecordType::A);
        stream.write_u16(packet.len().try_into().unwrap()).await.unwrap();
        stream.write_all(&packet).await.unwrap();
    }
    let mut answers = Vec::new();
    for _ in 0..2 {
        let mut bytes = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut bytes).await.unwrap();
        answers.push(Message::from_vec(&bytes).unwrap().answers.len());
    }
    answers.sort_unstable();
    assert_eq!(answers, [1, 100]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_answers_are_not_believed() {
    let upstream = Upstream::start().await;
    let server = serve(&[upstream.address], "", "").await;
    assert_eq!(
        server.tell("wrong.example", RecordType::A).await,
        "NOERROR A 192.0.2.1;"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_questions_are_asked_once() {
    let upstream = Upstream::start().await;
    let server = serve(&[upstream.address], "", "").await;
    let address = server.bound.dns[0];
    let clients: Vec<_> = (0..20)
        .map(|_| tokio::spawn(async move { tell(&ask_by_udp(address, &packet("slow.example", RecordType::A)).await) }))
        .collect();
    // Whoever asks after the answer has come asks anew; the others share it.
    let waiting = async {
        while upstream.asked().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), waiting)
        .await
        .unwrap();
    upstream.gate.add_permits(100);
    for client in clients {
        assert_eq!(client.await.unwrap(), "NOERROR A 192.0.2.1;");
    }
    assert!(upstream.asked().len() < 20, "{:?}", upstream.asked());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_upstream_is_asked() {
    let upstream = Upstream::start().await;
    let (silent, _held) = dead().await;
    let options = "policy sequential\n read_timeout 200ms\n health_check 50ms";
    let server = serve(&[silent, upstream.address], options, "errors").await;
    assert_eq!(server.tell("a.example", RecordType::A).await, "NOERROR A 192.0.2.1;");
    assert_eq!(server.tell("lost.example", RecordType::A).await, "SERVFAIL");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_at_once_are_refused() {
    let upstream = Upstream::start().await;
    let server = serve(&[upstream.address], "max_concurrent 1\n except own.example", "").await;
    let address = server.bound.dns[0];
    let slow = tokio::spawn(async move { tell(&ask_by_udp(address, &packet("slow.example", RecordType::A)).await) });
    let waiting = async {
        while upstream.asked().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), waiting)
        .await
        .unwrap();
    assert_eq!(server.tell("b.example", RecordType::A).await, "REFUSED");
    assert_eq!(
        server.tell("x.own.example", RecordType::A).await,
        "REFUSED",
        "not forwarded"
    );
    upstream.gate.add_permits(1);
    assert_eq!(slow.await.unwrap(), "NOERROR A 192.0.2.1;");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rewritten_names_are_forwarded_and_come_back() {
    let upstream = Upstream::start().await;
    let server = serve(&[upstream.address], "", "cache\n rewrite name suffix .inside .example").await;
    let answer = server.ask("a.inside", RecordType::A).await;
    assert_eq!(tell(&answer), "NOERROR A 192.0.2.1;");
    assert_eq!(answer.answers[0].name.to_string(), "a.inside.");
    assert_eq!(upstream.asked(), ["udp a.example."]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_leads_back_is_left_out() {
    // Two servers that forward to each other; the second has names of its own.
    let upstream = Upstream::start().await;
    let relay = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let back = relay.local_addr().unwrap();
    let text = format!(
        ". {{\n prometheus\n loop\n forward . {back} {} {{\n policy sequential\n }}\n}}",
        upstream.address
    );
    let server = Running::start(Source::Text(text), nobody()).await;
    let address = server.bound.dns[0];
    // What comes to the relay goes back to the server, as a resolver on the host would send it.
    tokio::spawn(async move {
        let relay = Arc::new(relay);
        let mut buffer = [0; 4096];
        loop {
            let (length, peer) = relay.recv_from(&mut buffer).await.unwrap();
            let (relay, packet) = (Arc::clone(&relay), buffer[..length].to_vec());
            tokio::spawn(async move {
                let answer = ask_by_udp(address, &packet).await;
                relay.send_to(&answer.to_vec().unwrap(), peer).await.unwrap();
            });
        }
    });
    let excluded = async {
        while !page(server.bound.metrics.unwrap(), "/metrics")
            .await
            .1
            .contains("fairlead_dns_loops_total 1")
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), excluded)
        .await
        .unwrap();
    assert_eq!(
        server.tell("a.example", RecordType::A).await,
        "NOERROR A 192.0.2.1;",
        "the other one is asked"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_corefile_is_put_into_service_and_a_bad_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("Corefile");
    let write = |address: &str| {
        let text = format!(". {{\n prometheus\n reload\n hosts /nonexistent {{\n {address} a.example\n }}\n}}");
        std::fs::write(&path, text).unwrap();
    };
    write("192.0.2.1");
    let server = Running::start(Source::Path(path.clone()), nobody()).await;
    assert_eq!(server.tell("a.example", RecordType::A).await, "NOERROR A 192.0.2.1;");
    write("192.0.2.2");
    server.reload.notify_one();
    server.until("a.example", RecordType::A, "NOERROR A 192.0.2.2;").await;
    std::fs::write(&path, ". {\n nonsense\n}").unwrap();
    server.reload.notify_one();
    let refused = async {
        while !page(server.bound.metrics.unwrap(), "/metrics")
            .await
            .1
            .contains("coredns_reload_failed_total 1")
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), refused)
        .await
        .unwrap();
    assert_eq!(server.tell("a.example", RecordType::A).await, "NOERROR A 192.0.2.2;");
    server.stop().await;
}
