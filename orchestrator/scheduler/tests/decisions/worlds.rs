//! Sums that are kept by events are what they would be if they were made anew.

use crate::making::{asks, facts, pod};
use fairlead_scheduler::{pod::Key, world::World};
use proptest::prelude::*;
use serde_json::json;
use std::sync::Arc;

#[derive(Clone, Debug)]
enum Op {
    Node(u8, u8),
    NodeGone(u8),
    Pod {
        at: u8,
        uid: u8,
        node: Option<u8>,
        cpu: u8,
        finished: bool,
    },
    PodGone(u8),
    Assume {
        at: u8,
        uid: u8,
        node: u8,
    },
    Forget(u8, u8),
    Leaving(u8, bool),
}

fn op() -> impl Strategy<Value = Op> {
    let pod = (
        0..5_u8,
        0..2_u8,
        prop::option::of(0..3_u8),
        0..3_u8,
        prop::bool::weighted(0.1),
    );
    prop_oneof![
        2 => (0..3_u8, 0..4_u8).prop_map(|(at, images)| Op::Node(at, images)),
        1 => (0..3_u8).prop_map(Op::NodeGone),
        4 => pod.prop_map(|(at, uid, node, cpu, finished)| Op::Pod { at, uid, node, cpu, finished }),
        1 => (0..5_u8).prop_map(Op::PodGone),
        2 => (0..5_u8, 0..2_u8, 0..3_u8).prop_map(|(at, uid, node)| Op::Assume { at, uid, node }),
        1 => (0..5_u8, 0..2_u8).prop_map(|(at, uid)| Op::Forget(at, uid)),
        1 => (0..5_u8, any::<bool>()).prop_map(|(at, it)| Op::Leaving(at, it)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn kept_equals_rebuilt(ops in prop::collection::vec(op(), 1..80)) {
        let mut world = World::default();
        let key = |at: u8| Key::new("default", &format!("p{at}"));
        let make = |at: u8, uid: u8, cpu: u8| {
            let mut containers = asks(json!({ "cpu": cpu.to_string(), "example.com/x": cpu.to_string() }));
            containers[0]["ports"] = json!([{ "containerPort": 1, "hostPort": 1 + u16::from(cpu) }]);
            let term = json!([{ "topologyKey": "t" }]);
            let affinity = json!({ "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": term } });
            let spec = json!({ "containers": containers, "affinity": if cpu == 2 { affinity } else { json!({}) } });
            let mut pod = pod(&format!("p{at}"), json!({}), spec);
            pod.uid = uid.to_string();
            pod
        };
        for it in ops {
            match it {
                Op::Node(at, images) => {
                    let names: Vec<_> = (0..images).map(|it| format!("image-{it}")).collect();
                    let images = json!([{ "names": names, "sizeBytes": 7 }]);
                    let status = json!({ "allocatable": { "cpu": "4" }, "images": images });
                    world.set_node(&format!("n{at}"), facts(json!({ "status": status })));
                }
                Op::NodeGone(at) => drop(world.remove_node(&format!("n{at}"))),
                Op::Pod { at, uid, node, cpu, finished } => {
                    let mut pod = make(at, uid, cpu);
                    pod.node = node.map(|it| format!("n{it}"));
                    pod.finished = finished;
                    let assumed = world.placed(&pod.key).is_some_and(|(it, assumed)| assumed && it.uid == pod.uid);
                    world.set_pod(&Arc::new(pod.clone()));
                    let placed = world.placed(&pod.key).map(|(it, assumed)| (it.node.clone(), assumed));
                    if finished {
                        prop_assert_eq!(placed, None);
                    } else if pod.node.is_some() {
                        prop_assert_eq!(placed, Some((pod.node, false)));
                    } else {
                        prop_assert_eq!(placed.is_some(), assumed, "only our own word outlives an older one");
                    }
                }
                Op::PodGone(at) => {
                    world.remove_pod(&key(at));
                    prop_assert!(world.placed(&key(at)).is_none());
                }
                Op::Assume { at, uid, node } => world.assume(&make(at, uid, 1), &format!("n{node}")),
                Op::Forget(at, uid) => {
                    let known = world.placed(&key(at)).is_some_and(|(_, assumed)| !assumed);
                    let forgotten = world.forget(&key(at), &uid.to_string());
                    prop_assert!(!(known && forgotten.is_some()), "what the API server said stands");
                }
                Op::Leaving(at, leaving) => world.set_leaving(&key(at), leaving),
            }
            prop_assert!(world.is_consistent());
        }
    }
}
