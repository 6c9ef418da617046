//! The semantics, executable: Plan + packet + state → verdict.
//!
//! The steps, in order: no frontend → pass; source ranges; the frontend's [`Decision`] for clients on this node or
//! outside; the backends of that set; the client's affinity; masquerading per backend.

use super::{Backend, Decision, Frontend, FrontendKind, Plan, PortPlan, claims::FrontendKey};
use crate::model::{NodeView, ObjectName, Protocol};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
};

/// Where the first packet of a flow comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A pod of this node.
    Pod,
    /// This node itself.
    Host,
    /// Anywhere else.
    Outside,
}

/// The first packet of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Client.
    pub source: SocketAddr,
    /// What the client asked for.
    pub destination: SocketAddr,
    /// Transport.
    pub protocol: Protocol,
    /// Where it enters.
    pub origin: Origin,
}

/// What earlier packets left behind.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Backend that a client address stuck to, by service port (any of its frontends) and set; entries must not be
    /// older than the affinity timeout. An entry holds for every frontend of the port that balances this client over
    /// the same set as the one in the key. One state is about one protocol: the key does not tell 53/TCP from 53/UDP.
    pub affinity: HashMap<(IpAddr, SocketAddr), SocketAddr>,
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No frontend: the kernel goes on with it as it is.
    Pass,
    /// Sent to one of these, in the order of [`PortPlan::backends`].
    Forward(Vec<Target>),
    /// RST or ICMP port unreachable.
    Reject,
    /// Policy Local without an endpoint here.
    DropNoLocalEndpoints,
    /// Outside the source ranges.
    DropSourceRange,
}

/// A backend that a packet may be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Backend.
    pub addr: SocketAddr,
    /// Whether it sees this node's address as the source, so that its reply comes back through here.
    pub masquerade: bool,
}

/// What `plan` means for `packet`. Looks at every frontend; for many packets, see [`TraceIndex`].
pub fn trace(plan: &Plan, node: &NodeView, packet: &Packet, state: &State) -> Verdict {
    let addr = packet.destination;
    let found = plan.frontends().find(|(_, port, frontend)| {
        frontend.addr == addr.ip() && frontend.port.get() == addr.port() && port.protocol == packet.protocol
    });
    found.map_or(Verdict::Pass, |(_, port, frontend)| {
        judge(port, frontend, node, packet, state)
    })
}

/// The frontends of a plan by what packets are looked up by.
#[derive(Debug)]
pub struct TraceIndex<'a> {
    frontends: HashMap<FrontendKey, (&'a ObjectName, &'a PortPlan, &'a Frontend)>,
}

impl<'a> TraceIndex<'a> {
    /// Reads the whole plan once.
    pub fn new(plan: &'a Plan) -> Self {
        let key = |port: &PortPlan, frontend: &Frontend| FrontendKey {
            addr: frontend.addr,
            port: frontend.port,
            protocol: port.protocol,
        };
        let frontends = plan.frontends().map(|found| (key(found.1, found.2), found)).collect();
        Self { frontends }
    }

    /// The frontend at an address, with its service and port.
    pub fn find(&self, addr: SocketAddr, protocol: Protocol) -> Option<(&'a ObjectName, &'a PortPlan, &'a Frontend)> {
        let port = NonZeroU16::new(addr.port())?;
        let key = FrontendKey {
            addr: addr.ip(),
            port,
            protocol,
        };
        self.frontends.get(&key).copied()
    }

    /// As the free [`trace`].
    pub fn trace(&self, node: &NodeView, packet: &Packet, state: &State) -> Verdict {
        self.find(packet.destination, packet.protocol)
            .map_or(Verdict::Pass, |(_, port, frontend)| {
                judge(port, frontend, node, packet, state)
            })
    }
}

fn judge(port: &PortPlan, frontend: &Frontend, node: &NodeView, packet: &Packet, state: &State) -> Verdict {
    if !frontend.sources.allow(packet.source.ip()) {
        return Verdict::DropSourceRange;
    }
    let decision = frontend.decision(packet.origin);
    match decision {
        Decision::Reject => return Verdict::Reject,
        Decision::Drop => return Verdict::DropNoLocalEndpoints,
        Decision::Cluster | Decision::Local => {}
    }
    let stuck_to = affinity(port, decision, packet, state);
    let targets: Vec<_> = port
        .selectable(decision)
        .filter(|backend| stuck_to.is_none_or(|addr| addr == backend.addr))
        .map(|backend| Target {
            addr: backend.addr,
            masquerade: masquerade(backend, frontend, node, packet),
        })
        .collect();
    // A plan never decides for an empty set; a dataplane that is handed one has nobody to forward to.
    if targets.is_empty() {
        Verdict::Reject
    } else {
        Verdict::Forward(targets)
    }
}

/// The backend that this client stuck to under the same port and set, if it is still one of them.
fn affinity(port: &PortPlan, decision: Decision, packet: &Packet, state: &State) -> Option<SocketAddr> {
    port.affinity_s?;
    let client = packet.source.ip();
    port.frontends
        .iter()
        .filter(|frontend| frontend.decision(packet.origin) == decision)
        .filter_map(|frontend| {
            state
                .affinity
                .get(&(client, SocketAddr::new(frontend.addr, frontend.port.get())))
        })
        .copied()
        .find(|addr| port.selectable(decision).any(|backend| backend.addr == *addr))
}

/// Whether the backend must see this node as the client.
///
/// Three reasons: a pod that reaches itself by its own VIP would otherwise be answered by itself; a client outside would
/// be answered by a backend on another node, past us; and `masqueradeAll` asks for it. Unlike upstream, traffic from
/// outside to a backend on this node keeps its source also under `externalTrafficPolicy: Cluster`: the reply leaves
/// through this node anyway. A socket of the node itself that reaches a backend with the node's own address needs none
/// of this: the reply crosses `lo`, where it is translated like any other.
fn masquerade(backend: &Backend, frontend: &Frontend, node: &NodeView, packet: &Packet) -> bool {
    let hairpin = packet.origin == Origin::Pod && packet.source.ip() == backend.addr.ip();
    let reply_would_miss_us = packet.origin == Origin::Outside && !backend.on_node;
    let asked_for = node.masquerade_all && packet.origin == Origin::Pod && frontend.kind == FrontendKind::ClusterIP;
    hairpin || reply_would_miss_us || asked_for
}
