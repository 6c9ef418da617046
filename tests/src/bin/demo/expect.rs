//! What each line of the table should show, from the manifests alone: not from the code under demonstration.

use crate::{
    examples::{Endpoint, Examples, Frontend},
    family,
};
use harness::{Histogram, Transport};
use std::{collections::BTreeSet, fmt};

/// What a frontend should answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Expected {
    /// Any of these pods, and nobody else.
    AnyOf(BTreeSet<String>),
    /// One of these pods, always the same.
    OneOf(BTreeSet<String>),
    /// ECONNREFUSED.
    Refused,
    /// Nothing.
    Silence,
    /// Nobody routes this address from there.
    Unroutable,
}

impl Expected {
    pub(crate) fn holds(&self, seen: &Histogram) -> bool {
        let only = |pods: &BTreeSet<String>| {
            seen.failures() == 0 && seen.answered() > 0 && seen.by_server.keys().all(|name| pods.contains(name))
        };
        let failed_by =
            |kinds: &[&str]| seen.answered() == 0 && seen.failed.keys().all(|kind| kinds.contains(&kind.as_str()));
        match self {
            Self::AnyOf(pods) => only(pods),
            Self::OneOf(pods) => only(pods) && seen.by_server.len() == 1,
            Self::Refused => failed_by(&["ConnectionRefused"]),
            Self::Silence => failed_by(&["TimedOut", "Denied"]),
            Self::Unroutable => true,
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |pods: &BTreeSet<String>| pods.iter().cloned().collect::<Vec<_>>().join(", ");
        match self {
            Self::AnyOf(pods) => f.write_str(&names(pods)),
            Self::OneOf(pods) => write!(f, "one of {}", names(pods)),
            Self::Refused => f.write_str("connection refused"),
            Self::Silence => f.write_str("no answer"),
            Self::Unroutable => f.write_str("no route"),
        }
    }
}

/// What a client of node-a's frontends should see: `outside` the cluster, a `pod` of node-a, or the `node` itself.
pub(crate) fn expected(examples: &Examples, frontend: &Frontend, client: &str) -> Expected {
    let outside = client == "outside";
    if outside && frontend.kind == "ClusterIP" {
        return Expected::Unroutable;
    }
    let spec = &examples.service(&frontend.service)["spec"];
    if frontend.kind == "LoadBalancer" && !allowed(spec["loadBalancerSourceRanges"].as_array(), client) {
        return Expected::Silence;
    }
    let protocol = if frontend.transport == Transport::Udp {
        "UDP"
    } else {
        "TCP"
    };
    let all: Vec<Endpoint> = examples
        .endpoints(&frontend.service)
        .into_iter()
        .filter(|endpoint| endpoint.ready && endpoint.port == frontend.port && endpoint.protocol == protocol)
        .filter(|endpoint| family(endpoint.addr.ip()) == frontend.family)
        .collect();
    let names = |local: bool| -> BTreeSet<String> {
        // Pods of node-a have names that begin with a.
        all.iter()
            .filter_map(Examples::server)
            .filter(|name| !local || name.starts_with('a'))
            .collect()
    };
    let local = if frontend.kind == "ClusterIP" {
        spec["internalTrafficPolicy"] == "Local"
    } else {
        outside && spec["externalTrafficPolicy"] == "Local"
    };
    let pods = names(local);
    if names(false).is_empty() {
        Expected::Refused
    } else if pods.is_empty() {
        Expected::Silence
    } else if spec["sessionAffinity"] == "ClientIP" {
        Expected::OneOf(pods)
    } else {
        Expected::AnyOf(pods)
    }
}

/// Whether a client is in the ranges; compared by text, which is enough for ranges that are its network, its host, or
/// everything.
fn allowed(ranges: Option<&Vec<serde_json::Value>>, client: &str) -> bool {
    let covering: &[&str] = match client {
        "outside" => &[
            "203.0.113.0/24",
            "203.0.113.0/25",
            "203.0.113.10/32",
            "2001:db8:113::/64",
            "2001:db8:113::10/128",
        ],
        "pod" => &["10.1.0.0/16", "10.1.1.0/24", "fd00:10:1::/48"],
        _ => &["192.168.0.0/24", "192.168.0.11/32", "fd00:192:168::/64"],
    };
    let everything = ["0.0.0.0/0", "::/0"];
    ranges.is_none_or(|ranges| {
        ranges.is_empty()
            || ranges
                .iter()
                .filter_map(|range| range.as_str())
                .any(|range| covering.contains(&range.trim()) || everything.contains(&range.trim()))
    })
}
