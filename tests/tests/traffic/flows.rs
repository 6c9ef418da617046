//! What becomes of a flow: fragments, equal tuples, endpoints that end, agents that end.

use crate::cluster::{
    Findings, Mode, TARGET, cluster_ip, every_frontend, in_every_mode, load_balancer, questions, with_cluster,
};
use harness::{
    Ask, Failure, Load,
    addr::{self, FAMILIES},
    manifest::{Endpoint, Slices},
};
use std::net::SocketAddr;

in_every_mode!(
    large_datagrams_come_whole
    two_frontends_share_a_backend_and_a_client_tuple
    an_established_connection_survives_termination
    a_datagram_flow_leaves_a_removed_endpoint
    the_next_connection_goes_to_the_new_endpoint
    a_killed_agent_keeps_serving_and_its_successor_too
);

fn large_datagrams_come_whole(mode: Mode) {
    with_cluster(
        mode,
        |topology| {
            vec![
                (every_frontend("near", 40), Slices::ready("near", [topology.pod("a2")])),
                (every_frontend("far", 41), Slices::ready("far", [topology.pod("b1")])),
            ]
        },
        |cluster| {
            let mut findings = Findings::default();
            for family in FAMILIES {
                for (n, backend) in [(40, "a2"), (41, "b1")] {
                    let inside = [cluster.client(), cluster.host()].map(|client| (client, cluster_ip(family, n)));
                    for (client, dst) in inside
                        .into_iter()
                        .chain([(cluster.outside(), load_balancer(family, n))])
                    {
                        for (transport, ask) in questions(dst).into_iter().skip(1) {
                            for (send, reply) in [(4_000, 0), (0, 4_000), (4_000, 4_000)] {
                                let what = format!("{} → {dst} {transport}, {send} and {reply} bytes", client.name());
                                findings.answered_by(&what, &client.ask(&ask.clone().bytes(send, reply)), backend);
                            }
                        }
                    }
                }
            }
            findings.none();
        },
    );
}

fn two_frontends_share_a_backend_and_a_client_tuple(mode: Mode) {
    with_cluster(
        mode,
        |topology| {
            let backends = || [topology.pod("b1")];
            vec![
                (every_frontend("one", 42), Slices::ready("one", backends())),
                (every_frontend("two", 43), Slices::ready("two", backends())),
            ]
        },
        |cluster| {
            let mut findings = Findings::default();
            for family in FAMILIES {
                let pod = cluster.topology.pod("a1").ip(family);
                let mut clients = vec![(
                    cluster.outside(),
                    addr::outside(family, 0),
                    load_balancer as fn(_, _) -> SocketAddr,
                )];
                // Translated at connect, both sockets would have the same tuple: the kernel says EADDRNOTAVAIL, which
                // is an answer that a client understands.
                if !cluster.mode.socket_lb {
                    clients.push((cluster.client(), pod, cluster_ip));
                }
                for (client, source, frontend) in clients {
                    let (one, two) = (frontend(family, 42), frontend(family, 43));
                    // Not by sendto: of two such sockets on one port the kernel feeds only the younger.
                    for (port, (transport, ask)) in (20_001..).zip(questions(one)).take(2) {
                        let what = |dst| format!("{}:{port} → {dst} {transport}", client.name());
                        let ask = ask.from(source, port);
                        let first = client.open(&ask);
                        let second = client.open(&Ask { dst: two, ..ask });
                        findings.check(&what(one), first.is_ok(), first.as_ref().err());
                        findings.check(&what(two), second.is_ok(), second.as_ref().err());
                        let (Ok((first, _)), Ok((second, _))) = (first, second) else {
                            continue;
                        };
                        for (conn, dst) in [(&first, one), (&second, two), (&first, one)] {
                            findings.answered_by(&what(dst), &conn.exchange(100, 100), "b1");
                        }
                    }
                }
            }
            findings.none();
        },
    );
}

fn an_established_connection_survives_termination(mode: Mode) {
    with_cluster(
        mode,
        |topology| vec![(every_frontend("ends", 44), Slices::ready("ends", [topology.pod("a2")]))],
        |cluster| {
            let topology = cluster.topology;
            let mut findings = Findings::default();
            let clients: Vec<_> = FAMILIES
                .into_iter()
                .flat_map(|family| {
                    let inside = [cluster.client(), cluster.host()].map(|client| (client, cluster_ip(family, 44)));
                    inside
                        .into_iter()
                        .chain([(cluster.outside(), load_balancer(family, 44))])
                })
                .collect();
            let open: Vec<_> = clients
                .iter()
                .map(|(client, dst)| client.open(&Ask::tcp(*dst)).unwrap().0)
                .collect();
            let mut slices = Slices::ready("ends", [topology.pod("b1")]);
            slices.endpoints.push(Endpoint::terminating(topology.pod("a2")));
            cluster.apply(&every_frontend("ends", 44), &slices);
            for (conn, (client, dst)) in open.iter().zip(&clients) {
                let what = format!("{} → {dst}", client.name());
                findings.answered_by(&format!("{what}, established"), &conn.exchange(20_000, 20_000), "a2");
                findings.answered_by(&format!("{what}, new"), &client.ask(&Ask::tcp(*dst)), "b1");
            }
            findings.none();
        },
    );
}

fn a_datagram_flow_leaves_a_removed_endpoint(mode: Mode) {
    with_cluster(
        mode,
        |topology| {
            vec![(
                every_frontend("moves", 45),
                Slices::ready("moves", [topology.pod("a2")]),
            )]
        },
        |cluster| {
            let mut findings = Findings::default();
            let mut open = Vec::new();
            for family in FAMILIES {
                let [_, (_, connected), (_, by_sendto)] = questions(cluster_ip(family, 45));
                let outside = Ask {
                    dst: load_balancer(family, 45),
                    ..connected.clone()
                };
                let mut asks = vec![
                    (cluster.client(), by_sendto.clone()),
                    (cluster.host(), by_sendto),
                    (cluster.outside(), outside),
                ];
                // A socket connected under socket load balancing is the kernel's own flow to the pod: nothing sees its
                // packets again. See the note on connected UDP in the test below for what remains true.
                if !cluster.mode.socket_lb {
                    asks.push((cluster.client(), connected));
                }
                for (client, ask) in asks {
                    let opened = client.open(&ask);
                    findings.check(
                        &format!("{} → {}", client.name(), ask.dst),
                        opened.is_ok(),
                        opened.as_ref().err(),
                    );
                    open.extend(opened.map(|(conn, _)| (client, ask.dst, conn)));
                }
            }
            for backend in ["b1", "a3", "b2"] {
                cluster.apply(
                    &every_frontend("moves", 45),
                    &Slices::ready("moves", [cluster.topology.pod(backend)]),
                );
                for (client, dst, conn) in &open {
                    let what = format!("{} → {dst}, the same socket", client.name());
                    findings.answered_by(&what, &conn.exchange(0, 0), backend);
                }
            }
            findings.none();
        },
    );
}

fn the_next_connection_goes_to_the_new_endpoint(mode: Mode) {
    with_cluster(
        mode,
        |topology| vec![(every_frontend("next", 46), Slices::ready("next", [topology.pod("a2")]))],
        |cluster| {
            let mut findings = Findings::default();
            for backend in ["b1", "a3", "b2", "a2"].into_iter().cycle().take(20) {
                cluster.apply(
                    &every_frontend("next", 46),
                    &Slices::ready("next", [cluster.topology.pod(backend)]),
                );
                for family in FAMILIES {
                    let inside = [cluster.client(), cluster.host()].map(|client| (client, cluster_ip(family, 46)));
                    for (client, dst) in inside
                        .into_iter()
                        .chain([(cluster.outside(), load_balancer(family, 46))])
                    {
                        for (transport, ask) in questions(dst) {
                            let what = format!("{} → {dst} {transport} → {backend}", client.name());
                            findings.answered_by(&what, &client.ask(&ask), backend);
                        }
                    }
                }
            }
            cluster.apply(&every_frontend("next", 46), &Slices::ready("next", []));
            for family in FAMILIES {
                let outcome = cluster.client().ask(&Ask::tcp(cluster_ip(family, 46)));
                let refused = outcome
                    .as_ref()
                    .is_err_and(|error| error.kind == Failure::ConnectionRefused);
                findings.check("the last endpoint went", refused, &outcome);
            }
            findings.none();
        },
    );
}

#[test]
fn clsact_filters_outlive_the_agent_too() {
    a_killed_agent_keeps_serving_and_its_successor_too(crate::cluster::CLSACT);
}

fn a_killed_agent_keeps_serving_and_its_successor_too(mode: Mode) {
    with_cluster(
        mode,
        |topology| {
            let pods = ["a2", "b1"].map(|name| topology.pod(name));
            vec![(every_frontend("lasting", 47), Slices::ready("lasting", pods))]
        },
        |cluster| {
            let mut findings = Findings::default();
            let loads: Vec<_> = FAMILIES
                .into_iter()
                .flat_map(|family| {
                    let [(_, tcp), (_, udp), _] = questions(cluster_ip(family, 47));
                    let outside = Ask {
                        dst: load_balancer(family, 47),
                        ..tcp.clone()
                    };
                    [
                        (cluster.client(), tcp),
                        (cluster.host(), udp),
                        (cluster.outside(), outside),
                    ]
                })
                .map(|(client, ask)| {
                    client.load(Load {
                        workers: 1,
                        pause_us: 1_000,
                        ..Load::new(ask, ["a2", "b1"])
                    })
                })
                .collect();
            let (kept, _) = cluster
                .outside()
                .open(&Ask::tcp(load_balancer(FAMILIES[0], 47)))
                .unwrap();
            let agent = &cluster.agents[0];
            for signal in [libc::SIGKILL, libc::SIGTERM] {
                agent.stop(signal).unwrap();
                // At least so many answers without an agent, whatever the machine's pace.
                for load in &loads {
                    let goal = load.peek().answered() + 50;
                    while load.peek().answered() < goal && load.peek().failed.is_empty() {}
                }
                agent.launch().unwrap();
                let outcome = kept.exchange(1_000, 1_000);
                findings.check("an established connection", outcome.is_ok(), &outcome);
            }
            for load in loads {
                let tally = load.stop();
                findings.check("load over restarts", tally.is_clean(), (&tally.wrong, &tally.failed));
            }
            let direct = cluster.client().ask(&Ask::tcp(SocketAddr::new(
                cluster.topology.pod("b1").ip(FAMILIES[0]),
                TARGET,
            )));
            findings.answered_by("past the service", &direct, "b1");
            findings.none();
        },
    );
}
