//! Packets that do not fit on the way to their backend.

use crate::{
    answer::{back, quote},
    packet::{ACK, Body, Packet},
    rig::{At, NEXT, Outcome, REDIRECT, Rig, Way, ip, on_node, same},
    trip::Trip,
    world::{ORIGINS, World},
};
use proxy::{
    model::{Family, Protocol},
    plan::trace::Origin,
};
use proxy_common::verdict::Verdict;
use std::net::SocketAddr;

const MTU: u16 = 1_300;

/// Clients of flows whose answers travel, and where the backend is.
const WAYS_BACK: [(Origin, Way); 4] = [
    (Origin::Pod, Way::Pod),
    (Origin::Pod, Way::Net),
    (Origin::Outside, Way::Pod),
    (Origin::Outside, Way::Net),
];

/// Both interfaces take 1300 bytes.
fn narrow() {
    ip(&format!("link set net0 mtu {MTU}\nlink set pod0 mtu {MTU}\n"));
}

/// A packet of this flow of `length` bytes from the IP header on.
fn sized(trip: &Trip, length: usize) -> Packet {
    let packet = |data: usize| match trip.first.body {
        Body::Tcp { .. } => Packet::tcp(trip.first.source, trip.first.destination, ACK, &vec![3; data]),
        _ => Packet::udp(trip.first.source, trip.first.destination, &vec![3; data]),
    };
    packet(length - packet(0).ip().len())
}

/// Fragmentation needed (RFC 1191), packet too big (RFC 4443).
fn too_big(packet: &Packet, at: At) -> Outcome {
    let [high, low] = MTU.to_be_bytes();
    let kind = if packet.source.is_ipv4() { [3, 4] } else { [2, 0] };
    let (from, to) = (packet.destination.ip(), packet.source.ip());
    let answer = Packet {
        ethernet: back(packet, at),
        id: 0,
        ..Packet::error(from, to, kind, [0, 0, high, low], &quote(packet))
    };
    Outcome {
        action: REDIRECT,
        verdict: Verdict::RejectTooBig,
        frame: answer.encode(),
    }
}

fn open(rig: &mut Rig, world: World, origin: Origin, port: u16) -> Trip {
    open_to(rig, world, origin, world.vip(), port, Way::Net)
}

fn open_to(rig: &mut Rig, world: World, origin: Origin, frontend: SocketAddr, port: u16, way: Way) -> Trip {
    let backend = if way == Way::Net { world.there(2) } else { world.here(1) };
    world.serve(rig, &[backend]);
    let client = world.client(origin, port);
    let targets = world.targets(rig, origin, client, &[backend]);
    Trip::open(rig, origin, &world.first(client, frontend), &targets).unwrap()
}

/// The backend's answer of `length` bytes from the IP header on.
fn answer(trip: &Trip, length: u16) -> Packet {
    let packet = |data: usize| match trip.first.body {
        Body::Tcp { .. } => Packet::tcp(trip.target, trip.source, ACK, &vec![3; data]),
        _ => Packet::udp(trip.target, trip.source, &vec![3; data]),
    };
    packet(usize::from(length) - packet(0).ip().len())
}

/// Whether the programs route the flow's answers themselves.
fn must_return(rig: &Rig, trip: &Trip) -> bool {
    trip.masqueraded || (rig.direct() && rig.view.addresses.contains(&trip.first.destination.ip()))
}

/// Where we route, we answer; where the stack routes, it does.
#[test]
fn too_large_for_the_way() {
    on_node("too_large_for_the_way", |mut rig| {
        narrow();
        let mut port = 25_000;
        for direct in [false, true] {
            rig.set_direct(direct);
            for world in World::all() {
                for origin in ORIGINS {
                    port += 1;
                    let trip = open(&mut rig, world, origin, port);
                    let at = rig.entry(origin, world.vip().ip());
                    trip.forward(&mut rig, &sized(&trip, MTU.into())).unwrap();
                    let large = sized(&trip, usize::from(MTU) + 1);
                    let want = if trip.masqueraded || origin == Origin::Host {
                        too_big(&large, at)
                    } else {
                        Outcome {
                            action: NEXT,
                            verdict: Verdict::Forward,
                            frame: large.between(trip.source, trip.target).encode(),
                        }
                    };
                    same(&want, &rig.run(at, &large.encode()))
                        .unwrap_or_else(|error| panic!("{world:?} {origin:?}, direct {direct}: {error}"));
                    // The flow goes on.
                    trip.forward(&mut rig, &sized(&trip, MTU.into())).unwrap();
                    trip.answered(&mut rig).unwrap();
                }
            }
        }
    });
}

/// Answers that the stack cannot take (masqueraded, or from the node's own address) are refused here, towards the backend;
/// for the others the stack fragments or refuses.
#[test]
fn answers_too_large_for_the_way_back() {
    on_node("answers_too_large_for_the_way_back", |mut rig| {
        narrow();
        let mut port = 25_000;
        for direct in [false, true] {
            rig.set_direct(direct);
            for world in World::all() {
                for (origin, backend) in WAYS_BACK {
                    for frontend in [world.vip(), world.node_port()] {
                        port += 1;
                        let wrong = |error| {
                            panic!("{world:?} {origin:?} from {frontend}, {backend:?}, direct {direct}: {error}")
                        };
                        let trip = open_to(&mut rig, world, origin, frontend, port, backend);
                        let at = trip.arrival(&rig);
                        trip.answered_with(&mut rig, &answer(&trip, MTU)).unwrap_or_else(wrong);
                        let large = answer(&trip, MTU + 1);
                        if must_return(&rig, &trip) {
                            same(&too_big(&large, at), &rig.run(at, &large.encode())).unwrap_or_else(wrong);
                        } else {
                            let on = Outcome {
                                action: NEXT,
                                verdict: Verdict::Reply,
                                frame: large.between(frontend, trip.first.source).encode(),
                            };
                            let at = if direct { at } else { trip.departure().unwrap() };
                            same(&on, &rig.run(at, &large.encode())).unwrap_or_else(wrong);
                        }
                        // The flow goes on.
                        trip.answered_with(&mut rig, &answer(&trip, MTU)).unwrap_or_else(wrong);
                        trip.again(&mut rig).unwrap_or_else(wrong);
                    }
                }
            }
        }
    });
}

/// IPv4 whose sender allows fragments (RFC 791) is never told that it is too large: what the stack cannot take goes to
/// the device as it is.
#[test]
fn what_may_be_cut_up_is_sent_on() {
    on_node("what_may_be_cut_up_is_sent_on", |mut rig| {
        narrow();
        let mut port = 25_000;
        let may_fragment = |packet: Packet| Packet {
            may_fragment: true,
            ..packet
        };
        for direct in [false, true] {
            rig.set_direct(direct);
            for world in World::all().filter(|world| world.family == Family::V4) {
                for origin in ORIGINS {
                    port += 1;
                    let trip = open(&mut rig, world, origin, port);
                    let large = may_fragment(sized(&trip, usize::from(MTU) + 1));
                    if trip.masqueraded || origin == Origin::Host {
                        trip.forward(&mut rig, &large).unwrap();
                    } else {
                        let want = Outcome {
                            action: NEXT,
                            verdict: Verdict::Forward,
                            frame: large.between(trip.source, trip.target).encode(),
                        };
                        let at = rig.entry(origin, world.vip().ip());
                        same(&want, &rig.run(at, &large.encode())).unwrap();
                    }
                }
                for (origin, backend) in WAYS_BACK {
                    for frontend in [world.vip(), world.node_port()] {
                        port += 1;
                        let trip = open_to(&mut rig, world, origin, frontend, port, backend);
                        if must_return(&rig, &trip) {
                            let large = may_fragment(answer(&trip, MTU + 1));
                            trip.answered_with(&mut rig, &large).unwrap_or_else(|error| {
                                panic!("{world:?} {origin:?} from {frontend}, {backend:?}, direct {direct}: {error}")
                            });
                        }
                    }
                }
            }
        }
    });
}

/// A super-packet is as large as its segments.
#[test]
fn segments_count_not_super_packets() {
    on_node("segments_count_not_super_packets", |mut rig| {
        narrow();
        for world in World::all() {
            let trip = open(&mut rig, world, Origin::Outside, 25_000);
            let large = sized(&trip, 3_000);
            let head = match (world.family, world.protocol) {
                (Family::V4, Protocol::Tcp) => 40,
                (Family::V4, _) => 28,
                (_, Protocol::Tcp) => 60,
                (..) => 48,
            };
            for (segment, fits) in [(MTU - head, true), (MTU - head + 1, false), (500, true), (1_448, false)] {
                let got = rig.try_run(At::FromNet, &large.encode(), segment.into()).unwrap();
                let want = if fits { Verdict::Forward } else { Verdict::RejectTooBig };
                assert_eq!((got.verdict, got.action), (want, REDIRECT), "{world:?} {segment}");
                if fits {
                    let want = large.between(trip.source, trip.target).hopped(1).encode();
                    assert_eq!(got.frame, want, "{world:?} {segment}");
                } else {
                    same(&too_big(&large, At::FromNet), &got).unwrap();
                }
            }
        }
    });
}
