//! Writes of roles and bindings: see [`crate::authz::escalation`].

use super::{Operation, Plugin, Request};
use crate::{
    authz::{
        self, escalation,
        rbac::{GROUP, Rbac},
    },
    status::Status,
};
use serde_json::Value;
use std::sync::Arc;

pub(super) struct Escalation {
    pub(super) rbac: Arc<Rbac>,
    pub(super) authorizer: authz::Chain,
}

impl Plugin for Escalation {
    fn name(&self) -> &'static str {
        "RBACEscalation"
    }

    fn validate(&self, request: &Request<'_>, object: Option<&Value>) -> Result<(), Status> {
        let attributes = request.attributes;
        let Some(object) = object else { return Ok(()) };
        if &*attributes.resource.group != GROUP || attributes.operation == Operation::Delete {
            return Ok(());
        }
        let resource = &attributes.resource.plural;
        escalation::check(
            &self.authorizer,
            &self.rbac,
            attributes.user,
            resource,
            object,
            request.old,
        )
    }
}
