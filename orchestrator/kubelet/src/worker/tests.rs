//! Decisions in tables, and against worlds in which anything may happen.

use super::{
    decide::decide,
    ending,
    observed::{Container, Exit, Observed, Sandbox, State},
    plan::{Action, Busy, Ending, EndingKind, Failed, Health, Image, Memory, Task},
    restart::{init_restarts, restarts},
};
use crate::pod::{ContainerKind, ContainerRef, tests::pod_of};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde_json::{Value, json};

/// A pod, what the runtime has of it, and what its worker remembers, without a worker and a runtime.
struct World {
    pod: Pod,
    seen: Observed,
    memory: Memory,
    now: Timestamp,
    next_id: u32,
    /// Started containers by name, with the codes that they ended with.
    history: Vec<(String, Option<i32>)>,
    begun: Vec<Action>,
    done: bool,
    sandboxes_lost: u32,
}

impl World {
    fn new(spec: Value) -> Self {
        Self {
            pod: pod_of(spec),
            seen: Observed::default(),
            memory: Memory::default(),
            now: Timestamp::from_second(1_000_000).unwrap(),
            next_id: 0,
            history: Vec::new(),
            begun: Vec::new(),
            done: false,
            sandboxes_lost: 0,
        }
    }

    fn id(&mut self) -> String {
        self.next_id += 1;
        format!("id{}", self.next_id)
    }

    /// Decides once and begins what was decided.
    fn step(&mut self) -> Vec<Action> {
        self.seen.sort();
        let mut decision = decide(&self.pod, &self.seen, &self.memory, self.now);
        while let Some(Action::End { kind, grace_s }) = decision.actions.first().cloned() {
            self.memory.ending = Some(Ending {
                kind,
                since: self.now,
                grace_s,
            });
            decision = decide(&self.pod, &self.seen, &self.memory, self.now);
        }
        for action in &decision.actions {
            match action {
                Action::Cancel(task) => {
                    self.memory.busy.remove(task);
                    self.begun.retain(|it| it.task().as_ref() != Some(task));
                }
                Action::Done => self.done = true,
                other => {
                    let task = other.task().unwrap();
                    let deadline = match other {
                        Action::Stop { deadline, .. } => Some(*deadline),
                        _ => None,
                    };
                    let before = self.memory.busy.insert(task, Busy { deadline });
                    assert_eq!(before, None, "begun twice: {other:?}");
                    self.check_start(other);
                    self.begun.push(other.clone());
                }
            }
        }
        decision.actions
    }

    fn check_start(&self, action: &Action) {
        assert!(
            self.memory.ending.is_none()
                || !matches!(
                    action,
                    Action::Start { .. } | Action::MakeSandbox { .. } | Action::EnsureImage { .. }
                ),
            "{action:?} while the pod ends"
        );
        let Action::Start { name, sandbox_id, .. } = action else {
            return;
        };
        let it = ContainerRef::named(&self.pod, name).unwrap();
        let spec = it.spec(&self.pod).unwrap();
        let last = self.history.iter().rev().find(|(started, _)| started == name);
        if let Some((_, code)) = last {
            match (it.kind, code) {
                (_, None) => panic!("{name} is started while it runs"),
                (ContainerKind::Sidecar, _) => {}
                // In a new sandbox all init containers run again.
                (ContainerKind::Init, Some(code)) => {
                    assert!(
                        self.sandboxes_lost > 0 || init_restarts(&self.pod, &spec, *code),
                        "{name} is started again"
                    );
                }
                (_, Some(code)) => assert!(
                    restarts(&self.pod, &spec, *code),
                    "{name} is started again after {code}"
                ),
            }
        }
        // All init containers before it have done their work in this sandbox.
        let position = |name: &str| ContainerRef::all(&self.pod).iter().position(|it| it.name == name);
        for before in ContainerRef::all(&self.pod) {
            if position(&before.name) >= position(name) {
                continue;
            }
            let seen = self.seen.newest_in(sandbox_id, &before.name);
            match before.kind {
                ContainerKind::Init => {
                    let ended = seen.and_then(Container::exit).map(|it| it.code);
                    assert_eq!(ended, Some(0), "{name} is started before {} is done", before.name);
                }
                ContainerKind::Sidecar => assert!(seen.is_some(), "{name} is started before {}", before.name),
                _ => {}
            }
        }
    }

    fn exit(&mut self, index: usize, code: i32) {
        let container = &mut self.seen.containers[index];
        if !container.is_running() {
            return;
        }
        container.state = State::Exited(Exit {
            started: Some(self.now),
            finished: self.now,
            code,
            reason: String::new(),
            message: String::new(),
        });
        let name = container.name.clone();
        let entry = self.history.iter_mut().rev().find(|(started, _)| *started == name);
        entry.unwrap().1 = Some(code);
    }

    fn lose_sandbox(&mut self, index: usize) {
        let sandbox = &mut self.seen.sandboxes[index];
        self.sandboxes_lost += u32::from(sandbox.ready);
        sandbox.ready = false;
        let id = sandbox.id.clone();
        for index in 0..self.seen.containers.len() {
            if self.seen.containers[index].sandbox_id == id {
                self.exit(index, 137);
            }
        }
    }

    /// Ends one of the things under way.
    fn finish(&mut self, index: usize, well: bool) {
        if self.begun.is_empty() {
            return;
        }
        let action = self.begun.remove(index % self.begun.len());
        let task = action.task().unwrap();
        self.memory.busy.remove(&task);
        if !well {
            let retry = self.now + SignedDuration::from_secs(1);
            if let Task::Image(name) = &task {
                let image = Image::Failed {
                    reason: "ErrImagePull".to_owned(),
                    message: String::new(),
                    since: self.now,
                    retry,
                    backoff: None,
                };
                self.memory.images.insert(name.clone(), image);
                return;
            }
            let failed = Failed {
                reason: String::new(),
                message: String::new(),
                retry,
                times: 0,
            };
            self.memory.failed.insert(task, failed);
            return;
        }
        self.memory.failed.remove(&task);
        match action {
            Action::SetUp => self.memory.set_up = true,
            Action::MakeSandbox { attempt } => {
                let id = self.id();
                self.seen.sandboxes.push(Sandbox {
                    id,
                    attempt,
                    ready: true,
                    created: self.now,
                    ips: vec!["10.1.0.1".parse().unwrap()],
                });
            }
            Action::StopSandbox { id } => {
                let index = self.seen.sandboxes.iter().position(|it| it.id == id);
                if let Some(index) = index {
                    self.lose_sandbox(index);
                }
            }
            Action::RemoveSandbox { id } => {
                self.seen.sandboxes.retain(|it| it.id != id);
                self.seen.containers.retain(|it| it.sandbox_id != id);
            }
            Action::EnsureImage { name } => {
                self.memory.images.insert(name, Image::Ready("sha".to_owned()));
            }
            Action::Start {
                name,
                sandbox_id,
                restart_count,
                ..
            } => {
                self.memory.images.remove(&name);
                let alive = self.seen.sandboxes.iter().any(|it| it.id == sandbox_id && it.ready);
                if !alive {
                    return;
                }
                let id = self.id();
                let health = Health {
                    started: Some(true),
                    ..Health::default()
                };
                self.memory.health.insert(id.clone(), health);
                self.history.push((name.clone(), None));
                self.seen.containers.push(Container {
                    id,
                    name,
                    sandbox_id,
                    restart_count,
                    hash: String::new(),
                    created: self.now,
                    state: State::Running { started: self.now },
                    image: String::new(),
                    image_ref: String::new(),
                });
            }
            Action::Stop { id, .. } => {
                if let Some(index) = self.seen.containers.iter().position(|it| it.id == id) {
                    self.exit(index, 143);
                }
            }
            Action::RemoveContainer { id, .. } => self.seen.containers.retain(|it| it.id != id),
            Action::TearDown => self.memory.torn_down = true,
            Action::Delete => self.memory.object_gone = true,
            Action::Cancel(_) | Action::End { .. } | Action::Done => {}
        }
    }

    fn check(&self) {
        let ready = self.seen.sandboxes.iter().filter(|it| it.ready).count();
        assert!(ready <= 1, "two sandboxes are ready");
        for it in ContainerRef::all(&self.pod) {
            let all = self
                .seen
                .containers
                .iter()
                .filter(|seen| seen.name == it.name && seen.is_running());
            assert!(all.count() <= 1, "{} runs twice", it.name);
        }
    }

    /// From here on everything works: it must come to its end.
    fn run_to_end(&mut self) {
        for _ in 0..400 {
            self.step();
            self.check();
            if self.done {
                assert!(self.seen.containers.is_empty() && self.seen.sandboxes.is_empty());
                return;
            }
            self.memory.status_sent = self.memory.torn_down;
            if self.begun.is_empty() {
                self.now += SignedDuration::from_secs(1);
            }
            self.finish(0, true);
        }
        panic!("it never ends: {:?} {:?}", self.memory, self.seen);
    }

    fn delete(&mut self) {
        let since = self.now;
        let ending = self.memory.ending.get_or_insert(Ending {
            kind: EndingKind::Deleted,
            since,
            grace_s: 30,
        });
        ending.kind = EndingKind::Deleted;
    }
}

fn spec() -> impl Strategy<Value = Value> {
    let policy = prop::sample::select(vec!["Always", "OnFailure", "Never"]);
    (policy, prop::collection::vec(any::<bool>(), 0..3), 1..3usize).prop_map(|(policy, init, apps)| {
        let init: Vec<_> = init
            .into_iter()
            .enumerate()
            .map(|(index, sidecar)| {
                let mut it = json!({"name": format!("init{index}")});
                if sidecar {
                    it["restartPolicy"] = json!("Always");
                }
                it
            })
            .collect();
        let apps: Vec<_> = (0..apps).map(|it| json!({"name": format!("app{it}")})).collect();
        json!({"restartPolicy": policy, "initContainers": init, "containers": apps})
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn whatever_happens_rules_hold_and_the_end_comes(
        spec in spec(),
        fates in prop::collection::vec((0u8..12, any::<u8>(), any::<bool>()), 0..120),
    ) {
        let mut world = World::new(spec);
        for (fate, which, well) in fates {
            world.step();
            world.check();
            let which = usize::from(which);
            let (containers, sandboxes) = (world.seen.containers.len(), world.seen.sandboxes.len());
            match fate {
                0 if containers > 0 => world.exit(which % containers, i32::from(well)),
                1 if sandboxes > 0 && which < 60 => world.lose_sandbox(which % sandboxes),
                2 => world.now += SignedDuration::from_secs(if well { 1 } else { 400 }),
                _ => world.finish(which, well || which % 3 > 0),
            }
        }
        world.delete();
        world.run_to_end();
    }

    #[test]
    fn a_pod_left_alone_reaches_what_it_wants(spec in spec()) {
        let mut world = World::new(spec);
        for _ in 0..200 {
            world.step();
            world.check();
            // Init containers do their work, the others run on.
            for index in 0..world.seen.containers.len() {
                let it = ContainerRef::named(&world.pod, &world.seen.containers[index].name).unwrap();
                if it.kind == ContainerKind::Init {
                    world.exit(index, 0);
                }
            }
            world.finish(0, true);
        }
        for it in ContainerRef::all(&world.pod) {
            let running = world.seen.newest(&it.name).is_some_and(Container::is_running);
            prop_assert_eq!(running, it.kind != ContainerKind::Init, "{}", it.name);
        }
        prop_assert!(world.step().is_empty(), "nothing is left to do");
    }
}

#[test]
fn a_new_pod_begins_everything_that_needs_no_waiting() {
    let mut world = World::new(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    let image = |name: &str| Action::EnsureImage { name: name.to_owned() };
    assert_eq!(
        world.step(),
        [
            Action::SetUp,
            Action::MakeSandbox { attempt: 0 },
            image("a"),
            image("b")
        ]
    );
    assert_eq!(world.step(), [], "nothing is begun twice");
}

#[test]
fn sidecars_end_after_the_others_and_the_last_one_first() {
    let sidecar = |name: &str| json!({"name": name, "restartPolicy": "Always"});
    let mut world = World::new(json!({
        "initContainers": [sidecar("s1"), sidecar("s2")],
        "containers": [{"name": "a"}, {"name": "b"}],
    }));
    for _ in 0..40 {
        world.step();
        world.finish(0, true);
    }
    world.delete();
    let mut order = Vec::new();
    for _ in 0..5 {
        let actions = world.step();
        let names = actions.into_iter().filter_map(|it| match it {
            Action::Stop { name, .. } => Some(name),
            _ => None,
        });
        let mut names: Vec<_> = names.collect();
        names.sort();
        if !names.is_empty() {
            order.push(names);
        }
        while !world.begun.is_empty() {
            world.finish(0, true);
        }
    }
    assert_eq!(order, [vec!["a", "b"], vec!["s2"], vec!["s1"]]);
}

#[test]
fn a_shorter_grace_holds_for_what_is_being_stopped() {
    let mut world = World::new(json!({"terminationGracePeriodSeconds": 600, "containers": [{"name": "a"}]}));
    for _ in 0..20 {
        world.step();
        world.finish(0, true);
    }
    let (pod, now) = (world.pod.clone(), world.now);
    let mut ending = Ending {
        kind: EndingKind::Deleted,
        since: now,
        grace_s: 600,
    };
    world.memory.ending = Some(ending.clone());
    assert!(matches!(&world.step()[..], [Action::Stop { .. }]));
    assert_eq!(world.step(), []);
    ending.grace_s = 1;
    let mut decision = super::plan::Decision::default();
    ending::decide(&pod, &world.seen, &world.memory, &ending, now, &mut decision);
    assert!(
        matches!(&decision.actions[..], [Action::Cancel(Task::Stop(_)), Action::Stop { deadline, .. }] if *deadline == now + SignedDuration::from_secs(1)),
        "{decision:?}"
    );
}

#[test]
fn a_deadline_ends_a_pod_that_is_still_at_it() {
    let mut world = World::new(json!({"activeDeadlineSeconds": 60, "containers": [{"name": "a"}]}));
    let started = json!({"startTime": world.now});
    world.pod.status = Some(serde_json::from_value(started).unwrap());
    let decision = decide(&world.pod, &world.seen, &world.memory, world.now);
    let deadline = world.now + SignedDuration::from_secs(60);
    assert_eq!(decision.wake, Some(deadline));
    let decision = decide(&world.pod, &world.seen, &world.memory, deadline);
    assert!(
        matches!(&decision.actions[..], [Action::End { kind: EndingKind::Failed { reason, .. }, .. }] if reason == "DeadlineExceeded")
    );
}
