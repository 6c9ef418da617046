//! Properties of lowering and diffing, over random plans: every prefix of the ops is legal, a packet may straddle
//! writes, faults heal, a restart changes nothing, ids are never rebound while something refers to them.

mod random_plans;

use proptest::{collection::vec, option, prelude::*};
use proxy::{
    dataplane::{
        Changed, Dataplane, Reconciler,
        ebpf::{
            diff::diff,
            image::{Image, Observed, Op},
            judge::{Judgement, Lookups, judge, judge_flow, judge_straddling},
            lower::{Capacity, Lowerer},
        },
        fake::{Fake, apply},
    },
    error::ApplyError,
    model::{NodeView, ObjectName, Protocol},
    plan::{
        Backend, Decision, Frontend, Plan, PortPlan,
        trace::{Origin, Packet, State, Target, Verdict, trace},
    },
};
use random_plans::{ENDPOINTS, PORT, PORTS, SERVICES, Spec, VIPS, client, endpoint, spec, vip};
use std::{
    collections::{BTreeMap, BTreeSet},
    mem::discriminant,
    net::SocketAddr,
};

/// Every packet that a plan may distinguish.
fn packets() -> Vec<Packet> {
    let mut packets = Vec::new();
    for family in 0..2 {
        for number in 0..VIPS {
            for (_, protocol) in PORTS {
                for origin in [Origin::Pod, Origin::Host, Origin::Outside] {
                    for source in [
                        client(family, 0),
                        client(family, 1),
                        client(family, 3),
                        endpoint(family, 0).ip(),
                    ] {
                        packets.push(Packet {
                            source: SocketAddr::new(source, 40_000),
                            destination: SocketAddr::new(vip(family, number), PORT.get()),
                            protocol,
                            origin,
                        });
                    }
                }
            }
        }
    }
    packets
}

/// The port and decision that a plan has for a packet. SCTP is not translated: no packet has a frontend then.
fn find<'a>(plan: &'a Plan, packet: &Packet) -> Option<(&'a ObjectName, &'a PortPlan, &'a Frontend, Decision)> {
    let (addr, protocol) = (packet.destination.ip(), packet.protocol);
    plan.services
        .iter()
        .flat_map(|(name, service)| service.ports.iter().map(move |port| (name, port)))
        .filter(|(_, port)| port.protocol == protocol && protocol != Protocol::Sctp)
        .flat_map(|(name, port)| port.frontends.iter().map(move |frontend| (name, port, frontend)))
        .find(|(_, _, frontend)| frontend.addr == addr)
        .map(|(name, port, frontend)| {
            let decision = if packet.origin == Origin::Outside {
                frontend.external
            } else {
                frontend.internal
            };
            (name, port, frontend, decision)
        })
}

fn selectable(port: &PortPlan, decision: Decision, packet: &Packet) -> Vec<Target> {
    let chosen = port.backends.iter().filter(|backend| match decision {
        Decision::Cluster => backend.in_cluster,
        Decision::Local => backend.in_local,
        Decision::Reject | Decision::Drop => false,
    });
    let target = |backend: &Backend| Target {
        addr: backend.addr,
        masquerade: (packet.origin == Origin::Pod && packet.source.ip() == backend.addr.ip())
            || (packet.origin == Origin::Outside && !backend.on_node),
    };
    chosen.map(target).collect()
}

/// What a plan means, said once more and independently of lowering.
fn meaning(plan: &Plan, packet: &Packet) -> Verdict {
    match find(plan, packet) {
        None => Verdict::Pass,
        Some((_, _, frontend, _)) if !frontend.sources.allow(packet.source.ip()) => Verdict::DropSourceRange,
        Some((_, _, _, Decision::Reject)) => Verdict::Reject,
        Some((_, _, _, Decision::Drop)) => Verdict::DropNoLocalEndpoints,
        Some((_, port, _, decision)) => Verdict::Forward(selectable(port, decision, packet)),
    }
}

/// Addresses that a packet may reach while `old` becomes `new`: those of either plan, and new endpoints under the old
/// policy, of the same port (sets are rewritten in place) or, after a restart, of the frontend's new port (the set was
/// recognised by its frontends).
fn allowed(old: &Plan, new: &Plan, packet: &Packet, restarted: bool) -> BTreeSet<SocketAddr> {
    let mut allowed = BTreeSet::new();
    for plan in [old, new] {
        if let Verdict::Forward(targets) = meaning(plan, packet) {
            allowed.extend(targets.iter().map(|target| target.addr));
        }
    }
    if let Some((name, port, _, decision)) = find(old, packet) {
        let later = new.services.get(name).and_then(|service| {
            let same = |other: &&PortPlan| (&other.name, other.family) == (&port.name, port.family);
            service.ports.iter().find(same)
        });
        let heir = find(new, packet).filter(|_| restarted).map(|(_, port, ..)| port);
        let ports = later.into_iter().chain(heir);
        allowed.extend(
            ports
                .flat_map(|port| selectable(port, decision, packet))
                .map(|target| target.addr),
        );
    }
    allowed
}

fn assert_means(image: &Image, plan: &Plan, context: &str) {
    for packet in packets() {
        let judged = judge(image, &packet, &State::default());
        assert_eq!(
            judged,
            Judgement::Decided(meaning(plan, &packet)),
            "{context}: {packet:?}"
        );
    }
}

fn changed(old: &Plan, new: &Plan) -> Changed {
    let names = old.services.keys().chain(new.services.keys());
    Changed::Services(
        names
            .filter(|name| old.services.get(*name) != new.services.get(*name))
            .cloned()
            .collect(),
    )
}

fn reconciler() -> Reconciler<Fake> {
    Reconciler::new(Fake::new(Capacity::default()))
}

/// The images before, between and after the ops.
fn prefixes(before: &Observed, ops: &[<Fake as Dataplane>::Op]) -> Vec<Image> {
    let mut kernel = before.clone();
    let mut images = vec![kernel.image.clone()];
    for op in ops {
        apply(&mut kernel, op);
        images.push(kernel.image.clone());
    }
    images
}

fn same_kind(verdict: &Verdict, one_of: [&Verdict; 2]) -> bool {
    one_of.iter().any(|other| discriminant(*other) == discriminant(verdict))
}

fn assert_each_prefix_is_legal(images: &[Image], old: &Plan, new: &Plan, restarted: bool) {
    for packet in packets() {
        let (before, after) = (meaning(old, &packet), meaning(new, &packet));
        let allowed = allowed(old, new, &packet, restarted);
        for (at, image) in images.iter().enumerate() {
            let judged = judge(image, &packet, &State::default());
            let Judgement::Decided(verdict) = &judged else {
                panic!("after {at} ops {packet:?} is {judged:?}")
            };
            assert!(
                same_kind(verdict, [&before, &after]),
                "after {at} ops {packet:?} is {judged:?}"
            );
            if let Verdict::Forward(targets) = verdict {
                assert!(!targets.is_empty());
                let wrong = targets.iter().find(|target| !allowed.contains(&target.addr));
                assert_eq!(wrong, None, "after {at} ops {packet:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn the_image_means_what_the_plan_says(specs in vec(spec(), 1..4)) {
        let mut reconciler = reconciler();
        let mut last = Plan::default();
        for spec in specs {
            let plan = spec.plan();
            reconciler.sync(&plan, &changed(&last, &plan)).unwrap();
            assert_means(&reconciler.dataplane().kernel.image, &plan, "after a sync");
            // The referee of the fake has watched each op; the incremental image is the whole one.
            prop_assert_eq!(reconciler.sync(&plan, &Changed::All).unwrap().ops, 0);
            reconciler.forget();
            prop_assert_eq!(reconciler.sync(&plan, &changed(&last, &plan)).unwrap().ops, 0);
            prop_assert_eq!(reconciler.have().unwrap(), reconciler.dataplane().kernel.image.clone());
            last = plan;
        }
    }

    /// The image and the plan's executable meaning. Left out is where they are known to differ: SCTP is not translated,
    /// and the programs masquerade a backend that reaches itself only if it is a pod of this node.
    #[test]
    fn the_image_agrees_with_trace(spec in spec()) {
        let plan = spec.plan();
        let mut reconciler = reconciler();
        reconciler.sync(&plan, &Changed::All).unwrap();
        let own = [endpoint(0, 0).ip(), endpoint(1, 0).ip()];
        for packet in packets() {
            let hairpin = packet.origin != Origin::Pod && own.contains(&packet.source.ip());
            if packet.protocol != Protocol::Sctp && !hairpin {
                let traced = trace(&plan, &NodeView::default(), &packet, &State::default());
                let judged = judge(&reconciler.dataplane().kernel.image, &packet, &State::default());
                prop_assert_eq!(judged, Judgement::Decided(traced), "{:?}", packet);
            }
        }
    }

    #[test]
    fn every_prefix_serves_old_or_new(old in spec(), new in spec()) {
        let (old, new) = (old.plan(), new.plan());
        let mut reconciler = reconciler();
        reconciler.sync(&old, &Changed::All).unwrap();
        let before = reconciler.dataplane().kernel.clone();
        reconciler.dataplane_mut().log.clear();
        reconciler.sync(&new, &changed(&old, &new)).unwrap();
        assert_each_prefix_is_legal(&prefixes(&before, &reconciler.dataplane().log), &old, &new, false);
    }

    #[test]
    fn every_prefix_serves_old_or_new_after_a_restart_too(old in spec(), new in spec()) {
        let (old, new) = (old.plan(), new.plan());
        let mut first = reconciler();
        first.sync(&old, &Changed::All).unwrap();
        let before = first.dataplane().kernel.clone();
        let mut second = Reconciler::new(Fake::restart(before.clone(), Capacity::default()));
        second.sync(&new, &Changed::All).unwrap();
        assert_each_prefix_is_legal(&prefixes(&before, &second.dataplane().log), &old, &new, true);
        assert_means(&second.dataplane().kernel.image, &new, "after a restart");
    }

    #[test]
    fn a_packet_may_straddle_writes(old in spec(), new in spec(), steps in vec((0usize..1000, 0usize..1000, 0usize..1000, 0usize..1000, any::<u32>()), 12)) {
        let (old, new) = (old.plan(), new.plan());
        let mut reconciler = reconciler();
        reconciler.sync(&old, &Changed::All).unwrap();
        let before = reconciler.dataplane().kernel.clone();
        reconciler.dataplane_mut().log.clear();
        reconciler.sync(&new, &changed(&old, &new)).unwrap();
        let images = prefixes(&before, &reconciler.dataplane().log);
        for (a, b, c, d, hash) in steps {
            let mut at = [a, b, c, d].map(|at| at % images.len());
            at.sort_unstable();
            let [frontend, ranges, slot, backend] = at.map(|at| &images[at]);
            let lookups = Lookups { frontend, ranges, slot, backend };
            for packet in packets() {
                let allowed = allowed(&old, &new, &packet, false);
                let flow = judge_flow(lookups, &packet, hash);
                for judged in [judge_straddling(lookups, &packet, &State::default()), flow] {
                    // Stale is noticed; a range that has just gone costs the sender one packet.
                    let Judgement::Decided(Verdict::Forward(targets)) = judged else { continue };
                    let wrong = targets.iter().find(|target| !allowed.contains(&target.addr));
                    prop_assert_eq!(wrong, None, "{:?} {:?}", at, packet);
                }
            }
        }
    }

    #[test]
    fn faults_then_one_good_sync_equal_the_plan(steps in vec((spec(), option::of(0usize..30), any::<bool>()), 1..8), end in spec()) {
        let mut reconciler = reconciler();
        let mut last = Plan::default();
        for (spec, fail_after, audit) in steps {
            let plan = spec.plan();
            if let Some(ops) = fail_after {
                reconciler.dataplane_mut().fail_after(ops);
            }
            if audit {
                reconciler.forget();
            }
            // The referee panics on any illegal op, above all on an id that is rebound too early.
            let _ = reconciler.sync(&plan, &changed(&last, &plan));
            last = plan;
        }
        let end = end.plan();
        reconciler.dataplane_mut().fail_after(usize::MAX);
        reconciler.sync(&end, &changed(&last, &end)).unwrap();
        assert_means(&reconciler.dataplane().kernel.image, &end, "after faults");
        prop_assert_eq!(reconciler.sync(&end, &Changed::All).unwrap().ops, 0);
        reconciler.forget();
        prop_assert_eq!(reconciler.sync(&end, &Changed::All).unwrap().ops, 0);
    }

    #[test]
    fn a_restart_with_the_same_plan_is_0_ops(specs in vec(spec(), 1..4)) {
        let mut reconciler = reconciler();
        let mut plan = Plan::default();
        for spec in specs {
            let next = spec.plan();
            reconciler.sync(&next, &changed(&plan, &next)).unwrap();
            plan = next;
        }
        let kernel = reconciler.dataplane().kernel.clone();
        let mut restarted = Reconciler::new(Fake::restart(kernel.clone(), Capacity::default()));
        restarted.sync(&plan, &Changed::All).unwrap();
        prop_assert_eq!(&restarted.dataplane().log, &[]);
        prop_assert_eq!(&restarted.dataplane().kernel, &kernel);
    }

    /// Generations that a flow remembers never come back, whatever restarts, faults and plans come between.
    #[test]
    fn a_generation_is_one_binding(steps in vec((spec(), option::of(0usize..30)), 1..10)) {
        let mut fake = Fake::new(Capacity::default());
        let mut bindings = BTreeMap::new();
        for (spec, fail_after) in steps {
            if let Some(ops) = fail_after {
                fake.fail_after(ops);
            }
            let mut reconciler = Reconciler::new(fake);
            let _ = reconciler.sync(&spec.plan(), &Changed::All);
            for op in &reconciler.dataplane().log {
                if let Op::PutBackendV4(id, backend) = op {
                    let addr = bindings.entry((*id, backend.generation)).or_insert(backend.addr);
                    prop_assert_eq!(*addr, backend.addr, "{}", op);
                }
            }
            fake = Fake::restart(reconciler.dataplane().kernel.clone(), Capacity::default());
        }
    }

    #[test]
    fn a_full_map_stops_nobody_else(
        specs in vec(spec(), 1..5),
        frontends in 1u32..5,
        backends in 2u32..12,
        slots in 1u32..20,
        ranges in 0u32..4,
    ) {
        let capacity = Capacity { frontends, backends, slots, ranges };
        let mut reconciler = Reconciler::new(Fake::new(capacity));
        let mut last = Plan::default();
        for spec in specs {
            let plan = spec.plan();
            let report = reconciler.sync(&plan, &changed(&last, &plan)).unwrap();
            let deferred: BTreeSet<_> = report.deferred.iter().map(|(name, _)| name.clone()).collect();
            for (_, error) in &report.deferred {
                let is_full = matches!(error, ApplyError::Full { .. });
                prop_assert!(is_full, "{}", error);
            }
            let image = &reconciler.dataplane().kernel.image;
            for packet in packets() {
                match find(&plan, &packet) {
                    Some((name, ..)) if deferred.contains(name) => {
                        // As it was: whatever that is, it leads somewhere.
                        let judged = judge(image, &packet, &State::default());
                        prop_assert_ne!(judged, Judgement::StaleSlot);
                    }
                    Some(_) => {
                        let judged = judge(image, &packet, &State::default());
                        prop_assert_eq!(judged, Judgement::Decided(meaning(&plan, &packet)));
                    }
                    None => {}
                }
            }
            prop_assert_eq!(reconciler.have().unwrap(), image.clone());
            prop_assert_eq!(reconciler.sync(&plan, &changed(&plan, &plan)).unwrap().ops, 0);
            last = plan;
        }
        // Room again: nothing may be left over.
        let report = reconciler.sync(&Plan::default(), &Changed::All).unwrap();
        prop_assert!(report.deferred.is_empty());
        prop_assert_eq!(&reconciler.dataplane().kernel.image, &Image::default());
    }

    /// Whatever somebody else did to the maps, an audit repairs it.
    #[test]
    fn an_audit_repairs(spec in spec(), other in spec()) {
        let (plan, other) = (spec.plan(), other.plan());
        let mut vandal = reconciler();
        vandal.sync(&other, &Changed::All).unwrap();
        let mut reconciler = reconciler();
        reconciler.sync(&plan, &Changed::All).unwrap();
        let kernel = &mut reconciler.dataplane_mut().kernel.image;
        kernel.frontends_v4 = vandal.dataplane().kernel.image.frontends_v4.clone();
        kernel.ranges_v6 = vandal.dataplane().kernel.image.ranges_v6.clone();
        kernel.slots.retain(|key, _| kernel.frontends_v4.values().any(|fe| fe.internal_set == key.set));
        reconciler.forget();
        // The vandal's frontends may lead anywhere; only the result counts, so no referee.
        let have = reconciler.dataplane_mut().observe().unwrap();
        let mut want = Image::default();
        for (name, service) in &plan.services {
            want.merge(&reconciler.dataplane_mut().lower(name, Some(service), &have).unwrap().image);
        }
        let mut kernel = reconciler.dataplane().kernel.clone();
        diff(&have, &want).iter().for_each(|op| apply(&mut kernel, op));
        prop_assert_eq!(&kernel.image, &want);
        assert_means(&kernel.image, &plan, "after an audit");
    }
}

#[test]
fn a_full_map_is_named_with_its_flag() {
    let spec = Spec {
        frontends: std::iter::once(Some((0, 0, false, false, 0, false)))
            .chain([None; 5])
            .collect(),
        backends: vec![vec![3; ENDPOINTS]; SERVICES * PORTS.len() * 2],
        affinity: vec![false; SERVICES],
    };
    let capacity = Capacity {
        backends: 4,
        ..Capacity::default()
    };
    let mut reconciler = Reconciler::new(Fake::new(capacity));
    let report = reconciler.sync(&spec.plan(), &Changed::All).unwrap();
    let (name, error) = &report.deferred[0];
    assert_eq!(name.to_string(), "default/s0");
    assert_eq!(
        error.to_string(),
        "map BACKENDS_V4 is full at 4 entries; raise --max-backends"
    );
    assert_eq!(report.ops, 0);
}

#[test]
fn a_deferred_service_gets_in_when_another_makes_room() {
    let balance = |owner| Spec {
        frontends: std::iter::once(Some((owner, 0, false, false, 0, false)))
            .chain([None; 5])
            .collect(),
        backends: vec![vec![3; ENDPOINTS]; SERVICES * PORTS.len() * 2],
        affinity: vec![false; SERVICES],
    };
    let (first, mut both) = (balance(0).plan(), balance(1).plan());
    both.services.extend(first.services.clone());
    let second = balance(1).plan();
    let capacity = Capacity {
        backends: 5,
        ..Capacity::default()
    };
    let mut reconciler = Reconciler::new(Fake::new(capacity));
    reconciler.sync(&first, &Changed::All).unwrap();
    // Replaced in one sync: the second round has the room that the first one made.
    let report = reconciler.sync(&second, &changed(&first, &second)).unwrap();
    assert!(report.deferred.is_empty(), "{report:?}");
    assert_means(&reconciler.dataplane().kernel.image, &second, "after the second round");
}

#[test]
fn sctp_is_reported_once_per_port() {
    let mut frontends = vec![Some((0, 2, false, false, 0, false)); VIPS * 2];
    frontends[0] = Some((0, 0, false, false, 0, false));
    let spec = Spec {
        frontends,
        backends: vec![vec![3; ENDPOINTS]; SERVICES * PORTS.len() * 2],
        affinity: vec![false; SERVICES],
    };
    let mut reconciler = reconciler();
    let report = reconciler.sync(&spec.plan(), &Changed::All).unwrap();
    let skipped: Vec<_> = report.skipped.iter().map(ToString::to_string).collect();
    assert_eq!(
        skipped,
        ["Service default/s0: spec.ports[name=sig].protocol: SCTP: not translated by the eBPF dataplane yet"]
    );
    assert_eq!(reconciler.dataplane().kernel.image.frontends_v4.len(), 1);
}

#[test]
fn affinity_is_shared_by_the_frontends_of_a_set() {
    let spec = Spec {
        frontends: vec![Some((0, 0, false, false, 0, false)); VIPS * 2],
        backends: vec![vec![3; ENDPOINTS]; SERVICES * PORTS.len() * 2],
        affinity: vec![true; SERVICES],
    };
    let mut reconciler = reconciler();
    reconciler.sync(&spec.plan(), &Changed::All).unwrap();
    let packet = packets()[0];
    let other = SocketAddr::new(vip(0, 1), PORT.get());
    let mut state = State::default();
    state.affinity.insert((packet.source.ip(), other), endpoint(0, 2));
    let expected = Target {
        addr: endpoint(0, 2),
        masquerade: false,
    };
    let image = &reconciler.dataplane().kernel.image;
    assert_eq!(
        judge(image, &packet, &state),
        Judgement::Decided(Verdict::Forward(vec![expected]))
    );
    state
        .affinity
        .insert((packet.source.ip(), other), endpoint(0, ENDPOINTS));
    let Judgement::Decided(Verdict::Forward(targets)) = judge(image, &packet, &state) else {
        panic!()
    };
    assert_eq!(
        targets.len(),
        ENDPOINTS,
        "a backend that is not in the set binds nobody"
    );
}

#[test]
fn masquerade_all_marks_cluster_ips_only() {
    let spec = Spec {
        frontends: vec![Some((0, 0, false, false, 0, false)); VIPS * 2],
        backends: vec![vec![3; ENDPOINTS]; SERVICES * PORTS.len() * 2],
        affinity: vec![false; SERVICES],
    };
    let plan = spec.plan();
    let (name, service) = plan.services.first_key_value().unwrap();
    for (masquerade_all, expected) in [(false, [false, false]), (true, [true, false])] {
        let mut lowerer = Lowerer::new(Capacity::default()).masquerade_all(masquerade_all);
        let image = lowerer.lower(name, Some(service), &Image::default()).unwrap().image;
        let masqueraded = [0, 1].map(|number| {
            let packet = packets()
                .into_iter()
                .find(|packet| packet.destination.ip() == vip(0, number))
                .unwrap();
            assert_eq!(packet.origin, Origin::Pod);
            match judge(&image, &packet, &State::default()) {
                Judgement::Decided(Verdict::Forward(targets)) => targets.iter().all(|target| target.masquerade),
                other => panic!("{other:?}"),
            }
        });
        assert_eq!(masqueraded, expected, "vip 0 is a ClusterIP, vip 1 is not");
    }
}
