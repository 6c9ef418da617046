//! The Endpoints controller: keeps the older objects of Services that select pods, and removes those of deleted Services.

use super::{desired, legacy, slices, trigger::Seen};
use crate::frame::{Cache, Change, Controller, Fault, Frame, Key, Next, Outcome, Queue, Recorder, Writer};
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use kube::api::DeleteParams;
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

const NAME: &str = "endpoint-controller";

struct Objects {
    writer: Writer,
    recorder: Recorder,
    services: Arc<Cache<Service>>,
    pods: Arc<Cache<Pod>>,
    endpoints: Arc<Cache<Endpoints>>,
    seen: Mutex<HashMap<Key, Seen>>,
    /// Services that we saw go: their Endpoints go with them, whoever made them.
    gone: Arc<Mutex<HashSet<Key>>>,
}

pub(crate) fn controller(frame: &Arc<Frame>) -> Controller {
    let this = Arc::new(Objects {
        writer: Writer::new(frame.client(NAME)),
        recorder: frame.recorder(NAME),
        services: frame.cache(),
        pods: frame.cache(),
        endpoints: frame.cache(),
        seen: Mutex::default(),
        gone: Arc::default(),
    });
    let (services, gone) = (Arc::clone(&this.services), Arc::clone(&this.gone));
    let written = this.writer.written().clone();
    let (service_cache, pod_cache, endpoint_cache) = (
        Arc::clone(&this.services),
        Arc::clone(&this.pods),
        Arc::clone(&this.endpoints),
    );
    Controller::new(NAME, 5, move |key| {
        let this = Arc::clone(&this);
        async move { this.reconcile(&key).await }
    })
    .after(&written)
    .on(&service_cache, move |change, queue| {
        let key = Key::of(&**change.latest());
        if change.new.is_none() {
            gone.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
        }
        queue.add(key);
    })
    .on(&pod_cache, move |change: &Change<Pod>, queue: &Queue| {
        slices::services_of(&services, change)
            .into_iter()
            .for_each(|key| queue.add(key));
    })
    .on_own(&endpoint_cache)
}

impl Objects {
    async fn reconcile(&self, key: &Key) -> Outcome {
        let existing = self.endpoints.get(&key.namespace, &key.name);
        let Some(service) = self.services.get(&key.namespace, &key.name) else {
            return self.remove(key, existing.as_deref()).await;
        };
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        if !desired::is_selecting(&service) || service.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Change);
        }
        let pods = slices::pods_of(&self.pods, &service);
        let trigger = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.entry(key.clone())
                .or_default()
                .look(&service, pods.iter().map(|it| &**it))
        };
        let pods = pods.iter().map(|it| &**it);
        let Some(new) = legacy::plan(&service, pods, existing.as_deref(), trigger) else {
            return Ok(Next::Change);
        };
        match self.write(key, existing.is_some(), &new).await {
            Err(fault) if fault.is_namespace_terminating() => Ok(Next::Change),
            Err(fault) if !fault.is_conflict() && !fault.is_not_found() && !fault.is_already_exists() => {
                let (verb, reason) = match existing {
                    Some(_) => ("update", "FailedToUpdateEndpoint"),
                    None => ("create", "FailedToCreateEndpoint"),
                };
                let message = format!("Failed to {verb} endpoint {key}: {}", fault.message());
                self.recorder.warning(&new, reason, message);
                Err(fault)
            }
            other => other.map(|()| Next::Change),
        }
    }

    async fn write(&self, key: &Key, exists: bool, new: &Endpoints) -> Result<(), Fault> {
        if exists {
            self.writer.replace(key, &self.endpoints, new).await?;
        } else {
            self.writer.create(key, &self.endpoints, new).await?;
        }
        Ok(())
    }

    /// Removes what a Service left behind. Endpoints that wait for a Service somebody is going to make stay.
    async fn remove(&self, key: &Key, existing: Option<&Endpoints>) -> Outcome {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        let went = self.gone.lock().unwrap_or_else(PoisonError::into_inner).contains(key);
        if let Some(existing) = existing
            && (went || legacy::is_ours(existing))
        {
            let options = DeleteParams::default();
            self.writer.delete(key, &self.endpoints, existing, options).await?;
        }
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        Ok(Next::Change)
    }
}
