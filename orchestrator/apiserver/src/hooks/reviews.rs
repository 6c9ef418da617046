//! Kinds that are answered and forgotten: who am I, may I, is this token good; and tokens of service accounts.

use crate::{
    authn::tokens,
    authz::review,
    handlers::Call,
    http::Body,
    status::{Result, Status},
};
use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::Value;

/// Answers a review.
pub(crate) fn answer(call: &Call, value: &Value) -> Result<Response<Body>> {
    let server = &call.server;
    let authorizer = &server.authorizer;
    let answered = match &*call.resource.kind {
        "SelfSubjectAccessReview" => review::self_subject_access(value, &call.user, authorizer)?,
        "SubjectAccessReview" => review::subject_access(value, authorizer)?,
        "LocalSubjectAccessReview" => review::local_subject_access(value, &call.info.namespace, authorizer)?,
        "SelfSubjectRulesReview" => review::self_subject_rules(value, &call.user, authorizer)?,
        "SelfSubjectReview" => review::self_subject(value, &call.user),
        "TokenReview" => review::token(value, &server.authenticator, &**server, call.now.as_second())?,
        _ => return Err(Status::method_not_allowed(&call.resource, "create")),
    };
    Ok(call.json(StatusCode::CREATED, &answered))
}

/// `serviceaccounts/token`.
pub(crate) fn token(call: &Call, body: &Bytes) -> Result<Response<Body>> {
    let server = &call.server;
    let request = server.builtin(&call.headers, body, "authentication.k8s.io/v1", "TokenRequest")?;
    call.admit_subresource(&request)?;
    let (answer, _) = tokens::request(
        &server.authenticator.keys,
        &request,
        &call.info.namespace,
        &call.info.name,
        &server.authenticator.audiences,
        &**server,
        call.now.as_second(),
    )?;
    Ok(call.json(StatusCode::CREATED, &answer))
}
