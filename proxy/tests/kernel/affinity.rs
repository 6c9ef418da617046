//! `sessionAffinity: ClientIP`: a client stays with its backend, for as long as either may.

use crate::{
    memory::now_s,
    packet::Packet,
    rig::{Rig, on_node},
    trip::Trip,
    world::{ORIGINS, TARGET_PORT, World},
};
use proxy::plan::trace::Origin;
use proxy_common::{abi::Affinity, select::slot_for};
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

const TIMEOUT_S: u32 = 60;

fn endpoints(world: World) -> Vec<IpAddr> {
    (10..15).flat_map(|n| [world.here(n), world.there(n)]).collect()
}

fn serve(rig: &mut Rig, world: World, endpoints: &[IpAddr]) {
    world.serve_as(rig, world.service().affinity(TIMEOUT_S), endpoints);
}

/// Opens flows from these ports and returns the backends.
fn chosen(
    rig: &mut Rig,
    world: World,
    origin: Origin,
    client: IpAddr,
    ports: std::ops::Range<u16>,
    endpoints: &[IpAddr],
) -> BTreeSet<SocketAddr> {
    let mut chosen = BTreeSet::new();
    for port in ports {
        let client = SocketAddr::new(client, port);
        let targets = world.targets(rig, origin, client, endpoints);
        let frontend = if port % 2 == 0 { world.vip() } else { world.external() };
        let trip = Trip::open(rig, origin, &world.first(client, frontend), &targets).unwrap();
        trip.answered(rig).unwrap();
        chosen.insert(trip.target);
    }
    chosen
}

/// What a client sticks to.
fn memory(rig: &mut Rig, client: IpAddr) -> (u32, Affinity) {
    let stuck = rig.stuck();
    let (_, set, affinity) = stuck
        .iter()
        .find(|(addr, ..)| *addr == client)
        .expect("a client that sticks");
    (*set, *affinity)
}

/// Makes a client look as if its last connection were this long ago.
fn age(rig: &mut Rig, client: IpAddr, seconds: u32) {
    let (set, affinity) = memory(rig, client);
    let used_s = now_s().wrapping_sub(seconds);
    rig.stick(client, set, &Affinity { used_s, ..affinity });
}

#[test]
fn a_client_sticks_and_others_do_not() {
    on_node("a_client_sticks_and_others_do_not", |mut rig| {
        for world in World::all() {
            let endpoints = endpoints(world);
            serve(&mut rig, world, &endpoints);
            for origin in ORIGINS {
                rig.unstick();
                let client = world.client(origin, 0).ip();
                let first = chosen(&mut rig, world, origin, client, 25_000..25_020, &endpoints);
                assert_eq!(first.len(), 1, "{world:?} {origin:?}");
            }
            let others = (0..30).flat_map(|n| {
                chosen(
                    &mut rig,
                    world,
                    Origin::Pod,
                    world.here(101 + n),
                    25_000..25_002,
                    &endpoints,
                )
            });
            let others: BTreeSet<_> = others.collect();
            assert!(others.len() > 5, "{world:?}: {others:?}");
        }
    });
}

/// The timeout runs from the last connection, and each one starts it anew.
#[test]
fn a_client_is_forgotten_in_time() {
    on_node("a_client_is_forgotten_in_time", |mut rig| {
        for world in World::all() {
            let endpoints = endpoints(world);
            serve(&mut rig, world, &endpoints);
            rig.unstick();
            let client = world.client(Origin::Pod, 0).ip();
            let first = chosen(&mut rig, world, Origin::Pod, client, 25_000..25_001, &endpoints);
            age(&mut rig, client, TIMEOUT_S - 10);
            let later = chosen(&mut rig, world, Origin::Pod, client, 25_001..25_020, &endpoints);
            assert_eq!(first, later, "{world:?}");
            let (_, affinity) = memory(&mut rig, client);
            assert!(now_s() - affinity.used_s < 10, "a connection starts the time anew");
            // Forgotten, the client is balanced by each flow's hash: over so many, it cannot stay.
            let mut seen = BTreeSet::new();
            for port in 25_020..25_050 {
                age(&mut rig, client, TIMEOUT_S);
                seen.extend(chosen(&mut rig, world, Origin::Pod, client, port..port + 1, &endpoints));
            }
            assert!(seen.len() > 5, "{world:?}: {seen:?}");
        }
    });
}

/// The endpoint goes: the client sticks to another, and does not return when the first one does.
#[test]
fn a_client_leaves_a_backend_that_is_gone() {
    on_node("a_client_leaves_a_backend_that_is_gone", |mut rig| {
        for world in World::all() {
            let endpoints = endpoints(world);
            serve(&mut rig, world, &endpoints);
            rig.unstick();
            let client = world.client(Origin::Pod, 0).ip();
            let first = chosen(&mut rig, world, Origin::Pod, client, 25_000..25_010, &endpoints);
            let gone = first.first().unwrap().ip();
            let left: Vec<_> = endpoints.iter().copied().filter(|addr| *addr != gone).collect();
            serve(&mut rig, world, &left);
            let second = chosen(&mut rig, world, Origin::Pod, client, 25_010..25_020, &left);
            assert_eq!(second.len(), 1, "{world:?}");
            serve(&mut rig, world, &endpoints);
            let third = chosen(&mut rig, world, Origin::Pod, client, 25_020..25_030, &endpoints);
            assert_eq!(third, second, "{world:?}");
            // One that terminates serves its flows but gets no new ones, of no client.
            let terminating = *second.first().unwrap();
            let slice: Vec<_> = endpoints
                .iter()
                .map(|addr| {
                    let endpoint = world.endpoint(&rig, *addr);
                    if *addr == terminating.ip() {
                        endpoint.terminating()
                    } else {
                        endpoint
                    }
                })
                .collect();
            rig.serve(&[world.service().affinity(TIMEOUT_S).build()], &[world.slice(&slice)]);
            let fourth = chosen(&mut rig, world, Origin::Pod, client, 25_030..25_040, &endpoints);
            assert_eq!(fourth.len(), 1, "{world:?}");
            assert!(!fourth.contains(&terminating), "{world:?}");
        }
    });
}

/// Affinity decides for new flows only: a flow stays where it is when its client has moved on.
#[test]
fn flows_do_not_follow_their_client() {
    on_node("flows_do_not_follow_their_client", |mut rig| {
        for world in World::all() {
            let endpoints = endpoints(world);
            serve(&mut rig, world, &endpoints);
            rig.unstick();
            let client = world.client(Origin::Pod, 25_000);
            let targets = world.targets(&rig, Origin::Pod, client, &endpoints);
            let trip = Trip::open(&mut rig, Origin::Pod, &world.first(client, world.vip()), &targets).unwrap();
            let mut port = 25_001;
            loop {
                age(&mut rig, client.ip(), TIMEOUT_S);
                let seen = chosen(&mut rig, world, Origin::Pod, client.ip(), port..port + 1, &endpoints);
                if !seen.contains(&trip.target) {
                    break;
                }
                port += 1;
            }
            trip.again(&mut rig).unwrap();
            trip.answered(&mut rig).unwrap();
        }
    });
}

/// Without affinity nobody is remembered.
#[test]
fn nobody_is_remembered_without_affinity() {
    on_node("nobody_is_remembered_without_affinity", |mut rig| {
        for world in World::all() {
            let endpoints = endpoints(world);
            world.serve(&mut rig, &endpoints);
            let client = world.client(Origin::Pod, 0).ip();
            let seen = chosen(&mut rig, world, Origin::Pod, client, 25_000..25_040, &endpoints);
            assert!(seen.len() > 5, "{world:?}: {seen:?}");
            assert_eq!(rig.stuck(), []);
            // The first slot and the last are both in use.
            let slot = |port| {
                let first: Packet = world.first(SocketAddr::new(client, port), world.vip());
                slot_for(crate::table::hash(&first, rig.node().seed), 10).unwrap()
            };
            let slots: BTreeSet<_> = (25_000..25_200).map(slot).collect();
            assert_eq!(slots, (1..=10).collect());
            assert!(seen.iter().all(|addr| addr.port() == TARGET_PORT));
        }
    });
}
