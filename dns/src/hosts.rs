//! `hosts`: names from a file and from the Corefile.

use crate::{
    corefile::HostsConfig,
    name::{Name, Reverse, Zone},
    wire::{Owner, Query, Reply, Section, rtype},
};
use arc_swap::ArcSwap;
use std::{
    collections::HashMap,
    net::IpAddr,
    path::Path,
    time::{Duration, SystemTime},
};

/// What the lines say.
#[derive(Debug, Default)]
struct Table {
    /// By lower-cased wire form.
    names: HashMap<Box<[u8]>, Vec<IpAddr>>,
    addresses: HashMap<IpAddr, Vec<Zone>>,
}

/// Names of one `hosts`.
#[derive(Debug)]
pub struct Hosts {
    config: HostsConfig,
    table: ArcSwap<Table>,
}

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is answered, perhaps by nothing.
    Answered,
    /// The name is not here and another plugin may know it.
    FallThrough,
    /// The name is not here, and no one else is to be asked.
    NoName,
}

impl Hosts {
    /// Reads the file for the first time.
    pub fn new(config: HostsConfig) -> Self {
        let table = ArcSwap::from_pointee(Table::read(&config));
        Self { config, table }
    }

    /// Entries, for metrics.
    pub fn entries(&self) -> usize {
        self.table.load().names.len()
    }

    /// Reads the file again whenever it changes; ends never.
    pub async fn follow(&self) {
        if self.config.reload.is_zero() {
            return std::future::pending().await;
        }
        let mut seen = stamp(&self.config.file);
        let mut timer = tokio::time::interval(self.config.reload.max(Duration::from_millis(100)));
        loop {
            timer.tick().await;
            let now = stamp(&self.config.file);
            if now != seen {
                seen = now;
                self.table.store(Table::read(&self.config).into());
                tracing::info!(file = %self.config.file.display(), "hosts read again");
            }
        }
    }

    /// Answers from the table.
    pub fn answer(&self, query: &Query<'_>, reply: &mut Reply<'_>, shuffle: bool) -> Told {
        let ours =
            self.config.zones.is_empty() || self.config.zones.iter().any(|zone| query.name.below(zone).is_some());
        if !ours {
            return Told::FallThrough;
        }
        let table = self.table.load();
        if let Some(Reverse::Address(address)) = query.name.reverse().filter(|_| !self.config.no_reverse)
            && let Some(names) = table.addresses.get(&address)
        {
            for name in names.iter().filter(|_| query.qtype == rtype::PTR) {
                reply.record(Section::Answer, Owner::Question, rtype::PTR, self.config.ttl, |out| {
                    out.extend_from_slice(name.wire());
                });
            }
            return Told::Answered;
        }
        let Some(addresses) = table.names.get(query.name.wire()) else {
            let falls = self
                .config
                .fallthrough
                .iter()
                .any(|zone| query.name.below(zone).is_some());
            return if falls { Told::FallThrough } else { Told::NoName };
        };
        let start = if shuffle && addresses.len() > 1 {
            rand::random::<u32>() as usize % addresses.len()
        } else {
            0
        };
        for address in addresses[start..].iter().chain(&addresses[..start]) {
            let (kind, wanted) = if address.is_ipv4() {
                (rtype::A, rtype::A)
            } else {
                (rtype::AAAA, rtype::AAAA)
            };
            if query.qtype == wanted {
                reply.record(
                    Section::Answer,
                    Owner::Question,
                    kind,
                    self.config.ttl,
                    |out| match address {
                        IpAddr::V4(four) => out.extend_from_slice(&four.octets()),
                        IpAddr::V6(six) => out.extend_from_slice(&six.octets()),
                    },
                );
            }
        }
        Told::Answered
    }
}

fn stamp(file: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

impl Table {
    fn read(config: &HostsConfig) -> Self {
        let text = std::fs::read_to_string(&config.file).unwrap_or_default();
        let mut table = Self::default();
        for line in config.lines.iter().map(String::as_str).chain(text.lines()) {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            // A scope (fe80::1%eth0) has no place in an answer.
            let address = words
                .next()
                .and_then(|word| word.split('%').next()?.parse::<IpAddr>().ok());
            let Some(address) = address else { continue };
            for name in words.filter_map(|word| Zone::parse(word).ok()) {
                let addresses = table.names.entry(name.wire().into()).or_default();
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
                let names = table.addresses.entry(address).or_default();
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        table
    }
}

/// Replaces the end of a name. `None` if it does not end so, or if the new name is too long.
pub fn replace_suffix(name: &Name, from: &Zone, to: &Zone) -> Option<Name> {
    let above = name.below(from)?;
    Name::from_wire(&[name.between(0, above), to.wire()].concat())
}
