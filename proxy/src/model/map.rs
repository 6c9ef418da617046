//! [`ServiceMap`]: the newest version of every object, and which services an event touches.

use super::{Change, EndpointSlice, Event, HeldSlice, Node, ObjectName, Service, held::Shared};
use crate::error::Skipped;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// How many [`Skipped`] are kept until [`ServiceMap::take_skipped`]; more are only counted.
const SKIPPED_KEPT: usize = 1_000;

/// The newest version of every Service and `EndpointSlice`, and of this node's Node object.
///
/// What many objects repeat (names of nodes, zones, ports and namespaces; hints) is held once, however often the source
/// allocated it.
#[derive(Debug, Default)]
pub struct ServiceMap {
    entries: BTreeMap<ObjectName, Entry>,
    /// Slice name → the service that it was last labelled with, so that a slice which moves touches both services and a
    /// deletion, which knows only the slice's name, finds its service.
    owners: HashMap<ObjectName, ObjectName>,
    node: Option<Node>,
    synced: bool,
    skipped: Vec<Skipped>,
    skipped_total: u64,
    shared: Shared,
}

/// What is known under one service name: slices may come before their service, and outlive it.
#[derive(Debug, Default)]
struct Entry {
    service: Option<Arc<Service>>,
    /// Sorted by name.
    slices: Vec<HeldSlice>,
}

impl ServiceMap {
    /// Takes an event in and returns the services whose plan may be another one now. Empty when nothing that a plan
    /// depends on changed: an object equal to what is held, a new trigger time alone, [`Event::Skipped`]. The Node is
    /// not a service either: compare [`ServiceMap::node`] before and after.
    pub fn apply(&mut self, event: Event) -> BTreeSet<ObjectName> {
        match event {
            Event::Init => self.synced = false,
            Event::InitDone => self.synced = true,
            Event::Service(Change::Apply(service)) => return self.put_service(service),
            Event::Service(Change::Delete(name)) => return self.remove_service(&name),
            Event::Slice(Change::Apply(slice)) => return self.put_slice(slice),
            Event::Slice(Change::Delete(name)) => return self.remove_slice(&name),
            Event::Node(Change::Apply(node)) => self.node = Some(node),
            Event::Node(Change::Delete(name)) => {
                if self.node.as_ref().is_some_and(|node| node.name == name) {
                    self.node = None;
                }
            }
            Event::Skipped(skipped) => {
                self.skipped_total += 1;
                if self.skipped.len() < SKIPPED_KEPT {
                    self.skipped.push(skipped);
                }
            }
            // Who shows what was skipped forgets it; nothing here depends on it.
            Event::Reviewed { .. } => {}
        }
        BTreeSet::new()
    }

    /// Whether everything has been read once ([`Event::InitDone`]). Until then a plan would lack services that the
    /// kernel may be serving from an earlier run, so nothing may be programmed.
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// This node's Node object, if the source knows one.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// The newest version of a service. The same `Arc` as long as the service does not change.
    pub fn service(&self, name: &ObjectName) -> Option<&Arc<Service>> {
        self.entries.get(name)?.service.as_ref()
    }

    /// All services, by name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.entries.values().filter_map(|entry| entry.service.as_ref())
    }

    /// The slices of a service, by slice name, whether or not the service itself is known; see [`super::merge()`].
    pub fn slices(&self, service: &ObjectName) -> &[HeldSlice] {
        self.entries.get(service).map_or(&[], |entry| &entry.slices)
    }

    /// Newest trigger time of a service's slices, milliseconds since the epoch; start of
    /// `network_programming_duration_seconds`.
    pub fn triggered_ms(&self, service: &ObjectName) -> Option<i64> {
        self.slices(service).iter().filter_map(|slice| slice.triggered_ms).max()
    }

    /// How many objects (or parts of one) the source has had to leave out since the start.
    pub fn skipped_total(&self) -> u64 {
        self.skipped_total
    }

    /// What the source has left out since the last call, in order; at most 1 000 are kept, [`Self::skipped_total`]
    /// counts them all.
    pub fn take_skipped(&mut self) -> Vec<Skipped> {
        std::mem::take(&mut self.skipped)
    }

    fn put_service(&mut self, mut service: Service) -> BTreeSet<ObjectName> {
        let held = self
            .entries
            .get(&service.name)
            .and_then(|entry| entry.service.as_deref());
        if held == Some(&service) {
            return BTreeSet::new();
        }
        self.shared.object(&mut service.name);
        for port in &mut service.ports {
            self.shared.name(&mut port.name);
        }
        service.cluster_ips.shrink_to_fit();
        service.external_ips.shrink_to_fit();
        service.load_balancer_ips.shrink_to_fit();
        service.ports.shrink_to_fit();
        service.source_ranges.shrink_to_fit();
        let name = service.name.clone();
        self.entries.entry(name.clone()).or_default().service = Some(Arc::new(service));
        BTreeSet::from([name])
    }

    fn remove_service(&mut self, name: &ObjectName) -> BTreeSet<ObjectName> {
        let Some(entry) = self.entries.get_mut(name) else {
            return BTreeSet::new();
        };
        if entry.service.take().is_none() {
            return BTreeSet::new();
        }
        if entry.slices.is_empty() {
            self.entries.remove(name);
        }
        BTreeSet::from([name.clone()])
    }

    fn put_slice(&mut self, mut slice: EndpointSlice) -> BTreeSet<ObjectName> {
        let mut touched = BTreeSet::new();
        if self
            .owners
            .get(&slice.name)
            .is_some_and(|owner| *owner != slice.service)
        {
            touched = self.remove_slice(&slice.name);
        }
        self.shared.object(&mut slice.service);
        let service = slice.service.clone();
        let slice = self.shared.slice(slice);
        self.owners.insert(slice.name.clone(), service.clone());
        let slices = &mut self.entries.entry(service.clone()).or_default().slices;
        match slices.binary_search_by(|held| held.name.cmp(&slice.name)) {
            Ok(at) => {
                if !slices[at].same_but_for_trigger(&slice) {
                    touched.insert(service);
                }
                slices[at] = slice;
            }
            Err(at) => {
                touched.insert(service);
                slices.reserve_exact(1);
                slices.insert(at, slice);
            }
        }
        touched
    }

    fn remove_slice(&mut self, name: &ObjectName) -> BTreeSet<ObjectName> {
        let Some(owner) = self.owners.remove(name) else {
            return BTreeSet::new();
        };
        if let Some(entry) = self.entries.get_mut(&owner) {
            entry.slices.retain(|slice| slice.name != *name);
            if entry.slices.is_empty() && entry.service.is_none() {
                self.entries.remove(&owner);
            }
        }
        BTreeSet::from([owner])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Ep, service, slice};

    fn names(list: &[&str]) -> BTreeSet<ObjectName> {
        list.iter().map(|name| ObjectName::new("default", *name)).collect()
    }

    fn put(slice: EndpointSlice) -> Event {
        Event::Slice(Change::Apply(slice))
    }

    #[test]
    fn an_equal_object_touches_nothing() {
        let mut map = ServiceMap::default();
        let web = service("web").cluster_ip("10.96.0.1");
        assert_eq!(
            map.apply(Event::Service(Change::Apply(web.clone().build()))),
            names(&["web"])
        );
        assert_eq!(
            map.apply(Event::Service(Change::Apply(web.clone().build()))),
            names(&[])
        );
        assert_eq!(
            map.apply(Event::Service(Change::Apply(web.affinity(60).build()))),
            names(&["web"])
        );
        let a = slice("web-a", "web", &[Ep::here("10.1.0.1")]);
        assert_eq!(map.apply(put(a.clone())), names(&["web"]));
        assert_eq!(map.apply(put(a.clone())), names(&[]));
        let later = EndpointSlice {
            triggered_ms: Some(7),
            ..a
        };
        assert_eq!(
            map.apply(put(later)),
            names(&[]),
            "a trigger time is not part of the plan"
        );
        assert_eq!(map.triggered_ms(&ObjectName::new("default", "web")), Some(7));
    }

    #[test]
    fn a_slice_that_moves_touches_both_services() {
        let mut map = ServiceMap::default();
        map.apply(put(slice("s", "old", &[Ep::here("10.1.0.1")])));
        assert_eq!(
            map.apply(put(slice("s", "new", &[Ep::here("10.1.0.1")]))),
            names(&["old", "new"])
        );
        assert!(map.slices(&ObjectName::new("default", "old")).is_empty());
        let deleted = Event::Slice(Change::Delete(ObjectName::new("default", "s")));
        assert_eq!(map.apply(deleted.clone()), names(&["new"]));
        assert_eq!(map.apply(deleted), names(&[]));
        assert!(
            map.entries.is_empty() && map.owners.is_empty(),
            "nothing is left behind"
        );
    }

    #[test]
    fn slices_outlive_their_service() {
        let mut map = ServiceMap::default();
        let web = ObjectName::new("default", "web");
        map.apply(put(slice("b", "web", &[Ep::here("10.1.0.2")])));
        map.apply(put(slice("a", "web", &[Ep::here("10.1.0.1")])));
        map.apply(Event::Service(Change::Apply(service("web").build())));
        assert_eq!(map.apply(Event::Service(Change::Delete(web.clone()))), names(&["web"]));
        assert_eq!(map.apply(Event::Service(Change::Delete(web.clone()))), names(&[]));
        assert_eq!(map.service(&web), None);
        let held: Vec<_> = map.slices(&web).iter().map(|slice| &*slice.name.name).collect();
        assert_eq!(held, ["a", "b"]);
    }

    #[test]
    fn synced_only_between_init_done_and_the_next_init() {
        let mut map = ServiceMap::default();
        for (event, synced) in [(Event::Init, false), (Event::InitDone, true), (Event::Init, false)] {
            assert!(map.apply(event).is_empty());
            assert_eq!(map.synced(), synced);
        }
    }

    #[test]
    fn only_the_held_node_can_be_deleted() {
        let mut map = ServiceMap::default();
        let node = Node {
            name: "n1".into(),
            ..Node::default()
        };
        map.apply(Event::Node(Change::Apply(node.clone())));
        map.apply(Event::Node(Change::Delete("n2".into())));
        assert_eq!(map.node(), Some(&node));
        map.apply(Event::Node(Change::Delete("n1".into())));
        assert_eq!(map.node(), None);
    }

    #[test]
    fn skipped_are_handed_over_once_and_counted_always() {
        let mut map = ServiceMap::default();
        let skipped = Skipped {
            object: "x".into(),
            field: String::new(),
            reason: "y".into(),
        };
        for _ in 0..SKIPPED_KEPT + 5 {
            assert!(map.apply(Event::Skipped(skipped.clone())).is_empty());
        }
        assert_eq!(map.take_skipped().len(), SKIPPED_KEPT);
        assert_eq!(map.take_skipped(), []);
        assert_eq!(map.skipped_total(), SKIPPED_KEPT as u64 + 5);
    }
}
