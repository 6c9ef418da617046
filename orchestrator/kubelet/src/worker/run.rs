//! The task of one pod: takes news, looks at the runtime, decides, begins what was decided, and tells the status.

use super::{
    act::{self, Done, Fault},
    backoff::Backoff,
    decide::{decide, spec_grace_s},
    observe::Observer,
    observed::Observed,
    plan::{Action, Busy, Decision, Ending, EndingKind, Failed, Health, Image, Memory, Task, Unhealthy},
};
use crate::{
    events::Kind as EventKind,
    node::Node,
    pod::{self, ContainerRef},
    podspec::names,
    probes::{Kind as ProbeKind, Outcome, Verdict},
    status::{self, Facts, Sender, Target},
    table::{ContainerIds, RunningPod},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, Id, JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

/// When to look again after the runtime could not be asked.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Waits after something failed, by how often it failed in a row.
const RETRIES_S: [i64; 5] = [1, 2, 4, 8, 10];

/// News for a worker.
#[derive(Clone, Debug)]
pub enum Message {
    /// The object changed.
    Pod(Arc<Pod>),
    /// The object is gone; for a static pod: its manifest is.
    Gone,
    /// Something changed in the runtime.
    Look,
    /// A probe has a result.
    Probed(Outcome),
    /// The mirror that shows a static pod changed; `None`: there is none.
    Mirror(Option<Target>),
    /// A postStart hook failed: the container with this id must end.
    HookFailed(String),
}

/// How a worker begins.
#[derive(Clone, Debug)]
pub struct Begin {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Whether it comes from a manifest on this node.
    pub is_static: bool,
    /// Set if the pod must not run here: phase Failed with this reason and message.
    pub rejected: Option<(String, String)>,
}

pub(super) struct Worker {
    node: Arc<Node>,
    pod: Arc<Pod>,
    is_static: bool,
    target: Option<Target>,
    memory: Memory,
    observer: Observer,
    seen: Option<Observed>,
    sender: Sender,
    last_number: u64,
    final_number: Option<u64>,
    tasks: JoinSet<Done>,
    by_id: HashMap<Id, (Task, AbortHandle)>,
    stopping: HashSet<String>,
    probed: HashSet<String>,
    waiting_told: BTreeMap<String, String>,
    itself: mpsc::UnboundedSender<Message>,
}

/// Starts the task of a pod; it ends by itself when nothing is left of the pod, or with `stop`, which leaves the pod as it
/// is. What it returns is where its news go.
pub fn spawn(
    node: Arc<Node>,
    begin: Begin,
    stop: CancellationToken,
    ended: mpsc::UnboundedSender<String>,
) -> mpsc::UnboundedSender<Message> {
    let (news, inbox) = mpsc::unbounded_channel();
    let itself = news.clone();
    tokio::spawn(async move {
        let uid = pod::uid(&begin.pod).to_owned();
        // A worker that panics is begun anew by whoever hears of its end.
        let guard = EndGuard { uid, ended };
        let worker = Worker::new(node, begin, itself, stop.clone());
        worker.run(inbox, stop).await;
        drop(guard);
    });
    news
}

struct EndGuard {
    uid: String,
    ended: mpsc::UnboundedSender<String>,
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        // Nobody listens any more where everything ends.
        let _ = self.ended.send(std::mem::take(&mut self.uid));
    }
}

impl Worker {
    fn new(node: Arc<Node>, begin: Begin, itself: mpsc::UnboundedSender<Message>, stop: CancellationToken) -> Self {
        let Begin {
            pod,
            is_static,
            rejected,
        } = begin;
        let known = pod.status.clone().unwrap_or_default();
        let mut memory = Memory {
            health: adopt_health(&known),
            ..Memory::default()
        };
        let now = Timestamp::now();
        if let Some((reason, message)) = rejected {
            memory.ending = Some(Ending {
                kind: EndingKind::Failed { reason, message },
                since: now,
                grace_s: 0,
            });
        } else if status::is_terminal(&known) {
            memory.ending = Some(Ending {
                kind: EndingKind::Finished,
                since: now,
                grace_s: spec_grace_s(&pod),
            });
        }
        let target = (!is_static).then(|| Target {
            namespace: pod::namespace(&pod).to_owned(),
            name: pod::name(&pod).to_owned(),
            uid: pod::uid(&pod).to_owned(),
        });
        let mut worker = Self {
            observer: Observer::new(node.runtime.clone(), pod::uid(&pod)),
            sender: Sender::new(node.client.clone(), known, stop),
            node,
            is_static,
            target,
            memory,
            seen: None,
            last_number: 0,
            final_number: None,
            tasks: JoinSet::new(),
            by_id: HashMap::new(),
            stopping: HashSet::new(),
            probed: HashSet::new(),
            waiting_told: BTreeMap::new(),
            itself,
            pod: Arc::clone(&pod),
        };
        worker.take_pod(pod);
        worker
    }

    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Message>, stop: CancellationToken) {
        let mut look = true;
        loop {
            while let Ok(message) = inbox.try_recv() {
                look |= self.take(message);
            }
            let mut wake = None;
            if look {
                match self.observer.observe(&self.pod, self.memory.ending.is_some()).await {
                    Ok(seen) => {
                        self.seen = Some(seen);
                        look = false;
                    }
                    Err(error) => {
                        tracing::warn!(pod = pod::full_name(&self.pod), error = %error, "the runtime could not be asked; it will be asked again");
                        wake = Some(LOOK_AGAIN);
                    }
                }
            }
            if !look {
                match self.step() {
                    None => return,
                    Some(decision) => {
                        let now = Timestamp::now();
                        let until = decision.wake.map(|it| it.duration_since(now));
                        wake = until.map(|it| Duration::try_from(it).unwrap_or_default() + Duration::from_millis(1));
                    }
                }
            }
            let waits_for_status = self.memory.ending.is_some() && !self.memory.status_sent;
            let sleep = async {
                match wake {
                    Some(wake) => tokio::time::sleep(wake).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                message = inbox.recv() => match message {
                    Some(message) => look |= self.take(message),
                    None => return,
                },
                Some(done) = self.tasks.join_next_with_id() => look |= self.finish(done),
                () = self.sender.changed(), if waits_for_status => {}
                () = sleep => {}
            }
        }
    }

    /// Takes news in. Whether the runtime must be looked at.
    fn take(&mut self, message: Message) -> bool {
        match message {
            Message::Pod(pod) => self.take_pod(pod),
            Message::Gone => {
                let grace_s = self
                    .pod
                    .metadata
                    .deletion_grace_period_seconds
                    .unwrap_or_else(|| spec_grace_s(&self.pod))
                    .max(1);
                self.end(EndingKind::Deleted, grace_s);
                self.memory.object_gone = true;
            }
            Message::Look => return true,
            Message::Mirror(target) => self.target = target,
            Message::Probed(outcome) => self.take_outcome(outcome),
            Message::HookFailed(id) => {
                let name = self.container_name(&id);
                let health = self.memory.health.entry(id).or_default();
                health.unhealthy.get_or_insert_with(|| Unhealthy {
                    message: format!("FailedPostStartHook: container {name} is killed"),
                    grace_s: None,
                });
            }
        }
        false
    }

    fn container_name(&self, id: &str) -> String {
        let mut containers = self.seen.iter().flat_map(|it| &it.containers);
        let found = containers.find(|it| it.id == id);
        found.map(|it| it.name.clone()).unwrap_or_default()
    }

    fn take_pod(&mut self, pod: Arc<Pod>) {
        self.pod = pod;
        if self.memory.set_up && self.memory.ending.is_none() {
            let (node, pod) = (Arc::clone(&self.node), Arc::clone(&self.pod));
            tokio::spawn(async move { node.outside.update(&pod).await });
        }
        if self.pod.metadata.deletion_timestamp.is_some() {
            let grace_s = self
                .pod
                .metadata
                .deletion_grace_period_seconds
                .unwrap_or_else(|| spec_grace_s(&self.pod));
            self.end(EndingKind::Deleted, grace_s);
        }
    }

    fn end(&mut self, kind: EndingKind, grace_s: i64) {
        let now = Timestamp::now();
        let Some(ending) = &mut self.memory.ending else {
            self.memory.ending = Some(Ending {
                kind,
                since: now,
                grace_s,
            });
            return;
        };
        if kind == EndingKind::Deleted {
            ending.kind = kind;
        }
        let deadline = now
            .saturating_add(SignedDuration::from_secs(grace_s))
            .unwrap_or(Timestamp::MAX);
        if deadline < ending.deadline() {
            ending.grace_s = deadline.duration_since(ending.since).as_secs();
        }
    }

    fn take_outcome(&mut self, outcome: Outcome) {
        let Some(it) = ContainerRef::named(&self.pod, &outcome.container) else {
            return;
        };
        if !outcome.message.is_empty() {
            self.node.events.pod(
                &self.pod,
                Some(it.field_path()),
                EventKind::Warning,
                "Unhealthy",
                &outcome.message,
            );
        }
        let Some(verdict) = outcome.result else { return };
        let well = verdict == Verdict::Success;
        let spec = it.spec(&self.pod);
        let health = self.memory.health.entry(outcome.container_id).or_default();
        let (probe, word) = match outcome.kind {
            ProbeKind::Readiness => {
                health.ready = Some(well);
                return;
            }
            ProbeKind::Startup => {
                health.started = Some(well);
                (spec.as_ref().and_then(|it| it.startup_probe.as_ref()), "startup")
            }
            ProbeKind::Liveness => (spec.as_ref().and_then(|it| it.liveness_probe.as_ref()), "liveness"),
        };
        if !well {
            health.unhealthy.get_or_insert_with(|| Unhealthy {
                message: format!("Container {} failed {word} probe", outcome.container),
                grace_s: probe.and_then(|it| it.termination_grace_period_seconds),
            });
        }
    }

    /// Decides, tells, and begins. `None`: nothing is left to do, ever.
    fn step(&mut self) -> Option<Decision> {
        let seen = self.seen.clone()?;
        let now = Timestamp::now();
        self.keep_health(&seen);
        let progress = self.sender.progress();
        if let Some(number) = self.final_number {
            self.memory.status_sent = progress.sent >= number;
            self.memory.object_gone |= progress.gone && self.memory.status_sent && !self.is_static;
        }
        let mut decision = decide(&self.pod, &seen, &self.memory, now);
        while let Some(Action::End { kind, grace_s }) = decision.actions.first().cloned() {
            self.end(kind, grace_s);
            decision = decide(&self.pod, &seen, &self.memory, now);
        }
        let sent_before = self.memory.status_sent;
        let status = self.tell(&seen, &decision, now);
        if self.memory.status_sent && !sent_before {
            // There was nothing new to send: what waits for that may go on.
            decision = decide(&self.pod, &seen, &self.memory, now);
        }
        let done = decision.actions.contains(&Action::Done);
        self.tell_waiting(&decision);
        self.show(&seen, status);
        self.probe(&seen);
        if done {
            self.forget(&seen);
            return None;
        }
        for action in decision.actions.clone() {
            self.begin(action, &seen, now);
        }
        Some(decision)
    }

    /// Sends the status; the last one once everything has ended.
    fn tell(&mut self, seen: &Observed, decision: &Decision, now: Timestamp) -> PodStatus {
        let mut previous = self.sender.last();
        if self.final_number.is_some() && (self.target.is_some() || !self.is_static) {
            return previous;
        }
        // Conditions of others are told by the object alone.
        adopt_foreign(&mut previous, &self.pod);
        let facts = Facts {
            pod: &self.pod,
            seen,
            memory: &self.memory,
            decision,
            previous: &previous,
            node_ips: &self.node.config.node_ips,
        };
        let status = status::compute(facts, now);
        self.last_number = self.sender.send(self.target.clone(), &status);
        if self.memory.torn_down {
            self.final_number = Some(self.last_number);
            self.memory.status_sent = self.sender.progress().sent >= self.last_number;
        }
        status
    }

    /// Events of waits that begin.
    fn tell_waiting(&mut self, decision: &Decision) {
        for (name, waiting) in &decision.waiting {
            if self.waiting_told.get(name) == Some(&waiting.reason) {
                continue;
            }
            let Some(it) = ContainerRef::named(&self.pod, name) else {
                continue;
            };
            let path = Some(it.field_path());
            match waiting.reason.as_str() {
                "CrashLoopBackOff" => {
                    let message = format!(
                        "Back-off restarting failed container {name} in pod {}_{}({})",
                        pod::name(&self.pod),
                        pod::namespace(&self.pod),
                        pod::uid(&self.pod)
                    );
                    self.node
                        .events
                        .pod(&self.pod, path, EventKind::Warning, "BackOff", &message);
                }
                "ImagePullBackOff" => {
                    let image = it.spec(&self.pod).and_then(|it| it.image.clone()).unwrap_or_default();
                    let message = format!("Back-off pulling image \"{image}\"");
                    self.node
                        .events
                        .pod(&self.pod, path.clone(), EventKind::Normal, "BackOff", &message);
                    let message = "Error: ImagePullBackOff";
                    self.node
                        .events
                        .pod(&self.pod, path, EventKind::Warning, "Failed", message);
                }
                _ => {}
            }
        }
        let told = decision.waiting.iter();
        self.waiting_told = told.map(|(name, it)| (name.clone(), it.reason.clone())).collect();
    }

    /// Puts the pod in the table that servers of logs and streams read.
    fn show(&self, seen: &Observed, status: PodStatus) {
        let mut containers = BTreeMap::new();
        for it in ContainerRef::all(&self.pod) {
            let Some(newest) = seen.newest(&it.name) else { continue };
            containers.insert(
                it.name.clone(),
                ContainerIds {
                    current: Some(newest.id.clone()),
                    previous: seen.previous(&it.name).map(|it| it.id.clone()),
                    running: newest.is_running(),
                    restart_count: newest.restart_count,
                },
            );
        }
        let mut pod = Pod::clone(&self.pod);
        pod.status = Some(status);
        self.node.table.insert(RunningPod {
            sandbox_id: seen.sandbox().map(|it| it.id.clone()),
            containers,
            pod_ips: self.pod_ips(seen),
            log_directory: names::pod_log_directory(&self.node.config.log_dir, &self.pod),
            pod: Arc::new(pod),
        });
    }

    fn pod_ips(&self, seen: &Observed) -> Vec<IpAddr> {
        status::addresses(&self.pod, seen, &self.node.config.node_ips)
    }

    /// Results of containers that are gone mean nothing.
    fn keep_health(&mut self, seen: &Observed) {
        let here = |id: &String| seen.containers.iter().any(|it| it.id == *id);
        self.memory.health.retain(|id, _| here(id));
        self.stopping.retain(here);
    }

    fn probe(&mut self, seen: &Observed) {
        let now = Timestamp::now();
        let running: HashSet<String> = seen
            .containers
            .iter()
            .filter(|it| it.is_running())
            .map(|it| it.id.clone())
            .collect();
        for id in self.probed.difference(&running) {
            self.node.prober.forget(id);
        }
        self.probed.retain(|id| running.contains(id));
        let ip = self.pod_ips(seen).first().copied();
        let ending = self.memory.ending.is_some();
        for container in seen.containers.iter().filter(|it| it.is_running()) {
            let super::observed::State::Running { started } = container.state else {
                continue;
            };
            if ending {
                self.node.prober.terminating(&container.id);
                continue;
            }
            let Some(spec) = ContainerRef::named(&self.pod, &container.name)
                .and_then(|it| it.spec(&self.pod).map(std::borrow::Cow::into_owned))
            else {
                continue;
            };
            if self.memory.busy.contains_key(&Task::Start(container.name.clone())) {
                // Not before its postStart hook is through.
                continue;
            }
            if self.probed.insert(container.id.clone()) {
                let age = Duration::try_from(now.duration_since(started)).unwrap_or_default();
                self.node.prober.ensure(&self.pod, &spec, &container.id, ip, age);
            }
        }
    }

    fn forget(&mut self, seen: &Observed) {
        for container in &seen.containers {
            self.node.prober.forget(&container.id);
        }
        for id in &self.probed {
            self.node.prober.forget(id);
        }
        self.node.table.remove(pod::uid(&self.pod));
        let directory = names::pod_log_directory(&self.node.config.log_dir, &self.pod);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = std::fs::remove_dir_all(&directory)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(directory = %directory.display(), error = %error, "the logs of a pod that is gone could not be removed");
            }
        });
    }

    fn begin(&mut self, action: Action, seen: &Observed, now: Timestamp) {
        let Some(task) = action.task() else {
            if let Action::Cancel(task) = action {
                self.cancel(&task);
            }
            return;
        };
        let node = Arc::clone(&self.node);
        let pod = Arc::clone(&self.pod);
        let mut busy = Busy::default();
        let handle = match action {
            Action::SetUp => self.tasks.spawn(act::set_up(node, pod)),
            Action::MakeSandbox { attempt } => {
                if attempt > 0 {
                    let message = "Pod sandbox changed, it will be killed and re-created.";
                    node.events
                        .pod(&pod, None, EventKind::Normal, "SandboxChanged", message);
                }
                self.tasks.spawn(act::make_sandbox(node, pod, attempt))
            }
            Action::StopSandbox { id } => self.tasks.spawn(act::stop_sandbox(node, id)),
            Action::RemoveSandbox { id } => self.tasks.spawn(act::remove_sandbox(node, id)),
            Action::RemoveContainer { id, name } => {
                let number = seen.containers.iter().find(|it| it.id == id).map(|it| it.restart_count);
                // A pod that goes takes its whole log directory along.
                let log = number.filter(|_| self.memory.ending.is_none());
                self.tasks.spawn(act::remove_container(node, pod, id, name, log))
            }
            Action::EnsureImage { name } => {
                let before = match self.memory.images.get(&name) {
                    Some(Image::Failed { backoff, .. }) => *backoff,
                    _ => None,
                };
                self.tasks.spawn(act::ensure_image(node, pod, name, before))
            }
            Action::Start {
                name,
                sandbox_id,
                restart_count,
                image_ref,
            } => {
                if let Some(exit) = seen.newest(&name).and_then(super::observed::Container::exit) {
                    let before = self.memory.backoff.get(&name);
                    let next = Backoff::next(before, exit.finished, now);
                    self.memory.backoff.insert(name.clone(), next);
                }
                let attempt = seen.sandbox().map_or(0, |it| it.attempt);
                let start = act::Start {
                    name,
                    sandbox_id,
                    sandbox_attempt: attempt,
                    restart_count,
                    image_ref,
                    pod_ips: self.pod_ips(seen),
                    target_ids: seen
                        .containers
                        .iter()
                        .rev()
                        .map(|it| (it.name.clone(), it.id.clone()))
                        .collect(),
                };
                self.tasks.spawn(act::start(node, pod, start, self.itself.clone()))
            }
            Action::Stop {
                id,
                name,
                deadline,
                message,
            } => {
                busy.deadline = Some(deadline);
                let first = self.stopping.insert(id.clone());
                let stop = act::Stop {
                    id,
                    name,
                    deadline,
                    message,
                    first,
                    pod_ip: self.pod_ips(seen).first().copied(),
                };
                self.tasks.spawn(act::stop(node, pod, stop))
            }
            Action::TearDown => self.tasks.spawn(act::tear_down(node, pod)),
            Action::Delete => self.tasks.spawn(act::delete(node, pod)),
            Action::Cancel(_) | Action::End { .. } | Action::Done => return,
        };
        self.memory.busy.insert(task.clone(), busy);
        self.by_id.insert(handle.id(), (task, handle));
    }

    fn cancel(&mut self, task: &Task) {
        for (id, (_, handle)) in self.by_id.iter().filter(|(_, (it, _))| it == task) {
            handle.abort();
            tracing::trace!(?id, ?task, "given up");
        }
        self.by_id.retain(|_, (it, _)| it != task);
        self.memory.busy.remove(task);
    }

    /// Takes in what a task came to. Whether the runtime must be looked at.
    fn finish(&mut self, done: Result<(Id, Done), JoinError>) -> bool {
        let (id, result) = match done {
            Ok((id, done)) => (id, Some(done)),
            Err(error) => (error.id(), None),
        };
        // One that was given up is not known any more.
        let Some((task, _)) = self.by_id.remove(&id) else {
            return true;
        };
        self.memory.busy.remove(&task);
        let result = result.unwrap_or_else(|| {
            Done::Plain(Err(Fault {
                reason: String::new(),
                message: "a part of the kubelet panicked; see its log".to_owned(),
            }))
        });
        let now = Timestamp::now();
        match (task, result) {
            (Task::Image(name), Done::Image(image)) => {
                self.memory.images.insert(name, image);
                false
            }
            (task, Done::Plain(Ok(()))) => {
                self.memory.failed.remove(&task);
                match &task {
                    Task::SetUp => {
                        self.memory.set_up = true;
                        return false;
                    }
                    Task::TearDown => self.memory.torn_down = true,
                    Task::Start(name) => {
                        self.memory.images.remove(name);
                    }
                    Task::Delete => {
                        // Finalizers of others may keep the object: its deletion is what ends this worker.
                        self.memory.failed.insert(task, failed(now, 60, 0, Fault::default()));
                        return false;
                    }
                    _ => {}
                }
                true
            }
            (Task::Delete, Done::Gone) => {
                self.memory.object_gone = true;
                false
            }
            (task, Done::Plain(Err(fault))) => {
                let times = self.memory.failed.get(&task).map_or(0, |it| it.times + 1);
                let index = usize::try_from(times).unwrap_or(usize::MAX).min(RETRIES_S.len() - 1);
                tracing::warn!(
                    pod = pod::full_name(&self.pod),
                    ?task,
                    error = fault.message,
                    "failed; it will be tried again"
                );
                if let Task::Start(name) = &task {
                    self.memory.images.remove(name);
                    if fault.reason.is_empty() {
                        // It was made and could not run: that is told by the container itself.
                        return true;
                    }
                }
                self.memory
                    .failed
                    .insert(task, failed(now, RETRIES_S[index], times, fault));
                true
            }
            (task, done) => {
                tracing::error!(?task, ?done, "an answer that belongs to another task");
                true
            }
        }
    }
}

fn failed(now: Timestamp, wait_s: i64, times: u32, fault: Fault) -> Failed {
    Failed {
        reason: fault.reason,
        message: fault.message,
        retry: now
            .saturating_add(SignedDuration::from_secs(wait_s))
            .unwrap_or(Timestamp::MAX),
        times,
    }
}

/// What was told of containers before this process began holds until a probe says otherwise.
fn adopt_health(known: &PodStatus) -> BTreeMap<String, Health> {
    let init = known.init_container_statuses.iter().flatten();
    let all = init.chain(known.container_statuses.iter().flatten());
    let running = all.filter(|it| it.state.as_ref().is_some_and(|it| it.running.is_some()));
    let health = running.filter_map(|it| {
        let id = it.container_id.as_deref()?.split_once("://")?.1;
        let health = Health {
            ready: Some(it.ready),
            started: it.started,
            unhealthy: None,
        };
        Some((id.to_owned(), health))
    });
    health.collect()
}

/// Takes the conditions of others, and what is not the kubelet's, from the object.
fn adopt_foreign(previous: &mut PodStatus, pod: &Pod) {
    let Some(status) = &pod.status else { return };
    previous.nominated_node_name.clone_from(&status.nominated_node_name);
    previous.resize.clone_from(&status.resize);
    let own = |type_: &str| status::OWNED.contains(&type_);
    let mut conditions: Vec<_> = previous.conditions.take().unwrap_or_default();
    conditions.retain(|it| own(&it.type_));
    let theirs = status.conditions.iter().flatten();
    conditions.extend(theirs.filter(|it| !own(&it.type_)).cloned());
    for condition in status.conditions.iter().flatten() {
        if !conditions.iter().any(|it| it.type_ == condition.type_) {
            conditions.push(condition.clone());
        }
    }
    previous.conditions = Some(conditions);
}
