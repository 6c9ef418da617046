//! The service controller: `status.loadBalancer` of Services of our class, and the finalizer that holds them until their
//! addresses are free again.

use super::pool::{self, Pool};
use crate::{
    cluster::config::AddressPool,
    frame::{Cache, Change, Controller, Fault, Frame, Key, Next, Outcome, Queue, Recorder},
};
use k8s_openapi::api::core::v1::{Node, Service};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

const NAME: &str = "service-controller";
/// Source: `k8s.io/cloud-provider`, which other clean-up tools know as well.
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

struct Balancers {
    client: Client,
    recorder: Recorder,
    kind: AddressPool,
    services: Arc<Cache<Service>>,
    nodes: Arc<Cache<Node>>,
    state: Mutex<State>,
    queue: OnceLock<Arc<Queue>>,
}

#[derive(Default)]
struct State {
    pool: Option<Pool>,
    /// Services that got nothing: they try again when something is free.
    waiting: HashSet<Key>,
}

pub(crate) fn controller(frame: &Arc<Frame>) -> Controller {
    let this = Arc::new(Balancers {
        client: frame.client(NAME),
        recorder: frame.recorder(NAME),
        kind: frame.config.cluster.load_balancers.clone(),
        services: frame.cache(),
        nodes: frame.cache(),
        state: Mutex::default(),
        queue: OnceLock::new(),
    });
    let (services, nodes) = (Arc::clone(&this.services), Arc::clone(&this.nodes));
    let (by_node, feed) = (Arc::clone(&this), Arc::clone(&this));
    Controller::new(NAME, 2, move |key: Key| {
        let this = Arc::clone(&this);
        async move { this.reconcile(&key).await }
    })
    .fed_by(move |queue| {
        // Set once, here.
        let _ = feed.queue.set(queue);
    })
    .on_own(&services)
    .on(&nodes, move |change: &Change<Node>, queue: &Queue| {
        let addresses = |it: &Option<Arc<Node>>| pool::node_addresses(it.as_deref());
        if by_node.kind != AddressPool::Nodes || addresses(&change.old) == addresses(&change.new) {
            return;
        }
        for service in by_node.services.all() {
            if pool::is_ours(&service) {
                queue.add(Key::of(&*service));
            }
        }
    })
}

fn has_finalizer(service: &Service) -> bool {
    service.metadata.finalizers.iter().flatten().any(|it| it == FINALIZER)
}

impl Balancers {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works on the pool. The first time, everything that Services show is noted before anything is given: of two that
    /// show the same the older keeps it, and the other gets something else when its turn comes.
    fn with<T>(&self, work: impl FnOnce(&mut Pool) -> T) -> T {
        let mut state = self.state();
        let pool = state.pool.get_or_insert_with(|| {
            let mut pool = Pool::new(self.kind.clone());
            let mut services = self.services.all();
            services.retain(|it| pool::is_ours(it));
            services.sort_by_key(|it| it.metadata.creation_timestamp.clone());
            for service in services {
                pool.adopt(&Key::of(&*service), &service);
            }
            pool
        });
        work(pool)
    }

    /// What the Service had is free; whoever waits may try.
    fn release(&self, key: &Key) {
        let freed = self.with(|it| it.release(key));
        let mut state = self.state();
        state.waiting.remove(key);
        if let Some(queue) = self.queue.get().filter(|_| freed) {
            state.waiting.drain().for_each(|it| queue.add(it));
        }
    }

    async fn reconcile(&self, key: &Key) -> Outcome {
        if self.kind == AddressPool::None {
            return Ok(Next::Change);
        }
        let Some(service) = self.services.get(&key.namespace, &key.name) else {
            self.release(key);
            return Ok(Next::Change);
        };
        let leaving = service.metadata.deletion_timestamp.is_some();
        if leaving || !pool::is_ours(&service) {
            if has_finalizer(&service) {
                let mut finalizers = service.metadata.finalizers.clone().unwrap_or_default();
                finalizers.retain(|it| it != FINALIZER);
                let mut patch = json!({ "metadata": { "finalizers": finalizers } });
                if !leaving {
                    patch["status"] = json!({ "loadBalancer": null });
                }
                self.patch(&service, patch).await?;
            }
            self.release(key);
            return Ok(Next::Change);
        }
        let nodes = match self.kind {
            AddressPool::Nodes => pool::node_addresses(self.nodes.all().iter().map(|it| &**it)),
            _ => BTreeSet::new(),
        };
        let assigned: Vec<IpAddr> = match self.with(|it| it.assign(key, &service, &nodes)) {
            Ok(assigned) => assigned,
            Err(refused) => {
                self.state().waiting.insert(key.clone());
                self.recorder.warning(
                    &*service,
                    "SyncLoadBalancerFailed",
                    format!("Error syncing load balancer: {refused}"),
                );
                Vec::new()
            }
        };
        let ingress = pool::ingress(&assigned);
        let status = service.status.as_ref().and_then(|it| it.load_balancer.as_ref());
        let shown = status.and_then(|it| it.ingress.clone()).unwrap_or_default();
        if has_finalizer(&service) && shown == ingress {
            return Ok(Next::Change);
        }
        let mut finalizers = service.metadata.finalizers.clone().unwrap_or_default();
        if !has_finalizer(&service) {
            finalizers.push(FINALIZER.to_owned());
        }
        let patch = json!({
            "metadata": { "finalizers": finalizers }, "status": { "loadBalancer": { "ingress": ingress } },
        });
        self.patch(&service, patch).await?;
        if !assigned.is_empty() {
            let addresses: Vec<String> = assigned.iter().map(IpAddr::to_string).collect();
            let message = format!("Ensured load balancer: {}", addresses.join(", "));
            self.recorder.normal(&*service, "EnsuredLoadBalancer", message);
        }
        Ok(Next::Change)
    }

    /// Changes finalizers and status at once, if the Service is still as it was read.
    async fn patch(&self, service: &Service, mut patch: Value) -> Result<(), Fault> {
        let key = Key::of(service);
        patch["metadata"]["resourceVersion"] = json!(service.metadata.resource_version);
        let api: Api<Service> = Api::namespaced(self.client.clone(), &key.namespace);
        let patched = api
            .patch_status(&key.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        match patched.map_err(|error| Fault::api(format!("patch the status of service {key}"), error)) {
            Err(fault) if fault.is_not_found() => Ok(()),
            other => other.map(|_| ()),
        }
    }
}
