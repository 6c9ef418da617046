//! `metadata.managedFields`: who owns which fields, and since when. Source: `ManagedFieldsEntry` of meta/v1.

use super::set::FieldSet;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, fmt};

/// Update managers that an object keeps apart; the oldest beyond that are merged into [`ANCIENT`].
pub const MAX_UPDATE_MANAGERS: usize = 10;

/// Name of the manager of what many others wrote long ago.
pub const ANCIENT: &str = "ancient-changes";

/// What a manager did. Its order is that of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Server-side apply: the entry is the manager's whole wish.
    Apply,
    /// Any other write: the entry collects what it changed.
    Update,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// Who owns fields. An applier is the same one in every version; updaters are told apart by version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Manager {
    /// The request's `fieldManager`.
    pub name: String,
    /// What it did.
    pub operation: Operation,
    /// As `apps/v1`; empty for [`Operation::Apply`].
    pub api_version: String,
    /// As `status`; empty for the main resource.
    pub subresource: String,
}

/// As conflicts name it: `"kubectl" with subresource "status" using apps/v1`.
impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.name)?;
        if !self.subresource.is_empty() {
            write!(f, " with subresource {:?}", self.subresource)?;
        }
        if self.operation == Operation::Update {
            write!(f, " using {}", self.api_version)?;
        }
        Ok(())
    }
}

/// What a manager owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owned {
    pub(super) fields: FieldSet,
    /// Version in which the paths are written.
    pub(super) api_version: String,
    /// Seconds since the epoch; `None` where the entry has no time.
    pub(super) time_s: Option<i64>,
}

/// All entries of an object.
pub(super) type Managers = BTreeMap<Manager, Owned>;

/// Reads `managedFields`; absent and `null` are empty.
///
/// # Errors
/// The text says what is wrong, worded as upstream does.
pub(super) fn decode(entries: Option<&Value>) -> Result<Managers, String> {
    let entries = match entries {
        None | Some(Value::Null) => return Ok(Managers::new()),
        Some(Value::Array(entries)) => entries,
        Some(_) => return Err("managedFields must be a list".into()),
    };
    let mut managers = Managers::new();
    for (at, entry) in entries.iter().enumerate() {
        let text = |name: &str| match entry.get(name) {
            None | Some(Value::Null) => Ok(""),
            Some(Value::String(text)) => Ok(&**text),
            Some(_) => Err(format!("{name} must be a string in managed fields entry {at}")),
        };
        let operation = match text("operation")? {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return Err("operation must be `Apply` or `Update`".into()),
        };
        let api_version = text("apiVersion")?;
        if api_version.is_empty() {
            return Err("apiVersion must not be empty".into());
        }
        match text("fieldsType")? {
            "FieldsV1" => {}
            "" => return Err(format!("missing fieldsType in managed fields entry {at}")),
            other => return Err(format!("invalid fieldsType {other:?} in managed fields entry {at}")),
        }
        let time_s = match text("time")? {
            "" => None,
            time => {
                let time: Timestamp = time
                    .parse()
                    .map_err(|error| format!("invalid time {time:?}: {error}"))?;
                Some(time.as_second())
            }
        };
        let fields = FieldSet::decode(entry.get("fieldsV1").unwrap_or(&Value::Null))
            .map_err(|error| format!("error decoding set in managed fields entry {at}: {error}"))?;
        let manager = Manager {
            name: text("manager")?.into(),
            operation,
            api_version: if operation == Operation::Apply {
                String::new()
            } else {
                api_version.into()
            },
            subresource: text("subresource")?.into(),
        };
        managers.insert(
            manager,
            Owned {
                fields,
                api_version: api_version.into(),
                time_s,
            },
        );
    }
    Ok(managers)
}

/// The value of `managedFields`: appliers first, then by time, then by name.
pub(super) fn encode(managers: &Managers) -> Vec<Value> {
    let mut entries: Vec<_> = managers.iter().collect();
    entries.sort_by_key(|(manager, owned)| (manager.operation, owned.time_s.unwrap_or(0)));
    entries
        .into_iter()
        .map(|(manager, owned)| encode_entry(manager, owned))
        .collect()
}

fn encode_entry(manager: &Manager, owned: &Owned) -> Value {
    let mut entry = Map::new();
    entry.insert("manager".into(), json!(manager.name));
    entry.insert("operation".into(), json!(manager.operation.name()));
    entry.insert("apiVersion".into(), json!(owned.api_version));
    if let Some(time) = owned.time_s.and_then(|time_s| Timestamp::from_second(time_s).ok()) {
        entry.insert("time".into(), json!(time.to_string()));
    }
    entry.insert("fieldsType".into(), json!("FieldsV1"));
    entry.insert("fieldsV1".into(), owned.fields.encode());
    if !manager.subresource.is_empty() {
        entry.insert("subresource".into(), json!(manager.subresource));
    }
    Value::Object(entry)
}

/// Merges the oldest update managers of each version into one, until [`MAX_UPDATE_MANAGERS`] are left. Managers of a version
/// that has no second one are left alone, so there may be more.
pub(super) fn cap(managers: &mut Managers) {
    let mut updaters: Vec<_> = managers
        .iter()
        .filter(|(manager, _)| manager.operation == Operation::Update)
        .map(|(manager, owned)| (owned.time_s.unwrap_or(0), manager.clone()))
        .collect();
    updaters.sort();
    let mut count = updaters.len();
    let mut firsts: BTreeMap<String, Manager> = BTreeMap::new();
    for (_, manager) in updaters {
        if count <= MAX_UPDATE_MANAGERS {
            break;
        }
        let Some(version) = managers.get(&manager).map(|owned| owned.api_version.clone()) else {
            continue;
        };
        let Some(first) = firsts.get(&version) else {
            firsts.insert(version, manager);
            continue;
        };
        let bucket = Manager {
            name: ANCIENT.into(),
            operation: Operation::Update,
            api_version: version,
            subresource: String::new(),
        };
        if bucket == manager {
            continue;
        }
        if !managers.contains_key(&bucket)
            && let Some(owned) = managers.remove(first)
        {
            managers.insert(bucket.clone(), owned);
        }
        if let Some(newer) = managers.remove(&manager)
            && let Some(owned) = managers.get_mut(&bucket)
        {
            owned.fields = owned.fields.union(&newer.fields);
            owned.time_s = newer.time_s;
            count -= 1;
        }
    }
}
