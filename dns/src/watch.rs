//! Lists and watches of the API server → changes of the zone.
//!
//! Lists come in pages, so that a large cluster is never in memory as objects. A watch that ends is resumed where it was;
//! one that is silent for longer than bookmarks are apart is broken off and resumed, as it may be dead.

use crate::{
    metrics::Metrics,
    zone::{
        Pods, Zone,
        facts::{self, Complaint, Key},
        store::{Change, Options, Resource, Store},
    },
};
use futures::{StreamExt as _, pin_mut};
use k8s_openapi::api::{
    core::v1::{Namespace, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, WatchEvent, WatchParams},
};
use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

/// Objects per page of a list.
const PAGE: u32 = 500;
/// Length of a watch, seconds; the server ends it then.
const WATCH_S: u32 = 290;
/// Silence after which a watch is taken for dead: bookmarks come every 60 s.
const SILENCE: Duration = Duration::from_secs(150);
/// Silence after which names may be out of date, so that this server is not ready.
const STALE: Duration = Duration::from_secs(240);
/// First and longest pause after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// Messages between watches and the writer.
const QUEUE: usize = 256;
/// Messages after which names are published although more wait.
const MOST_AT_ONCE: usize = 1024;

/// The state of one watch.
#[derive(Debug)]
struct State {
    resource: Resource,
    synced: AtomicBool,
    alive: Mutex<Instant>,
}

impl State {
    fn is_alive(&self) {
        *self.alive.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn age(&self) -> Duration {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

/// All watches of one zone.
#[derive(Debug)]
pub struct Watches {
    states: Vec<Arc<State>>,
    ready: watch::Receiver<bool>,
}

impl Watches {
    /// Why names may be missing or out of date; empty if they are not.
    pub fn complaints(&self) -> Vec<String> {
        let complaint = |state: &Arc<State>| {
            let name = state.resource.name();
            if !state.synced.load(Ordering::Acquire) {
                return Some(format!("kubernetes: {name} have not been read yet"));
            }
            let age = state.age();
            (age > STALE).then(|| {
                format!(
                    "kubernetes: the watch of {name} has been silent for {} s",
                    age.as_secs()
                )
            })
        };
        self.states.iter().filter_map(complaint).collect()
    }

    /// Sets the metrics of these watches.
    pub fn show(&self, metrics: &Metrics) {
        for state in &self.states {
            metrics.watch_age(state.resource.name(), state.age());
        }
    }

    /// Returns once everything has been read; false if that will not happen.
    pub async fn synced(&self) -> bool {
        self.ready.clone().wait_for(|ready| *ready).await.is_ok()
    }
}

enum Message {
    /// Objects of a list or of a watch.
    Changes(Vec<Change>),
    /// A list is complete: what it did not have is gone.
    Listed(Resource, HashSet<Key>),
}

/// Starts the watches of a zone; they end with `stop`.
pub fn start(
    client: &Client,
    options: &Options,
    metrics: &Arc<Metrics>,
    stop: &CancellationToken,
) -> (Arc<Zone>, Arc<Watches>) {
    let (store, zone) = Store::new(options.clone());
    let (sender, receiver) = mpsc::channel(QUEUE);
    let (ready_sender, ready) = watch::channel(false);
    let mut resources = vec![Resource::Services, Resource::Namespaces];
    if !options.no_endpoints {
        resources.push(Resource::EndpointSlices);
    }
    if options.pods == Pods::Verified {
        resources.push(Resource::Pods);
    }
    let mut states = Vec::new();
    for resource in resources {
        let state = Arc::new(State {
            resource,
            synced: AtomicBool::new(false),
            alive: Mutex::new(Instant::now()),
        });
        states.push(Arc::clone(&state));
        let follower = Follower {
            state,
            selector: match resource {
                Resource::Namespaces => options.namespace_labels.clone(),
                _ => options.labels.clone(),
            },
            sender: sender.clone(),
            metrics: Arc::clone(metrics),
            complaints: HashMap::new(),
        };
        let (client, stop, pod_names) = (client.clone(), stop.clone(), options.endpoint_pod_names);
        tokio::spawn(async move {
            stop.run_until_cancelled(async move {
                match resource {
                    Resource::Services => follower.run(Api::<Service>::all(client), service).await,
                    Resource::EndpointSlices if pod_names => follower.run(Api::all(client), slice_by_pod).await,
                    Resource::EndpointSlices => follower.run(Api::all(client), slice_by_address).await,
                    Resource::Namespaces => follower.run(Api::<Namespace>::all(client), namespace).await,
                    Resource::Pods => follower.run(Api::<Pod>::all(client), pod).await,
                }
            })
            .await;
        });
    }
    let watched = states.clone();
    let writer = write(store, receiver, watched, ready_sender, Arc::clone(metrics));
    let stop = stop.clone();
    tokio::spawn(async move { stop.run_until_cancelled(writer).await });
    (zone, Arc::new(Watches { states, ready }))
}

type Converted = (Change, Vec<Complaint>);

fn service(object: &Service, there: bool) -> Converted {
    let (facts, complaints) = facts::service(object);
    (
        Change::Service(Key::of(&object.metadata), there.then_some(facts)),
        complaints,
    )
}

fn slice_by_pod(object: &EndpointSlice, there: bool) -> Converted {
    slice(object, there, true)
}

fn slice_by_address(object: &EndpointSlice, there: bool) -> Converted {
    slice(object, there, false)
}

fn slice(object: &EndpointSlice, there: bool, pod_names: bool) -> Converted {
    let (facts, complaints) = facts::slice(object, pod_names);
    (
        Change::Slice(Key::of(&object.metadata), facts.filter(|_| there)),
        complaints,
    )
}

fn namespace(object: &Namespace, there: bool) -> Converted {
    (Change::Namespace(facts::namespace(object), there), Vec::new())
}

fn pod(object: &Pod, there: bool) -> Converted {
    let addresses = if there { facts::pod(object) } else { Box::default() };
    (Change::Pod(Key::of(&object.metadata), addresses), Vec::new())
}

/// One resource, followed for ever.
struct Follower {
    state: Arc<State>,
    selector: Option<String>,
    sender: mpsc::Sender<Message>,
    metrics: Arc<Metrics>,
    /// What was said about an object, which is not said again.
    complaints: HashMap<Key, Vec<Complaint>>,
}

/// How a watch ended.
enum End {
    /// It can be resumed at once.
    Resume,
    /// It can be resumed after a pause.
    Pause,
    /// What it knew is too old: the resource is listed again.
    Relist,
}

impl Follower {
    async fn run<K>(mut self, api: Api<K>, convert: fn(&K, bool) -> Converted)
    where
        K: kube::Resource + Clone + serde::de::DeserializeOwned + Debug,
    {
        let name = self.state.resource.name();
        let mut pause = PAUSES.0;
        loop {
            self.metrics.relisted(name);
            let mut version = match self.list(&api, convert).await {
                Ok(version) => version,
                Err(error) => {
                    tracing::warn!(resource = name, %error, "cannot list; names stay as they are until it works");
                    rest(&mut pause).await;
                    continue;
                }
            };
            self.state.synced.store(true, Ordering::Release);
            loop {
                match self.watch(&api, convert, &mut version, &mut pause).await {
                    End::Resume => {}
                    End::Pause => rest(&mut pause).await,
                    End::Relist => break,
                }
            }
        }
    }

    async fn list<K>(&mut self, api: &Api<K>, convert: fn(&K, bool) -> Converted) -> kube::Result<String>
    where
        K: kube::Resource + Clone + serde::de::DeserializeOwned + Debug,
    {
        let mut seen = HashSet::new();
        let mut parameters = ListParams::default().limit(PAGE);
        parameters.label_selector.clone_from(&self.selector);
        loop {
            let page = timeout(SILENCE, api.list(&parameters)).await;
            let page = page.map_err(|_| kube::Error::Service("the API server does not answer".into()))??;
            self.state.is_alive();
            let mut changes = Vec::new();
            for object in &page.items {
                seen.insert(Key::of(object.meta()));
                changes.push(self.convert(object, true, convert));
            }
            self.send(Message::Changes(changes)).await;
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => parameters.continue_token = Some(token),
                None => {
                    self.complaints.retain(|key, _| seen.contains(key));
                    self.send(Message::Listed(self.state.resource, seen)).await;
                    return Ok(page.metadata.resource_version.unwrap_or_default());
                }
            }
        }
    }

    async fn watch<K>(
        &mut self,
        api: &Api<K>,
        convert: fn(&K, bool) -> Converted,
        version: &mut String,
        pause: &mut Duration,
    ) -> End
    where
        K: kube::Resource + Clone + serde::de::DeserializeOwned + Debug,
    {
        let resource = self.state.resource.name();
        let parameters = WatchParams {
            label_selector: self.selector.clone(),
            timeout: Some(WATCH_S),
            bookmarks: true,
            ..WatchParams::default()
        };
        let stream = match timeout(SILENCE, api.watch(&parameters, version)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return ended(resource, &error),
            Err(_) => return End::Pause,
        };
        self.state.is_alive();
        pin_mut!(stream);
        loop {
            let event = match timeout(SILENCE, stream.next()).await {
                Ok(Some(Ok(event))) => event,
                Ok(Some(Err(error))) => return ended(resource, &error),
                // Ended by the server's clock, or by its end: a watch that ends at once must not spin.
                Ok(None) if self.state.age() < Duration::from_millis(100) => return End::Pause,
                Ok(None) => return End::Resume,
                Err(_) => {
                    tracing::warn!(resource, "the watch has been silent for too long; resuming it");
                    return End::Resume;
                }
            };
            self.state.is_alive();
            *pause = PAUSES.0;
            let (object, there) = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, true),
                WatchEvent::Deleted(object) => (object, false),
                WatchEvent::Bookmark(bookmark) => {
                    version.clone_from(&bookmark.metadata.resource_version);
                    continue;
                }
                WatchEvent::Error(status) => return ended(resource, &kube::Error::Api(status)),
            };
            *version = object.resource_version().unwrap_or_default();
            let change = self.convert(&object, there, convert);
            self.send(Message::Changes(vec![change])).await;
        }
    }

    fn convert<K: kube::Resource>(&mut self, object: &K, there: bool, convert: fn(&K, bool) -> Converted) -> Change {
        let (change, complaints) = convert(object, there);
        let key = Key::of(object.meta());
        if complaints.is_empty() || !there {
            self.complaints.remove(&key);
        } else if self.complaints.get(&key) != Some(&complaints) {
            self.metrics.skipped.inc();
            for why in &complaints {
                tracing::warn!(resource = self.state.resource.name(), namespace = %key.namespace, name = %key.name, why, "left out of the names");
            }
            self.complaints.insert(key, complaints);
        }
        change
    }

    async fn send(&self, message: Message) {
        // The writer ends with the same token as this task.
        let _ = self.sender.send(message).await;
    }
}

fn ended(resource: &'static str, error: &kube::Error) -> End {
    match error {
        kube::Error::Api(status) if status.code == 410 => {
            tracing::info!(resource, "the watch is too old; listing again");
            End::Relist
        }
        error => {
            tracing::warn!(resource, %error, "the watch broke off; resuming it");
            End::Pause
        }
    }
}

/// Waits, longer each time, by chance up to half as long again.
async fn rest(pause: &mut Duration) {
    let jitter = pause.mul_f64(rand::random::<f64>() / 2.0);
    tokio::time::sleep(*pause + jitter).await;
    *pause = (*pause * 2).min(PAUSES.1);
}

/// The one writer.
async fn write(
    mut store: Store,
    mut messages: mpsc::Receiver<Message>,
    states: Vec<Arc<State>>,
    ready: watch::Sender<bool>,
    metrics: Arc<Metrics>,
) {
    let mut listed = HashSet::new();
    while let Some(first) = messages.recv().await {
        let mut next = Some(first);
        let mut count = 0;
        while let Some(message) = next {
            match message {
                Message::Changes(changes) => changes.into_iter().for_each(|change| store.apply(change)),
                Message::Listed(resource, seen) => {
                    for key in store.keys(resource) {
                        if !seen.contains(&key) {
                            store.apply(gone(resource, key));
                        }
                    }
                    listed.insert(resource);
                }
            }
            count += 1;
            next = if count < MOST_AT_ONCE {
                messages.try_recv().ok()
            } else {
                None
            };
        }
        store.publish(now_s());
        for (gauge, size) in metrics.objects.iter().zip(store.sizes()) {
            gauge.set(i64::try_from(size).unwrap_or(i64::MAX));
        }
        if listed.len() == states.len() && !*ready.borrow() {
            store.ready();
            tracing::info!(sizes = ?store.sizes(), "the cluster's names are served");
            ready.send_replace(true);
        }
    }
}

fn gone(resource: Resource, key: Key) -> Change {
    match resource {
        Resource::Services => Change::Service(key, None),
        Resource::EndpointSlices => Change::Slice(key, None),
        Resource::Namespaces => Change::Namespace(key.name, false),
        Resource::Pods => Change::Pod(key, Box::default()),
    }
}

fn now_s() -> u32 {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    // Serial numbers wrap (RFC 1982).
    (now.as_secs() & u64::from(u32::MAX)) as u32
}
