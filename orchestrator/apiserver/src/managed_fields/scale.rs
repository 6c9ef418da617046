//! Owners of a replica count, as `scale` shows it: `spec.replicas` of the Scale is some field of the object behind it.

use super::{
    element::PathElement,
    entries::{Managers, Operation, Owned, decode, encode},
    set::FieldSet,
};
use serde_json::Value;

const SCALE: &str = "autoscaling/v1";

/// Where an object of one version keeps its replica count.
#[derive(Clone, Copy, Debug)]
pub struct ReplicasPath<'a> {
    /// As `apps/v1`.
    pub api_version: &'a str,
    /// As `spec.replicas`.
    pub path: &'a str,
}

impl ReplicasPath<'_> {
    fn set(&self) -> (FieldSet, Vec<PathElement>) {
        let path: Vec<_> = self.path.split('.').map(PathElement::field).collect();
        let mut set = FieldSet::default();
        set.insert(&path);
        (set, path)
    }
}

fn scale_set() -> FieldSet {
    let mut set = FieldSet::default();
    set.insert_fields(["spec", "replicas"]);
    set
}

/// `managedFields` of the Scale, from those of its object: the entries that own the replica count. Entries that cannot be
/// read give none.
pub fn to_scale(parent: Option<&Value>, paths: &[ReplicasPath<'_>]) -> Vec<Value> {
    let mut managers = Managers::new();
    for (mut manager, owned) in decode(parent).unwrap_or_default() {
        let path = paths.iter().find(|it| it.api_version == owned.api_version);
        if path.is_some_and(|path| owned.fields.contains(&path.set().1)) {
            if manager.operation == Operation::Update {
                manager.api_version = SCALE.into();
            }
            let owned = Owned {
                fields: scale_set(),
                api_version: SCALE.into(),
                time_s: owned.time_s,
            };
            managers.insert(manager, owned);
        }
    }
    encode(&managers)
}

/// `managedFields` of the object, after a write to its Scale left `scale` as those of the Scale: who lost the replica count
/// there loses it here, who got it gets it. `path` is that of the version of the request.
pub fn from_scale(
    parent: Option<&Value>,
    scale: Option<&Value>,
    path: ReplicasPath<'_>,
    paths: &[ReplicasPath<'_>],
) -> Vec<Value> {
    let mut owners = decode(scale).unwrap_or_default();
    owners.retain(|_, owned| !owned.fields.intersection(&scale_set()).is_empty());
    let mut managers = Managers::new();
    for (manager, mut owned) in decode(parent).unwrap_or_default() {
        let replicas = paths
            .iter()
            .find(|it| it.api_version == owned.api_version)
            .map(ReplicasPath::set);
        if let Some((set, replicas)) = replicas
            && owned.fields.contains(&replicas)
        {
            let mut there = manager.clone();
            if there.operation == Operation::Update {
                there.api_version = SCALE.into();
            }
            match owners.get(&there) {
                // It owned the count before, and still does; the time tells whether it wrote.
                Some(now) if now.time_s == owned.time_s => drop(owners.remove(&there)),
                Some(_) => {}
                None => owned.fields = owned.fields.difference(&set),
            }
        }
        if !owned.fields.is_empty() {
            managers.insert(manager, owned);
        }
    }
    for (mut manager, owner) in owners {
        if manager.operation == Operation::Update {
            manager.api_version = path.api_version.into();
        }
        let fields = managers
            .get(&manager)
            .map_or_else(|| path.set().0, |owned| owned.fields.union(&path.set().0));
        managers.insert(
            manager,
            Owned {
                fields,
                api_version: path.api_version.into(),
                time_s: owner.time_s,
            },
        );
    }
    encode(&managers)
}
