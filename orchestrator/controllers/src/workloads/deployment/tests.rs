//! Rollouts step by step, and random fates.

use super::{
    plan::{Observed, Plan, plan},
    view,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetStatus};
use kube::ResourceExt as _;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

/// A Deployment with its sets and their pods, each ready or not. What was written is seen at once, except that a set's
/// status is as old as the last turn of its controller.
#[derive(Debug)]
struct World {
    deployment: Deployment,
    sets: BTreeMap<String, ReplicaSet>,
    pods: BTreeMap<String, Vec<bool>>,
    now: Timestamp,
}

impl World {
    fn new(replicas: i32, strategy: &Value) -> Self {
        let spec = json!({
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "a"}},
            "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": []}},
            "strategy": strategy,
            "progressDeadlineSeconds": 600,
            "revisionHistoryLimit": 2,
        });
        let meta = json!({"name": "d", "namespace": "n", "uid": "d", "generation": 1});
        let deployment = serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap();
        Self {
            deployment,
            sets: BTreeMap::new(),
            pods: BTreeMap::new(),
            now: Timestamp::constant(1_000_000, 0),
        }
    }

    fn template(&mut self, version: u8) {
        let template = &mut self.deployment.spec.as_mut().unwrap().template;
        let annotations = template.metadata.as_mut().unwrap().annotations.get_or_insert_default();
        annotations.insert("version".to_owned(), version.to_string());
    }

    fn scale(&mut self, replicas: i32) {
        self.deployment.spec.as_mut().unwrap().replicas = Some(replicas);
    }

    fn plan(&self) -> Plan {
        let sets: Vec<_> = self.sets.values().cloned().map(Arc::new).collect();
        let old = |set: &Arc<ReplicaSet>| {
            let template = set.spec.as_ref().unwrap().template.as_ref().map(view::essence);
            template != Some(view::essence(&self.deployment.spec.as_ref().unwrap().template))
        };
        let old_pods = sets.iter().any(|it| old(it) && !self.pods[&it.name_any()].is_empty());
        let observed = Observed {
            deployment: &self.deployment,
            sets: &sets,
            old_pods,
        };
        plan(observed, self.now)
    }

    /// One turn of the Deployment's controller. Says whether it did anything.
    fn turn(&mut self) -> bool {
        self.now += SignedDuration::from_secs(1);
        let plan = self.plan();
        let acted = plan.create.is_some() || !plan.update.is_empty() || !plan.delete.is_empty();
        if let Some(mut set) = plan.create {
            set.metadata.uid = set.metadata.name.clone();
            set.metadata.creation_timestamp = Some(self.now.into());
            self.pods.insert(set.name_any(), Vec::new());
            assert!(self.sets.insert(set.name_any(), set).is_none(), "made twice");
        }
        for (_, set) in plan.update {
            self.sets.insert(set.name_any(), set);
        }
        for set in plan.delete {
            assert!(self.pods.remove(&set.name_any()).unwrap().is_empty());
            self.sets.remove(&set.name_any());
        }
        self.deployment.status = Some(plan.status);
        acted
    }

    /// One turn of the controller of a set: it deletes those that are not ready first.
    fn turn_set(&mut self, position: usize) -> bool {
        let Some(set) = self.sets.values_mut().nth(position) else {
            return false;
        };
        let pods = self.pods.get_mut(&set.name_any()).unwrap();
        let size = usize::try_from(view::size(set)).unwrap();
        let before = (pods.clone(), set.status.clone());
        pods.sort_unstable_by_key(|it| !*it);
        pods.resize(size, false);
        let ready = i32::try_from(pods.iter().filter(|it| **it).count()).unwrap();
        let size = i32::try_from(size).unwrap();
        set.status = Some(ReplicaSetStatus {
            replicas: size,
            ready_replicas: Some(ready),
            available_replicas: Some(ready),
            ..ReplicaSetStatus::default()
        });
        before != (pods.clone(), set.status.clone())
    }

    fn ready(&mut self, position: usize) -> bool {
        let mut waiting = self.pods.values_mut().flatten().filter(|it| !**it);
        waiting.nth(position).map(|it| *it = true).is_some()
    }

    fn break_one(&mut self, position: usize) {
        let mut serving = self.pods.values_mut().flatten().filter(|it| **it);
        if let Some(pod) = serving.nth(position) {
            *pod = false;
        }
    }

    fn total(&self) -> i32 {
        i32::try_from(self.pods.values().flatten().count()).unwrap()
    }

    fn serving(&self) -> i32 {
        i32::try_from(self.pods.values().flatten().filter(|it| **it).count()).unwrap()
    }

    /// Everybody acts until nobody has anything to do.
    fn settle(&mut self) {
        for _ in 0..2000 {
            let mut moved = self.turn();
            for position in 0..self.sets.len() {
                moved |= self.turn_set(position);
            }
            moved |= self.ready(0);
            if !moved {
                // Once more for the status.
                self.turn();
                return;
            }
        }
        panic!("never at rest: {self:#?}");
    }

    fn assert_done(&self) {
        let wanted = view::replicas(&self.deployment);
        assert_eq!((self.total(), self.serving()), (wanted, wanted), "{self:#?}");
        let status = self.deployment.status.clone().unwrap();
        assert_eq!(status.updated_replicas.unwrap_or_default(), wanted);
        assert_eq!(status.unavailable_replicas.unwrap_or_default(), 0);
        let progressing = status
            .conditions
            .unwrap()
            .into_iter()
            .find(|it| it.type_ == "Progressing")
            .unwrap();
        assert_eq!(progressing.reason.as_deref(), Some("NewReplicaSetAvailable"));
        assert!(self.sets.len() <= 3, "history");
    }
}

fn rolling(surge: i32, unavailable: i32) -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
}

fn sizes(world: &World) -> Vec<i32> {
    let mut sets: Vec<_> = world.sets.values().collect();
    sets.sort_by_key(|it| it.metadata.creation_timestamp.clone());
    sets.into_iter().map(view::size).collect()
}

#[test]
fn a_rollout_goes_up_before_down() {
    let mut world = World::new(4, &rolling(1, 0));
    world.settle();
    assert_eq!(sizes(&world), [4]);
    world.template(2);
    world.turn();
    assert_eq!(sizes(&world), [4, 1]);
    assert!(!world.turn(), "the new one is not available yet");
    world.turn_set(0);
    world.turn_set(1);
    world.ready(0);
    world.turn_set(0);
    world.turn_set(1);
    world.turn();
    assert_eq!(sizes(&world), [3, 1]);
    world.settle();
    assert_eq!(sizes(&world), [0, 4]);
    world.assert_done();
}

#[test]
fn a_rollout_is_scaled_in_proportion() {
    // Source: "Proportional scaling" of the Deployment documentation: 10 with 3 and 2; 8 old and 5 new; to 15.
    let mut world = World::new(10, &rolling(3, 2));
    world.settle();
    world.template(2);
    world.turn();
    for _ in 0..3 {
        for position in 0..2 {
            world.turn_set(position);
        }
        world.turn();
    }
    assert_eq!(sizes(&world), [8, 5]);
    world.scale(15);
    world.turn();
    assert_eq!(sizes(&world), [11, 7]);
    world.scale(0);
    world.turn();
    assert_eq!(sizes(&world), [0, 0]);
}

#[test]
fn revisions_count_up_and_history_is_limited() {
    let mut world = World::new(1, &rolling(1, 0));
    for version in [1, 2, 3, 4, 2, 5] {
        world.template(version);
        world.settle();
        world.assert_done();
    }
    let mut revisions: Vec<_> = world.sets.values().map(view::revision).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, [4, 5, 6]);
    assert_eq!(world.plan().revision.as_deref(), Some("6"));
    let back = world.sets.values().find(|it| view::revision(it) == 5).unwrap();
    assert_eq!(back.annotations()[view::HISTORY], "2");
}

#[test]
fn no_progress_for_too_long_is_said() {
    let mut world = World::new(2, &rolling(1, 0));
    world.settle();
    world.template(2);
    world.turn();
    world.turn_set(0);
    world.turn_set(1);
    world.turn();
    let next = world.plan().next.unwrap();
    assert!(next.as_secs() > 500 && next.as_secs() <= 600, "{next:?}");
    world.now += SignedDuration::from_secs(700);
    world.turn();
    let reason = |world: &World| {
        let status = world.deployment.status.clone().unwrap();
        let found = status
            .conditions
            .unwrap()
            .into_iter()
            .find(|it| it.type_ == "Progressing")
            .unwrap();
        (found.status, found.reason.unwrap())
    };
    assert_eq!(
        reason(&world),
        ("False".to_owned(), "ProgressDeadlineExceeded".to_owned())
    );
    world.settle();
    world.assert_done();
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Turn,
    Set(usize),
    Ready(usize),
    Break(usize),
    Template(u8),
    Scale(i32),
}

fn quiet() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Turn),
        4 => (0usize..4).prop_map(Step::Set),
        4 => (0usize..4).prop_map(Step::Ready),
        1 => (0u8..4).prop_map(Step::Template),
    ]
}

fn wild() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => quiet(),
        1 => (0usize..8).prop_map(Step::Break),
        1 => (0i32..9).prop_map(Step::Scale),
    ]
}

fn take(world: &mut World, step: Step) {
    match step {
        Step::Turn => _ = world.turn(),
        Step::Set(position) => _ = world.turn_set(position),
        Step::Ready(position) => _ = world.ready(position),
        Step::Break(position) => world.break_one(position),
        Step::Template(version) => world.template(version),
        Step::Scale(replicas) => world.scale(replicas),
    }
}

proptest! {
    /// Never above the surge; never below the minimum, unless pods break by themselves.
    #[test]
    fn a_rollout_stays_within_its_fence(
        replicas in 1i32..8, surge in 0i32..4, unavailable in 0i32..4, steps in prop::collection::vec(quiet(), 0..120),
    ) {
        let mut world = World::new(replicas, &rolling(surge, unavailable));
        world.settle();
        let most = replicas + view::max_surge(&world.deployment);
        let least = replicas - view::max_unavailable(&world.deployment);
        for step in steps {
            take(&mut world, step);
            prop_assert!(world.total() <= most, "{} pods, {most} may be", world.total());
            prop_assert!(world.serving() >= least, "{} serve, {least} must", world.serving());
        }
        world.settle();
        world.assert_done();
    }

    /// Whatever happens, it ends as it should.
    #[test]
    fn a_rollout_ends(
        replicas in 0i32..8, surge in 0i32..4, unavailable in 0i32..4, recreate in any::<bool>(),
        steps in prop::collection::vec(wild(), 0..120),
    ) {
        let strategy = if recreate { json!({"type": "Recreate"}) } else { rolling(surge, unavailable) };
        let mut world = World::new(replicas, &strategy);
        for step in steps {
            take(&mut world, step);
        }
        world.settle();
        world.assert_done();
    }
}

#[test]
fn a_set_that_has_the_size_already_is_noted_as_sized() {
    let mut world = World::new(2, &rolling(1, 0));
    world.settle();
    let set = world.sets.values_mut().next().unwrap();
    set.annotations_mut().insert(view::DESIRED.to_owned(), "7".to_owned());
    assert!(world.turn());
    assert!(!world.turn());
    world.template(2);
    world.settle();
    world.assert_done();
}
