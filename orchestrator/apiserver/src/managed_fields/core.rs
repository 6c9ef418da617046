//! Who owns what after a write: the algorithm of KEP-555, over objects that were checked and have no entries of their own.

use super::{
    ApplyError, Tracked, Write,
    conflict::Conflicts,
    element::PathElement,
    entries::{Manager, Managers, Operation, Owned, cap},
    last_applied,
    merge::Comparison,
    set::FieldSet,
    typed::Typed,
};
use crate::value::same;
use serde_json::Value;
use std::{collections::BTreeMap, sync::LazyLock};

/// Owner of all that an object had when it was applied to for the first time.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// What nobody owns: identity, and what the server sets.
static NEVER_OWNED: LazyLock<FieldSet> = LazyLock::new(|| {
    let mut set = FieldSet::default();
    for field in ["apiVersion", "kind", "metadata"] {
        set.insert_fields([field]);
    }
    let metadata = [
        "name",
        "namespace",
        "creationTimestamp",
        "selfLink",
        "uid",
        "clusterName",
        "generation",
        "managedFields",
        "resourceVersion",
    ];
    for field in metadata {
        set.insert_fields(["metadata", field]);
    }
    set
});

/// The object with `config` applied, and its managers.
pub(super) fn apply(
    write: &Write<'_>,
    force: bool,
    exists: bool,
    live: &Value,
    config: &Value,
    mut managers: Managers,
) -> Result<(Value, Managers), ApplyError> {
    if managers.is_empty() && exists {
        let before = Write {
            manager: BEFORE_FIRST_APPLY,
            ..*write
        };
        managers = update(&before, &Value::Object(serde_json::Map::new()), live, managers);
    }
    let conflicts = match try_apply(write, force, live, config, managers.clone()) {
        Ok(applied) => return Ok(applied),
        Err(conflicts) => conflicts,
    };
    // What client-side apply wrote, and nobody changed since, belongs to the same user.
    let allowed = match write.manager {
        last_applied::KUBECTL => last_applied::unchanged_fields(write, live),
        _ => None,
    };
    let Some(allowed) = allowed else {
        return Err(ApplyError::Conflicts(conflicts));
    };
    let left: Vec<_> = conflicts
        .0
        .into_iter()
        .filter(|conflict| !allowed.contains(&conflict.path))
        .collect();
    if !left.is_empty() {
        return Err(ApplyError::Conflicts(Conflicts(left)));
    }
    try_apply(write, true, live, config, managers).map_err(ApplyError::Conflicts)
}

fn try_apply(
    write: &Write<'_>,
    force: bool,
    live: &Value,
    config: &Value,
    mut managers: Managers,
) -> Result<(Value, Managers), Conflicts> {
    let typed = Typed::new(write.types, write.ty);
    forget_unknown_versions(write, &mut managers);
    reconcile(typed, &mut managers);
    let manager = manager(write, Operation::Apply);
    let fields = filter(write.tracked, &typed.fields(config));
    let previous = managers.remove(&manager);
    let merged = typed.merge(Some(live), Some(config)).unwrap_or(Value::Null);
    let new = match &previous {
        Some(previous) if !previous.fields.is_empty() => {
            // Empty lists too: nobody owns them, and yet they were applied.
            let applied = filter(write.tracked, &typed.parts(config));
            prune(typed, merged, &previous.fields, &applied, &managers)
        }
        _ => merged,
    };
    let changes = filtered(write.tracked, &Comparison::of(typed, live, &new));
    take_over(&changes, force, &mut managers)?;
    let fields = fields.difference(&NEVER_OWNED);
    let unchanged = same(live, &new);
    if !fields.is_empty() {
        let kept = previous.filter(|it| unchanged && it.fields == fields && it.api_version == write.api_version);
        let owned = kept.unwrap_or_else(|| Owned {
            fields,
            api_version: write.api_version.into(),
            time_s: Some(write.now.as_second()),
        });
        managers.insert(manager, owned);
    }
    Ok((if unchanged { live.clone() } else { new }, managers))
}

/// The managers after a write that turned `live` into `new`.
pub(super) fn update(write: &Write<'_>, live: &Value, new: &Value, mut managers: Managers) -> Managers {
    let typed = Typed::new(write.types, write.ty);
    forget_unknown_versions(write, &mut managers);
    reconcile(typed, &mut managers);
    let changes = filtered(write.tracked, &Comparison::of(typed, live, new));
    // Forced, so that it cannot fail.
    let _ = take_over(&changes, true, &mut managers);
    let written = filter(write.tracked, &changes.written()).difference(&NEVER_OWNED);
    if !written.is_empty() {
        let manager = manager(write, Operation::Update);
        let fields = match managers.get(&manager) {
            Some(owned) => owned.fields.union(&written),
            None => written,
        };
        let (api_version, time_s) = (write.api_version.into(), Some(write.now.as_second()));
        managers.insert(
            manager,
            Owned {
                fields,
                api_version,
                time_s,
            },
        );
    }
    cap(&mut managers);
    managers
}

fn manager(write: &Write<'_>, operation: Operation) -> Manager {
    Manager {
        name: if write.manager.is_empty() {
            "unknown"
        } else {
            write.manager
        }
        .into(),
        operation,
        api_version: if operation == Operation::Apply {
            String::new()
        } else {
            write.api_version.into()
        },
        subresource: write.subresource.into(),
    }
}

fn forget_unknown_versions(write: &Write<'_>, managers: &mut Managers) {
    if !write.versions.is_empty() {
        managers
            .retain(|_, owned| owned.api_version == write.api_version || write.versions.contains(&&*owned.api_version));
    }
}

fn reconcile(typed: Typed<'_>, managers: &mut Managers) {
    for owned in managers.values_mut() {
        owned.fields = typed.reconcile(&owned.fields);
    }
}

/// Takes what was written, and what is gone, from all managers.
fn take_over(changes: &Comparison, force: bool, managers: &mut Managers) -> Result<(), Conflicts> {
    let written = changes.written();
    let conflicts: BTreeMap<_, _> = managers
        .iter()
        .map(|(manager, owned)| (manager.clone(), owned.fields.intersection(&written)))
        .filter(|(_, conflicts)| !conflicts.is_empty())
        .collect();
    if !force && !conflicts.is_empty() {
        return Err(Conflicts::of(&conflicts));
    }
    for owned in managers.values_mut() {
        owned.fields = owned.fields.difference(&written).difference(&changes.removed);
    }
    managers.retain(|_, owned| !owned.fields.is_empty());
    Ok(())
}

/// Removes from the merged object what the manager applied before, does not apply now, and nobody else owns. Parents that
/// only held such fields go with them.
fn prune(typed: Typed<'_>, merged: Value, previous: &FieldSet, applied: &FieldSet, others: &Managers) -> Value {
    let previous = typed.with_parents(previous);
    let pruned = typed
        .remove(&merged, &previous, &FieldSet::default())
        .unwrap_or(Value::Null);
    let owned = others
        .values()
        .fold(applied.clone(), |all, owned| all.union(&owned.fields));
    let all = typed.parts(&merged);
    let keep = typed.parts(&pruned).union(&typed.with_parents(&owned));
    // An empty object that somebody has to himself is not nothing: `emptyDir: {}`.
    let left = typed
        .remove(&merged, &all.difference(&keep), &owned)
        .unwrap_or(Value::Null);
    // Whatever went that the manager did not own before, below a removed item say, stays.
    let gone = all.difference(&typed.parts(&left));
    typed
        .remove(&merged, &gone.intersection(&previous), &owned)
        .unwrap_or(merged)
}

fn filtered(tracked: &Tracked, changes: &Comparison) -> Comparison {
    Comparison {
        added: filter(tracked, &changes.added),
        modified: filter(tracked, &changes.modified),
        removed: filter(tracked, &changes.removed),
    }
}

fn filter(tracked: &Tracked, set: &FieldSet) -> FieldSet {
    match tracked {
        Tracked::All => set.clone(),
        Tracked::Except(paths) => {
            let mut except = FieldSet::default();
            for path in paths {
                except.insert_fields(path.iter().map(String::as_str));
            }
            set.without_trees(&except)
        }
        Tracked::Only(paths) => {
            let paths: Vec<&[String]> = paths.iter().map(Vec::as_slice).collect();
            only(set, &paths)
        }
    }
}

/// The paths that begin with one of the patterns, and those on the way to them.
fn only(set: &FieldSet, patterns: &[&[String]]) -> FieldSet {
    let mut kept = FieldSet::default();
    for (element, member, below) in set.steps() {
        let fits = |step: &str| step == "*" || matches!(element, PathElement::Field(name) if **name == *step);
        let rests = patterns
            .iter()
            .filter_map(|pattern| pattern.split_first().filter(|(step, _)| fits(step)));
        let rests: Vec<&[String]> = rests.map(|(_, rest)| rest).collect();
        if rests.iter().any(|rest| rest.is_empty()) {
            kept.put(element.clone(), member, below.clone());
        } else if !rests.is_empty() {
            kept.put(element.clone(), member, only(below, &rests));
        }
    }
    kept
}
