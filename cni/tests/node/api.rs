//! Nodes of a real API server: pod networks and routes follow them.

use crate::rig::{Host, MakeClient, Netns, eventually, may_run};
use fairlead_apiserver::{
    Inside, Settings,
    authn::User,
    open::{Running, Start},
};
use fairlead_store::testing::EtcdDouble;
use http::Method;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::{net::TcpListener, runtime::Runtime};

/// An API server on threads of its own.
struct Api {
    runtime: Runtime,
    running: Running,
    _directory: tempfile::TempDir,
}

impl Api {
    fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let running = runtime.block_on(async {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
            let start = Start::new(directory.path().to_owned(), listener.local_addr().unwrap().port());
            Running::start(Arc::new(EtcdDouble::new()), Settings::default(), &start, listener)
                .await
                .unwrap()
        });
        Self {
            runtime,
            running,
            _directory: directory,
        }
    }

    fn door(&self, user: &str, group: &str) -> Inside {
        Inside::new(Arc::clone(&self.running.server), User::authenticated(user, [group]))
    }

    fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Value {
        let kind = if method == Method::PATCH {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        let door = self.door("admin", "system:masters");
        let (code, answer) = self.runtime.block_on(door.request(method, path, kind, body));
        assert!((200..300).contains(&code), "{path}: {code} {answer}");
        answer
    }

    /// As node networks are in every cluster: with a proxy's rights, since a node's own may read no other Node.
    fn client(&self) -> MakeClient {
        let door = self.door("system:kube-proxy", "system:authenticated");
        Box::new(move || kube::Client::new(door, "default"))
    }

    fn node(&self, name: &str, cidrs: &[&str], address: &[&str]) {
        let addresses: Vec<_> = address
            .iter()
            .map(|it| json!({ "type": "InternalIP", "address": it }))
            .collect();
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
            "spec": if cidrs.is_empty() { json!({}) } else { json!({ "podCIDR": cidrs[0], "podCIDRs": cidrs }) },
        });
        self.request(Method::POST, "/api/v1/nodes", Some(&node));
        let status = json!({ "status": { "addresses": addresses } });
        self.request(Method::PATCH, &format!("/api/v1/nodes/{name}/status"), Some(&status));
    }
}

fn host(api: &Api, name: &str, netns: &Netns) -> Host {
    let mut host = Host::new(&[]);
    host.netns = netns.clone();
    host.config.node_name = name.into();
    host.start_with(api.client());
    host
}

#[test]
fn pods_of_two_nodes_reach_one_another() {
    if !may_run("pods_of_two_nodes_reach_one_another") {
        return;
    }
    let api = Api::start();
    let (one, two) = (Netns::new(), Netns::new());
    one.join(
        "eth0",
        &["192.168.0.1/24", "fd00:192:168::1/64"],
        &two,
        "eth0",
        &["192.168.0.2/24", "fd00:192:168::2/64"],
    );
    api.node(
        "one",
        &["10.1.0.0/24", "fd00:10:1::/64"],
        &["192.168.0.1", "fd00:192:168::1"],
    );
    let a = host(&api, "one", &one);
    a.ready();
    let on_one = a.pod();
    // The other node comes later, and its pod networks later still.
    api.node("two", &[], &["192.168.0.2", "fd00:192:168::2"]);
    let b = host(&api, "two", &two);
    let cidrs = json!({ "spec": { "podCIDR": "10.1.1.0/24", "podCIDRs": ["10.1.1.0/24", "fd00:10:1:1::/64"] } });
    api.request(Method::PATCH, "/api/v1/nodes/two", Some(&cidrs));
    b.ready();
    let on_two = b.pod();
    assert_eq!(on_two.ips(), ["10.1.1.1", "fd00:10:1:1::1"]);
    let route = |netns: &Netns, to: &str| {
        let family = if to.contains(':') { "-6" } else { "-4" };
        netns.ip(&format!("{family} route show {to}"))
    };
    eventually("each has routes to the other", || {
        ["10.1.1.0/24", "fd00:10:1:1::/64"]
            .iter()
            .all(|to| route(&one, to).contains("via"))
            && ["10.1.0.0/24", "fd00:10:1::/64"]
                .iter()
                .all(|to| route(&two, to).contains("via"))
    });
    for at in 0..2 {
        let server = on_two.netns.serve(&on_two.ips()[at]);
        assert_eq!(
            on_one.netns.ask(server).unwrap(),
            on_one.ips()[at],
            "pod to pod, without masquerading"
        );
        assert_eq!(
            one.ask(server).unwrap(),
            ["192.168.0.1", "fd00:192:168::1"][at],
            "node to pod"
        );
    }
    // A removed route comes back; a deleted node's goes.
    one.ip("route del 10.1.1.0/24");
    eventually("the route is back", || {
        route(&one, "10.1.1.0/24").contains("via 192.168.0.2")
    });
    api.request(Method::DELETE, "/api/v1/nodes/two", None);
    eventually("the route is gone", || route(&one, "10.1.1.0/24").is_empty());
    assert!(route(&one, "10.1.0.0/24").contains("blackhole"));
}

#[test]
fn a_node_behind_a_router_is_told_of() {
    if !may_run("a_node_behind_a_router_is_told_of") {
        return;
    }
    let api = Api::start();
    let (one, router) = (Netns::new(), Netns::new());
    one.join("eth0", &["192.168.0.1/24"], &router, "eth9", &["192.168.0.254/24"]);
    one.ip("route add default via 192.168.0.254");
    api.node("one", &["10.1.0.0/24"], &["192.168.0.1"]);
    api.node("far", &["10.1.1.0/24"], &["192.168.9.2"]);
    api.node("near", &["10.1.2.0/24"], &["192.168.0.3"]);
    api.node("odd", &["10.1.0.0/24"], &["192.168.0.4"]);
    let a = host(&api, "one", &one);
    a.ready();
    let mut notes = Vec::new();
    eventually("both are told of", || {
        let events = api.request(Method::GET, "/apis/events.k8s.io/v1/events", None);
        notes = events["items"].as_array().unwrap().clone();
        notes.len() >= 2
    });
    let note = |name: &str| {
        let found = notes.iter().find(|event| event["regarding"]["name"] == name).unwrap();
        assert_eq!(found["type"], "Warning");
        assert_eq!(found["reason"], "NoPodRoute");
        found["note"].as_str().unwrap().to_owned()
    };
    assert!(
        note("far").contains("behind the router 192.168.0.254"),
        "{}",
        note("far")
    );
    assert!(note("odd").contains("overlaps"), "{}", note("odd"));
    assert_eq!(notes.len(), 2);
    eventually("the near one has its route", || {
        one.ip("route show 10.1.2.0/24").contains("via 192.168.0.3")
    });
    assert!(one.ip("route show 10.1.1.0/24").is_empty());
    // A route of the administrator's makes it near, and takes the warning's cause away.
    one.ip("route add 192.168.9.2 dev eth0");
    eventually("the far one has its route", || {
        one.ip("route show 10.1.1.0/24").contains("via 192.168.9.2")
    });
}

#[test]
fn pod_networks_are_remembered_without_an_api_server() {
    if !may_run("pod_networks_are_remembered_without_an_api_server") {
        return;
    }
    let api = Api::start();
    let netns = Netns::new();
    api.node("one", &["10.1.7.0/24"], &["192.168.0.1"]);
    let mut a = host(&api, "one", &netns);
    a.ready();
    let first = a.pod();
    a.stop();
    a.start();
    a.ready();
    assert_eq!(first.ips(), ["10.1.7.1"]);
    assert_eq!(a.pod().ips(), ["10.1.7.2"]);
    a.check(&first).unwrap();
}
