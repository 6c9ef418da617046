//! The namespace controller: empties a namespace that is being deleted, pods first, and then lets it go.

use super::discovery::{Found, discover};
use crate::frame::{Cache, Clock, Controller, Fault, Frame, Key, Next, Outcome};
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Namespace, NamespaceCondition},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
    core::{DynamicObject, PartialObjectMeta},
    runtime::watcher,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

const NAME: &str = "namespace-controller";
/// What the API server puts into `spec.finalizers` for us.
const FINALIZER: &str = "kubernetes";
/// How long we listen for content that goes before we delete again.
const LISTEN: Duration = Duration::from_secs(10);
/// Requests at a time for one namespace.
const AT_A_TIME: usize = 8;

struct Namespaces {
    client: Client,
    clock: Clock,
    namespaces: Arc<Cache<Namespace>>,
}

pub(crate) fn controller(frame: &Arc<Frame>) -> Controller {
    let this = Arc::new(Namespaces {
        client: frame.client(NAME),
        clock: frame.clock(),
        namespaces: frame.cache(),
    });
    let namespaces = Arc::clone(&this.namespaces);
    Controller::new(NAME, 10, move |key: Key| {
        let this = Arc::clone(&this);
        async move { this.reconcile(&key).await }
    })
    .on_own(&namespaces)
}

/// What is left after everything was asked to go.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Left {
    /// Groups that could not be asked what they have.
    pub(crate) undiscovered: Vec<String>,
    /// What could not be deleted.
    pub(crate) failed: Vec<String>,
    /// Objects that are still there, by resource.
    pub(crate) remaining: BTreeMap<String, usize>,
    /// Objects held by a finalizer, by finalizer.
    pub(crate) finalizers: BTreeMap<String, usize>,
}

impl Left {
    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// The conditions that say what is left. Source: `NamespaceCondition.type`.
pub(crate) fn conditions(left: &Left, old: &[NamespaceCondition], now: Timestamp) -> Vec<NamespaceCondition> {
    let count = |all: &BTreeMap<String, usize>, of: &str| {
        let parts = all.iter().map(|(name, number)| format!("{name}{of}{number}"));
        parts.collect::<Vec<_>>()
    };
    let remaining = count(&left.remaining, " has ")
        .into_iter()
        .map(|it| format!("{it} resource instances"));
    let held = count(&left.finalizers, " in ")
        .into_iter()
        .map(|it| format!("{it} resource instances"));
    let join = |all: Vec<String>| all.join(", ");
    // (type, what is wrong or nothing, reason when wrong, reason and message when well)
    let all = [
        (
            "NamespaceDeletionDiscoveryFailure",
            join(left.undiscovered.clone()),
            "DiscoveryFailed",
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            String::new(),
            "GroupVersionParsingFailed",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            join(left.failed.clone()),
            "ContentDeletionFailed",
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        (
            "NamespaceContentRemaining",
            join(remaining.collect()),
            "SomeResourcesRemain",
            "ContentRemoved",
            "All content successfully removed",
        ),
        (
            "NamespaceFinalizersRemaining",
            join(held.collect()),
            "SomeFinalizersRemain",
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        ),
    ];
    let mut new: Vec<NamespaceCondition> = old
        .iter()
        .filter(|it| !all.iter().any(|mine| mine.0 == it.type_))
        .cloned()
        .collect();
    for (kind, wrong, bad, good, well) in all {
        let (status, reason, message) = match kind {
            _ if wrong.is_empty() => ("False", good, well.to_owned()),
            "NamespaceContentRemaining" => ("True", bad, format!("Some resources are remaining: {wrong}")),
            "NamespaceFinalizersRemaining" => (
                "True",
                bad,
                format!("Some content in the namespace has finalizers remaining: {wrong}"),
            ),
            _ => ("True", bad, wrong),
        };
        let before = old.iter().find(|it| it.type_ == kind);
        let since = before.filter(|it| it.status == status);
        new.push(NamespaceCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: since.and_then(|it| it.last_transition_time.clone()).or(Some(Time(now))),
        });
    }
    new
}

impl Namespaces {
    async fn reconcile(&self, key: &Key) -> Outcome {
        let cached = self.namespaces.get("", &key.name);
        let Some(cached) = cached.filter(|it| it.metadata.deletion_timestamp.is_some()) else {
            return Ok(Next::Change);
        };
        let ours = |it: &Namespace| {
            let finalizers = it.spec.as_ref().and_then(|it| it.finalizers.as_ref());
            finalizers.into_iter().flatten().any(|it| it == FINALIZER)
        };
        if !ours(&cached) {
            return Ok(Next::Change);
        }
        let api: Api<Namespace> = Api::all(self.client.clone());
        let live = api.get_opt(&key.name).await;
        let live = live.map_err(|error| Fault::api(format!("get namespace {key}"), error))?;
        let Some(live) = live.filter(|it| it.metadata.uid == cached.metadata.uid && ours(it)) else {
            return Ok(Next::Change);
        };
        let (left, first) = self.empty(&key.name).await?;
        let live = self.tell(live, &left).await?;
        if left.is_nothing() {
            return self.finalize(live).await;
        }
        if let Some(found) = first {
            self.listen(&key.name, &found).await;
            return Ok(Next::After(Duration::ZERO));
        }
        Err(Fault::Other(format!("namespace {key} cannot be emptied: {left:?}")))
    }

    /// Deletes what there is. Returns what is left, and a kind of which something is going.
    async fn empty(&self, namespace: &str) -> Result<(Left, Option<Found>), Fault> {
        let discovered = discover(&self.client).await?;
        let mut left = Left {
            undiscovered: discovered.faults,
            ..Left::default()
        };
        let (pods, others): (Vec<_>, Vec<_>) = discovered
            .resources
            .into_iter()
            .filter(|it| it.namespaced && it.can(&["list", "delete"]))
            .partition(|it| it.resource.plural == "pods" && it.resource.group.is_empty());
        let mut first = None;
        // What pods use goes after them, so that they end in peace: KEP-5080.
        for part in [pods, others] {
            let emptied = part.into_iter().map(|found| async move {
                let result = self.empty_of(namespace, &found).await;
                (found, result)
            });
            let mut emptied = futures::stream::iter(emptied).buffer_unordered(AT_A_TIME);
            while let Some((found, result)) = emptied.next().await {
                let name = match found.resource.group.as_str() {
                    "" => format!("{}.", found.resource.plural),
                    group => format!("{}.{group}", found.resource.plural),
                };
                match result {
                    Ok(held) if held.is_empty() => {}
                    Ok(held) => {
                        left.remaining.insert(name, held.len());
                        for finalizer in held.into_iter().flatten() {
                            *left.finalizers.entry(finalizer).or_default() += 1;
                        }
                        first.get_or_insert(found);
                    }
                    Err(fault) => left.failed.push(fault.to_string()),
                }
            }
            if !left.remaining.is_empty() || !left.failed.is_empty() {
                break;
            }
        }
        left.failed.sort();
        Ok((left, first))
    }

    /// Deletes all objects of a kind. Returns the finalizers of each that is still there.
    async fn empty_of(&self, namespace: &str, found: &Found) -> Result<Vec<Vec<String>>, Fault> {
        let what = |verb: &str| format!("{verb} {} in namespace {namespace}", found.resource.plural);
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &found.resource);
        let list = || async {
            match api.list_metadata(&ListParams::default()).await {
                Ok(list) => Ok(list.items),
                Err(error) => match Fault::api(what("list"), error) {
                    // The kind has gone meanwhile, or cannot be listed.
                    fault if matches!(fault.code(), Some(404 | 405)) => Ok(Vec::new()),
                    fault => Err(fault),
                },
            }
        };
        let there = list().await?;
        if there.is_empty() {
            return Ok(Vec::new());
        }
        let options = DeleteParams::background();
        if found.can(&["deletecollection"]) {
            let deleted = api.delete_collection(&options, &ListParams::default()).await;
            match deleted.map_err(|error| Fault::api(what("delete all"), error)) {
                Err(fault) if !matches!(fault.code(), Some(404 | 405 | 409)) => return Err(fault),
                _ => {}
            }
        } else {
            for name in there.into_iter().filter_map(|it| it.metadata.name) {
                let deleted = api.delete(&name, &options).await;
                match deleted.map_err(|error| Fault::api(what(&format!("delete {name} of")), error)) {
                    Err(fault) if !matches!(fault.code(), Some(404 | 405 | 409)) => return Err(fault),
                    _ => {}
                }
            }
        }
        let left = list().await?;
        Ok(left
            .into_iter()
            .map(|it| it.metadata.finalizers.unwrap_or_default())
            .collect())
    }

    /// Says in the conditions what is left.
    async fn tell(&self, live: Namespace, left: &Left) -> Result<Namespace, Fault> {
        let old = live
            .status
            .as_ref()
            .and_then(|it| it.conditions.clone())
            .unwrap_or_default();
        let new = conditions(left, &old, self.clock.now());
        if old == new || (old.is_empty() && left.is_nothing()) {
            return Ok(live);
        }
        let name = live.metadata.name.clone().unwrap_or_default();
        let mut live = live;
        let status = live.status.get_or_insert_default();
        status.phase = Some("Terminating".to_owned());
        status.conditions = Some(new);
        let api: Api<Namespace> = Api::all(self.client.clone());
        let told = api.replace_status(&name, &PostParams::default(), &live).await;
        told.map_err(|error| Fault::api(format!("update the status of namespace {name}"), error))
    }

    async fn finalize(&self, mut live: Namespace) -> Outcome {
        let name = live.metadata.name.clone().unwrap_or_default();
        if let Some(finalizers) = live.spec.as_mut().and_then(|it| it.finalizers.as_mut()) {
            finalizers.retain(|it| it != FINALIZER);
        }
        let api: Api<Namespace> = Api::all(self.client.clone());
        let finalized = api
            .replace_subresource("finalize", &name, &PostParams::default(), &live)
            .await;
        match finalized.map_err(|error| Fault::api(format!("finalize namespace {name}"), error)) {
            Err(fault) if !fault.is_not_found() => Err(fault),
            _ => Ok(Next::Change),
        }
    }

    /// Returns when the last object of this kind has gone, or after a while.
    async fn listen(&self, namespace: &str, found: &Found) {
        let api: Api<PartialObjectMeta<DynamicObject>> =
            Api::namespaced_with(self.client.clone(), namespace, &found.resource);
        let emptied = async {
            let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
            let mut there = 0_usize;
            while let Some(event) = events.next().await {
                match event {
                    Ok(watcher::Event::Init) => there = 0,
                    Ok(watcher::Event::InitApply(_)) => there += 1,
                    Ok(watcher::Event::Delete(_)) => there = there.saturating_sub(1),
                    Ok(watcher::Event::InitDone) => {}
                    // Nothing can be made here any more.
                    Ok(watcher::Event::Apply(_)) => continue,
                    Err(_) => return std::future::pending().await,
                }
                if there == 0 && !matches!(event, Ok(watcher::Event::Init)) {
                    return;
                }
            }
        };
        tokio::select! {
            () = emptied => {}
            () = self.clock.sleep(LISTEN) => {}
        }
    }
}
