//! Watches: objects of the API server, read one by one. What cannot be read is reported and hurts only itself.

use crate::{
    node::NodeFacts,
    pod::{Key, PodInfo},
    scheduler::{Input, Kind},
    selector::{NodeTerm, Selector},
    world::{Budget, Claim},
};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::{
    apps::v1::{ReplicaSet, StatefulSet},
    core::v1::{
        Namespace, Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController, Service,
    },
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    panic::{AssertUnwindSafe, catch_unwind},
};
use tokio::sync::mpsc;

/// What a watch says.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Something about an object.
    Input(Input),
    /// What a pod's status says of us.
    Status(Key, PodStatus),
    /// An object that could not be read, or not wholly.
    Malformed(Box<ObjectReference>, String),
    /// All objects of a kind were heard of.
    Synced(Kind),
}

/// The condition `PodScheduled` of a pod without a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodStatus {
    /// `status`.
    pub(crate) scheduled: Option<String>,
    /// `reason`.
    pub(crate) reason: String,
    /// `message`.
    pub(crate) message: String,
}

/// Every kind that is watched.
pub(crate) const KINDS: [Kind; 10] = [
    Kind::Pod,
    Kind::Node,
    Kind::Namespace,
    Kind::Claim,
    Kind::Volume,
    Kind::Service,
    Kind::ReplicationController,
    Kind::ReplicaSet,
    Kind::StatefulSet,
    Kind::Budget,
];

type Said = mpsc::Sender<Heard>;

/// Watches a kind for as long as somebody listens.
pub(crate) async fn run(kind: Kind, client: Client, said: Said) -> Kind {
    match kind {
        Kind::Pod => {
            let fields = watcher::Config::default().fields("status.phase!=Succeeded,status.phase!=Failed");
            watch(kind, client, fields, said, pod).await;
        }
        Kind::Node => watch(kind, client, Default::default(), said, node).await,
        Kind::Namespace => {
            let read = |it: &Namespace, _: &mut Vec<String>| {
                Some(Input::Namespace(
                    it.name_any(),
                    it.metadata.labels.clone().unwrap_or_default(),
                ))
            };
            watch(kind, client, Default::default(), said, plain(read)).await;
        }
        Kind::Claim => watch(kind, client, Default::default(), said, plain(claim)).await,
        Kind::Volume => watch(kind, client, Default::default(), said, plain(volume)).await,
        Kind::Service => {
            let read = |it: &Service, _: &mut Vec<String>| {
                let labels = it.spec.as_ref().and_then(|it| it.selector.clone()).unwrap_or_default();
                let selector = if labels.is_empty() {
                    Selector::NOTHING
                } else {
                    Selector::of_labels(&labels)
                };
                Some(Input::Service(key(it), selector))
            };
            watch(kind, client, Default::default(), said, plain(read)).await;
        }
        Kind::ReplicationController => {
            let read = |it: &ReplicationController, _: &mut Vec<String>| {
                let labels = it.spec.as_ref().and_then(|it| it.selector.clone()).unwrap_or_default();
                let selector = Selector::of_labels(&labels);
                Some(Input::Owner("ReplicationController", key(it), selector))
            };
            watch(kind, client, Default::default(), said, plain(read)).await;
        }
        Kind::ReplicaSet => {
            let read = |it: &ReplicaSet, faults: &mut Vec<String>| {
                let selector = it.spec.as_ref().map(|it| &it.selector);
                let selector = selector_of(Selector::read(selector), faults)?;
                Some(Input::Owner("ReplicaSet", key(it), selector))
            };
            watch(kind, client, Default::default(), said, plain(read)).await;
        }
        Kind::StatefulSet => {
            let read = |it: &StatefulSet, faults: &mut Vec<String>| {
                let selector = it.spec.as_ref().map(|it| &it.selector);
                let selector = selector_of(Selector::read(selector), faults)?;
                Some(Input::Owner("StatefulSet", key(it), selector))
            };
            watch(kind, client, Default::default(), said, plain(read)).await;
        }
        Kind::Budget => watch(kind, client, Default::default(), said, plain(budget)).await,
    }
    kind
}

fn key<K: Resource>(object: &K) -> Key {
    let meta = object.meta();
    Key::new(
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}

fn selector_of(read: Result<Selector, String>, faults: &mut Vec<String>) -> Option<Selector> {
    read.map_err(|why| faults.push(format!("spec.selector: {why}"))).ok()
}

/// For kinds of which only the input matters.
fn plain<K>(read: impl Fn(&K, &mut Vec<String>) -> Option<Input>) -> impl Fn(&K, &mut Vec<String>) -> Vec<Heard> {
    move |object, faults| read(object, faults).map(Heard::Input).into_iter().collect()
}

/// Bound pods with faults are nobody's concern any more; those of others are told when they are tried.
fn pod(object: &Pod, _: &mut Vec<String>) -> Vec<Heard> {
    let info = PodInfo::read(object);
    let status = object.status.as_ref();
    let condition = status.and_then(|it| it.conditions.iter().flatten().find(|it| it.type_ == "PodScheduled"));
    let said = condition.map(|it| PodStatus {
        scheduled: Some(it.status.clone()),
        reason: it.reason.clone().unwrap_or_default(),
        message: it.message.clone().unwrap_or_default(),
    });
    let mut all = Vec::new();
    if info.node.is_none() {
        all.push(Heard::Status(info.key.clone(), said.unwrap_or_default()));
    }
    let nominated = status
        .and_then(|it| it.nominated_node_name.clone())
        .filter(|it| !it.is_empty());
    all.push(Heard::Input(Input::Pod(std::sync::Arc::new(info), nominated)));
    all
}

fn node(object: &Node, faults: &mut Vec<String>) -> Vec<Heard> {
    let facts = NodeFacts::read(object);
    faults.extend(facts.faults.iter().cloned());
    vec![Heard::Input(Input::Node(object.name_any(), Box::new(facts)))]
}

#[allow(clippy::unnecessary_wraps, reason = "as the others")]
fn claim(object: &PersistentVolumeClaim, _: &mut Vec<String>) -> Option<Input> {
    let volume = object.spec.as_ref().and_then(|it| it.volume_name.clone());
    let phase = object.status.as_ref().and_then(|it| it.phase.as_deref());
    let claim = Claim {
        volume: volume.filter(|it| !it.is_empty()),
        terminating: object.metadata.deletion_timestamp.is_some(),
        lost: phase == Some("Lost"),
    };
    Some(Input::Claim(key(object), claim))
}

fn volume(object: &PersistentVolume, faults: &mut Vec<String>) -> Option<Input> {
    let required = object
        .spec
        .as_ref()
        .and_then(|it| it.node_affinity.as_ref()?.required.as_ref());
    let terms = required.map(|it| it.node_selector_terms.iter().map(NodeTerm::read).collect());
    let terms: Result<Option<Vec<_>>, String> = terms.transpose();
    let terms = terms
        .map_err(|why| faults.push(format!("spec.nodeAffinity.required: {why}")))
        .ok()?;
    Some(Input::Volume(object.name_any(), terms))
}

fn budget(object: &PodDisruptionBudget, faults: &mut Vec<String>) -> Option<Input> {
    let selector = object.spec.as_ref().and_then(|it| it.selector.as_ref());
    let status = object.status.as_ref();
    let budget = Budget {
        selector: selector_of(Selector::read(selector), faults)?,
        allowed: status.and_then(|it| it.disruptions_allowed).unwrap_or(0).into(),
        disrupted: status
            .and_then(|it| it.disrupted_pods.as_ref())
            .into_iter()
            .flatten()
            .map(|(name, _)| name.clone())
            .collect(),
    };
    Some(Input::Budget(key(object), budget))
}

/// Hands on what one watch says. Returns when nobody listens.
async fn watch<K>(
    kind: Kind,
    client: Client,
    config: watcher::Config,
    said: Said,
    read: impl Fn(&K, &mut Vec<String>) -> Vec<Heard> + Send,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let api: Api<DeserializeGuard<K>> = Api::all(client);
    let mut events = watcher::watcher(api, config).default_backoff().boxed();
    let mut seen = BTreeSet::new();
    // What was said of whom, so that a node that reports every few seconds is not complained of every few seconds.
    let mut faults = BTreeMap::<Key, String>::new();
    loop {
        let event = match events.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(?kind, error = %error, "a watch broke; it will be resumed");
                continue;
            }
        };
        let mut heard = Vec::new();
        match event {
            Event::Init => seen.clear(),
            Event::InitApply(object) => {
                seen.insert(key(&object));
                heard = understand(&object, &read);
            }
            Event::Apply(object) => heard = understand(&object, &read),
            Event::Delete(object) => heard.push(Heard::Input(Input::Gone(kind, key(&object)))),
            Event::InitDone => {
                heard.push(Heard::Input(Input::Only(kind, std::mem::take(&mut seen))));
                heard.push(Heard::Synced(kind));
            }
        }
        for it in heard {
            match &it {
                Heard::Malformed(about, why) if faults.insert(named(about), why.clone()).as_ref() == Some(why) => {
                    continue;
                }
                Heard::Input(Input::Gone(_, key)) => drop(faults.remove(key)),
                _ => {}
            }
            if said.send(it).await.is_err() {
                return;
            }
        }
    }
}

fn named(about: &ObjectReference) -> Key {
    Key::new(
        about.namespace.as_deref().unwrap_or_default(),
        about.name.as_deref().unwrap_or_default(),
    )
}

fn understand<K: Resource<DynamicType = ()>>(
    object: &DeserializeGuard<K>,
    read: &impl Fn(&K, &mut Vec<String>) -> Vec<Heard>,
) -> Vec<Heard> {
    let reference = object.object_ref(&());
    let mut faults = Vec::new();
    let mut heard = match &object.0 {
        // Objects come from everybody: one that we stumble over must not end the watch of all.
        Ok(object) => catch_unwind(AssertUnwindSafe(|| read(object, &mut faults))).unwrap_or_else(|_| {
            faults.push("reading it failed; this is a fault of the scheduler, whose log has more".to_owned());
            Vec::new()
        }),
        Err(invalid) => {
            faults.push(invalid.error.clone());
            Vec::new()
        }
    };
    if !faults.is_empty() {
        heard.push(Heard::Malformed(Box::new(reference), faults.join("; ")));
    }
    heard
}

#[cfg(test)]
mod tests {
    use super::{Heard, node, pod, understand};
    use crate::{pod::Key, scheduler::Input};
    use kube::core::DeserializeGuard;
    use serde_json::json;

    #[test]
    fn what_cannot_be_read_is_named_and_nothing_else_is_said() {
        let object = json!({
            "metadata": { "name": "p", "namespace": "ns", "uid": "u" }, "spec": { "containers": "none" },
        });
        let object: DeserializeGuard<_> = serde_json::from_value(object).unwrap();
        let heard = understand(&object, &pod);
        let [Heard::Malformed(about, why)] = &heard[..] else {
            panic!("{heard:?}");
        };
        assert_eq!((about.name.as_deref(), about.uid.as_deref()), (Some("p"), Some("u")));
        assert!(why.contains("Expected a sequence"), "{why}");
    }

    #[test]
    fn a_node_counts_for_what_could_be_read() {
        let object = json!({
            "metadata": { "name": "n" }, "status": { "allocatable": { "cpu": "4", "memory": "lots" } },
        });
        let object: DeserializeGuard<_> = serde_json::from_value(object).unwrap();
        let heard = understand(&object, &node);
        let [Heard::Input(Input::Node(name, facts)), Heard::Malformed(_, why)] = &heard[..] else {
            panic!("{heard:?}");
        };
        assert_eq!(
            (name.as_str(), facts.allocatable.cpu, facts.allocatable.memory),
            ("n", 4000, 0)
        );
        assert_eq!(why, "status.allocatable[memory]: \"lots\" is no amount");
    }

    #[test]
    fn one_that_we_stumble_over_is_one() {
        let object: DeserializeGuard<_> = serde_json::from_value(json!({ "metadata": { "name": "n" } })).unwrap();
        let stumbles = |_: &k8s_openapi::api::core::v1::Node, _: &mut Vec<String>| -> Vec<Heard> { panic!("stumbled") };
        let heard = understand(&object, &stumbles);
        let [Heard::Malformed(about, _)] = &heard[..] else {
            panic!("{heard:?}");
        };
        assert_eq!(super::named(about), Key::new("", "n"));
    }
}
