//! The Kubernetes API as a source, through `kube`: the only file that knows the API server.
//!
//! One task per kind watches, converts and compares; API objects live no longer than it takes to convert them. A watch
//! that falls off is resumed or relisted with back-off, and what was announced before stays until the new list is
//! complete. One object that makes no sense costs only itself, even inside a list.

use super::{
    BACKLOG, Events, Key, SourceError,
    decode::{self, Decoded, Kind, Malformed, typed},
};
use crate::{
    error::Skipped,
    model::{Event, Interner},
};
use futures::StreamExt;
use k8s_openapi::{
    api::{core::v1, discovery::v1::EndpointSlice},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Resource,
    runtime::{WatchStreamExt, watcher},
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;
use std::{
    borrow::Cow,
    collections::{HashMap, hash_map::RandomState},
    fmt,
    hash::BuildHasher,
    path::Path,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout},
};

/// Server-side length of a watch, seconds; five more and a silent connection counts as dead. Shorter notices a dead API
/// server earlier; each node asks three times per period.
const WATCH_S: u32 = 120;
/// Objects per page of a list, where the server does not stream lists.
const PAGE: u32 = 500;
/// Most changes in one batch.
const BATCH: usize = 512;
/// A server that says nothing for so long in the middle of a streamed list has not understood that one was asked for.
const SILENCE: Duration = Duration::from_secs(10);
/// Streamed lists that may end half way before plain ones are tried.
const BROKEN_STREAMS: u32 = 3;

/// How the watches fare, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceHealth {
    /// Services.
    pub services: KindHealth,
    /// EndpointSlices.
    pub slices: KindHealth,
    /// This node's Node.
    pub node: KindHealth,
}

/// How one watch fares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KindHealth {
    /// A first list is complete.
    pub synced: bool,
    /// When the server last answered a request with success, or sent something. On a quiet cluster a watch is renewed
    /// every two minutes, so anything much older is an outage.
    pub last_contact: Option<Instant>,
    /// What fails, since the last contact; retried with back-off.
    pub error: Option<String>,
}

/// A client from a kubeconfig file, or, without one, from the pod's service account.
///
/// # Errors
/// If the settings are missing or make no sense. The server is not contacted.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, SourceError> {
    let fail = |origin: String, reason: &dyn fmt::Display| SourceError::Client {
        origin,
        reason: reason.to_string(),
    };
    let (origin, config) = match kubeconfig {
        Some(path) => {
            let origin = format!("kubeconfig {}", path.display());
            let file = kube::config::Kubeconfig::read_from(path).map_err(|err| fail(origin.clone(), &err))?;
            let options = kube::config::KubeConfigOptions::default();
            let config = kube::Config::from_custom_kubeconfig(file, &options).await;
            let config = config.map_err(|err| fail(origin.clone(), &err))?;
            (origin, config)
        }
        None => {
            let origin = "service account of this pod".to_owned();
            let remedy = "outside a cluster, name a file with --kubeconfig or a folder with --manifests";
            let config = kube::Config::incluster();
            let config = config.map_err(|err| fail(origin.clone(), &format_args!("{err}; {remedy}")))?;
            (origin, config)
        }
    };
    Client::try_from(config).map_err(|err| fail(origin, &err))
}

/// Follows Services, EndpointSlices and the Node named `node_name`; needs a tokio runtime.
///
/// [`Event::InitDone`] comes once every kind has been listed. Where there is no such Node, there is simply none.
pub fn follow(client: &Client, node_name: &str) -> (Events, watch::Receiver<SourceHealth>) {
    let (events, receiver) = mpsc::channel(BACKLOG);
    let (health, health_receiver) = watch::channel(SourceHealth::default());
    // The channel is new and its receiver at hand, so this cannot fail.
    let _ = events.try_send(vec![Event::Init]);
    let shared = Shared {
        events,
        health,
        unsynced: Arc::new(AtomicUsize::new(3)),
    };
    let all = watcher::Config::default().timeout(WATCH_S).page_size(PAGE);
    let own = all.clone().fields(&format!("metadata.name={node_name}"));
    let mut tasks = JoinSet::new();
    spawn::<v1::Service>(&mut tasks, client, Kind::Service, all.clone(), decode::service, &shared);
    spawn::<EndpointSlice>(&mut tasks, client, Kind::Slice, all, decode::slice, &shared);
    spawn::<v1::Node>(&mut tasks, client, Kind::Node, own, decode::node, &shared);
    tokio::spawn(all_or_none(tasks));
    (receiver, health_receiver)
}

/// Waits for the first task to end and ends the others with it. With one kind no longer followed the agent would serve
/// ever older endpoints and look well; with all senders gone it sees that its source has ended.
async fn all_or_none(mut tasks: JoinSet<()>) {
    if let Some(Err(error)) = tasks.join_next().await {
        tracing::error!(%error, "a watch panicked; the API server is no longer followed");
    }
    tasks.shutdown().await;
}

type Convert<K> = fn(&K, &mut Interner) -> (Decoded, Vec<Skipped>);

fn spawn<K>(
    tasks: &mut JoinSet<()>,
    client: &Client,
    kind: Kind,
    config: watcher::Config,
    convert: Convert<K>,
    shared: &Shared,
) where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + fmt::Debug + Send + Sync + 'static,
{
    let shared = shared.clone();
    let api = Api::<Lenient<K>>::all(observed(client.clone(), kind, shared.clone()));
    let follower = Follower {
        kind,
        convert,
        strings: Interner::default(),
        known: Known::default(),
    };
    tasks.spawn(async move {
        let events = shared.events.clone();
        // Whatever waits, waits no longer than the receiver lives.
        tokio::select! {
            biased;
            () = events.closed() => {}
            () = follower.run(api, config, shared) => {}
        }
    });
}

/// The same client, with each success noted.
fn observed(client: Client, kind: Kind, shared: Shared) -> Client {
    let namespace = client.default_namespace().to_owned();
    let service = tower::service_fn(move |request| {
        let (client, shared) = (client.clone(), shared.clone());
        async move {
            let response = client.send(request).await;
            if response.as_ref().is_ok_and(|response| response.status().is_success()) {
                shared.contact(kind);
            }
            response
        }
    });
    Client::new(service, namespace)
}

/// What the tasks of the three kinds share.
#[derive(Clone, Debug)]
struct Shared {
    events: mpsc::Sender<Vec<Event>>,
    health: watch::Sender<SourceHealth>,
    /// Kinds that have not been listed yet.
    unsynced: Arc<AtomicUsize>,
}

impl Shared {
    fn with(&self, kind: Kind, change: impl FnOnce(&mut KindHealth)) {
        self.health.send_modify(|health| {
            change(match kind {
                Kind::Service => &mut health.services,
                Kind::Slice => &mut health.slices,
                Kind::Node => &mut health.node,
            });
        });
    }

    fn contact(&self, kind: Kind) {
        self.with(kind, |health| {
            health.last_contact = Some(Instant::now());
            if health.error.take().is_some() {
                tracing::info!(?kind, "the API server answers again");
            }
        });
    }

    /// Logs a failure when it is new, not each time it is retried.
    fn failed(&self, kind: Kind, error: String) {
        self.with(kind, |health| {
            if health.error.as_ref() != Some(&error) {
                tracing::warn!(?kind, error, "watch failed; retrying, and serving what is known");
            }
            health.error = Some(error);
        });
    }
}

/// Follows one kind.
struct Follower<K> {
    kind: Kind,
    convert: Convert<K>,
    strings: Interner,
    known: Known,
}

/// What has been announced, and in which list it was last seen.
#[derive(Default)]
struct Known {
    /// A hash stands for the object, so that nothing is kept twice: most updates of an API object do not concern us.
    objects: HashMap<Key, Seen>,
    /// What is wrong with objects, announced or not.
    faulty: HashMap<Key, Faulty>,
    hasher: RandomState,
    list: u32,
}

struct Seen {
    hash: u64,
    list: u32,
}

/// What was reported of an object and still stands.
struct Faulty {
    /// Of all reports.
    hash: u64,
    /// [`Skipped::object`] of each: its name, or what stands for one that cannot be used.
    subject: String,
    list: u32,
}

impl Known {
    /// Adds to `batch` how `reports`, of one object, differ from those that stand.
    fn review(&mut self, key: &Key, reports: Vec<Skipped>, batch: &mut Vec<Event>) {
        let hash = self.hasher.hash_one(&reports);
        if let Some(before) = self.faulty.get_mut(key)
            && before.hash == hash
        {
            before.list = self.list;
            return;
        }
        if let Some(before) = self.faulty.remove(key) {
            batch.push(before.over());
        }
        if let Some(first) = reports.first() {
            let faulty = Faulty {
                hash,
                subject: first.object.clone(),
                list: self.list,
            };
            self.faulty.insert(key.clone(), faulty);
        }
        batch.extend(reports.into_iter().map(Event::Skipped));
    }
}

impl Faulty {
    fn over(self) -> Event {
        Event::Reviewed { subject: self.subject }
    }
}

impl<K> Follower<K>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + fmt::Debug + Send + Sync + 'static,
{
    async fn run(mut self, api: Api<Lenient<K>>, config: watcher::Config, shared: Shared) {
        let mut streaming = true;
        let mut synced = false;
        loop {
            let config = if streaming {
                config.clone().streaming_lists()
            } else {
                config.clone()
            };
            let stream = watcher(api.clone(), config).default_backoff().ready_chunks(BATCH);
            let mut stream = pin!(stream);
            let mut listing = false;
            let mut broken = 0;
            'stream: loop {
                let chunk = if streaming && listing {
                    match timeout(SILENCE, stream.next()).await {
                        Ok(chunk) => chunk,
                        Err(_) => break 'stream,
                    }
                } else {
                    stream.next().await
                };
                let Some(chunk) = chunk else { break 'stream };
                let mut batch = Vec::new();
                let mut fall_back = false;
                for item in chunk {
                    match item {
                        Ok(event) => {
                            if matches!(event, watcher::Event::Init) {
                                broken += u32::from(listing);
                                fall_back |= broken >= BROKEN_STREAMS;
                            }
                            listing = match event {
                                watcher::Event::Init | watcher::Event::InitApply(_) => true,
                                watcher::Event::InitDone => false,
                                watcher::Event::Apply(_) | watcher::Event::Delete(_) => listing,
                            };
                            if matches!(event, watcher::Event::InitDone) {
                                broken = 0;
                            }
                            let done = matches!(event, watcher::Event::InitDone);
                            self.take(event, &mut batch);
                            if done && !std::mem::replace(&mut synced, true) {
                                shared.with(self.kind, |health| health.synced = true);
                                if !send(&shared, std::mem::take(&mut batch)).await {
                                    return;
                                }
                                // The last kind to get here has everything of the others before it in the channel.
                                if shared.unsynced.fetch_sub(1, Ordering::AcqRel) == 1 {
                                    batch.push(Event::InitDone);
                                }
                            }
                            shared.contact(self.kind);
                        }
                        Err(err) => {
                            fall_back |= cannot_stream(&err);
                            if !(streaming && fall_back) {
                                shared.failed(self.kind, describe(&err));
                            }
                        }
                    }
                }
                if !send(&shared, batch).await {
                    return;
                }
                if streaming && fall_back {
                    break 'stream;
                }
            }
            if streaming {
                tracing::info!(kind = ?self.kind, "the API server does not stream lists; listing page by page");
            }
            streaming = false;
        }
    }

    /// Takes in one event of the watch and adds the differences to `batch`.
    fn take(&mut self, event: watcher::Event<Lenient<K>>, batch: &mut Vec<Event>) {
        match event {
            watcher::Event::Init => self.known.list = self.known.list.wrapping_add(1),
            watcher::Event::InitApply(object) | watcher::Event::Apply(object) => self.apply(object, batch),
            watcher::Event::Delete(object) => {
                let key = self.key(&object.meta);
                self.known.review(&key, Vec::new(), batch);
                if self.known.objects.remove(&key).is_some() {
                    batch.push(key.deleted());
                }
            }
            watcher::Event::InitDone => {
                let list = self.known.list;
                let over = self.known.faulty.extract_if(|_, faulty| faulty.list != list);
                batch.extend(over.map(|(_, faulty)| faulty.over()));
                let gone = self.known.objects.extract_if(|_, seen| seen.list != list);
                batch.extend(gone.map(|(key, _)| key.deleted()));
            }
        }
    }

    fn key(&mut self, meta: &ObjectMeta) -> Key {
        let namespace = meta.namespace.as_deref().unwrap_or("default");
        self.kind
            .key(namespace, meta.name.as_deref().unwrap_or_default(), &mut self.strings)
    }

    fn apply(&mut self, object: Lenient<K>, batch: &mut Vec<Event>) {
        let list = self.known.list;
        let key = self.key(&object.meta);
        match object.object {
            Ok(api) => {
                let (decoded, reports) = (self.convert)(&api, &mut self.strings);
                self.known.review(&key, reports, batch);
                match decoded {
                    Decoded::Object(object) => {
                        let hash = self.known.hasher.hash_one(&object);
                        let before = self.known.objects.insert(object.key(), Seen { hash, list });
                        if before.is_none_or(|before| before.hash != hash) {
                            batch.push(object.applied());
                        }
                    }
                    Decoded::NotOurs(key) => {
                        if self.known.objects.remove(&key).is_some() {
                            batch.push(key.deleted());
                        }
                    }
                    Decoded::Nameless => {}
                }
            }
            Err(Malformed { field, reason }) => {
                if let Some(before) = self.known.objects.get_mut(&key) {
                    // The last version that made sense stays.
                    before.list = list;
                }
                let object = key.to_string();
                self.known.review(&key, vec![Skipped { object, field, reason }], batch);
            }
        }
    }
}

/// Whether anybody still listens.
async fn send(shared: &Shared, batch: Vec<Event>) -> bool {
    batch.is_empty() || shared.events.send(batch).await.is_ok()
}

/// Whether the server refuses streamed lists as such: it is older than 1.27, or has the feature off.
fn cannot_stream(err: &watcher::Error) -> bool {
    let status = match err {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) | watcher::Error::WatchError(status) => status,
        _ => return false,
    };
    matches!(status.code, 400 | 405 | 422 | 501)
}

/// The error with its causes, which `kube` does not repeat in its own text.
fn describe(err: &watcher::Error) -> String {
    let mut text = err.to_string();
    let mut cause = std::error::Error::source(err);
    while let Some(err) = cause {
        let more = err.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = err.source();
    }
    text
}

/// An API object that may be malformed without spoiling the list that it is in.
#[derive(Clone, Debug)]
struct Lenient<K> {
    /// Name, namespace and resource version only.
    meta: ObjectMeta,
    object: Result<K, Malformed>,
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Lenient<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let text = |field: &str| Some(value.get("metadata")?.get(field)?.as_str()?.to_owned());
        let meta = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        Ok(Self {
            meta,
            object: typed(value),
        })
    }
}

impl<K: Resource<DynamicType = ()>> Resource for Lenient<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind(dt: &()) -> Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &()) -> Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &()) -> Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &()) -> Cow<'_, str> {
        K::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

#[cfg(test)]
#[path = "kubernetes_tests.rs"]
mod tests;
