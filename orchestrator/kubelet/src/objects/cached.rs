//! [`Cached`]: objects watched one by one through an API server.

use super::{ObjectRef, Objects, Unreadable};
use futures::{StreamExt, future::BoxFuture};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        authentication::v1::TokenRequest,
        core::v1::{ConfigMap, Secret, Service, ServiceAccount},
    },
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::PostParams,
    runtime::{
        WatchStreamExt,
        reflector::{self, Store},
        watcher::{self, watcher},
    },
};
use serde::de::DeserializeOwned;
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::{OnceCell, broadcast, watch};
use tokio_util::task::AbortOnDropHandle;

/// How long a pod waits for an object that it names before it tries again later: an API server that is away is not waited
/// for.
const PATIENCE: Duration = Duration::from_secs(10);
/// So many changes may wait for a reader that is busy.
const CHANGES: usize = 1024;

/// Watches the objects that are held. Cheap to clone.
#[derive(Clone)]
pub struct Cached(Arc<Inner>);

struct Inner {
    client: Client,
    changes: broadcast::Sender<ObjectRef>,
    held: Mutex<Held>,
    services: OnceCell<(Store<Service>, AbortOnDropHandle<()>)>,
}

#[derive(Default)]
struct Held {
    by_pod: HashMap<String, BTreeSet<ObjectRef>>,
    config_maps: HashMap<ObjectRef, Watched<ConfigMap>>,
    secrets: HashMap<ObjectRef, Watched<Secret>>,
}

struct Watched<K> {
    seen: watch::Receiver<Seen<K>>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Clone, Debug)]
enum Seen<K> {
    /// Nothing heard yet.
    Pending,
    Missing,
    Present(Arc<K>),
    /// Nothing heard yet but this error; the watch is tried again.
    Failed(String),
}

impl Cached {
    /// Reads through this client, which must be allowed what a node is.
    pub fn new(client: Client) -> Self {
        Self(Arc::new(Inner {
            client,
            changes: broadcast::channel(CHANGES).0,
            held: Mutex::default(),
            services: OnceCell::new(),
        }))
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, held: &mut Held) {
        let wanted: HashSet<&ObjectRef> = held.by_pod.values().flatten().collect();
        held.config_maps.retain(|it, _| wanted.contains(it));
        held.secrets.retain(|it, _| wanted.contains(it));
        for object in wanted {
            match object {
                ObjectRef::ConfigMap { namespace, .. } if !held.config_maps.contains_key(object) => {
                    let api = Api::namespaced(self.0.client.clone(), namespace);
                    held.config_maps
                        .insert(object.clone(), watched(api, object.clone(), self.0.changes.clone()));
                }
                ObjectRef::Secret { namespace, .. } if !held.secrets.contains_key(object) => {
                    let api = Api::namespaced(self.0.client.clone(), namespace);
                    held.secrets
                        .insert(object.clone(), watched(api, object.clone(), self.0.changes.clone()));
                }
                _ => {}
            }
        }
    }

    async fn all_services(&self) -> Result<&Store<Service>, Unreadable> {
        let unreadable = |cause: &str| Unreadable {
            object: "services".to_owned(),
            cause: cause.to_owned(),
        };
        let start = || async {
            let (store, writer) = reflector::store();
            let events = watcher(Api::<Service>::all(self.0.client.clone()), watcher::Config::default());
            let events = events.default_backoff().modify(|it| it.managed_fields_mut().clear());
            let events = events.reflect(writer);
            let task = tokio::spawn(events.for_each(|event| async {
                if let Err(error) = event {
                    tracing::warn!(%error, "services cannot be watched; tried again");
                }
            }));
            (store, AbortOnDropHandle::new(task))
        };
        let (store, _) = self.0.services.get_or_init(start).await;
        match tokio::time::timeout(PATIENCE, store.wait_until_ready()).await {
            Ok(Ok(())) => Ok(store),
            Ok(Err(_)) => Err(unreadable("the watch has ended")),
            Err(_) => Err(unreadable("the API server does not answer")),
        }
    }
}

/// What is known of an object once something is.
async fn known<K: Clone>(
    mut seen: watch::Receiver<Seen<K>>,
    object: impl Fn() -> String,
) -> Result<Option<Arc<K>>, Unreadable> {
    let unreadable = |cause: &str| Unreadable {
        object: object(),
        cause: cause.to_owned(),
    };
    let wait = seen.wait_for(|it| !matches!(it, Seen::Pending));
    match tokio::time::timeout(PATIENCE, wait).await {
        Err(_) => Err(unreadable("the API server does not answer")),
        Ok(Err(_)) => Err(unreadable("it is no longer watched")),
        Ok(Ok(seen)) => match &*seen {
            Seen::Present(it) => Ok(Some(it.clone())),
            Seen::Missing | Seen::Pending => Ok(None),
            Seen::Failed(cause) => Err(unreadable(cause)),
        },
    }
}

fn watched<K>(api: Api<K>, object: ObjectRef, changes: broadcast::Sender<ObjectRef>) -> Watched<K>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (write, seen) = watch::channel(Seen::Pending);
    let config = watcher::Config::default().fields(&format!("metadata.name={}", object.name()));
    let events = watcher(api, config).default_backoff();
    let task = async move {
        let mut events = std::pin::pin!(events);
        // What a new list has held so far.
        let mut listed = None;
        while let Some(event) = events.next().await {
            let now = match event {
                Ok(watcher::Event::Init) => {
                    listed = None;
                    continue;
                }
                Ok(watcher::Event::InitApply(it)) => {
                    listed = Some(Arc::new(it));
                    continue;
                }
                Ok(watcher::Event::InitDone) => listed.take().map_or(Seen::Missing, Seen::Present),
                Ok(watcher::Event::Apply(it)) => Seen::Present(Arc::new(it)),
                Ok(watcher::Event::Delete(_)) => Seen::Missing,
                Err(error) => {
                    tracing::warn!(%object, %error, "cannot be watched; tried again");
                    Seen::Failed(error.to_string())
                }
            };
            let mut tell = false;
            write.send_modify(|before| {
                let version = |it: &Seen<K>| match it {
                    Seen::Present(it) => (it.uid(), it.resource_version()),
                    _ => (None, None),
                };
                match (&*before, &now) {
                    // The last known state is better than none.
                    (Seen::Present(_) | Seen::Missing, Seen::Failed(_)) => return,
                    (Seen::Pending, _) | (_, Seen::Failed(_)) => {}
                    (Seen::Failed(_), _) => tell = true,
                    (before, now) => tell = version(before) != version(now),
                }
                *before = now;
            });
            if tell {
                // Nobody needs to listen.
                let _ = changes.send(object.clone());
            }
        }
    };
    Watched {
        seen,
        _task: AbortOnDropHandle::new(tokio::spawn(task)),
    }
}

impl Objects for Cached {
    fn config_map<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<ConfigMap>>, Unreadable>> {
        Box::pin(async move {
            let object = ObjectRef::ConfigMap {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            };
            let held = self.held().config_maps.get(&object).map(|it| it.seen.clone());
            match held {
                Some(seen) => known(seen, || object.to_string()).await,
                None => asked(Api::namespaced(self.0.client.clone(), namespace), &object).await,
            }
        })
    }

    fn secret<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<Secret>>, Unreadable>> {
        Box::pin(async move {
            let object = ObjectRef::Secret {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            };
            let held = self.held().secrets.get(&object).map(|it| it.seen.clone());
            match held {
                Some(seen) => known(seen, || object.to_string()).await,
                None => asked(Api::namespaced(self.0.client.clone(), namespace), &object).await,
            }
        })
    }

    fn services<'a>(&'a self, namespace: &'a str) -> BoxFuture<'a, Result<Vec<Arc<Service>>, Unreadable>> {
        Box::pin(async move {
            let wanted = |it: &Arc<Service>| match it.metadata.namespace.as_deref() {
                Some(own) if own == namespace => true,
                Some("default") => it.metadata.name.as_deref() == Some("kubernetes"),
                _ => false,
            };
            let all = self.all_services().await?.state();
            Ok(all.into_iter().filter(wanted).collect())
        })
    }

    fn token<'a>(
        &'a self,
        namespace: &'a str,
        account: &'a str,
        request: &'a TokenRequest,
    ) -> BoxFuture<'a, Result<TokenRequest, Unreadable>> {
        Box::pin(async move {
            let api = Api::<ServiceAccount>::namespaced(self.0.client.clone(), namespace);
            let params = PostParams::default();
            let asked = api.create_token_request(account, &params, request);
            let object = || format!("a token of serviceaccount {namespace}/{account}");
            match tokio::time::timeout(PATIENCE, asked).await {
                Ok(Ok(it)) => Ok(it),
                Ok(Err(error)) => Err(Unreadable {
                    object: object(),
                    cause: error.to_string(),
                }),
                Err(_) => Err(Unreadable {
                    object: object(),
                    cause: "the API server does not answer".to_owned(),
                }),
            }
        })
    }

    fn hold(&self, uid: &str, objects: BTreeSet<ObjectRef>) {
        let mut held = self.held();
        held.by_pod.insert(uid.to_owned(), objects);
        self.update(&mut held);
    }

    fn release(&self, uid: &str) {
        let mut held = self.held();
        held.by_pod.remove(uid);
        self.update(&mut held);
    }

    fn changes(&self) -> broadcast::Receiver<ObjectRef> {
        self.0.changes.subscribe()
    }
}

async fn asked<K>(api: Api<K>, object: &ObjectRef) -> Result<Option<Arc<K>>, Unreadable>
where
    K: Clone + Debug + DeserializeOwned,
{
    match tokio::time::timeout(PATIENCE, api.get_opt(object.name())).await {
        Ok(Ok(found)) => Ok(found.map(Arc::new)),
        Ok(Err(error)) => Err(Unreadable {
            object: object.to_string(),
            cause: error.to_string(),
        }),
        Err(_) => Err(Unreadable {
            object: object.to_string(),
            cause: "the API server does not answer".to_owned(),
        }),
    }
}
