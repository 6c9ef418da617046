//! Fragments: the first one has the ports, later ones follow it.

use crate::{
    packet::{Packet, SYN},
    rig::{At, Rig, on_node},
    trip::Trip,
    world::{ORIGINS, World},
};
use proxy::{model::Protocol, plan::trace::Origin};
use proxy_common::verdict::Verdict;
use std::net::IpAddr;

/// A question of 3000 bytes.
fn question(world: World, origin: Origin, port: u16) -> Packet {
    question_of(3_000, world, origin, port)
}

fn question_of(length: u32, world: World, origin: Origin, port: u16) -> Packet {
    let (from, to) = (world.client(origin, port), world.vip());
    let data: Vec<u8> = (0..length).map(|n| (n * 7) as u8).collect();
    match world.protocol {
        Protocol::Tcp => Packet::tcp(from, to, SYN, &data),
        _ => Packet::udp(from, to, &data),
    }
}

/// The pieces of a datagram, by where they begin and end.
const PIECES: [(usize, usize); 3] = [(0, 1_400), (1_400, 2_800), (2_800, usize::MAX)];

fn every_datagram(
    name: &str,
    mut check: impl FnMut(&mut Rig, World, Origin, IpAddr, u16) -> Result<(), String> + Send,
) {
    on_node(name, |mut rig| {
        let mut port = 25_000;
        for direct in [false, true] {
            rig.set_direct(direct);
            for world in World::all() {
                for backend in [world.here(1), world.there(2)] {
                    world.serve(&mut rig, &[backend]);
                    for origin in ORIGINS {
                        port += 1;
                        check(&mut rig, world, origin, backend, port).unwrap_or_else(|error| {
                            panic!("{world:?} {origin:?} to {backend}, direct {direct}: {error}")
                        });
                    }
                }
            }
        }
    });
}

/// The first piece opens the flow; all pieces go to one backend, in any order, and so do the answer's.
#[test]
fn later_pieces_follow_the_first() {
    every_datagram("later_pieces_follow_the_first", |rig, world, origin, backend, port| {
        let question = question(world, origin, port);
        let id = 0xbeef_0000 | u32::from(port);
        let targets = world.targets(rig, origin, question.source, &[backend]);
        let mut pieces = PIECES.iter().map(|(from, to)| question.cut(id, *from, *to));
        let first = pieces.next().unwrap();
        let trip = Trip::open(rig, origin, &first, &targets)?;
        trip.keeps_port()?;
        let pieces: Vec<_> = pieces.collect();
        for piece in pieces.iter().chain(pieces.iter().rev()) {
            trip.forward(rig, piece)?;
        }
        let data = [9; 3_000];
        let answer = match world.protocol {
            Protocol::Tcp => Packet::tcp(trip.target, trip.source, 0, &data),
            _ => Packet::udp(trip.target, trip.source, &data),
        };
        let mut pieces = PIECES.iter().map(|(from, to)| answer.cut(!id, *from, *to));
        pieces.try_for_each(|piece| trip.answered_with(rig, &piece))
    });
}

/// A later piece whose first one nobody has seen is the kernel's, which will wait for it in vain.
#[test]
fn orphans_pass() {
    every_datagram("orphans_pass", |rig, world, origin, backend, port| {
        let question = question(world, origin, port);
        let id = u32::from(port);
        let at = rig.entry(origin, question.destination.ip());
        rig.passes(at, &question.cut(id, 1_400, 2_800), &[Verdict::NotTranslatable])?;
        let targets = world.targets(rig, origin, question.source, &[backend]);
        let trip = Trip::open(rig, origin, &question.cut(id, 0, 1_400), &targets)?;
        // The same client's next datagram has another number.
        rig.passes(at, &question.cut(id + 1, 1_400, 2_800), &[Verdict::NotTranslatable])?;
        // Another client's may have the same.
        let mut other = question.cut(id, 1_400, 2_800);
        other.source.set_ip(world.addr("10.1.0.77", "fd00:10:1::77"));
        rig.passes(at, &other, &[Verdict::NotTranslatable])?;
        trip.forward(rig, &question.cut(id, 1_400, 2_800))
    });
}

/// Pieces of what is no service pass, the first and the others.
#[test]
fn pieces_of_strangers_pass() {
    every_datagram("pieces_of_strangers_pass", |rig, world, origin, _, port| {
        let mut question = question(world, origin, port);
        question.destination.set_port(81);
        let at = rig.entry(origin, question.destination.ip());
        rig.passes(at, &question.cut(7, 0, 1_400), &[Verdict::NotService])?;
        rig.passes(at, &question.cut(7, 1_400, 2_800), &[Verdict::NotTranslatable])
    });
}

/// A first piece too short for its ports (RFC 1858) is not translated; one without TCP's flags neither.
#[test]
fn tiny_pieces_pass() {
    on_node("tiny_pieces_pass", |mut rig| {
        for world in World::of(Protocol::Tcp) {
            world.serve(&mut rig, &[world.here(1)]);
            let question = question(world, Origin::Pod, 25_000);
            rig.passes(At::FromPod, &question.cut(1, 0, 8), &[Verdict::NotTranslatable])
                .unwrap();
        }
    });
}

/// IPv6 allows a fragment header on a whole datagram (RFC 6946).
#[test]
fn atomic_fragments_are_whole() {
    every_datagram("atomic_fragments_are_whole", |rig, world, origin, backend, port| {
        let question = question_of(900, world, origin, port).cut(5, 0, usize::MAX);
        let targets = world.targets(rig, origin, question.source, &[backend]);
        let trip = Trip::open(rig, origin, &question, &targets)?;
        trip.again(rig)?;
        trip.answered(rig)?;
        trip.answered_with(
            rig,
            &Packet::first(question.protocol(), trip.target, trip.source).cut(6, 0, usize::MAX),
        )
    });
}

/// Nobody answers a later piece (RFC 1122 §3.2.2); the first one is answered like a whole datagram.
#[test]
fn pieces_of_a_service_without_endpoints() {
    on_node("pieces_of_a_service_without_endpoints", |mut rig| {
        for world in World::all() {
            world.serve(&mut rig, &[]);
            let question = question(world, Origin::Pod, 25_000);
            let got = rig.run(At::FromPod, &question.cut(3, 0, 1_400).encode());
            if world.family == proxy::model::Family::V4 || world.protocol == Protocol::Tcp {
                assert_eq!((got.verdict, got.action), (Verdict::RejectNoEndpoints, 7), "{world:?}");
            } else {
                // Behind the fragment header of IPv6 the quote has no room; the packet is dropped all the same.
                assert_eq!((got.verdict, got.action), (Verdict::DropHelperFailed, 2), "{world:?}");
            }
            rig.passes(At::FromPod, &question.cut(3, 1_400, 2_800), &[Verdict::NotTranslatable])
                .unwrap();
        }
    });
}
