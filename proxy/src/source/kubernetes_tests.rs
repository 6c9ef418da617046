//! Against a small API server that lives in this process: lists, pages, watches and streamed lists, as JSON.

use super::*;
use crate::model::Change;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::client::Body;
use serde_json::json;
use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Mutex, MutexGuard},
};

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const NODES: &str = "/api/v1/nodes";

type ResponseBody = UnsyncBoxBody<Bytes, Infallible>;

/// An API server.
#[derive(Clone)]
struct Server(Arc<Mutex<State>>);

struct State {
    resources: BTreeMap<&'static str, Resources>,
    streaming: Streaming,
    /// Requests answered, as `list`, `watch` or `stream` and the path.
    log: Vec<String>,
    queries: Vec<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum Streaming {
    Supported,
    /// 422, as a server with the feature off.
    Refused,
    /// Taken for a plain watch, as a server that has never heard of it.
    NotUnderstood,
}

/// Objects of one kind, and what open watches have yet to say.
struct Resources {
    objects: Vec<Value>,
    sender: mpsc::UnboundedSender<Option<String>>,
    /// `None` ends the watch that reads it.
    receiver: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Option<String>>>>,
}

impl Server {
    fn new(streaming: Streaming) -> Self {
        let resources = [SERVICES, SLICES, NODES].map(|path| {
            let (sender, receiver) = mpsc::unbounded_channel();
            let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
            (
                path,
                Resources {
                    objects: Vec::new(),
                    sender,
                    receiver,
                },
            )
        });
        Self(Arc::new(Mutex::new(State {
            resources: resources.into(),
            streaming,
            log: Vec::new(),
            queries: Vec::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn set(&self, path: &str, objects: Vec<Value>) {
        self.state().resources.get_mut(path).unwrap().objects = objects;
    }

    /// Sends one watch event.
    fn push(&self, path: &str, type_: &str, object: &Value) {
        let line = json!({"type": type_, "object": object}).to_string() + "\n";
        self.state().resources[path].sender.send(Some(line)).unwrap();
    }

    /// Ends the open watch.
    fn hang_up(&self, path: &str) {
        self.state().resources[path].sender.send(None).unwrap();
    }

    fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(&request)) }
        });
        Client::new(service, "default")
    }

    fn answer(&self, request: &Request<Body>) -> Response<ResponseBody> {
        let mut state = self.state();
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        let has = |text: &str| query.split('&').any(|part| part == text);
        let kind = if has("sendInitialEvents=true") {
            "stream"
        } else if query.split('&').any(|part| part.starts_with("watch=")) {
            "watch"
        } else {
            "list"
        };
        state.log.push(format!("{kind} {path}"));
        let streaming = state.streaming;
        let resources = &state.resources[path.as_str()];
        let response = match (kind, streaming) {
            ("stream", Streaming::Refused) => {
                let message = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
                let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message,
                                    "reason": "Invalid", "code": 422});
                whole(StatusCode::UNPROCESSABLE_ENTITY, &status)
            }
            ("stream", _) => {
                let mut lines = Vec::new();
                for object in &resources.objects {
                    lines.push(json!({"type": "ADDED", "object": object}).to_string() + "\n");
                }
                if streaming == Streaming::Supported {
                    lines.push(bookmark(true));
                }
                watch(lines, resources)
            }
            ("watch", _) => watch(Vec::new(), resources),
            _ => {
                let number = |name: &str| {
                    query
                        .split('&')
                        .find_map(|part| part.strip_prefix(name))
                        .and_then(|text| text.parse::<usize>().ok())
                };
                let from = number("continue=").unwrap_or(0);
                let to = (from + number("limit=").unwrap_or(usize::MAX / 2)).min(resources.objects.len());
                let more = if to < resources.objects.len() {
                    to.to_string()
                } else {
                    String::new()
                };
                let meta = json!({"resourceVersion": "100", "continue": more});
                let items = &resources.objects[from..to];
                whole(
                    StatusCode::OK,
                    &json!({"kind": "List", "apiVersion": "v1", "metadata": meta, "items": items}),
                )
            }
        };
        state.queries.push(query);
        response
    }
}

fn bookmark(end: bool) -> String {
    let annotations = if end {
        json!({"k8s.io/initial-events-end": "true"})
    } else {
        json!({})
    };
    let object =
        json!({"kind": "X", "apiVersion": "v1", "metadata": {"resourceVersion": "100", "annotations": annotations}});
    json!({"type": "BOOKMARK", "object": object}).to_string() + "\n"
}

fn whole(status: StatusCode, body: &Value) -> Response<ResponseBody> {
    Response::builder()
        .status(status)
        .body(Full::from(body.to_string()).boxed_unsync())
        .unwrap()
}

fn watch(lines: Vec<String>, resources: &Resources) -> Response<ResponseBody> {
    let receiver = Arc::clone(&resources.receiver);
    let frame = |line: String| Ok::<_, Infallible>(http_body::Frame::data(Bytes::from(line)));
    let later = futures::stream::unfold(receiver, move |receiver| async move {
        let line = receiver.lock().await.recv().await.flatten()?;
        Some((frame(line), receiver))
    });
    let body = StreamBody::new(futures::stream::iter(lines.into_iter().map(frame)).chain(later));
    Response::new(BodyExt::boxed_unsync(body))
}

fn service(name: &str, last: u8, version: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "shop", "name": name, "resourceVersion": version, "uid": name},
        "spec": {"clusterIP": format!("10.96.0.{last}"), "ports": [{"port": 80}]},
    })
}

fn slice(name: &str, version: &str) -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": name, "resourceVersion": version,
                     "labels": {"kubernetes.io/service-name": "a"}},
        "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": [{"addresses": ["10.1.1.2"]}],
    })
}

fn node(zone: &str) -> Value {
    json!({"metadata": {"name": "node-a", "resourceVersion": "9", "labels": {"topology.kubernetes.io/zone": zone}}})
}

fn gone() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "too old resource version",
           "reason": "Expired", "code": 410})
}

fn line(event: Event) -> String {
    match event {
        Event::Init => "init".to_owned(),
        Event::InitDone => "done".to_owned(),
        Event::Service(Change::Apply(service)) => format!("+ {} {}", service.name.name, service.cluster_ips[0]),
        Event::Service(Change::Delete(name)) => format!("- {name}"),
        Event::Slice(Change::Apply(slice)) => format!("+ slice {}", slice.name.name),
        Event::Slice(Change::Delete(name)) => format!("- slice {name}"),
        Event::Node(Change::Apply(node)) => format!("+ node {} {}", node.name, node.zone.unwrap_or_default()),
        Event::Node(Change::Delete(name)) => format!("- node {name}"),
        Event::Skipped(skipped) => format!("! {skipped}"),
        Event::Reviewed { subject } => format!("~ {subject}"),
    }
}

/// Everything up to `InitDone`, sorted, since the kinds arrive in any order; with the ends checked.
async fn initial(events: &mut Events) -> Vec<String> {
    let mut lines = Vec::new();
    while lines.last().is_none_or(|line| line != "done") {
        lines.extend(events.recv().await.expect("the source lives").into_iter().map(line));
    }
    assert_eq!(lines.remove(0), "init");
    lines.pop();
    lines.sort();
    lines
}

async fn next(events: &mut Events) -> Vec<String> {
    events
        .recv()
        .await
        .expect("the source lives")
        .into_iter()
        .map(line)
        .collect()
}

fn full(server: &Server) {
    server.set(SERVICES, vec![service("a", 1, "1"), service("b", 2, "2")]);
    server.set(SLICES, vec![slice("a-1", "3")]);
    server.set(NODES, vec![node("z1")]);
}

const FULL: [&str; 4] = ["+ a 10.96.0.1", "+ b 10.96.0.2", "+ node node-a z1", "+ slice a-1"];

#[tokio::test(start_paused = true)]
async fn streamed_lists_then_changes() {
    let server = Server::new(Streaming::Supported);
    full(&server);
    let (mut events, health) = follow(&server.client(), "node-a");
    assert_eq!(initial(&mut events).await, FULL);
    assert!(
        server.state().log.iter().all(|line| line.starts_with("stream ")),
        "{:?}",
        server.state().log
    );
    assert!(
        server
            .state()
            .queries
            .iter()
            .any(|query| query.contains("fieldSelector=metadata.name%3Dnode-a"))
    );
    let seen = health.borrow().clone();
    for kind in [&seen.services, &seen.slices, &seen.node] {
        assert!(
            kind.synced && kind.last_contact.is_some() && kind.error.is_none(),
            "{seen:?}"
        );
    }
    server.push(SERVICES, "MODIFIED", &service("a", 3, "4"));
    assert_eq!(next(&mut events).await, ["+ a 10.96.0.3"]);
    server.push(SERVICES, "DELETED", &service("b", 2, "5"));
    assert_eq!(next(&mut events).await, ["- shop/b"]);
    server.push(NODES, "MODIFIED", &node("z2"));
    assert_eq!(next(&mut events).await, ["+ node node-a z2"]);
}

#[tokio::test(start_paused = true)]
async fn refused_streams_fall_back_to_lists() {
    for streaming in [Streaming::Refused, Streaming::NotUnderstood] {
        let server = Server::new(streaming);
        full(&server);
        let (mut events, health) = follow(&server.client(), "node-a");
        assert_eq!(initial(&mut events).await, FULL);
        for path in [SERVICES, SLICES, NODES] {
            let log = server.state().log.clone();
            let asked: Vec<_> = log
                .iter()
                .filter(|line| line.ends_with(path))
                .map(|line| &line[..4])
                .collect();
            assert_eq!(asked[..2], ["stre", "list"], "{log:?}");
        }
        assert!(health.borrow().services.error.is_none());
        server.push(SERVICES, "ADDED", &service("c", 3, "101"));
        assert_eq!(next(&mut events).await, ["+ c 10.96.0.3"]);
    }
}

#[tokio::test(start_paused = true)]
async fn long_lists_come_in_pages() {
    let server = Server::new(Streaming::Refused);
    let many: Vec<_> = (0..1234).map(|n| service(&format!("s{n}"), 1, "1")).collect();
    server.set(SERVICES, many);
    let (mut events, _) = follow(&server.client(), "node-a");
    assert_eq!(initial(&mut events).await.len(), 1234);
    let log = server.state().log.clone();
    assert_eq!(
        log.iter().filter(|line| *line == &format!("list {SERVICES}")).count(),
        3
    );
}

#[tokio::test(start_paused = true)]
async fn a_relist_deletes_what_vanished_and_repeats_nothing() {
    for streaming in [Streaming::Supported, Streaming::Refused] {
        let server = Server::new(streaming);
        full(&server);
        let (mut events, mut health) = follow(&server.client(), "node-a");
        initial(&mut events).await;
        server.set(SERVICES, vec![service("a", 1, "50"), service("c", 3, "51")]);
        server.push(SERVICES, "ERROR", &gone());
        let mut got = Vec::new();
        while got.len() < 2 {
            got.extend(next(&mut events).await);
        }
        got.sort();
        assert_eq!(got, ["+ c 10.96.0.3", "- shop/b"]);
        // And it is well again.
        health.wait_for(|health| health.services.error.is_none()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_is_resumed_without_a_list() {
    let server = Server::new(Streaming::Supported);
    full(&server);
    let (mut events, _) = follow(&server.client(), "node-a");
    initial(&mut events).await;
    server.hang_up(SERVICES);
    server.push(SERVICES, "ADDED", &service("c", 3, "6"));
    assert_eq!(next(&mut events).await, ["+ c 10.96.0.3"]);
    let log = server.state().log.clone();
    let asked: Vec<_> = log.iter().filter(|line| line.ends_with(SERVICES)).cloned().collect();
    assert_eq!(asked, [format!("stream {SERVICES}"), format!("watch {SERVICES}")]);
}

#[tokio::test(start_paused = true)]
async fn labels_take_objects_away_and_give_them_back() {
    let server = Server::new(Streaming::Supported);
    full(&server);
    let (mut events, _) = follow(&server.client(), "node-a");
    initial(&mut events).await;
    let mut labelled = service("a", 1, "6");
    labelled["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    server.push(SERVICES, "MODIFIED", &labelled);
    assert_eq!(next(&mut events).await, ["- shop/a"]);
    server.push(SERVICES, "MODIFIED", &service("a", 1, "7"));
    assert_eq!(next(&mut events).await, ["+ a 10.96.0.1"]);
    let mut labelled = slice("a-1", "8");
    labelled["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
    server.push(SLICES, "MODIFIED", &labelled);
    assert_eq!(next(&mut events).await, ["- slice shop/a-1"]);
    server.push(SLICES, "MODIFIED", &slice("a-1", "9"));
    assert_eq!(next(&mut events).await, ["+ slice a-1"]);
}

#[tokio::test(start_paused = true)]
async fn updates_that_do_not_concern_a_proxy_are_not_passed_on() {
    let server = Server::new(Streaming::Supported);
    full(&server);
    let (mut events, _) = follow(&server.client(), "node-a");
    initial(&mut events).await;
    let mut annotated = service("a", 1, "6");
    annotated["metadata"]["annotations"] = json!({"note": "new"});
    server.push(SERVICES, "MODIFIED", &annotated);
    let mut theirs = service("other", 9, "7");
    theirs["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    server.push(SERVICES, "ADDED", &theirs);
    server.push(SERVICES, "DELETED", &theirs);
    server.push(SERVICES, "ADDED", &service("c", 3, "8"));
    assert_eq!(next(&mut events).await, ["+ c 10.96.0.3"]);
}

#[tokio::test(start_paused = true)]
async fn a_malformed_object_spoils_neither_list_nor_watch() {
    for streaming in [Streaming::Supported, Streaming::Refused] {
        let server = Server::new(streaming);
        let mut bad = service("bad", 2, "2");
        bad["spec"]["ports"] = json!([{"port": "eighty"}]);
        server.set(
            SERVICES,
            vec![service("a", 1, "1"), bad, json!(null), json!(7), service("c", 3, "3")],
        );
        let (mut events, _) = follow(&server.client(), "node-a");
        let got = initial(&mut events).await;
        let good: Vec<_> = got.iter().filter(|line| line.starts_with('+')).collect();
        assert_eq!(good, ["+ a 10.96.0.1", "+ c 10.96.0.3"]);
        assert!(
            got.iter()
                .any(|line| line.starts_with("! Service shop/bad: spec.ports[0].port: ")),
            "{got:?}"
        );
        // An object that was good keeps its last good version.
        let mut bad = service("a", 1, "4");
        bad["spec"]["clusterIP"] = json!({});
        server.push(SERVICES, "MODIFIED", &bad);
        server.push(SERVICES, "ADDED", &service("d", 4, "5"));
        let mut got = Vec::new();
        while got.len() < 2 {
            got.extend(next(&mut events).await);
        }
        assert!(got[0].starts_with("! Service shop/a: spec.clusterIP: "), "{got:?}");
        assert_eq!(got[1], "+ d 10.96.0.4");
    }
}

#[tokio::test(start_paused = true)]
async fn a_report_stands_until_its_object_is_read_anew_or_gone() {
    let server = Server::new(Streaming::Supported);
    full(&server);
    let (mut events, _) = follow(&server.client(), "node-a");
    initial(&mut events).await;
    let with_port = |port: Value, version: &str| {
        let mut service = service("a", 1, version);
        service["spec"]["ports"] = json!([{"port": 80}, {"name": "x", "port": port}]);
        service
    };
    let bad = "! Service shop/a: spec.ports[1].port: 0 is not a port number (1 to 65535)";
    let malformed = |line: &String| line.starts_with("! Service shop/a: spec.ports[1].port: invalid type");
    let over = "~ Service shop/a";
    server.push(SERVICES, "MODIFIED", &with_port(json!(0), "10"));
    assert_eq!(next(&mut events).await, [bad]);
    // The same fault is told once, whatever else changes.
    let mut annotated = with_port(json!(0), "11");
    annotated["metadata"]["annotations"] = json!({"note": "new"});
    server.push(SERVICES, "MODIFIED", &annotated);
    server.push(SERVICES, "MODIFIED", &with_port(json!("y"), "12"));
    let got = next(&mut events).await;
    assert!(got.len() == 2 && got[0] == over && malformed(&got[1]), "{got:?}");
    // Repaired to what had been announced: the object is no news.
    server.push(SERVICES, "MODIFIED", &service("a", 1, "13"));
    assert_eq!(next(&mut events).await, [over]);
    // An object that was never announced.
    let mut never = with_port(json!("y"), "14");
    never["metadata"]["name"] = json!("never");
    server.push(SERVICES, "ADDED", &never);
    assert!(next(&mut events).await[0].starts_with("! Service shop/never: "));
    server.push(SERVICES, "DELETED", &never);
    assert_eq!(next(&mut events).await, ["~ Service shop/never"]);
    // A list that does not have it.
    server.push(SERVICES, "ADDED", &never);
    next(&mut events).await;
    server.push(SERVICES, "MODIFIED", &with_port(json!(0), "15"));
    assert_eq!(next(&mut events).await, [bad]);
    server.set(SERVICES, vec![with_port(json!(0), "16"), service("b", 2, "2")]);
    server.push(SERVICES, "ERROR", &gone());
    assert_eq!(next(&mut events).await, ["~ Service shop/never"]);
}

#[tokio::test(start_paused = true)]
async fn failures_are_told_and_retried() {
    let server = Server::new(Streaming::Supported);
    full(&server);
    let healthy = server.client();
    let down = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let switch = Arc::clone(&down);
    let flaky = tower::service_fn(move |request| {
        let (healthy, down) = (healthy.clone(), Arc::clone(&switch));
        async move {
            if down.load(Ordering::Relaxed) {
                return Err(kube::Error::Service("connection refused".into()));
            }
            healthy.send(request).await
        }
    });
    let (mut events, mut health) = follow(&Client::new(flaky, "default"), "node-a");
    assert_eq!(next(&mut events).await, ["init"]);
    let told = health
        .wait_for(|health| health.services.error.is_some())
        .await
        .unwrap()
        .clone();
    assert!(told.services.error.unwrap().contains("connection refused"));
    assert!(!told.services.synced && told.services.last_contact.is_none());
    down.store(false, Ordering::Relaxed);
    let mut lines = Vec::new();
    while lines.last().is_none_or(|line| line != "done") {
        lines.extend(next(&mut events).await);
    }
    assert_eq!(lines.len(), FULL.len() + 1);
    health
        .wait_for(|health| health.services.synced && health.services.error.is_none())
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_tasks_end_with_the_receiver() {
    let server = Server::new(Streaming::Supported);
    full(&server);
    let (mut events, mut health) = follow(&server.client(), "node-a");
    initial(&mut events).await;
    drop(events);
    // The channel of health values closes when the last task is gone.
    while health.changed().await.is_ok() {}
}

#[tokio::test]
async fn settings_that_make_no_sense_are_explained() {
    let err = client(Some(Path::new("/nonexistent/kubeconfig")))
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(err.starts_with("kubeconfig /nonexistent/kubeconfig: "), "{err}");
    let err = client(None).await.err().unwrap().to_string();
    assert!(err.contains("--kubeconfig"), "{err}");
}

#[tokio::test]
async fn a_kubeconfig_with_tls_makes_a_client() {
    let path = std::env::temp_dir().join(format!("fairlead-kubeconfig-{}", std::process::id()));
    let text = "{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: k, user: u}}], \
                clusters: [{name: k, cluster: {server: 'https://127.0.0.1:1'}}], users: [{name: u, user: {token: t}}]}";
    std::fs::write(&path, text).unwrap();
    let made = client(Some(&path)).await;
    std::fs::remove_file(&path).unwrap();
    made.unwrap();
}

#[tokio::test]
async fn the_first_watch_to_end_ends_the_source() {
    let (sender, mut receiver) = mpsc::channel::<Vec<Event>>(1);
    let mut tasks = JoinSet::new();
    for dies in [false, true, false] {
        let sender = sender.clone();
        tasks.spawn(async move {
            assert!(!dies, "as a bug in a conversion would");
            sender.closed().await;
        });
    }
    drop(sender);
    all_or_none(tasks).await;
    assert_eq!(receiver.recv().await, None);
}
