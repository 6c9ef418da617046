//! The packet table: what every dataplane must do with the first packet of a flow.

use super::{Ep, TARGET_PORT, addr, node, scenes, service, slice_with};
use crate::{
    model::{
        Change, EndpointSlice, Event, Family, NodeView, Protocol, Service, ServiceMap,
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

impl Case {
    /// The services and slices as a source would have delivered them.
    pub fn map(&self) -> ServiceMap {
        let mut map = ServiceMap::default();
        for service in &self.services {
            map.apply(Event::Service(Change::Apply(service.clone())));
        }
        for slice in &self.slices {
            map.apply(Event::Slice(Change::Apply(slice.clone())));
        }
        map.apply(Event::InitDone);
        map
    }
}

/// All cases: the two matrices over every address kind, family and protocol, and the special cases one by one.
pub fn table() -> Vec<Case> {
    let mut cases = matrix();
    cases.extend(scenes::cases());
    cases
}

/// Endpoints by letter:
/// `a` ready here, `b` ready elsewhere, `c` terminating here, `d` terminating elsewhere, `e` dead here, `f` dead
/// elsewhere. Terminating ones still serve; dead ones are neither ready nor serving.
pub(super) fn ep(letter: char, family: Family) -> Ep {
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

pub(super) fn eps(letters: &str, family: Family) -> Vec<Ep> {
    letters
        .split_whitespace()
        .flat_map(str::chars)
        .map(|letter| ep(letter, family))
        .collect()
}

/// `pass`, `reject`, `drop`, `drop source`, or targets by letter, `*` = masqueraded.
pub(super) fn verdict(text: &str, family: Family) -> Verdict {
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
pub(super) fn packet(from: &str, to: &str) -> Packet {
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
