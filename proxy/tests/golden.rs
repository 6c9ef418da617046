//! Golden op lists: what one change costs, in execution order. `UPDATE_GOLDEN=1` rewrites; review reads the diff.

use ipnet::IpNet;
use proxy::{
    dataplane::{Changed, Reconciler, ebpf::lower::Capacity, fake::Fake},
    model::{Family, ObjectName, Protocol},
    plan::{Backend, Decision, Frontend, FrontendKind, Plan, PortPlan, ServicePlan, SourceRanges},
};
use std::{fmt::Write as _, fs, net::SocketAddr, num::NonZeroU16, path::Path, sync::Arc};

const DNS: &str = "10.96.0.10:53";
const LOAD_BALANCER: &str = "203.0.113.10:53";

/// An endpoint in the Cluster set, on another node.
fn remote(addr: &str) -> Backend {
    Backend {
        addr: addr.parse().unwrap(),
        in_cluster: true,
        in_local: false,
        on_node: false,
    }
}

/// An endpoint in both sets, on this node.
fn local(addr: &str) -> Backend {
    Backend {
        in_local: true,
        on_node: true,
        ..remote(addr)
    }
}

/// An endpoint in no set that still serves its flows.
fn terminating(addr: &str) -> Backend {
    Backend {
        in_cluster: false,
        ..remote(addr)
    }
}

fn frontend(addr: &str, decision: Decision) -> Frontend {
    let addr: SocketAddr = addr.parse().unwrap();
    Frontend {
        addr: addr.ip(),
        port: NonZeroU16::new(addr.port()).unwrap(),
        kind: FrontendKind::ClusterIP,
        internal: decision,
        external: decision,
        sources: SourceRanges::Any,
        node_address: false,
    }
}

fn guarded(addr: &str, ranges: &[&str]) -> Frontend {
    let nets: Vec<IpNet> = ranges.iter().map(|range| range.parse().unwrap()).collect();
    Frontend {
        kind: FrontendKind::LoadBalancer,
        sources: SourceRanges::Only(nets),
        ..frontend(addr, Decision::Cluster)
    }
}

fn udp(frontends: Vec<Frontend>, backends: &[Backend]) -> PortPlan {
    PortPlan {
        name: "dns".into(),
        protocol: Protocol::Udp,
        family: Family::of(&frontends[0].addr),
        affinity_s: None,
        backends: backends.to_vec(),
        frontends,
    }
}

fn plan(services: Vec<(&str, Vec<PortPlan>)>) -> Plan {
    let services = services.into_iter().map(|(name, ports)| {
        let service = ServicePlan {
            ports,
            ..ServicePlan::default()
        };
        (ObjectName::new("default", name), Arc::new(service))
    });
    Plan {
        services: services.collect(),
    }
}

/// One service with one frontend.
fn balance(addr: &str, backends: &[Backend]) -> Plan {
    plan(vec![(
        "dns",
        vec![udp(vec![frontend(addr, Decision::Cluster)], backends)],
    )])
}

/// Syncs each plan in turn, as changes of the services that differ, and compares the ops with the file.
fn check(file: &str, plans: &[Plan]) {
    let mut reconciler = Reconciler::new(Fake::new(Capacity::default()));
    let mut text = String::new();
    let mut last = Plan::default();
    for (number, plan) in plans.iter().enumerate() {
        let names = last.services.keys().chain(plan.services.keys());
        let changed = names
            .filter(|name| last.services.get(*name) != plan.services.get(*name))
            .cloned()
            .collect();
        let report = reconciler.sync(plan, &Changed::Services(changed)).unwrap();
        let ops = std::mem::take(&mut reconciler.dataplane_mut().log);
        assert_eq!(report.ops, ops.len());
        writeln!(text, "# plan {}", number + 1).unwrap();
        for op in ops {
            writeln!(text, "{op}").unwrap();
        }
        last = plan.clone();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, golden, "{file} differs; UPDATE_GOLDEN=1 rewrites it");
}

#[test]
fn replacing_the_only_backend() {
    check(
        "replace_only_backend.txt",
        &[
            balance(DNS, &[remote("10.1.0.1:53")]),
            balance(DNS, &[remote("10.1.0.2:53")]),
        ],
    );
}

#[test]
fn adding_and_removing_a_service() {
    let one = balance(DNS, &[local("10.1.0.1:53")]);
    let mut two = one.clone();
    two.services.extend(
        plan(vec![(
            "web",
            vec![udp(
                vec![frontend("[fd00:96::80]:80", Decision::Cluster)],
                &[remote("[fd00:1::1]:8080")],
            )],
        )])
        .services,
    );
    check("add_remove_service.txt", &[one.clone(), two, one, Plan::default()]);
}

#[test]
fn scaling_1_3_1() {
    let [a, b, c] = ["10.1.0.1:53", "10.1.0.2:53", "10.1.0.3:53"].map(remote);
    check(
        "scale_1_3_1.txt",
        &[balance(DNS, &[b]), balance(DNS, &[a, b, c]), balance(DNS, &[c])],
    );
}

#[test]
fn local_policy_flips() {
    let backends = [local("10.1.0.1:53"), remote("10.1.0.2:53")];
    let with = |external| {
        let frontend = Frontend {
            external,
            ..frontend(DNS, Decision::Cluster)
        };
        plan(vec![("dns", vec![udp(vec![frontend], &backends)])])
    };
    check(
        "local_policy_flip.txt",
        &[
            with(Decision::Cluster),
            with(Decision::Local),
            with(Decision::Cluster),
            with(Decision::Drop),
        ],
    );
}

#[test]
fn a_frontend_moves_between_services() {
    let own = "10.96.0.11:53";
    let a = |frontends: &[&str]| {
        let frontends = frontends.iter().map(|addr| frontend(addr, Decision::Cluster)).collect();
        ("a", vec![udp(frontends, &[remote("10.1.0.1:53")])])
    };
    let b = |frontends: &[&str]| {
        let frontends = frontends.iter().map(|addr| frontend(addr, Decision::Cluster)).collect();
        ("b", vec![udp(frontends, &[remote("10.1.0.2:53")])])
    };
    let shared = "10.96.0.10:53";
    check(
        "frontend_moves.txt",
        &[
            plan(vec![a(&[shared]), b(&[own])]),
            plan(vec![b(&[shared, own])]),
            plan(vec![a(&[shared]), b(&[own])]),
        ],
    );
}

#[test]
fn source_ranges_appear_change_and_disappear() {
    let with = |frontend| plan(vec![("dns", vec![udp(vec![frontend], &[remote("10.1.0.1:53")])])]);
    check(
        "source_ranges.txt",
        &[
            with(frontend(LOAD_BALANCER, Decision::Cluster)),
            with(guarded(LOAD_BALANCER, &["203.0.113.0/24", "198.51.100.7/32"])),
            with(guarded(LOAD_BALANCER, &["203.0.113.0/24"])),
            with(guarded(LOAD_BALANCER, &[])),
            with(frontend(LOAD_BALANCER, Decision::Cluster)),
        ],
    );
}

#[test]
fn an_endpoint_turns_terminating_and_goes() {
    let other = remote("10.1.0.2:53");
    check(
        "terminating.txt",
        &[
            balance(DNS, &[remote("10.1.0.1:53"), other]),
            balance(DNS, &[terminating("10.1.0.1:53"), other]),
            balance(DNS, &[other]),
        ],
    );
}

#[test]
fn affinity_no_endpoints_and_a_renamed_port() {
    let port = |name: &str, affinity_s, decision, backends: &[Backend]| {
        let port = PortPlan {
            name: name.into(),
            affinity_s,
            ..udp(vec![frontend(DNS, decision)], backends)
        };
        plan(vec![("dns", vec![port])])
    };
    let backends = [remote("10.1.0.1:53")];
    check(
        "affinity_reject_rename.txt",
        &[
            port("dns", None, Decision::Cluster, &backends),
            port("dns", Some(10_800), Decision::Cluster, &backends),
            port("domain", Some(10_800), Decision::Cluster, &backends),
            port("domain", Some(10_800), Decision::Reject, &[]),
        ],
    );
}
