//! Whole histories of objects: who writes what, and who owns what then.
#![allow(
    clippy::needless_pass_by_value,
    reason = "`json!` at every call reads best as a value"
)]

mod apply;
mod builtin;
mod hostile;
mod properties;
mod subresources;
mod update;

use super::*;
use serde_json::json;
use std::sync::Arc;

/// One object, and who wrote to it.
pub(super) struct History {
    pub(super) types: Arc<Types>,
    api_version: &'static str,
    kind: &'static str,
    pub(super) live: Option<Value>,
    /// Seconds since the epoch; one more with each write.
    now_s: i64,
    pub(super) tracked: Tracked,
}

impl History {
    pub(super) fn of(api_version: &'static str, kind: &'static str) -> Self {
        let tracked = Tracked::except(&["status"]);
        Self {
            types: Types::builtin(),
            api_version,
            kind,
            live: None,
            now_s: 1_700_000_000,
            tracked,
        }
    }

    pub(super) fn write<'a>(&'a self, manager: &'a str, subresource: &'a str) -> Write<'a> {
        Write {
            types: &self.types,
            ty: self.types.kind_of(self.api_version, self.kind).unwrap(),
            api_version: self.api_version,
            kind: self.kind,
            manager,
            subresource,
            tracked: &self.tracked,
            versions: &[],
            now: Timestamp::from_second(self.now_s).unwrap(),
        }
    }

    /// With `apiVersion`, `kind` and a name.
    pub(super) fn object(&self, fields: &Value) -> Value {
        let mut object =
            json!({"apiVersion": self.api_version, "kind": self.kind, "metadata": {"name": "x", "namespace": "d"}});
        json_patch::merge(&mut object, fields);
        object
    }

    pub(super) fn try_apply(&mut self, manager: &str, force: bool, config: &Value) -> Result<(), ApplyError> {
        self.now_s += 1;
        let config = self.object(config);
        let applied = apply(&self.write(manager, ""), force, self.live.as_ref(), &config)?;
        self.store(applied);
        Ok(())
    }

    pub(super) fn apply(&mut self, manager: &str, config: Value) {
        self.try_apply(manager, false, &config).unwrap();
    }

    pub(super) fn conflicts(&mut self, manager: &str, config: Value) -> String {
        let before = self.live.clone();
        let error = self.try_apply(manager, false, &config).unwrap_err();
        assert_eq!(self.live, before);
        assert!(matches!(error, ApplyError::Conflicts(_)), "{error}");
        error.to_string()
    }

    /// A write that gives the whole object.
    pub(super) fn put(&mut self, manager: &str, object: Value) {
        let object = self.object(&object);
        self.put_to(manager, "", object);
    }

    pub(super) fn put_to(&mut self, manager: &str, subresource: &str, mut object: Value) {
        self.now_s += 1;
        update(&self.write(manager, subresource), self.live.as_ref(), &mut object);
        self.store(object);
    }

    /// A write that changes some fields, by merge patch.
    pub(super) fn patch(&mut self, manager: &str, patch: Value) {
        self.patch_to(manager, "", patch);
    }

    pub(super) fn patch_to(&mut self, manager: &str, subresource: &str, patch: Value) {
        let mut object = self.live.clone().unwrap();
        json_patch::merge(&mut object, &patch);
        self.put_to(manager, subresource, object);
    }

    fn store(&mut self, mut object: Value) {
        if let Some(live) = &self.live {
            keep_times(live, &mut object);
        }
        assert_eq!(check(&object), Ok(()));
        self.live = Some(object);
    }

    pub(super) fn get(&self, pointer: &str) -> Value {
        self.live
            .as_ref()
            .and_then(|live| live.pointer(pointer))
            .cloned()
            .unwrap_or_default()
    }

    pub(super) fn entries(&self) -> Vec<Value> {
        self.get("/metadata/managedFields")
            .as_array()
            .cloned()
            .unwrap_or_default()
    }

    /// `fieldsV1` of a manager; `null` if it owns nothing. Sums up its entries.
    pub(super) fn owned(&self, manager: &str) -> Value {
        let entries = self.entries();
        let mut own = entries.iter().filter(|entry| entry["manager"] == manager);
        let first = own.next().map_or(Value::Null, |entry| entry["fieldsV1"].clone());
        assert!(own.next().is_none(), "more than one entry of {manager}");
        first
    }

    /// Seconds since the start at which a manager last wrote.
    pub(super) fn time(&self, manager: &str) -> i64 {
        let entries = self.entries();
        let entry = entries.iter().find(|entry| entry["manager"] == manager).unwrap();
        let time: Timestamp = entry["time"].as_str().unwrap().parse().unwrap();
        time.as_second() - 1_700_000_000
    }
}

pub(super) fn deployment() -> History {
    History::of("apps/v1", "Deployment")
}

pub(super) fn config_map() -> History {
    History::of("v1", "ConfigMap")
}
