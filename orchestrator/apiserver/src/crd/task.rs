//! The task that keeps the registry and the status of definitions in step with what is stored.

use super::{
    Definitions,
    cleanup::{self, Executor},
    structural::array,
};
use crate::{core::ApiServer, object, objects::Objects as _};
use fairlead_schema::{Registry, Resource};
use fairlead_store::{Durability, Expect, Operation, Txn};
use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::sync::{Mutex, Notify};

/// Where definitions are stored.
const PREFIX: &str = "apiextensions.k8s.io/customresourcedefinitions";

/// Where they are served.
const PATH: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// Until another look at a deletion that waits for finalizers, and after a failure. Source: upstream's five seconds.
const AGAIN: Duration = Duration::from_secs(5);

/// Told about every write of a definition.
#[derive(Default)]
pub struct Watcher {
    changed: Notify,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Without definitions.
    base: Option<Registry>,
    definitions: Definitions,
}

impl Watcher {
    /// A definition was stored or deleted. Many calls at a time cost one look.
    pub fn changed(&self) {
        self.changed.notify_one();
    }

    /// The schemas of custom resources, for OpenAPI documents.
    pub fn schemas(&self) -> impl Fn(&Resource) -> Option<Value> + '_ {
        |resource| resource.custom_schema.as_ref().map(|it| it.openapi().clone())
    }
}

/// Serves what the stored definitions bring, before the first request.
pub async fn load(server: &Arc<ApiServer>) {
    rebuild(server).await;
    server.crds.changed();
}

/// Looks after every change until the server stops.
pub async fn run(server: Arc<ApiServer>) {
    let mut again = false;
    let mut events = None;
    loop {
        if events.is_none() {
            // What happened before is in the next look; that nothing could be watched is a reason for another.
            events = server.cache.watch(PREFIX, server.cache.revision()).ok();
            again = true;
        }
        tokio::select! {
            biased;
            () = server.stopping() => return,
            () = server.crds.changed.notified() => {}
            open = next(events.as_mut()) => {
                if !open {
                    // Fallen behind, or the store is closed, which a hasty reopening would not mend.
                    events = None;
                    tokio::select! {
                        () = server.stopping() => return,
                        () = tokio::time::sleep(AGAIN) => continue,
                    }
                }
            }
            () = tokio::time::sleep(AGAIN), if again => {}
        }
        again = sync(&server).await;
    }
}

/// Completes with the next write of a definition; false: the watch has ended.
async fn next(events: Option<&mut fairlead_store::Watcher>) -> bool {
    match events {
        Some(events) => events.next().await.is_ok(),
        None => std::future::pending().await,
    }
}

/// One look. Whether to look again without being told.
async fn sync(server: &Arc<ApiServer>) -> bool {
    let statuses = rebuild(server).await;
    let mut again = false;
    for (name, status) in statuses {
        let Some(stored) = server.get(PREFIX, "", &name) else {
            continue;
        };
        let mut crd = (*stored).clone();
        crd["status"] = status;
        // The write causes the next look, also one that was refused because another writer was faster.
        again |= put(server, &crd, "/status").await.is_err();
    }
    let now = object::time(Timestamp::now());
    for crd in server.list(PREFIX, None) {
        again |= cleanup::run(&crd, &Instances(server), &now).await;
    }
    again
}

/// Puts the registry in step. Statuses that must be written.
async fn rebuild(server: &Arc<ApiServer>) -> Vec<(Arc<str>, Value)> {
    let mut known = server.crds.known.lock().await;
    let crds = server.list(PREFIX, None);
    let now = object::time(Timestamp::now());
    let Known { base, definitions } = &mut *known;
    let base = base.get_or_insert_with(Registry::builtin);
    let rebuilt = definitions.rebuild(base, &crds, &now);
    if rebuilt.changed {
        tracing::info!(
            definitions = crds.len(),
            epoch = rebuilt.registry.epoch,
            "the registry changed"
        );
        server.registry.store(Arc::new(rebuilt.registry));
    }
    rebuilt.statuses
}

/// Writes a definition or its status. `None`: it is gone or was changed by another.
async fn put(server: &Arc<ApiServer>, crd: &Value, subresource: &str) -> Result<Option<Value>, String> {
    let name = crd["metadata"]["name"].as_str().unwrap_or_default();
    let path = format!("{PATH}/{name}{subresource}");
    let (code, answer) = server
        .itself()
        .request(Method::PUT, &path, "application/json", Some(crd))
        .await;
    match code {
        200..=299 => Ok(Some(answer)),
        404 | 409 => Ok(None),
        _ => {
            let why = answer["message"].as_str().unwrap_or("no reason").to_owned();
            tracing::error!(
                name,
                code,
                why,
                "a CustomResourceDefinition was not written; trying again"
            );
            Err(why)
        }
    }
}

struct Instances<'a>(&'a Arc<ApiServer>);

impl Executor for Instances<'_> {
    async fn store(&self, crd: &Value) -> Result<Option<Value>, String> {
        let name = crd["metadata"]["name"].as_str().unwrap_or_default();
        let Some(stored) = self.0.get(PREFIX, "", name) else {
            return Ok(None);
        };
        let mut written = (*stored).clone();
        if written["status"] != crd["status"] {
            written["metadata"]["resourceVersion"] = crd["metadata"]["resourceVersion"].clone();
            written["status"] = crd["status"].clone();
            match put(self.0, &written, "/status").await? {
                Some(answer) => written = answer,
                None => return Ok(None),
            }
        }
        let finalizers = |crd: &Value| array(&crd["metadata"], "finalizers").cloned().collect::<Vec<_>>();
        if finalizers(&written) != finalizers(crd) {
            written["metadata"]["finalizers"] = json!(finalizers(crd));
            return put(self.0, &written, "").await;
        }
        Ok(Some(written))
    }

    async fn delete_objects(&self, crd: &Value) -> Result<usize, String> {
        let text = |pointer: &str| {
            crd.pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let (group, plural) = (text("/spec/group"), text("/spec/names/plural"));
        let prefix = fairlead_schema::kinds::storage_prefix(&group, &plural);
        let snapshot = self.0.cache.snapshot(&prefix);
        let namespaces: BTreeSet<Arc<str>> = snapshot
            .entries(None, None)
            .map(|entry| Arc::clone(&entry.key.namespace))
            .collect();
        if namespaces.is_empty() {
            return Ok(0);
        }
        let served = array(&crd["spec"], "versions").find(|it| it["served"] == true);
        match served.and_then(|it| it["name"].as_str()) {
            Some(version) => {
                let door = self.0.itself();
                for namespace in namespaces {
                    let within = if namespace.is_empty() {
                        String::new()
                    } else {
                        format!("namespaces/{namespace}/")
                    };
                    let path = format!("/apis/{group}/{version}/{within}{plural}");
                    let (code, answer) = door.request(Method::DELETE, &path, "application/json", None).await;
                    if code >= 400 {
                        return Err(answer["message"].as_str().unwrap_or("no reason").to_owned());
                    }
                }
            }
            // Nobody can reach these objects any more, nor the finalizers that they may have.
            None => self.forget(&prefix).await?,
        }
        Ok(self.0.cache.snapshot(&prefix).len())
    }
}

impl Instances<'_> {
    async fn forget(&self, prefix: &str) -> Result<(), String> {
        let snapshot = self.0.cache.snapshot(prefix);
        for entry in snapshot.entries(None, None) {
            let deleted = self.0.cache.commit(Txn {
                key: entry.key.clone(),
                expect: Expect::At(entry.revision),
                operation: Operation::Delete,
                durability: Durability::Relaxed,
            });
            deleted.await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}
