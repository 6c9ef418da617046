//! [`Rejection`]: why a request is not served, as the client will read it in a `Status`.

use serde_json::{Value, json};
use std::fmt::Write as _;

/// A refusal with everything a `Status` (meta/v1) needs. Messages never hold tokens or secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Rejection {
    /// HTTP status.
    pub code: u16,
    /// As `Forbidden`: `Status.reason`.
    pub reason: &'static str,
    /// For people: `Status.message`.
    pub message: String,
    /// `Status.details`; boxed, for a `Result` should stay small.
    pub details: Box<Details>,
}

/// What a refusal is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Name of the object.
    pub name: String,
    /// Its API group.
    pub group: String,
    /// Its kind, or resource: whichever upstream puts there for the reason.
    pub kind: String,
    /// Single faults.
    pub causes: Vec<Cause>,
    /// Try again after so many seconds; 0: no hint.
    pub retry_after_s: u32,
}

/// One fault of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// As `FieldValueInvalid`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// As `spec.audiences[0]`.
    pub field: String,
}

impl Rejection {
    /// 400: the request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message, Details::default())
    }

    /// 401: nobody knows who asks. Says nothing about why, on purpose.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized", Details::default())
    }

    /// 403 about an object, or with an empty `name` about a resource, or with an empty `resource` about a path.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: impl std::fmt::Display) -> Self {
        let what = qualified(group, resource);
        let message = match (resource.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{what} is forbidden: {why}"),
            (false, false) => format!("{what} {name:?} is forbidden: {why}"),
        };
        Self::new(403, "Forbidden", message, Details::of(group, resource, name))
    }

    /// 404.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} not found", qualified(group, resource));
        Self::new(404, "NotFound", message, Details::of(group, resource, name))
    }

    /// 409: what is asked for does not fit what is there.
    pub fn conflict(group: &str, resource: &str, name: &str, why: impl std::fmt::Display) -> Self {
        let what = qualified(group, resource);
        let message = format!("Operation cannot be fulfilled on {what} {name:?}: {why}");
        Self::new(409, "Conflict", message, Details::of(group, resource, name))
    }

    /// 422: fields are wrong. `kind` is the kind, not the resource, as upstream has it here.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Self {
        let what = qualified(group, kind);
        let mut message = format!("{what} {name:?} is invalid: ");
        match causes.as_slice() {
            [one] => {
                let _ = write!(message, "{}: {}", one.field, one.message);
            }
            many => {
                let many: Vec<String> = many.iter().map(|it| format!("{}: {}", it.field, it.message)).collect();
                let _ = write!(message, "[{}]", many.join(", "));
            }
        }
        let details = Details {
            causes,
            ..Details::of(group, kind, name)
        };
        Self::new(422, "Invalid", message, details)
    }

    /// 500: our fault.
    pub fn internal(why: impl std::fmt::Display) -> Self {
        let message = format!("Internal error occurred: {why}");
        Self::new(500, "InternalError", message, Details::default())
    }

    fn new(code: u16, reason: &'static str, message: impl Into<String>, details: Details) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: Box::new(details),
        }
    }

    /// Adds one fault.
    #[must_use]
    pub fn with_cause(mut self, cause: Cause) -> Self {
        self.details.causes.push(cause);
        self
    }

    /// The `Status` object.
    pub fn to_status(&self) -> Value {
        let mut details = serde_json::Map::new();
        let texts = [
            ("name", &self.details.name),
            ("group", &self.details.group),
            ("kind", &self.details.kind),
        ];
        for (key, value) in texts {
            if !value.is_empty() {
                details.insert(key.to_owned(), json!(value));
            }
        }
        if !self.details.causes.is_empty() {
            let causes = self.details.causes.iter();
            let causes = causes.map(|it| json!({"reason": it.reason, "message": it.message, "field": it.field}));
            details.insert("causes".to_owned(), causes.collect());
        }
        if self.details.retry_after_s > 0 {
            details.insert("retryAfterSeconds".to_owned(), json!(self.details.retry_after_s));
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        // Upstream leaves details out only where nothing is known: 400, 401.
        if !details.is_empty() || self.code == 403 {
            status["details"] = Value::Object(details);
        }
        status
    }
}

impl Details {
    fn of(group: &str, kind: &str, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            group: group.to_owned(),
            kind: kind.to_owned(),
            ..Self::default()
        }
    }
}

/// `pods`, `deployments.apps`: how messages name a resource.
pub(crate) fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() {
        resource.to_owned()
    } else {
        format!("{resource}.{group}")
    }
}
