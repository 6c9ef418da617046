//! What requests about objects do, by verb. Generic: the resource's row decides, code only where its hooks say so.

mod create;
mod delete;
mod list;
mod patch;
pub(crate) mod present;
mod subresource;
mod update;
mod watch;
pub(crate) mod write;

use crate::{
    authn::User,
    core::ApiServer,
    hooks,
    http::{Accept, Body, Payload, body, options::WriteOptions},
    managed_fields,
    request_info::RequestInfo,
    status::{Result, Status},
};
use bytes::Bytes;
use fairlead_schema::Resource;
use http::{HeaderMap, Response};
use jiff::Timestamp;
use std::sync::{Arc, Mutex};

/// Most text of all warnings of one answer, and of one, bytes: they travel in headers, which clients bound.
const MAX_WARNINGS: usize = 4 * 1024;
const MAX_WARNING: usize = 1024;

/// One request about objects, with everything that was found out about it.
pub(crate) struct Call {
    pub(crate) server: Arc<ApiServer>,
    pub(crate) resource: Arc<Resource>,
    pub(crate) info: RequestInfo,
    pub(crate) user: User,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) accept: Accept,
    /// One time for all that this request writes.
    pub(crate) now: Timestamp,
    pub(crate) method: http::Method,
    /// The connection, for answers that take it over (exec, port-forward).
    pub(crate) on_upgrade: Mutex<Option<hyper::upgrade::OnUpgrade>>,
    /// Told to the client in `Warning` headers.
    pub(crate) warnings: Mutex<Vec<String>>,
}

impl Call {
    /// Answers.
    pub(crate) async fn run(self: Arc<Self>, body: Bytes) -> Result<Response<Body>> {
        if let Some(text) = &self.resource.deprecation {
            self.warn(text.to_string());
        }
        let verb = self.info.verb.as_str();
        if !self.info.subresource.is_empty() {
            return subresource::run(&self, body).await;
        }
        // Rights may be about the name in a path, so a path with a name must be about that object.
        let named_create = verb == "create" && !self.info.name.is_empty();
        if named_create || !self.resource.verbs.iter().any(|it| &**it == verb) {
            return Err(Status::method_not_allowed(&self.resource, verb));
        }
        match verb {
            "get" | "list" if &*self.resource.kind == "ComponentStatus" => hooks::components::answer(&self),
            "get" => list::get(&self).await,
            "list" => list::list(&self).await,
            "watch" => watch::watch(&self).await,
            "create" => create::create(&self, &body).await,
            "update" => update::update(&self, &body).await,
            "patch" => patch::patch(&self, &body).await,
            "delete" => delete::delete(&self, &body).await,
            "deletecollection" => delete::delete_collection(&self, &body).await,
            other => Err(Status::method_not_allowed(&self.resource, other)),
        }
    }

    /// Tells the client something besides the answer. Source: RFC 7234 §5.5, code 299.
    pub(crate) fn warn(&self, mut text: String) {
        let mut warnings = self.warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let room = MAX_WARNINGS.saturating_sub(warnings.iter().map(String::len).sum());
        if room > 0 && !warnings.contains(&text) {
            text.truncate(text.floor_char_boundary(room.min(MAX_WARNING)));
            warnings.push(text);
        }
    }

    pub(crate) fn write_options(&self) -> Result<WriteOptions> {
        let options = WriteOptions::read(&self.query)?;
        managed_fields::check_manager_name(&options.field_manager).map_err(|why| {
            Status::bad_request(format!(
                "fieldManager: Invalid value: {:?}: {why}",
                options.field_manager
            ))
        })?;
        Ok(options)
    }

    /// Who manages the fields that this request sets: as it says, else the program's name.
    pub(crate) fn manager(&self, options: &WriteOptions) -> String {
        let agent = self
            .headers
            .get(http::header::USER_AGENT)
            .and_then(|it| it.to_str().ok());
        managed_fields::manager_name(&options.field_manager, agent.unwrap_or_default())
    }

    pub(crate) fn payload(&self, body: &Bytes) -> Result<Payload> {
        Payload::read(&self.resource.types, &self.headers, body)
    }

    pub(crate) fn json(&self, code: http::StatusCode, value: &serde_json::Value) -> Response<Body> {
        if self.accept.yaml {
            let text = serde_saphyr::to_string(value).unwrap_or_default();
            return body::with_type(code, "application/yaml", body::full(text));
        }
        body::json(code, value)
    }
}
