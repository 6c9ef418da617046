//! Random fates of the pods of a Job.

use super::{
    plan::{condition, is_complete, is_finished, plan},
    pod,
};
use crate::workloads::pods;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::ResourceExt as _;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

/// A Job and its pods by uid. A deleted pod is there until it has ended and nobody holds it.
#[derive(Debug)]
struct World {
    job: Job,
    pods: BTreeMap<String, Pod>,
    made: usize,
    /// Pods that ended by themselves: well, badly.
    fates: (i32, i32),
    now: Timestamp,
}

impl World {
    fn new(more: Value) -> Self {
        let mut spec = json!({"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "main"}]}}});
        for (field, value) in more.as_object().unwrap() {
            spec[field] = value.clone();
        }
        let meta = json!({"name": "j", "namespace": "n", "uid": "j"});
        Self {
            job: serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap(),
            pods: BTreeMap::new(),
            made: 0,
            fates: (0, 0),
            now: Timestamp::constant(1_000_000, 0),
        }
    }

    /// One turn of the controller. It may be cut off before it releases or makes anything: after so many of its parts.
    fn turn(&mut self, parts: usize) -> bool {
        let all: Vec<_> = self.pods.values().cloned().map(Arc::new).collect();
        let plan = plan(&self.job, &all, self.now);
        let before = self.job.status.clone();
        self.job.status = Some(plan.status);
        let mut moved = before != self.job.status;
        if parts > 0 {
            for pod in &plan.release {
                moved = true;
                self.release(pod);
            }
        }
        if parts > 1 {
            for pod in plan.discard.iter().chain(&plan.kill) {
                moved = true;
                if plan.discard.contains(pod) {
                    self.release(pod);
                }
                if let Some(pod) = self.pods.get_mut(&pod.uid().unwrap()) {
                    pod.metadata.deletion_timestamp = Some(self.now.into());
                }
            }
            for wanted in plan.create {
                moved = true;
                self.made += 1;
                let mut pod = pod::new(&self.job, wanted.index, wanted.failures);
                pod.metadata.uid = Some(self.made.to_string());
                self.pods.insert(self.made.to_string(), pod);
            }
        }
        if let Some(next) = plan.next.filter(|_| !moved) {
            self.now += SignedDuration::try_from(next).unwrap();
        }
        moved || plan.next.is_some()
    }

    fn release(&mut self, pod: &Pod) {
        if let Some(pod) = self.pods.get_mut(&pod.uid().unwrap()) {
            pod.metadata.finalizers = None;
        }
    }

    /// A pod ends.
    fn end(&mut self, position: usize, well: bool) -> bool {
        let mut active = self.pods.values_mut().filter(|it| pods::is_active(it));
        let Some(pod) = active.nth(position) else { return false };
        let (phase, code) = if well { ("Succeeded", 0) } else { ("Failed", 1) };
        let state = json!({"terminated": {"exitCode": code, "finishedAt": self.now.to_string()}});
        let container =
            json!({"name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state});
        pod.status = serde_json::from_value(json!({"phase": phase, "containerStatuses": [container]})).unwrap();
        self.fates.0 += i32::from(well);
        self.fates.1 += i32::from(!well);
        true
    }

    /// Deleted pods that nobody holds go.
    fn sweep(&mut self) -> bool {
        let before = self.pods.len();
        self.pods
            .retain(|_, it| !pods::is_terminating(it) || pod::is_tracked(it));
        before != self.pods.len()
    }

    fn active(&self) -> usize {
        self.pods.values().filter(|it| pods::is_active(it)).count()
    }

    fn settle(&mut self) {
        for _ in 0..2000 {
            let moved = self.turn(2) | self.sweep() | self.end(0, true);
            if !moved {
                return;
            }
        }
        panic!("never at rest: {self:#?}");
    }
}

#[test]
fn a_new_pod_waits_longer_after_every_failure() {
    let mut world = World::new(json!({"backoffLimit": 6}));
    let mut waits = Vec::new();
    for _ in 0..4 {
        while world.active() == 0 {
            let all: Vec<_> = world.pods.values().cloned().map(Arc::new).collect();
            let plan = plan(&world.job, &all, world.now);
            if let Some(next) = plan.next {
                waits.push(next.as_secs());
                world.now += SignedDuration::try_from(next).unwrap();
            }
            world.turn(2);
        }
        world.end(0, false);
        world.turn(2);
        world.turn(2);
    }
    waits.dedup();
    assert_eq!(waits, [10, 20, 40]);
}

#[test]
fn a_limit_per_index_fails_that_index_only() {
    let spec = json!({
        "completionMode": "Indexed", "completions": 2, "parallelism": 2,
        "backoffLimit": i32::MAX, "backoffLimitPerIndex": 1,
    });
    let mut world = World::new(spec);
    for _ in 0..200 {
        if is_finished(&world.job) {
            break;
        }
        let first = world
            .pods
            .values()
            .filter(|it| pods::is_active(it))
            .position(|it| pod::index(it) == Some(0));
        match first {
            Some(position) => _ = world.end(position, false),
            None => _ = world.end(0, true),
        }
        world.turn(2);
        world.sweep();
    }
    let status = world.job.status.clone().unwrap();
    let failed = condition(&status, "Failed").unwrap();
    assert_eq!(failed.reason.as_deref(), Some("FailedIndexes"));
    assert_eq!(
        (status.completed_indexes.as_deref(), status.failed_indexes.as_deref()),
        (Some("1"), Some("0"))
    );
    assert_eq!((status.succeeded, status.failed), (Some(1), Some(2)));
}

proptest! {
    /// Never more at a time than allowed, never more successes than wanted; every end is counted once, also if the
    /// controller is cut off anywhere.
    #[test]
    fn every_end_is_counted_once(
        completions in 1i32..8, parallelism in 1i32..5, indexed in any::<bool>(), limit in 0i32..8,
        steps in prop::collection::vec((0u8..8, 0usize..4), 0..100),
    ) {
        let mode = if indexed { "Indexed" } else { "NonIndexed" };
        let mut world = World::new(json!({
            "completions": completions, "parallelism": parallelism, "completionMode": mode, "backoffLimit": limit,
        }));
        for (kind, number) in steps {
            match kind {
                0 => _ = world.end(number, false),
                1 | 2 => _ = world.end(number, true),
                3 => _ = world.sweep(),
                4 => world.now += SignedDuration::from_secs(700),
                _ => _ = world.turn(number.min(2)),
            }
            prop_assert!(world.active() <= usize::try_from(parallelism).unwrap());
            prop_assert!(world.fates.0 <= completions);
        }
        world.settle();
        prop_assert!(is_finished(&world.job), "{:#?}", world);
        prop_assert!(world.pods.values().all(|it| !pod::is_tracked(it)));
        let status = world.job.status.clone().unwrap();
        prop_assert_eq!(status.succeeded.unwrap_or_default(), world.fates.0);
        if is_complete(&world.job) {
            prop_assert_eq!(world.fates.0, completions);
            prop_assert_eq!(status.failed.unwrap_or_default(), world.fates.1);
        } else {
            // What was still running when it failed counts as failed too.
            prop_assert!(status.failed.unwrap_or_default() >= world.fates.1);
            prop_assert!(world.fates.1 > limit);
        }
    }
}
