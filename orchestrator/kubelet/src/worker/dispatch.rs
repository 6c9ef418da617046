//! Brings news to the workers: pods of the API server and of manifests, changes of the runtime, results of probes.
//! Begins workers, and ends what belongs to no pod.

use super::{Begin, Message, observe::POD_UID, spawn};
use crate::{
    node::{Node, admit, capacity, static_pods},
    pod,
    probes::Outcome,
    status::{Target, is_terminal},
};
use futures::StreamExt as _;
use k8s_openapi::{
    api::core::v1::{Pod, PodSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api,
    runtime::{WatchStreamExt as _, watcher},
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// When mirrors that could not be made are tried again.
const MIRRORS_AGAIN: Duration = Duration::from_secs(10);

/// When to try again what needs the runtime.
const ORPHANS_AGAIN: Duration = Duration::from_secs(5);

/// Where news come from besides the API server.
pub(crate) struct Inputs {
    /// Uids of pods that changed in the runtime.
    pub changed: mpsc::UnboundedReceiver<String>,
    /// Results of probes.
    pub outcomes: mpsc::Receiver<Outcome>,
    /// All pods of manifests, each time they change.
    pub manifests: mpsc::UnboundedReceiver<Vec<Arc<Pod>>>,
}

struct Worker {
    news: mpsc::UnboundedSender<Message>,
    pod: Arc<Pod>,
    is_static: bool,
    gone: bool,
}

/// Runs until `stop`.
pub(crate) async fn run(node: Arc<Node>, mut inputs: Inputs, stop: CancellationToken) {
    let api: Api<Pod> = Api::all(node.client.clone());
    let mine = format!("spec.nodeName={}", node.config.node_name);
    let config = watcher::Config::default().fields(&mine);
    let mut watch = std::pin::pin!(watcher(api, config).default_backoff());
    let (ended, mut ends) = mpsc::unbounded_channel();
    let mut this = Dispatch {
        node,
        workers: HashMap::new(),
        mirrors: HashMap::new(),
        static_waiting: BTreeMap::new(),
        listing: None,
        listed: false,
        manifests_read: false,
        ended,
        stop: stop.clone(),
    };
    this.manifests_read = this.node.config.static_pod_dir.is_none();
    let mut mirrors = tokio::time::interval(MIRRORS_AGAIN);
    mirrors.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut orphans_left = true;
    let mut orphans = tokio::time::interval(ORPHANS_AGAIN);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(uid) = inputs.changed.recv() => this.send(&uid, Message::Look),
            Some(outcome) = inputs.outcomes.recv() => {
                let uid = outcome.pod_uid.clone();
                this.send(&uid, Message::Probed(outcome));
            }
            Some(uid) = ends.recv() => this.worker_ended(&uid),
            event = watch.next() => match event {
                Some(Ok(event)) => this.take(event),
                Some(Err(error)) => tracing::warn!(error = %error, "pods cannot be watched; it will be tried again"),
                None => return,
            },
            Some(pods) = inputs.manifests.recv() => this.take_manifests(pods),
            _ = mirrors.tick() => this.keep_mirrors(),
            _ = orphans.tick(), if orphans_left => {}
        }
        if orphans_left && this.listed && this.manifests_read {
            orphans_left = !this.end_orphans().await;
        }
    }
}

struct Dispatch {
    node: Arc<Node>,
    /// By uid.
    workers: HashMap<String, Worker>,
    /// Mirrors by full name.
    mirrors: HashMap<String, Arc<Pod>>,
    /// Static pods that wait until the one before them with the same name is gone, by full name.
    static_waiting: BTreeMap<String, Arc<Pod>>,
    /// Uids of a list that is being read.
    listing: Option<HashSet<String>>,
    listed: bool,
    manifests_read: bool,
    ended: mpsc::UnboundedSender<String>,
    stop: CancellationToken,
}

impl Dispatch {
    fn send(&self, uid: &str, message: Message) {
        if let Some(worker) = self.workers.get(uid) {
            // A worker that has just ended is told of in its own way.
            let _ = worker.news.send(message);
        }
    }

    fn take(&mut self, event: watcher::Event<Pod>) {
        match event {
            watcher::Event::Init => self.listing = Some(HashSet::new()),
            watcher::Event::InitApply(pod) => {
                if let Some(listing) = &mut self.listing {
                    listing.insert(pod::uid(&pod).to_owned());
                }
                self.apply(pod);
            }
            watcher::Event::InitDone => {
                let listing = self.listing.take().unwrap_or_default();
                let gone = self
                    .workers
                    .iter()
                    .filter(|(uid, it)| !it.is_static && !listing.contains(*uid));
                let gone: Vec<_> = gone.map(|(uid, _)| uid.clone()).collect();
                for uid in gone {
                    self.gone(&uid);
                }
                self.mirrors.retain(|_, it| listing.contains(pod::uid(it)));
                self.listed = true;
                self.keep_mirrors();
            }
            watcher::Event::Apply(pod) => self.apply(pod),
            watcher::Event::Delete(pod) => {
                if self.is_mirror(&pod) {
                    let name = pod::full_name(&pod);
                    let same = self.mirrors.get(&name).is_some_and(|it| pod::uid(it) == pod::uid(&pod));
                    if same {
                        self.mirrors.remove(&name);
                        self.tell_mirror(&name);
                    }
                    self.keep_mirrors();
                } else {
                    self.gone(pod::uid(&pod));
                }
            }
        }
    }

    /// Whether an object is the mirror of a static pod. One whose containers run here by its own uid is none, whatever was
    /// written into its annotations since.
    fn is_mirror(&self, pod: &Pod) -> bool {
        let runs = self.workers.get(pod::uid(pod)).is_some_and(|it| !it.is_static);
        static_pods::is_mirror(pod) && !runs
    }

    fn gone(&mut self, uid: &str) {
        if let Some(worker) = self.workers.get_mut(uid) {
            worker.gone = true;
        }
        self.send(uid, Message::Gone);
    }

    fn apply(&mut self, pod: Pod) {
        let pod = Arc::new(pod);
        if self.is_mirror(&pod) {
            let name = pod::full_name(&pod);
            let deleting = pod.metadata.deletion_timestamp.is_some();
            self.mirrors.insert(name.clone(), pod);
            self.tell_mirror(&name);
            if deleting {
                self.keep_mirrors();
            }
            return;
        }
        let uid = pod::uid(&pod).to_owned();
        if let Some(worker) = self.workers.get_mut(&uid) {
            worker.pod = Arc::clone(&pod);
            let _ = worker.news.send(Message::Pod(pod));
            return;
        }
        let rejected = self.admit(&pod).err();
        if let Some((reason, message)) = &rejected {
            use crate::events::Kind;
            self.node.events.pod(&pod, None, Kind::Warning, reason, message);
        }
        self.begin(pod, false, rejected);
    }

    /// Pods that began to run before are not asked again.
    fn admit(&self, pod: &Pod) -> Result<(), (String, String)> {
        let status = pod.status.clone().unwrap_or_default();
        let begun = status.start_time.is_some();
        if begun || is_terminal(&status) || pod.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let shown = self.node.table.all();
        let over = |uid: &str| {
            let mut shown = shown.iter();
            shown.any(|it| it.uid() == uid && it.pod.status.as_ref().is_some_and(is_terminal))
        };
        let others: Vec<&Pod> = self
            .workers
            .iter()
            .filter(|(uid, it)| !over(uid) && !it.pod.status.as_ref().is_some_and(is_terminal))
            .map(|(_, it)| &*it.pod)
            .collect();
        let capacity = capacity::read(self.node.config.max_pods, &self.node.config.root_dir);
        let labels = self.node.labels();
        admit::admit(pod, &self.node.config.node_name, &labels, &capacity, &others)
    }

    fn begin(&mut self, pod: Arc<Pod>, is_static: bool, rejected: Option<(String, String)>) {
        let uid = pod::uid(&pod).to_owned();
        let begin = Begin {
            pod: Arc::clone(&pod),
            is_static,
            rejected,
        };
        let news = spawn(Arc::clone(&self.node), begin, self.stop.clone(), self.ended.clone());
        let worker = Worker {
            news,
            pod,
            is_static,
            gone: false,
        };
        self.workers.insert(uid, worker);
    }

    fn worker_ended(&mut self, uid: &str) {
        let Some(worker) = self.workers.remove(uid) else { return };
        let name = pod::full_name(&worker.pod);
        if worker.is_static {
            if let Some(next) = self.static_waiting.remove(&name) {
                self.begin(next, true, None);
            }
            self.keep_mirrors();
            return;
        }
        let deleting = worker.gone || worker.pod.metadata.deletion_timestamp.is_some();
        if !deleting && !self.stop.is_cancelled() {
            tracing::error!(
                pod = name,
                "the worker of a pod ended before the pod did; it is begun anew"
            );
            self.begin(worker.pod, false, None);
        }
    }

    fn take_manifests(&mut self, pods: Vec<Arc<Pod>>) {
        self.manifests_read = true;
        let wanted: HashSet<String> = pods.iter().map(|it| pod::uid(it).to_owned()).collect();
        let gone: Vec<_> = self
            .workers
            .iter()
            .filter(|(uid, it)| it.is_static && !wanted.contains(*uid))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in gone {
            self.gone(&uid);
        }
        self.static_waiting.retain(|_, it| wanted.contains(pod::uid(it)));
        for pod in pods {
            if self.workers.contains_key(pod::uid(&pod)) {
                continue;
            }
            let name = pod::full_name(&pod);
            let before = self
                .workers
                .values()
                .any(|it| it.is_static && pod::full_name(&it.pod) == name);
            if before {
                self.static_waiting.insert(name, pod);
            } else {
                self.begin(pod, true, None);
                self.tell_mirror(&name);
            }
        }
        self.keep_mirrors();
    }

    /// Tells a static pod's worker where its status goes.
    fn tell_mirror(&self, name: &str) {
        let mirror = self.mirrors.get(name);
        let target = mirror.map(|it| Target {
            namespace: pod::namespace(it).to_owned(),
            name: pod::name(it).to_owned(),
            uid: pod::uid(it).to_owned(),
        });
        for worker in self.workers.values().filter(|it| it.is_static) {
            let shows = mirror.and_then(|it| static_pods::mirrored(it));
            let its = pod::full_name(&worker.pod) == name;
            if its && (mirror.is_none() || shows == worker.pod.metadata.uid.as_deref()) {
                let _ = worker.news.send(Message::Mirror(target.clone()));
            }
        }
    }

    /// Makes mirrors that are missing, and deletes those that show nothing.
    fn keep_mirrors(&self) {
        if !(self.listed && self.manifests_read) {
            return;
        }
        for worker in self.workers.values().filter(|it| it.is_static && !it.gone) {
            let mirror = self.mirrors.get(&pod::full_name(&worker.pod));
            let good = mirror.is_some_and(|it| {
                static_pods::mirrored(it) == worker.pod.metadata.uid.as_deref()
                    && it.metadata.deletion_timestamp.is_none()
            });
            if !good {
                let (node, pod) = (Arc::clone(&self.node), Arc::clone(&worker.pod));
                let mirror = mirror.cloned();
                tokio::spawn(async move {
                    let name = &node.config.node_name;
                    let made = static_pods::make_mirror(&node.client, &pod, mirror.as_deref(), name).await;
                    if let Err(error) = made {
                        tracing::warn!(pod = pod::full_name(&pod), error = %error, "a static pod cannot be shown; it will be tried again");
                    }
                });
            }
        }
        for mirror in self.mirrors.values() {
            let shown = static_pods::mirrored(mirror).is_some_and(|uid| self.workers.contains_key(uid));
            let waits = self.static_waiting.contains_key(&pod::full_name(mirror));
            if !shown && !waits {
                let (node, mirror) = (Arc::clone(&self.node), Arc::clone(mirror));
                tokio::spawn(async move {
                    if let Err(error) = static_pods::delete_mirror(&node.client, &mirror).await {
                        tracing::warn!(pod = pod::full_name(&mirror), error = %error, "a mirror that shows nothing cannot be deleted; it will be tried again");
                    }
                });
            }
        }
    }

    /// Ends what runs for pods that are gone. Whether that could be begun.
    async fn end_orphans(&mut self) -> bool {
        let sandboxes = match self.node.runtime.sandboxes(None).await {
            Ok(sandboxes) => sandboxes,
            Err(error) => {
                tracing::warn!(error = %error, "the runtime could not be asked for pods that are gone");
                return false;
            }
        };
        for sandbox in sandboxes {
            let (Some(uid), Some(metadata)) = (sandbox.labels.get(POD_UID), &sandbox.metadata) else {
                continue;
            };
            if self.workers.contains_key(uid) {
                continue;
            }
            tracing::info!(
                pod = format!("{}/{}", metadata.namespace, metadata.name),
                uid,
                "the pod is gone; what runs of it is ended"
            );
            let pod = Pod {
                metadata: ObjectMeta {
                    namespace: Some(metadata.namespace.clone()),
                    name: Some(metadata.name.clone()),
                    uid: Some(uid.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(PodSpec::default()),
                status: None,
            };
            self.begin(Arc::new(pod), false, None);
            self.gone(uid);
        }
        let known: HashSet<String> = self.workers.keys().cloned().collect();
        self.node.outside.remove_leftovers(&known).await;
        true
    }
}
