//! The packet table (see `proxy::testing::table`) against `plan::trace`, and what must hold in any world.

use proptest::prelude::*;
use proxy::{
    model::{Change, Event, ObjectName, ServiceMap},
    plan::{
        Decision, Plan,
        compile::{Changed, Planner, compile},
        trace::{Origin, Packet, State, TraceIndex, Verdict, trace},
    },
    testing::{self, Rng},
};
use std::collections::{BTreeMap, BTreeSet};

#[test]
fn every_row_of_the_table() {
    let cases = testing::table();
    println!("{} rows", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        let plan = compile(&case.map(), &case.node);
        let got = trace(&plan, &case.node, &case.packet, &case.state);
        if got != case.expected {
            wrong.push(format!("{}\n  want {:?}\n  got  {got:?}", case.name, case.expected));
        }
    }
    let shown = wrong[..wrong.len().min(20)].join("\n");
    assert!(wrong.is_empty(), "{} of {} rows\n{shown}", wrong.len(), cases.len());
}

/// Guards the table itself: an axis that fell out of a loop would make every row pass.
#[test]
fn the_table_covers_its_axes() {
    let cases = testing::table();
    for words in [
        ["ClusterIP ", "NodePort ", "LoadBalancer ", "ExternalIP "].as_slice(),
        &["IPv4", "IPv6"],
        &["TCP", "UDP", "SCTP"],
        &["ITP=Cluster", "ITP=Local", "ETP=Cluster", "ETP=Local"],
        &[
            "endpoints=[]",
            "endpoints=[a]",
            "endpoints=[b]",
            "endpoints=[c d]",
            "endpoints=[a b c d e f]",
        ],
        &["Plain", "OtherPolicyLocal", "Affinity", "Stuck ", "StuckToGone"],
        &["from pod", "from host", "from outside"],
    ] {
        for word in words {
            assert!(cases.iter().any(|case| case.name.contains(word)), "{word}");
        }
    }
    for verdict in [
        Verdict::Pass,
        Verdict::Reject,
        Verdict::DropNoLocalEndpoints,
        Verdict::DropSourceRange,
    ] {
        assert!(cases.iter().any(|case| case.expected == verdict), "{verdict:?}");
    }
}

fn packets(seed: u64) -> impl Iterator<Item = Packet> {
    let mut rng = Rng::new(seed);
    (0..50).map(move |_| testing::random_packet(&mut rng))
}

/// Random worlds must reach every verdict, or the properties below say little.
#[test]
fn random_worlds_are_not_boring() {
    let mut seen = BTreeSet::new();
    let (mut conflicts, mut health_checks, mut draining) = (0, 0, 0);
    for seed in 0..200 {
        let (map, node) = testing::random_world(seed);
        let plan = compile(&map, &node);
        for packet in packets(seed) {
            let verdict = format!("{:?}", trace(&plan, &node, &packet, &State::default()));
            seen.extend(verdict.split('(').next().map(str::to_owned));
        }
        for service in plan.services.values() {
            conflicts += service
                .skipped
                .iter()
                .filter(|s| s.reason.contains("already belongs"))
                .count();
            health_checks += usize::from(service.health_check.is_some());
            let backends = service.ports.iter().flat_map(|port| &port.backends);
            draining += backends.filter(|b| !b.in_cluster && !b.in_local).count();
        }
    }
    assert_eq!(seen.len(), 5, "{seen:?}");
    assert!(conflicts > 50, "{conflicts}");
    assert!(health_checks > 50, "{health_checks}");
    assert!(draining > 50, "{draining}");
}

proptest! {
    // A failure prints its seed; there is nothing to keep in a file.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the events and however they are batched: the plan that was kept in step is the plan made anew, and
    /// `update` returns exactly the services that differ.
    #[test]
    fn keeping_in_step_equals_starting_over(seed: u64, n in 1usize..80, batch in 1usize..12) {
        let mut rng = Rng::new(!seed);
        let (mut map, mut planner, mut before) = (ServiceMap::default(), Planner::default(), Plan::default());
        let mut node = testing::node();
        let mut touched = BTreeSet::new();
        let events = testing::random_events(seed, n);
        let last = events.len() - 1;
        for (at, event) in events.into_iter().enumerate() {
            touched.append(&mut map.apply(event));
            if at % batch != 0 && at != last {
                continue;
            }
            if rng.one_in(10) {
                node = testing::random_node(&mut rng);
            }
            let returned = planner.update(&map, &node, Changed::Services(&std::mem::take(&mut touched)));
            let whole = compile(&map, &node);
            prop_assert_eq!(planner.plan(), &whole);
            let names = before.services.keys().chain(whole.services.keys());
            let different: BTreeSet<ObjectName> =
                names.filter(|name| before.services.get(*name) != whole.services.get(*name)).cloned().collect();
            prop_assert_eq!(returned, different);
            before = whole;
        }
        prop_assert!(planner.update(&map, &node, Changed::All).is_empty(), "nothing has changed since");
    }

    /// Only the last version of each object counts, not the order in which they came.
    #[test]
    fn order_does_not_matter(seed: u64, shuffle: u64) {
        let node = testing::random_node(&mut Rng::new(seed));
        let mut map = ServiceMap::default();
        let mut newest = BTreeMap::new();
        for event in testing::random_events(seed, 40) {
            match &event {
                Event::Service(Change::Apply(service)) => newest.insert((0, service.name.clone()), event.clone()),
                Event::Service(Change::Delete(name)) => newest.remove(&(0, name.clone())),
                Event::Slice(Change::Apply(slice)) => newest.insert((1, slice.name.clone()), event.clone()),
                Event::Slice(Change::Delete(name)) => newest.remove(&(1, name.clone())),
                _ => None,
            };
            map.apply(event);
        }
        let mut events: Vec<_> = newest.into_values().collect();
        let mut rng = Rng::new(shuffle);
        let (mut again, mut planner) = (ServiceMap::default(), Planner::default());
        while !events.is_empty() {
            let touched = again.apply(events.swap_remove(rng.below(events.len())));
            planner.update(&again, &node, Changed::Services(&touched));
        }
        prop_assert_eq!(planner.plan(), &compile(&map, &node));
    }

    #[test]
    fn the_index_traces_as_the_plan_does(seed: u64) {
        let (map, node) = testing::random_world(seed);
        let plan = compile(&map, &node);
        let index = TraceIndex::new(&plan);
        for packet in packets(seed) {
            let mut state = State::default();
            if let Verdict::Forward(targets) = trace(&plan, &node, &packet, &state) {
                state.affinity.insert((packet.source.ip(), packet.destination), targets[0].addr);
            }
            prop_assert_eq!(index.trace(&node, &packet, &state), trace(&plan, &node, &packet, &state));
        }
    }

    /// No frontend belongs to two ports, everything is sorted, and a decision to forward has somebody to forward to.
    #[test]
    fn plans_are_sound(seed: u64) {
        let (map, node) = testing::random_world(seed);
        let plan = compile(&map, &node);
        let mut owned = BTreeSet::new();
        for service in plan.services.values() {
            let keys: Vec<_> = service.ports.iter().map(|p| (&p.name, p.protocol, p.family)).collect();
            prop_assert!(keys.is_sorted_by(|a, b| a < b));
            for port in &service.ports {
                prop_assert!(!port.frontends.is_empty());
                prop_assert!(port.backends.is_sorted_by(|a, b| a.addr < b.addr));
                prop_assert!(port.frontends.is_sorted_by(|a, b| (a.addr, a.port) < (b.addr, b.port)));
                prop_assert!(port.backends.iter().all(|b| b.on_node || !b.in_local));
                for frontend in &port.frontends {
                    prop_assert!(owned.insert((frontend.addr, frontend.port, port.protocol)));
                    for decision in [frontend.internal, frontend.external] {
                        let forwards = matches!(decision, Decision::Cluster | Decision::Local);
                        prop_assert_eq!(forwards, port.selectable(decision).next().is_some());
                    }
                }
            }
        }
    }

    /// What a packet is forwarded to is a backend of the frontend that it asked for, and its reply comes back; a drop
    /// never hides a usable endpoint on this node; clients on this node reach the whole cluster by external addresses.
    #[test]
    fn verdicts_agree_with_the_plan(seed: u64) {
        let (map, node) = testing::random_world(seed);
        let plan = compile(&map, &node);
        let index = TraceIndex::new(&plan);
        for packet in packets(seed) {
            let verdict = index.trace(&node, &packet, &State::default());
            let Some((name, port, frontend)) = index.find(packet.destination, packet.protocol) else {
                prop_assert_eq!(verdict, Verdict::Pass);
                continue;
            };
            let service = map.service(name).unwrap();
            match verdict {
                Verdict::Pass => prop_assert!(false, "a frontend was passed by"),
                Verdict::Forward(targets) => {
                    prop_assert!(frontend.sources.allow(packet.source.ip()));
                    for target in targets {
                        let backend = port.backends.iter().find(|b| b.addr == target.addr);
                        prop_assert!(backend.is_some_and(|b| b.in_cluster || b.in_local));
                        let on_node = backend.is_some_and(|b| b.on_node);
                        prop_assert!(on_node || packet.origin != Origin::Outside || target.masquerade);
                    }
                }
                Verdict::Reject => prop_assert!(!port.backends.iter().any(|b| b.in_cluster || b.in_local)),
                Verdict::DropNoLocalEndpoints => {
                    prop_assert!(!port.backends.iter().any(|b| b.in_local));
                    let cluster_ip = service.cluster_ips.contains(&frontend.addr);
                    prop_assert!(cluster_ip || packet.origin == Origin::Outside);
                }
                Verdict::DropSourceRange => prop_assert!(!service.source_ranges.is_empty()),
            }
        }
    }

    /// An endpoint keeps its flows (is a backend) exactly as long as some slice says ready or serving.
    #[test]
    fn backends_are_the_endpoints_that_serve(seed: u64) {
        let (map, node) = testing::random_world(seed);
        for (name, service) in &compile(&map, &node).services {
            for port in &service.ports {
                let mut want = BTreeSet::new();
                for slice in map.slices(name).iter().filter(|slice| slice.family == port.family) {
                    for target in slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol) {
                        let serving = slice.endpoints.iter().filter(|e| e.ready || e.serving);
                        want.extend(serving.map(|e| (e.addr, target.port.get())));
                    }
                }
                let got: BTreeSet<_> = port.backends.iter().map(|b| (b.addr.ip(), b.addr.port())).collect();
                prop_assert_eq!(got, want);
            }
        }
    }
}
