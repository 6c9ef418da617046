//! Which endpoints this node may use (KEP-2433, KEP-3015, KEP-4444, KEP-1669).

use super::Backend;
use crate::model::{Hint, MergedEndpoint};

/// Which of the two sets a service port needs; the other one stays empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uses {
    /// Some policy is Cluster, or it is reachable from outside: then clients on this node go to the Cluster set
    /// whatever `externalTrafficPolicy` says.
    pub cluster: bool,
    /// Some policy that applies is Local.
    pub local: bool,
}

/// The backends of a service port, and whether any endpoint at all is usable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Categorized {
    /// In the order of the endpoints. Those in neither set still serve the flows that they have.
    pub backends: Vec<Backend>,
    /// Some backend has `in_cluster`.
    pub any_in_cluster: bool,
    /// Some backend has `in_local`.
    pub any_in_local: bool,
    /// Some endpoint of the cluster is usable, wherever it is.
    pub any_usable: bool,
}

/// Decides the Cluster set and the Local set, each for itself:
///
/// * usable endpoints are the ready ones; if a set has none, its endpoints that serve while they terminate (KEP-1669);
/// * the Local set is the usable endpoints of this node, hints or not;
/// * the Cluster set follows the hints, if they can be trusted as a whole: if every ready endpoint has node hints and
///   some name this node, those (KEP-3015); else if every ready endpoint has zone hints and some name this node's zone,
///   those (KEP-2433); else all.
///
/// An endpoint that is neither ready nor serving is no backend: its flows have nobody to talk to.
pub fn categorize(endpoints: &[MergedEndpoint], uses: Uses) -> Categorized {
    let mode = Mode::of(endpoints);
    let any_ready = endpoints.iter().any(|e| e.ready);
    let any_ready_here = endpoints.iter().any(|e| e.ready && e.on_node);
    let mut all = Categorized::default();
    for e in endpoints {
        let in_cluster = if any_ready {
            e.ready && mode.picks(e)
        } else {
            e.serving_terminating
        };
        let in_local = e.on_node && if any_ready_here { e.ready } else { e.serving_terminating };
        all.any_usable |= in_cluster;
        if e.ready || e.serving {
            let backend = Backend {
                addr: e.addr,
                in_cluster: in_cluster && uses.cluster,
                in_local: in_local && uses.local,
                on_node: e.on_node,
            };
            all.any_in_cluster |= backend.in_cluster;
            all.any_in_local |= backend.in_local;
            all.backends.push(backend);
        }
    }
    all
}

/// Which hints the Cluster set follows: decided for the whole set, never per endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    SameNode,
    SameZone,
    All,
}

impl Mode {
    fn of(endpoints: &[MergedEndpoint]) -> Self {
        let trusted = |hint: fn(&MergedEndpoint) -> Hint| {
            let mut hints = endpoints.iter().filter(|e| e.ready).map(hint);
            hints.clone().all(|hint| hint != Hint::None) && hints.any(|hint| hint == Hint::Here)
        };
        if trusted(|e| e.node_hint) {
            Self::SameNode
        } else if trusted(|e| e.zone_hint) {
            Self::SameZone
        } else {
            Self::All
        }
    }

    fn picks(self, endpoint: &MergedEndpoint) -> bool {
        match self {
            Self::SameNode => endpoint.node_hint == Hint::Here,
            Self::SameZone => endpoint.zone_hint == Hint::Here,
            Self::All => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Uses = Uses {
        cluster: true,
        local: true,
    };

    /// `a` to `z` by position; `R`eady, `T`erminating and serving, `S`erving only, `-` neither; `@` on this node; hints
    /// `n`/`z` = here, `N`/`Z` = elsewhere.
    fn endpoints(words: &str) -> Vec<MergedEndpoint> {
        let hint = |word: &str, here, elsewhere| match () {
            () if word.contains(here) => Hint::Here,
            () if word.contains(elsewhere) => Hint::Elsewhere,
            () => Hint::None,
        };
        let endpoint = |(at, word): (usize, &str)| MergedEndpoint {
            addr: ([10, 1, 0, at as u8], 80).into(),
            ready: word.starts_with('R'),
            serving: !word.starts_with('-'),
            serving_terminating: word.starts_with('T'),
            on_node: word.contains('@'),
            node_hint: hint(word, 'n', 'N'),
            zone_hint: hint(word, 'z', 'Z'),
        };
        words.split_whitespace().enumerate().map(endpoint).collect()
    }

    /// Names of the backends in the Cluster set, the Local set, and neither.
    fn sets(words: &str, uses: Uses) -> [String; 3] {
        let all = categorize(&endpoints(words), uses);
        let pick = |f: fn(&Backend) -> bool| {
            let picked = all.backends.iter().filter(|b| f(b));
            picked
                .map(|b| match b.addr.ip() {
                    std::net::IpAddr::V4(ip) => char::from(b'a' + ip.octets()[3]),
                    std::net::IpAddr::V6(_) => '?',
                })
                .collect::<String>()
        };
        let got = [
            pick(|b| b.in_cluster),
            pick(|b| b.in_local),
            pick(|b| !b.in_cluster && !b.in_local),
        ];
        assert_eq!(all.any_in_cluster, !got[0].is_empty());
        assert_eq!(all.any_in_local, !got[1].is_empty());
        got
    }

    #[test]
    fn sets_by_conditions_place_and_hints() {
        for (words, cluster, local, neither) in [
            ("", "", "", ""),
            ("R@ R", "ab", "a", ""),
            ("R T@", "a", "b", ""),
            ("R@ T@ T", "a", "a", "bc"),
            ("T T@", "ab", "b", ""),
            ("R@ S@ -@", "a", "a", "b"),
            ("S@ -", "", "", "a"),
            // node hints
            ("R@n RN", "a", "a", "b"),
            ("R@N RN", "ab", "a", ""),
            ("R@n R", "ab", "a", ""),
            ("R@n RN T", "a", "a", "bc"),
            ("R@nZ RNz", "a", "a", "b"),
            // zone hints
            ("Rz RZ", "a", "", "b"),
            ("R@Z Rz", "b", "a", ""),
            ("Rz R", "ab", "", ""),
            ("RZ RZ", "ab", "", ""),
            ("RzN RZN", "a", "", "b"),
            // only ready endpoints' hints count, and only ready endpoints are filtered
            ("Rz RZ T", "a", "", "bc"),
            ("Tz TZ", "ab", "", ""),
        ] {
            assert_eq!(sets(words, BOTH), [cluster, local, neither], "{words:?}");
        }
    }

    #[test]
    fn a_set_without_use_is_empty_but_its_endpoints_keep_their_flows() {
        let local = Uses {
            cluster: false,
            local: true,
        };
        assert_eq!(sets("R@Z Rz", local), ["", "a", "b"]);
        assert!(categorize(&endpoints("R"), local).any_usable);
        assert!(!categorize(&endpoints("S"), local).any_usable);
    }
}
