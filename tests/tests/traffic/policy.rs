//! Affinity, source ranges, policies, and services without endpoints.

use crate::cluster::{
    Findings, Mode, cluster_ip, every_frontend, in_every_mode, load_balancer, questions, with_cluster,
};
use harness::{Failure, addr, manifest::Slices};
use serde_json::json;
use std::{collections::BTreeSet, net::SocketAddr};

in_every_mode!(
    a_backend_reaches_itself_through_its_own_service
    a_client_sticks_to_its_backend
    a_service_without_endpoints_rejects
    policy_local_without_a_local_endpoint_drops
    source_ranges_decide_who_may_come
);

fn a_backend_reaches_itself_through_its_own_service(mode: Mode) {
    with_cluster(
        mode,
        |topology| vec![(every_frontend("self", 30), Slices::ready("self", [topology.pod("a1")]))],
        |cluster| {
            let mut findings = Findings::default();
            for family in addr::FAMILIES {
                for dst in [cluster_ip(family, 30), load_balancer(family, 30)] {
                    for (transport, ask) in questions(dst) {
                        findings.answered_by(
                            &format!("a1 → {dst} {transport} → a1"),
                            &cluster.client().ask(&ask),
                            "a1",
                        );
                    }
                }
            }
            findings.none();
        },
    );
}

fn a_client_sticks_to_its_backend(mode: Mode) {
    let backends = ["a2", "a3", "b1", "b2", "b3"];
    with_cluster(
        mode,
        |topology| {
            let pods = backends.map(|name| topology.pod(name));
            vec![(
                every_frontend("sticky", 31).affinity(3_600),
                Slices::ready("sticky", pods),
            )]
        },
        |cluster| {
            let mut findings = Findings::default();
            for family in addr::FAMILIES {
                let outside = (0..4).map(|n| {
                    (
                        cluster.outside(),
                        load_balancer(family, 31),
                        Some(addr::outside(family, n)),
                    )
                });
                let inside = [cluster.client(), cluster.host()].map(|client| (client, cluster_ip(family, 31), None));
                for (client, dst, source) in outside.chain(inside) {
                    for (transport, ask) in questions(dst) {
                        let ask = match source {
                            Some(source) => ask.from(source, 0),
                            None => ask,
                        };
                        let seen = client.ask_many(&ask, 40, 1);
                        let what = format!("{} {source:?} → {dst} {transport}", client.name());
                        findings.check(&what, seen.failures() == 0 && seen.by_server.len() == 1, &seen);
                    }
                }
            }
            findings.none();
        },
    );
}

fn a_service_without_endpoints_rejects(mode: Mode) {
    with_cluster(
        mode,
        |_| vec![(every_frontend("empty", 32), Slices::ready("empty", []))],
        |cluster| {
            let mut findings = Findings::default();
            for family in addr::FAMILIES {
                let node_port = SocketAddr::new(cluster.topology.node("node-a").ip(family), 30_032);
                let cells = [
                    (cluster.client(), cluster_ip(family, 32)),
                    (cluster.host(), cluster_ip(family, 32)),
                    (cluster.client(), load_balancer(family, 32)),
                    (cluster.outside(), load_balancer(family, 32)),
                    (cluster.outside(), node_port),
                ];
                for (client, dst) in cells {
                    // By sendto nobody is told.
                    for (transport, ask) in questions(dst).into_iter().take(2) {
                        let outcome = client.ask(&ask);
                        let refused = outcome
                            .as_ref()
                            .is_err_and(|error| error.kind == Failure::ConnectionRefused);
                        findings.check(
                            &format!("{} → {dst} {transport} is refused", client.name()),
                            refused,
                            &outcome,
                        );
                    }
                }
            }
            findings.none();
        },
    );
}

fn policy_local_without_a_local_endpoint_drops(mode: Mode) {
    with_cluster(
        mode,
        |topology| {
            let remote = || [topology.pod("b1")];
            vec![
                (
                    every_frontend("external", 33).external_local(),
                    Slices::ready("external", remote()),
                ),
                (
                    every_frontend("internal", 34).internal_local(),
                    Slices::ready("internal", remote()),
                ),
            ]
        },
        |cluster| {
            let mut findings = Findings::default();
            for family in addr::FAMILIES {
                let node_port = SocketAddr::new(cluster.topology.node("node-a").ip(family), 30_033);
                let dropped = [
                    (cluster.outside(), load_balancer(family, 33)),
                    (cluster.outside(), node_port),
                    (cluster.client(), cluster_ip(family, 34)),
                    (cluster.host(), cluster_ip(family, 34)),
                ];
                for (client, dst) in dropped {
                    for (transport, ask) in questions(dst) {
                        let outcome = client.ask(&ask);
                        // EPERM is how a socket hook drops.
                        let silent = outcome.as_ref().is_err_and(|error| {
                            error.kind == Failure::TimedOut
                                || (client.name() != "outside" && error.kind == Failure::Denied)
                        });
                        findings.check(
                            &format!("{} → {dst} {transport} is dropped", client.name()),
                            silent,
                            &outcome,
                        );
                    }
                }
                // Clients on the node are not external: they may go to any endpoint.
                let served = [
                    (cluster.client(), load_balancer(family, 33)),
                    (cluster.host(), load_balancer(family, 33)),
                ];
                let other_node = SocketAddr::new(cluster.topology.node("node-b").ip(family), 30_033);
                for (client, dst) in served.into_iter().chain([(cluster.outside(), other_node)]) {
                    for (transport, ask) in questions(dst) {
                        findings.answered_by(
                            &format!("{} → {dst} {transport} → b1", client.name()),
                            &client.ask(&ask),
                            "b1",
                        );
                    }
                }
            }
            findings.none();
        },
    );
}

fn source_ranges_decide_who_may_come(mode: Mode) {
    let allowed: BTreeSet<u8> = [1, 2].into();
    let ranges: Vec<String> = allowed
        .iter()
        .flat_map(|n| {
            [
                format!("{}/32", addr::outside(addr::Family::V4, *n)),
                format!("{}/128", addr::outside(addr::Family::V6, *n)),
            ]
        })
        .collect();
    with_cluster(
        mode,
        |topology| {
            let service = every_frontend("guarded", 35).with("loadBalancerSourceRanges", json!(ranges));
            vec![(service, Slices::ready("guarded", [topology.pod("a2")]))]
        },
        |cluster| {
            let mut findings = Findings::default();
            for family in addr::FAMILIES {
                for n in 0..4 {
                    for (transport, ask) in questions(load_balancer(family, 35)) {
                        let outcome = cluster.outside().ask(&ask.from(addr::outside(family, n), 0));
                        let what = format!("{} → LB {transport}", addr::outside(family, n));
                        if allowed.contains(&n) {
                            findings.answered_by(&what, &outcome, "a2");
                        } else {
                            let silent = outcome.as_ref().is_err_and(|error| error.kind == Failure::TimedOut);
                            findings.check(&format!("{what} is dropped"), silent, &outcome);
                        }
                    }
                    // Not subject to the ranges.
                    let node_port = SocketAddr::new(cluster.topology.node("node-a").ip(family), 30_035);
                    let [(_, ask), ..] = questions(node_port);
                    let outcome = cluster.outside().ask(&ask.from(addr::outside(family, n), 0));
                    findings.answered_by(&format!("{} → NodePort", addr::outside(family, n)), &outcome, "a2");
                }
            }
            findings.none();
        },
    );
}
