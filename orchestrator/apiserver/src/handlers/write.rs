//! What every write goes through: field checks, metadata that the server keeps, defaults, admission, ownership of fields,
//! validation, the conditional commit, and the next try when somebody else was faster.

use super::{Call, present};
use crate::{
    admission::{Attributes, Operation as Admitted},
    convert,
    crd::gate,
    hooks,
    http::{
        Payload,
        options::{FieldValidation, WriteOptions},
    },
    managed_fields::{self, Tracked, Write},
    object,
    status::{Cause, Result, Status},
    value::{MAX_DEPTH, deeper_than},
};
use fairlead_schema::{Resource, Scope, defaults, strict, validate};
use fairlead_store::{Durability, Entry, Expect, Key, Operation, StoreError, Txn};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;

/// Tries against writers who are faster, before the client is told. Each that fails is another writer's success.
const TRIES: usize = 256;

/// The part of an object that a request may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    /// All but the status, where that is a subresource.
    Main,
    /// The status.
    Status,
    /// What another subresource stands for; the caller changes nothing else.
    Other(&'a str),
}

impl<'p> Part<'p> {
    /// For `managedFields` and admission; empty for the object itself.
    pub(crate) fn subresource(&self) -> &'p str {
        match self {
            Self::Main => "",
            Self::Status => "status",
            Self::Other(name) => name,
        }
    }
}

/// What a write left behind.
pub(crate) enum Outcome {
    /// As stored.
    Stored(Arc<Entry>),
    /// As it would be stored (dry run), in the requested version.
    Dry(Value),
    /// The last finalizer went, and the object with it: as the client left it, in the requested version.
    Gone(Value),
}

impl Call {
    /// Unknown and duplicate fields are refused, warned about or dropped, as the client asked; then types are checked.
    pub(crate) fn check_fields(&self, payload: Payload, validation: FieldValidation) -> Result<Value> {
        let Payload { mut value, duplicates } = payload;
        let mut problems: Vec<String> = duplicates.iter().map(ToString::to_string).collect();
        problems.extend(unknown_fields(&self.resource, &mut value));
        match validation {
            FieldValidation::Ignore => {}
            FieldValidation::Warn => problems.into_iter().for_each(|problem| self.warn(problem)),
            FieldValidation::Strict if problems.is_empty() => {}
            FieldValidation::Strict => {
                let kind = format!("{}, Kind={}", self.resource.api_version(), self.resource.kind);
                let why = problems.join(", ");
                return Err(Status::bad_request(format!(
                    "{} in version {:?} cannot be handled as a {}: strict decoding error: {why}",
                    self.resource.kind, self.resource.version, self.resource.kind,
                ))
                .with_cause("", kind, ""));
            }
        }
        normalise(&self.resource, &mut value)?;
        Ok(value)
    }

    /// Whether the object says that it is what the path says.
    pub(crate) fn check_kind(&self, value: &mut Value) -> Result<()> {
        let api_version = self.resource.api_version();
        let (version, kind) = (value["apiVersion"].as_str(), value["kind"].as_str());
        if version.is_some_and(|it| !it.is_empty() && it != api_version)
            || kind.is_some_and(|it| !it.is_empty() && it != &*self.resource.kind)
        {
            return Err(Status::bad_request(format!(
                "the object provided is unrecognized (must be of type {}): {}, Kind={} does not match {api_version}, Kind={}",
                self.resource.kind,
                version.unwrap_or_default(),
                kind.unwrap_or_default(),
                self.resource.kind,
            )));
        }
        value["apiVersion"] = json!(api_version);
        value["kind"] = json!(*self.resource.kind);
        Ok(())
    }

    /// Namespace of the object: as the path says; the object may repeat it or be silent.
    pub(crate) fn check_namespace(&self, value: &mut Value) -> Result<()> {
        if self.resource.scope == Scope::Cluster {
            object::set_meta(value, "namespace", None);
            return Ok(());
        }
        let own = object::meta(value, "namespace");
        if !own.is_empty() && own != self.info.namespace {
            return Err(Status::bad_request(format!(
                "the namespace of the provided object does not match the namespace sent on the request ({own:?} \
                 against {:?})",
                self.info.namespace
            )));
        }
        object::set_meta(value, "namespace", Some(json!(self.info.namespace)));
        Ok(())
    }

    /// Defaults, admission, ownership and validation: makes of what the client wants what may be stored.
    ///
    /// `manager`: who owns what changed; `None` when the caller has seen to that (apply).
    pub(crate) fn admit(
        &self,
        old: Option<&Value>,
        new: &mut Value,
        part: Part<'_>,
        options: &WriteOptions,
        manager: Option<&str>,
    ) -> Result<()> {
        complete(&self.resource, new);
        let operation = if old.is_some() {
            Admitted::Update
        } else {
            Admitted::Create
        };
        let name = object::meta(new, "name").to_owned();
        let attributes = Attributes {
            operation,
            resource: &self.resource,
            subresource: part.subresource(),
            namespace: &self.info.namespace,
            name: &name,
            user: &self.user,
            dry_run: options.dry_run,
        };
        let admission = &self.server.admission;
        let warnings = admission.mutate(&attributes, old, new, &*self.server)?;
        warnings.into_iter().for_each(|text| self.warn(text));
        complete(&self.resource, new);
        if let Some(manager) = manager {
            let (version, tracked) = (self.resource.api_version(), self.tracked(part));
            managed_fields::update(&self.owner(manager, &part, &version, &tracked), old, new);
        }
        if deeper_than(new, MAX_DEPTH) {
            // It could be stored, and never be read again.
            let why = format!("exceeded max depth of {MAX_DEPTH}; flatten the object");
            return Err(Status::bad_request(format!(
                "{} {name:?}: {why}",
                self.resource.qualified()
            )));
        }
        let mut causes: Vec<Cause> = match (part, old) {
            (Part::Main, _) | (_, None) => validate::object(&self.resource, old, new),
            (_, Some(old)) => validate::subresource(&self.resource, part.subresource(), old, new),
        }
        .into_iter()
        .map(Cause::from)
        .collect();
        causes.extend(gate::judge(&self.resource, part.subresource(), old, new));
        if !causes.is_empty() {
            return Err(Status::invalid(&self.resource, &name, causes));
        }
        let warnings = admission.validate(&attributes, old, Some(new), &*self.server)?;
        warnings.into_iter().for_each(|text| self.warn(text));
        Ok(())
    }

    /// Asks admission about what is posted to a subresource and changes no object by itself.
    pub(crate) fn admit_subresource(&self, posted: &Value) -> Result<()> {
        let attributes = Attributes {
            operation: Admitted::Create,
            resource: &self.resource,
            subresource: &self.info.subresource,
            namespace: &self.info.namespace,
            name: &self.info.name,
            user: &self.user,
            dry_run: false,
        };
        let warnings = self
            .server
            .admission
            .validate(&attributes, None, Some(posted), &*self.server)?;
        warnings.into_iter().for_each(|text| self.warn(text));
        Ok(())
    }

    /// Which fields a write to this part can own. Source: upstream's `GetResetFields`.
    pub(crate) fn tracked(&self, part: Part<'_>) -> Tracked {
        match part {
            Part::Main if self.resource.subresource("status").is_some() => Tracked::except(&["status"]),
            Part::Status if self.resource.custom.is_some() => Tracked::only(&["status"]),
            Part::Status => Tracked::except(&["spec"]),
            Part::Main | Part::Other(_) => Tracked::All,
        }
    }

    /// What the tracking of owners needs to know of this write.
    pub(crate) fn owner<'a>(
        &'a self,
        manager: &'a str,
        part: &Part<'a>,
        api_version: &'a str,
        tracked: &'a Tracked,
    ) -> Write<'a> {
        Write {
            types: &self.resource.types,
            ty: self.resource.ty,
            api_version,
            kind: &self.resource.kind,
            manager,
            subresource: part.subresource(),
            tracked,
            versions: &[],
            now: self.now,
        }
    }

    /// Changes an object, or makes it where `create` allows: reads, lets `change` decide, admits, commits; all of it
    /// again when another writer was faster, unless the client insisted on a version.
    pub(crate) async fn modify(
        &self,
        part: Part<'_>,
        options: &WriteOptions,
        create: bool,
        change: &(dyn Fn(Option<&Value>) -> Result<Change> + Sync),
    ) -> Result<(Outcome, bool)> {
        let key = object::key(&self.resource, &self.info.namespace, &self.info.name)?;
        let mut last = None;
        for _ in 0..TRIES {
            let entry = self.server.cache.get(&key);
            if entry.is_none() && !create {
                return Err(Status::not_found(&self.resource, &self.info.name));
            }
            let old = entry
                .as_ref()
                .map(|entry| present::object_of(&self.resource, entry))
                .transpose()?;
            let Change { mut new, manager } = change(old.as_ref())?;
            let Some((entry, old)) = entry.zip(old) else {
                let made = super::create::store(self, new, options, manager.as_deref()).await;
                match made {
                    Err(status) if status.reason == "AlreadyExists" => {
                        last = Some(status);
                        continue;
                    }
                    made => return made.map(|made| (made, true)),
                }
            };
            self.keep(&old, &mut new, part)?;
            hooks::prepare_update(self, &old, &mut new, part)?;
            if let Some(same) = unchanged(&old, &new, &entry) {
                return Ok((same, false));
            }
            self.admit(Some(&old), &mut new, part, options, manager.as_deref())?;
            let allocation = hooks::allocate(self, &mut new, options)?;
            bump_generation(&self.resource, &old, &mut new);
            managed_fields::keep_times(&old, &mut new);
            if let Some(same) = unchanged(&old, &new, &entry) {
                return Ok((same, false));
            }
            if options.dry_run {
                return Ok((Outcome::Dry(new), false));
            }
            let gone = object::is_terminating(&new)
                && object::finalizers(&new).is_empty()
                && hooks::may_go(&self.resource, &new);
            let operation = if gone { Operation::Delete } else { self.put(&new) };
            match self.commit(key.clone(), Expect::At(entry.revision), operation).await {
                Ok(stored) => {
                    allocation.keep();
                    let Some(stored) = stored else {
                        hooks::after_delete(self, &old);
                        return Ok((Outcome::Gone(new), false));
                    };
                    hooks::after_update(self, &old, &new);
                    return Ok((Outcome::Stored(stored), false));
                }
                // A patch without a version has that of what it was applied to, so it goes on with the next; a client that
                // insists on a version is refused by `keep` then.
                Err(StoreError::Conflict { .. }) => {
                    last = Some(Status::modified(&self.resource, &self.info.name));
                }
                Err(error) => return Err(self.store_error(error)),
            }
        }
        Err(last.unwrap_or_else(|| Status::modified(&self.resource, &self.info.name)))
    }

    /// Puts back what a client may not change, and checks what it expects.
    fn keep(&self, old: &Value, new: &mut Value, part: Part<'_>) -> Result<()> {
        let name = &self.info.name;
        let own = object::meta(new, "name");
        if own != name {
            return Err(Status::bad_request(format!(
                "the name of the object ({own}) does not match the name on the URL ({name})"
            )));
        }
        let (expected, uid) = (object::meta(new, "resourceVersion"), object::meta(new, "uid"));
        let pinned = !expected.is_empty() && expected != "0";
        if pinned && expected != object::meta(old, "resourceVersion") {
            return Err(Status::modified(&self.resource, name));
        }
        let old_uid = object::meta(old, "uid");
        if !uid.is_empty() && uid != old_uid {
            let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {old_uid}");
            return Err(Status::conflict(&self.resource, name, why));
        }
        let has_status = self.resource.subresource("status").is_some();
        match part {
            Part::Main if has_status => restore(old, new, "status"),
            Part::Status if self.resource.custom.is_some() => {
                let status = new.get_mut("status").map(Value::take);
                let managed = new["metadata"].get_mut("managedFields").map(Value::take);
                *new = old.clone();
                match status {
                    Some(status) => new["status"] = status,
                    None => drop(new.as_object_mut().and_then(|it| it.remove("status"))),
                }
                object::set_meta(new, "managedFields", managed);
            }
            Part::Status => {
                let mut merged = old.clone();
                for name in ["metadata", "status"] {
                    restore(new, &mut merged, name);
                }
                *new = merged;
            }
            Part::Main | Part::Other(_) => {}
        }
        for name in [
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "resourceVersion",
            "selfLink",
        ] {
            let value = old["metadata"].get(name).cloned();
            object::set_meta(new, name, value);
        }
        Ok(())
    }

    /// The write of an object in its stored version.
    pub(crate) fn put(&self, value: &Value) -> Operation {
        let mut stored = value.clone();
        convert::to_storage(&self.resource, &mut stored);
        object::set_meta(&mut stored, "resourceVersion", None);
        Operation::Put(fairlead_store::encode(&stored))
    }

    /// Commits, and returns what is there since.
    pub(crate) async fn commit(
        &self,
        key: Key,
        expect: Expect,
        operation: Operation,
    ) -> Result<Option<Arc<Entry>>, StoreError> {
        let relaxed = self.resource.storage.as_ref().is_some_and(|storage| storage.relaxed);
        let durability = if relaxed {
            Durability::Relaxed
        } else {
            Durability::Durable
        };
        let event = self.server.cache.commit(Txn {
            key,
            expect,
            operation,
            durability,
        });
        Ok(event.await?.now)
    }

    /// What a client is told when the store could not.
    pub(crate) fn store_error(&self, error: StoreError) -> Status {
        match error {
            StoreError::Conflict { key, .. } => Status::modified(&self.resource, &key.name),
            StoreError::Closed(why) => Status::unavailable(format!("the server is stopping: {why}")),
            other => {
                tracing::error!(error = %other, resource = %self.resource.qualified(), "write failed");
                Status::internal(other)
            }
        }
    }
}

/// What a request makes of an object.
pub(crate) struct Change {
    /// All of it, in the requested version.
    pub(crate) new: Value,
    /// Who owns what changed; `None` when `managedFields` are settled.
    pub(crate) manager: Option<String>,
}

/// Complaints about fields that the kind does not have. Of a custom resource they are dropped here; of others
/// [`normalise`] drops them.
pub(crate) fn unknown_fields(resource: &Resource, value: &mut Value) -> Vec<String> {
    gate::read(resource, value).unwrap_or_else(|| {
        let problems = strict::check(&resource.types, resource.ty, value);
        problems.iter().map(ToString::to_string).collect()
    })
}

/// Writes defaults.
fn complete(resource: &Resource, value: &mut Value) {
    if resource.custom_schema.is_none() {
        defaults::apply(resource, value);
    }
    gate::complete(resource, value);
}

/// Brings values into the form in which they are stored.
///
/// # Errors
/// 400 that names the fields of the wrong type.
pub(crate) fn normalise(resource: &Resource, value: &mut Value) -> Result<()> {
    let normalised = match resource.custom_schema {
        Some(_) => gate::normalise(value),
        None => strict::normalise(&resource.types, resource.ty, value),
    };
    normalised.map_err(|problems| {
        let why: Vec<_> = problems.iter().map(ToString::to_string).collect();
        Status::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: {}",
            resource.kind,
            resource.version,
            resource.kind,
            why.join(", ")
        ))
    })
}

/// Copies a field, or removes it where the source has none.
pub(crate) fn restore(from: &Value, to: &mut Value, name: &str) {
    match from.get(name) {
        Some(value) => to[name] = value.clone(),
        None => {
            to.as_object_mut().and_then(|it| it.remove(name));
        }
    }
}

/// A write that changes nothing keeps the revision, or controllers would chase their own tails.
fn unchanged(old: &Value, new: &Value, entry: &Arc<Entry>) -> Option<Outcome> {
    (old == new).then(|| Outcome::Stored(Arc::clone(entry)))
}

fn bump_generation(resource: &Resource, old: &Value, new: &mut Value) {
    let generation = old["metadata"]["generation"].as_i64();
    if resource.generation && !object::same_spec(old, new) {
        object::set_meta(new, "generation", Some(json!(generation.unwrap_or(0) + 1)));
    }
}

/// Identity of a new object.
pub(crate) fn new_identity(resource: &Resource, value: &mut Value, now: Timestamp) {
    for name in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "resourceVersion",
    ] {
        object::set_meta(value, name, None);
    }
    object::set_meta(value, "uid", Some(json!(uuid::Uuid::new_v4().to_string())));
    object::set_meta(value, "creationTimestamp", Some(json!(object::time(now))));
    let generation = resource.generation.then(|| json!(1));
    object::set_meta(value, "generation", generation);
}
