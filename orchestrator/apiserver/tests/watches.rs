//! Watches, through the router and through a real client's reflector.

#[path = "support/mod.rs"]
mod support;

use futures::{StreamExt as _, TryStreamExt as _};
use http::{Method, Request};
use http_body_util::{BodyExt as _, Empty};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::{Value, json};
use std::collections::VecDeque;
use support::TestServer;
use tower::ServiceExt as _;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Events of a watch, one at a time.
struct Events {
    body: fairlead_apiserver::http::Body,
    lines: VecDeque<Value>,
    rest: Vec<u8>,
}

impl Events {
    async fn open(server: &TestServer, query: &str) -> Self {
        let path = format!("{MAPS}?watch=true&{query}");
        let request = Request::builder()
            .method(Method::GET)
            .uri(path)
            .body(Empty::<bytes::Bytes>::new())
            .unwrap();
        let response = server.admin().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        Self {
            body: response.into_body(),
            lines: VecDeque::new(),
            rest: Vec::new(),
        }
    }

    /// The next event; `None` at the end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(event) = self.lines.pop_front() {
                return Some(event);
            }
            let frame = self.body.frame().await?.unwrap();
            self.rest.extend_from_slice(&frame.into_data().unwrap());
            while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                self.lines.push_back(serde_json::from_slice(&line).unwrap());
            }
        }
    }

    /// Type and name of the next event.
    async fn next_short(&mut self) -> String {
        let event = self.next().await.unwrap();
        format!(
            "{} {}",
            event["type"].as_str().unwrap(),
            event["object"]["metadata"]["name"].as_str().unwrap_or("-")
        )
    }
}

fn map(name: &str, label: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "labels": { "l": label } } })
}

#[tokio::test]
async fn a_list_as_a_watch_ends_with_a_bookmark() {
    let server = TestServer::start().await;
    server.post(MAPS, &map("a", "1")).await;
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut events = Events::open(&server, query).await;
    assert_eq!(events.next_short().await, "ADDED a");
    let bookmark = events.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(
        bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    let (_, list) = server.get(MAPS).await;
    assert_eq!(
        bookmark["object"]["metadata"]["resourceVersion"],
        list["metadata"]["resourceVersion"]
    );
    server.delete(&format!("{MAPS}/a"), None).await;
    assert_eq!(events.next_short().await, "DELETED a");
}

#[tokio::test]
async fn objects_enter_and_leave_a_selection() {
    let server = TestServer::start().await;
    server.post(MAPS, &map("a", "in")).await;
    server.post(MAPS, &map("b", "out")).await;
    let mut events = Events::open(&server, "labelSelector=l%3Din").await;
    assert_eq!(events.next_short().await, "ADDED a");
    server.put(&format!("{MAPS}/b"), &map("b", "in")).await;
    assert_eq!(events.next_short().await, "ADDED b");
    let (_, left) = server.put(&format!("{MAPS}/a"), &map("a", "out")).await;
    let event = events.next().await.unwrap();
    assert_eq!(event["type"], "DELETED");
    // The object as it was while it was selected, with the revision of the change.
    assert_eq!(event["object"]["metadata"]["labels"]["l"], "in");
    assert_eq!(
        event["object"]["metadata"]["resourceVersion"],
        left["metadata"]["resourceVersion"]
    );
    // What happens outside the selection is not told.
    server.put(&format!("{MAPS}/a"), &map("a", "far out")).await;
    server.delete(&format!("{MAPS}/b"), None).await;
    assert_eq!(events.next_short().await, "DELETED b");
}

#[tokio::test]
async fn a_watch_goes_on_where_a_list_ended() {
    let server = TestServer::start().await;
    let (_, list) = server.get(MAPS).await;
    let from = list["metadata"]["resourceVersion"].as_str().unwrap();
    for n in 0..5 {
        server.post(MAPS, &map(&format!("m{n}"), "x")).await;
    }
    let mut events = Events::open(&server, &format!("resourceVersion={from}")).await;
    for n in 0..5 {
        assert_eq!(events.next_short().await, format!("ADDED m{n}"));
    }
    let mut events = Events::open(&server, &format!("resourceVersion={from}&timeoutSeconds=1")).await;
    for n in 0..5 {
        assert_eq!(events.next_short().await, format!("ADDED m{n}"));
    }
    assert!(
        events.next().await.is_none(),
        "a watch ends cleanly when its time is over"
    );
}

#[tokio::test]
async fn tables_are_watched_too() {
    let server = TestServer::start().await;
    server.post(MAPS, &map("a", "1")).await;
    let request = Request::builder()
        .uri(format!("{MAPS}?watch=true"))
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(Empty::<bytes::Bytes>::new())
        .unwrap();
    let response = server.admin().oneshot(request).await.unwrap();
    let mut events = Events {
        body: response.into_body(),
        lines: VecDeque::new(),
        rest: Vec::new(),
    };
    let first = events.next().await.unwrap();
    assert_eq!(first["object"]["kind"], "Table");
    assert_eq!(first["object"]["columnDefinitions"][0]["name"], "Name");
    assert_eq!(first["object"]["rows"][0]["cells"][0], "a");
    server.post(MAPS, &map("b", "1")).await;
    let second = events.next().await.unwrap();
    assert_eq!(second["object"]["columnDefinitions"], json!([]));
    assert_eq!(second["object"]["rows"][0]["object"]["metadata"]["name"], "b");
}

#[tokio::test]
async fn a_real_client_follows_by_list_and_by_stream() {
    let server = TestServer::start().await;
    for (client, config) in [
        (server.client().await, watcher::Config::default()),
        (server.client().await, watcher::Config::default().streaming_lists()),
        (server.inner_client(), watcher::Config::default()),
    ] {
        let maps: Api<ConfigMap> = Api::namespaced(client, "default");
        let mut changes = watcher(maps.clone(), config).applied_objects().boxed();
        let new = ConfigMap {
            metadata: ObjectMeta {
                name: Some("a".to_owned()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        };
        maps.create(&PostParams::default(), &new).await.unwrap();
        let seen = changes.try_next().await.unwrap().unwrap();
        assert_eq!(seen.metadata.name.as_deref(), Some("a"));
        let patch = Patch::Merge(json!({ "data": { "k": "v" } }));
        maps.patch("a", &PatchParams::default(), &patch).await.unwrap();
        let seen = changes.try_next().await.unwrap().unwrap();
        assert_eq!(seen.data.unwrap()["k"], "v");
        maps.delete("a", &DeleteParams::default()).await.unwrap();
    }
}

#[tokio::test]
async fn a_stopping_server_ends_watches() {
    let server = TestServer::start().await;
    let mut events = Events::open(&server, "").await;
    server.running.server.begin_stop();
    assert!(events.next().await.is_none());
}
