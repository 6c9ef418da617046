//! The semantics, executable: Plan + packet + state → verdict.

use super::Plan;
use crate::model::{NodeView, Protocol};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
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
    /// older than the affinity timeout.
    pub affinity: HashMap<(IpAddr, SocketAddr), SocketAddr>,
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No frontend: the kernel goes on with it as it is.
    Pass,
    /// Sent to one of these.
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
    /// Whether it sees this node's address as the source.
    pub masquerade: bool,
}

/// What `plan` means for `packet`.
pub fn trace(_plan: &Plan, _node: &NodeView, _packet: &Packet, _state: &State) -> Verdict {
    Verdict::Pass
}
