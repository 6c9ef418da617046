//! Order, always.

use super::plan::{Action, Observed, Revision, plan};
use crate::workloads::pods;
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{Pod, PodTemplateSpec},
};
use kube::ResourceExt as _;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

const NOW: Timestamp = Timestamp::constant(1_000_000, 0);

/// A set and its pods; a deleted pod is there until it has ended.
#[derive(Debug)]
struct World {
    set: StatefulSet,
    pods: BTreeMap<i32, Pod>,
    made: usize,
    former: (String, PodTemplateSpec),
    /// The name of the newest revision.
    latest: String,
}

impl World {
    fn new(replicas: i32, more: Value) -> Self {
        let mut spec = json!({
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "a"}},
            "serviceName": "s",
            "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": []}},
        });
        for (field, value) in more.as_object().unwrap() {
            spec[field] = value.clone();
        }
        let set: StatefulSet =
            serde_json::from_value(json!({"metadata": {"name": "db", "namespace": "n", "uid": "u"}, "spec": spec}))
                .unwrap();
        let template = set.spec.as_ref().unwrap().template.clone();
        Self {
            set,
            pods: BTreeMap::new(),
            made: 0,
            former: ("r0".to_owned(), template),
            latest: "r0".to_owned(),
        }
    }

    fn update(&mut self, number: u8) {
        self.latest = format!("r{number}");
    }

    fn turn(&mut self) -> usize {
        let all: Vec<_> = self.pods.values().cloned().map(Arc::new).collect();
        let template = self.set.spec.as_ref().unwrap().template.clone();
        let observed = Observed {
            set: &self.set,
            pods: &all,
            current: Revision {
                name: &self.former.0,
                template: &self.former.1,
            },
            update: Revision {
                name: &self.latest,
                template: &template,
            },
        };
        let plan = plan(observed, NOW);
        let actions = plan.actions.len();
        for action in plan.actions {
            match action {
                Action::Create(pod) => {
                    let ordinal = super::pod::ordinal("db", &pod.name_any()).unwrap();
                    self.made += 1;
                    let mut pod = *pod;
                    pod.metadata.uid = Some(self.made.to_string());
                    assert!(self.pods.insert(ordinal, pod).is_none(), "made twice");
                }
                Action::Delete(pod) | Action::Recreate(pod) => {
                    let ordinal = super::pod::ordinal("db", &pod.name_any()).unwrap();
                    self.pods.get_mut(&ordinal).unwrap().metadata.deletion_timestamp = Some(NOW.into());
                }
                Action::Identify(_) => {}
            }
        }
        self.former.0 = plan.status.current_revision.clone().unwrap();
        self.set.status = Some(plan.status);
        actions
    }

    /// The stand-in for a kubelet acts on one pod. Says whether there was anything to do.
    fn step(&mut self, position: usize) -> bool {
        let found = self
            .pods
            .iter()
            .filter(|(_, it)| pods::is_terminating(it) || !pods::is_ready(it));
        let Some(ordinal) = found.map(|(ordinal, _)| *ordinal).nth(position) else {
            return false;
        };
        if pods::is_terminating(&self.pods[&ordinal]) {
            self.pods.remove(&ordinal);
        } else {
            let ready = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
            self.pods.get_mut(&ordinal).unwrap().status = serde_json::from_value(ready).unwrap();
        }
        true
    }

    fn fail(&mut self, position: usize) {
        if let Some(pod) = self.pods.values_mut().nth(position) {
            pod.status = serde_json::from_value(json!({"phase": "Failed"})).unwrap();
        }
    }

    fn serving(&self) -> usize {
        let serving = self
            .pods
            .values()
            .filter(|it| pods::is_ready(it) && !pods::is_terminating(it));
        serving.count()
    }

    fn settle(&mut self) {
        for _ in 0..1000 {
            if self.turn() == 0 && !self.step(0) {
                self.turn();
                return;
            }
        }
        panic!("never at rest: {self:#?}");
    }

    fn assert_done(&self) {
        let wanted = self.set.spec.as_ref().unwrap().replicas.unwrap();
        assert_eq!(
            self.pods.keys().copied().collect::<Vec<_>>(),
            (0..wanted).collect::<Vec<_>>()
        );
        assert_eq!(self.serving(), usize::try_from(wanted).unwrap());
        for pod in self.pods.values() {
            assert_eq!(
                pods::label(&pod.metadata, super::pod::REVISION),
                Some(self.latest.as_str())
            );
        }
        let status = self.set.status.as_ref().unwrap();
        assert_eq!(status.current_revision, status.update_revision);
    }
}

#[test]
fn a_partition_keeps_the_lower_ones() {
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 2}});
    let mut world = World::new(4, json!({"updateStrategy": strategy}));
    world.settle();
    world.update(1);
    world.settle();
    let revisions = |world: &World| -> Vec<String> {
        let of = |it: &Pod| pods::label(&it.metadata, super::pod::REVISION).unwrap().to_owned();
        world.pods.values().map(of).collect()
    };
    assert_eq!(revisions(&world), ["r0", "r0", "r1", "r1"]);
    world.pods.remove(&0);
    world.settle();
    assert_eq!(revisions(&world), ["r0", "r0", "r1", "r1"]);
}

#[test]
fn nothing_is_updated_by_itself_on_delete() {
    let mut world = World::new(2, json!({"updateStrategy": {"type": "OnDelete"}}));
    world.settle();
    world.update(1);
    assert_eq!(world.turn(), 0);
    world.pods.remove(&1);
    world.settle();
    assert_eq!(pods::label(&world.pods[&1].metadata, super::pod::REVISION), Some("r1"));
    assert_eq!(pods::label(&world.pods[&0].metadata, super::pod::REVISION), Some("r0"));
}

proptest! {
    /// In order: one change at a time, nobody before its predecessors, and at most one away during an update.
    #[test]
    fn ordered_sets_keep_their_order(replicas in 1i32..6, steps in prop::collection::vec((0u8..8, 0usize..4), 0..80)) {
        let mut world = World::new(replicas, json!({}));
        world.settle();
        for (kind, number) in steps {
            match kind {
                0 => world.update(u8::try_from(number).unwrap()),
                1..=3 => _ = world.step(number),
                _ => prop_assert!(world.turn() <= 1),
            }
            prop_assert!(world.serving() + 1 >= usize::try_from(replicas).unwrap());
        }
        world.settle();
        world.assert_done();
    }

    /// Whatever happens, it ends as it should, ordered or not.
    #[test]
    fn sets_end(
        replicas in 0i32..6, parallel in any::<bool>(), unavailable in 1i32..4,
        steps in prop::collection::vec((0u8..10, 0usize..6), 0..80),
    ) {
        let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": unavailable}});
        let policy = if parallel { "Parallel" } else { "OrderedReady" };
        let mut world = World::new(replicas, json!({"updateStrategy": strategy, "podManagementPolicy": policy}));
        for (kind, number) in steps {
            match kind {
                0 => world.update(u8::try_from(number).unwrap()),
                1 => world.fail(number),
                2 => world.set.spec.as_mut().unwrap().replicas = Some(i32::try_from(number).unwrap()),
                3..=5 => _ = world.step(number),
                _ => _ = world.turn(),
            }
        }
        world.settle();
        world.assert_done();
    }
}
