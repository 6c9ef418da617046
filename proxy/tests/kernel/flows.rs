//! What a flow lives through: backends that go, connections that end, entries that are evicted, ports that collide.

use crate::{
    answer::rejection,
    packet::{ACK, Body, FIN, Packet, RST, SYN, tuple},
    rig::{At, MAC, NEXT, Outcome, REDIRECT, Rig, SHOT, Way, in_namespace, ip, on_node, same, sizes},
    trip::Trip,
    world::{ORIGINS, TARGET_PORT, World},
};
use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};
use proxy::{
    model::Protocol,
    plan::trace::{self, Origin},
    testing,
};
use proxy_common::{
    abi::{flow_flags, idle, way},
    verdict::Verdict,
};
use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

/// Longest wait for what takes a hundredth of a second.
const PATIENCE: Duration = Duration::from_secs(20);

/// Opens a flow to the ClusterIP.
fn open(rig: &mut Rig, world: World, origin: Origin, port: u16, endpoints: &[IpAddr]) -> Trip {
    let client = world.client(origin, port);
    let targets = world.targets(rig, origin, client, endpoints);
    let first = world.first(client, world.vip());
    Trip::open(rig, origin, &first, &targets).unwrap_or_else(|error| panic!("{world:?} {origin:?}: {error}"))
}

/// Every origin in either family, TCP and UDP, backends here and elsewhere, forwarded up the stack and directly; an
/// answer that comes from there.
pub(crate) fn every_flow(name: &str, mut check: impl FnMut(&mut Rig, World, Trip) -> Result<(), String> + Send) {
    on_node(name, |mut rig| {
        let mut port = 25_000;
        for direct in [false, true] {
            rig.set_direct(direct);
            for world in World::all() {
                for backend in [world.here(1), world.there(2)] {
                    world.serve(&mut rig, &[backend]);
                    for origin in ORIGINS {
                        port += 1;
                        let trip = open(&mut rig, world, origin, port, &[backend]);
                        check(&mut rig, world, trip).unwrap_or_else(|error| {
                            panic!("{world:?} {origin:?} to {backend}, direct {direct}: {error}")
                        });
                    }
                }
            }
        }
    });
}

#[test]
fn answers_without_end() {
    every_flow("answers_without_end", |rig, _, trip| {
        for _ in 0..3 {
            trip.again(rig)?;
            trip.answered(rig)?;
        }
        Ok(())
    });
}

/// The node talks to a backend that has its own address: nothing needs masquerading, `lo` carries both directions.
#[test]
fn the_node_is_its_own_backend() {
    on_node("the_node_is_its_own_backend", |mut rig| {
        for world in World::all() {
            let backend = world.node_port().ip();
            world.serve(&mut rig, &[backend]);
            for (origin, port) in ORIGINS.into_iter().zip(26_000..) {
                let trip = open(&mut rig, world, origin, port, &[backend]);
                let asked = trace::Packet {
                    source: trip.first.source,
                    destination: trip.first.destination,
                    protocol: world.protocol,
                    origin,
                };
                let meant = trace::trace(&rig.plan, &rig.view, &asked, &trace::State::default());
                let targets = world.targets(&rig, origin, asked.source, &[backend]);
                assert_eq!(meant, trace::Verdict::Forward(targets));
                trip.again(&mut rig).unwrap();
                let answer = trip.first.between(trip.source, trip.target).reply();
                // A socket of this node answers: towards a pod, over the network, or over `lo`.
                let at = match origin {
                    Origin::Pod => At::ToPod,
                    Origin::Host => At::Loopback,
                    Origin::Outside => At::OutOfNode,
                };
                let got = rig.run(at, &answer.encode());
                let want = answer.between(trip.first.destination, trip.first.source).encode();
                assert_eq!(
                    (got.verdict, got.action, got.frame),
                    (Verdict::Reply, -1, want),
                    "{world:?} {origin:?}"
                );
            }
        }
    });
}

/// As above, but `masqueradeAll` makes the node the client too, so that the answer never leaves it but over `lo`.
#[test]
fn the_node_answers_itself_for_a_pod() {
    in_namespace("the_node_answers_itself_for_a_pod", || {
        let view = proxy::model::NodeView {
            masquerade_all: true,
            ..testing::node()
        };
        let mut rig = Rig::open(view, sizes());
        for world in World::all() {
            let backend = world.node_port().ip();
            world.serve(&mut rig, &[backend]);
            let client = world.client(Origin::Pod, 25_000);
            let mut targets = world.targets(&rig, Origin::Pod, client, &[backend]);
            targets[0].masquerade = true;
            let trip = Trip::open(&mut rig, Origin::Pod, &world.first(client, world.vip()), &targets).unwrap();
            let answer = trip.first.between(trip.source, trip.target).reply();
            let got = rig.run(At::Loopback, &answer.encode());
            let want = answer.between(trip.first.destination, trip.first.source).encode();
            assert_eq!(
                (got.verdict, got.action, got.frame),
                (Verdict::Reply, REDIRECT, want),
                "{world:?}"
            );
        }
    });
}

/// UDP: the very next packet goes to a backend that is there.
#[test]
fn udp_leaves_a_backend_that_is_gone() {
    on_node("udp_leaves_a_backend_that_is_gone", |mut rig| {
        for world in World::of(Protocol::Udp) {
            for (origin, port) in ORIGINS.into_iter().zip(25_000..) {
                let both = [world.here(1), world.there(2)];
                world.serve(&mut rig, &both);
                let trip = open(&mut rig, world, origin, port, &both);
                let left: Vec<_> = both.into_iter().filter(|addr| *addr != trip.target.ip()).collect();
                world.serve(&mut rig, &left);
                let targets = world.targets(&rig, origin, trip.first.source, &left);
                let next = Trip::open_as(&mut rig, origin, &trip.first, &targets, Verdict::Reselected).unwrap();
                next.keeps_port().unwrap();
                next.again(&mut rig).unwrap();
                next.answered(&mut rig).unwrap();
                // With nobody left it is told so, with no service left it is none of our business.
                world.serve(&mut rig, &[]);
                let at = rig.entry(origin, world.vip().ip());
                same(&rejection(&trip.first, at), &rig.run(at, &trip.first.encode())).unwrap();
                rig.serve(&[], &[]);
                rig.passes(at, &trip.first, &[Verdict::NotService]).unwrap();
                // The flow comes back to life with the service.
                world.serve(&mut rig, &left);
                Trip::open_as(&mut rig, origin, &trip.first, &targets, Verdict::Reselected).unwrap();
            }
        }
    });
}

/// TCP: a connection dies with its backend, nobody else could go on with it; but a new one on the same ports does not.
#[test]
fn tcp_stays_with_its_backend_until_a_syn() {
    on_node("tcp_stays_with_its_backend_until_a_syn", |mut rig| {
        for world in World::of(Protocol::Tcp) {
            for (origin, port) in ORIGINS.into_iter().zip(25_000..) {
                let both = [world.here(1), world.there(2)];
                world.serve(&mut rig, &both);
                let trip = open(&mut rig, world, origin, port, &both);
                let left: Vec<_> = both.into_iter().filter(|addr| *addr != trip.target.ip()).collect();
                world.serve(&mut rig, &left);
                let (from, to) = (trip.first.source, trip.first.destination);
                for flags in [ACK, SYN | ACK] {
                    trip.forward(&mut rig, &Packet::tcp(from, to, flags, b"more")).unwrap();
                }
                trip.answered(&mut rig).unwrap();
                let targets = world.targets(&rig, origin, from, &left);
                let next = Trip::open(&mut rig, origin, &trip.first, &targets).unwrap();
                next.again(&mut rig).unwrap();
                next.answered(&mut rig).unwrap();
            }
        }
    });
}

/// A backend that terminates but still serves keeps the flows that it has.
#[test]
fn a_draining_backend_keeps_its_flows() {
    on_node("a_draining_backend_keeps_its_flows", |mut rig| {
        for world in World::all() {
            let [a, b] = [world.here(1), world.there(2)];
            world.serve(&mut rig, &[a]);
            let trip = open(&mut rig, world, Origin::Pod, 25_000, &[a]);
            let endpoints = [world.endpoint(&rig, a).terminating(), world.endpoint(&rig, b)];
            rig.serve(&[world.service().build()], &[world.slice(&endpoints)]);
            trip.again(&mut rig).unwrap();
            trip.answered(&mut rig).unwrap();
            for port in 25_001..25_010 {
                open(&mut rig, world, Origin::Pod, port, &[b]);
            }
        }
    });
}

/// FIN or RST in either direction: a SYN on the same ports is a new connection, and its answers are translated.
#[test]
fn ports_are_reused() {
    every_flow("ports_are_reused", |rig, world, trip| {
        if world.protocol != Protocol::Tcp {
            return Ok(());
        }
        let target = trace::Target {
            addr: trip.target,
            masquerade: trip.masqueraded,
        };
        let (from, to) = (trip.first.source, trip.first.destination);
        for flags in [FIN | ACK, RST, RST | ACK] {
            trip.forward(rig, &Packet::tcp(from, to, flags, b""))?;
            // What is still on its way goes on.
            trip.forward(rig, &Packet::tcp(from, to, ACK, b""))?;
            trip.answered(rig)?;
            let next = Trip::open(rig, trip.origin, &trip.first, &[target])?;
            next.keeps_port()?;
            next.again(rig)?;
            next.answered_with(rig, &Packet::tcp(trip.target, next.source, flags, b""))?;
            let last = Trip::open(rig, trip.origin, &trip.first, &[target])?;
            last.again(rig)?;
            last.answered(rig)?;
        }
        Ok(())
    });
}

/// Keeps this thread on the processor that it runs on: what the programs remember of resets is each processor's own.
fn stay_here() {
    let mut here = CpuSet::new();
    here.set(sched_getcpu().unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &here).unwrap();
}

/// A reset flow goes with a later reset on its processor, unless a packet after the reset shows that it goes on.
#[test]
fn a_reset_flow_is_removed() {
    on_node("a_reset_flow_is_removed", |mut rig| {
        stay_here();
        for world in World::of(Protocol::Tcp) {
            let backend = world.here(1);
            world.serve(&mut rig, &[backend]);
            let reset = |rig: &mut Rig, port: u16| {
                let trip = open(rig, world, Origin::Pod, port, &[backend]);
                let (from, to) = (trip.first.source, trip.first.destination);
                trip.forward(rig, &Packet::tcp(from, to, RST, b"")).unwrap();
                trip
            };
            let over = reset(&mut rig, 25_000);
            let ended = |rig: &mut Rig, trip: &Trip| {
                let entries = trip.entries(rig).unwrap();
                entries.map(|entry| entry.flags & flow_flags::ENDED != 0)
            };
            assert_eq!(ended(&mut rig, &over), [true; 2], "{world:?}: until the next reset");
            let mut alive = Vec::new();
            for (port, by_client) in [(25_001, true), (25_002, false)] {
                let trip = reset(&mut rig, port);
                let (from, to) = (trip.first.source, trip.first.destination);
                if by_client {
                    trip.forward(&mut rig, &Packet::tcp(from, to, ACK, b"")).unwrap();
                } else {
                    trip.answered(&mut rig).unwrap();
                }
                assert_eq!(ended(&mut rig, &trip), [false; 2], "{world:?}: nobody believed it");
                alive.push(trip);
            }
            let begun = Instant::now();
            let mut ports = (25_003..60_000).cycle();
            while rig.flow(6, over.first.source, over.first.destination).is_some() {
                assert!(begun.elapsed() < PATIENCE, "{world:?}: never removed");
                reset(&mut rig, ports.next().unwrap());
            }
            assert!(
                rig.flow(6, over.target, over.source).is_none(),
                "{world:?}: half a flow left"
            );
            for trip in alive {
                trip.entries(&mut rig).unwrap();
                trip.answered(&mut rig).unwrap();
            }
        }
    });
}

/// A packet in the middle of a connection that nobody remembers opens a flow: the table may have lost it.
#[test]
fn the_middle_of_a_connection_opens_a_flow() {
    on_node("the_middle_of_a_connection_opens_a_flow", |mut rig| {
        for world in World::of(Protocol::Tcp) {
            let backend = world.here(1);
            world.serve(&mut rig, &[backend]);
            for (flags, port) in [ACK, FIN | ACK, RST, 0].into_iter().zip(25_000..) {
                let client = world.client(Origin::Pod, port);
                let targets = world.targets(&rig, Origin::Pod, client, &[backend]);
                let packet = Packet::tcp(client, world.vip(), flags, b"data");
                Trip::open(&mut rig, Origin::Pod, &packet, &targets).unwrap();
            }
        }
    });
}

/// One entry of a flow is evicted: the other one restores it, within a second of the flow's next packet.
#[test]
fn half_a_flow_heals() {
    every_flow("half_a_flow_heals", |rig, _, trip| {
        let number = trip.first.protocol();
        let forward = (trip.first.source, trip.first.destination);
        let reply = (trip.target, trip.source);
        trip.again(rig)?;
        let [_, before] = trip.entries(rig)?;
        rig.forget_flow(number, reply.0, reply.1);
        rig.age_flow(number, forward.0, forward.1, 2 * idle::SECOND);
        // An acknowledgement: a repeated SYN would open the connection anew.
        let more = match trip.first.body {
            Body::Tcp { .. } => Packet::tcp(forward.0, forward.1, ACK, b"more"),
            _ => trip.first.clone(),
        };
        trip.forward(rig, &more)?;
        let [_, after] = trip.entries(rig)?;
        if before.flags != after.flags {
            return Err(format!("{before:?} became {after:?}"));
        }
        trip.answered(rig)?;
        rig.forget_flow(number, forward.0, forward.1);
        rig.age_flow(number, reply.0, reply.1, 2 * idle::SECOND);
        trip.answered(rig)?;
        trip.forward(rig, &more)
    });
}

/// Two frontends, one backend, one client port: the backend sees two clients, and each answer comes from the frontend
/// that was asked.
#[test]
fn one_client_port_many_frontends() {
    on_node("one_client_port_many_frontends", |mut rig| {
        let mut port = 25_000;
        for direct in [false, true] {
            rig.set_direct(direct);
            for world in World::all() {
                for backend in [world.here(1), world.there(2)] {
                    world.serve(&mut rig, &[backend]);
                    for origin in ORIGINS {
                        port += 1;
                        let client = world.client(origin, port);
                        let targets = world.targets(&rig, origin, client, &[backend]);
                        let mut trips: Vec<Trip> = Vec::new();
                        for frontend in [world.vip(), world.external(), world.node_port()] {
                            let first = world.first(client, frontend);
                            trips.push(Trip::open(&mut rig, origin, &first, &targets).unwrap());
                        }
                        let mut sources: Vec<_> = trips.iter().map(|trip| trip.source).collect();
                        sources.sort();
                        sources.dedup();
                        assert_eq!(sources.len(), 3, "{world:?} {origin:?}: {trips:?}");
                        trips[0].keeps_port().unwrap();
                        for trip in &trips {
                            trip.again(&mut rig).unwrap();
                            trip.answered(&mut rig).unwrap();
                        }
                    }
                }
            }
        }
    });
}

/// Eight tries at random may miss the last free ports, but never give one away twice.
#[test]
fn masquerade_ports_are_unique() {
    on_node("masquerade_ports_are_unique", |mut rig| {
        rig.change_node(|node| (node.snat_port_first, node.snat_port_last) = (40_000, 40_099));
        for world in World::all() {
            let backend = world.there(2);
            world.serve(&mut rig, &[backend]);
            let mut trips: Vec<Trip> = Vec::new();
            for port in 1_000..1_080 {
                let client = world.client(Origin::Outside, port);
                let targets = world.targets(&rig, Origin::Outside, client, &[backend]);
                let first = world.first(client, world.vip());
                match Trip::open(&mut rig, Origin::Outside, &first, &targets) {
                    Ok(trip) => trips.push(trip),
                    Err(error) => assert!(error.contains("DropSnatPortsExhausted"), "{error}"),
                }
            }
            let mut ports: Vec<_> = trips.iter().map(|trip| trip.source.port()).collect();
            ports.sort_unstable();
            ports.dedup();
            assert_eq!(ports.len(), trips.len());
            assert!(trips.len() >= 75, "{} of 80 flows found a port", trips.len());
            assert!(ports.iter().all(|port| (40_000..=40_099).contains(port)));
            for trip in &trips {
                trip.answered(&mut rig).unwrap();
            }
        }
    });
}

/// Without an address of the family there is nothing to masquerade with.
#[test]
fn no_masquerade_address() {
    on_node("no_masquerade_address", |mut rig| {
        rig.change_node(|node| (node.snat_v4, node.snat_v6) = ([0; 4], [0; 16]));
        for world in World::all() {
            world.serve(&mut rig, &[world.there(2)]);
            let client = world.client(Origin::Outside, 25_000);
            let got = rig.run(At::FromNet, &world.first(client, world.vip()).encode());
            assert_eq!((got.verdict, got.action), (Verdict::DropNoSnatAddress, SHOT));
            // Flows that need none are served.
            let trip = open(&mut rig, world, Origin::Pod, 25_000, &[world.there(2)]);
            trip.answered(&mut rig).unwrap();
        }
    });
}

/// The last hop's packet goes up the stack as it is, which answers that its time is over.
#[test]
fn the_last_hop_is_the_stacks() {
    every_flow("the_last_hop_is_the_stacks", |rig, _, trip| {
        let last = Packet {
            hops: 1,
            ..trip.first.clone()
        };
        let at = rig.entry(trip.origin, trip.first.destination.ip());
        let got = rig.run(at, &last.encode());
        let want = last.between(trip.source, trip.target).encode();
        let routed_here = trip.origin != Origin::Host;
        if (got.verdict, &got.frame) != (Verdict::Forward, &want) {
            return Err(format!("{got:?}"));
        }
        if routed_here != (got.action != REDIRECT) {
            return Err(format!("action {}", got.action));
        }
        Ok(())
    });
}

/// Direct forwarding: into the pod behind a veth that may be redirected to, else out of the interface.
#[test]
fn direct_ways() {
    on_node("direct_ways", |mut rig| {
        rig.set_direct(true);
        let mut port = 25_000;
        for peer in [true, false] {
            if !peer {
                let pod = rig.pod;
                rig.reconciler.dataplane().maps().set_device(pod, None).unwrap();
            }
            for world in World::all() {
                for backend in [world.here(1), world.there(2)] {
                    world.serve(&mut rig, &[backend]);
                    port += 1;
                    let trip = open(&mut rig, world, Origin::Pod, port, &[backend]);
                    let flow = rig
                        .flow(trip.first.protocol(), trip.first.source, trip.first.destination)
                        .unwrap();
                    let want = match rig.way(backend) {
                        Way::Pod if peer => (way::PEER, rig.pod),
                        Way::Pod => (way::NEIGHBOUR, rig.pod),
                        _ => (way::NEIGHBOUR, rig.net),
                    };
                    assert_eq!((flow.way, flow.ifindex), want, "{world:?} {backend}");
                    assert_eq!(flow.flags & flow_flags::MASQUERADED, 0);
                    trip.answered(&mut rig).unwrap();
                }
            }
        }
    });
}

/// Direct forwarding leaves it to the stack to find a neighbour, unless the stack would not take the packet.
#[test]
fn unknown_neighbours() {
    on_node("unknown_neighbours", |mut rig| {
        rig.set_direct(true);
        let gateways = ["192.168.0.254", "fd00:192:168::fe"];
        for (origin, port) in [Origin::Pod, Origin::Outside].into_iter().zip(25_000..) {
            for world in World::all() {
                let backend = world.there(2);
                world.serve(&mut rig, &[backend]);
                ip(&gateways.map(|addr| format!("neigh del {addr} dev net0\n")).concat());
                let first = world.first(world.client(origin, port), world.vip());
                let at = rig.entry(origin, world.vip().ip());
                let got = rig.run(at, &first.encode());
                let translated = first.between(tuple(&got.frame).0, SocketAddr::new(backend, TARGET_PORT));
                let must = origin == Origin::Outside;
                let want = Outcome {
                    action: if must { REDIRECT } else { NEXT },
                    verdict: Verdict::NewFlow,
                    frame: translated.hopped(u8::from(must)).encode(),
                };
                same(&want, &got).unwrap_or_else(|error| panic!("{world:?} {origin:?}: {error}"));
                // The very next packet after it is found goes directly.
                let found = gateways.map(|addr| format!("neigh replace {addr} lladdr {MAC} dev net0 nud permanent\n"));
                ip(&found.concat());
                let want = Outcome {
                    action: REDIRECT,
                    verdict: Verdict::Forward,
                    frame: translated.hopped(1).encode(),
                };
                same(&want, &rig.run(at, &first.encode()))
                    .unwrap_or_else(|error| panic!("{world:?} {origin:?}: {error}"));
            }
        }
    });
}

/// Without a route the stack says so: at the packet's own interface or, for what carries the node's own address, at `lo`
/// (the kernel does not tell the programs "no route" from "here").
#[test]
fn no_route() {
    on_node("no_route", |mut rig| {
        ip("route del default\nroute del ::/0\n");
        for direct in [false, true] {
            rig.set_direct(direct);
            for world in World::all() {
                let backend = world.there(2);
                world.serve(&mut rig, &[backend]);
                for (origin, port) in ORIGINS.into_iter().zip(if direct { 25_000.. } else { 25_010.. }) {
                    let client = world.client(origin, port);
                    let first = world.first(client, world.vip());
                    let at = rig.entry(origin, world.vip().ip());
                    let got = rig.run(at, &first.encode());
                    let mut want = first.between(tuple(&got.frame).0, SocketAddr::new(backend, TARGET_PORT));
                    let own = origin != Origin::Pod;
                    if own {
                        want.ethernet = [0; 12];
                    }
                    let want = Outcome {
                        action: if own { REDIRECT } else { NEXT },
                        verdict: Verdict::NewFlow,
                        frame: want.encode(),
                    };
                    same(&want, &got).unwrap_or_else(|error| panic!("{world:?} {origin:?}, direct {direct}: {error}"));
                }
            }
        }
    });
}
