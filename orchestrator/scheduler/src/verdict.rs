//! Why a node, or every node, is none for a pod: who says so, in which words, and what it adds up to.

use std::{borrow::Cow, collections::BTreeMap, fmt};

/// Who judges nodes. The order is the order in which they are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Plugin {
    /// `spec.unschedulable` of nodes.
    NodeUnschedulable,
    /// Taints and tolerations.
    TaintToleration,
    /// `nodeSelector` and node affinity.
    NodeAffinity,
    /// Ports of the node.
    NodePorts,
    /// Processors, memory, and everything that is counted.
    NodeResourcesFit,
    /// Claims and where their volumes can be reached.
    VolumeBinding,
    /// `topologySpreadConstraints`.
    PodTopologySpread,
    /// Affinity and anti-affinity between pods.
    InterPodAffinity,
    /// The pod itself cannot be understood.
    PodSpec,
}

impl Plugin {
    /// The name that upstream's plugin of the same meaning has.
    pub fn name(self) -> &'static str {
        match self {
            Self::NodeUnschedulable => "NodeUnschedulable",
            Self::TaintToleration => "TaintToleration",
            Self::NodeAffinity => "NodeAffinity",
            Self::NodePorts => "NodePorts",
            Self::NodeResourcesFit => "NodeResourcesFit",
            Self::VolumeBinding => "VolumeBinding",
            Self::PodTopologySpread => "PodTopologySpread",
            Self::InterPodAffinity => "InterPodAffinity",
            Self::PodSpec => "PodSpec",
        }
    }
}

/// A set of plugins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plugins(u16);

impl Plugins {
    /// Puts one in.
    pub fn insert(&mut self, plugin: Plugin) {
        self.0 |= 1 << plugin as u8;
    }

    /// Whether it is in.
    pub fn contains(self, plugin: Plugin) -> bool {
        self.0 & (1 << plugin as u8) != 0
    }

    /// Whether none is in.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Plugin> for Plugins {
    fn from_iter<T: IntoIterator<Item = Plugin>>(all: T) -> Self {
        let mut set = Self::default();
        for it in all {
            set.insert(it);
        }
        set
    }
}

/// Why a node is none for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Who says so.
    pub plugin: Plugin,
    /// In upstream's words, of which programs and people know what they mean.
    pub reasons: Vec<Cow<'static, str>>,
    /// Whether it could help that other pods leave the node.
    pub pods_in_the_way: bool,
}

impl Verdict {
    /// Other pods are in the way.
    pub fn for_now(plugin: Plugin, reason: &'static str) -> Self {
        Self {
            plugin,
            reasons: vec![Cow::Borrowed(reason)],
            pods_in_the_way: true,
        }
    }

    /// Whatever pods there are.
    pub fn for_good(plugin: Plugin, reason: &'static str) -> Self {
        Self {
            pods_in_the_way: false,
            ..Self::for_now(plugin, reason)
        }
    }
}

/// No node was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unfit {
    /// How many nodes there are.
    pub nodes: usize,
    /// A reason that is the pod's alone, so that no node was looked at.
    pub of_pod: Option<(Plugin, String)>,
    /// Verdicts by node.
    pub of_nodes: BTreeMap<String, Verdict>,
    /// What came of looking for pods that could make way.
    pub preemption: Option<String>,
}

impl Unfit {
    /// Who has to change their mind.
    pub fn plugins(&self) -> Plugins {
        let of_pod = self.of_pod.iter().map(|(plugin, _)| *plugin);
        of_pod.chain(self.of_nodes.values().map(|it| it.plugin)).collect()
    }
}

/// Counts of equal reasons, sorted as text: as upstream prints them.
pub fn histogram<'a>(reasons: impl Iterator<Item = &'a str>) -> String {
    let mut counts = BTreeMap::<&str, usize>::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    let mut all: Vec<_> = counts
        .into_iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    all.sort();
    all.join(", ")
}

impl fmt::Display for Unfit {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return to.write_str("no nodes available to schedule pods");
        }
        write!(to, "0/{} nodes are available:", self.nodes)?;
        if let Some((_, reason)) = &self.of_pod {
            write!(to, " {reason}.")?;
        } else {
            let reasons = self.of_nodes.values().flat_map(|it| &it.reasons);
            write!(to, " {}.", histogram(reasons.map(|it| &**it)))?;
        }
        match &self.preemption {
            Some(more) => write!(to, " {more}"),
            None => Ok(()),
        }
    }
}
