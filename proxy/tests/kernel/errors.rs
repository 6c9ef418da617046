//! ICMP errors about translated packets: outside and inside they speak of what their receiver knows.

use crate::{
    packet::{ACK, Body, Packet, SCTP, requote},
    rig::{At, Rig, on_node},
    trip::{IcmpError, Trip},
    world::{ORIGINS, World},
};
use proxy::{model::Family, plan::trace::Origin};
use proxy_common::verdict::Verdict;
use std::net::{IpAddr, SocketAddr};

/// The errors that matter, quoting as little as they may and more.
fn errors(world: World) -> Vec<IcmpError> {
    let (kinds, least) = match world.family {
        // Port unreachable, fragmentation needed, time exceeded, parameter problem (RFC 792, RFC 1191).
        Family::V4 => (
            [
                ([3, 3], [0; 4]),
                ([3, 4], [0, 0, 0x05, 0x14]),
                ([11, 0], [0; 4]),
                ([12, 0], [9, 0, 0, 0]),
            ],
            28,
        ),
        // Port unreachable, packet too big, time exceeded, parameter problem (RFC 4443).
        Family::V6 => (
            [
                ([1, 4], [0; 4]),
                ([2, 0], [0, 0, 0x05, 0x14]),
                ([3, 0], [0; 4]),
                ([4, 1], [0, 0, 0, 6]),
            ],
            48,
        ),
    };
    let errors = kinds
        .into_iter()
        .flat_map(|(kind, rest)| [least, least + 13, 500].map(|quotes| IcmpError { kind, rest, quotes }));
    errors.collect()
}

fn trips(rig: &mut Rig, world: World, port: &mut u16) -> Vec<Trip> {
    let backends = [world.here(1), world.there(2)];
    let mut trips = Vec::new();
    for backend in backends {
        world.serve(rig, &[backend]);
        for origin in ORIGINS {
            *port += 1;
            let client = world.client(origin, *port);
            let targets = world.targets(rig, origin, client, &[backend]);
            let first = world.first(client, world.external());
            trips.push(Trip::open(rig, origin, &first, &targets).unwrap());
        }
    }
    trips
}

/// What an error may be about: the first packet, and a large one that was too big.
fn subjects(trip: &Trip) -> [Packet; 2] {
    let (from, to) = (trip.first.source, trip.first.destination);
    let large = match trip.first.body {
        Body::Tcp { .. } => Packet::tcp(from, to, ACK, &[7; 1_201]),
        _ => Packet::udp(from, to, &[7; 1_201]),
    };
    [trip.first.clone(), large]
}

fn every_error(mut check: impl FnMut(&mut Rig, &Trip, Option<IpAddr>, IcmpError) -> Result<(), String> + Send) {
    on_node("every_error", |mut rig| {
        let mut port = 25_000;
        for direct in [false, true] {
            rig.set_direct(direct);
            for world in World::all() {
                let router = world.addr("198.18.0.1", "2001:db8:18::1");
                for trip in trips(&mut rig, world, &mut port) {
                    for error in errors(world) {
                        for router in [None, Some(router)] {
                            check(&mut rig, &trip, router, error).unwrap_or_else(|wrong| {
                                panic!(
                                    "{world:?} {:?} to {}, direct {direct}, {error:?} from {router:?}: {wrong}",
                                    trip.origin, trip.target
                                )
                            });
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn errors_about_requests() {
    every_error(|rig, trip, router, error| {
        let mut subjects = subjects(trip).into_iter();
        subjects.try_for_each(|about| trip.error_about_request(rig, &about, router, error))
    });
}

#[test]
fn errors_about_answers() {
    every_error(|rig, trip, router, error| trip.error_about_answer(rig, router, error));
}

/// An error opens no flow, closes none, and does not count as life of one.
#[test]
fn errors_leave_flows_alone() {
    on_node("errors_leave_flows_alone", |mut rig| {
        let mut port = 25_000;
        for world in World::all() {
            for trip in trips(&mut rig, world, &mut port) {
                let number = world.protocol.number();
                let before = rig.flow(number, trip.target, trip.source);
                trip.error_about_request(&mut rig, &trip.first, None, errors(world)[0])
                    .unwrap();
                assert_eq!(rig.flow(number, trip.target, trip.source), before);
                world.serve(&mut rig, &[trip.target.ip()]);
                trip.answered(&mut rig).unwrap();
            }
        }
    });
}

/// ICMP that is no error, about nothing that we know, or cut short, is the kernel's.
#[test]
fn other_icmp_passes() {
    on_node("other_icmp_passes", |mut rig| {
        for world in World::all() {
            let backend = world.here(1);
            world.serve(&mut rig, &[backend]);
            let client = world.client(Origin::Pod, 25_000);
            let targets = world.targets(&rig, Origin::Pod, client, &[backend]);
            let trip = Trip::open(&mut rig, Origin::Pod, &world.first(client, world.vip()), &targets).unwrap();
            let seen = trip.first.between(trip.source, trip.target);
            let echo = match world.family {
                Family::V4 => [[8, 0], [0, 0]],
                Family::V6 => [[128, 0], [129, 0]],
            };
            for kind in echo {
                for to in [world.vip().ip(), backend, world.node_port().ip()] {
                    let packet = Packet::error(client.ip(), to, kind, [0, 1, 0, 2], &seen.ip());
                    for at in [At::FromPod, At::ToPod, At::FromNet, At::ToNet, At::OutOfNode] {
                        rig.passes(at, &packet, &[Verdict::NotTranslatable]).unwrap();
                    }
                }
            }
            let unreachable = errors(world)[0].kind;
            // A flow of somebody else.
            let other = SocketAddr::new(trip.target.ip(), 9);
            let quote = requote(&seen.ip(), trip.source, other);
            let packet = Packet::error(backend, client.ip(), unreachable, [0; 4], &quote);
            for at in [At::FromPod, At::ToPod, At::FromNet, At::ToNet, At::OutOfNode] {
                rig.passes(at, &packet, &[Verdict::NotService]).unwrap();
            }
            // Quotes of other protocols, and quotes without ports.
            let sctp = Packet::new(
                trip.source,
                trip.target,
                Body::Raw {
                    protocol: SCTP,
                    data: seen.transport(),
                },
            );
            let packet = Packet::error(backend, client.ip(), unreachable, [0; 4], &sctp.ip());
            rig.passes(At::ToPod, &packet, &[Verdict::NotTranslatable]).unwrap();
            let ports_end = seen.ip().len() - seen.transport().len() + 4;
            for length in 0..ports_end {
                let packet = Packet::error(backend, client.ip(), unreachable, [0; 4], &seen.ip()[..length]);
                rig.passes(At::ToPod, &packet, &[Verdict::NotTranslatable]).unwrap();
            }
            // A quoted IPv4 header with options is not looked into.
            if world.family == Family::V4 {
                let with_options = Packet {
                    options: vec![1, 1, 1, 1],
                    ..seen.clone()
                };
                let packet = Packet::error(backend, client.ip(), unreachable, [0; 4], &with_options.ip());
                rig.passes(At::ToPod, &packet, &[Verdict::NotTranslatable]).unwrap();
            }
        }
    });
}

/// The error's own IP header may have options or extension headers.
#[test]
fn errors_with_options() {
    on_node("errors_with_options", |mut rig| {
        for world in World::all() {
            let backend = world.here(1);
            world.serve(&mut rig, &[backend]);
            let client = world.client(Origin::Pod, 25_000);
            let targets = world.targets(&rig, Origin::Pod, client, &[backend]);
            let trip = Trip::open(&mut rig, Origin::Pod, &world.first(client, world.vip()), &targets).unwrap();
            let decorate = |packet: Packet| match world.family {
                Family::V4 => Packet {
                    options: vec![1; 8],
                    ..packet
                },
                Family::V6 => Packet {
                    extensions: vec![(60, vec![0, 0, 1, 4, 0, 0, 0, 0])],
                    ..packet
                },
            };
            let kind = errors(world)[0].kind;
            let seen = trip.first.between(trip.source, trip.target).ip();
            let error = decorate(Packet::error(backend, client.ip(), kind, [0; 4], &seen));
            let quote = requote(&seen, trip.first.source, trip.first.destination);
            let want = decorate(Packet::error(world.vip().ip(), client.ip(), kind, [0; 4], &quote));
            let got = rig.run(At::ToPod, &error.encode());
            assert_eq!(
                (got.verdict, got.action, got.frame),
                (Verdict::IcmpRelated, -1, want.encode()),
                "{world:?}"
            );
        }
    });
}
