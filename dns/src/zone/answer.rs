//! What was found → records on the wire, without allocation for the common kinds.

use super::{
    Found, Pods, Pointer, PointerLabel, Zone,
    entry::{Entry, Host, Port, Targets},
};
use crate::{
    name::{Name, Zone as Origin, dashed_label, longest, push_label},
    wire::{Owner, Query, Reply, Section, rcode, rtype},
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Version of the specification that is followed, as `dns-version` tells it.
const VERSION: &[u8] = b"1.1.0";
/// Aliases that are followed one after the other.
const MOST_ALIASES: usize = 8;
/// Most records whose order is drawn at random one by one; longer lists start at a random place.
const MOST_SHUFFLED: usize = 64;
/// Where an alias's target begins in its record: behind a pointer, type, class, TTL and length.
const ALIAS_AT: u16 = 12;
/// Longest negative TTL in the SOA's own TTL, seconds; as CoreDNS.
const MOST_SOA_TTL: u32 = 300;

/// How the cluster's names are served in one block. Source: CoreDNS, plugin kubernetes.
#[derive(Clone, Debug)]
pub struct View {
    /// The cluster's domain, and reverse zones.
    pub origins: Vec<Origin>,
    /// Seconds that answers may be kept.
    pub ttl: u32,
    /// Names of pods.
    pub pods: Pods,
    /// Zones in which names that do not exist are left to the next plugin.
    pub fallthrough: Vec<Origin>,
    /// Addresses of this server; empty if the Service kube-system/kube-dns tells them.
    pub nameservers: Vec<IpAddr>,
    /// Order of addresses is drawn at random. Source: plugin loadbalance.
    pub shuffle: bool,
}

/// What became of a question.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    /// It is answered; the reply has its code.
    Answered,
    /// It is none of ours.
    NotOurs,
    /// The name does not exist, and the next plugin may know better.
    FallThrough,
    /// It is an alias of this name (wire form), which somebody else knows. The reply holds the aliases.
    Alias(Box<[u8]>),
}

impl View {
    /// The first origin that is not a reverse zone: names in answers end in it.
    fn primary(&self) -> Option<&Origin> {
        self.origins.iter().find(|origin| !origin.is_reverse())
    }

    /// Writes the answer of `zone` to a question.
    pub fn answer(&self, zone: &Zone, query: &Query<'_>, reply: &mut Reply<'_>) -> Told {
        let Some(index) = longest(&self.origins, &query.name) else {
            return Told::NotOurs;
        };
        let origin = &self.origins[index];
        if !zone.is_ready() {
            reply.rcode(rcode::SERVFAIL);
            return Told::Answered;
        }
        let mut scribe = Scribe {
            view: self,
            zone,
            query,
            origin,
            owner: Owner::Question,
            reply,
        };
        if let Some(reverse) = query.name.reverse().filter(|_| origin.is_reverse()) {
            let above = query.name.labels() - origin.labels();
            if above == 0 {
                return scribe.apex();
            }
            let told = zone.find_reverse(reverse, |found| match found {
                Found::Pointers(pointers) => {
                    scribe.pointers(reverse_address(&query.name), pointers);
                    Told::Answered
                }
                _ if self.falls_through(&query.name) => Told::FallThrough,
                Found::Empty => scribe.nothing(rcode::NOERROR),
                _ => scribe.nothing(rcode::NXDOMAIN),
            });
            return told;
        }
        let mut target: Option<Name> = None;
        for _ in 0..MOST_ALIASES {
            let name = target.as_ref().unwrap_or(&query.name);
            let Some(above) = name.below(origin) else {
                return Told::Alias(name.wire().into());
            };
            let next = zone.find(name, above, self.pods, |found| scribe.found(name, found));
            match next {
                Next::Done => return Told::Answered,
                Next::NoName if target.is_none() && self.falls_through(&query.name) => return Told::FallThrough,
                Next::NoName => return scribe.nothing(rcode::NXDOMAIN),
                Next::Alias(next) => target = Some(next),
            }
        }
        scribe.reply.rcode(rcode::SERVFAIL);
        Told::Answered
    }

    fn falls_through(&self, name: &Name) -> bool {
        self.fallthrough.iter().any(|zone| name.below(zone).is_some())
    }
}

fn reverse_address(name: &Name) -> Option<IpAddr> {
    match name.reverse() {
        Some(crate::name::Reverse::Address(address)) => Some(address),
        _ => None,
    }
}

#[allow(clippy::large_enum_variant, reason = "lives for one question, on the stack")]
enum Next {
    Done,
    NoName,
    Alias(Name),
}

struct Scribe<'s, 'b> {
    view: &'s View,
    zone: &'s Zone,
    query: &'s Query<'s>,
    origin: &'s Origin,
    /// Whose records are written: the question's, or the last alias's target.
    owner: Owner<'static>,
    reply: &'s mut Reply<'b>,
}

impl Scribe<'_, '_> {
    fn wants(&self, qtype: u16) -> bool {
        self.query.qtype == qtype
    }

    fn found(&mut self, name: &Name, found: Found<'_>) -> Next {
        match found {
            Found::NoName => return Next::NoName,
            Found::Apex => {
                self.apex();
            }
            Found::Service(entry) => return self.service(name, entry),
            Found::Hosts(hosts) => {
                self.hosts(hosts);
            }
            Found::Port(entry, port) if self.wants(rtype::SRV) => self.srv(name, entry, std::slice::from_ref(port)),
            Found::Pod(address) => self.address(address),
            Found::NameServer => self.nameserver(),
            Found::Version if self.wants(rtype::TXT) => self.version(),
            Found::Version | Found::Empty | Found::Port(..) | Found::Pointers(_) => {
                self.nothing(rcode::NOERROR);
            }
        }
        Next::Done
    }

    fn service(&mut self, name: &Name, entry: &Entry) -> Next {
        if let Some(alias) = &entry.alias {
            return self.alias(alias);
        }
        match self.query.qtype {
            rtype::A if !entry.v4.is_empty() => self.v4(&entry.v4),
            rtype::AAAA if !entry.v6.is_empty() => self.v6(&entry.v6),
            rtype::SRV if !entry.ports.is_empty() => self.srv(name, entry, &entry.ports),
            _ => {
                self.nothing(rcode::NOERROR);
            }
        }
        Next::Done
    }

    fn alias(&mut self, target: &[u8]) -> Next {
        let ttl = self.view.ttl;
        let place = self.reply.place();
        let written = self
            .reply
            .record(Section::Answer, self.owner, rtype::CNAME, ttl, |out| {
                out.extend_from_slice(target);
            });
        if !written || self.wants(rtype::CNAME) {
            return Next::Done;
        }
        let Some(name) = Name::from_wire(&target.to_ascii_lowercase()) else {
            return Next::Done;
        };
        if let Some(place) = place {
            self.owner = Owner::At(place + ALIAS_AT);
        }
        Next::Alias(name)
    }

    fn v4(&mut self, addresses: &[Ipv4Addr]) {
        for index in order(addresses.len(), self.view.shuffle) {
            let octets = addresses[index].octets();
            if !self
                .reply
                .record(Section::Answer, self.owner, rtype::A, self.view.ttl, |out| {
                    out.extend_from_slice(&octets);
                })
            {
                return;
            }
        }
    }

    fn v6(&mut self, addresses: &[Ipv6Addr]) {
        for index in order(addresses.len(), self.view.shuffle) {
            let octets = addresses[index].octets();
            if !self
                .reply
                .record(Section::Answer, self.owner, rtype::AAAA, self.view.ttl, |out| {
                    out.extend_from_slice(&octets);
                })
            {
                return;
            }
        }
    }

    fn hosts(&mut self, hosts: &[Host]) {
        let mut any = false;
        for index in order(hosts.len(), self.view.shuffle) {
            if address_type(hosts[index].address) == self.query.qtype {
                any = true;
                self.put_address(Section::Answer, self.owner, hosts[index].address);
            }
        }
        if !any {
            self.nothing(rcode::NOERROR);
        }
    }

    fn address(&mut self, address: IpAddr) {
        if self.wants(address_type(address)) {
            self.put_address(Section::Answer, self.owner, address);
        } else {
            self.nothing(rcode::NOERROR);
        }
    }

    fn put_address(&mut self, section: Section, owner: Owner<'_>, address: IpAddr) -> bool {
        self.reply.record(
            section,
            owner,
            address_type(address),
            self.view.ttl,
            |out| match address {
                IpAddr::V4(four) => out.extend_from_slice(&four.octets()),
                IpAddr::V6(six) => out.extend_from_slice(&six.octets()),
            },
        )
    }

    /// Wire form of the Service's own name, from a name at or below it: the last three labels before the origin.
    fn service_name(&self, name: &Name) -> Vec<u8> {
        let above = name.below(self.origin).unwrap_or_default();
        let start = above.saturating_sub(3);
        [name.between(start, above), self.origin.wire()].concat()
    }

    fn srv(&mut self, name: &Name, entry: &Entry, ports: &[Port]) {
        // Two ports may have one number and one target, as TCP and UDP do: that is one record.
        let mut targets: Vec<(Option<u32>, u16)> = Vec::new();
        for port in ports {
            match &port.targets {
                Targets::Itself(number) => targets.push((None, *number)),
                Targets::Hosts(hosts) => targets.extend(hosts.iter().map(|(host, number)| (Some(*host), *number))),
            }
        }
        targets.sort_unstable();
        targets.dedup();
        if targets.is_empty() {
            self.nothing(rcode::NOERROR);
            return;
        }
        // CoreDNS's weights: equal shares of 100, but never none.
        let weight = u16::try_from((100 / targets.len()).max(1)).unwrap_or(1);
        let service = self.service_name(name);
        let ttl = self.view.ttl;
        // Places of the targets' names, to which addresses refer; the Service's own counts as no host.
        let mut places: Vec<(Option<u32>, u16)> = Vec::new();
        for index in order(targets.len(), self.view.shuffle) {
            let (host, number) = targets[index];
            let label = host
                .and_then(|host| entry.hosts_from(host as usize).first())
                .map(|host| entry.label(host));
            let mut place = 0;
            let written = self.reply.record(Section::Answer, self.owner, rtype::SRV, ttl, |out| {
                for word in [0, weight, number] {
                    out.extend_from_slice(&u16::to_be_bytes(word));
                }
                place = out.len();
                if let Some(label) = label {
                    push_label(out, label);
                }
                out.extend_from_slice(&service);
            });
            if !written {
                return;
            }
            if let Some(place) = u16::try_from(place).ok().filter(|place| *place < 0x4000) {
                places.push((host, place));
            }
        }
        places.sort_unstable();
        places.dedup_by_key(|(host, _)| *host);
        for (host, place) in places {
            let fits = match host {
                Some(host) => entry
                    .hosts_from(host as usize)
                    .iter()
                    .all(|host| self.extra(place, host.address)),
                None => {
                    entry.v4.iter().all(|it| self.extra(place, (*it).into()))
                        && entry.v6.iter().all(|it| self.extra(place, (*it).into()))
                }
            };
            if !fits {
                return;
            }
        }
    }

    fn extra(&mut self, place: u16, address: IpAddr) -> bool {
        self.put_address(Section::Additional, Owner::At(place), address)
    }

    fn pointers(&mut self, address: Option<IpAddr>, pointers: &[Pointer]) {
        let (Some(address), Some(primary)) = (address, self.view.primary()) else {
            self.nothing(rcode::NXDOMAIN);
            return;
        };
        if !self.wants(rtype::PTR) {
            self.nothing(rcode::NOERROR);
            return;
        }
        for pointer in pointers {
            self.reply
                .record(Section::Answer, self.owner, rtype::PTR, self.view.ttl, |out| {
                    match &pointer.label {
                        PointerLabel::Itself => {}
                        PointerLabel::Name(label) => push_label(out, label),
                        PointerLabel::Dashed => push_label(out, dashed_label(address).as_bytes()),
                    }
                    out.extend_from_slice(&pointer.service);
                    out.extend_from_slice(b"\x03svc");
                    out.extend_from_slice(primary.wire());
                });
        }
    }

    fn version(&mut self) {
        self.reply
            .record(Section::Answer, self.owner, rtype::TXT, self.view.ttl, |out| {
                push_label(out, VERSION);
            });
    }

    fn nameserver(&mut self) {
        let all = self.nameservers();
        let mut any = false;
        for address in all {
            if self.wants(address_type(address)) {
                any = true;
                self.put_address(Section::Answer, self.owner, address);
            }
        }
        if !any {
            self.nothing(rcode::NOERROR);
        }
    }

    fn nameservers(&self) -> Vec<IpAddr> {
        if self.view.nameservers.is_empty() {
            self.zone.addresses_of("kube-system", "kube-dns")
        } else {
            self.view.nameservers.clone()
        }
    }

    fn apex(&mut self) -> Told {
        match self.query.qtype {
            rtype::SOA => self.soa(Section::Answer),
            rtype::NS => {
                let (origin, ttl) = (self.origin, self.view.ttl);
                let mut place = 0;
                let written = self.reply.record(Section::Answer, self.owner, rtype::NS, ttl, |out| {
                    place = out.len();
                    out.extend_from_slice(b"\x02ns\x03dns");
                    out.extend_from_slice(origin.wire());
                });
                if let Some(place) = u16::try_from(place).ok().filter(|_| written) {
                    for address in self.nameservers() {
                        self.extra(place, address);
                    }
                }
            }
            _ => {
                self.nothing(rcode::NOERROR);
            }
        }
        Told::Answered
    }

    /// An answer without records: the SOA says how long that may be remembered. Source: RFC 2308.
    fn nothing(&mut self, code: u8) -> Told {
        self.reply.rcode(code);
        self.soa(Section::Authority);
        Told::Answered
    }

    fn soa(&mut self, section: Section) {
        let (origin, ttl, serial) = (self.origin, self.view.ttl, self.zone.serial());
        let above = self.query.name.below(origin).filter(|_| !self.query.rewritten);
        // The question ends in the origin's name: refer to it there.
        let at = above.map(|above| crate::wire::HEADER + self.query.name.between(0, above).len());
        let pointer = at
            .and_then(|at| u16::try_from(at).ok())
            .map(|at| (0xc000 | at).to_be_bytes());
        let owner = match at.and_then(|at| u16::try_from(at).ok()) {
            Some(at) => Owner::At(at),
            None => Owner::Name(origin.wire(), &[]),
        };
        let name = pointer.as_ref().map_or(origin.wire(), |pointer| &pointer[..]);
        self.reply
            .record(section, owner, rtype::SOA, ttl.min(MOST_SOA_TTL), |out| {
                out.extend_from_slice(b"\x02ns\x03dns");
                out.extend_from_slice(name);
                out.extend_from_slice(b"\x0ahostmaster");
                out.extend_from_slice(name);
                for word in [serial, 7200, 1800, 86400, ttl] {
                    out.extend_from_slice(&word.to_be_bytes());
                }
            });
    }
}

fn address_type(address: IpAddr) -> u16 {
    if address.is_ipv4() { rtype::A } else { rtype::AAAA }
}

/// The indexes `0..count` in the order of an answer.
fn order(count: usize, shuffle: bool) -> Order {
    let mut order = Order {
        places: [0; MOST_SHUFFLED],
        start: 0,
        next: 0,
        count,
    };
    if count < 2 {
        return order;
    }
    let mut random: u64 = if shuffle { rand::random() } else { 0 };
    if count > MOST_SHUFFLED {
        order.start = usize::try_from(random % count as u64).unwrap_or_default();
        return order;
    }
    for (index, place) in order.places.iter_mut().enumerate().take(count) {
        *place = u8::try_from(index).unwrap_or_default();
    }
    if shuffle {
        for last in (1..count).rev() {
            // xorshift64*: which order is drawn is no secret, only fair.
            random ^= random >> 12;
            random ^= random << 25;
            random ^= random >> 27;
            let drawn = random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
            let other = usize::try_from(drawn % (last as u64 + 1)).unwrap_or_default();
            order.places.swap(last, other);
        }
    }
    order
}

struct Order {
    places: [u8; MOST_SHUFFLED],
    start: usize,
    next: usize,
    count: usize,
}

impl Iterator for Order {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.next >= self.count {
            return None;
        }
        let index = self.next;
        self.next += 1;
        Some(if self.count <= MOST_SHUFFLED {
            usize::from(self.places[index])
        } else {
            (self.start + index) % self.count
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_once() {
        for count in [0, 1, 2, 63, 64, 65, 500] {
            for shuffle in [false, true] {
                let mut places: Vec<usize> = order(count, shuffle).collect();
                assert!(shuffle || places.is_sorted());
                places.sort_unstable();
                assert_eq!(places, (0..count).collect::<Vec<_>>());
            }
        }
    }
}
