//! Who makes way for whom.

use crate::making::{asks, node, pod, put};
use fairlead_scheduler::{
    decide::{Chooser, decide},
    pod::{Key, PodInfo},
    preempt::{Plan, plan},
    selector::Selector,
    world::{Budget, World},
};
use serde_json::json;
use std::{collections::BTreeMap, sync::Arc};

fn of(name: &str, priority: i32, cpu: &str) -> PodInfo {
    let spec = json!({ "priority": priority, "containers": asks(json!({ "cpu": cpu })) });
    pod(name, json!({ "app": name }), spec)
}

fn world(pods: &[(&str, i32, &str, &str)]) -> World {
    let mut world = World::default();
    for name in ["a", "b", "c"] {
        world.set_node(name, node(json!({ "zone": name })));
    }
    for (name, priority, cpu, node) in pods {
        put(&mut world, of(name, *priority, cpu), node);
    }
    world
}

fn planned(world: &World, pod: &PodInfo) -> Result<(String, Vec<String>), String> {
    let unfit = decide(pod, world, &mut Chooser::new(1)).unwrap_err();
    let names = |it: Plan| (it.node, it.victims.iter().map(|it| it.key.name.clone()).collect());
    plan(pod, world, &unfit).map(names).map_err(|it| it.message)
}

fn chosen(world: &World, pod: &PodInfo) -> (String, Vec<String>) {
    planned(world, pod).unwrap()
}

#[test]
fn as_few_and_as_unimportant_as_can_be() {
    let pods = [
        ("a0", 5, "4", "a"),
        ("b0", 3, "2", "b"),
        ("b1", 4, "2", "b"),
        ("c0", 9, "4", "c"),
    ];
    assert_eq!(
        chosen(&world(&pods), &of("p", 10, "2")),
        ("b".into(), vec!["b0".into()])
    );
    assert_eq!(
        chosen(&world(&pods), &of("p", 10, "3")),
        ("b".into(), vec!["b1".into(), "b0".into()])
    );
    // Only the less important: nobody makes way for an equal.
    let message = planned(&world(&pods), &of("p", 3, "2")).unwrap_err();
    let expected = "preemption: 0/3 nodes are available: 3 No preemption victims found for incoming pod.";
    assert_eq!(message, expected);
    let message = planned(&world(&pods), &of("p", 4, "3")).unwrap_err();
    let expected =
        "preemption: 0/3 nodes are available: 1 Insufficient cpu, 2 No preemption victims found for incoming pod.";
    assert_eq!(message, expected);
    let message = planned(&world(&pods), &of("p", 10, "5")).unwrap_err();
    assert_eq!(
        message,
        "preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
    );
}

#[test]
fn budgets_are_kept_if_they_can_be() {
    let mut world = world(&[("a0", 1, "4", "a"), ("b0", 5, "4", "b"), ("c0", 20, "4", "c")]);
    let app: BTreeMap<_, _> = [("app".to_owned(), "a0".to_owned())].into();
    let budget = |allowed| Budget {
        selector: Selector::of_labels(&app),
        allowed,
        disrupted: Default::default(),
    };
    world.budgets.insert(Key::new("default", "b"), budget(1));
    assert_eq!(chosen(&world, &of("p", 10, "2")).0, "a");
    world.budgets.insert(Key::new("default", "b"), budget(0));
    assert_eq!(chosen(&world, &of("p", 10, "2")).0, "b");
}

#[test]
fn a_promise_is_kept_and_others_keep_off() {
    let mut world = world(&[("a0", 1, "4", "a"), ("b0", 20, "4", "b"), ("c0", 20, "4", "c")]);
    let high = of("high", 10, "4");
    assert_eq!(chosen(&world, &high).0, "a");
    world
        .nominated
        .insert(high.key.clone(), ("a".to_owned(), Arc::new(high.clone())));
    world.set_leaving(&Key::new("default", "a0"), true);
    let message = planned(&world, &high).unwrap_err();
    assert_eq!(
        message,
        "preemption: not eligible due to a terminating pod on the nominated node."
    );
    world.remove_pod(&Key::new("default", "a0"));
    // What is free now was cleared for another.
    assert!(decide(&of("low", 5, "1"), &world, &mut Chooser::new(1)).is_err());
    assert_eq!(
        decide(&of("higher", 11, "1"), &world, &mut Chooser::new(1)).unwrap(),
        "a"
    );
    assert_eq!(decide(&high, &world, &mut Chooser::new(1)).unwrap(), "a");
}

#[test]
fn those_that_repel_make_way_too() {
    let mut world = world(&[]);
    let term = json!([{ "labelSelector": { "matchLabels": { "app": "p" } }, "topologyKey": "zone" }]);
    let affinity = json!({ "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": term } });
    for (name, priority) in [("a", 5), ("b", 4), ("c", 6)] {
        let spec = json!({ "priority": priority, "affinity": affinity });
        put(&mut world, pod(&format!("{name}0"), json!({}), spec), name);
    }
    assert_eq!(chosen(&world, &of("p", 10, "1")), ("b".into(), vec!["b0".into()]));
    let mut peaceful = of("p", 10, "1");
    peaceful.may_preempt = false;
    let message = planned(&world, &peaceful).unwrap_err();
    assert_eq!(message, "preemption: not eligible due to preemptionPolicy=Never.");
}
