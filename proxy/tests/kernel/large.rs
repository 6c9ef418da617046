//! Packets that do not fit on the way to their backend.

use crate::{
    answer::{back, quote},
    packet::{ACK, Body, Packet},
    rig::{At, NEXT, Outcome, REDIRECT, Rig, ip, on_node, same},
    trip::Trip,
    world::{ORIGINS, World},
};
use proxy::{
    model::{Family, Protocol},
    plan::trace::Origin,
};
use proxy_common::verdict::Verdict;

const MTU: u16 = 1_300;

/// `net0` takes 1300 bytes.
fn narrow() {
    ip(&format!("link set net0 mtu {MTU}\n"));
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
    let backend = world.there(2);
    world.serve(rig, &[backend]);
    let client = world.client(origin, port);
    let targets = world.targets(rig, origin, client, &[backend]);
    Trip::open(rig, origin, &world.first(client, world.vip()), &targets).unwrap()
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

/// Answers are too large for the way back only where the stack can tell: it fragments them or says so.
#[test]
fn answers_too_large_for_the_way_back() {
    on_node("answers_too_large_for_the_way_back", |mut rig| {
        narrow();
        for world in World::all() {
            let trip = open(&mut rig, world, Origin::Outside, 25_000);
            let packet = |data: usize| match world.protocol {
                Protocol::Tcp => Packet::tcp(trip.target, trip.source, ACK, &vec![3; data]),
                _ => Packet::udp(trip.target, trip.source, &vec![3; data]),
            };
            let head = packet(0).ip().len();
            trip.answered_with(&mut rig, &packet(usize::from(MTU) - head)).unwrap();
            let large = packet(usize::from(MTU) - head + 1);
            let got = rig.run(At::FromNet, &large.encode());
            let want = large.between(world.vip(), trip.first.source).encode();
            assert_eq!(
                (got.verdict, got.action, got.frame),
                (Verdict::Reply, NEXT, want),
                "{world:?}"
            );
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
