//! Endpoints that change all the time under load: not one answer from another service, not one failure.

use crate::cluster::{
    Findings, Mode, TARGET, cluster_ip, every_frontend, in_every_mode, load_balancer, questions, with_cluster,
};
use harness::{
    Ask, Load, Transport,
    addr::FAMILIES,
    manifest::{self, Slices},
};
use std::net::SocketAddr;

in_every_mode!(ten_thousand_changes_under_load);

/// Each file holds this many services, so that one write is as many changes.
const SERVICES: u8 = 10;
const CHANGES: usize = 10_000;
/// A load that got fewer answers during all changes has not tested them.
const LEAST_ANSWERS: u64 = 300;
const PODS: [&str; 6] = ["a1", "a2", "a3", "b1", "b2", "b3"];

fn name(service: u8) -> String {
    format!("churn-{service}")
}

fn target(service: u8) -> u16 {
    TARGET + 100 + u16::from(service)
}

fn number(service: u8) -> u8 {
    60 + service
}

/// The pods of a service at a step: never empty, and different from the step before.
fn chosen(step: usize, service: u8) -> impl Iterator<Item = &'static str> {
    let set = (step * 7 + usize::from(service) * 13) % 63 + 1;
    (0..)
        .zip(PODS)
        .filter(move |(bit, _)| set & (1 << bit) != 0)
        .map(|(_, pod)| pod)
}

fn ten_thousand_changes_under_load(mode: Mode) {
    with_cluster(
        mode,
        |_| Vec::new(),
        |cluster| {
            let topology = cluster.topology;
            // Every service has its own server in every pod, so that each answer tells which service it belongs to.
            for pod in topology.pods() {
                for (service, family) in (0..SERVICES).flat_map(|service| FAMILIES.map(|family| (service, family))) {
                    for transport in [Transport::Tcp, Transport::Udp] {
                        let listen = SocketAddr::new(pod.ip(family), target(service));
                        pod.actor
                            .serve_as(transport, listen, &format!("{}@{}", name(service), pod.name));
                    }
                }
            }
            let write = |step: usize| {
                manifest::file((0..SERVICES).flat_map(|service| {
                    let (name, ports) = (name(service), [(80, target(service))]);
                    let pods = chosen(step, service).map(|pod| topology.pod(pod));
                    let slices = Slices {
                        ports: &ports,
                        ..Slices::ready(&name, pods)
                    };
                    let [v4, v6] = slices.to_json();
                    [every_frontend(&name, number(service)).to_json(), v4, v6]
                }))
            };
            for agent in &cluster.agents {
                agent.apply("churn.yaml", &write(0)).unwrap();
            }
            let mut asks = Vec::new();
            for (service, family) in [(0, FAMILIES[0]), (1, FAMILIES[1])] {
                let [(_, tcp), (_, udp), _] = questions(cluster_ip(family, number(service)));
                let outside = Ask {
                    dst: load_balancer(family, number(service)),
                    ..tcp.clone()
                };
                asks.extend([
                    (cluster.client(), tcp, service),
                    (cluster.host(), udp, service),
                    (cluster.outside(), outside, service),
                ]);
            }
            let loads: Vec<_> = asks
                .into_iter()
                .map(|(client, ask, service)| {
                    let expect = PODS.map(|pod| format!("{}@{pod}", name(service)));
                    let what = format!("{} → {} {}", client.name(), ask.dst, ask.transport);
                    (
                        what,
                        client.load(Load {
                            workers: 1,
                            pause_us: 2_000,
                            ..Load::new(ask, expect)
                        }),
                    )
                })
                .collect();
            let mut findings = Findings::default();
            // All clients come in through node-a.
            let agent = &cluster.agents[0];
            for step in 1..=CHANGES / usize::from(SERVICES) {
                agent.apply("churn.yaml", &write(step)).unwrap();
                if step % 5 == 0 {
                    let service = (step / 5) as u8 % SERVICES;
                    let family = FAMILIES[step / 5 / usize::from(SERVICES) % 2];
                    let current: Vec<_> = chosen(step, service)
                        .map(|pod| format!("{}@{pod}", name(service)))
                        .collect();
                    for (client, dst) in [
                        (cluster.client(), cluster_ip(family, number(service))),
                        (cluster.host(), cluster_ip(family, number(service))),
                        (cluster.outside(), load_balancer(family, number(service))),
                    ] {
                        let [tcp, udp, _] = questions(dst);
                        for (transport, ask) in [tcp, udp] {
                            let answer = client.ask(&ask);
                            let served = answer.as_ref().is_ok_and(|answer| current.contains(&answer.served_by));
                            let what =
                                format!("step {step}: {transport} {} → {dst}: one of {current:?}", client.name());
                            findings.check(&what, served, &answer);
                        }
                    }
                }
            }
            for (what, load) in loads {
                let tally = load.stop();
                findings.check(&what, tally.is_clean(), (&tally.wrong, &tally.failed));
                let answers: u64 = tally.ok.values().sum();
                findings.check(
                    &format!("{what}: a load, not a trickle"),
                    answers >= LEAST_ANSWERS,
                    answers,
                );
            }
            findings.none();
        },
    );
}
