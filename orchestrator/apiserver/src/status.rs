//! [`Status`]: every error that a client sees, with upstream's reasons, codes and causes (`meta/v1 Status`).

use crate::{managed_fields::ApplyError, patch::PatchError};
use fairlead_schema::{Resource, validate};
use http::StatusCode;
use serde_json::{Value, json};
use std::{fmt, sync::Arc};

/// An error as the API says it.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// HTTP code.
    pub code: u16,
    /// As `NotFound`; clients decide by it.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// What it is about.
    pub details: Box<Details>,
    /// Token of a list that went on too long: where to go on, less consistently.
    pub continue_token: Option<String>,
}

/// What an error is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Object name, if one was meant.
    pub name: String,
    /// API group.
    pub group: String,
    /// Resource (or kind, for invalid objects).
    pub kind: String,
    /// UID, if one was meant.
    pub uid: String,
    /// One per fault.
    pub causes: Vec<Cause>,
    /// When to try again, seconds; 0: not said.
    pub retry_after_s: u32,
}

/// One fault among several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// As `FieldValueInvalid`; empty where there is none.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// As `spec.replicas`; empty where no field is at fault.
    pub field: String,
}

/// A resource, as errors name it: `pods`, `deployments.apps`. Made of a row, or of group and plural.
#[derive(Clone, Copy, Debug)]
pub struct What<'a> {
    group: &'a str,
    resource: &'a str,
}

impl<'a> From<&'a Resource> for What<'a> {
    fn from(resource: &'a Resource) -> Self {
        Self {
            group: &resource.group,
            resource: &resource.plural,
        }
    }
}

impl<'a> From<&'a Arc<Resource>> for What<'a> {
    fn from(resource: &'a Arc<Resource>) -> Self {
        Self::from(&**resource)
    }
}

impl<'a> From<(&'a str, &'a str)> for What<'a> {
    fn from((group, resource): (&'a str, &'a str)) -> Self {
        Self { group, resource }
    }
}

impl fmt::Display for What<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.group {
            "" => f.write_str(self.resource),
            group => write!(f, "{}.{group}", self.resource),
        }
    }
}

/// The result of a request.
pub type Result<T, E = Status> = std::result::Result<T, E>;

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.code, self.reason, self.message)
    }
}

impl std::error::Error for Status {}

impl Status {
    /// Any error.
    pub fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code: code.as_u16(),
            reason,
            message: message.into(),
            details: Box::default(),
            continue_token: None,
        }
    }

    fn about(mut self, what: What<'_>, name: &str) -> Self {
        self.details.group = what.group.to_owned();
        self.details.kind = what.resource.to_owned();
        self.details.name = name.to_owned();
        self
    }

    /// 404: no such object.
    pub fn not_found<'a>(what: impl Into<What<'a>>, name: &str) -> Self {
        let what = what.into();
        let message = format!("{} {name:?} not found", what);
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).about(what, name)
    }

    /// 404: no such path.
    pub fn no_such_path() -> Self {
        let message = "the server could not find the requested resource";
        Self::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    /// 409: the name is taken.
    pub fn already_exists<'a>(what: impl Into<What<'a>>, name: &str) -> Self {
        let what = what.into();
        let message = format!("{} {name:?} already exists", what);
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message).about(what, name)
    }

    /// 409: somebody else was faster, or a precondition does not hold.
    pub fn conflict<'a>(what: impl Into<What<'a>>, name: &str, why: impl fmt::Display) -> Self {
        let what = what.into();
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", what);
        Self::new(StatusCode::CONFLICT, "Conflict", message).about(what, name)
    }

    /// 409 after an update against an old resourceVersion.
    pub fn modified<'a>(what: impl Into<What<'a>>, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(what, name, why)
    }

    /// 403 with a reason: about an object, without a name about a resource, without a resource about a path.
    pub fn forbidden<'a>(what: impl Into<What<'a>>, name: &str, why: impl fmt::Display) -> Self {
        let what = what.into();
        let message = match (what.resource, name) {
            ("", _) => format!("forbidden: {why}"),
            (_, "") => format!("{what} is forbidden: {why}"),
            _ => format!("{what} {name:?} is forbidden: {why}"),
        };
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message).about(what, name)
    }

    /// 422: the object breaks rules, one cause for each.
    pub fn invalid(resource: &Resource, name: &str, causes: Vec<Cause>) -> Self {
        Self::invalid_kind(&resource.group, &resource.kind, name, causes)
    }

    /// 422 about an object of a kind, as upstream names it here.
    pub fn invalid_kind(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Self {
        let what = What { group, resource: kind };
        let each: Vec<_> = causes.iter().map(Cause::sentence).collect();
        let why = match &each[..] {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let message = format!("{what} {name:?} is invalid: {why}");
        let mut status = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message).about(what, name);
        status.details.causes = causes;
        status
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    /// 405.
    pub fn method_not_allowed<'a>(what: impl Into<What<'a>>, action: &str) -> Self {
        let what = what.into();
        let message = format!("{action} is not supported on resources of kind {:?}", what.to_string());
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message).about(what, "")
    }

    /// 406.
    pub fn not_acceptable(offered: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", offered.join(", "));
        Self::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message)
    }

    /// 415.
    pub fn unsupported_media_type(offered: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            offered.join(", ")
        );
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
    }

    /// 410: what was asked for is no longer kept; list again.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// 413.
    pub fn too_large(limit: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit}");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
    }

    /// 429: come back in so many seconds.
    pub fn too_many_requests(message: impl Into<String>, retry_after_s: u32) -> Self {
        let mut status = Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message);
        status.details.retry_after_s = retry_after_s;
        status
    }

    /// 504: not in time; come back in so many seconds.
    pub fn timeout(message: impl fmt::Display, retry_after_s: u32) -> Self {
        let mut status = Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", format!("Timeout: {message}"));
        status.details.retry_after_s = retry_after_s;
        status
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message)
    }

    /// 500.
    pub fn internal(error: impl fmt::Display) -> Self {
        let mut status = Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalError",
            format!("Internal error occurred: {error}"),
        );
        status.details.causes.push(Cause {
            reason: "",
            message: error.to_string(),
            field: String::new(),
        });
        status
    }

    /// With this cause too.
    #[must_use]
    pub fn with_cause(mut self, reason: &'static str, message: impl Into<String>, field: impl Into<String>) -> Self {
        self.details.causes.push(Cause::new(reason, message, field));
        self
    }

    /// As a `v1 Status`.
    pub fn to_json(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if *self.details != Details::default() {
            status["details"] = self.details.to_json();
        }
        if let Some(token) = &self.continue_token {
            status["metadata"]["continue"] = json!(token);
        }
        status
    }
}

impl Details {
    fn to_json(&self) -> Value {
        let mut details = json!({});
        let texts = [
            ("name", &self.name),
            ("group", &self.group),
            ("kind", &self.kind),
            ("uid", &self.uid),
        ];
        for (key, text) in texts {
            if !text.is_empty() {
                details[key] = json!(text);
            }
        }
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(|cause| {
                let mut one = json!({});
                for (key, text) in [
                    ("reason", cause.reason),
                    ("message", cause.message.as_str()),
                    ("field", cause.field.as_str()),
                ] {
                    if !text.is_empty() {
                        one[key] = json!(text);
                    }
                }
                one
            });
            details["causes"] = causes.collect();
        }
        if self.retry_after_s > 0 {
            details["retryAfterSeconds"] = json!(self.retry_after_s);
        }
        details
    }
}

impl Cause {
    /// A fault of a field; the field may be empty.
    pub fn new(reason: &'static str, message: impl Into<String>, field: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            field: field.into(),
        }
    }

    fn sentence(&self) -> String {
        if self.field.is_empty() {
            self.message.clone()
        } else {
            format!("{}: {}", self.field, self.message)
        }
    }
}

/// `Success`, as a deletion answers.
pub fn success(details: &Details) -> Value {
    let mut status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" });
    if *details != Details::default() {
        status["details"] = details.to_json();
    }
    status
}

impl From<PatchError> for Status {
    fn from(error: PatchError) -> Self {
        let code = StatusCode::from_u16(error.code()).unwrap_or(StatusCode::BAD_REQUEST);
        Self::new(code, error.reason(), error.to_string())
    }
}

impl From<ApplyError> for Status {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::BadRequest(text) => Self::bad_request(text),
            ApplyError::Conflicts(conflicts) => {
                let mut status = Self::new(StatusCode::CONFLICT, "Conflict", conflicts.to_string());
                for conflict in &conflicts.0 {
                    status = status.with_cause("FieldManagerConflict", conflict.message(), conflict.field());
                }
                status
            }
        }
    }
}

impl From<validate::Cause> for Cause {
    fn from(cause: validate::Cause) -> Self {
        Self {
            reason: cause.reason,
            message: cause.message,
            field: cause.field,
        }
    }
}
