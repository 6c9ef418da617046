//! Random nodes and fates.

use super::plan::{Observed, Plan, plan};
use crate::workloads::pods;
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Node, Pod},
};
use kube::ResourceExt;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

const NOW: Timestamp = Timestamp::constant(1_000_000, 0);

#[derive(Debug)]
struct World {
    set: DaemonSet,
    nodes: BTreeMap<String, Arc<Node>>,
    pods: BTreeMap<String, Pod>,
    made: usize,
    hash: String,
}

impl World {
    fn new(nodes: usize, rolling: &Value) -> Self {
        let spec = json!({
            "selector": {"matchLabels": {"app": "a"}},
            "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": []}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
        });
        let meta = json!({"name": "d", "namespace": "n", "uid": "d"});
        let mut world = Self {
            set: serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap(),
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            made: 0,
            hash: "h0".to_owned(),
        };
        (0..nodes).for_each(|it| world.toggle(it));
        world
    }

    fn toggle(&mut self, number: usize) {
        let name = format!("node{number}");
        if self.nodes.remove(&name).is_none() {
            let node = serde_json::from_value::<Node>(json!({"metadata": {"name": name}})).unwrap();
            self.nodes.insert(name, Arc::new(node));
        } else {
            // The garbage collector takes what was there.
            self.pods.retain(|_, it| super::pod::target(it) != Some(&name));
        }
    }

    fn plan(&self) -> Plan {
        let nodes: Vec<_> = self.nodes.values().cloned().collect();
        let pods: Vec<_> = self.pods.values().cloned().map(Arc::new).collect();
        let observed = Observed {
            set: &self.set,
            nodes: &nodes,
            pods: &pods,
            hash: &self.hash,
            backing_off: &BTreeSet::new(),
        };
        plan(observed, NOW)
    }

    fn turn(&mut self) -> bool {
        let plan = self.plan();
        let acted = !plan.create.is_empty() || !plan.delete.is_empty();
        for (_, pod) in plan.delete {
            self.pods.get_mut(&pod.name_any()).unwrap().metadata.deletion_timestamp = Some(NOW.into());
        }
        for node in plan.create {
            self.made += 1;
            let mut pod = super::pod::new(&self.set, &node, &self.hash);
            let name = format!("p{:05}", self.made);
            pod.metadata.name = Some(name.clone());
            pod.metadata.uid = Some(name.clone());
            self.pods.insert(name, pod);
        }
        self.set.status = Some(plan.status);
        acted
    }

    fn step(&mut self, position: usize) -> bool {
        let found = self
            .pods
            .values()
            .filter(|it| pods::is_terminating(it) || !pods::is_ready(it));
        let Some(name) = found.map(ResourceExt::name_any).nth(position) else {
            return false;
        };
        if pods::is_terminating(&self.pods[&name]) {
            self.pods.remove(&name);
        } else {
            let ready = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
            self.pods.get_mut(&name).unwrap().status = serde_json::from_value(ready).unwrap();
        }
        true
    }

    fn fail(&mut self, position: usize) {
        if let Some(pod) = self.pods.values_mut().nth(position) {
            pod.status = serde_json::from_value(json!({"phase": "Failed"})).unwrap();
        }
    }

    /// Nodes with a pod that serves.
    fn served(&self) -> usize {
        let serving = self
            .pods
            .values()
            .filter(|it| pods::is_ready(it) && !pods::is_terminating(it));
        serving.filter_map(super::pod::target).collect::<BTreeSet<_>>().len()
    }

    fn settle(&mut self) {
        for _ in 0..1000 {
            if !self.turn() && !self.step(0) {
                return;
            }
        }
        panic!("never at rest: {self:#?}");
    }

    fn assert_done(&self) {
        assert_eq!(self.pods.len(), self.nodes.len(), "{self:#?}");
        assert_eq!(self.served(), self.nodes.len());
        assert!(
            self.pods
                .values()
                .all(|it| pods::label(&it.metadata, super::pod::HASH) == Some(&self.hash))
        );
        let status = self.plan().status;
        let nodes = i32::try_from(self.nodes.len()).unwrap();
        assert_eq!(
            (status.number_available, status.updated_number_scheduled),
            (Some(nodes), Some(nodes))
        );
    }
}

proptest! {
    /// During an update no more nodes are without a serving pod than may be; with surge none is.
    #[test]
    fn an_update_keeps_nodes_served(
        nodes in 1usize..6, surge in 0usize..3, unavailable in 1usize..4,
        steps in prop::collection::vec((0u8..8, 0usize..4), 0..80),
    ) {
        let rolling = if surge > 0 {
            json!({"maxSurge": surge, "maxUnavailable": 0})
        } else {
            json!({"maxUnavailable": unavailable})
        };
        let least = if surge > 0 { nodes } else { nodes.saturating_sub(unavailable) };
        let mut world = World::new(nodes, &rolling);
        world.settle();
        for (kind, number) in steps {
            match kind {
                0 => world.hash = format!("h{number}"),
                1..=3 => _ = world.step(number),
                _ => _ = world.turn(),
            }
            prop_assert!(world.served() >= least, "{:#?}", world);
            prop_assert!(world.pods.values().filter(|it| !pods::is_terminating(it)).count() <= nodes + surge);
        }
        world.settle();
        world.assert_done();
    }

    /// Nodes come and go, pods fail: it ends with one pod on each.
    #[test]
    fn every_node_ends_with_one(
        nodes in 0usize..6, surge in 0usize..2, steps in prop::collection::vec((0u8..9, 0usize..6), 0..80),
    ) {
        let mut world = World::new(nodes, &json!({"maxSurge": surge, "maxUnavailable": 1 - surge}));
        for (kind, number) in steps {
            match kind {
                0 => world.hash = format!("h{number}"),
                1 => world.toggle(number),
                2 => world.fail(number),
                3..=5 => _ = world.step(number),
                _ => _ = world.turn(),
            }
        }
        world.settle();
        world.assert_done();
    }
}
