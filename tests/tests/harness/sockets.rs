//! What clients and servers say is what happened.

use harness::{Ask, Failure, Load, Topology, Transport, addr, addr::FAMILIES};
use std::{net::SocketAddr, time::Duration};

#[test]
fn failures_are_told_apart() {
    let topology = Topology::standard(1, 2).unwrap();
    let (client, server) = (&topology.pod("a1").actor, topology.pod("a2"));
    for family in FAMILIES {
        let nobody = SocketAddr::new(server.ip(family), 9);
        for ask in [Ask::tcp(nobody), Ask::udp(nobody), Ask::http(nobody)] {
            assert_eq!(
                client.ask(&ask).unwrap_err().kind,
                Failure::ConnectionRefused,
                "{ask:?}"
            );
        }
        server
            .actor
            .ip(&format!("route add blackhole {}", topology.pod("a1").ip(family)))
            .unwrap();
        let lost = [Ask::tcp(nobody), Ask::udp(nobody)].map(|ask| ask.timeout(Duration::from_millis(200)));
        for ask in lost {
            assert_eq!(client.ask(&ask).unwrap_err().kind, Failure::TimedOut, "{ask:?}");
        }
    }
}

#[test]
fn an_answer_from_elsewhere_is_noticed() {
    let topology = Topology::standard(1, 2).unwrap();
    let (client, server) = (topology.pod("a1"), topology.pod("a2"));
    // A server on every address answers from the preferred one, which is not the one that was asked.
    server.actor.ip("addr add 10.1.1.200/32 dev lo").unwrap();
    topology
        .node("node-a")
        .actor
        .ip("route add 10.1.1.200/32 dev veth-a2")
        .unwrap();
    let serving = server.actor.serve(Transport::Udp, "0.0.0.0:53".parse().unwrap());
    let dst = SocketAddr::new("10.1.1.200".parse().unwrap(), serving.addr.port());
    let error = client.actor.ask(&Ask::udp(dst).unconnected()).unwrap_err();
    assert_eq!(error.kind, Failure::WrongSource, "{error}");
}

#[test]
fn bodies_of_every_size_come_whole() {
    let topology = Topology::standard(2, 1).unwrap();
    let (client, server) = (topology.pod("a1"), topology.pod("b1"));
    for family in FAMILIES {
        let dst = SocketAddr::new(server.ip(family), 7);
        server.actor.serve(Transport::Tcp, dst);
        server.actor.serve(Transport::Udp, dst);
        client.actor.ask(&Ask::tcp(dst).bytes(1 << 20, 1 << 20)).unwrap();
        for size in [100, 1_400, 4_000, 20_000] {
            client.actor.ask(&Ask::udp(dst).bytes(size, size)).unwrap();
            client.actor.ask(&Ask::udp(dst).bytes(size, 0).unconnected()).unwrap();
        }
    }
}

#[test]
fn a_narrow_path_is_learnt() {
    let topology = Topology::standard(2, 1).unwrap();
    let (client, server) = (topology.pod("a1"), topology.pod("b1"));
    topology
        .narrow_between(topology.node("node-a"), topology.node("node-b"), 1_320)
        .unwrap();
    for family in FAMILIES {
        let dst = SocketAddr::new(server.ip(family), 7);
        server.actor.serve(Transport::Tcp, dst);
        server.actor.serve(Transport::Udp, dst);
        for ask in [Ask::udp(dst), Ask::udp(dst).unconnected()] {
            let error = client.actor.ask(
                &ask.clone()
                    .bytes(1_400, 0)
                    .dont_fragment()
                    .timeout(Duration::from_millis(500)),
            );
            let error = error.unwrap_err();
            assert_eq!(
                (error.kind.clone(), error.path_mtu),
                (Failure::MessageTooLong, Some(1_320)),
                "{ask:?}: {error}"
            );
            for family in ["-4", "-6"] {
                assert_eq!(
                    client
                        .actor
                        .run("ip", &[family, "route", "flush", "cache"], "")
                        .unwrap()
                        .code,
                    Some(0)
                );
            }
        }
        let answer = client.actor.ask(&Ask::tcp(dst).bytes(100_000, 100_000)).unwrap();
        assert_eq!(answer.path_mtu, Some(1_320), "{family:?}");
    }
}

#[test]
fn a_bound_client_keeps_its_tuple() {
    let topology = Topology::standard(1, 1).unwrap();
    for family in FAMILIES {
        let node = topology.node("node-a");
        for port in [81, 82] {
            let serving = node.actor.serve(Transport::Tcp, SocketAddr::new(node.ip(family), port));
            let answer = topology
                .outside()
                .ask(&Ask::tcp(serving.addr).from(addr::outside(family, 1), 40_000))
                .unwrap();
            assert_eq!(answer.seen_peer, SocketAddr::new(addr::outside(family, 1), 40_000));
            assert_eq!(answer.peer_name, serving.addr);
        }
    }
}

#[test]
fn kept_connections_live_until_the_server_cuts_them() {
    let topology = Topology::standard(1, 2).unwrap();
    let (client, server) = (topology.pod("a1"), topology.pod("a2"));
    let tcp = server
        .actor
        .serve(Transport::Tcp, SocketAddr::new(server.ip(FAMILIES[0]), 7));
    let udp = server
        .actor
        .serve(Transport::Udp, SocketAddr::new(server.ip(FAMILIES[1]), 7));
    let (over_tcp, _) = client.actor.open(&Ask::tcp(tcp.addr)).unwrap();
    let (over_udp, first) = client.actor.open(&Ask::udp(udp.addr)).unwrap();
    assert_eq!(
        over_udp.exchange(300, 3_000).unwrap().seen_peer,
        first.seen_peer,
        "the same socket"
    );
    over_tcp.exchange(10, 10).unwrap();
    server.actor.stop_serving(tcp);
    assert_eq!(over_tcp.exchange(0, 0).unwrap_err().kind, Failure::ConnectionReset);
}

#[test]
fn a_load_tells_expected_wrong_and_failed_answers_apart() {
    let topology = Topology::standard(1, 2).unwrap();
    let (client, server) = (topology.pod("a1"), topology.pod("a2"));
    let dst = SocketAddr::new(server.ip(FAMILIES[0]), 7);
    let serving = server.actor.serve_as(Transport::Tcp, dst, "good");
    let load = client.actor.load(Load::new(Ask::tcp(dst), ["good"]));
    while load.peek().answered() < 20 {}
    assert!(load.peek().is_clean());
    server.actor.stop_serving(serving);
    while load.peek().failed.is_empty() {}
    server.actor.serve_as(Transport::Tcp, dst, "bad");
    while load.peek().wrong.is_empty() {}
    let tally = load.stop();
    assert!(!tally.is_clean());
    assert_eq!(tally.wrong.keys().collect::<Vec<_>>(), ["bad"]);
    let many = client.actor.ask_many(&Ask::tcp(dst), 50, 4);
    assert_eq!((many.answered(), many.failures(), many.latencies_us.len()), (50, 0, 50));
}

#[test]
fn programs_run_in_the_namespace_and_end_when_told() {
    let topology = Topology::standard(1, 0).unwrap();
    let node = topology.node("node-a");
    let log = node.dir.join("log").to_string_lossy().into_owned();
    let spawn = |script: &str| harness::proto::Operation::Spawn {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: vec![("WORD".into(), "heard".into())],
        log: log.clone(),
    };
    let end = |pid| harness::proto::Operation::Kill {
        pid,
        signal: libc::SIGTERM,
        grace_ms: 300,
    };
    let polite: i32 = node
        .actor
        .call(spawn("trap 'exit 7' TERM; echo $WORD; while :; do sleep 0.01; done"))
        .unwrap();
    while !std::fs::read_to_string(&log).unwrap().contains("heard") {}
    assert_eq!(node.actor.call::<Option<i32>>(end(polite)).unwrap(), Some(7));
    let stubborn: i32 = node
        .actor
        .call(spawn("trap '' TERM; echo again; while :; do sleep 0.01; done"))
        .unwrap();
    while !std::fs::read_to_string(&log).unwrap().contains("again") {}
    assert_eq!(
        node.actor.call::<Option<i32>>(end(stubborn)).unwrap(),
        None,
        "SIGKILL after the grace period"
    );
    assert!(node.actor.call::<Option<i32>>(end(1)).is_err(), "only what it started");
}
