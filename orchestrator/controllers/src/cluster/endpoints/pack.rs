//! Packing endpoints into slices so that few slices change: every write goes to every node.
//!
//! The rules are upstream's: endpoints stay in the slice that they are in; slices that change anyway are filled first, the
//! fullest before the others; what is left goes into one unchanged slice that has room for all of it, or into new slices.

use super::desired::{ByPorts, Family, PortsKey, endpoint_key, index};
use k8s_openapi::{
    api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use std::collections::{BTreeMap, HashMap};

/// What all slices of one owner share.
#[derive(Clone, Debug)]
pub(crate) struct Meta {
    /// Namespace of the owner.
    pub(crate) namespace: String,
    /// Slices are named after this, with a random ending.
    pub(crate) base_name: String,
    /// Whose slices these are.
    pub(crate) owner: OwnerReference,
    /// All labels that a slice must have, and no others.
    pub(crate) labels: BTreeMap<String, String>,
    /// Annotations that a slice must have; others stay.
    pub(crate) annotations: BTreeMap<String, String>,
    /// Most endpoints in a slice.
    pub(crate) max: usize,
}

/// Writes that make the slices right.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// To be made.
    pub(crate) create: Vec<EndpointSlice>,
    /// To be written over what is there.
    pub(crate) update: Vec<EndpointSlice>,
    /// To be removed.
    pub(crate) delete: Vec<EndpointSlice>,
}

impl Plan {
    /// Whether everything is right already.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.create.is_empty() && self.update.is_empty() && self.delete.is_empty()
    }
}

/// One family's slices. `existing`: all slices of this owner and family, none that is being deleted. `placeholder`: keep
/// one slice without endpoints, so that a Service can be told from one that nobody looked at yet.
pub(crate) fn pack(
    meta: &Meta,
    family: Family,
    desired: ByPorts,
    existing: &[EndpointSlice],
    placeholder: bool,
) -> Plan {
    let mut groups: BTreeMap<PortsKey, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in existing {
        let key = PortsKey::of(slice.ports.as_deref().unwrap_or_default());
        groups.entry(key).or_default().push(slice);
    }
    let mut plan = Plan::default();
    for (key, (ports, endpoints)) in desired {
        let slices = groups.remove(&key).unwrap_or_default();
        group(meta, family, &ports, endpoints, &slices, &mut plan);
    }
    plan.delete.extend(groups.into_values().flatten().cloned());
    let kept = existing.len() > plan.delete.len();
    if placeholder && !kept && plan.create.is_empty() {
        let empty = |it: &EndpointSlice| {
            it.endpoints.as_ref().is_none_or(Vec::is_empty) && it.ports.as_ref().is_none_or(Vec::is_empty)
        };
        match plan.delete.iter().position(|it| empty(it) && is_dressed(meta, it)) {
            Some(at) => drop(plan.delete.remove(at)),
            None => plan.create.push(new_slice(meta, family, &[], Vec::new())),
        }
    }
    recycle(&mut plan);
    plan
}

/// A slice that goes and one that comes are one write instead of two.
fn recycle(plan: &mut Plan) {
    while !plan.create.is_empty() && !plan.delete.is_empty() {
        if let (Some(mut new), Some(old)) = (plan.create.pop(), plan.delete.pop()) {
            let wanted = std::mem::take(&mut new.metadata);
            new.metadata = old.metadata;
            new.metadata.labels = wanted.labels;
            new.metadata.owner_references = wanted.owner_references;
            let annotations = new.metadata.annotations.get_or_insert_default();
            annotations.extend(wanted.annotations.unwrap_or_default());
            plan.update.push(new);
        }
    }
}

fn group(
    meta: &Meta,
    family: Family,
    ports: &[EndpointPort],
    endpoints: Vec<Endpoint>,
    existing: &[&EndpointSlice],
    plan: &mut Plan,
) {
    let mut wanted = index(endpoints);
    let (mut changed, mut unchanged) = (Vec::new(), Vec::new());
    for slice in existing {
        let old = slice.endpoints.as_deref().unwrap_or_default();
        let (mut kept, mut differs) = (Vec::with_capacity(old.len()), !is_dressed(meta, slice));
        for endpoint in old {
            if let Some(new) = wanted.remove(&endpoint_key(endpoint)) {
                differs |= new != *endpoint;
                kept.push(new);
            }
        }
        if differs || kept.len() != old.len() {
            changed.push(dress(meta, slice, kept));
        } else {
            unchanged.push(*slice);
        }
    }
    // Sorted, so that equal input gives equal slices.
    let mut left: Vec<Endpoint> = wanted.into_values().collect();
    left.sort_by_key(endpoint_key);
    left.reverse();
    changed.sort_by_key(|it| std::cmp::Reverse(len(it)));
    for slice in &mut changed {
        fill(slice, &mut left, meta.max);
    }
    if !left.is_empty() && left.len() < meta.max {
        let roomy = |it: &&EndpointSlice| len(it) + left.len() <= meta.max;
        let fullest = (0..unchanged.len())
            .filter(|at| roomy(&unchanged[*at]))
            .max_by_key(|at| len(unchanged[*at]));
        if let Some(at) = fullest {
            let slice = unchanged.swap_remove(at);
            let mut slice = dress(meta, slice, slice.endpoints.clone().unwrap_or_default());
            fill(&mut slice, &mut left, meta.max);
            changed.push(slice);
        }
    }
    while !left.is_empty() {
        let mut slice = new_slice(meta, family, ports, Vec::new());
        fill(&mut slice, &mut left, meta.max);
        plan.create.push(slice);
    }
    for slice in changed {
        if len(&slice) == 0 {
            plan.delete.push(slice);
        } else {
            plan.update.push(slice);
        }
    }
}

fn len(slice: &EndpointSlice) -> usize {
    slice.endpoints.as_ref().map_or(0, Vec::len)
}

fn fill(slice: &mut EndpointSlice, left: &mut Vec<Endpoint>, max: usize) {
    let endpoints = slice.endpoints.get_or_insert_default();
    while endpoints.len() < max
        && let Some(endpoint) = left.pop()
    {
        endpoints.push(endpoint);
    }
}

/// Whether labels, annotations and owner are as they should be. A trigger time alone is no reason for a write.
fn is_dressed(meta: &Meta, slice: &EndpointSlice) -> bool {
    let annotations = slice.metadata.annotations.as_ref();
    let annotated = meta
        .annotations
        .iter()
        .filter(|(key, _)| key.as_str() != super::TRIGGER_TIME)
        .all(|(key, value)| annotations.and_then(|it| it.get(key)) == Some(value));
    let owners = slice.metadata.owner_references.as_deref().unwrap_or_default();
    annotated
        && slice.metadata.labels.as_ref() == Some(&meta.labels)
        && owners.iter().any(|it| it.uid == meta.owner.uid)
}

fn dress(meta: &Meta, slice: &EndpointSlice, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let mut metadata = slice.metadata.clone();
    metadata.labels = Some(meta.labels.clone());
    metadata.owner_references = Some(vec![meta.owner.clone()]);
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.remove(super::TRIGGER_TIME);
    annotations.extend(meta.annotations.clone());
    EndpointSlice {
        address_type: slice.address_type.clone(),
        endpoints: Some(endpoints),
        metadata,
        ports: slice.ports.clone(),
    }
}

fn new_slice(meta: &Meta, family: Family, ports: &[EndpointPort], endpoints: Vec<Endpoint>) -> EndpointSlice {
    EndpointSlice {
        address_type: family.name().to_owned(),
        endpoints: Some(endpoints),
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", meta.base_name)),
            namespace: Some(meta.namespace.clone()),
            labels: Some(meta.labels.clone()),
            annotations: (!meta.annotations.is_empty()).then(|| meta.annotations.clone()),
            owner_references: Some(vec![meta.owner.clone()]),
            ..ObjectMeta::default()
        },
        ports: Some(ports.to_vec()),
    }
}

/// Slices by family name, and those of families that the owner does not have.
pub(crate) fn by_family(
    slices: Vec<EndpointSlice>,
    families: &[Family],
) -> (HashMap<Family, Vec<EndpointSlice>>, Vec<EndpointSlice>) {
    let (mut mine, mut foreign) = (HashMap::<Family, Vec<EndpointSlice>>::new(), Vec::new());
    for slice in slices {
        match families.iter().find(|it| it.name() == slice.address_type) {
            Some(family) => mine.entry(*family).or_default().push(slice),
            None => foreign.push(slice),
        }
    }
    (mine, foreign)
}
