//! Service + EndpointSlices → the names of one Service. Pure.

use super::facts::{PortFacts, Protocol, Reach, ServiceFacts, SliceFacts};
use crate::name::dashed_label;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// All names at and below `svc.ns.svc`, compact.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Addresses of the Service's own name.
    pub v4: Box<[Ipv4Addr]>,
    /// The same of the other family.
    pub v6: Box<[Ipv6Addr]>,
    /// Wire form of what the name is an alias of; nothing else is set then.
    pub alias: Option<Box<[u8]>>,
    /// Ports, named or not.
    pub ports: Box<[Port]>,
    /// By label, then address.
    hosts: Box<[Host]>,
    /// Text of all labels.
    labels: Box<[u8]>,
    /// The Service has addresses of its own, which lead back to its name.
    pub own_addresses: bool,
}

/// A name below the Service's, at one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    label_at: u32,
    label_length: u8,
    /// The label is the address itself.
    pub dashed: bool,
    /// Where.
    pub address: IpAddr,
}

/// A port and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Lower-cased; an unnamed port has no name of its own but is among all ports.
    pub name: Box<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Who serves it.
    pub targets: Targets,
}

/// Who serves a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// The Service's own name, at this port.
    Itself(u16),
    /// Hosts by their first place in [`Entry::hosts`], and the port there.
    Hosts(Box<[(u32, u16)]>),
}

impl Targets {
    /// How many records.
    pub fn len(&self) -> usize {
        match self {
            Self::Itself(_) => 1,
            Self::Hosts(hosts) => hosts.len(),
        }
    }

    /// Is there nobody?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Entry {
    /// Names below the Service's.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The label of a host of this entry.
    pub fn label(&self, host: &Host) -> &[u8] {
        let start = host.label_at as usize;
        &self.labels[start..start + usize::from(host.label_length)]
    }

    /// The host at `start` with all its addresses.
    pub fn hosts_from(&self, start: usize) -> &[Host] {
        let rest = self.hosts.get(start..).unwrap_or_default();
        let Some(first) = rest.first() else { return rest };
        let label = self.label(first);
        let count = rest.iter().take_while(|host| self.label(host) == label).count();
        &rest[..count]
    }

    /// All addresses of the name `label`.
    pub fn host_named(&self, label: &[u8]) -> &[Host] {
        let start = self.hosts.partition_point(|host| self.label(host) < label);
        let hosts = self.hosts_from(start);
        if hosts.first().is_some_and(|host| self.label(host) == label) {
            hosts
        } else {
            &[]
        }
    }
}

/// What the Corefile says about the names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// A Service with addresses but without ready endpoints has no name. Source: `ignore empty_service`.
    pub ignore_empty: bool,
}

/// The names of a Service. `None`: it has none, not even empty.
pub fn compile<'a>(
    service: &ServiceFacts,
    slices: impl Iterator<Item = &'a SliceFacts> + Clone,
    rules: Rules,
) -> Option<Entry> {
    match &service.reach {
        Reach::Nothing => None,
        Reach::External(name) => Some(Entry {
            alias: Some(name.clone()),
            ..Entry::default()
        }),
        Reach::ClusterIp(addresses) => {
            let mut entry = hosts_of(service, slices);
            if rules.ignore_empty && entry.hosts.is_empty() {
                return None;
            }
            let ports = service.ports.iter().map(|port| Port {
                name: port.name.clone(),
                protocol: port.protocol,
                targets: Targets::Itself(port.number),
            });
            entry.ports = ports.collect();
            entry.own_addresses = true;
            (entry.v4, entry.v6) = families(addresses.iter().copied());
            Some(entry)
        }
        Reach::Headless => {
            let mut entry = hosts_of(service, slices.clone());
            // The specification: without ready endpoints the name does not exist.
            if entry.hosts.is_empty() {
                return None;
            }
            entry.ports = headless_ports(service, slices, &entry);
            (entry.v4, entry.v6) = families(entry.hosts.iter().map(|host| host.address));
            Some(entry)
        }
    }
}

fn families(addresses: impl Iterator<Item = IpAddr> + Clone) -> (Box<[Ipv4Addr]>, Box<[Ipv6Addr]>) {
    let mut v4: Vec<Ipv4Addr> = addresses
        .clone()
        .filter_map(|it| if let IpAddr::V4(it) = it { Some(it) } else { None })
        .collect();
    let mut v6: Vec<Ipv6Addr> = addresses
        .filter_map(|it| if let IpAddr::V6(it) = it { Some(it) } else { None })
        .collect();
    v4.sort_unstable();
    v4.dedup();
    v6.sort_unstable();
    v6.dedup();
    (v4.into(), v6.into())
}

/// Address, label, and whether the label is the address, of each endpoint that counts.
fn counted<'a>(
    service: &ServiceFacts,
    slice: &'a SliceFacts,
) -> impl Iterator<Item = (IpAddr, String, bool)> + use<'a> {
    let all = service.publish_not_ready;
    slice
        .endpoints
        .iter()
        .filter(move |endpoint| endpoint.ready || all)
        .map(|endpoint| match &endpoint.name {
            Some(name) => (endpoint.address, name.to_string(), false),
            None => (endpoint.address, dashed_label(endpoint.address), true),
        })
}

fn hosts_of<'a>(service: &ServiceFacts, slices: impl Iterator<Item = &'a SliceFacts>) -> Entry {
    let mut all: Vec<(String, IpAddr, bool)> = slices
        .flat_map(|slice| counted(service, slice))
        .map(|(address, label, dashed)| (label, address, dashed))
        .collect();
    all.sort_unstable();
    all.dedup_by(|a, b| (&a.0, a.1) == (&b.0, b.1));
    let mut labels = Vec::new();
    let mut hosts: Vec<Host> = Vec::with_capacity(all.len());
    let mut last: Option<(String, u32)> = None;
    for (label, address, dashed) in all {
        let label_at = match &last {
            Some((text, at)) if *text == label => *at,
            _ => {
                let at = u32::try_from(labels.len()).unwrap_or(u32::MAX);
                labels.extend_from_slice(label.as_bytes());
                at
            }
        };
        hosts.push(Host {
            label_at,
            label_length: u8::try_from(label.len()).unwrap_or_default(),
            dashed,
            address,
        });
        last = Some((label, label_at));
    }
    Entry {
        hosts: hosts.into(),
        labels: labels.into(),
        ..Entry::default()
    }
}

fn headless_ports<'a>(
    service: &ServiceFacts,
    slices: impl Iterator<Item = &'a SliceFacts>,
    entry: &Entry,
) -> Box<[Port]> {
    let mut all: Vec<(&PortFacts, u32)> = Vec::new();
    for slice in slices {
        for (_, label, _) in counted(service, slice) {
            let place = entry.hosts.partition_point(|host| entry.label(host) < label.as_bytes());
            let place = u32::try_from(place).unwrap_or(u32::MAX);
            all.extend(slice.ports.iter().map(|port| (port, place)));
        }
    }
    all.sort_unstable_by_key(|(port, place)| (&port.name, port.protocol, *place, port.number));
    all.dedup();
    let groups = all.chunk_by(|a, b| (&a.0.name, a.0.protocol) == (&b.0.name, b.0.protocol));
    let ports = groups.filter_map(|group| {
        let (first, _) = group.first()?;
        Some(Port {
            name: first.name.clone(),
            protocol: first.protocol,
            targets: Targets::Hosts(group.iter().map(|(port, place)| (*place, port.number)).collect()),
        })
    });
    ports.collect()
}
