//! How fast nodes may be emptied: slower, or not at all, where so many are unwell that the fault is likely ours.

use super::health::condition;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use std::collections::{BTreeMap, HashMap};

/// Region and zone of a node, from its labels.
pub(crate) fn zone_of(node: &Node) -> String {
    let labels = node.metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|it| it.get(key)).map_or("", String::as_str);
    format!(
        "{}:{}",
        label("topology.kubernetes.io/region"),
        label("topology.kubernetes.io/zone")
    )
}

/// How a zone is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// Most nodes are ready.
    Normal,
    /// 55 % or more are not, and at least three.
    Partial,
    /// None is.
    Full,
}

/// Nodes of a zone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) ready: usize,
    pub(crate) unready: usize,
}

impl Count {
    /// Source: upstream's `--unhealthy-zone-threshold` of 0.55.
    pub(crate) fn health(self) -> Health {
        match self {
            Self { ready: 0, unready: 1.. } => Health::Full,
            Self { ready, unready } if unready > 2 && unready * 100 >= (ready + unready) * 55 => Health::Partial,
            _ => Health::Normal,
        }
    }
}

/// Rates, nodes per second, and the size up to which a zone is small.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates {
    pub(crate) usual: f64,
    pub(crate) slow: f64,
    pub(crate) large: usize,
}

/// All zones: who is ready, and when each may empty the next node.
#[derive(Debug)]
pub(crate) struct Zones {
    rates: Rates,
    nodes: HashMap<String, (String, bool)>,
    counts: BTreeMap<String, Count>,
    /// When each zone's last node was let through.
    last: HashMap<String, Timestamp>,
}

/// Whether a node may be emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Permit {
    /// Now; counted.
    Granted,
    /// Ask again then.
    NotBefore(Timestamp),
    /// Not while so many nodes are unwell.
    Never,
}

impl Zones {
    pub(crate) fn new(rates: Rates) -> Self {
        Self {
            rates,
            nodes: HashMap::new(),
            counts: BTreeMap::new(),
            last: HashMap::new(),
        }
    }

    /// Takes in how a node is. Whether the answers for other nodes may have changed with it.
    pub(crate) fn observe(&mut self, node: &Node) -> bool {
        let name = node.metadata.name.clone().unwrap_or_default();
        let ready = condition(node, "Ready").is_some_and(|it| it.status == "True");
        self.change(&name, Some(&(zone_of(node), ready)))
    }

    /// The node is gone.
    pub(crate) fn forget(&mut self, name: &str) -> bool {
        self.change(name, None)
    }

    fn change(&mut self, name: &str, new: Option<&(String, bool)>) -> bool {
        let before = self.state();
        let old = match new {
            Some(new) => self.nodes.insert(name.to_owned(), new.clone()),
            None => self.nodes.remove(name),
        };
        if old.as_ref() == new {
            return false;
        }
        let mut add = |place: &(String, bool), up: bool| {
            let count = self.counts.entry(place.0.clone()).or_default();
            let number = if place.1 { &mut count.ready } else { &mut count.unready };
            *number = if up { *number + 1 } else { number.saturating_sub(1) };
        };
        old.iter().for_each(|it| add(it, false));
        new.into_iter().for_each(|it| add(it, true));
        self.counts.retain(|_, it| *it != Count::default());
        self.state() != before
    }

    fn state(&self) -> Vec<(String, Health)> {
        self.counts
            .iter()
            .map(|(zone, count)| (zone.clone(), count.health()))
            .collect()
    }

    /// Every zone is gone whole: more likely we are cut off than all of them.
    pub(crate) fn is_cut_off(&self) -> bool {
        !self.counts.is_empty() && self.counts.values().all(|it| it.health() == Health::Full)
    }

    fn rate(&self, zone: &str) -> f64 {
        let count = self.counts.get(zone).copied().unwrap_or_default();
        match count.health() {
            _ if self.is_cut_off() => 0.0,
            Health::Normal | Health::Full => self.rates.usual,
            Health::Partial if count.ready + count.unready > self.rates.large => self.rates.slow,
            Health::Partial => 0.0,
        }
    }

    /// Whether a node of this zone may be emptied now. A granted permit counts against the zone's rate.
    pub(crate) fn ask(&mut self, zone: &str, now: Timestamp) -> Permit {
        let rate = self.rate(zone);
        if rate <= 0.0 {
            return Permit::Never;
        }
        let pause = SignedDuration::try_from_secs_f64(1.0 / rate).unwrap_or(SignedDuration::MAX);
        if let Some(last) = self.last.get(zone) {
            let next = last.saturating_add(pause).unwrap_or(Timestamp::MAX);
            if next > now {
                return Permit::NotBefore(next);
            }
        }
        self.last.insert(zone.to_owned(), now);
        Permit::Granted
    }

    /// A permit that was not made use of.
    pub(crate) fn give_back(&mut self, zone: &str) {
        self.last.remove(zone);
    }
}
