//! Objects, servers and clients of the tests.
#![allow(
    dead_code,
    missing_docs,
    clippy::needless_pass_by_value,
    unreachable_pub,
    reason = "each test program uses a part; nothing else sees it"
)]

use fairlead_dns::{
    cache::Cache,
    corefile::Corefile,
    engine::{Client, Engine, Outcome, Served},
    forward::Forward,
    hosts::Hosts,
    metrics::Metrics,
    wire,
    zone::{
        Zone,
        answer::View,
        facts::{self, Key},
        store::{Change, Options, Store},
    },
};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{RData, RecordType},
};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use serde_json::{Value, json};
use std::{sync::Arc, time::Instant};

pub const COREFILE: &str = "\
.:53 {
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        ttl 30
    }
}";

/// Names in memory and the blocks that serve them, without sockets.
pub struct World {
    pub store: Store,
    pub zone: Arc<Zone>,
    pub engine: Arc<Engine>,
}

impl World {
    pub fn new(corefile: &str) -> Self {
        let corefile = Corefile::parse("Corefile", corefile).unwrap();
        let options = corefile.blocks.iter().find_map(|block| block.kubernetes.as_ref());
        let options = options.map_or_else(Options::default, |it| it.options.clone());
        let (store, zone) = Store::new(options);
        store.ready();
        let metrics = Arc::new(Metrics::new());
        let blocks = corefile.blocks.iter().map(|block| {
            let view = block.kubernetes.as_ref().map(|kubernetes| View {
                origins: kubernetes.zones.clone(),
                ttl: kubernetes.ttl,
                pods: kubernetes.options.pods,
                fallthrough: kubernetes.fallthrough.clone(),
                nameservers: Vec::new(),
                shuffle: block.shuffle,
            });
            Arc::new(Served {
                config: block.clone(),
                cluster: view.map(|view| (Arc::clone(&zone), view)),
                hosts: block.hosts.clone().map(Hosts::new).map(Arc::new),
                cache: block.cache.clone().map(Cache::new).map(Arc::new),
                forwards: block
                    .forward
                    .iter()
                    .map(|it| Arc::new(Forward::new(it.clone(), Arc::clone(&metrics.forward))))
                    .collect(),
                stats: metrics.stats(block.port, &block.zones[0].to_string(), 1),
                probes: Vec::new(),
            })
        });
        let engine = Engine::new(blocks.collect(), Arc::clone(&metrics));
        Self {
            store,
            zone,
            engine: Arc::new(engine),
        }
    }

    pub fn change(&mut self, change: Change) {
        self.store.apply(change);
        self.store.publish(1);
    }

    pub fn namespace(&mut self, name: &str) {
        self.change(Change::Namespace(name.into(), true));
    }

    pub fn service(&mut self, name: &str, spec: Value) {
        let object = service(name, spec);
        let (facts, _) = facts::service(&object);
        self.change(Change::Service(Key::of(&object.metadata), Some(facts)));
    }

    pub fn slice(&mut self, name: &str, owner: &str, family: &str, ports: Value, endpoints: Value) {
        let object = slice(name, owner, family, ports, endpoints);
        let (facts, _) = facts::slice(&object, false);
        self.change(Change::Slice(Key::of(&object.metadata), facts));
    }

    /// The bytes of an answer, by UDP.
    pub fn raw(&self, packet: &[u8]) -> Option<Vec<u8>> {
        self.by(packet, false)
    }

    pub fn by(&self, packet: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let client = Client {
            port: 53,
            peer: "127.0.0.1:1024".parse().unwrap(),
            tcp,
            worker: 0,
            at: Instant::now(),
        };
        let mut out = Vec::new();
        match self.engine.serve(packet, &client, &mut out) {
            Outcome::Reply => Some(out),
            Outcome::Nothing | Outcome::Later(_) => None,
        }
    }

    pub fn ask(&self, name: &str, kind: RecordType) -> Message {
        let bytes = self.by(&packet(name, kind), true).expect("an answer");
        Message::from_vec(&bytes).expect("a message")
    }

    /// Code and sorted answers: `NOERROR A 10.96.0.1; …`.
    pub fn tell(&self, name: &str, kind: RecordType) -> String {
        tell(&self.ask(name, kind))
    }
}

/// Code and sorted answers of a message, and `-` where only the SOA says that there is nothing.
pub fn tell(message: &Message) -> String {
    let code = match message.metadata.response_code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::Refused => "REFUSED",
        other => return format!("{other}"),
    };
    let mut answers: Vec<String> = message
        .answers
        .iter()
        .map(|record| format!("{} {}", record.record_type(), data(&record.data)))
        .collect();
    answers.sort();
    let nothing = if message.authorities.iter().any(|it| it.record_type() == RecordType::SOA) {
        " -"
    } else {
        ""
    };
    let list: String = answers.iter().map(|answer| format!(" {answer};")).collect();
    format!("{code}{list}{nothing}")
}

fn data(data: &RData) -> String {
    match data {
        RData::TXT(txt) => format!("{txt}"),
        other => format!("{other}"),
    }
}

pub fn packet(name: &str, kind: RecordType) -> Vec<u8> {
    let name = fairlead_dns::name::wire_of(name).unwrap();
    wire::question(7, wire::flag::RD, &name, u16::from(kind), None)
}

fn key(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap()
}

/// `namespace/name` and a spec.
pub fn service(name: &str, spec: Value) -> Service {
    let (namespace, name) = key(name);
    serde_json::from_value(json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec})).unwrap()
}

/// `namespace/name`, its Service, and the rest.
pub fn slice(name: &str, owner: &str, family: &str, ports: Value, endpoints: Value) -> EndpointSlice {
    let (namespace, name) = key(name);
    serde_json::from_value(json!({
        "metadata": {"namespace": namespace, "name": name, "labels": {"kubernetes.io/service-name": owner}},
        "addressType": family,
        "ports": ports,
        "endpoints": endpoints,
    }))
    .unwrap()
}

/// A server in this process, on ports of its own.
pub struct Running {
    pub bound: fairlead_dns::Bound,
    pub reload: Arc<tokio::sync::Notify>,
    pub stop: tokio_util::sync::CancellationToken,
    pub task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Running {
    pub async fn start(corefile: fairlead_dns::Source, client: kube::Client) -> Self {
        let (sender, bound) = tokio::sync::oneshot::channel();
        let stop = tokio_util::sync::CancellationToken::new();
        let reload = Arc::new(tokio::sync::Notify::new());
        let here = fairlead_dns::Http::At("127.0.0.1:0".parse().unwrap());
        let config = fairlead_dns::Config {
            corefile,
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            health: here,
            ready: here,
            metrics: here,
            sockets: 2,
            bound: Some(sender),
            reload: Some(Arc::clone(&reload)),
            ..fairlead_dns::Config::default()
        };
        let task = tokio::spawn(fairlead_dns::run(config, client, stop.clone()));
        let bound = bound.await.expect("it serves");
        Self {
            bound,
            reload,
            stop,
            task,
        }
    }

    pub async fn ask(&self, name: &str, kind: RecordType) -> Message {
        ask_by_udp(self.bound.dns[0], &packet(name, kind)).await
    }

    pub async fn tell(&self, name: &str, kind: RecordType) -> String {
        tell(&self.ask(name, kind).await)
    }

    /// Asks until the answer is `expected`: for what follows a change by and by.
    pub async fn until(&self, name: &str, kind: RecordType, expected: &str) {
        let asking = async {
            loop {
                let told = self.tell(name, kind).await;
                if told == expected {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        let end = tokio::time::timeout(std::time::Duration::from_secs(30), asking).await;
        assert!(end.is_ok(), "{name} {kind} never told {expected}");
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

pub async fn ask_by_udp(server: std::net::SocketAddr, packet: &[u8]) -> Message {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(packet).await.unwrap();
    let mut buffer = [0; 4096];
    let received = tokio::time::timeout(std::time::Duration::from_secs(20), socket.recv(&mut buffer)).await;
    let length = received.expect("an answer in time").unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

/// The body of a page, and its code.
pub async fn page(address: std::net::SocketAddr, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// A client that reaches nobody.
pub fn nobody() -> kube::Client {
    kube::Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap()
}
