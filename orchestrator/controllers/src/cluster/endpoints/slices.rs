//! The EndpointSlice controller: keeps the slices of Services that select pods.

use super::{
    FROM_PODS, MANAGED_BY, SERVICE_NAME, TRIGGER_TIME,
    desired::{self, Family, NodeFacts},
    pack::{self, Meta, Plan},
    trigger::Seen,
};
use crate::{
    cluster::podview,
    frame::{Cache, Change, Controller, Fault, Frame, Key, Next, Outcome, Queue, Recorder, Writer, reference},
};
use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::api::DeleteParams;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

const NAME: &str = "endpointslice-controller";
/// Index of slices made from pods: `<namespace>/<service>`.
const BY_SERVICE: &str = "service-from-pods";
/// Index of pods: `spec.nodeName`.
pub(crate) const BY_NODE: &str = "node";

struct Slices {
    writer: Writer,
    recorder: Recorder,
    services: Arc<Cache<Service>>,
    pods: Arc<Cache<Pod>>,
    nodes: Arc<Cache<Node>>,
    slices: Arc<Cache<EndpointSlice>>,
    seen: Mutex<HashMap<Key, Seen>>,
    max: usize,
}

/// The Service of a slice that this manager keeps, as an index value.
pub(crate) fn service_of(slice: &EndpointSlice, manager: &str) -> Option<Key> {
    let labels = slice.metadata.labels.as_ref()?;
    let mine = labels.get(MANAGED_BY).is_some_and(|it| it == manager);
    let service = labels.get(SERVICE_NAME).filter(|_| mine)?;
    Some(Key::new(
        slice.metadata.namespace.as_deref().unwrap_or_default(),
        service,
    ))
}

/// Adds the index of pods by node.
pub(crate) fn index_by_node(pods: &Cache<Pod>) {
    pods.add_index(BY_NODE, |pod| podview::node_name(pod).map(ToOwned::to_owned));
}

/// What of a pod endpoints depend on.
fn facts(pod: &Pod) -> impl PartialEq + use<> {
    let spec = pod.spec.as_ref();
    (
        pod.metadata.labels.clone(),
        pod.metadata.uid.clone(),
        (
            podview::is_ready(pod),
            podview::is_terminal(pod),
            podview::is_terminating(pod),
        ),
        podview::addresses(pod),
        podview::node_name(pod).map(ToOwned::to_owned),
        spec.map(|it| (it.hostname.clone(), it.subdomain.clone())),
    )
}

/// Services whose endpoints a change of a pod can concern.
pub(crate) fn services_of(services: &Cache<Service>, change: &Change<Pod>) -> HashSet<Key> {
    if let (Some(old), Some(new)) = (&change.old, &change.new)
        && facts(old) == facts(new)
    {
        return HashSet::new();
    }
    let mut keys = HashSet::new();
    for pod in change.sides() {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        for service in services.in_namespace(namespace) {
            if desired::selects(&service, pod) {
                keys.insert(Key::of(&*service));
            }
        }
    }
    keys
}

/// The pods that a Service selects.
pub(crate) fn pods_of(pods: &Cache<Pod>, service: &Service) -> Vec<Arc<Pod>> {
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let mut all = pods.in_namespace(namespace);
    all.retain(|it| desired::selects(service, it));
    all
}

pub(crate) fn controller(frame: &Arc<Frame>) -> Controller {
    let this = Arc::new(Slices {
        writer: Writer::new(frame.client(NAME)),
        recorder: frame.recorder(NAME),
        services: frame.cache(),
        pods: frame.cache(),
        nodes: frame.cache(),
        slices: frame.cache(),
        seen: Mutex::default(),
        max: frame.config.cluster.endpoints_per_slice.max(1),
    });
    index_by_node(&this.pods);
    this.slices
        .add_index(BY_SERVICE, |it| service_of(it, FROM_PODS).map(|key| key.to_string()));
    let (services, pods) = (Arc::clone(&this.services), Arc::clone(&this.pods));
    let by_pod = {
        let services = Arc::clone(&services);
        move |change: &Change<Pod>, queue: &Queue| {
            services_of(&services, change)
                .into_iter()
                .for_each(|key| queue.add(key));
        }
    };
    let by_node = move |change: &Change<Node>, queue: &Queue| {
        let facts = |it: &Option<Arc<Node>>| it.as_deref().map(NodeFacts::of);
        if facts(&change.old) == facts(&change.new) {
            return;
        }
        let name = change.latest().metadata.name.clone().unwrap_or_default();
        for pod in pods.indexed(BY_NODE, &name) {
            let change = Change {
                old: None,
                new: Some(pod),
            };
            services_of(&services, &change)
                .into_iter()
                .for_each(|key| queue.add(key));
        }
    };
    let written = this.writer.written().clone();
    let (service_cache, pod_cache, node_cache, slice_cache) = (
        Arc::clone(&this.services),
        Arc::clone(&this.pods),
        Arc::clone(&this.nodes),
        Arc::clone(&this.slices),
    );
    Controller::new(NAME, 5, move |key| {
        let this = Arc::clone(&this);
        async move { this.reconcile(&key).await }
    })
    .after(&written)
    .on_own(&service_cache)
    .on(&pod_cache, by_pod)
    .on(&node_cache, by_node)
    .on(&slice_cache, |change, queue| {
        for slice in change.sides() {
            service_of(slice, FROM_PODS).into_iter().for_each(|key| queue.add(key));
        }
    })
}

impl Slices {
    async fn reconcile(&self, key: &Key) -> Outcome {
        let Some(service) = self.services.get(&key.namespace, &key.name) else {
            // The slices go with their owner.
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.remove(key);
            return Ok(Next::Change);
        };
        if !desired::is_selecting(&service) || service.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Change);
        }
        let pods = pods_of(&self.pods, &service);
        let trigger = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.entry(key.clone())
                .or_default()
                .look(&service, pods.iter().map(|it| &**it))
        };
        let mut slices: Vec<EndpointSlice> = Vec::new();
        for slice in self.slices.indexed(BY_SERVICE, &key.to_string()) {
            if slice.metadata.deletion_timestamp.is_none() {
                slices.push((*slice).clone());
            }
        }
        let families = desired::families(&service);
        let (mut mine, foreign) = pack::by_family(slices, &families);
        let annotations = trigger.map(|at| (TRIGGER_TIME.to_owned(), at.to_string()));
        let meta = Meta {
            namespace: key.namespace.to_string(),
            base_name: key.name.to_string(),
            owner: reference(&*service),
            labels: desired::labels(&service),
            annotations: BTreeMap::from_iter(annotations),
            max: self.max,
        };
        let mut plan = Plan {
            delete: foreign,
            ..Plan::default()
        };
        for family in families {
            let part = self.plan(
                &service,
                family,
                &pods,
                &meta,
                &mine.remove(&family).unwrap_or_default(),
            );
            plan.create.extend(part.create);
            plan.update.extend(part.update);
            plan.delete.extend(part.delete);
        }
        match write(&self.writer, key, &self.slices, plan).await {
            Err(fault) if !fault.is_conflict() && !fault.is_not_found() => {
                let message = format!("Error updating Endpoint Slices for Service {key}: {}", fault.message());
                self.recorder
                    .warning(&*service, "FailedToUpdateEndpointSlices", message);
                Err(fault)
            }
            other => other.map(|()| Next::Change),
        }
    }

    fn plan(
        &self,
        service: &Service,
        family: Family,
        pods: &[Arc<Pod>],
        meta: &Meta,
        existing: &[EndpointSlice],
    ) -> Plan {
        let node = |name: &str| self.nodes.get("", name).map(|it| NodeFacts::of(&it));
        let (wanted, waiting) = desired::desired(service, family, pods.iter().map(|it| &**it), node);
        for one in waiting {
            // Its node's arrival is an event of its own, which brings us here again.
            tracing::debug!(service = meta.base_name, why = %one, "left out");
        }
        pack::pack(meta, family, wanted, existing, true)
    }
}

/// Executes a plan: what comes before what goes, so that no endpoint is missing in between.
pub(crate) async fn write(
    writer: &Writer,
    key: &Key,
    cache: &Arc<Cache<EndpointSlice>>,
    plan: Plan,
) -> Result<(), Fault> {
    for slice in &plan.create {
        match writer.create(key, cache, slice).await {
            Ok(_) => {}
            // Nothing can be done here until the namespace is gone.
            Err(fault) if fault.is_namespace_terminating() => return Ok(()),
            Err(fault) => return Err(fault),
        }
    }
    for slice in &plan.update {
        writer.replace(key, cache, slice).await?;
    }
    for slice in &plan.delete {
        writer.delete(key, cache, slice, DeleteParams::default()).await?;
    }
    Ok(())
}
