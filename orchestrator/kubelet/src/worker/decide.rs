//! What to do next with a pod: a pure function of the object, of what the runtime has, and of what is remembered.
//! Never more than one ready sandbox; init containers in order; restarts as the policies say; an end that always comes.

use super::{
    backoff::Backoff,
    ending,
    observed::{Container as Seen, Exit, Observed, Sandbox, State},
    plan::{Action, Decision, EndingKind, Image, Memory, Task, Waiting},
    restart::{Policy, init_restarts, restarts},
};
use crate::{
    pod::{self, ContainerKind, ContainerRef},
    podspec::names,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};

/// Seconds that containers have to end where the pod does not say.
pub const DEFAULT_GRACE_S: i64 = 30;

/// How long the error of a pull is shown as such before the wait for the next one is.
const SHOW_ERROR: SignedDuration = SignedDuration::from_secs(2);

/// Decides. Equal arguments give equal decisions; doing nothing changes nothing.
pub fn decide(pod: &Pod, seen: &Observed, memory: &Memory, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    if let Some(ending) = &memory.ending {
        ending::decide(pod, seen, memory, ending, now, &mut decision);
        return decision;
    }
    if let Some(end) = over_deadline(pod, now, &mut decision) {
        decision.actions.push(end);
        return decision;
    }
    Running {
        pod,
        seen,
        memory,
        now,
        decision,
    }
    .decide()
}

/// Seconds of grace as the spec has them.
pub fn spec_grace_s(pod: &Pod) -> i64 {
    let spec = pod.spec.as_ref();
    spec.and_then(|it| it.termination_grace_period_seconds)
        .unwrap_or(DEFAULT_GRACE_S)
}

/// `spec.activeDeadlineSeconds` counts from `status.startTime`.
fn over_deadline(pod: &Pod, now: Timestamp, decision: &mut Decision) -> Option<Action> {
    let seconds = pod.spec.as_ref()?.active_deadline_seconds?;
    let started = pod.status.as_ref()?.start_time.as_ref()?.0;
    let deadline = started.saturating_add(SignedDuration::from_secs(seconds)).ok()?;
    if deadline > now {
        decision.wake_at(deadline);
        return None;
    }
    let kind = EndingKind::Failed {
        reason: "DeadlineExceeded".to_owned(),
        message: "Pod was active on the node longer than the specified deadline".to_owned(),
    };
    Some(Action::End {
        kind,
        grace_s: spec_grace_s(pod),
    })
}

struct Running<'a> {
    pod: &'a Pod,
    seen: &'a Observed,
    memory: &'a Memory,
    now: Timestamp,
    decision: Decision,
}

/// How far the init containers are.
enum Init {
    /// All done, or passed.
    Done,
    /// One of them has to end, or to start, first.
    Waits,
    /// One failed and is not started again.
    Failed,
}

impl<'a> Running<'a> {
    fn begin(&mut self, action: Action) {
        self.decision.begin(self.memory, self.now, action);
    }

    fn of_kind(&self, kinds: &[ContainerKind]) -> Vec<(ContainerRef, Container)> {
        let all = ContainerRef::all(self.pod).into_iter();
        all.filter(|it| kinds.contains(&it.kind))
            .filter_map(|it| it.spec(self.pod).map(|spec| (it.clone(), spec.into_owned())))
            .collect()
    }

    fn decide(mut self) -> Decision {
        for older in self.seen.sandboxes.iter().skip(1).filter(|it| it.ready) {
            self.begin(Action::StopSandbox { id: older.id.clone() });
        }
        if self.finished() {
            self.end(EndingKind::Finished);
            return self.decision;
        }
        match self.seen.sandbox() {
            Some(sandbox) if usable(self.pod, sandbox) => self.inside(&sandbox.clone()),
            newest => self.without_sandbox(newest.map(|it| it.id.clone())),
        }
        self.prune();
        self.decision
    }

    fn end(&mut self, kind: EndingKind) {
        let grace_s = spec_grace_s(self.pod);
        self.decision.actions.retain(|it| it.task().is_none());
        self.decision.actions.push(Action::End { kind, grace_s });
    }

    /// All app containers have ended for good.
    fn finished(&self) -> bool {
        let apps = self.of_kind(&[ContainerKind::App]);
        // A container that is being started may not be seen yet.
        let starting = apps
            .iter()
            .any(|(it, _)| self.memory.busy.contains_key(&Task::Start(it.name.clone())));
        let done = |spec: &Container| {
            let exit = self.seen.newest(&spec.name).and_then(Seen::exit);
            exit.is_some_and(|it| !restarts(self.pod, spec, it.code))
        };
        !starting && !apps.is_empty() && apps.iter().all(|(_, spec)| done(spec))
    }

    /// There is no sandbox, or none that can be used.
    fn without_sandbox(&mut self, unusable: Option<String>) {
        if let Some(id) = unusable {
            self.begin(Action::StopSandbox { id });
            return;
        }
        // What still runs in a sandbox that is gone is ended with it, before anything runs twice.
        let running = self.seen.containers.iter().find(|it| it.is_running());
        if let Some(container) = running {
            self.begin(Action::StopSandbox {
                id: container.sandbox_id.clone(),
            });
            return;
        }
        let had_one = !self.seen.sandboxes.is_empty();
        if had_one && Policy::of_pod(self.pod) == Policy::Never && self.lost_for_good() {
            self.end(EndingKind::Finished);
            return;
        }
        let attempt = self.seen.sandboxes.first().map_or(0, |it| it.attempt + 1);
        self.begin_set_up();
        self.begin(Action::MakeSandbox { attempt });
        for name in self.first_to_start() {
            self.ensure_image(&name);
        }
        self.wait_for_sandbox();
    }

    /// With `restartPolicy: Never`, a pod whose app containers ran and then lost their sandbox is over.
    fn lost_for_good(&self) -> bool {
        let apps = self.of_kind(&[ContainerKind::App]);
        apps.iter().any(|(_, spec)| {
            let exit = self.seen.newest(&spec.name).and_then(Seen::exit);
            exit.is_some_and(|it| !restarts(self.pod, spec, it.code))
        })
    }

    /// Which images will be needed first in a new sandbox.
    fn first_to_start(&self) -> Vec<String> {
        let init = self.of_kind(&[ContainerKind::Init, ContainerKind::Sidecar]);
        if let Some((first, _)) = init.first() {
            return vec![first.name.clone()];
        }
        let apps = self.of_kind(&[ContainerKind::App]);
        let wanted = apps.iter().filter(|(_, spec)| {
            let exit = self.seen.newest(&spec.name).and_then(Seen::exit);
            exit.is_none_or(|it| restarts(self.pod, spec, it.code))
        });
        wanted.map(|(it, _)| it.name.clone()).collect()
    }

    fn wait_for_sandbox(&mut self) {
        let has_init = !self.of_kind(&[ContainerKind::Init, ContainerKind::Sidecar]).is_empty();
        let apps = self.of_kind(&[ContainerKind::App, ContainerKind::Init, ContainerKind::Sidecar]);
        for (it, _) in apps {
            let initial = has_init && it.kind == ContainerKind::App;
            let reason = if initial {
                "PodInitializing"
            } else {
                "ContainerCreating"
            };
            self.wait(&it.name, reason, "");
        }
    }

    /// Notes why a container waits; what was noted first holds.
    fn wait(&mut self, name: &str, reason: &str, message: &str) {
        self.decision.waiting.entry(name.to_owned()).or_insert_with(|| Waiting {
            reason: reason.to_owned(),
            message: message.to_owned(),
        });
    }

    /// There is a sandbox: bring its containers where they should be.
    fn inside(&mut self, sandbox: &Sandbox) {
        self.begin_set_up();
        let init = self.init(sandbox);
        match init {
            Init::Failed => {
                for (it, _) in self.of_kind(&[ContainerKind::App]) {
                    self.wait(&it.name, "PodInitializing", "");
                }
                self.end(EndingKind::Finished);
                return;
            }
            Init::Waits => {
                for (it, _) in self.of_kind(&[ContainerKind::App]) {
                    self.wait(&it.name, "PodInitializing", "");
                }
            }
            Init::Done => {
                self.decision.initialized = true;
                for (it, spec) in self.of_kind(&[ContainerKind::App]) {
                    self.keep(sandbox, &it, &spec);
                }
            }
        }
        for (it, spec) in self.of_kind(&[ContainerKind::Ephemeral]) {
            match self.seen.newest(&it.name) {
                None => self.start(sandbox, &it, 0),
                Some(_) => self.check_health(sandbox, &it, &spec),
            }
        }
    }

    fn begin_set_up(&mut self) {
        if !self.memory.set_up {
            self.begin(Action::SetUp);
        }
    }

    fn init(&mut self, sandbox: &Sandbox) -> Init {
        let all = self.of_kind(&[ContainerKind::Init, ContainerKind::Sidecar]);
        let in_sandbox = |name: &str| self.seen.newest_in(&sandbox.id, name).is_some();
        let apps = self.of_kind(&[ContainerKind::App]);
        let mut passed = apps.iter().any(|(it, _)| in_sandbox(&it.name));
        // From the last one: what stands before something that was made has been passed.
        let mut passed_each: Vec<bool> = Vec::new();
        for (it, _) in all.iter().rev() {
            passed_each.push(passed);
            passed |= in_sandbox(&it.name);
        }
        passed_each.reverse();
        for ((it, spec), passed) in all.iter().zip(passed_each) {
            let seen = self.seen.newest_in(&sandbox.id, &it.name).cloned();
            if it.kind == ContainerKind::Sidecar {
                self.keep(sandbox, it, spec);
                let started = seen.as_ref().is_some_and(|it| is_started(self.memory, spec, it));
                if !(passed || started) {
                    self.wait_for_init(&all, &it.name);
                    return Init::Waits;
                }
                continue;
            }
            if passed {
                continue;
            }
            match seen.as_ref().map(|it| &it.state) {
                Some(State::Exited(exit)) if exit.code == 0 => {}
                Some(State::Exited(exit)) if !init_restarts(self.pod, spec, exit.code) => return Init::Failed,
                Some(State::Exited(exit)) => {
                    self.start_again(sandbox, it, &exit.clone());
                    self.wait_for_init(&all, &it.name);
                    return Init::Waits;
                }
                Some(State::Running { .. }) => {
                    self.check_health(sandbox, it, spec);
                    self.wait_for_init(&all, &it.name);
                    return Init::Waits;
                }
                _ => {
                    self.keep(sandbox, it, spec);
                    self.wait_for_init(&all, &it.name);
                    return Init::Waits;
                }
            }
        }
        Init::Done
    }

    /// Those after `name` wait for it.
    fn wait_for_init(&mut self, all: &[(ContainerRef, Container)], name: &str) {
        let after = all.iter().skip_while(|(it, _)| it.name != name).skip(1);
        for (it, _) in after {
            self.wait(&it.name, "PodInitializing", "");
        }
    }

    /// A container that should run, or have ended in a way that its policy is content with.
    fn keep(&mut self, sandbox: &Sandbox, it: &ContainerRef, spec: &Container) {
        let seen = self.seen.newest_in(&sandbox.id, &it.name).cloned();
        match seen {
            None => match self.seen.newest(&it.name).cloned() {
                // Of a sandbox before this one.
                Some(old) => match old.exit() {
                    Some(exit) if it.kind != ContainerKind::Init && !self.wanted_again(it, spec, exit) => {}
                    Some(_) | None => self.start(sandbox, it, old.restart_count + 1),
                },
                None => self.start(sandbox, it, 0),
            },
            Some(seen) => match &seen.state {
                // Made and never started: this process ended in between, or starting failed.
                State::Created => {
                    if self.memory.busy.contains_key(&Task::Start(it.name.clone())) {
                        self.wait(&it.name, "ContainerCreating", "");
                    } else {
                        self.wait_for_retry(it);
                        self.begin(Action::RemoveContainer {
                            id: seen.id.clone(),
                            name: it.name.clone(),
                        });
                    }
                }
                State::Running { .. } => self.check_health(sandbox, it, spec),
                State::Exited(exit) => {
                    if self.wanted_again(it, spec, exit) {
                        self.start_again(sandbox, it, exit);
                    }
                }
                State::Unknown => self.begin(Action::Stop {
                    id: seen.id.clone(),
                    name: it.name.clone(),
                    deadline: self.grace_from_now(spec_grace_s(self.pod)),
                    message: format!(
                        "Container {} is in unknown state, try killing it before restart",
                        it.name
                    ),
                }),
            },
        }
    }

    fn wanted_again(&self, it: &ContainerRef, spec: &Container, exit: &Exit) -> bool {
        it.kind == ContainerKind::Sidecar || restarts(self.pod, spec, exit.code)
    }

    fn grace_from_now(&self, grace_s: i64) -> Timestamp {
        self.now
            .saturating_add(SignedDuration::from_secs(grace_s.max(0)))
            .unwrap_or(Timestamp::MAX)
    }

    /// Ends a container that runs but must not: another image is wanted, or a probe failed.
    fn check_health(&mut self, sandbox: &Sandbox, it: &ContainerRef, spec: &Container) {
        let Some(seen) = self.seen.newest_in(&sandbox.id, &it.name).filter(|it| it.is_running()) else {
            return;
        };
        let restart = Policy::of_pod(self.pod) != Policy::Never || it.kind == ContainerKind::Sidecar;
        let suffix = if restart { ", will be restarted" } else { "" };
        let health = self.memory.health.get(&seen.id);
        let (message, grace_s) = if !seen.hash.is_empty() && seen.hash != names::hash(spec) {
            (
                format!("Container {} definition changed, will be restarted", it.name),
                None,
            )
        } else if let Some(unhealthy) = health.and_then(|it| it.unhealthy.as_ref()) {
            (format!("{}{suffix}", unhealthy.message), unhealthy.grace_s)
        } else {
            return;
        };
        let id = seen.id.clone();
        let deadline = self.grace_from_now(grace_s.unwrap_or_else(|| spec_grace_s(self.pod)));
        self.begin(Action::Stop {
            id,
            name: it.name.clone(),
            deadline,
            message,
        });
    }

    fn start_again(&mut self, sandbox: &Sandbox, it: &ContainerRef, exit: &Exit) {
        if self.memory.busy.contains_key(&Task::Start(it.name.clone())) {
            self.wait(&it.name, "ContainerCreating", "");
            return;
        }
        let count = self.seen.newest(&it.name).map_or(0, |seen| seen.restart_count + 1);
        let backoff = self.memory.backoff.get(&it.name);
        if let Some(until) = Backoff::until(backoff, exit.finished).filter(|until| *until > self.now) {
            let wait = backoff.map_or(0, |it| it.wait.as_secs());
            let text = format!(
                "back-off {} restarting failed container={} pod={}_{}({})",
                seconds(wait),
                it.name,
                pod::name(self.pod),
                pod::namespace(self.pod),
                pod::uid(self.pod)
            );
            self.wait(&it.name, "CrashLoopBackOff", &text);
            self.decision.wake_at(until);
            return;
        }
        self.start(sandbox, it, count);
    }

    /// Starts a container as soon as its image and the volumes are there.
    fn start(&mut self, sandbox: &Sandbox, it: &ContainerRef, restart_count: u32) {
        self.wait_for_retry(it);
        let start = Task::Start(it.name.clone());
        if self.memory.busy.contains_key(&start) {
            self.wait(&it.name, "ContainerCreating", "");
            return;
        }
        if let Some(failed) = self.memory.failed.get(&start).filter(|it| it.retry > self.now) {
            self.decision.wake_at(failed.retry);
            return;
        }
        let image = self.ensure_image(&it.name);
        self.wait(&it.name, "ContainerCreating", "");
        if let (Some(image_ref), true) = (image, self.memory.set_up) {
            self.begin(Action::Start {
                name: it.name.clone(),
                sandbox_id: sandbox.id.clone(),
                restart_count,
                image_ref,
            });
        }
    }

    /// Shows the error of the last attempt while the next one is waited for.
    fn wait_for_retry(&mut self, it: &ContainerRef) {
        for task in [Task::Start(it.name.clone()), Task::SetUp] {
            let failed = self.memory.failed.get(&task);
            if let Some(failed) = failed.filter(|it| !it.reason.is_empty()).cloned() {
                self.wait(&it.name, &failed.reason, &failed.message);
            }
        }
    }

    /// The content of the image of this container, once it is here.
    fn ensure_image(&mut self, name: &str) -> Option<String> {
        match self.memory.images.get(name) {
            Some(Image::Ready(reference)) => return Some(reference.clone()),
            Some(Image::Failed {
                reason,
                message,
                since,
                retry,
                ..
            }) => {
                let (mut reason, mut message, retry) = (reason.clone(), message.clone(), *retry);
                let shown = since.saturating_add(SHOW_ERROR).unwrap_or(Timestamp::MAX);
                if reason == "ErrImagePull" && shown <= self.now {
                    let image = ContainerRef::named(self.pod, name).and_then(|it| it.spec(self.pod)?.image.clone());
                    message = format!(
                        "Back-off pulling image \"{}\": {reason}: {message}",
                        image.unwrap_or_default()
                    );
                    "ImagePullBackOff".clone_into(&mut reason);
                } else if reason == "ErrImagePull" {
                    self.decision.wake_at(shown);
                }
                self.wait(name, &reason, &message);
                if retry > self.now {
                    self.decision.wake_at(retry);
                    return None;
                }
            }
            None => {}
        }
        self.begin(Action::EnsureImage { name: name.to_owned() });
        None
    }

    /// Of each name the newest container and the one before it stay, for their logs.
    fn prune(&mut self) {
        let mut counts = std::collections::BTreeMap::<&str, u32>::new();
        let mut old = Vec::new();
        for container in &self.seen.containers {
            let count = counts.entry(&container.name).or_default();
            *count += 1;
            if *count > 2 && !container.is_running() {
                old.push((container.id.clone(), container.name.clone()));
            }
        }
        for (id, name) in old {
            self.begin(Action::RemoveContainer { id, name });
        }
        let empty = self.seen.sandboxes.iter().skip(1).filter(|sandbox| {
            let mut inside = self.seen.containers.iter();
            !sandbox.ready && !inside.any(|it| it.sandbox_id == sandbox.id)
        });
        let empty: Vec<_> = empty.map(|it| it.id.clone()).collect();
        for id in empty {
            self.begin(Action::RemoveSandbox { id });
        }
    }
}

/// A sandbox without an address is of no use to a pod that has a network of its own.
fn usable(pod: &Pod, sandbox: &Sandbox) -> bool {
    pod::host_network(pod) || !sandbox.ips.is_empty()
}

/// Whether a container counts as started: runs, and its startup probe succeeded if it has one.
pub fn is_started(memory: &Memory, spec: &Container, seen: &Seen) -> bool {
    seen.is_running()
        && (spec.startup_probe.is_none() || memory.health.get(&seen.id).and_then(|it| it.started) == Some(true))
        && !(memory.busy.contains_key(&Task::Start(seen.name.clone())) && has_post_start(spec))
}

fn has_post_start(spec: &Container) -> bool {
    spec.lifecycle.as_ref().is_some_and(|it| it.post_start.is_some())
}

/// As `10s`, `1m20s`, `5m0s`.
pub fn seconds(all: i64) -> String {
    match (all / 60, all % 60) {
        (0, s) => format!("{s}s"),
        (m, s) => format!("{m}m{s}s"),
    }
}
