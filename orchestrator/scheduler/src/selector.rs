//! Selectors of labels and of nodes, checked once and matched often.

use k8s_openapi::{
    api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use std::collections::{BTreeMap, BTreeSet};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Op {
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    Exists,
    DoesNotExist,
    Above(i64),
    Below(i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    op: Op,
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|it| it.parse::<i64>().ok());
        match &self.op {
            Op::In(values) => value.is_some_and(|it| values.contains(it)),
            // As in every selector of the API: who lacks the label is not in the set.
            Op::NotIn(values) => value.is_none_or(|it| !values.contains(it)),
            Op::Exists => value.is_some(),
            Op::DoesNotExist => value.is_none(),
            Op::Above(bound) => number().is_some_and(|it| it > *bound),
            Op::Below(bound) => number().is_some_and(|it| it < *bound),
        }
    }

    fn read(key: &str, operator: &str, values: &[String], of_nodes: bool) -> Result<Self, String> {
        let set = || values.iter().cloned().collect::<BTreeSet<_>>();
        let some = |op: Op| {
            let why = || format!("{key} {operator}: needs values");
            if values.is_empty() { Err(why()) } else { Ok(op) }
        };
        let none = |op: Op| {
            let why = || format!("{key} {operator}: must have no values");
            if values.is_empty() { Ok(op) } else { Err(why()) }
        };
        let bound = || {
            let one = <&[String; 1]>::try_from(values).ok().and_then(|[it]| it.parse().ok());
            one.ok_or_else(|| format!("{key} {operator}: needs one whole number"))
        };
        let op = match operator {
            "In" => some(Op::In(set()))?,
            "NotIn" => some(Op::NotIn(set()))?,
            "Exists" => none(Op::Exists)?,
            "DoesNotExist" => none(Op::DoesNotExist)?,
            "Gt" if of_nodes => Op::Above(bound()?),
            "Lt" if of_nodes => Op::Below(bound()?),
            _ => return Err(format!("{key}: {operator:?} is no operator")),
        };
        Ok(Self {
            key: key.to_owned(),
            op,
        })
    }
}

/// A `LabelSelector`, or a map of labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// All must hold; `None` selects nothing.
    requirements: Option<Vec<Requirement>>,
}

impl Selector {
    /// Selects nothing.
    pub const NOTHING: Self = Self { requirements: None };

    /// Reads a selector. None selects nothing, an empty one everything.
    ///
    /// # Errors
    /// What cannot be meant.
    pub fn read(selector: Option<&LabelSelector>) -> Result<Self, String> {
        let Some(selector) = selector else {
            return Ok(Self::NOTHING);
        };
        let mut all = Self::of_labels(selector.match_labels.iter().flatten());
        for it in selector.match_expressions.iter().flatten() {
            let values = it.values.as_deref().unwrap_or_default();
            all.push(Requirement::read(&it.key, &it.operator, values, false)?);
        }
        Ok(all)
    }

    /// Selects who has all these labels.
    pub fn of_labels<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        let equal = |(key, value): (&String, &String)| Requirement {
            key: key.clone(),
            op: Op::In(BTreeSet::from([value.clone()])),
        };
        Self {
            requirements: Some(labels.into_iter().map(equal).collect()),
        }
    }

    fn push(&mut self, requirement: Requirement) {
        // An API server may have written it into the selector already.
        if let Some(all) = &mut self.requirements
            && !all.contains(&requirement)
        {
            all.push(requirement);
        }
    }

    /// Requires also that `key` has (or has not) this value. Source: KEP-3633, KEP-3243 (`matchLabelKeys`).
    pub fn and(&mut self, key: &str, value: &str, equal: bool) {
        let values = BTreeSet::from([value.to_owned()]);
        self.push(Requirement {
            key: key.to_owned(),
            op: if equal { Op::In(values) } else { Op::NotIn(values) },
        });
    }

    /// Requires what both require.
    pub fn merge(&mut self, other: &Self) {
        for requirement in other.requirements.iter().flatten() {
            self.push(requirement.clone());
        }
    }

    /// Whether nothing is required: selects everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.as_ref().is_some_and(Vec::is_empty)
    }

    /// Whether it selects an object with these labels.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements
            .as_ref()
            .is_some_and(|all| all.iter().all(|it| it.matches(labels.get(&it.key).map(String::as_str))))
    }
}

/// One term of a `NodeSelector`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeTerm {
    labels: Vec<Requirement>,
    /// Of `metadata.name`, the only field that nodes are selected by.
    names: Vec<Requirement>,
}

impl NodeTerm {
    /// Reads a term.
    ///
    /// # Errors
    /// What cannot be meant.
    pub fn read(term: &NodeSelectorTerm) -> Result<Self, String> {
        let read = |it: &NodeSelectorRequirement| {
            Requirement::read(&it.key, &it.operator, it.values.as_deref().unwrap_or_default(), true)
        };
        let mut names = Vec::new();
        for it in term.match_fields.iter().flatten() {
            if it.key != "metadata.name" {
                return Err(format!("matchFields: nodes have no field {:?} to match", it.key));
            }
            if !matches!(it.operator.as_str(), "In" | "NotIn") {
                return Err(format!("matchFields: {:?} is no operator of fields", it.operator));
            }
            names.push(read(it)?);
        }
        Ok(Self {
            labels: term
                .match_expressions
                .iter()
                .flatten()
                .map(read)
                .collect::<Result<_, _>>()?,
            names,
        })
    }

    /// Whether it selects a node. A term without requirements selects none.
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        !(self.labels.is_empty() && self.names.is_empty())
            && self.names.iter().all(|it| it.matches(Some(name)))
            && self
                .labels
                .iter()
                .all(|it| it.matches(labels.get(&it.key).map(String::as_str)))
    }

    /// The nodes that it can select at all, where it names them.
    pub fn named(&self) -> Option<BTreeSet<String>> {
        let sets = self.names.iter().filter_map(|it| match &it.op {
            Op::In(values) => Some(values.clone()),
            _ => None,
        });
        sets.reduce(|left, right| left.intersection(&right).cloned().collect())
    }
}

/// Whether any of these terms selects a node.
pub fn any(terms: &[NodeTerm], name: &str, labels: &Labels) -> bool {
    terms.iter().any(|it| it.matches(name, labels))
}
