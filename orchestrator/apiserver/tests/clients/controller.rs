//! A controller as one writes it with kube-rs: each ConfigMap with the label `copy` gets a Secret of the same content,
//! which it owns; a finalizer removes it again.

use crate::support::TestServer;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
    runtime::{
        Controller,
        controller::Action,
        finalizer::{Event, finalizer},
        wait::{await_condition, conditions},
        watcher,
    },
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

const NAMESPACE: &str = "default";
const FINALIZER: &str = "example.org/copy";

/// Longer than anything here takes.
const LOST: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(String);

async fn reconcile(map: Arc<ConfigMap>, client: Arc<Client>) -> Result<Action, Failed> {
    let client = (*client).clone();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let secrets: Api<Secret> = Api::namespaced(client, NAMESPACE);
    let work = |event: Event<ConfigMap>| async move {
        match event {
            Event::Apply(map) => {
                let copy = Secret {
                    metadata: ObjectMeta {
                        name: map.metadata.name.clone(),
                        owner_references: map.controller_owner_ref(&()).map(|owner| vec![owner]),
                        ..ObjectMeta::default()
                    },
                    string_data: map.data.clone(),
                    ..Secret::default()
                };
                let params = PatchParams::apply("copier").force();
                secrets.patch(&map.name_any(), &params, &Patch::Apply(&copy)).await?;
            }
            Event::Cleanup(map) => {
                secrets.delete(&map.name_any(), &DeleteParams::default()).await?;
            }
        }
        Ok::<_, kube::Error>(Action::await_change())
    };
    let done = finalizer(&maps, FINALIZER, map, work).await;
    done.map_err(|error| Failed(error.to_string()))
}

fn content(secret: &Secret) -> BTreeMap<String, String> {
    let data = secret.data.clone().unwrap_or_default().into_iter();
    data.map(|(key, value)| (key, String::from_utf8(value.0).unwrap()))
        .collect()
}

async fn until<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(LOST, future).await;
    done.unwrap_or_else(|_| panic!("{what}: not within {} s", LOST.as_secs()))
}

async fn controls(config: watcher::Config) {
    let server = TestServer::start().await;
    let client = server.client().await;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let controller = Controller::new(maps.clone(), config.clone().labels("copy"))
        .owns(secrets.clone(), config)
        .run(
            reconcile,
            |_, _, _| Action::requeue(Duration::from_millis(100)),
            Arc::new(client),
        );
    let controller = tokio::spawn(controller.for_each(|_| async {}));

    let data = |value: &str| BTreeMap::from([("k".to_owned(), value.to_owned())]);
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some("a".to_owned()),
            labels: Some(BTreeMap::from([("copy".to_owned(), "yes".to_owned())])),
            ..ObjectMeta::default()
        },
        data: Some(data("1")),
        ..ConfigMap::default()
    };
    let made = maps.create(&PostParams::default(), &map).await.unwrap();
    let holds = |value: &'static str| {
        move |secret: Option<&Secret>| secret.is_some_and(|it| content(it).get("k").map(String::as_str) == Some(value))
    };
    let copied = until("the copy", await_condition(secrets.clone(), "a", holds("1"))).await;
    let copy = copied.unwrap().unwrap();
    assert_eq!(copy.owner_references()[0].uid, made.uid().unwrap());

    // A change of the owner, then of what it owns.
    let patch = serde_json::json!({ "data": { "k": "2" } });
    maps.patch("a", &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
    until("the change", await_condition(secrets.clone(), "a", holds("2")))
        .await
        .unwrap();
    let wrong = serde_json::json!({ "stringData": { "k": "wrong" } });
    secrets
        .patch("a", &PatchParams::default(), &Patch::Strategic(&wrong))
        .await
        .unwrap();
    until("the repair", await_condition(secrets.clone(), "a", holds("2")))
        .await
        .unwrap();

    // The finalizer keeps the owner until the copy is gone.
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    let uid = made.uid().unwrap();
    until("the end", await_condition(maps, "a", conditions::is_deleted(&uid)))
        .await
        .unwrap();
    assert!(secrets.get_opt("a").await.unwrap().is_none());
    controller.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_lists_and_watches() {
    controls(watcher::Config::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_streams_its_lists() {
    controls(watcher::Config::default().streaming_lists()).await;
}
