//! A whole server is killed while clients write: what it acknowledged stands, revisions do not go back, addresses and ports
//! have one owner, quotas hold, and rights are those that are stored.
//!
//! The test binary runs itself as the server; the parent writes over TLS, kills it somewhere, starts it again and compares.

use crate::support::TestServer;
use bytes::Bytes;
use fairlead_apiserver::{
    Settings,
    open::{Running, Start},
    pki::{Authority, Identity, Profile},
};
use fairlead_store::redb_store::{Options, RedbStore};
use http::Method;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    path::Path,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    sync::mpsc,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName},
};

const CHILD: &str = "SERVER_CRASH_CHILD";
const WRITERS: usize = 4;
/// What the quota allows.
const LIMIT: usize = 5;
const BINDING: &str = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/toggled";

/// Serves until it is killed. Prints the port when it is ready.
#[test]
fn child_that_serves_until_it_is_killed() {
    let Some(directory) = env::var_os(CHILD) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let directory = Path::new(&directory);
        let options = Options {
            // Small: rounds go round the log and through checkpoints.
            log_bytes: 1 << 20,
            checkpoint_bytes: 100_000,
            ..Options::default()
        };
        let store = RedbStore::open(&directory.join("store"), options).unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let start = Start::new(directory.to_owned(), listener.local_addr().unwrap().port());
        let settings = Settings {
            // Few, so that a leak shows.
            node_ports: (30000, 30031),
            ..Settings::default()
        };
        let running = Running::start(Arc::new(store), settings, &start, listener)
            .await
            .unwrap();
        println!("ready {}", running.address.port());
        std::future::pending::<()>().await;
    });
}

/// A server in a process of its own, which does not outlive the test.
struct Server {
    child: Child,
    port: u16,
    tls: TlsConnector,
}

impl Server {
    async fn start(directory: &Path) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "killed::child_that_serves_until_it_is_killed",
                "--nocapture",
                "--quiet",
            ])
            .env(CHILD, directory)
            .stdout(Stdio::piped())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = loop {
            let line = lines
                .next_line()
                .await
                .unwrap()
                .expect("the server ended by itself; its output tells why");
            if let Some((_, port)) = line.split_once("ready ") {
                break port.parse().unwrap();
            }
        };
        let now = Timestamp::now().as_second();
        let authority = Authority::open(&directory.join("pki"), now).unwrap();
        let (certificate, key) = Identity::issue(&authority, &Profile::admin(), now)
            .unwrap()
            .der()
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)
            .unwrap();
        Self {
            child,
            port,
            tls: TlsConnector::from(Arc::new(config)),
        }
    }

    async fn client(&self) -> Client {
        let socket = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = self.tls.connect(name, socket).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        // Ends with the server.
        tokio::spawn(connection);
        Client(sender)
    }

    async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

struct Client(hyper::client::conn::http1::SendRequest<Full<Bytes>>);

impl Client {
    /// `None`: the server died meanwhile.
    async fn request(
        &mut self,
        method: Method,
        path: &str,
        user: Option<&str>,
        body: Option<&Value>,
    ) -> Option<(u16, Value)> {
        let bytes = body.map(|it| Bytes::from(it.to_string())).unwrap_or_default();
        let mut request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", "application/json");
        if let Some(user) = user {
            request = request.header("impersonate-user", user);
        }
        let response = self
            .0
            .send_request(request.body(Full::new(bytes)).unwrap())
            .await
            .ok()?;
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        Some((code, serde_json::from_slice(&body).unwrap_or_default()))
    }

    async fn get(&mut self, path: &str) -> (u16, Value) {
        self.request(Method::GET, path, None, None)
            .await
            .expect("the server lives")
    }
}

fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

/// The last that a writer was told of an object, and what it asked for since.
#[derive(Clone, Debug, Default)]
struct Known {
    /// `None`: it is not there.
    object: Option<Value>,
    /// Asked and not answered: `Some(true)` a deletion.
    asked: Option<bool>,
}

type World = BTreeMap<String, Known>;

/// One step of a writer: its object's path, where it is made, and the object.
fn pick(random: &mut StdRng, writer: usize) -> (String, String, Value) {
    let (number, filling) = (random.random_range(0..4), "x".repeat(random.random_range(0..2_000)));
    let name = format!("w{writer}-{number}");
    let (all, object) = match random.random_range(0..8) {
        0..3 => (
            "/api/v1/namespaces/default/configmaps".to_owned(),
            json!({ "metadata": { "name": name }, "data": { "n": random.random::<u32>().to_string(), "f": filling } }),
        ),
        3 => (
            "/api/v1/namespaces/limited/configmaps".to_owned(),
            json!({ "metadata": { "name": name }, "data": { "n": random.random::<u32>().to_string() } }),
        ),
        4 => (
            "/api/v1/namespaces/default/services".to_owned(),
            json!({ "metadata": { "name": format!("c{name}"), "labels": { "n": number.to_string() } },
                "spec": { "ports": [{ "port": 80 + random.random_range(0..9) }] } }),
        ),
        5 => (
            "/api/v1/namespaces/default/services".to_owned(),
            json!({ "metadata": { "name": format!("n{name}") }, "spec": { "type": "NodePort", "ports": [{ "port": 80, "name": "a" }] } }),
        ),
        6 => (
            "/api/v1/namespaces/default/secrets".to_owned(),
            json!({ "metadata": { "name": name }, "stringData": { "n": filling } }),
        ),
        _ => (
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings".to_owned(),
            json!({ "metadata": { "name": if writer == 0 { "toggled".to_owned() } else { name } },
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view" },
                "subjects": [{ "kind": "User", "name": "toggled", "apiGroup": "rbac.authorization.k8s.io" }] }),
        ),
    };
    // Only writer 0's binding gives the right.
    let mut object = object;
    if writer != 0 && object["subjects"].is_array() {
        object["subjects"][0]["name"] = json!("nobody");
    }
    (
        format!("{all}/{}", object["metadata"]["name"].as_str().unwrap()),
        all,
        object,
    )
}

/// Writes until the server dies. Tells of each acknowledgement.
async fn write(
    mut client: Client,
    seed: u64,
    writer: usize,
    mut world: World,
    told: mpsc::UnboundedSender<u64>,
) -> World {
    let mut random = StdRng::seed_from_u64(seed);
    loop {
        let (path, all, object) = pick(&mut random, writer);
        let known = world.entry(path.clone()).or_default();
        let deletes = known.object.is_some() && random.random_bool(0.4);
        let (method, path, body) = match (&known.object, deletes) {
            (None, _) => (Method::POST, all, Some(object)),
            (Some(_), true) => (Method::DELETE, path, None),
            // A Service's update keeps what was given out.
            (Some(_), false) => (Method::PUT, path, Some(object)),
        };
        known.asked = Some(deletes);
        let Some((code, answer)) = client.request(method.clone(), &path, None, body.as_ref()).await else {
            return world;
        };
        known.asked = None;
        match (code, deletes) {
            (200, true) => known.object = None,
            (200 | 201, false) => known.object = Some(answer),
            // The quota, or no port is left.
            (403 | 422 | 500, false) if method == Method::POST => {
                assert!(code != 500 || path.contains("services"), "{answer}");
            }
            _ => panic!("{method} {path}: {code} {answer}"),
        }
        let at = known.object.as_ref().map_or(0, revision);
        // The parent has had enough.
        let _ = told.send(at);
    }
}

/// Compares what writers know with what is there, and takes over what was not yet answered.
async fn verify(client: &mut Client, world: &mut World, newest: u64, context: &str) -> u64 {
    let (_, list) = client.get("/api/v1/namespaces/default/configmaps").await;
    let at = revision(&list);
    assert!(at >= newest, "{context}: at {at} after {newest}");
    for (path, known) in world.iter_mut() {
        let (code, found) = client.get(path).await;
        let found = (code == 200).then_some(found);
        let asked = known.asked.take();
        match (&known.object, &found) {
            (Some(had), Some(has)) if had == has => {}
            (None, None) => {}
            (Some(had), Some(has)) => assert!(
                asked == Some(false)
                    && revision(has) > revision(had)
                    && had["metadata"]["uid"] == has["metadata"]["uid"],
                "{context}: {path} was {had}, is {has}"
            ),
            (None, Some(has)) => assert!(asked == Some(false), "{context}: {path} came back: {has}"),
            (Some(had), None) => assert!(asked == Some(true), "{context}: {path} is lost: {had}"),
        }
        if let (Some(had), Some(has)) = (&known.object, &found) {
            assert_eq!(had["spec"]["clusterIP"], has["spec"]["clusterIP"], "{context}: {path}");
        }
        known.object = found;
    }
    let (_, services) = client.get("/api/v1/services").await;
    let (mut addresses, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for service in services["items"].as_array().unwrap() {
        let address = service["spec"]["clusterIP"].as_str().unwrap();
        assert!(
            addresses.insert(address.to_owned()),
            "{context}: {address} has two owners"
        );
        for port in service["spec"]["ports"].as_array().unwrap() {
            if let Some(port) = port["nodePort"].as_u64() {
                assert!(ports.insert(port), "{context}: port {port} has two owners");
            }
        }
    }
    let (_, limited) = client.get("/api/v1/namespaces/limited/configmaps").await;
    let count = limited["items"].as_array().unwrap().len();
    assert!(count <= LIMIT, "{context}: {count} under a quota of {LIMIT}");
    let bound = client.get(BINDING).await.0 == 200;
    let path = "/api/v1/namespaces/default/configmaps";
    let (code, answer) = client.request(Method::GET, path, Some("toggled"), None).await.unwrap();
    assert_eq!(code == 200, bound, "{context}: {answer}");
    at
}

/// The quota counts what is there: what it says is free can be made, and no more.
async fn check_quota(client: &mut Client, context: &str) {
    let path = "/api/v1/namespaces/limited/configmaps";
    let count = client.get(path).await.1["items"].as_array().unwrap().len();
    for number in count..=LIMIT {
        let object = json!({ "metadata": { "name": format!("probe-{number}") } });
        let (code, answer) = client.request(Method::POST, path, None, Some(&object)).await.unwrap();
        assert_eq!(
            code,
            if number < LIMIT { 201 } else { 403 },
            "{context}: {number} {answer}"
        );
    }
    for number in count..LIMIT {
        let path = format!("{path}/probe-{number}");
        assert_eq!(client.request(Method::DELETE, &path, None, None).await.unwrap().0, 200);
    }
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_when_the_server_is_killed() {
    if env::var_os(CHILD).is_some() {
        return;
    }
    let rounds: Option<usize> = env::var("SERVER_KILLS").ok().map(|it| it.parse().unwrap());
    let seed = env::var("SERVER_KILLS_SEED").map_or_else(|_| rand::random(), |it| it.parse().unwrap());
    println!("SERVER_KILLS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let directory = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let mut worlds = vec![World::default(); WRITERS];
    let (mut newest, mut round, mut writes) = (0, 0, 0);
    let mut server = Server::start(directory.path()).await;
    let mut client = server.client().await;
    let limited = json!({ "metadata": { "name": "limited" } });
    client
        .request(Method::POST, "/api/v1/namespaces", None, Some(&limited))
        .await
        .unwrap();
    let quota = json!({ "metadata": { "name": "q" }, "spec": { "hard": { "count/configmaps": LIMIT.to_string() } } });
    let path = "/api/v1/namespaces/limited/resourcequotas";
    assert_eq!(
        client.request(Method::POST, path, None, Some(&quota)).await.unwrap().0,
        201
    );
    while rounds.map_or(round < 2 || started.elapsed() < Duration::from_secs(8), |rounds| {
        round < rounds
    }) {
        let context = format!("seed {seed}, round {round}");
        let (told, mut hears) = mpsc::unbounded_channel();
        let mut writers = Vec::new();
        for (number, world) in worlds.drain(..).enumerate() {
            writers.push(tokio::spawn(write(
                server.client().await,
                random.random(),
                number,
                world,
                told.clone(),
            )));
        }
        drop(told);
        let enough = random.random_range(1..120);
        for _ in 0..enough {
            newest = newest.max(hears.recv().await.expect("writers write"));
        }
        // Somewhere in the next writes.
        let until = Instant::now() + Duration::from_micros(random.random_range(0..5_000));
        while Instant::now() < until {
            tokio::task::yield_now().await;
        }
        server.kill().await;
        for writer in writers {
            worlds.push(writer.await.unwrap());
        }
        while let Some(at) = hears.recv().await {
            newest = newest.max(at);
            writes += 1;
        }
        writes += enough;
        server = Server::start(directory.path()).await;
        client = server.client().await;
        for world in &mut worlds {
            newest = verify(&mut client, world, newest, &context).await;
        }
        check_quota(&mut client, &context).await;
        round += 1;
    }
    println!(
        "killed {round} times in {:?}, {writes} acknowledged writes",
        started.elapsed()
    );
    server.kill().await;
    // The store is whole: a server in this process serves it.
    let store = RedbStore::open(&directory.path().join("store"), Options::default()).unwrap();
    let server = TestServer::over(Arc::new(store), Settings::default()).await;
    assert_eq!(server.get("/readyz").await.0, 200);
}
