//! The special cases of the packet table: small worlds, each met by a few packets.

use super::{
    Case, Ep, ServiceBuilder, TARGET_PORT, addr, node, service, slice, slice_with,
    table::{ep, eps, packet, verdict},
};
use crate::{
    model::{EndpointSlice, Family, NodeView, Protocol, Service, TrafficPolicy::Local},
    plan::trace::State,
};
use std::net::SocketAddr;

/// A world that several packets meet.
struct Scene {
    name: &'static str,
    services: Vec<Service>,
    slices: Vec<EndpointSlice>,
    node: NodeView,
    state: State,
    cases: Vec<Case>,
}

fn scene<const S: usize, const E: usize>(
    name: &'static str,
    services: [ServiceBuilder; S],
    slices: [EndpointSlice; E],
) -> Scene {
    Scene {
        name,
        services: services.into_iter().map(ServiceBuilder::build).collect(),
        slices: slices.into(),
        node: node(),
        state: State::default(),
        cases: Vec::new(),
    }
}

impl Scene {
    fn node(mut self, change: impl FnOnce(&mut NodeView)) -> Self {
        change(&mut self.node);
        self
    }

    /// `client` stuck to the endpoint `letter` when it last used the frontend `to`.
    fn stuck(mut self, client: &str, to: &str, letter: char) -> Self {
        let to = packet("outside", to).destination;
        let backend = SocketAddr::new(ep(letter, Family::of(&to.ip())).addr, TARGET_PORT);
        self.state.affinity.insert((addr(client), to), backend);
        self
    }

    fn sees(mut self, from: &str, to: &str, outcome: &str) -> Self {
        let packet = packet(from, to);
        self.cases.push(Case {
            name: format!("{}: {from} to {to}", self.name),
            services: self.services.clone(),
            slices: self.slices.clone(),
            node: self.node.clone(),
            packet,
            state: self.state.clone(),
            expected: verdict(outcome, Family::of(&packet.destination.ip())),
        });
        self
    }
}

const VIP: &str = "10.96.0.10";

fn web() -> ServiceBuilder {
    service("web").cluster_ip(VIP)
}

fn balanced(letters: &str) -> EndpointSlice {
    slice("web-1", "web", &eps(letters, Family::V4))
}

fn hinted(letter: char, zones: &'static [&'static str], nodes: &'static [&'static str]) -> Ep {
    Ep {
        zones,
        nodes,
        ..ep(letter, Family::V4)
    }
}

/// The cases of all scenes.
pub(super) fn cases() -> Vec<Case> {
    let mut scenes = unserved();
    scenes.extend(masquerading());
    scenes.extend(source_ranges());
    scenes.extend(topology());
    scenes.extend(merging());
    scenes.extend(affinity());
    scenes.extend(conflicts());
    scenes.into_iter().flat_map(|scene| scene.cases).collect()
}

/// What we leave alone.
fn unserved() -> Vec<Scene> {
    let all = || {
        web()
            .external_ip("198.51.100.20")
            .load_balancer_ip("198.51.100.10")
            .port("", 80, Protocol::Tcp, Some(30_080))
    };
    vec![
        scene("not a frontend", [all()], [balanced("a b")])
            .sees("pod", "10.96.0.10 81", "pass")
            .sees("pod", "10.96.0.10 80 UDP", "pass")
            .sees("pod", "10.96.0.10 80 SCTP", "pass")
            .sees("pod", "10.96.0.11 80", "pass")
            .sees("pod", "10.1.0.1 8080", "pass")
            .sees("pod", "10.96.0.10 30080", "pass")
            .sees("outside", "192.168.0.1 80", "pass")
            .sees("outside", "198.51.100.10 30080", "pass")
            .sees("pod", "fd00:10:96::10 80", "pass"),
        // 192.168.1.1 is the node's own but not among its node port addresses; 192.168.0.2 is another node
        scene("node ports live on chosen addresses", [all()], [balanced("a b")])
            .sees("outside", "192.168.1.1 30080", "pass")
            .sees("pod", "192.168.0.2 30080", "pass")
            .sees("host 127.0.0.1", "127.0.0.1 30080", "pass"),
        scene("node ports never live on loopback", [all()], [balanced("a b")])
            .node(|node| node.node_port_addresses = vec![addr("127.0.0.1"), addr("192.168.1.1")])
            .sees("host 127.0.0.1", "127.0.0.1 30080", "pass")
            .sees("host", "192.168.1.1 30080", "a b"),
        scene("endpoints without a service", [], [balanced("a b")]).sees("pod", "10.96.0.10 80", "pass"),
        scene(
            "an address of a family that the service lacks",
            [web().external_ip("2001:db8:100::20")],
            [balanced("a")],
        )
        .sees("pod", "2001:db8:100::20 80", "pass")
        .sees("pod", "10.96.0.10 80", "a"),
        scene(
            "dual-stack service with endpoints of one family",
            [web().cluster_ip("fd00:10:96::10")],
            [balanced("a b")],
        )
        .sees("pod", "10.96.0.10 80", "a b")
        .sees("pod", "fd00:10:96::10 80", "reject"),
        scene(
            "dual-stack service",
            [web().cluster_ip("fd00:10:96::10")],
            [balanced("a"), slice("web-2", "web", &eps("b", Family::V6))],
        )
        .sees("outside", "10.96.0.10 80", "a")
        .sees("outside", "fd00:10:96::10 80", "b*"),
    ]
}

/// Who sees the node as the client.
fn masquerading() -> Vec<Scene> {
    vec![
        scene("a pod may meet itself", [web()], [balanced("a b")])
            .sees("pod 10.1.0.1", "10.96.0.10 80", "a* b")
            .sees("pod 10.1.0.100", "10.96.0.10 80", "a b"),
        scene("masqueradeAll", [web().external_ip("198.51.100.20")], [balanced("a b")])
            .node(|node| node.masquerade_all = true)
            .sees("pod", "10.96.0.10 80", "a* b*")
            .sees("host", "10.96.0.10 80", "a b")
            .sees("outside", "10.96.0.10 80", "a b*")
            .sees("pod", "198.51.100.20 80", "a b"),
        scene("pods of other nodes come from outside", [web()], [balanced("a b")])
            .sees("outside 10.1.1.2", "10.96.0.10 80", "a b*")
            .sees("outside 10.1.1.77", "10.96.0.10 80", "a b*"),
    ]
}

/// `loadBalancerSourceRanges`.
fn source_ranges() -> Vec<Scene> {
    let restricted = || {
        web()
            .cluster_ip("fd00:10:96::10")
            .load_balancer_ip("198.51.100.10")
            .load_balancer_ip("2001:db8:100::10")
            .external_ip("198.51.100.20")
            .port("", 80, Protocol::Tcp, Some(30_080))
            .source_range("203.0.113.7/29")
    };
    let v6 = || slice("web-2", "web", &eps("a b", Family::V6));
    vec![
        scene("source ranges", [restricted()], [balanced("a b"), v6()])
            .sees("outside 203.0.113.0", "198.51.100.10 80", "a b*")
            .sees("outside 203.0.113.7", "198.51.100.10 80", "a b*")
            .sees("outside 203.0.113.8", "198.51.100.10 80", "drop source")
            .sees("pod", "198.51.100.10 80", "drop source")
            .sees("host", "198.51.100.10 80", "drop source")
            // they concern load balancer addresses only
            .sees("outside 203.0.113.8", "10.96.0.10 80", "a b*")
            .sees("outside 203.0.113.8", "192.168.0.1 30080", "a b*")
            .sees("outside 203.0.113.8", "198.51.100.20 80", "a b*")
            // ranges of one family leave nobody in the other
            .sees("outside", "2001:db8:100::10 80", "drop source")
            .sees("pod", "2001:db8:100::10 80", "drop source")
            .sees("outside", "fd00:10:96::10 80", "a b*"),
        scene(
            "source ranges come before everything else",
            [restricted().external(Local)],
            [],
        )
        .sees("outside 203.0.113.1", "198.51.100.10 80", "reject")
        .sees("outside 203.0.113.8", "198.51.100.10 80", "drop source"),
        scene(
            "source ranges come before the policy",
            [restricted().external(Local)],
            [balanced("b")],
        )
        .sees("outside 203.0.113.1", "198.51.100.10 80", "drop")
        .sees("outside 203.0.113.8", "198.51.100.10 80", "drop source"),
        scene(
            "source ranges with the node inside",
            [restricted().source_range("192.168.1.0/24")],
            [balanced("a b")],
        )
        .sees("host 192.168.1.1", "198.51.100.10 80", "a b")
        .sees("host 198.51.100.10", "198.51.100.10 80", "a b")
        .sees("host 192.168.0.1", "198.51.100.10 80", "drop source"),
        scene("source ranges without the node", [restricted()], [balanced("a b")]).sees(
            "host 198.51.100.10",
            "198.51.100.10 80",
            "drop source",
        ),
        scene(
            "source ranges that admit all",
            [restricted().source_range("0.0.0.0/0").source_range("::/0")],
            [balanced("a b"), v6()],
        )
        .sees("outside", "198.51.100.10 80", "a b*")
        .sees("outside", "2001:db8:100::10 80", "a b*"),
        scene(
            "an address that is both load balancer and external keeps the ranges",
            [web()
                .load_balancer_ip("198.51.100.10")
                .external_ip("198.51.100.10")
                .source_range("203.0.113.0/29")],
            [balanced("a")],
        )
        .sees("outside 203.0.113.1", "198.51.100.10 80", "a")
        .sees("outside 203.0.113.9", "198.51.100.10 80", "drop source"),
    ]
}

/// Hints. The node is `n1` in zone `z1`.
fn topology() -> Vec<Scene> {
    let hints = |a, b| [slice("web-1", "web", &[a, b])];
    vec![
        scene(
            "zone hints",
            [web().external_ip("198.51.100.20")],
            hints(hinted('a', &["z2"], &[]), hinted('b', &["z1"], &[])),
        )
        .sees("pod", "10.96.0.10 80", "b")
        .sees("host", "10.96.0.10 80", "b")
        .sees("outside", "198.51.100.20 80", "b*"),
        scene(
            "zone hints on some endpoints only",
            [web()],
            hints(hinted('a', &["z2"], &[]), hinted('b', &[], &[])),
        )
        .sees("pod", "10.96.0.10 80", "a b"),
        scene(
            "zone hints for other zones only",
            [web()],
            hints(hinted('a', &["z2"], &[]), hinted('b', &["z3"], &[])),
        )
        .sees("pod", "10.96.0.10 80", "a b"),
        scene(
            "zone hints for several zones",
            [web()],
            hints(hinted('a', &["z2", "z1"], &[]), hinted('b', &["z2"], &[])),
        )
        .sees("pod", "10.96.0.10 80", "a"),
        scene(
            "zone hints in an unknown zone",
            [web()],
            hints(hinted('a', &["z1"], &[]), hinted('b', &["z2"], &[])),
        )
        .node(|node| node.zone = None)
        .sees("pod", "10.96.0.10 80", "a b"),
        scene(
            "node hints before zone hints",
            [web()],
            hints(hinted('a', &["z2"], &["n1"]), hinted('b', &["z1"], &["n2"])),
        )
        .sees("pod", "10.96.0.10 80", "a"),
        scene(
            "zone hints where node hints name others only",
            [web()],
            hints(hinted('a', &["z2"], &["n2"]), hinted('b', &["z1"], &["n2"])),
        )
        .sees("pod", "10.96.0.10 80", "b"),
        scene(
            "zone hints where node hints are incomplete",
            [web()],
            hints(hinted('a', &["z2"], &["n1"]), hinted('b', &["z1"], &[])),
        )
        .sees("pod", "10.96.0.10 80", "b"),
        scene(
            "hints do not concern policy Local",
            [web().internal(Local).external(Local).external_ip("198.51.100.20")],
            hints(hinted('a', &["z2"], &[]), hinted('b', &["z1"], &[])),
        )
        .sees("pod", "10.96.0.10 80", "a")
        .sees("outside", "198.51.100.20 80", "a")
        .sees("pod", "198.51.100.20 80", "b"),
        scene(
            "endpoints without hints that are not ready do not spoil them",
            [web()],
            [slice(
                "web-1",
                "web",
                &[
                    hinted('a', &["z1"], &[]),
                    hinted('b', &["z2"], &[]),
                    hinted('c', &[], &[]),
                ],
            )],
        )
        .sees("pod", "10.96.0.10 80", "a"),
    ]
}

/// Ports by name, several slices.
fn merging() -> Vec<Scene> {
    let two_ports = || {
        web()
            .port("http", 80, Protocol::Tcp, None)
            .port("dns", 53, Protocol::Udp, None)
            .port("dns-tcp", 53, Protocol::Tcp, None)
    };
    let one = |name, port, protocol, letters| {
        slice_with(
            &format!("web-{name}"),
            "web",
            &[(name, port, protocol)],
            &eps(letters, Family::V4),
        )
    };
    vec![
        scene(
            "ports are joined by name",
            [two_ports()],
            [
                one("http", TARGET_PORT, Protocol::Tcp, "a"),
                one("dns", TARGET_PORT, Protocol::Udp, "b"),
            ],
        )
        .sees("pod", "10.96.0.10 80", "a")
        .sees("pod", "10.96.0.10 53 UDP", "b")
        .sees("pod", "10.96.0.10 53", "reject"),
        scene(
            "a port's protocol must agree",
            [two_ports()],
            [one("dns", TARGET_PORT, Protocol::Tcp, "a")],
        )
        .sees("pod", "10.96.0.10 53 UDP", "reject"),
        scene(
            "slices of one service add up",
            [web()],
            [balanced("a"), slice("web-2", "web", &eps("b", Family::V4))],
        )
        .sees("pod", "10.96.0.10 80", "a b"),
        scene(
            "an endpoint in two slices is one",
            [web()],
            [balanced("a b"), slice("web-2", "web", &eps("a", Family::V4))],
        )
        .sees("pod", "10.96.0.10 80", "a b"),
        scene(
            "an endpoint that is ready in one slice is ready",
            [web()],
            [
                balanced("a"),
                slice("web-2", "web", &[ep('a', Family::V4).terminating()]),
            ],
        )
        .sees("pod", "10.96.0.10 80", "a"),
        scene(
            "slices of other services stay out",
            [web()],
            [balanced("a"), slice("web-2", "www", &eps("b", Family::V4))],
        )
        .sees("pod", "10.96.0.10 80", "a"),
    ]
}

fn affinity() -> Vec<Scene> {
    let sticky = || {
        web()
            .affinity(60)
            .external_ip("198.51.100.20")
            .port("", 80, Protocol::Tcp, Some(30_080))
    };
    vec![
        scene("affinity is the client's own", [sticky()], [balanced("a b")])
            .stuck("10.1.0.100", "10.96.0.10 80", 'b')
            .sees("pod 10.1.0.100", "10.96.0.10 80", "b")
            .sees("pod 10.1.0.101", "10.96.0.10 80", "a b"),
        scene("affinity spans the addresses of a port", [sticky()], [balanced("a b")])
            .stuck("203.0.113.9", "10.96.0.10 80", 'b')
            .sees("outside", "192.168.0.1 30080", "b*")
            .sees("outside", "198.51.100.20 80", "b*"),
        scene(
            "affinity does not span sets",
            [sticky().external(Local)],
            [balanced("a b")],
        )
        .stuck("203.0.113.9", "10.96.0.10 80", 'b')
        .sees("outside", "198.51.100.20 80", "a")
        .sees("outside", "10.96.0.10 80", "b*"),
        scene(
            "affinity to the Local set is not one to the Cluster set",
            [sticky().external(Local)],
            [balanced("a b")],
        )
        .stuck("203.0.113.9", "198.51.100.20 80", 'a')
        .sees("outside", "192.168.0.1 30080", "a")
        .sees("outside", "10.96.0.10 80", "a b*"),
        scene(
            "affinity yields when its backend terminates",
            [sticky()],
            [balanced("a b c")],
        )
        .stuck("10.1.0.100", "10.96.0.10 80", 'c')
        .sees("pod", "10.96.0.10 80", "a b"),
        scene("affinity that was switched off", [web()], [balanced("a b")])
            .stuck("10.1.0.100", "10.96.0.10 80", 'b')
            .sees("pod", "10.96.0.10 80", "a b"),
    ]
}

/// One frontend claimed twice.
fn conflicts() -> Vec<Scene> {
    let claim = |name: &str, created| service(name).external_ip("198.51.100.20").created(created);
    let old_a_young_b = [
        slice("old-1", "old", &eps("a", Family::V4)),
        slice("young-1", "young", &eps("b", Family::V4)),
    ];
    vec![
        scene(
            "the older service owns an address",
            [
                claim("young", 2).cluster_ip("10.96.0.11"),
                claim("old", 1).cluster_ip("10.96.0.12"),
            ],
            old_a_young_b.clone(),
        )
        .sees("pod", "198.51.100.20 80", "a")
        .sees("pod", "10.96.0.11 80", "b")
        .sees("pod", "10.96.0.12 80", "a"),
        scene(
            "a service without an age is the oldest",
            [claim("young", 2), service("old").external_ip("198.51.100.20")],
            old_a_young_b.clone(),
        )
        .sees("pod", "198.51.100.20 80", "a"),
        scene(
            "services of one age: by name",
            [claim("young", 1), claim("old", 1)],
            old_a_young_b.clone(),
        )
        .sees("pod", "198.51.100.20 80", "a"),
        scene(
            "the owner rejects what it has no endpoints for",
            [claim("young", 2), claim("old", 1)],
            [slice("young-1", "young", &eps("b", Family::V4))],
        )
        .sees("pod", "198.51.100.20 80", "reject"),
        scene(
            "one node port, two services",
            [
                service("young")
                    .cluster_ip("10.96.0.11")
                    .created(2)
                    .port("", 80, Protocol::Tcp, Some(30_080)),
                service("old")
                    .cluster_ip("10.96.0.12")
                    .created(1)
                    .port("", 80, Protocol::Tcp, Some(30_080)),
            ],
            old_a_young_b,
        )
        .sees("outside", "192.168.0.1 30080", "a")
        .sees("outside", "10.96.0.11 80", "b*"),
    ]
}
