//! Which of several fit nodes is taken.

use crate::making::{asks, facts, node, pod, put};
use fairlead_scheduler::{
    decide::{Chooser, decide},
    pod::Key,
    selector::Selector,
    world::World,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Where a pod goes, whatever the seed: the best must be the only one.
fn best(world: &World, spec: Value) -> String {
    let pod = pod("p", json!({ "app": "p" }), spec);
    let nodes: BTreeSet<_> = (0..8)
        .map(|seed| decide(&pod, world, &mut Chooser::new(seed)).unwrap())
        .collect();
    assert_eq!(nodes.len(), 1, "{nodes:?}");
    nodes.into_iter().next().unwrap()
}

fn three() -> World {
    let mut world = World::default();
    for (name, zone) in [("a", "x"), ("b", "x"), ("c", "y")] {
        let labels = json!({ "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone });
        world.set_node(name, node(labels));
    }
    world
}

#[test]
fn equals_are_taken_in_turn_by_the_seed() {
    let world = three();
    let pod = pod("p", json!({}), json!({}));
    let nodes: BTreeSet<_> = (0..64)
        .map(|seed| decide(&pod, &world, &mut Chooser::new(seed)).unwrap())
        .collect();
    assert_eq!(nodes.len(), 3);
}

#[test]
fn the_emptiest_is_taken() {
    let mut world = three();
    for (n, name) in ["a", "a", "b"].into_iter().enumerate() {
        put(
            &mut world,
            pod(
                &format!("x{n}"),
                json!({}),
                json!({ "containers": asks(json!({ "cpu": "1", "memory": "1Gi" })) }),
            ),
            name,
        );
    }
    assert_eq!(best(&world, json!({})), "c");
    // Pods that ask for nothing take room too.
    let mut world = three();
    for (n, name) in ["a", "c"].into_iter().enumerate() {
        put(&mut world, pod(&format!("x{n}"), json!({}), json!({})), name);
    }
    assert_eq!(best(&world, json!({})), "b");
}

#[test]
fn pods_of_a_service_keep_apart() {
    let mut world = three();
    let labels = json!({ "app": "p" });
    put(&mut world, pod("x0", labels.clone(), json!({})), "a");
    put(&mut world, pod("x1", labels, json!({})), "c");
    // Others make the nodes equally full.
    put(&mut world, pod("y", json!({}), json!({})), "b");
    let app: std::collections::BTreeMap<_, _> = [("app".to_owned(), "p".to_owned())].into();
    world
        .services
        .insert(Key::new("default", "s"), Selector::of_labels(&app));
    assert_eq!(best(&world, json!({})), "b");
}

#[test]
fn soft_taints_are_avoided() {
    let mut world = three();
    for name in ["a", "b"] {
        let mut facts = node(json!({ "kubernetes.io/hostname": name }));
        facts.taints = vec![fairlead_scheduler::node::Taint {
            key: "k".to_owned(),
            value: String::new(),
            effect: "PreferNoSchedule".to_owned(),
        }];
        world.set_node(name, facts);
    }
    assert_eq!(best(&world, json!({})), "c");
}

#[test]
fn large_images_draw() {
    let mut world = three();
    let images = json!([{ "names": ["example.com/large:latest"], "sizeBytes": 900 << 20 }]);
    world.set_node(
        "b",
        facts(json!({ "status": { "images": images,
        "allocatable": { "cpu": "4", "memory": "8Gi", "pods": "10" } } })),
    );
    assert_eq!(
        best(
            &world,
            json!({ "containers": [{ "name": "c", "image": "example.com/large" }] })
        ),
        "b"
    );
}

#[test]
fn large_clusters_are_searched_in_part_and_in_turn() {
    let mut world = World::default();
    for n in 0..400 {
        world.set_node(&format!("n{n:03}"), node(json!({})));
    }
    let mut chooser = Chooser::new(1);
    let mut nodes = BTreeSet::new();
    for n in 0..400 {
        let pod = pod(
            &format!("p{n}"),
            json!({}),
            json!({ "containers": asks(json!({ "cpu": "3" })) }),
        );
        let node = decide(&pod, &world, &mut chooser).unwrap();
        world.assume(&pod, &node);
        nodes.insert(node);
    }
    assert_eq!(nodes.len(), 400);
}
