//! The cluster's names in memory: what readers see, and how a name is found.

pub mod answer;
pub mod entry;
pub mod facts;
pub mod store;
mod table;

use crate::name::{Name, Reverse, dashed};
use entry::{Entry, Host, Port};
use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};
use table::Table;

/// Which names pods have. Source: CoreDNS, plugin kubernetes, `pods`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pods {
    /// None.
    #[default]
    Disabled,
    /// Every address, of a pod or not.
    Insecure,
    /// Addresses of pods of that namespace.
    Verified,
}

/// Where an address leads back to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pointer {
    /// Which kind of label is before the Service's name; names that people gave come before names made of addresses.
    pub label: PointerLabel,
    /// `svc.ns` in wire form without a root.
    pub service: Arc<[u8]>,
}

/// The label before the Service's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PointerLabel {
    /// None: the address is the Service's own.
    Itself,
    /// The endpoint's name.
    Name(Box<[u8]>),
    /// The address with dashes.
    Dashed,
}

/// What a name of the cluster is.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    /// It does not exist.
    NoName,
    /// It exists, without records.
    Empty,
    /// It is the zone's own name.
    Apex,
    /// It is `dns-version`.
    Version,
    /// It is the zone's name server.
    NameServer,
    /// A Service.
    Service(&'a Entry),
    /// Endpoints of one name.
    Hosts(&'a [Host]),
    /// Those who serve a port.
    Port(&'a Entry, &'a Port),
    /// A pod's address as a name.
    Pod(IpAddr),
    /// Where an address leads back to.
    Pointers(&'a [Pointer]),
}

/// All names, for readers that take no lock. [`store::Store`] writes.
#[derive(Default)]
pub struct Zone {
    /// By `svc.ns` in wire form.
    services: Table<Entry>,
    /// By name.
    namespaces: Table<()>,
    /// By octets.
    pointers: Table<Box<[Pointer]>>,
    /// Addresses in order, for names above theirs; off the hot path.
    addresses: Mutex<BTreeSet<IpAddr>>,
    /// By namespace, a dot, and octets.
    pods: Table<()>,
    serial: AtomicU32,
    ready: AtomicBool,
}

impl std::fmt::Debug for Zone {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Zone(ready: {}, serial: {})", self.is_ready(), self.serial())
    }
}

/// Octets of an address, on the stack.
pub(crate) fn octets(address: IpAddr, buffer: &mut [u8; 16]) -> &[u8] {
    match address {
        IpAddr::V4(four) => {
            buffer[..4].copy_from_slice(&four.octets());
            &buffer[..4]
        }
        IpAddr::V6(six) => {
            *buffer = six.octets();
            &buffer[..]
        }
    }
}

impl Zone {
    /// Has everything been read once?
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Serial number of the zone: seconds of the last change.
    pub fn serial(&self) -> u32 {
        self.serial.load(Ordering::Relaxed)
    }

    /// Addresses of a Service.
    pub fn addresses_of(&self, namespace: &str, service: &str) -> Vec<IpAddr> {
        let entry = self.services.get(&store::wire_key(namespace, service));
        let Some(entry) = entry else { return Vec::new() };
        let v4 = entry.v4.iter().copied().map(IpAddr::from);
        v4.chain(entry.v6.iter().copied().map(IpAddr::from)).collect()
    }

    /// Looks a name up that has `above` labels left of the zone's name.
    #[inline]
    pub fn find<R>(&self, name: &Name, above: usize, pods: Pods, then: impl FnOnce(Found<'_>) -> R) -> R {
        if above == 0 {
            return then(Found::Apex);
        }
        match name.label(above - 1) {
            b"svc" => self.find_service(name, above, then),
            b"pod" if pods != Pods::Disabled => then(self.find_pod(name, above, pods)),
            b"dns-version" if above == 1 => then(Found::Version),
            b"dns" if above == 1 => then(Found::Empty),
            b"dns" if above == 2 && name.label(0) == b"ns" => then(Found::NameServer),
            _ => then(Found::NoName),
        }
    }

    #[inline]
    fn find_service<R>(&self, name: &Name, above: usize, then: impl FnOnce(Found<'_>) -> R) -> R {
        if above < 3 {
            return then(self.namespace(name, above));
        }
        self.services.with(name.between(above - 3, above - 1), |entry| {
            let Some(entry) = entry else {
                return then(Found::NoName);
            };
            then(match above {
                3 => Found::Service(entry),
                4 => below_service(entry, name.label(0)),
                5 => find_port(entry, name.label(0), name.label(1)),
                _ => Found::NoName,
            })
        })
    }

    fn namespace(&self, name: &Name, above: usize) -> Found<'static> {
        // `svc.z` and `pod.z` have names below them; a namespace may have.
        if above == 1 || self.namespaces.contains(name.label(0)) {
            Found::Empty
        } else {
            Found::NoName
        }
    }

    fn find_pod(&self, name: &Name, above: usize, pods: Pods) -> Found<'static> {
        if above < 3 {
            return self.namespace(name, above);
        }
        let Some(address) = (above == 3).then(|| dashed(name.label(0))).flatten() else {
            return Found::NoName;
        };
        let namespace = name.label(1);
        let known = match pods {
            Pods::Verified => self.pods.contains(&store::pod_key(namespace, address)),
            _ => self.namespaces.contains(namespace),
        };
        if known { Found::Pod(address) } else { Found::NoName }
    }

    /// Looks up a name below in-addr.arpa or ip6.arpa.
    pub fn find_reverse<R>(&self, reverse: Reverse, then: impl FnOnce(Found<'_>) -> R) -> R {
        match reverse {
            Reverse::Nothing => then(Found::NoName),
            Reverse::Range(first, last) => {
                let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
                let found = addresses.range(first..=last).next().is_some();
                drop(addresses);
                then(if found { Found::Empty } else { Found::NoName })
            }
            Reverse::Address(address) => self.pointers.with(octets(address, &mut [0; 16]), |pointers| {
                then(pointers.map_or(Found::NoName, |pointers| Found::Pointers(pointers)))
            }),
        }
    }
}

fn below_service<'a>(entry: &'a Entry, label: &[u8]) -> Found<'a> {
    // `_tcp.svc` has no records, but ports below it: NODATA, not NXDOMAIN (RFC 8020).
    if label.first() == Some(&b'_')
        && entry
            .ports
            .iter()
            .any(|port| !port.name.is_empty() && port.protocol.label() == label)
    {
        return Found::Empty;
    }
    match entry.host_named(label) {
        [] => Found::NoName,
        hosts => Found::Hosts(hosts),
    }
}

fn find_port<'a>(entry: &'a Entry, name: &[u8], protocol: &[u8]) -> Found<'a> {
    let Some(name) = name.strip_prefix(b"_").filter(|name| !name.is_empty()) else {
        return Found::NoName;
    };
    let port = entry
        .ports
        .iter()
        .find(|port| port.name.as_bytes() == name && port.protocol.label() == protocol);
    port.map_or(Found::NoName, |port| Found::Port(entry, port))
}
