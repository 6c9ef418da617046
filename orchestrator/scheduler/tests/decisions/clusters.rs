//! Random clusters, random changes: what is decided is right, and nobody waits who need not.

use crate::{
    making::{asks, facts, pod},
    oracle::may,
};
use fairlead_scheduler::{
    decide::{Chooser, decide},
    node::NodeFacts,
    pod::{Key, PodInfo},
    queue::LONGEST_PAUSE,
    scheduler::{Decision, Input, Kind, Scheduler},
};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

#[derive(Clone, Debug)]
enum Happening {
    Node(u8, Box<NodeFacts>),
    NodeGone(u8),
    Pod(u8, Box<PodInfo>),
    PodGone(u8),
    Labelled(u8, bool),
    /// The API server refuses the next bindings.
    Refuse(u8),
}

fn node() -> impl Strategy<Value = NodeFacts> {
    let zone = prop_oneof![Just(None), Just(Some("x")), Just(Some("y"))];
    (
        zone,
        0..6_u8,
        0..4_u8,
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(zone, cpu, pods, tainted, cordoned)| {
            let mut labels = serde_json::Map::new();
            labels.extend(zone.map(|it| ("zone".to_owned(), json!(it))));
            let taints = if tainted {
                json!([{ "key": "k", "value": "v", "effect": "NoSchedule" }])
            } else {
                json!([])
            };
            facts(json!({
                "metadata": { "labels": labels },
                "spec": { "taints": taints, "unschedulable": cordoned },
                "status": { "allocatable": { "cpu": cpu.to_string(), "memory": "1Gi", "pods": pods.to_string() } },
            }))
        })
}

fn app() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("a"), Just("b")]
}

fn term() -> impl Strategy<Value = Value> {
    let key = prop_oneof![Just("zone"), Just("host")];
    (app(), key)
        .prop_map(|(app, key)| json!({ "labelSelector": { "matchLabels": { "app": app } }, "topologyKey": key }))
}

fn pods() -> impl Strategy<Value = Value> {
    let spread = (1..3_u8, term(), prop::option::of(1..4_u8)).prop_map(|(skew, mut it, domains)| {
        it["maxSkew"] = json!(skew);
        it["whenUnsatisfiable"] = json!("DoNotSchedule");
        it["minDomains"] = json!(domains);
        it
    });
    let parts = (
        prop::option::weighted(0.5, 1..4_u8),
        prop::option::weighted(0.2, prop_oneof![Just("x"), Just("y")]),
        prop::bool::weighted(0.3),
        prop::option::weighted(0.2, 80..82_u16),
        prop::collection::vec(term(), 0..2),
        prop::collection::vec(term(), 0..2),
        prop::collection::vec(spread, 0..2),
        prop::bool::weighted(0.1),
    );
    parts.prop_map(|(cpu, zone, tolerates, port, with, apart, spread, gated)| {
        let mut spec = json!({ "containers": asks(cpu.map_or(json!({}), |it| json!({ "cpu": it.to_string() }))) });
        if let Some(zone) = zone {
            spec["nodeSelector"] = json!({ "zone": zone });
        }
        if tolerates {
            spec["tolerations"] = json!([{ "key": "k", "operator": "Exists" }]);
        }
        if let Some(port) = port {
            spec["containers"][0]["ports"] = json!([{ "containerPort": port, "hostPort": port }]);
        }
        let required = |terms: Vec<Value>| json!({ "requiredDuringSchedulingIgnoredDuringExecution": terms });
        spec["affinity"] = json!({ "podAffinity": required(with), "podAntiAffinity": required(apart) });
        spec["topologySpreadConstraints"] = json!(spread);
        if gated {
            spec["schedulingGates"] = json!([{ "name": "g" }]);
        }
        spec
    })
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        3 => (0..4_u8, node()).prop_map(|(at, it)| Happening::Node(at, Box::new(it))),
        1 => (0..4_u8).prop_map(Happening::NodeGone),
        6 => (0..12_u8, app(), pods()).prop_map(|(at, app, spec)| {
            Happening::Pod(at, Box::new(pod(&format!("p{at}"), json!({ "app": app }), spec)))
        }),
        3 => (0..12_u8).prop_map(Happening::PodGone),
        1 => (0..12_u8, any::<bool>()).prop_map(|(at, it)| Happening::Labelled(at, it)),
        1 => (1..3_u8).prop_map(Happening::Refuse),
    ]
}

/// An API server, as far as the scheduler sees it.
struct Model {
    scheduler: Scheduler,
    now: Duration,
    /// What is stored.
    pods: BTreeMap<Key, PodInfo>,
    made: u32,
    refuse: u8,
    /// Pods differ in importance.
    ranked: bool,
}

impl Model {
    fn new() -> Self {
        Self {
            ranked: false,
            scheduler: Scheduler::new("default-scheduler", 1),
            now: Duration::ZERO,
            pods: BTreeMap::new(),
            made: 0,
            refuse: 0,
        }
    }

    fn say(&mut self, pod: PodInfo) {
        self.pods.insert(pod.key.clone(), pod.clone());
        self.scheduler.apply(Input::Pod(Arc::new(pod), None), self.now);
    }

    fn happen(&mut self, it: Happening) {
        let key = |at: u8| Key::new("default", &format!("p{at}"));
        match it {
            Happening::Node(at, mut facts) => {
                let name = format!("n{at}");
                facts.labels.insert("host".to_owned(), name.clone());
                self.scheduler.apply(Input::Node(name, facts), self.now);
            }
            Happening::NodeGone(at) => {
                let gone = Input::Gone(Kind::Node, Key::new("", &format!("n{at}")));
                self.scheduler.apply(gone, self.now);
            }
            Happening::Pod(at, mut pod) => {
                if let Some(old) = self.pods.get(&key(at)) {
                    // Its gates may be taken away; little else may change.
                    let mut old = old.clone();
                    old.gates.clear();
                    return self.say(old);
                }
                self.made += 1;
                pod.uid = format!("uid-{}", self.made);
                if self.ranked {
                    pod.priority = i32::from(at % 3);
                }
                self.say(*pod);
            }
            Happening::PodGone(at) => {
                self.pods.remove(&key(at));
                self.scheduler.apply(Input::Gone(Kind::Pod, key(at)), self.now);
            }
            Happening::Labelled(at, app) => {
                if let Some(mut pod) = self.pods.get(&key(at)).cloned() {
                    let app = if app { "a" } else { "b" };
                    pod.labels.insert("app".to_owned(), app.to_owned());
                    self.say(pod);
                }
            }
            Happening::Refuse(times) => self.refuse = times,
        }
    }

    /// Decides until there is nothing left to decide now.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        self.now += LONGEST_PAUSE;
        let mut leaving = Vec::new();
        loop {
            let before = self.scheduler.world().clone();
            let Some(decision) = self.scheduler.step(self.now) else {
                if let Some(key) = leaving.pop() {
                    self.pods.remove(&key);
                    self.scheduler.apply(Input::Gone(Kind::Pod, key), self.now);
                } else if self.scheduler.lengths().pausing == 0 {
                    break;
                }
                self.now += LONGEST_PAUSE;
                continue;
            };
            match decision {
                Decision::Bind { pod, node, .. } => {
                    let there = before.node(&node).unwrap();
                    prop_assert!(may(&pod, there, &before), "{} on {node}: {pod:?}", pod.key);
                    if self.refuse > 0 {
                        self.refuse -= 1;
                        self.scheduler.refused(&pod.key, &pod.uid, self.now);
                        prop_assert!(self.scheduler.world().placed(&pod.key).is_none());
                        self.now += LONGEST_PAUSE;
                    } else {
                        let mut pod = PodInfo::clone(&pod);
                        pod.node = Some(node);
                        self.say(pod);
                    }
                }
                Decision::Unfit {
                    pod, message, victims, ..
                } => {
                    for victim in &victims {
                        prop_assert!(victim.priority < pod.priority, "{} for {}", victim.key, pod.key);
                        leaving.push(victim.key.clone());
                    }
                    // What is kept free for others is free for those who do not know.
                    for node in before.nodes().filter(|_| before.nominated.is_empty()) {
                        prop_assert!(
                            !may(&pod, node, &before),
                            "{} could be on {}: {message}",
                            pod.key,
                            node.name
                        );
                    }
                }
            }
            prop_assert!(self.scheduler.world().is_consistent());
        }
        Ok(())
    }

    /// Nobody waits for whom there is a node.
    fn at_rest(&self) -> Result<(), TestCaseError> {
        for pod in self.pods.values().filter(|it| it.node.is_none() && it.gates.is_empty()) {
            let entry = self.scheduler.queue().get(&pod.key);
            prop_assert!(entry.is_some(), "{} is lost", pod.key);
            let decided = decide(pod, self.scheduler.world(), &mut Chooser::new(1));
            prop_assert!(
                decided.is_err(),
                "{} waits for nothing: {:?}",
                pod.key,
                entry.map(|it| it.objectors)
            );
        }
        for pod in self.pods.values().filter(|it| it.node.is_some()) {
            prop_assert!(self.scheduler.queue().get(&pod.key).is_none());
            let placed = self.scheduler.world().placed(&pod.key);
            prop_assert!(placed.is_some_and(|(it, assumed)| it.node == pod.node && !assumed));
        }
        let bound = self.pods.values().filter(|it| it.node.is_some()).count();
        prop_assert_eq!(self.scheduler.world().placed_keys().count(), bound);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decisions_are_right_and_hints_complete(happenings in prop::collection::vec(happening(), 1..60)) {
        let mut model = Model::new();
        for it in happenings {
            model.happen(it);
            model.settle()?;
            model.at_rest()?;
        }
    }

    #[test]
    fn the_important_get_room_and_nobody_is_forgotten(happenings in prop::collection::vec(happening(), 1..60)) {
        let mut model = Model::new();
        model.ranked = true;
        for it in happenings {
            model.happen(it);
            model.settle()?;
            model.at_rest()?;
        }
    }

    #[test]
    fn a_list_says_the_same_as_events(happenings in prop::collection::vec(happening(), 1..40), lost in 0..40_usize) {
        let mut model = Model::new();
        for (at, it) in happenings.into_iter().enumerate() {
            // Deletions that a broken watch lost are found by the next list.
            if at >= lost && let Happening::PodGone(n) = it {
                model.pods.remove(&Key::new("default", &format!("p{n}")));
                let all = model.pods.keys().cloned().collect();
                model.scheduler.apply(Input::Only(Kind::Pod, all), model.now);
            } else {
                model.happen(it);
            }
            model.settle()?;
            model.at_rest()?;
        }
    }

    #[test]
    fn equal_seeds_decide_alike(happenings in prop::collection::vec(happening(), 1..40)) {
        let (mut one, mut other) = (Model::new(), Model::new());
        for it in happenings {
            one.happen(it.clone());
            other.happen(it);
            one.settle()?;
            other.settle()?;
        }
        prop_assert_eq!(one.pods, other.pods);
    }
}
