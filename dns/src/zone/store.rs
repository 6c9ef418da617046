//! The one writer of a [`Zone`]: holds what objects say, and compiles the names of what changed.

use super::{
    Pods, Pointer, PointerLabel, Zone,
    entry::{Entry, Rules, compile},
    facts::{Key, ServiceFacts, SliceFacts},
    octets,
};
use crate::name::push_label;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, PoisonError, atomic::Ordering},
};

/// What happened to an object. `None` means that it is gone.
#[derive(Clone, Debug)]
pub enum Change {
    /// To a Service.
    Service(Key, Option<ServiceFacts>),
    /// To an EndpointSlice.
    Slice(Key, Option<SliceFacts>),
    /// To a Namespace.
    Namespace(Box<str>, bool),
    /// To the addresses of a Pod.
    Pod(Key, Box<[IpAddr]>),
}

/// What of the cluster is served. Source: options of CoreDNS's plugin kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Only these namespaces; all where it is empty. Source: `namespaces`.
    pub namespaces: Vec<String>,
    /// Only namespaces with these labels, which are those that the watch sees. Source: `namespace_labels`.
    pub namespace_labels: Option<String>,
    /// Only objects with these labels. Source: `labels`.
    pub labels: Option<String>,
    /// Names of pods.
    pub pods: Pods,
    /// Endpoints are named as their pods. Source: `endpoint_pod_names`.
    pub endpoint_pod_names: bool,
    /// Endpoints are not read at all. Source: `noendpoints`.
    pub no_endpoints: bool,
    /// Services without ready endpoints have no name. Source: `ignore empty_service`.
    pub ignore_empty: bool,
}

/// `svc.ns` in wire form without a root: the key of a Service's names.
pub(super) fn wire_key(namespace: &str, service: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(namespace.len() + service.len() + 2);
    push_label(&mut key, service.to_ascii_lowercase().as_bytes());
    push_label(&mut key, namespace.to_ascii_lowercase().as_bytes());
    key
}

/// Key of a pod's address in a namespace.
pub(super) fn pod_key(namespace: &[u8], address: IpAddr) -> Vec<u8> {
    let mut buffer = [0; 16];
    [namespace, b".", octets(address, &mut buffer)].concat()
}

/// What objects say.
#[derive(Debug)]
pub struct Store {
    options: Options,
    zone: Arc<Zone>,
    services: HashMap<Key, ServiceFacts>,
    /// By Service, then by name of the slice.
    slices: HashMap<Key, BTreeMap<Box<str>, SliceFacts>>,
    /// Service of each slice.
    owners: HashMap<Key, Key>,
    namespaces: HashSet<Box<str>>,
    pods: HashMap<Key, Box<[IpAddr]>>,
    /// How many pods have an address, by [`pod_key`].
    pod_addresses: HashMap<Vec<u8>, usize>,
    /// How many Services with names there are in a namespace.
    inhabitants: HashMap<Box<str>, usize>,
    dirty: HashSet<Key>,
    published: [usize; 3],
}

impl Store {
    /// An empty one, and the zone that it writes.
    pub fn new(options: Options) -> (Self, Arc<Zone>) {
        let zone = Arc::new(Zone::default());
        let store = Self {
            options,
            zone: Arc::clone(&zone),
            services: HashMap::new(),
            slices: HashMap::new(),
            owners: HashMap::new(),
            namespaces: HashSet::new(),
            pods: HashMap::new(),
            pod_addresses: HashMap::new(),
            inhabitants: HashMap::new(),
            dirty: HashSet::new(),
            published: [0; 3],
        };
        (store, zone)
    }

    /// Notes a change; [`Self::publish`] makes it seen.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Service(key, facts) => self.service(key, facts),
            Change::Slice(key, facts) => self.slice(&key, facts),
            Change::Namespace(name, there) => self.namespace(&name, there),
            Change::Pod(key, addresses) => self.pod(&key, addresses),
        }
    }

    fn service(&mut self, key: Key, facts: Option<ServiceFacts>) {
        if self.services.get(&key) == facts.as_ref() {
            return;
        }
        self.dirty.insert(key.clone());
        match facts {
            Some(facts) => self.services.insert(key, facts),
            None => self.services.remove(&key),
        };
    }

    fn slice(&mut self, key: &Key, facts: Option<SliceFacts>) {
        let owner = facts.as_ref().map(|facts| Key::new(&key.namespace, &facts.service));
        let before = match owner.clone() {
            Some(owner) => self.owners.insert(key.clone(), owner),
            None => self.owners.remove(key),
        };
        // A slice may change hands.
        if let Some(before) = before.filter(|before| owner.as_ref() != Some(before))
            && let Some(slices) = self.slices.get_mut(&before)
        {
            slices.remove(&key.name);
            if slices.is_empty() {
                self.slices.remove(&before);
            }
            self.dirty.insert(before);
        }
        if let (Some(owner), Some(facts)) = (owner, facts) {
            let slices = self.slices.entry(owner.clone()).or_default();
            if slices.get(&key.name) != Some(&facts) {
                slices.insert(key.name.clone(), facts);
                self.dirty.insert(owner);
            }
        }
    }

    fn namespace(&mut self, name: &str, there: bool) {
        let changed = if there {
            self.namespaces.insert(name.into())
        } else {
            self.namespaces.remove(name)
        };
        if !changed {
            return;
        }
        if self.options.namespace_labels.is_some() {
            let inside = self.services.keys().filter(|key| *key.namespace == *name);
            self.dirty.extend(inside.cloned());
        }
        self.show_namespace(name);
    }

    /// A namespace exists if it is known, or if a Service in it is: watches are not in step.
    fn show_namespace(&mut self, name: &str) {
        let there = self.exposed(name) && (self.namespaces.contains(name) || self.inhabitants.contains_key(name));
        let label = name.to_ascii_lowercase();
        let known = self.zone.namespaces.contains(label.as_bytes());
        if there != known {
            self.published[1] = if there {
                self.published[1] + 1
            } else {
                self.published[1] - 1
            };
            self.zone
                .namespaces
                .set(label.as_bytes(), there.then(|| Arc::new(())), self.published[1]);
        }
    }

    fn exposed(&self, namespace: &str) -> bool {
        let listed = self.options.namespaces.is_empty() || self.options.namespaces.iter().any(|it| it == namespace);
        listed && (self.options.namespace_labels.is_none() || self.namespaces.contains(namespace))
    }

    fn pod(&mut self, key: &Key, addresses: Box<[IpAddr]>) {
        let old = if addresses.is_empty() {
            self.pods.remove(key)
        } else {
            self.pods.insert(key.clone(), addresses.clone())
        };
        let namespace = key.namespace.to_ascii_lowercase();
        // Up before down: an address that stays is never out of sight.
        for address in addresses {
            let pod = pod_key(namespace.as_bytes(), address);
            let count = self.pod_addresses.entry(pod.clone()).or_default();
            *count += 1;
            if *count == 1 {
                let total = self.pod_addresses.len();
                self.zone.pods.set(&pod, Some(Arc::new(())), total);
            }
        }
        for address in old.unwrap_or_default() {
            let pod = pod_key(namespace.as_bytes(), address);
            if let Some(count) = self.pod_addresses.get_mut(&pod) {
                *count -= 1;
                if *count == 0 {
                    self.pod_addresses.remove(&pod);
                    self.zone.pods.set(&pod, None, 0);
                }
            }
        }
    }

    /// Lets readers see what changed; how many Services that concerned.
    pub fn publish(&mut self, now_s: u32) -> usize {
        let dirty: Vec<Key> = self.dirty.drain().collect();
        for key in &dirty {
            self.publish_service(key);
        }
        if !dirty.is_empty() {
            self.zone.serial.store(now_s, Ordering::Relaxed);
        }
        dirty.len()
    }

    /// Everything has been read once: names are served from now on.
    pub fn ready(&self) {
        self.zone.ready.store(true, Ordering::Release);
    }

    /// Objects that are held: Services, EndpointSlices, Namespaces, Pods.
    pub fn sizes(&self) -> [usize; 4] {
        [
            self.services.len(),
            self.owners.len(),
            self.namespaces.len(),
            self.pods.len(),
        ]
    }

    /// Keys of one resource that are held, so that a list can tell what is gone.
    pub fn keys(&self, resource: Resource) -> HashSet<Key> {
        match resource {
            Resource::Services => self.services.keys().cloned().collect(),
            Resource::EndpointSlices => self.owners.keys().cloned().collect(),
            Resource::Namespaces => self.namespaces.iter().map(|name| Key::new("", name)).collect(),
            Resource::Pods => self.pods.keys().cloned().collect(),
        }
    }

    fn publish_service(&mut self, key: &Key) {
        let entry = self
            .services
            .get(key)
            .filter(|_| self.exposed(&key.namespace))
            .and_then(|service| {
                let slices = self.slices.get(key).map(BTreeMap::values).into_iter().flatten();
                let rules = Rules {
                    ignore_empty: self.options.ignore_empty,
                };
                compile(service, slices, rules)
            });
        let wire: Arc<[u8]> = wire_key(&key.namespace, &key.name).into();
        let old = self.zone.services.get(&wire);
        let entry = entry.map(Arc::new);
        if old == entry {
            return;
        }
        let count = self.published[0] + usize::from(entry.is_some()) - usize::from(old.is_some());
        self.published[0] = count;
        let (before, after) = (pointers(old.as_deref()), pointers(entry.as_deref()));
        if entry.is_some() != old.is_some() {
            let inhabitants = self.inhabitants.entry(key.namespace.clone()).or_default();
            *inhabitants = *inhabitants + usize::from(entry.is_some()) - usize::from(old.is_some());
            if *inhabitants == 0 {
                self.inhabitants.remove(&key.namespace);
            }
        }
        self.zone.services.set(&wire, entry, count);
        self.show_namespace(&key.namespace);
        for address in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
            if before.get(address) != after.get(address) {
                self.point(*address, &wire, after.get(address));
            }
        }
    }

    /// Replaces where `address` leads to for one Service.
    fn point(&mut self, address: IpAddr, service: &Arc<[u8]>, labels: Option<&BTreeSet<PointerLabel>>) {
        let mut buffer = [0; 16];
        let key = octets(address, &mut buffer);
        let old = self.zone.pointers.get(key);
        let others = old
            .iter()
            .flat_map(|old| old.iter())
            .filter(|it| it.service != *service)
            .cloned();
        let own = labels.into_iter().flatten().map(|label| Pointer {
            label: label.clone(),
            service: Arc::clone(service),
        });
        let mut all: Vec<Pointer> = others.chain(own).collect();
        all.sort_unstable();
        let mut addresses = self.zone.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if all.is_empty() {
            addresses.remove(&address);
        } else {
            addresses.insert(address);
        }
        self.published[2] = addresses.len();
        drop(addresses);
        let value = (!all.is_empty()).then(|| Arc::new(all.into_boxed_slice()));
        self.zone.pointers.set(key, value, self.published[2]);
    }
}

/// Resources that names are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    /// core/v1
    Services,
    /// discovery.k8s.io/v1
    EndpointSlices,
    /// core/v1
    Namespaces,
    /// core/v1, only for `pods verified`
    Pods,
}

impl Resource {
    /// As in paths.
    pub fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::Namespaces => "namespaces",
            Self::Pods => "pods",
        }
    }
}

/// Addresses of an entry that lead back to it, with the labels before its name.
fn pointers(entry: Option<&Entry>) -> BTreeMap<IpAddr, BTreeSet<PointerLabel>> {
    let mut all: BTreeMap<IpAddr, BTreeSet<PointerLabel>> = BTreeMap::new();
    let Some(entry) = entry else { return all };
    if entry.own_addresses {
        let v4 = entry.v4.iter().copied().map(IpAddr::from);
        for address in v4.chain(entry.v6.iter().copied().map(IpAddr::from)) {
            all.entry(address).or_default().insert(PointerLabel::Itself);
        }
    }
    for host in entry.hosts() {
        let label = if host.dashed {
            PointerLabel::Dashed
        } else {
            PointerLabel::Name(entry.label(host).into())
        };
        all.entry(host.address).or_default().insert(label);
    }
    all
}
