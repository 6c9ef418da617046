//! The quota controller: recounts what the namespaces of ResourceQuotas hold whenever that changes.

use super::{
    cost::{Content, Counted, counted, used},
    counters::Counters,
};
use crate::frame::{Cache, Cached, Change, Controller, Frame, Key, Next, Outcome, Queue, Writer};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, Service};
use std::{
    collections::HashSet,
    sync::{Arc, OnceLock},
    time::Duration,
};

const NAME: &str = "resourcequota-controller";
/// Objects come in crowds; they are counted together.
const SETTLE: Duration = Duration::from_millis(100);

struct Quotas {
    writer: Writer,
    counters: Counters,
    quotas: Arc<Cache<ResourceQuota>>,
    pods: Arc<Cache<Pod>>,
    services: Arc<Cache<Service>>,
    claims: Arc<Cache<PersistentVolumeClaim>>,
    queue: OnceLock<Arc<Queue>>,
}

pub(crate) fn controller(frame: &Arc<Frame>) -> Controller {
    let client = frame.client(NAME);
    let this = Arc::new(Quotas {
        writer: Writer::new(client.clone()),
        counters: Counters::new(client),
        quotas: frame.cache(),
        pods: frame.cache(),
        services: frame.cache(),
        claims: frame.cache(),
        queue: OnceLock::new(),
    });
    let (worker, feed) = (Arc::clone(&this), Arc::clone(&this));
    Controller::new(NAME, 2, move |key: Key| {
        let this = Arc::clone(&worker);
        async move { this.reconcile(&key).await }
    })
    .after(this.writer.written())
    .fed_by(move |queue| {
        // Set once, here.
        let _ = feed.queue.set(queue);
    })
    .on_own(&this.quotas)
    .on(&this.pods, by_content(&this))
    .on(&this.services, by_content(&this))
    .on(&this.claims, by_content(&this))
}

fn by_content<K: Cached>(this: &Arc<Quotas>) -> impl Fn(&Change<K>, &Queue) + Send + Sync + 'static {
    let this = Arc::clone(this);
    move |change, queue| {
        let namespace = change.latest().meta().namespace.clone().unwrap_or_default();
        for quota in this.quotas.in_namespace(&namespace) {
            queue.add_after(Key::of(&*quota), SETTLE);
        }
    }
}

impl Quotas {
    async fn reconcile(&self, key: &Key) -> Outcome {
        let Some(queue) = self.queue.get() else {
            return Ok(Next::Change);
        };
        if key.name.is_empty() {
            for quota in self.quotas.in_namespace(&key.namespace) {
                queue.add(Key::of(&*quota));
            }
            return Ok(Next::Change);
        }
        let Some(quota) = self.quotas.get(&key.namespace, &key.name) else {
            self.counters.forget(key);
            return Ok(Next::Change);
        };
        let hard = quota.spec.as_ref().and_then(|it| it.hard.clone()).unwrap_or_default();
        let kinds: HashSet<Counted> = hard.keys().filter_map(|it| counted(it)).collect();
        let Some(numbers) = self.counters.of(key, &kinds, queue).await? else {
            return Ok(Next::Change);
        };
        let content = Content {
            pods: self.pods.in_namespace(&key.namespace),
            services: self.services.in_namespace(&key.namespace),
            claims: self.claims.in_namespace(&key.namespace),
        };
        let used = used(&quota, &content, |it| numbers.get(it).copied().unwrap_or(0));
        let status = ResourceQuotaStatus {
            hard: Some(hard),
            used: Some(used),
        };
        if quota.status.as_ref() == Some(&status) {
            return Ok(Next::Change);
        }
        let mut new = (*quota).clone();
        new.status = Some(status);
        match self.writer.replace_status(key, &self.quotas, &new).await {
            Err(fault) if !fault.is_not_found() => Err(fault),
            _ => Ok(Next::Change),
        }
    }
}
