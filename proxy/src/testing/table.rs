//! The packet table: what every dataplane must do with the first packet of a flow.

use super::{Ep, ServiceBuilder, TARGET_PORT, addr, node, service, slice, slice_with};
use crate::{
    model::{
        EndpointSlice, Family, NodeView, Protocol, Service,
        TrafficPolicy::{self, Cluster, Local},
    },
    plan::{
        FrontendKind::{self, ClusterIP, ExternalIP, LoadBalancer, NodePort},
        trace::{Origin, Packet, State, Target, Verdict},
    },
};
use std::net::SocketAddr;

/// One row: a world, a packet, and what becomes of it.
#[derive(Clone, Debug)]
pub struct Case {
    /// Unique, and readable on its own.
    pub name: String,
    /// All services.
    pub services: Vec<Service>,
    /// All slices.
    pub slices: Vec<EndpointSlice>,
    /// The node that the packet meets.
    pub node: NodeView,
    /// The first packet of its flow.
    pub packet: Packet,
    /// What earlier flows left behind.
    pub state: State,
    /// The verdict.
    pub expected: Verdict,
}

/// All cases: the two matrices over every address kind, family and protocol, and the special cases one by one.
pub fn table() -> Vec<Case> {
    let mut cases = matrix();
    for scene in specials() {
        cases.extend(scene.cases);
    }
    cases
}

/// Endpoints by letter:
/// `a` ready here, `b` ready elsewhere, `c` terminating here, `d` terminating elsewhere, `e` dead here, `f` dead
/// elsewhere. Terminating ones still serve; dead ones are neither ready nor serving.
fn ep(letter: char, family: Family) -> Ep {
    let at = |host: &str| match family {
        Family::V4 => format!("10.1.{host}"),
        Family::V6 => format!("fd00:10:1:{}", host.replace('.', "::")),
    };
    match letter {
        'a' => Ep::here(&at("0.1")),
        'b' => Ep::there(&at("1.2")),
        'c' => Ep::here(&at("0.3")).terminating(),
        'd' => Ep::there(&at("1.4")).terminating(),
        'e' => Ep::here(&at("0.5")).dead(),
        'f' => Ep::there(&at("1.6")).dead(),
        _ => panic!("no endpoint {letter:?}"),
    }
}

fn eps(letters: &str, family: Family) -> Vec<Ep> {
    letters
        .split_whitespace()
        .flat_map(str::chars)
        .map(|letter| ep(letter, family))
        .collect()
}

/// `pass`, `reject`, `drop`, `drop source`, or targets by letter, `*` = masqueraded.
fn verdict(text: &str, family: Family) -> Verdict {
    match text {
        "pass" => Verdict::Pass,
        "reject" => Verdict::Reject,
        "drop" => Verdict::DropNoLocalEndpoints,
        "drop source" => Verdict::DropSourceRange,
        targets => {
            let target = |word: &str| Target {
                addr: SocketAddr::new(ep(word.chars().next().expect("a word"), family).addr, TARGET_PORT),
                masquerade: word.ends_with('*'),
            };
            Verdict::Forward(targets.split_whitespace().map(target).collect())
        }
    }
}

/// Policy (`internalTrafficPolicy` for the first matrix, `externalTrafficPolicy` for the second), endpoints, and the
/// verdict for a packet from a pod of this node, from the node itself, and from outside.
type Row = (TrafficPolicy, &'static str, &'static str, &'static str, &'static str);

#[rustfmt::skip]
const MATRIX_CLUSTER_IP: &[Row] = &[
    // policy   endpoints    pod       host      outside
    (Cluster, "",            "reject", "reject", "reject"),
    (Cluster, "e f",         "reject", "reject", "reject"),
    (Cluster, "a",           "a",      "a",      "a"),
    (Cluster, "b",           "b",      "b",      "b*"),
    (Cluster, "a b",         "a b",    "a b",    "a b*"),
    (Cluster, "c d",         "c d",    "c d",    "c d*"),
    (Cluster, "b c",         "b",      "b",      "b*"),
    (Cluster, "a d",         "a",      "a",      "a"),
    (Cluster, "a b c d e f", "a b",    "a b",    "a b*"),
    (Local,   "",            "reject", "reject", "reject"),
    (Local,   "e f",         "reject", "reject", "reject"),
    (Local,   "a",           "a",      "a",      "a"),
    (Local,   "b",           "drop",   "drop",   "drop"),
    (Local,   "a b",         "a",      "a",      "a"),
    (Local,   "c d",         "c",      "c",      "c"),
    (Local,   "d",           "drop",   "drop",   "drop"),
    (Local,   "b c",         "c",      "c",      "c"),
    (Local,   "a d",         "a",      "a",      "a"),
    (Local,   "b e",         "drop",   "drop",   "drop"),
    (Local,   "a b c d e f", "a",      "a",      "a"),
];

#[rustfmt::skip]
const MATRIX_EXTERNAL: &[Row] = &[
    // policy   endpoints    pod       host      outside
    (Cluster, "",            "reject", "reject", "reject"),
    (Cluster, "e f",         "reject", "reject", "reject"),
    (Cluster, "a",           "a",      "a",      "a"),
    (Cluster, "b",           "b",      "b",      "b*"),
    (Cluster, "a b",         "a b",    "a b",    "a b*"),
    (Cluster, "c d",         "c d",    "c d",    "c d*"),
    (Cluster, "b c",         "b",      "b",      "b*"),
    (Cluster, "a d",         "a",      "a",      "a"),
    (Cluster, "a b c d e f", "a b",    "a b",    "a b*"),
    (Local,   "",            "reject", "reject", "reject"),
    (Local,   "e f",         "reject", "reject", "reject"),
    (Local,   "a",           "a",      "a",      "a"),
    (Local,   "b",           "b",      "b",      "drop"),
    (Local,   "a b",         "a b",    "a b",    "a"),
    (Local,   "c d",         "c d",    "c d",    "c"),
    (Local,   "d",           "d",      "d",      "drop"),
    (Local,   "b c",         "b",      "b",      "c"),
    (Local,   "a d",         "a",      "a",      "a"),
    (Local,   "b e",         "b",      "b",      "drop"),
    (Local,   "a b c d e f", "a b",    "a b",    "a"),
];

/// What a row is repeated with; only [`Variant::Stuck`] changes the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Plain,
    /// The policy that does not govern this kind of address is Local.
    OtherPolicyLocal,
    /// `sessionAffinity: ClientIP`, first flow.
    Affinity,
    /// The client stuck to the last backend that it may have.
    Stuck,
    /// The client stuck to a backend that is no more.
    StuckToGone,
}

const VARIANTS: [Variant; 5] = [
    Variant::Plain,
    Variant::OtherPolicyLocal,
    Variant::Affinity,
    Variant::Stuck,
    Variant::StuckToGone,
];

fn matrix() -> Vec<Case> {
    let mut cases = Vec::new();
    for (kinds, rows) in [
        (&[ClusterIP] as &[_], MATRIX_CLUSTER_IP),
        (&[NodePort, LoadBalancer, ExternalIP], MATRIX_EXTERNAL),
    ] {
        for kind in kinds {
            for row in rows {
                for family in Family::ALL {
                    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                        // SCTP differs from TCP and UDP in nothing that this table knows; once is enough.
                        let variants = if protocol == Protocol::Sctp {
                            &VARIANTS[..1]
                        } else {
                            &VARIANTS
                        };
                        for variant in variants {
                            for (from, outcome) in [("pod", row.2), ("host", row.3), ("outside", row.4)] {
                                cases.push(cell(*kind, row, family, protocol, *variant, from, outcome));
                            }
                        }
                    }
                }
            }
        }
    }
    cases
}

fn cell(
    kind: FrontendKind,
    row: &Row,
    family: Family,
    protocol: Protocol,
    variant: Variant,
    from: &str,
    outcome: &str,
) -> Case {
    let (policy, endpoints, ..) = *row;
    let v4 = family == Family::V4;
    let (cluster_ip, lb_ip, external_ip, node_ip) = if v4 {
        ("10.96.0.10", "198.51.100.10", "198.51.100.20", "192.168.0.1")
    } else {
        (
            "fd00:10:96::10",
            "2001:db8:100::10",
            "2001:db8:100::20",
            "fd00:192:168::1",
        )
    };
    let other = if variant == Variant::OtherPolicyLocal {
        Local
    } else {
        Cluster
    };
    let (internal, external) = if kind == ClusterIP {
        (policy, other)
    } else {
        (other, policy)
    };
    let mut web = service("web")
        .cluster_ip(cluster_ip)
        .internal(internal)
        .external(external);
    let destination = match kind {
        ClusterIP => format!("{cluster_ip} 80"),
        NodePort => format!("{node_ip} 30080"),
        LoadBalancer => {
            web = web.load_balancer_ip(lb_ip);
            format!("{lb_ip} 80")
        }
        ExternalIP => {
            web = web.external_ip(external_ip);
            format!("{external_ip} 80")
        }
    };
    web = web.port("", 80, protocol, (kind == NodePort).then_some(30_080));
    if matches!(variant, Variant::Affinity | Variant::Stuck | Variant::StuckToGone) {
        web = web.affinity(10_800);
    }
    let packet = packet(from, &format!("{destination} {protocol}"));
    let mut expected = verdict(outcome, family);
    let mut state = State::default();
    let mut stick = |to| state.affinity.insert((packet.source.ip(), packet.destination), to);
    match (variant, &mut expected) {
        (Variant::Stuck, Verdict::Forward(targets)) => {
            targets.drain(..targets.len() - 1);
            stick(targets[0].addr);
        }
        (Variant::StuckToGone, _) => {
            stick(SocketAddr::new(
                addr(if v4 { "10.1.0.66" } else { "fd00:10:1:0::66" }),
                TARGET_PORT,
            ));
        }
        _ => {}
    }
    let governs = if kind == ClusterIP { "ITP" } else { "ETP" };
    Case {
        name: format!(
            "{kind} {family} {protocol} {governs}={policy:?} endpoints=[{endpoints}] {variant:?} from {from}"
        ),
        services: vec![web.build()],
        slices: vec![slice_with(
            "web-1",
            "web",
            &[("", TARGET_PORT, protocol)],
            &eps(endpoints, family),
        )]
        .into_iter()
        .map(|slice| EndpointSlice { family, ..slice })
        .collect(),
        node: node(),
        packet,
        state,
        expected,
    }
}

/// `from` is `pod`, `host` or `outside`, with an address or without; `to` is address, port and, if not TCP, protocol.
fn packet(from: &str, to: &str) -> Packet {
    let mut to = to.split_whitespace();
    let to_addr = addr(to.next().expect("an address"));
    let to_port: u16 = to.next().and_then(|port| port.parse().ok()).expect("a port");
    let protocol = to
        .next()
        .map_or(Protocol::Tcp, |text| Protocol::from_api(text).expect("a protocol"));
    let (who, source) = from.split_once(' ').unwrap_or((from, ""));
    let (origin, v4, v6) = match who {
        "pod" => (Origin::Pod, "10.1.0.100", "fd00:10:1:0::100"),
        "host" => (Origin::Host, "192.168.0.1", "fd00:192:168::1"),
        "outside" => (Origin::Outside, "203.0.113.9", "2001:db8:113::9"),
        _ => panic!("who is {who:?}?"),
    };
    let usual = if to_addr.is_ipv4() { v4 } else { v6 };
    let source = if source.is_empty() { usual } else { source };
    Packet {
        source: SocketAddr::new(addr(source), 40_000),
        destination: SocketAddr::new(to_addr, to_port),
        protocol,
        origin,
    }
}

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

fn specials() -> Vec<Scene> {
    let mut scenes = unserved();
    scenes.extend(masquerading());
    scenes.extend(source_ranges());
    scenes.extend(topology());
    scenes.extend(merging());
    scenes.extend(affinity());
    scenes.extend(conflicts());
    scenes
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_endpoints_live_where_the_letters_say() {
        let cases = table();
        let names: std::collections::BTreeSet<_> = cases.iter().map(|case| &case.name).collect();
        assert_eq!(names.len(), cases.len());
        let v6: Vec<_> = eps("a b", Family::V6).iter().map(|ep| ep.addr).collect();
        assert_eq!(v6, [addr("fd00:10:1:0::1"), addr("fd00:10:1:1::2")]);
    }
}
