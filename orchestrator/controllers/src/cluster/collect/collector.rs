//! The garbage collector: asks the API server about an object and its owners, decides, and does it.

use super::{
    FOREGROUND, ORPHAN,
    decide::{Own, Owner, Policy, Verdict, decide},
    graph::{Identity, Misplaced, Uid},
    monitor::Monitor,
};
use crate::{
    cluster::discovery::Found,
    frame::{Clock, Controller, Fault, Frame, Key, Next, Outcome},
};
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time},
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy},
    core::DynamicObject,
};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;

const NAME: &str = "generic-garbage-collector";

struct Collector {
    client: Client,
    clock: Clock,
    monitor: Arc<Monitor>,
}

pub(crate) fn controller(frame: &Arc<Frame>) -> Controller {
    let (client, clock) = (frame.client(NAME), frame.clock());
    let (sender, receiver) = mpsc::unbounded_channel();
    let monitor = Arc::new(Monitor::new(client.clone(), clock.clone(), sender));
    let this = Arc::new(Collector {
        client,
        clock,
        monitor: Arc::clone(&monitor),
    });
    let (feed, reporter) = (Arc::clone(&monitor), Arc::clone(&this));
    let receiver = Arc::new(Mutex::new(Some(receiver)));
    Controller::new(NAME, 20, move |key: Key| {
        let this = Arc::clone(&this);
        async move { this.work(&key).await }
    })
    .fed_by(move |queue| feed.feed(queue))
    .beside(move |stop| Arc::clone(&monitor).run(stop))
    .beside(move |_| {
        let (reporter, receiver) = (Arc::clone(&reporter), Arc::clone(&receiver));
        async move {
            let taken = receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some(mut receiver) = taken else { return Ok(()) };
            while let Some(misplaced) = receiver.recv().await {
                reporter.report(&misplaced).await;
            }
            Ok(())
        }
    })
}

impl Collector {
    async fn work(&self, key: &Key) -> Outcome {
        self.monitor.read().await;
        let uid: Uid = Arc::clone(&key.name);
        match &*key.namespace {
            "orphan" => self.orphan(&uid).await?,
            _ => self.judge(&uid).await?,
        }
        Ok(Next::Change)
    }

    fn kind(&self, identity: &Identity) -> Result<Found, Fault> {
        let (api_version, kind) = (&identity.api_version, &identity.kind);
        self.monitor
            .kind(api_version, kind)
            .ok_or_else(|| unknown(api_version, kind))
    }

    fn api(&self, found: &Found, namespace: &str) -> Api<DynamicObject> {
        if found.namespaced && !namespace.is_empty() {
            Api::namespaced_with(self.client.clone(), namespace, &found.resource)
        } else {
            Api::all_with(self.client.clone(), &found.resource)
        }
    }

    /// The metadata of exactly this object now; `None` if it is gone.
    async fn live(&self, identity: &Identity, uid: &str) -> Result<Option<(Api<DynamicObject>, ObjectMeta)>, Fault> {
        let found = self.kind(identity)?;
        let api = self.api(&found, &identity.namespace);
        let live = api.get_metadata_opt(&identity.name).await;
        let live = live.map_err(|error| Fault::api(format!("get {}", words(identity)), error))?;
        Ok(live
            .map(|it| it.metadata)
            .filter(|it| it.uid.as_deref() == Some(uid))
            .map(|it| (api, it)))
    }

    async fn judge(&self, uid: &Uid) -> Result<(), Fault> {
        let Some(node) = self.monitor.graph().get(uid).cloned() else {
            return Ok(());
        };
        if node.deleting && !node.foreground {
            return Ok(());
        }
        let Some((api, meta)) = self.live(&node.identity, uid).await? else {
            return Ok(());
        };
        let finalizers = meta.finalizers.clone().unwrap_or_default();
        if meta.deletion_timestamp.is_some() {
            let waits = finalizers.iter().any(|it| it == FOREGROUND);
            if waits && self.monitor.graph().blocking(uid).is_empty() {
                self.drop_finalizer(&api, &node.identity, &meta, FOREGROUND).await?;
            }
            return Ok(());
        }
        let mut owners = Vec::new();
        for reference in meta.owner_references.iter().flatten() {
            owners.push((reference.clone(), self.owner(reference, &node.identity).await?));
        }
        let dependents = self.monitor.graph().dependents(uid);
        let own = Own {
            finalizers: &finalizers,
            has_dependents: !dependents.is_empty(),
            dependent_waits: dependents.iter().any(|(_, it)| it.foreground),
        };
        match decide(&owners, own) {
            Verdict::Stay => Ok(()),
            Verdict::Forget(left) => {
                let patch = json!({ "metadata": { "ownerReferences": left } });
                self.patch(&api, &node.identity, &meta, patch).await
            }
            Verdict::Go { policy, unblock } => {
                let mut meta = meta;
                if unblock {
                    let mut references = meta.owner_references.clone().unwrap_or_default();
                    references
                        .iter_mut()
                        .for_each(|it| it.block_owner_deletion = Some(false));
                    let patch = json!({ "metadata": { "ownerReferences": references } });
                    self.patch(&api, &node.identity, &meta, patch).await?;
                    let Some((_, now)) = self.live(&node.identity, uid).await? else {
                        return Ok(());
                    };
                    meta = now;
                }
                self.delete(&api, &node.identity, &meta, policy).await
            }
        }
    }

    /// How the owner is that a dependent names.
    async fn owner(&self, reference: &OwnerReference, dependent: &Identity) -> Result<Owner, Fault> {
        let found = self.monitor.kind(&reference.api_version, &reference.kind);
        let found = found.ok_or_else(|| unknown(&reference.api_version, &reference.kind))?;
        if found.namespaced && dependent.namespace.is_empty() {
            // Nobody can say which namespace was meant, so nothing is deleted over it; it was reported.
            return Ok(Owner::Solid);
        }
        let api = self.api(&found, &dependent.namespace);
        let live = api.get_metadata_opt(&reference.name).await;
        let live = live.map_err(|error| Fault::api(format!("get {} {}", reference.kind, reference.name), error))?;
        Ok(match live.map(|it| it.metadata) {
            Some(it) if it.uid.as_ref() != Some(&reference.uid) => Owner::Absent,
            None => Owner::Absent,
            Some(it)
                if it.deletion_timestamp.is_some() && it.finalizers.iter().flatten().any(|it| it == FOREGROUND) =>
            {
                Owner::Leaving
            }
            Some(_) => Owner::Solid,
        })
    }

    async fn orphan(&self, uid: &Uid) -> Result<(), Fault> {
        let Some(node) = self.monitor.graph().get(uid).cloned().filter(|it| it.orphaning) else {
            return Ok(());
        };
        let dependents = self.monitor.graph().dependents(uid);
        for (dependent, its) in dependents {
            let Some((api, meta)) = self.live(&its.identity, &dependent).await? else {
                continue;
            };
            let mut left = meta.owner_references.clone().unwrap_or_default();
            let before = left.len();
            left.retain(|it| it.uid != **uid);
            if left.len() != before {
                let patch = json!({ "metadata": { "ownerReferences": left } });
                self.patch(&api, &its.identity, &meta, patch).await?;
            }
        }
        let Some((api, meta)) = self.live(&node.identity, uid).await? else {
            return Ok(());
        };
        self.drop_finalizer(&api, &node.identity, &meta, ORPHAN).await
    }

    async fn drop_finalizer(
        &self,
        api: &Api<DynamicObject>,
        identity: &Identity,
        meta: &ObjectMeta,
        finalizer: &str,
    ) -> Result<(), Fault> {
        let mut left = meta.finalizers.clone().unwrap_or_default();
        let before = left.len();
        left.retain(|it| it != finalizer);
        if left.len() == before {
            return Ok(());
        }
        let patch = json!({ "metadata": { "finalizers": left } });
        self.patch(api, identity, meta, patch).await
    }

    /// Changes an object if it is still as it was read; one that is gone is no error.
    async fn patch(
        &self,
        api: &Api<DynamicObject>,
        identity: &Identity,
        meta: &ObjectMeta,
        mut patch: Value,
    ) -> Result<(), Fault> {
        patch["metadata"]["uid"] = json!(meta.uid);
        patch["metadata"]["resourceVersion"] = json!(meta.resource_version);
        let patched = api
            .patch_metadata(&identity.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        match patched.map_err(|error| Fault::api(format!("patch {}", words(identity)), error)) {
            Err(fault) if fault.is_not_found() => Ok(()),
            other => other.map(|_| ()),
        }
    }

    async fn delete(
        &self,
        api: &Api<DynamicObject>,
        identity: &Identity,
        meta: &ObjectMeta,
        policy: Policy,
    ) -> Result<(), Fault> {
        let options = DeleteParams {
            propagation_policy: Some(match policy {
                Policy::Background => PropagationPolicy::Background,
                Policy::Foreground => PropagationPolicy::Foreground,
                Policy::Orphan => PropagationPolicy::Orphan,
            }),
            preconditions: Some(Preconditions {
                uid: meta.uid.clone(),
                resource_version: meta.resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        tracing::debug!(object = words(identity), ?policy, "its owners are gone; it goes too");
        let deleted = api.delete(&identity.name, &options).await;
        match deleted.map_err(|error| Fault::api(format!("delete {}", words(identity)), error)) {
            Err(fault) if fault.is_not_found() => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Tells an object's author that a reference cannot mean what it says.
    async fn report(&self, misplaced: &Misplaced) {
        let identity = &misplaced.identity;
        let namespace = if identity.namespace.is_empty() {
            "default"
        } else {
            &*identity.namespace
        };
        let owner = &misplaced.owner_identity;
        let now = self.clock.now();
        let message = format!(
            "ownerRef [{}, kind: {}, name: {}, uid: {}] does not exist in namespace {:?}",
            owner.api_version, owner.kind, owner.name, misplaced.owner, &*identity.namespace
        );
        tracing::warn!(
            object = words(identity),
            message,
            "an owner in another namespace is no owner"
        );
        let event = Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{:x}", identity.name, now.as_nanosecond())),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some(identity.api_version.to_string()),
                kind: Some(identity.kind.to_string()),
                name: Some(identity.name.to_string()),
                namespace: Some(identity.namespace.to_string()).filter(|it| !it.is_empty()),
                uid: Some(misplaced.dependent.to_string()),
                ..ObjectReference::default()
            },
            type_: Some("Warning".to_owned()),
            reason: Some("OwnerRefInvalidNamespace".to_owned()),
            message: Some(message),
            source: Some(EventSource {
                component: Some("garbage-collector-controller".to_owned()),
                host: None,
            }),
            reporting_component: Some("garbage-collector-controller".to_owned()),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            count: Some(1),
            ..Event::default()
        };
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        if let Err(error) = api.create(&PostParams::default(), &event).await {
            tracing::debug!(%error, "an event could not be written");
        }
    }
}

fn unknown(api_version: &str, kind: &str) -> Fault {
    Fault::Other(format!(
        "{api_version} {kind} is not served; what names such an owner stays until it is"
    ))
}

fn words(identity: &Identity) -> String {
    let key = Key::new(&identity.namespace, &identity.name);
    format!("{} {key}", identity.kind)
}
