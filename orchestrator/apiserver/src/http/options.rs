//! Parameters of requests: `ListOptions`, `CreateOptions`, `DeleteOptions` and their kin (`meta/v1`).

use crate::{
    request_info::parameters,
    status::{Cause, Result, Status},
};
use serde_json::Value;
use std::{borrow::Cow, collections::HashSet};

/// Parameters of get, list and watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// As sent.
    pub label_selector: String,
    /// As sent.
    pub field_selector: String,
    /// As sent: empty, `0` or a revision.
    pub resource_version: String,
    /// How `resource_version` is meant.
    pub resource_version_match: Option<Match>,
    /// Most objects of a page; 0: all.
    pub limit: usize,
    /// Token of the next page.
    pub continue_token: String,
    /// Wants changes.
    pub watch: bool,
    /// Understands bookmarks.
    pub bookmarks: bool,
    /// Wants the state as events before the changes (WatchList).
    pub send_initial_events: Option<bool>,
    /// Ends the watch after so many seconds.
    pub timeout_s: Option<u64>,
    /// What rows of a Table carry.
    pub include_object: IncludeObject,
}

/// `resourceVersionMatch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// This very revision.
    Exact,
    /// This or a newer one.
    NotOlderThan,
}

/// `includeObject` of a Table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// Its metadata.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

fn invalid(name: &str, value: &str, why: &str) -> Status {
    Status::bad_request(format!("parameter {name}: invalid value {value:?}: {why}"))
}

/// Parameters of a query; of several with one name the first, as authorization reads them.
fn first_of_each(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    let mut known = HashSet::new();
    parameters(query).filter(move |(name, _)| known.insert(name.clone()))
}

fn boolean(name: &str, value: &str) -> Result<bool> {
    match value {
        "true" | "1" | "True" | "TRUE" | "t" => Ok(true),
        "false" | "0" | "False" | "FALSE" | "f" | "" => Ok(false),
        other => Err(invalid(name, other, "must be true or false")),
    }
}

impl ListOptions {
    /// Reads a query.
    ///
    /// # Errors
    /// 400 that names the parameter; 422-like rules of upstream's validation come as 400 with a cause.
    pub fn read(query: &str, watch: bool) -> Result<Self> {
        let mut options = Self {
            watch,
            ..Self::default()
        };
        for (name, value) in first_of_each(query) {
            let value = value.into_owned();
            match &*name {
                "labelSelector" => options.label_selector = value,
                "fieldSelector" => options.field_selector = value,
                "resourceVersion" => options.resource_version = value,
                "resourceVersionMatch" => {
                    options.resource_version_match = match value.as_str() {
                        "" => None,
                        "Exact" => Some(Match::Exact),
                        "NotOlderThan" => Some(Match::NotOlderThan),
                        other => return Err(invalid(&name, other, "supported values: \"Exact\", \"NotOlderThan\"")),
                    }
                }
                "limit" => {
                    let limit: i64 = value.parse().map_err(|_| invalid(&name, &value, "must be a number"))?;
                    options.limit =
                        usize::try_from(limit).map_err(|_| invalid(&name, &value, "must not be negative"))?;
                }
                "continue" => options.continue_token = value,
                "allowWatchBookmarks" => options.bookmarks = boolean(&name, &value)?,
                "sendInitialEvents" => options.send_initial_events = Some(boolean(&name, &value)?),
                "timeoutSeconds" => {
                    options.timeout_s = Some(value.parse().map_err(|_| invalid(&name, &value, "must be a number"))?);
                }
                "includeObject" => {
                    options.include_object = match value.as_str() {
                        "None" => IncludeObject::None,
                        "" | "Metadata" => IncludeObject::Metadata,
                        "Object" => IncludeObject::Object,
                        other => return Err(invalid(&name, other, "supported values: None, Metadata, Object")),
                    }
                }
                _ => {}
            }
        }
        options.check()?;
        Ok(options)
    }

    /// Combinations that the API forbids.
    fn check(&self) -> Result<()> {
        let forbidden = |field: &str, why: &str| {
            let cause = Cause {
                reason: "FieldValueForbidden",
                message: format!("Forbidden: {why}"),
                field: field.to_owned(),
            };
            Err(Status::invalid_kind("meta.k8s.io", "ListOptions", "", vec![cause]))
        };
        let version = self.resource_version.as_str();
        if self.watch {
            if self.send_initial_events.is_some() && self.resource_version_match.is_none() {
                let why = "resourceVersionMatch is required when sendInitialEvents is set";
                return forbidden("sendInitialEvents", why);
            }
            if let Some(how) = self.resource_version_match {
                if self.send_initial_events.is_none() {
                    let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
                    return forbidden("resourceVersionMatch", why);
                }
                if how != Match::NotOlderThan {
                    let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
                    return forbidden("resourceVersionMatch", why);
                }
            }
            return Ok(());
        }
        if self.send_initial_events.is_some() {
            return forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list");
        }
        match self.resource_version_match {
            Some(_) if version.is_empty() => forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ),
            Some(_) if !self.continue_token.is_empty() => forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden when continue is provided",
            ),
            Some(Match::Exact) if version == "0" => forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
            ),
            _ if !self.continue_token.is_empty() && !matches!(version, "" | "0") => Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            )),
            _ => Ok(()),
        }
    }

    /// The revision asked for; `None` for the newest.
    ///
    /// # Errors
    /// 400 when it is no number.
    pub fn revision(&self) -> Result<Option<u64>> {
        match self.resource_version.as_str() {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                Status::bad_request(format!(
                    "Invalid value: {text:?}: resourceVersion must be an unsigned integer"
                ))
            }),
        }
    }
}

/// Parameters of create, update and patch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Do everything except keeping it.
    pub dry_run: bool,
    /// Who manages the fields that this request sets; empty: after the user agent.
    pub field_manager: String,
    /// What to do with unknown and duplicate fields.
    pub field_validation: FieldValidation,
    /// Take over what others manage (apply only).
    pub force: Option<bool>,
}

/// `fieldValidation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// Drop them.
    Ignore,
    /// Drop them with a warning.
    #[default]
    Warn,
    /// Refuse.
    Strict,
}

fn dry_run<'a>(values: impl IntoIterator<Item = &'a str>) -> Result<bool> {
    let mut dry = false;
    for value in values {
        match value {
            "" => {}
            "All" => dry = true,
            other => return Err(invalid("dryRun", other, "supported values: \"All\"")),
        }
    }
    Ok(dry)
}

impl WriteOptions {
    /// Reads a query.
    ///
    /// # Errors
    /// 400 that names the parameter.
    pub fn read(query: &str) -> Result<Self> {
        let mut options = Self::default();
        for (name, value) in parameters(query) {
            match &*name {
                "dryRun" => options.dry_run |= dry_run([&*value])?,
                "fieldManager" => options.field_manager = value.into_owned(),
                "fieldValidation" => {
                    options.field_validation = match &*value {
                        "Ignore" => FieldValidation::Ignore,
                        "" | "Warn" => FieldValidation::Warn,
                        "Strict" => FieldValidation::Strict,
                        other => return Err(invalid(&name, other, "supported values: Ignore, Warn, Strict")),
                    }
                }
                "force" => options.force = Some(boolean(&name, &value)?),
                _ => {}
            }
        }
        Ok(options)
    }
}

/// What happens to dependents of a deleted object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They live on without this owner.
    Orphan,
    /// They go later.
    Background,
    /// They go first.
    Foreground,
}

/// `meta/v1 DeleteOptions`, from the body and, where that is silent, from the query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Do everything except deleting.
    pub dry_run: bool,
    /// Seconds until the object must be gone; `None`: the kind's own.
    pub grace_period_s: Option<u64>,
    /// `None`: the kind's own.
    pub propagation: Option<Propagation>,
    /// Only if this is its uid.
    pub uid: Option<String>,
    /// Only if this is its resourceVersion.
    pub resource_version: Option<String>,
}

impl DeleteOptions {
    /// Reads query and body (`Null` when there is none).
    ///
    /// # Errors
    /// 400 that names the field.
    pub fn read(query: &str, body: &Value) -> Result<Self> {
        let mut options = Self::default();
        let propagation = |value: &str| match value {
            "" => Ok(None),
            "Orphan" => Ok(Some(Propagation::Orphan)),
            "Background" => Ok(Some(Propagation::Background)),
            "Foreground" => Ok(Some(Propagation::Foreground)),
            other => Err(invalid(
                "propagationPolicy",
                other,
                "supported values: Orphan, Background, Foreground",
            )),
        };
        let orphan = |orphan: bool| {
            if orphan {
                Propagation::Orphan
            } else {
                Propagation::Background
            }
        };
        let grace = |seconds: i64| u64::try_from(seconds).unwrap_or(0);
        for (name, value) in parameters(query) {
            match &*name {
                "dryRun" => options.dry_run |= dry_run([&*value])?,
                "gracePeriodSeconds" => {
                    let seconds = value.parse().map_err(|_| invalid(&name, &value, "must be a number"))?;
                    options.grace_period_s = Some(grace(seconds));
                }
                "propagationPolicy" => options.propagation = propagation(&value)?,
                "orphanDependents" => options.propagation = Some(orphan(boolean(&name, &value)?)),
                _ => {}
            }
        }
        let texts = body["dryRun"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        options.dry_run |= dry_run(texts)?;
        if let Some(seconds) = body["gracePeriodSeconds"].as_i64() {
            options.grace_period_s = Some(grace(seconds));
        }
        if let Some(value) = body["propagationPolicy"].as_str() {
            options.propagation = propagation(value)?;
        }
        if let Some(value) = body["orphanDependents"].as_bool() {
            if options.propagation.is_some() {
                return Err(Status::bad_request(
                    "orphanDependents and propagationPolicy cannot both be set",
                ));
            }
            options.propagation = Some(orphan(value));
        }
        let text = |value: &Value| value.as_str().map(str::to_owned);
        options.uid = text(&body["preconditions"]["uid"]);
        options.resource_version = text(&body["preconditions"]["resourceVersion"]);
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lists_refuse_what_upstream_refuses() {
        for (query, watch) in [
            ("resourceVersionMatch=Exact", false),
            ("resourceVersionMatch=Exact&resourceVersion=0", false),
            ("resourceVersionMatch=NotOlderThan&resourceVersion=5&continue=x", false),
            ("resourceVersion=5&continue=x", false),
            ("sendInitialEvents=true", false),
            ("sendInitialEvents=true", true),
            ("resourceVersionMatch=NotOlderThan", true),
            ("sendInitialEvents=true&resourceVersionMatch=Exact", true),
            ("limit=-1", false),
            ("limit=x", false),
            ("timeoutSeconds=x", true),
            ("allowWatchBookmarks=maybe", true),
        ] {
            // What cannot be read is a bad request; what can, and may not be asked together, is invalid.
            let code = ListOptions::read(query, watch).unwrap_err().code;
            let unreadable = ["limit", "timeout", "allow", "resourceVersion=5"]
                .iter()
                .any(|it| query.starts_with(it));
            assert_eq!(code, if unreadable { 400 } else { 422 }, "{query}");
        }
        let fine = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=7";
        let options = ListOptions::read(fine, true).unwrap();
        assert!(options.bookmarks && options.send_initial_events == Some(true) && options.timeout_s == Some(7));
        assert!(
            ListOptions::read("resourceVersion=x", false)
                .unwrap()
                .revision()
                .is_err()
        );
    }

    #[test]
    fn deletions_read_body_and_query() {
        let body =
            json!({ "propagationPolicy": "Foreground", "preconditions": { "uid": "u" }, "gracePeriodSeconds": 0 });
        let options = DeleteOptions::read("gracePeriodSeconds=9&dryRun=All", &body).unwrap();
        assert_eq!(options.propagation, Some(Propagation::Foreground));
        assert_eq!((options.grace_period_s, options.dry_run), (Some(0), true));
        assert_eq!(options.uid.as_deref(), Some("u"));
        assert!(DeleteOptions::read("propagationPolicy=Maybe", &Value::Null).is_err());
        assert!(DeleteOptions::read("dryRun=Some", &Value::Null).is_err());
    }
}
