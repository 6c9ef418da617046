//! Server-side apply and the tracking of field owners in `metadata.managedFields` (KEP-555, KEP-2155). Pure functions: the
//! caller reads and writes the store, knows the clock, sets defaults, validates and admits.
//!
//! Order of a write: patch or decode, set defaults, [`update`] (not for apply, where [`apply`] comes before the defaults),
//! admission (then [`check`], since webhooks may have touched the entries), validation, and last [`keep_times`], so that a
//! write that changes nothing changes nothing.

mod conflict;
mod core;
mod element;
mod entries;
mod last_applied;
mod manager_name;
mod merge;
mod scale;
mod set;
mod typed;

pub use conflict::{Conflict, Conflicts};
pub use element::{PathElement, path_text};
pub use entries::{ANCIENT, MAX_UPDATE_MANAGERS, Manager, Operation};
pub use manager_name::{MAX_MANAGER_BYTES, check_manager_name, manager_name};
pub use scale::{ReplicasPath, from_scale, to_scale};
pub use set::FieldSet;

use crate::value::{MAX_DEPTH, deeper_than, same};
use entries::{Managers, decode, encode};
use fairlead_schema::types::{TypeId, Types};
use jiff::Timestamp;
use serde_json::{Map, Value};
use typed::Typed;

/// What is known of a write, besides the objects.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// Types of the object.
    pub types: &'a Types,
    /// The object's type in `types`: that of the kind, also for writes to its subresources that take the kind itself.
    pub ty: TypeId,
    /// Version of the request, as `apps/v1`.
    pub api_version: &'a str,
    /// As `Deployment`.
    pub kind: &'a str,
    /// Who writes: [`manager_name()`]. Empty is `unknown`.
    pub manager: &'a str,
    /// As `status`; empty for the main resource.
    pub subresource: &'a str,
    /// Fields that this write resets, so that nobody owns them by it.
    pub tracked: &'a Tracked,
    /// All versions in which the kind is served, as `apps/v1`. Entries of others are dropped; those of these are taken as
    /// they are, without conversion: a path that this version lacks is neither in conflict nor removed. Empty: every
    /// version is known.
    pub versions: &'a [&'a str],
    /// When. Only whole seconds are kept.
    pub now: Timestamp,
}

/// Which fields a write can own. Source: `GetResetFields` of upstream's strategies, as the `status` of a write to the main
/// resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tracked {
    /// All.
    #[default]
    All,
    /// All but these and what is below them. Paths of field names.
    Except(Vec<Vec<String>>),
    /// Only these and what is below them. `*` stands for any step, an item of a list too. For `pods/resize`.
    Only(Vec<Vec<String>>),
}

impl Tracked {
    /// All but these fields, given as `status` or `metadata.labels`.
    pub fn except(paths: &[&str]) -> Self {
        Self::Except(
            paths
                .iter()
                .map(|path| path.split('.').map(Into::into).collect())
                .collect(),
        )
    }

    /// Only these fields, given as `spec.containers.*.resources`.
    pub fn only(paths: &[&str]) -> Self {
        Self::Only(
            paths
                .iter()
                .map(|path| path.split('.').map(Into::into).collect())
                .collect(),
        )
    }
}

/// Why an apply fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// 409: others own fields that would change. `force` takes them.
    #[error("{0}")]
    Conflicts(Conflicts),
    /// 400: the applied configuration is wrong, or the stored object cannot be merged into.
    #[error("{0}")]
    BadRequest(String),
}

/// Applies a configuration: merges it into the live object, removes what the manager applied before, no longer applies and
/// nobody else owns, and notes what it owns now. `live` is `None` for an object that is yet to be made; the result then has
/// no defaults and no uid. Applying the same again gives the live object, unchanged to the byte.
///
/// # Errors
/// [`ApplyError::Conflicts`] without `force`; [`ApplyError::BadRequest`] with upstream's words.
pub fn apply(write: &Write<'_>, force: bool, live: Option<&Value>, config: &Value) -> Result<Value, ApplyError> {
    let bad = ApplyError::BadRequest;
    let text = |field: &str| config.get(field).and_then(Value::as_str).unwrap_or_default();
    if text("apiVersion") != write.api_version || text("kind") != write.kind {
        let version = text("apiVersion");
        let slash = if version.contains('/') { "" } else { "/" };
        return Err(bad(format!(
            "invalid object type: {slash}{version}, Kind={}",
            text("kind")
        )));
    }
    if config
        .pointer("/metadata/managedFields")
        .is_some_and(|entries| !entries.is_null())
    {
        return Err(bad("metadata.managedFields must be nil".into()));
    }
    if deeper_than(config, MAX_DEPTH) || live.is_some_and(|live| deeper_than(live, MAX_DEPTH)) {
        return Err(bad(format!("exceeded max depth of {MAX_DEPTH}; flatten the object")));
    }
    let managers = decode(live.and_then(managed_fields))
        .map_err(|error| bad(format!("failed to decode managed fields: {error}")))?;
    let mut old = live.cloned().unwrap_or_else(|| Value::Object(Map::new()));
    set_managed_fields(&mut old, Vec::new());
    let typed = Typed::new(write.types, write.ty);
    let name = object_name(config, write);
    let untyped = |which: &str, error| bad(format!("failed to create typed {which} object ({name}): {error}"));
    typed.check(config, true).map_err(|error| untyped("patch", error))?;
    typed.check(&old, false).map_err(|error| untyped("live", error))?;
    let (mut new, managers) = core::apply(write, force, live.is_some(), &old, config, managers)?;
    if write.manager == last_applied::KUBECTL {
        last_applied::refresh(&mut new, config);
    }
    set_managed_fields(&mut new, encode(&managers));
    Ok(new)
}

/// Notes in `new` what a write other than apply changed from `live` (`None`: a create). Entries that the client sent are
/// taken where they can be read, `[]` and `[{}]` reset them, and a subresource cannot change them.
pub fn update(write: &Write<'_>, live: Option<&Value>, new: &mut Value) {
    let managers = sent_or_live(write, live, new);
    set_managed_fields(new, Vec::new());
    // An object that nobody tracks is not tracked until somebody applies.
    if managers.is_empty() && live.is_some() {
        return;
    }
    let mut old = live.cloned().unwrap_or_else(|| Value::Object(Map::new()));
    set_managed_fields(&mut old, Vec::new());
    let typed = Typed::new(write.types, write.ty);
    let too_deep = deeper_than(new, MAX_DEPTH) || deeper_than(&old, MAX_DEPTH);
    // No entries are better than wrong ones: validation says what is wrong with the object, if anything.
    if too_deep || typed.check(new, false).is_err() || typed.check(&old, false).is_err() {
        return;
    }
    let managers = core::update(write, &old, new, managers);
    set_managed_fields(new, encode(&managers));
}

/// The entries from which an update starts.
fn sent_or_live(write: &Write<'_>, live: Option<&Value>, new: &Value) -> Managers {
    let live = || decode(live.and_then(managed_fields)).unwrap_or_default();
    if !write.subresource.is_empty() {
        return live();
    }
    let sent = managed_fields(new);
    if sent.and_then(Value::as_array).is_some_and(|entries| is_reset(entries)) {
        return Managers::new();
    }
    // Clients that know nothing of managedFields must not delete them by accident.
    decode(sent)
        .ok()
        .filter(|managers| !managers.is_empty())
        .unwrap_or_else(live)
}

fn is_reset(entries: &[Value]) -> bool {
    match entries {
        [] => true,
        [entry] => entry
            .as_object()
            .is_some_and(|entry| entry.values().all(|value| value.is_null() || value == "")),
        _ => false,
    }
}

/// Checks the entries of an object, as after admission. A webhook that spoilt them gets them restored, with a warning.
///
/// # Errors
/// The text for the warning, to be put behind ".metadata.managedFields was in an invalid state after admission; this could
/// be caused by an outdated mutating admission controller; please fix your requests: ".
pub fn check(object: &Value) -> Result<(), String> {
    decode(managed_fields(object)).map(drop)
}

/// Gives `new` the entries of `old` if they differ in nothing but times, and the objects in nothing at all: a write that
/// changes nothing shall not be one. To be called last, before an object is stored.
pub fn keep_times(old: &Value, new: &mut Value) {
    let (Some(was), Some(is)) = (managed_fields(old), managed_fields(new)) else {
        return;
    };
    let (Some(was), Some(is)) = (was.as_array(), is.as_array()) else {
        return;
    };
    let timeless = |entry: &Value| {
        let mut entry = entry.clone();
        entry.as_object_mut().map(|fields| fields.remove("time"));
        entry
    };
    if was == is || was.len() != is.len() {
        return;
    }
    // Entries are sorted by time too, so that a changed time may have moved one.
    let mut unmatched: Vec<Value> = was.iter().map(timeless).collect();
    for entry in is {
        let entry = timeless(entry);
        let Some(at) = unmatched.iter().position(|it| *it == entry) else {
            return;
        };
        unmatched.swap_remove(at);
    }
    let set = |new: &mut Value, entries| match new.pointer_mut("/metadata/managedFields") {
        Some(slot) => std::mem::replace(slot, entries),
        None => Value::Null,
    };
    let now = set(new, Value::Array(was.clone()));
    if !same(old, new) {
        set(new, now);
    }
}

/// `metadata.managedFields` of an object.
pub fn managed_fields(object: &Value) -> Option<&Value> {
    object.get("metadata")?.get("managedFields")
}

/// Sets the entries; none means that the field is absent.
fn set_managed_fields(object: &mut Value, entries: Vec<Value>) {
    let Some(object) = object.as_object_mut() else { return };
    if entries.is_empty() {
        if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
            metadata.remove("managedFields");
        }
        return;
    }
    let metadata = object.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(metadata) = metadata {
        metadata.insert("managedFields".into(), Value::Array(entries));
    }
}

/// As `default/web; apps/v1, Kind=Deployment`: how upstream's errors name the object.
fn object_name(object: &Value, write: &Write<'_>) -> String {
    let text = |field: &str| {
        object
            .get("metadata")
            .and_then(|it| it.get(field))
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let slash = if write.api_version.contains('/') { "" } else { "/" };
    format!(
        "{}/{}; {slash}{}, Kind={}",
        text("namespace"),
        text("name"),
        write.api_version,
        write.kind
    )
}

#[cfg(test)]
mod tests;
