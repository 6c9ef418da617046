//! The queue in virtual time.

use crate::making::pod;
use fairlead_scheduler::{
    pod::{Key, PodInfo},
    queue::{LONGEST_PAUSE, LONGEST_WAIT, Place, Queue, pause},
    verdict::{Plugin, Plugins},
};
use proptest::prelude::*;
use serde_json::json;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

const S: Duration = Duration::from_secs(1);

fn of(name: &str, priority: i32) -> Arc<PodInfo> {
    Arc::new(pod(name, json!({}), json!({ "priority": priority })))
}

fn fit() -> Plugins {
    Plugins::from_iter([Plugin::NodeResourcesFit])
}

#[test]
fn pauses_double_to_ten_seconds() {
    let seconds: Vec<_> = (1..7).map(|it| pause(it).as_secs()).collect();
    assert_eq!(seconds, [1, 2, 4, 8, 10, 10]);
    assert_eq!(pause(0), S);
    assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
}

#[test]
fn the_important_come_first_and_then_the_early() {
    let mut queue = Queue::default();
    for (name, priority, at) in [("late", 0, 3), ("early", 0, 1), ("high", 10, 9), ("low", -5, 0)] {
        queue.set(&of(name, priority), S * at);
    }
    let order: Vec<_> = std::iter::from_fn(|| queue.pop(S * 10))
        .map(|it| it.key.name.clone())
        .collect();
    assert_eq!(order, ["high", "early", "late", "low"]);
}

#[test]
fn a_change_wakes_whom_it_may_help_after_the_pause() {
    let mut queue = Queue::default();
    let (a, b) = (of("a", 0), of("b", 0));
    queue.set(&a, S);
    queue.set(&b, S);
    assert!(queue.pop(S).is_some() && queue.pop(S).is_some());
    queue.failed(&a, fit(), S);
    queue.failed(&b, Plugins::from_iter([Plugin::NodePorts]), S);
    let moved = queue.wake(S, |_, objectors| objectors.contains(Plugin::NodeResourcesFit));
    assert_eq!(moved, 1);
    assert_eq!(queue.get(&a.key).unwrap().place, Place::Pausing(S * 2));
    assert_eq!(queue.next_tick(), Some(S * 2));
    assert_eq!(queue.pop(S), None);
    assert_eq!(queue.pop(S * 2).map(|it| it.key.clone()), Some(a.key.clone()));
    // After the pause a change wakes at once.
    assert_eq!(queue.wake(S * 3, |_, _| true), 1);
    assert_eq!(queue.pop(S * 3).map(|it| it.key.clone()), Some(b.key.clone()));
    // Its second failure makes it pause for two seconds.
    queue.failed(&b, fit(), S * 3);
    queue.wake(S * 3, |_, _| true);
    assert_eq!(queue.next_tick(), Some(S * 5));
}

#[test]
fn what_changes_about_the_pod_itself_counts() {
    let mut queue = Queue::default();
    let first = of("a", 0);
    queue.set(&first, S);
    queue.pop(S);
    queue.failed(&first, fit(), S);
    queue.set(&first, S * 5);
    assert_eq!(
        queue.get(&first.key).unwrap().place,
        Place::Waiting(S),
        "nothing changed"
    );
    queue.set(&of("a", 3), S * 5);
    assert_eq!(queue.get(&first.key).unwrap().place, Place::Active);
    // While it is being judged.
    queue.pop(S * 6);
    queue.set(&of("a", 4), S * 6);
    queue.failed(&of("a", 3), fit(), S * 6);
    assert!(matches!(queue.get(&first.key).unwrap().place, Place::Pausing(_)));
    assert_eq!(queue.pop(S * 8).unwrap().priority, 4);
}

#[test]
fn gates_hold_and_open() {
    let mut queue = Queue::default();
    let gated = pod("a", json!({}), json!({ "schedulingGates": [{ "name": "g" }] }));
    queue.set(&Arc::new(gated.clone()), S);
    assert_eq!(queue.pop(S * 1000), None);
    assert_eq!((queue.lengths().gated, queue.lengths().active), (1, 0));
    let mut open = gated;
    open.gates.clear();
    queue.set(&Arc::new(open), S * 1001);
    assert_eq!(queue.lengths().gated, 0);
    assert!(queue.pop(S * 1001).is_some());
    assert_eq!(queue.get(&Key::new("default", "a")).unwrap().added, S * 1001);
}

#[derive(Clone, Debug)]
enum Op {
    Set(u8, i32, bool),
    Remove(u8),
    Pop,
    Failed(u8, bool),
    Erred(u8),
    Wake(bool),
    Later(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..6_u8, -1..2, prop::bool::weighted(0.2)).prop_map(|(at, priority, gated)| Op::Set(at, priority, gated)),
        1 => (0..6_u8).prop_map(Op::Remove),
        4 => Just(Op::Pop),
        3 => (0..6_u8, any::<bool>()).prop_map(|(at, ports)| Op::Failed(at, ports)),
        1 => (0..6_u8).prop_map(Op::Erred),
        2 => any::<bool>().prop_map(Op::Wake),
        3 => (0..4000_u64).prop_map(Op::Later),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_and_nothing_comes_early(ops in prop::collection::vec(op(), 1..120)) {
        let mut queue = Queue::default();
        let mut now = S;
        let mut here = BTreeMap::<Key, Arc<PodInfo>>::new();
        // Pods that were taken out, and the time before which they must not come again.
        let (mut out, mut not_before) = (BTreeMap::<Key, Arc<PodInfo>>::new(), BTreeMap::<Key, Duration>::new());
        let key = |at: u8| Key::new("default", &format!("p{at}"));
        for it in ops {
            match it {
                Op::Set(at, priority, gated) => {
                    let gates = if gated { json!([{ "name": "g" }]) } else { json!([]) };
                    let spec = json!({ "priority": priority, "schedulingGates": gates });
                    let pod = Arc::new(pod(&format!("p{at}"), json!({}), spec));
                    queue.set(&pod, now);
                    here.insert(pod.key.clone(), pod);
                }
                Op::Remove(at) => {
                    queue.remove(&key(at));
                    for all in [&mut here, &mut out] {
                        all.remove(&key(at));
                    }
                    not_before.remove(&key(at));
                }
                Op::Pop => {
                    let Some(pod) = queue.pop(now) else {
                        prop_assert_eq!(queue.lengths().active, 0);
                        continue;
                    };
                    prop_assert!(pod.gates.is_empty());
                    prop_assert_eq!(Some(&pod), here.get(&pod.key));
                    prop_assert!(!out.contains_key(&pod.key), "taken out twice");
                    prop_assert!(not_before.get(&pod.key).is_none_or(|it| *it <= now), "too early");
                    for other in here.values().filter(|it| queue.get(&it.key).unwrap().place == Place::Active) {
                        prop_assert!(other.priority <= pod.priority);
                    }
                    out.insert(pod.key.clone(), pod);
                }
                Op::Failed(at, ports) => {
                    if let Some(tried) = out.remove(&key(at)) {
                        let objector = if ports { Plugin::NodePorts } else { Plugin::NodeResourcesFit };
                        queue.failed(&tried, Plugins::from_iter([objector]), now);
                        let attempts = queue.get(&key(at)).unwrap().attempts;
                        not_before.insert(key(at), now + pause(attempts));
                    }
                }
                Op::Erred(at) => {
                    if let Some(tried) = out.remove(&key(at)) {
                        queue.erred(&tried.key, &tried.uid, now);
                        let attempts = queue.get(&key(at)).unwrap().attempts;
                        not_before.insert(key(at), now + pause(attempts));
                    }
                }
                Op::Wake(ports) => {
                    let objector = if ports { Plugin::NodePorts } else { Plugin::NodeResourcesFit };
                    queue.wake(now, |_, objectors| objectors.contains(objector));
                    for pod in here.values() {
                        let entry = queue.get(&pod.key).unwrap();
                        let waits = matches!(entry.place, Place::Waiting(_));
                        prop_assert!(!(waits && entry.objectors.contains(objector)));
                    }
                }
                Op::Later(ms) => now += Duration::from_millis(ms),
            }
            // Everyone is in one place, and the places know.
            let lengths = queue.lengths();
            let count = |which: fn(Place) -> bool| here.keys().filter(|it| which(queue.get(it).unwrap().place)).count();
            prop_assert_eq!(queue.keys().count(), here.len());
            prop_assert_eq!(lengths.active, count(|it| it == Place::Active));
            prop_assert_eq!(lengths.pausing, count(|it| matches!(it, Place::Pausing(_))));
            prop_assert_eq!(lengths.waiting, count(|it| matches!(it, Place::Waiting(_))));
            prop_assert_eq!(lengths.gated, count(|it| it == Place::Gated));
            prop_assert_eq!(count(|it| it == Place::Out), out.len());
        }
        // In the end all come that may, whatever was said of them.
        now += LONGEST_WAIT + LONGEST_PAUSE;
        let mut came = 0;
        while queue.pop(now).is_some() {
            came += 1;
        }
        let gated = queue.lengths().gated;
        prop_assert_eq!(came + gated + out.len(), here.len());
    }
}
