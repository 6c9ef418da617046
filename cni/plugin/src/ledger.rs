//! Who holds which address, which addresses rest, and which one is next: a pure state machine over journal records.
//!
//! An address is fresh (never used), held by one attachment, or resting since its release. Fresh ones go first, then
//! those that rested longest, so that stale connections, DNS answers and neighbour entries rarely meet a new pod.

use crate::address::Range;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::IpAddr,
};

/// How long a released address rests before it is given away again, in milliseconds.
pub const QUARANTINE_MS: u64 = 30_000;
/// How long it rests where nothing else is left: a pod that starts is worth more than the rest of the quarantine, but
/// packets that are still under way must not meet it.
pub const QUARANTINE_SHORTENED_MS: u64 = 1_000;

/// An attachment: one interface of one container (CNI specification, section 2: the key of all operations).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// `CNI_CONTAINERID`.
    #[serde(rename = "id")]
    pub container: String,
    /// `CNI_IFNAME`.
    #[serde(rename = "if")]
    pub ifname: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of container {}", self.ifname, self.container)
    }
}

/// What an attachment holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Name of the network (`name` of the conflist).
    #[serde(rename = "net")]
    pub network: String,
    /// One address per set of ranges.
    pub ips: Vec<IpAddr>,
    /// Namespace and name of the pod, if the runtime said so; for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Record {
    /// The boot that all other records are of.
    Boot {
        /// `/proc/sys/kernel/random/boot_id`.
        id: String,
    },
    /// The node's own ranges, so that a restarted agent needs no API server.
    Ranges {
        /// `Node.spec.podCIDRs`.
        cidrs: Vec<IpNet>,
    },
    /// An attachment got its addresses.
    Hold {
        /// Which.
        #[serde(flatten)]
        key: Key,
        /// What.
        #[serde(flatten)]
        held: Held,
    },
    /// An attachment ended, and its addresses rest.
    Release {
        /// Which.
        #[serde(flatten)]
        key: Key,
        /// When: milliseconds since boot.
        at: u64,
    },
    /// An address rests: what is left of a release in a compacted journal.
    Rest {
        /// Which.
        ip: IpAddr,
        /// Since when: milliseconds since boot.
        at: u64,
    },
}

/// No address can be given away now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exhausted {
    /// The set of ranges that has none, for people.
    pub ranges: String,
    /// How many addresses it has.
    pub size: u64,
    /// In how many milliseconds one has rested long enough; `None` while pods hold all of them.
    pub ready_in_ms: Option<u64>,
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            ranges,
            size,
            ready_in_ms,
        } = self;
        match ready_in_ms {
            None => write!(
                f,
                "all {size} addresses of {ranges} are held by pods; delete pods or give the node a larger range"
            ),
            Some(ms) => write!(
                f,
                "the last of {size} addresses of {ranges} was released just now; try again in {ms} ms"
            ),
        }
    }
}

/// The state that a journal's records add up to.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    held: BTreeMap<Key, Held>,
    owners: HashMap<IpAddr, Key>,
    /// By when the rest began, then in order of release.
    order: BTreeSet<(u64, u64, IpAddr)>,
    resting: HashMap<IpAddr, (u64, u64)>,
    releases: u64,
    /// Per range, how many of its addresses from the first on are no longer fresh.
    fresh: HashMap<Range, u32>,
    shortened: u64,
    cidrs: Vec<IpNet>,
}

impl Ledger {
    /// What an attachment holds.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Held> {
        self.held.get(key)
    }

    /// All attachments.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Held)> {
        self.held.iter()
    }

    /// How many attachments there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether there is no attachment.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The node's own ranges, as last written down.
    #[must_use]
    pub fn cidrs(&self) -> &[IpNet] {
        &self.cidrs
    }

    /// How many addresses were given away before [`QUARANTINE_MS`] were over: a sign that the ranges are too small.
    #[must_use]
    pub fn shortened(&self) -> u64 {
        self.shortened
    }

    /// Addresses that could be given away from a set of ranges now, those at rest included.
    #[must_use]
    pub fn free(&self, set: &[Range]) -> u64 {
        let size: u64 = set.iter().map(usable).sum();
        let held = self
            .owners
            .keys()
            .filter(|ip| set.iter().any(|range| range.contains(**ip)));
        size.saturating_sub(held.count() as u64)
    }

    /// Chooses one address from each set of ranges and lets the attachment hold them. The record says so to the
    /// journal; until that has it, nobody may be told.
    ///
    /// An attachment that holds something already has to be released before.
    ///
    /// # Errors
    /// A set has no address left; nothing has changed.
    pub fn hold(
        &mut self,
        key: &Key,
        network: &str,
        pod: Option<&str>,
        sets: &[Vec<Range>],
        now_ms: u64,
    ) -> Result<Record, Exhausted> {
        let mut ips: Vec<IpAddr> = Vec::with_capacity(sets.len());
        for set in sets {
            ips.push(self.next(set, &ips, now_ms)?);
        }
        let record = Record::Hold {
            key: key.clone(),
            held: Held {
                network: network.to_owned(),
                ips,
                pod: pod.map(str::to_owned),
            },
        };
        self.apply(&record);
        Ok(record)
    }

    /// Lets the addresses of an attachment rest; `None` if it holds nothing.
    pub fn release(&mut self, key: &Key, now_ms: u64) -> Option<Record> {
        self.held.contains_key(key).then(|| {
            let record = Record::Release {
                key: key.clone(),
                at: now_ms,
            };
            self.apply(&record);
            record
        })
    }

    /// Takes over the node's own ranges; `None` if they are those already.
    pub fn set_cidrs(&mut self, cidrs: &[IpNet]) -> Option<Record> {
        (self.cidrs != cidrs).then(|| {
            self.cidrs = cidrs.to_vec();
            Record::Ranges { cidrs: cidrs.to_vec() }
        })
    }

    /// Replays one record. `false` if it contradicts what is known (an address that another attachment holds, an
    /// attachment that holds something already): then nothing changes.
    pub fn apply(&mut self, record: &Record) -> bool {
        match record {
            Record::Boot { .. } => true,
            Record::Ranges { cidrs } => {
                self.cidrs.clone_from(cidrs);
                true
            }
            Record::Hold { key, held } => {
                if self.held.contains_key(key) || held.ips.iter().any(|ip| self.owners.contains_key(ip)) {
                    return false;
                }
                for ip in &held.ips {
                    self.wake(*ip);
                    self.owners.insert(*ip, key.clone());
                }
                self.held.insert(key.clone(), held.clone());
                true
            }
            Record::Release { key, at } => {
                let Some(held) = self.held.remove(key) else {
                    return false;
                };
                for ip in held.ips {
                    self.owners.remove(&ip);
                    self.rest(ip, *at);
                }
                true
            }
            Record::Rest { ip, at } => {
                let free = !self.owners.contains_key(ip);
                if free {
                    self.rest(*ip, *at);
                }
                free
            }
        }
    }

    /// The shortest list of records with the same meaning, for a compacted journal.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Record> {
        let ranges = (!self.cidrs.is_empty()).then(|| Record::Ranges {
            cidrs: self.cidrs.clone(),
        });
        let held = self.held.iter().map(|(key, held)| Record::Hold {
            key: key.clone(),
            held: held.clone(),
        });
        let resting = self.order.iter().map(|(at, _, ip)| Record::Rest { ip: *ip, at: *at });
        ranges.into_iter().chain(held).chain(resting).collect()
    }

    fn next(&mut self, set: &[Range], taken: &[IpAddr], now_ms: u64) -> Result<IpAddr, Exhausted> {
        if let Some(ip) = set.iter().find_map(|range| self.next_fresh(range, taken)) {
            return Ok(ip);
        }
        // In order of release: the first that fits has rested longest. If that was less than the quarantine, there is
        // no better one.
        let fits = |ip: &IpAddr| !taken.contains(ip) && set.iter().any(|range| range.contains(*ip));
        let longest = self.order.iter().find(|(_, _, ip)| fits(ip));
        let rested = longest.map(|(at, _, _)| now_ms.saturating_sub(*at));
        match (longest, rested) {
            (Some((_, _, ip)), Some(rested)) if rested >= QUARANTINE_SHORTENED_MS => {
                self.shortened += u64::from(rested < QUARANTINE_MS);
                Ok(*ip)
            }
            _ => Err(Exhausted {
                ranges: describe(set),
                size: set.iter().map(usable).sum(),
                ready_in_ms: rested.map(|rested| QUARANTINE_SHORTENED_MS.saturating_sub(rested)),
            }),
        }
    }

    fn next_fresh(&mut self, range: &Range, taken: &[IpAddr]) -> Option<IpAddr> {
        let used = |ip: &IpAddr| self.owners.contains_key(ip) || self.resting.contains_key(ip);
        let from = self.fresh.get(range).copied().unwrap_or(0);
        let mut used_up = from;
        let mut found = None;
        for n in from..range.size() {
            match range.nth(n) {
                Some(ip) if used(&ip) => {}
                None => {}
                Some(ip) if taken.contains(&ip) => continue,
                Some(ip) => {
                    found = Some(ip);
                    break;
                }
            }
            if used_up == n {
                used_up = n + 1;
            }
        }
        if used_up != from {
            self.fresh.insert(range.clone(), used_up);
        }
        found
    }

    fn rest(&mut self, ip: IpAddr, at: u64) {
        self.wake(ip);
        self.releases += 1;
        self.order.insert((at, self.releases, ip));
        self.resting.insert(ip, (at, self.releases));
    }

    fn wake(&mut self, ip: IpAddr) {
        if let Some((at, release)) = self.resting.remove(&ip) {
            self.order.remove(&(at, release, ip));
        }
    }
}

fn usable(range: &Range) -> u64 {
    let excepted = range.except.is_some_and(|except| {
        let open = Range {
            except: None,
            ..range.clone()
        };
        open.contains(except)
    });
    u64::from(range.size()) - u64::from(excepted)
}

fn describe(set: &[Range]) -> String {
    let ranges: Vec<_> = set
        .iter()
        .map(|range| format!("{}-{}", range.first, range.last))
        .collect();
    ranges.join(", ")
}
