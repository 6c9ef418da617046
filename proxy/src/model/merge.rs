//! The endpoints of one service port, merged from all slices of the service.

use super::{Family, HeldEndpoint, HeldSlice, NodeView, Protocol};
use std::{net::SocketAddr, sync::Arc};

/// An endpoint of a service port as this node sees it.
///
/// While the control plane moves an endpoint from one slice to another, a watcher may see it in both, one of them out
/// of date and neither marked as such. Upstream keeps whichever it meets first (unless a later copy is local); here the
/// copies are joined by rules that do not depend on any order, in favour of the endpoint being usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergedEndpoint {
    /// Address and target port.
    pub addr: SocketAddr,
    /// `ready` in any copy.
    pub ready: bool,
    /// `serving` in any copy.
    pub serving: bool,
    /// `serving` and `terminating` together in any copy: the last resort when no endpoint is ready (KEP-1669).
    pub serving_terminating: bool,
    /// Any copy names this node in `nodeName`.
    pub on_node: bool,
    /// The strongest of all copies' `hints.forNodes`.
    pub node_hint: Hint,
    /// The strongest of all copies' `hints.forZones`.
    pub zone_hint: Hint,
}

/// What an endpoint's hints of one kind say about this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hint {
    /// There are none.
    None,
    /// They name only other nodes (zones), or our own is unknown.
    Elsewhere,
    /// They name this node (zone).
    Here,
}

/// Endpoints of the service port `port` (joined by name and protocol, slice by slice) in one family, sorted by address
/// and port, without duplicates.
pub fn merge(
    slices: &[HeldSlice],
    port: &str,
    protocol: Protocol,
    family: Family,
    node: &NodeView,
) -> Vec<MergedEndpoint> {
    let mut merged = Vec::new();
    for slice in slices.iter().filter(|slice| slice.family == family) {
        for target in &slice.ports {
            if target.protocol != protocol || *target.name != *port {
                continue;
            }
            merged.reserve_exact(slice.endpoints.len());
            // A slice of one family cannot hold an address of the other; one that does is not believed.
            for endpoint in slice.endpoints.iter().filter(|e| Family::of(&e.addr) == family) {
                merged.push(see(endpoint, target.port.get(), node));
            }
        }
    }
    merged.sort_unstable_by_key(|endpoint| endpoint.addr);
    merged.dedup_by(|copy, kept| {
        let same = copy.addr == kept.addr;
        if same {
            kept.ready |= copy.ready;
            kept.serving |= copy.serving;
            kept.serving_terminating |= copy.serving_terminating;
            kept.on_node |= copy.on_node;
            kept.node_hint = kept.node_hint.max(copy.node_hint);
            kept.zone_hint = kept.zone_hint.max(copy.zone_hint);
        }
        same
    });
    merged
}

fn see(endpoint: &HeldEndpoint, port: u16, node: &NodeView) -> MergedEndpoint {
    // A node that does not know its own name owns nothing.
    let own_name = Some(&*node.name).filter(|name| !name.is_empty());
    MergedEndpoint {
        addr: SocketAddr::new(endpoint.addr, port),
        ready: endpoint.ready,
        serving: endpoint.serving,
        serving_terminating: endpoint.serving && endpoint.terminating,
        on_node: own_name.is_some() && endpoint.node.as_deref() == own_name,
        node_hint: hint(endpoint.hints.as_ref().map_or(&[], |hints| &hints.nodes), own_name),
        zone_hint: hint(
            endpoint.hints.as_ref().map_or(&[], |hints| &hints.zones),
            node.zone.as_deref(),
        ),
    }
}

fn hint(hints: &[Arc<str>], own: Option<&str>) -> Hint {
    if hints.is_empty() {
        Hint::None
    } else if hints.iter().any(|name| Some(&**name) == own) {
        Hint::Here
    } else {
        Hint::Elsewhere
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{EndpointPort, EndpointSlice, held::Shared},
        testing::{Ep, node, slice},
    };

    fn held(slices: &[EndpointSlice]) -> Vec<HeldSlice> {
        let mut shared = Shared::default();
        slices.iter().map(|slice| shared.slice(slice.clone())).collect()
    }

    fn merged(slices: &[EndpointSlice]) -> Vec<MergedEndpoint> {
        let slices = held(slices);
        let there = merge(&slices, "", Protocol::Tcp, Family::V4, &node());
        let mut reversed = slices;
        reversed.reverse();
        assert_eq!(there, merge(&reversed, "", Protocol::Tcp, Family::V4, &node()), "order");
        there
    }

    #[test]
    fn the_same_address_in_two_slices_is_one_endpoint_ready_if_either_is() {
        let stale = Ep {
            ready: false,
            serving: true,
            terminating: true,
            ..Ep::there("10.1.0.1")
        };
        let fresh = Ep {
            zones: &["z2"],
            ..Ep::here("10.1.0.1")
        };
        let got = merged(&[slice("a", "web", &[stale]), slice("b", "web", &[fresh])]);
        assert_eq!(
            got,
            [MergedEndpoint {
                addr: "10.1.0.1:8080".parse().unwrap(),
                ready: true,
                serving: true,
                serving_terminating: true,
                on_node: true,
                node_hint: Hint::None,
                zone_hint: Hint::Elsewhere,
            }]
        );
    }

    #[test]
    fn serving_in_one_slice_and_terminating_in_another_is_not_serving_while_terminating() {
        let a = Ep {
            ready: false,
            serving: true,
            ..Ep::here("10.1.0.1")
        };
        let b = Ep {
            ready: false,
            serving: false,
            terminating: true,
            ..Ep::here("10.1.0.1")
        };
        let got = merged(&[slice("a", "web", &[a]), slice("b", "web", &[b])]);
        assert!(got[0].serving && !got[0].serving_terminating);
    }

    #[test]
    fn ports_are_joined_by_name_and_protocol_slice_by_slice() {
        let mut a = slice("a", "web", &[Ep::here("10.1.0.1")]);
        let mut b = slice("b", "web", &[Ep::here("10.1.0.1"), Ep::here("10.1.0.2")]);
        a.ports[0].port = 81.try_into().unwrap();
        b.ports.push(EndpointPort {
            name: "metrics".into(),
            protocol: Protocol::Tcp,
            port: 9000.try_into().unwrap(),
        });
        let addrs: Vec<_> = merged(&[a, b]).iter().map(|e| e.addr.to_string()).collect();
        assert_eq!(addrs, ["10.1.0.1:81", "10.1.0.1:8080", "10.1.0.2:8080"]);
    }

    #[test]
    fn families_do_not_mix() {
        let v6 = slice("b", "web", &[Ep::here("fd00:10:1::1")]);
        let mut liar = slice("c", "web", &[Ep::here("fd00:10:1::2")]);
        liar.family = Family::V4;
        let addrs: Vec<_> = merged(&[slice("a", "web", &[Ep::here("10.1.0.1")]), v6, liar])
            .iter()
            .map(|e| e.addr.to_string())
            .collect();
        assert_eq!(addrs, ["10.1.0.1:8080"]);
    }

    #[test]
    fn a_node_without_a_name_owns_nothing() {
        let nameless = NodeView::default();
        let slices = [slice(
            "a",
            "web",
            &[Ep {
                node: Some("".into()),
                ..Ep::here("10.1.0.1")
            }],
        )];
        assert!(!merge(&held(&slices), "", Protocol::Tcp, Family::V4, &nameless)[0].on_node);
    }
}
