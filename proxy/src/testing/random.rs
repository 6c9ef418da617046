//! Random objects, events and packets from a seed, drawn from pools so small that they meet.

use super::{addr, port};
use crate::{
    model::{
        Change, Endpoint, EndpointPort, EndpointSlice, Event, Family, Node, NodeView, ObjectName, Protocol, Service,
        ServiceMap, ServicePort, TrafficPolicy,
    },
    plan::trace::{Origin, Packet},
};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// A small generator of random numbers (`SplitMix64`): the same seed gives the same numbers everywhere.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`, which must not be 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of `pool`, which must not be empty.
    pub fn pick<T: Clone>(&mut self, pool: &[T]) -> T {
        pool[self.below(pool.len())].clone()
    }

    /// Up to `most` of `pool`, without repetition, in random order.
    pub fn some<T: Clone>(&mut self, pool: &[T], most: usize) -> Vec<T> {
        let mut pool = pool.to_vec();
        let count = self.below(most.min(pool.len()) + 1);
        (0..count).map(|_| pool.swap_remove(self.below(pool.len()))).collect()
    }
}

const SERVICES: [&str; 6] = ["s0", "s1", "s2", "s3", "s4", "s5"];
const SLICES: [&str; 9] = ["e0", "e1", "e2", "e3", "e4", "e5", "e6", "e7", "e8"];
const NODES: [&str; 3] = ["n1", "n2", "n3"];
const ZONES: [&str; 3] = ["z1", "z2", "z3"];
const PORT_NAMES: [&str; 3] = ["", "http", "dns"];
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
const PORTS: [u16; 4] = [53, 80, 443, 30_080];
const NODE_PORTS: [u16; 2] = [30_080, 30_081];
const VIPS_V4: [&str; 5] = ["10.96.0.1", "10.96.0.2", "10.96.0.3", "198.51.100.1", "192.168.0.1"];
const VIPS_V6: [&str; 4] = ["fd00:10:96::1", "fd00:10:96::2", "2001:db8:100::1", "fd00:192:168::1"];
const PODS_V4: [&str; 6] = ["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.1.1", "10.1.1.2", "10.1.1.3"];
const PODS_V6: [&str; 4] = ["fd00:10:1::1", "fd00:10:1::2", "fd00:10:1:1::1", "fd00:10:1:1::2"];
const RANGES: [&str; 6] = [
    "203.0.113.0/24",
    "203.0.113.9/28",
    "10.1.0.0/16",
    "192.168.0.0/24",
    "2001:db8:113::/48",
    "::/0",
];
const OUTSIDE_V4: [&str; 3] = ["203.0.113.9", "203.0.114.9", "10.1.1.1"];
const OUTSIDE_V6: [&str; 2] = ["2001:db8:113::9", "fd00:10:1:1::1"];

fn vips(family: Family) -> Vec<IpAddr> {
    let texts: &[&str] = if family == Family::V4 { &VIPS_V4 } else { &VIPS_V6 };
    texts.iter().map(|text| addr(text)).collect()
}

fn both_vips() -> Vec<IpAddr> {
    Family::ALL.into_iter().flat_map(vips).collect()
}

fn pods(family: Family) -> Vec<IpAddr> {
    let texts: &[&str] = if family == Family::V4 { &PODS_V4 } else { &PODS_V6 };
    texts.iter().map(|text| addr(text)).collect()
}

fn name(rng: &mut Rng, pool: &[&str]) -> ObjectName {
    ObjectName::new("default", rng.pick(pool))
}

fn policy(rng: &mut Rng) -> TrafficPolicy {
    rng.pick(&[TrafficPolicy::Cluster, TrafficPolicy::Local])
}

fn random_service(rng: &mut Rng) -> Service {
    let families = rng.pick(&[&[Family::V4] as &[_], &[Family::V6], &Family::ALL, &Family::ALL, &[]]);
    let names = rng.some(&PORT_NAMES, 3);
    let external_policy = policy(rng);
    Service {
        name: name(rng, &SERVICES),
        created_s: rng.pick(&[None, Some(1), Some(2)]),
        cluster_ips: families.iter().map(|family| rng.pick(&vips(*family))).collect(),
        external_ips: rng.some(&both_vips(), 2),
        load_balancer_ips: rng.some(&both_vips(), 2),
        ports: names
            .into_iter()
            .map(|name| ServicePort {
                name: name.into(),
                protocol: rng.pick(&PROTOCOLS),
                port: port(rng.pick(&PORTS)),
                node_port: if rng.one_in(2) {
                    Some(port(rng.pick(&NODE_PORTS)))
                } else {
                    None
                },
            })
            .collect(),
        internal_policy: policy(rng),
        external_policy,
        source_ranges: if rng.one_in(3) {
            let ranges = rng.some(&RANGES, 3);
            ranges.iter().map(|text| text.parse().expect("a range")).collect()
        } else {
            Vec::new()
        },
        affinity_s: if rng.one_in(3) { Some(60) } else { None },
        health_check_node_port: if external_policy == TrafficPolicy::Local && rng.one_in(3) {
            Some(port(32_000))
        } else {
            None
        },
    }
}

fn hints(rng: &mut Rng, pool: &[&str], hinted: bool) -> Vec<Arc<str>> {
    // Mostly on all endpoints of a slice or on none: else no set would ever follow them.
    if hinted && !rng.one_in(10) {
        vec![Arc::from(rng.pick(pool))]
    } else {
        Vec::new()
    }
}

fn random_slice(rng: &mut Rng) -> EndpointSlice {
    let family = rng.pick(&Family::ALL);
    let (by_zone, by_node) = (rng.one_in(2), rng.one_in(4));
    let addrs = rng.some(&pods(family), 5);
    let endpoints = addrs.into_iter().map(|addr| {
        let (ready, serving, terminating) = rng.pick(&[
            (true, true, false),
            (true, true, false),
            (true, true, false),
            (false, true, true),
            (false, true, false),
            (false, false, true),
            (false, false, false),
        ]);
        Endpoint {
            addr,
            ready,
            serving,
            terminating,
            node: if rng.one_in(8) {
                None
            } else {
                Some(rng.pick(&NODES).into())
            },
            zone_hints: hints(rng, &ZONES, by_zone),
            node_hints: hints(rng, &NODES, by_node),
        }
    });
    let endpoints = endpoints.collect();
    let port_names = rng.some(&PORT_NAMES, 3);
    EndpointSlice {
        name: name(rng, &SLICES),
        service: name(rng, &SERVICES),
        family,
        ports: port_names
            .into_iter()
            .map(|name| EndpointPort {
                name: name.into(),
                protocol: rng.pick(&PROTOCOLS),
                port: port(rng.pick(&[8080, 9090])),
            })
            .collect(),
        endpoints,
        triggered_ms: if rng.one_in(2) {
            Some(rng.below(1_000) as i64)
        } else {
            None
        },
    }
}

/// A node with another zone, other addresses, another name now and then.
pub fn random_node(rng: &mut Rng) -> NodeView {
    let mut node = super::node();
    node.name = if rng.one_in(8) {
        "".into()
    } else {
        rng.pick(&NODES).into()
    };
    node.zone = if rng.one_in(4) {
        None
    } else {
        Some(rng.pick(&ZONES).into())
    };
    node.masquerade_all = rng.one_in(4);
    if rng.one_in(3) {
        node.node_port_addresses = rng.some(&node.addresses, 3);
        node.node_port_addresses.sort();
    }
    node
}

/// `n` changes between [`Event::Init`] and its end: objects come, change, move and go. The first half precedes
/// [`Event::InitDone`].
pub fn random_events(seed: u64, n: usize) -> Vec<Event> {
    let mut rng = Rng::new(seed);
    let mut events = vec![Event::Init];
    for at in 0..n {
        if at == n / 2 {
            events.push(Event::InitDone);
        }
        let rng = &mut rng;
        events.push(match rng.below(16) {
            0..=5 => Event::Service(Change::Apply(random_service(rng))),
            6..=7 => Event::Service(Change::Delete(name(rng, &SERVICES))),
            8..=12 => Event::Slice(Change::Apply(random_slice(rng))),
            13..=14 => Event::Slice(Change::Delete(name(rng, &SLICES))),
            _ => Event::Node(Change::Apply(Node {
                name: "n1".into(),
                zone: Some(rng.pick(&ZONES).into()),
                ..Node::default()
            })),
        });
    }
    events
}

/// The services and slices that are left after some [`random_events`], and a node.
pub fn random_world(seed: u64) -> (ServiceMap, NodeView) {
    let mut map = ServiceMap::default();
    for event in random_events(seed, 40) {
        map.apply(event);
    }
    (map, random_node(&mut Rng::new(!seed)))
}

/// A packet that has a fair chance to meet a frontend of a random world. Source and origin agree.
pub fn random_packet(rng: &mut Rng) -> Packet {
    let family = rng.pick(&Family::ALL);
    let v4 = family == Family::V4;
    let origin = rng.pick(&[Origin::Pod, Origin::Host, Origin::Outside]);
    let source = match origin {
        Origin::Pod => rng.pick(&pods(family)[..2]),
        Origin::Host => addr(if v4 { "192.168.0.1" } else { "fd00:192:168::1" }),
        Origin::Outside if v4 => addr(rng.pick(&OUTSIDE_V4)),
        Origin::Outside => addr(rng.pick(&OUTSIDE_V6)),
    };
    let destination = rng.pick(&vips(family));
    let number = if rng.one_in(4) {
        rng.pick(&NODE_PORTS)
    } else {
        rng.pick(&PORTS)
    };
    Packet {
        source: SocketAddr::new(source, 40_000 + rng.below(1_000) as u16),
        destination: SocketAddr::new(destination, number),
        protocol: rng.pick(&PROTOCOLS),
        origin,
    }
}
