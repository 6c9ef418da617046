//! Decisions about nodes: tables of time, taints and tolerations; subnets against a naive model.

use super::{
    NOT_READY, UNREACHABLE,
    cidr::{Range, Ranges, Refused},
    evict::{Leave, leave},
    health, taints,
    zones::{Count, Health, Permit, Rates, Zones},
};
use jiff::Timestamp;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Pod, Taint},
};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn node(name: &str, ready: Option<&str>) -> Node {
    let conditions = ready.map(|status| json!([{ "type": "Ready", "status": status, "lastHeartbeatTime": at(0) }]));
    serde_json::from_value(json!({
        "metadata": { "name": name, "uid": name, "creationTimestamp": at(0) }, "status": { "conditions": conditions },
    }))
    .unwrap()
}

fn lease(seconds: i64) -> Lease {
    let renew = k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(at(seconds));
    serde_json::from_value(json!({ "spec": { "renewTime": renew } })).unwrap()
}

const GRACE: Duration = Duration::from_secs(40);
const STARTUP: Duration = Duration::from_secs(60);

#[test]
fn a_node_is_silent_after_its_last_word_by_our_clock() {
    let node = node("n", Some("True"));
    // Its own clock is an hour behind: that does not matter.
    let first = health::hear(None, &node, Some(&lease(-3600)), at(100));
    assert_eq!(health::deadline(&first, GRACE, STARTUP), at(140));
    let same = health::hear(Some(&first), &node, Some(&lease(-3600)), at(130));
    assert_eq!(health::deadline(&same, GRACE, STARTUP), at(140));
    let renewed = health::hear(Some(&same), &node, Some(&lease(-3590)), at(135));
    assert_eq!(health::deadline(&renewed, GRACE, STARTUP), at(175));
    let another = Node {
        metadata: kube::core::ObjectMeta {
            uid: Some("other".to_owned()),
            ..node.metadata.clone()
        },
        ..node
    };
    assert_eq!(health::hear(Some(&renewed), &another, None, at(400)).at, at(400));
}

#[test]
fn a_node_that_never_spoke_has_a_minute_from_its_making() {
    let node = node("n", None);
    let heard = health::hear(None, &node, None, at(10));
    assert_eq!(health::deadline(&heard, GRACE, STARTUP), at(60));
    let conditions = health::silenced(&node, at(60)).unwrap();
    assert_eq!(conditions.len(), 4);
    assert!(
        conditions
            .iter()
            .all(|it| it.reason.as_deref() == Some("NodeStatusNeverUpdated"))
    );
}

#[test]
fn what_we_wrote_is_not_its_word() {
    let mut node = node("n", Some("True"));
    let heard = health::hear(None, &node, None, at(0));
    node.status.as_mut().unwrap().conditions = health::silenced(&node, at(40));
    let after = health::hear(Some(&heard), &node, None, at(41));
    assert_eq!(after.at, at(0));
    assert_eq!(health::silenced(&node, at(50)), None, "said once");
}

fn keys(taints: &[Taint]) -> Vec<(String, String)> {
    taints.iter().map(|it| (it.key.clone(), it.effect.clone())).collect()
}

#[test]
fn taints_follow_conditions() {
    let pair = |key: &str, effect: &str| (key.to_owned(), effect.to_owned());
    let sick = node("n", Some("Unknown"));
    let new = taints::plan(&sick, Some(UNREACHABLE), at(9)).unwrap();
    assert_eq!(
        keys(&new),
        [pair(UNREACHABLE, "NoSchedule"), pair(UNREACHABLE, "NoExecute")]
    );
    assert!(new.iter().all(|it| it.time_added.as_ref().unwrap().0 == at(9)));
    let mut back = node("n", Some("True"));
    let foreign = Taint {
        key: "mine".to_owned(),
        effect: "NoExecute".to_owned(),
        ..Taint::default()
    };
    let spec = back.spec.get_or_insert_default();
    spec.taints = Some(new.into_iter().chain([foreign]).collect());
    let new = taints::plan(&back, None, at(20)).unwrap();
    assert_eq!(keys(&new), [pair("mine", "NoExecute")]);
    back.spec.as_mut().unwrap().taints = Some(new);
    assert_eq!(taints::plan(&back, None, at(30)), None);
    back.spec.as_mut().unwrap().unschedulable = Some(true);
    let new = taints::plan(&back, None, at(40)).unwrap();
    assert!(keys(&new).contains(&pair("node.kubernetes.io/unschedulable", "NoSchedule")));
    assert_eq!(
        taints::plan(&node("n", None), None, at(0)),
        None,
        "it has said nothing yet"
    );
}

#[test]
fn pressure_is_a_taint() {
    let mut node = node("n", Some("True"));
    let conditions = node.status.as_mut().unwrap().conditions.as_mut().unwrap();
    for kind in ["MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable"] {
        conditions.push(serde_json::from_value(json!({ "type": kind, "status": "True" })).unwrap());
    }
    let found: BTreeSet<String> = taints::plan(&node, None, at(0))
        .unwrap()
        .into_iter()
        .map(|it| it.key)
        .collect();
    let wanted = [
        "memory-pressure",
        "disk-pressure",
        "pid-pressure",
        "network-unavailable",
    ];
    assert_eq!(
        found,
        wanted.iter().map(|it| format!("node.kubernetes.io/{it}")).collect()
    );
}

/// Tolerations of a pod (made at 0) under `unreachable:NoExecute` added at 100, seen at 150.
#[test]
fn pods_leave_in_their_time() {
    let taint: Taint =
        serde_json::from_value(json!({ "key": UNREACHABLE, "effect": "NoExecute", "timeAdded": at(100) })).unwrap();
    let with = |seconds: Value| json!({ "key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds });
    let table = [
        (json!([]), Leave::Now),
        (json!([with(json!(300))]), Leave::At(at(400))),
        (json!([with(json!(300)), with(json!(60))]), Leave::At(at(160))),
        (json!([with(json!(50))]), Leave::Now),
        (json!([with(json!(0))]), Leave::Now),
        (json!([with(Value::Null)]), Leave::Never),
        (json!([{ "operator": "Exists" }]), Leave::Never),
        (
            json!([{ "key": UNREACHABLE, "operator": "Exists", "effect": "NoSchedule" }]),
            Leave::Now,
        ),
        (json!([{ "key": UNREACHABLE, "value": "x" }]), Leave::Now),
        (json!([{ "key": UNREACHABLE }]), Leave::Never),
        (json!([{ "key": NOT_READY, "operator": "Exists" }]), Leave::Now),
    ];
    for (tolerations, wanted) in table {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "p", "creationTimestamp": at(0) }, "spec": { "containers": [], "tolerations": tolerations },
        }))
        .unwrap();
        assert_eq!(
            leave(std::slice::from_ref(&taint), &pod, at(150)),
            wanted,
            "{tolerations}"
        );
    }
    let late: Pod = serde_json::from_value(json!({
        "metadata": { "name": "p", "creationTimestamp": at(140) },
        "spec": { "containers": [], "tolerations": [with(json!(30))] },
    }))
    .unwrap();
    assert_eq!(
        leave(&[taint], &late, at(150)),
        Leave::At(at(170)),
        "not from before it came"
    );
}

#[test]
fn health_of_a_zone() {
    let table = [
        ((3, 0), Health::Normal),
        ((0, 1), Health::Full),
        ((0, 5), Health::Full),
        ((1, 2), Health::Normal),
        ((2, 3), Health::Partial),
        ((45, 55), Health::Partial),
        ((46, 54), Health::Normal),
    ];
    for ((ready, unready), wanted) in table {
        assert_eq!(
            Count { ready, unready }.health(),
            wanted,
            "{ready} ready, {unready} not"
        );
    }
}

fn zones(ready: usize, unready: usize) -> Zones {
    let mut zones = Zones::new(Rates {
        usual: 0.1,
        slow: 0.01,
        large: 50,
    });
    for number in 0..ready + unready {
        zones.observe(&node(
            &format!("n{number}"),
            Some(if number < ready { "True" } else { "Unknown" }),
        ));
    }
    zones
}

#[test]
fn zones_are_emptied_slower_or_not_at_all() {
    let zone = super::zones::zone_of(&node("n", None));
    let mut usual = zones(9, 1);
    assert_eq!(usual.ask(&zone, at(0)), Permit::Granted);
    assert_eq!(usual.ask(&zone, at(3)), Permit::NotBefore(at(10)));
    assert_eq!(usual.ask(&zone, at(10)), Permit::Granted);
    assert_eq!(
        zones(2, 3).ask(&zone, at(0)),
        Permit::Never,
        "a small zone, mostly unwell"
    );
    let mut large = zones(40, 60);
    assert_eq!(large.ask(&zone, at(0)), Permit::Granted);
    assert_eq!(large.ask(&zone, at(1)), Permit::NotBefore(at(100)));
    let mut alone = zones(0, 3);
    assert!(alone.is_cut_off());
    assert_eq!(alone.ask(&zone, at(0)), Permit::Never);
    assert!(alone.observe(&node("n1", Some("True"))), "others are told");
    assert!(!alone.is_cut_off());
}

#[test]
fn subnets_of_both_families() {
    let nets = ["10.244.0.0/16".parse().unwrap(), "fd00:10::/48".parse().unwrap()];
    let mut ranges = Ranges::new(&nets, 24, 64).unwrap();
    let text = |it: Vec<ipnet::IpNet>| it.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(text(ranges.allocate("a").unwrap()), ["10.244.0.0/24", "fd00:10::/64"]);
    assert_eq!(
        text(ranges.allocate("b").unwrap()),
        ["10.244.1.0/24", "fd00:10:0:1::/64"]
    );
    assert_eq!(
        text(ranges.allocate("a").unwrap()),
        ["10.244.0.0/24", "fd00:10::/64"],
        "the same again"
    );
    let refused = ranges.occupy(&["10.244.1.0/24".parse().unwrap()], "c");
    assert!(matches!(&refused[..], [Refused::Taken { owner, .. }] if owner == "b"));
    assert!(
        Ranges::new(
            &["10.0.0.0/16".parse().unwrap(), "10.1.0.0/16".parse().unwrap()],
            24,
            64
        )
        .is_err()
    );
    assert!(Ranges::new(&["10.0.0.0/28".parse().unwrap()], 24, 64).is_err());
}

#[test]
fn a_full_range_says_so_and_rests_what_is_returned() {
    let mut range = Range::new("10.0.0.0/22".parse().unwrap(), 24).unwrap();
    for name in ["a", "b", "c", "d"] {
        range.allocate(name).unwrap();
    }
    assert_eq!(
        range.allocate("e"),
        Err(Refused::Exhausted("10.0.0.0/22".parse().unwrap()))
    );
    range.release("b");
    assert_eq!(range.allocate("e").unwrap().to_string(), "10.0.1.0/24");
}

proptest! {
    /// Whatever comes and goes, no two nodes have the same subnet, and a subnet is free when nobody has it.
    #[test]
    fn no_subnet_is_given_twice(steps in prop::collection::vec((any::<bool>(), 0usize..20), 1..200)) {
        let mut range = Range::new("10.0.0.0/20".parse().unwrap(), 24).unwrap();
        let mut model: BTreeMap<String, ipnet::IpNet> = BTreeMap::new();
        for (arrives, number) in steps {
            let name = format!("n{number}");
            if !arrives {
                range.release(&name);
                model.remove(&name);
                continue;
            }
            match range.allocate(&name) {
                Ok(net) => {
                    let others = model.iter().filter(|it| *it.0 != name);
                    prop_assert!(others.clone().all(|it| *it.1 != net));
                    prop_assert!(model.get(&name).is_none_or(|it| *it == net));
                    model.insert(name, net);
                }
                Err(_) => prop_assert_eq!(model.len(), 16),
            }
        }
        // A restart: what is noted again leaves exactly the rest.
        let mut again = Range::new("10.0.0.0/20".parse().unwrap(), 24).unwrap();
        for (name, net) in &model {
            again.occupy(*net, name).unwrap();
        }
        let mut free = 0;
        while let Ok(net) = again.allocate(&format!("new{free}")) {
            prop_assert!(!model.values().any(|it| *it == net));
            free += 1;
        }
        prop_assert_eq!(free + model.len(), 16);
    }
}

#[test]
fn later_is_after_now() {
    assert!(Leave::Now < Leave::At(at(0)) && Leave::At(at(0)) < Leave::Never);
    assert_eq!(super::lifecycle::until(at(5), at(2)), Duration::from_secs(3));
    assert_eq!(super::lifecycle::until(at(2), at(5)), Duration::ZERO);
}
