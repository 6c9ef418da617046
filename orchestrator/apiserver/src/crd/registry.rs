//! [`Definitions`]: the registry with the rows of all definitions, rebuilt when one of them changes.

use super::{
    definition::condition,
    names::{self, Taken},
    rows,
    structural::text,
};
use fairlead_schema::{Registry, Resource, kinds};
use serde_json::Value;
use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

/// Rows of every known definition, kept so that a change of one costs what that one costs.
#[derive(Debug, Default)]
pub struct Definitions {
    built: HashMap<Arc<str>, Built>,
    /// Rows were made or dropped since the last registry.
    replaced: bool,
    epoch: u64,
}

/// Rows of one definition, and what they were made of.
#[derive(Debug)]
struct Built {
    uid: Value,
    generation: Value,
    spec: Value,
    accepted: Value,
    deleting: bool,
    rows: Vec<Arc<Resource>>,
}

/// What follows from the definitions there are.
#[derive(Debug)]
pub struct Rebuilt {
    /// Serve this first: what a status says must be true when it is read.
    pub registry: Registry,
    /// Whether it differs from the one before; if not, it has the same epoch.
    pub changed: bool,
    /// Names of definitions whose status must change, and the whole new `status`.
    pub statuses: Vec<(Arc<str>, Value)>,
}

impl Definitions {
    /// The registry of built-in resources and all definitions. `now`: RFC 3339, for conditions that change.
    pub fn rebuild(&mut self, base: &Registry, crds: &[Arc<Value>], now: &str) -> Rebuilt {
        let mut crds: Vec<&Arc<Value>> = crds.iter().collect();
        // The elder have the names; equal ages go by name, so that every start decides alike.
        crds.sort_by_key(|crd| {
            let meta = &crd["metadata"];
            let part = |name: &str| meta[name].as_str().unwrap_or_default().to_owned();
            (part("creationTimestamp"), part("name"))
        });
        let mut taken = taken_by(base, &crds);
        let mut known = HashMap::with_capacity(crds.len());
        let mut statuses = Vec::new();
        for crd in crds {
            let Some(name) = text(&crd["metadata"], "name") else {
                continue;
            };
            let group = crd["spec"]["group"].as_str().unwrap_or_default().to_owned();
            let taken = taken.entry(group).or_default();
            let status = names::status(crd, taken, now);
            taken.take(&status["acceptedNames"]);
            let built = self.build(&name, crd, &status);
            if status != crd["status"] {
                statuses.push((Arc::clone(&name), status));
            }
            known.insert(name, built);
        }
        let gone = self.built.values().any(|it| !it.rows.is_empty());
        let changed = self.epoch == 0 || gone || self.replaced;
        self.replaced = false;
        self.built = known;
        if changed {
            self.epoch = self.epoch.max(base.epoch) + 1;
        }
        Rebuilt {
            registry: self.registry(base),
            changed,
            statuses,
        }
    }

    /// Rows of one definition, made anew only if it changed.
    fn build(&mut self, name: &Arc<str>, crd: &Arc<Value>, status: &Value) -> Built {
        let (uid, generation) = (&crd["metadata"]["uid"], &crd["metadata"]["generation"]);
        let accepted = &status["acceptedNames"];
        let deleting = !crd["metadata"]["deletionTimestamp"].is_null();
        if let Some(old) = self.built.remove(name) {
            let same = old.uid == *uid
                && old.generation == *generation
                && old.accepted == *accepted
                && old.deleting == deleting
                // Without a generation to go by, the whole is compared.
                && (!generation.is_null() || old.spec == crd["spec"]);
            if same {
                return old;
            }
            self.replaced |= !old.rows.is_empty();
        }
        let served = has_condition(status, "Established");
        let rows = if served {
            let mut crd = (**crd).clone();
            crd["status"] = status.clone();
            rows::rows(&crd)
        } else {
            Vec::new()
        };
        self.replaced |= !rows.is_empty();
        Built {
            uid: uid.clone(),
            generation: generation.clone(),
            spec: if generation.is_null() {
                crd["spec"].clone()
            } else {
                Value::Null
            },
            accepted: accepted.clone(),
            deleting,
            rows,
        }
    }

    fn registry(&self, base: &Registry) -> Registry {
        let mut registry = base.clone();
        registry.epoch = self.epoch;
        let mut groups: BTreeSet<Arc<str>> = BTreeSet::new();
        for row in self.built.values().flat_map(|it| &it.rows) {
            // What is built in cannot be replaced.
            if base.resource(&row.group, &row.version, &row.plural).is_none() {
                registry.insert(Arc::clone(row));
                groups.insert(Arc::clone(&row.group));
            }
        }
        for group in &groups {
            if let Some(group) = registry.groups.get_mut(group) {
                group.versions.sort_by_key(|it| Reverse(kinds::priority(&it.name)));
            }
        }
        registry
    }
}

/// Names of built-in resources, and those that definitions were given before.
fn taken_by(base: &Registry, crds: &[&Arc<Value>]) -> HashMap<String, Taken> {
    let mut taken: HashMap<String, Taken> = HashMap::new();
    for row in base.resources() {
        let taken = taken.entry(row.group.to_string()).or_default();
        taken.resources.insert(row.plural.to_string());
        taken.resources.insert(row.singular.to_string());
        taken.resources.extend(row.short_names.iter().map(ToString::to_string));
        taken.kinds.insert(row.kind.to_string());
        taken.kinds.insert(format!("{}List", row.kind));
    }
    for crd in crds {
        let group = crd["spec"]["group"].as_str().unwrap_or_default();
        if condition(crd, "NamesAccepted").is_some() {
            taken
                .entry(group.to_owned())
                .or_default()
                .take(&crd["status"]["acceptedNames"]);
        }
    }
    taken
}

fn has_condition(status: &Value, ty: &str) -> bool {
    super::structural::array(status, "conditions").any(|it| it["type"] == ty && it["status"] == "True")
}
