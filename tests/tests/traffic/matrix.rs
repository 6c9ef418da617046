//! Frontend × family × transport × client × backend.

use crate::cluster::{Cluster, Findings, Mode, every_frontend, in_every_mode, questions, with_cluster};
use harness::{
    Actor,
    addr::{self, Family},
    manifest::Slices,
};
use std::net::{IpAddr, SocketAddr};

in_every_mode!(every_frontend_is_answered_by_its_backend requests_spread_over_all_backends);

#[test]
fn clsact_filters_do_the_same() {
    every_frontend_is_answered_by_its_backend(crate::cluster::CLSACT);
}

const LOCAL: u8 = 10;
const REMOTE: u8 = 11;
const KEPT: u8 = 12;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    ClusterIP,
    NodePort,
    OtherNodePort,
    LoadBalancer,
    ExternalIP,
}

fn frontend(cluster: &Cluster<'_>, kind: Kind, family: Family, n: u8) -> SocketAddr {
    let node_port = 30_000 + u16::from(n);
    match kind {
        Kind::ClusterIP => SocketAddr::new(addr::cluster_ip(family, n), 80),
        Kind::NodePort => SocketAddr::new(cluster.topology.node("node-a").ip(family), node_port),
        Kind::OtherNodePort => SocketAddr::new(cluster.topology.node("node-b").ip(family), node_port),
        Kind::LoadBalancer => SocketAddr::new(addr::load_balancer(family, n), 80),
        Kind::ExternalIP => SocketAddr::new(addr::external(family, n), 80),
    }
}

fn every_frontend_is_answered_by_its_backend(mode: Mode) {
    with_cluster(
        mode,
        |topology| {
            let pod = |name| [topology.pod(name)];
            vec![
                (every_frontend("local", LOCAL), Slices::ready("local", pod("a2"))),
                (every_frontend("remote", REMOTE), Slices::ready("remote", pod("b1"))),
                (
                    every_frontend("kept", KEPT).external_local(),
                    Slices::ready("kept", pod("a3")),
                ),
            ]
        },
        |cluster| {
            let mut findings = Findings::default();
            let kinds = [
                Kind::ClusterIP,
                Kind::NodePort,
                Kind::OtherNodePort,
                Kind::LoadBalancer,
                Kind::ExternalIP,
            ];
            for (n, backend) in [(LOCAL, "a2"), (REMOTE, "b1"), (KEPT, "a3")] {
                for kind in kinds {
                    // `kept` has no endpoint on node-b: see policy.rs.
                    if n == KEPT && kind == Kind::OtherNodePort {
                        continue;
                    }
                    for family in addr::FAMILIES {
                        let dst = frontend(cluster, kind, family, n);
                        for client in [cluster.client(), cluster.host(), cluster.outside()] {
                            // Nobody routes cluster IPs to nodes from outside.
                            if client.name() == "outside" && kind == Kind::ClusterIP {
                                continue;
                            }
                            cell(&mut findings, cluster, client, kind, dst, (family, n, backend));
                        }
                    }
                }
            }
            findings.none();
        },
    );
}

fn cell(
    findings: &mut Findings,
    cluster: &Cluster<'_>,
    client: &Actor,
    kind: Kind,
    dst: SocketAddr,
    (family, n, backend): (Family, u8, &str),
) {
    let node = cluster.topology.node("node-a").ip(family);
    for (transport, ask) in questions(dst) {
        let what = format!("{} → {kind:?} {dst} {transport} → {backend}", client.name());
        let answer = client.ask(&ask);
        findings.answered_by(&what, &answer, backend);
        let Ok(answer) = answer else { continue };
        findings.check(
            &format!("{what}: the client sees the frontend"),
            answer.peer_name == dst,
            answer.peer_name,
        );
        let expected: Option<IpAddr> = match (client.name(), kind) {
            // Pods are seen as they are, whatever the mode.
            ("a1", Kind::ClusterIP) => Some(cluster.topology.pod("a1").ip(family)),
            // externalTrafficPolicy: Local keeps the source.
            ("outside", Kind::NodePort | Kind::LoadBalancer | Kind::ExternalIP) if n == KEPT => {
                Some(addr::outside(family, 0))
            }
            // A reply from another node must come back through this one.
            ("outside", Kind::NodePort | Kind::LoadBalancer | Kind::ExternalIP) if n == REMOTE => Some(node),
            _ => None,
        };
        if let Some(expected) = expected {
            findings.check(
                &format!("{what}: the backend sees {expected}"),
                answer.seen_peer.ip() == expected,
                answer.seen_peer,
            );
        }
    }
}

fn requests_spread_over_all_backends(mode: Mode) {
    let backends = ["a2", "a3", "b1", "b2"];
    with_cluster(
        mode,
        |topology| {
            vec![(
                every_frontend("many", 20),
                Slices::ready("many", backends.map(|name| topology.pod(name))),
            )]
        },
        |cluster| {
            let mut findings = Findings::default();
            for family in addr::FAMILIES {
                for (client, kind) in [
                    (cluster.client(), Kind::ClusterIP),
                    (cluster.host(), Kind::ClusterIP),
                    (cluster.outside(), Kind::LoadBalancer),
                ] {
                    for (transport, ask) in questions(frontend(cluster, kind, family, 20)) {
                        let what = format!("{} → {kind:?} {family:?} {transport}", client.name());
                        let count = 400;
                        let seen = client.ask_many(&ask, count, 4);
                        findings.check(&what, seen.failures() == 0, &seen.failed);
                        // A quarter each is 100; 50 is more than five standard deviations below.
                        let fair = backends
                            .iter()
                            .all(|name| seen.by_server.get(*name).is_some_and(|answers| *answers >= 50));
                        findings.check(&format!("{what}: every backend has its share"), fair, &seen.by_server);
                    }
                }
            }
            findings.none();
        },
    );
}
