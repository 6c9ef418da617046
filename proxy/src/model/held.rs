//! `EndpointSlices` as they are kept: there are ten or a hundred times as many endpoints as anything else, so what they
//! repeat is held once.

use super::{Endpoint, EndpointPort, EndpointSlice, Family, ObjectName};
use std::{borrow::Borrow, collections::HashSet, hash::Hash, net::IpAddr, sync::Arc};

/// An [`EndpointSlice`] in a [`super::ServiceMap`], which knows its service.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldSlice {
    /// [`EndpointSlice::name`].
    pub name: ObjectName,
    /// [`EndpointSlice::family`].
    pub family: Family,
    /// [`EndpointSlice::ports`].
    pub ports: Box<[EndpointPort]>,
    /// [`EndpointSlice::endpoints`].
    pub endpoints: Box<[HeldEndpoint]>,
    /// [`EndpointSlice::triggered_ms`].
    pub triggered_ms: Option<i64>,
}

/// An [`Endpoint`] of a [`HeldSlice`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldEndpoint {
    /// [`Endpoint::addr`].
    pub addr: IpAddr,
    /// [`Endpoint::ready`].
    pub ready: bool,
    /// [`Endpoint::serving`].
    pub serving: bool,
    /// [`Endpoint::terminating`].
    pub terminating: bool,
    /// [`Endpoint::node`].
    pub node: Option<Arc<str>>,
    /// `None` if there are neither.
    pub hints: Option<Arc<Hints>>,
}

const _: () = assert!(size_of::<HeldEndpoint>() <= 48, "a hundred thousand of them");

/// The hints of an endpoint; nearly all endpoints of a zone have the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hints {
    /// [`Endpoint::zone_hints`].
    pub zones: Box<[Arc<str>]>,
    /// [`Endpoint::node_hints`].
    pub nodes: Box<[Arc<str>]>,
}

impl HeldSlice {
    /// Whether the two differ in nothing that a plan depends on.
    pub fn same_but_for_trigger(&self, other: &Self) -> bool {
        self.family == other.family && self.ports == other.ports && self.endpoints == other.endpoints
    }
}

/// What has been held once, for others that are equal.
#[derive(Debug, Default)]
pub(super) struct Shared {
    names: Pool<str>,
    hints: Pool<Hints>,
}

impl Shared {
    /// Replaces `name` by the equal one that is held.
    pub(super) fn name(&mut self, name: &mut Arc<str>) {
        self.names.share(name);
    }

    /// Both parts of an object's name.
    pub(super) fn object(&mut self, name: &mut ObjectName) {
        self.name(&mut name.namespace);
        self.name(&mut name.name);
    }

    /// A slice in its held form. Its own name is not shared: nothing else repeats it.
    pub(super) fn slice(&mut self, mut slice: EndpointSlice) -> HeldSlice {
        self.name(&mut slice.name.namespace);
        for port in &mut slice.ports {
            self.name(&mut port.name);
        }
        HeldSlice {
            name: slice.name,
            family: slice.family,
            ports: slice.ports.into(),
            endpoints: slice
                .endpoints
                .into_iter()
                .map(|endpoint| self.endpoint(endpoint))
                .collect(),
            triggered_ms: slice.triggered_ms,
        }
    }

    fn endpoint(&mut self, mut endpoint: Endpoint) -> HeldEndpoint {
        if let Some(node) = &mut endpoint.node {
            self.name(node);
        }
        let hinted = !endpoint.zone_hints.is_empty() || !endpoint.node_hints.is_empty();
        let hints = hinted.then(|| {
            for name in endpoint.zone_hints.iter_mut().chain(&mut endpoint.node_hints) {
                self.name(name);
            }
            let mut hints = Arc::new(Hints {
                zones: endpoint.zone_hints.into(),
                nodes: endpoint.node_hints.into(),
            });
            self.hints.share(&mut hints);
            hints
        });
        HeldEndpoint {
            addr: endpoint.addr,
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
            node: endpoint.node,
            hints,
        }
    }
}

/// Values that are held once, and forgotten some time after their last use.
#[derive(Debug)]
struct Pool<T: ?Sized> {
    held: HashSet<Arc<T>>,
    /// Size at which values that nobody uses any more are next looked for.
    sweep_at: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self {
            held: HashSet::new(),
            sweep_at: 1_024,
        }
    }
}

impl<T: ?Sized + Eq + Hash> Pool<T> {
    fn share(&mut self, value: &mut Arc<T>) {
        if let Some(held) = self.held.get::<T>((*value).borrow()) {
            *value = held.clone();
            return;
        }
        if self.held.len() >= self.sweep_at {
            self.held.retain(|held| Arc::strong_count(held) > 1);
            self.sweep_at = (self.held.len() * 2).max(1_024);
        }
        self.held.insert(value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Ep, slice};

    #[test]
    fn what_endpoints_repeat_is_held_once_and_forgotten() {
        let mut shared = Shared::default();
        for round in 0..5_000 {
            let mut both = ["a", "b"].map(|name| {
                let node = Some(format!("node-{round}").into());
                let one = slice(
                    name,
                    "web",
                    &[Ep {
                        node,
                        ..Ep::here("10.1.0.1")
                    }],
                );
                let mut one = EndpointSlice { ..one };
                one.endpoints[0].zone_hints = vec![format!("zone-{round}").into()];
                shared.slice(one).endpoints[0].clone()
            });
            let [a, b] = &mut both;
            assert!(Arc::ptr_eq(a.node.as_ref().unwrap(), b.node.as_ref().unwrap()));
            assert!(Arc::ptr_eq(a.hints.as_ref().unwrap(), b.hints.as_ref().unwrap()));
        }
        let (names, hints) = (shared.names.held.len(), shared.hints.held.len());
        assert!(names < 2_100 && hints < 2_100, "{names} names and {hints} hints held");
    }
}
