//! Service account tokens: issued by `TokenRequest`, verified on every request together with what they are bound to.

use super::{User, keys::KeyRing, service_account};
use crate::{
    objects::{Objects, text, texts},
    status::{Cause, Status},
};
use jsonwebtoken::{Algorithm, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{fmt, sync::Arc};

/// Shortest life of a token, seconds: `TokenRequest.spec.expirationSeconds`.
pub const MIN_LIFE_S: i64 = 600;
/// Longest life of a token, seconds.
pub const MAX_LIFE_S: i64 = 1 << 32;
/// Life of a token that asks for none, seconds.
pub const DEFAULT_LIFE_S: i64 = 3600;
/// How far another server's clock may be ahead (`nbf`), and how long after its end a bound object counts as there, seconds.
const LEEWAY_S: i64 = 60;
/// Longer headers are no tokens of ours.
const MAX_TOKEN_BYTES: usize = 16 << 10;

const GROUP: &str = "authentication.k8s.io";

/// What a token says; public names of KEP-1205.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// For whom it is.
    pub aud: Vec<String>,
    /// End, seconds since 1970.
    pub exp: i64,
    /// When it was issued.
    pub iat: i64,
    /// Who issued it.
    pub iss: String,
    /// Its own id.
    pub jti: String,
    /// Beginning.
    pub nbf: i64,
    /// User name of the service account.
    pub sub: String,
    /// What it is bound to.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Bound,
}

/// `kubernetes.io` in the claims.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Of the service account, the pod and the secret.
    pub namespace: String,
    /// Always there.
    pub serviceaccount: Reference,
    /// The pod that mounts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    /// The secret that it lives as long as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    /// The node of the pod, or the one that it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
}

/// One object of one life: the uid changes when it is made again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    #[serde(default)]
    pub uid: String,
}

/// A new token. Debug output does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    /// The JWT.
    pub token: String,
    /// Its end, seconds since 1970.
    pub expires: i64,
    /// What it says.
    pub claims: Claims,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("token", &"redacted")
            .field("expires", &self.expires)
            .field("jti", &self.claims.jti)
            .finish_non_exhaustive()
    }
}

/// A good token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Whose it is.
    pub user: User,
    /// The asked audiences that it is for.
    pub audiences: Vec<String>,
}

/// Why a token is refused. Holds nothing of the token but names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a JWT of ours at all.
    #[error("invalid bearer token: not a service account token of this cluster")]
    Malformed,
    /// Signed by a key that we do not have, or not signed by it.
    #[error("invalid bearer token: signature not by a key of this cluster")]
    Signature,
    /// Another issuer's.
    #[error("invalid bearer token: other issuer")]
    Issuer,
    /// Too late.
    #[error("service account token has expired")]
    Expired,
    /// Too early.
    #[error("service account token is not valid yet")]
    NotYet,
    /// For somebody else.
    #[error("token audiences {has:?} is invalid for the target audiences {wanted:?}")]
    Audience {
        /// Of the token.
        has: Vec<String>,
        /// Any of these would do.
        wanted: Vec<String>,
    },
    /// What it was bound to is gone.
    #[error("service account token has been invalidated: {kind} {name:?} is gone")]
    Revoked {
        /// As `pod`.
        kind: &'static str,
        /// Of the object.
        name: String,
    },
}

/// Answers a `TokenRequest` for a service account: the object with `status` filled in, and the token for who needs it
/// otherwise. `audiences`: of the server, for requests without. `now` in seconds since 1970.
///
/// # Errors
/// 404 for what does not exist, 422 for a bad duration, 400 and 409 for a binding that does not fit.
pub fn request(
    keys: &KeyRing,
    request: &Value,
    namespace: &str,
    name: &str,
    audiences: &[String],
    objects: &dyn Objects,
    now: i64,
) -> Result<(Value, Issued), Status> {
    let account = objects.get("core/serviceaccounts", namespace, name);
    let account = account.ok_or_else(|| Status::not_found(("", "serviceaccounts"), name))?;
    let uid = text(&account, "/metadata/uid");
    let asked_uid = text(request, "/metadata/uid");
    if !asked_uid.is_empty() && asked_uid != uid {
        let why =
            format!("the UID in the token request ({asked_uid}) does not match the UID of the service account ({uid})");
        return Err(Status::conflict(("", "serviceaccounts"), name, why));
    }
    let life = match request.pointer("/spec/expirationSeconds") {
        None | Some(Value::Null) => DEFAULT_LIFE_S,
        Some(life) => life.as_i64().unwrap_or(0),
    };
    check_life(life)?;
    let asked: Vec<String> = texts(request, "/spec/audiences").map(str::to_owned).collect();
    let aud = if asked.is_empty() { audiences.to_vec() } else { asked };
    let mut bound = Bound {
        namespace: namespace.to_owned(),
        serviceaccount: Reference {
            name: name.to_owned(),
            uid: uid.to_owned(),
        },
        ..Bound::default()
    };
    if let Some(reference) = request.pointer("/spec/boundObjectRef").filter(|it| !it.is_null()) {
        bind(&mut bound, reference, objects)?;
    }
    let issued = issue(keys, bound, aud, life, now).map_err(Status::internal)?;
    let mut answer = request.clone();
    if answer.is_object() {
        answer["spec"]["audiences"] = json!(issued.claims.aud);
        answer["spec"]["expirationSeconds"] = json!(life);
        answer["status"] = json!({"token": issued.token, "expirationTimestamp": timestamp(issued.expires)});
        // As upstream: the answer carries the account's name, without a life of its own.
        answer["metadata"]["name"] = json!(name);
        answer["metadata"]["namespace"] = json!(namespace);
        answer["metadata"]["creationTimestamp"] = json!(timestamp(now));
    }
    Ok((answer, issued))
}

/// Signs a token. `life` in seconds, `now` in seconds since 1970.
///
/// # Errors
/// What went wrong with the signature.
pub fn issue(keys: &KeyRing, bound: Bound, aud: Vec<String>, life: i64, now: i64) -> Result<Issued, String> {
    let claims = Claims {
        aud,
        exp: now + life,
        iat: now,
        iss: keys.issuer.clone(),
        jti: uuid::Uuid::new_v4().to_string(),
        nbf: now,
        sub: service_account::user_name(&bound.namespace, &bound.serviceaccount.name),
        kubernetes: bound,
    };
    let (id, key) = keys.signing();
    let mut header = Header::new(Algorithm::ES256);
    header.typ = None;
    header.kid = Some(id.to_owned());
    let token = jsonwebtoken::encode(&header, &claims, key).map_err(|error| format!("signing a token: {error}"))?;
    Ok(Issued {
        token,
        expires: claims.exp,
        claims,
    })
}

fn check_life(life: i64) -> Result<(), Status> {
    let message = if life < MIN_LIFE_S {
        "may not specify a duration less than 10 minutes"
    } else if life > MAX_LIFE_S {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(());
    };
    let cause = Cause {
        reason: "FieldValueInvalid",
        message: format!("Invalid value: {life}: {message}"),
        field: "spec.expirationSeconds".to_owned(),
    };
    Err(Status::invalid_kind(GROUP, "TokenRequest", "", vec![cause]))
}

fn bind(bound: &mut Bound, reference: &Value, objects: &dyn Objects) -> Result<(), Status> {
    let (version, kind, name) = (
        text(reference, "/apiVersion"),
        text(reference, "/kind"),
        text(reference, "/name"),
    );
    let find = |prefix: &str, namespace: &str, resource| {
        objects
            .get(prefix, namespace, name)
            .ok_or_else(|| Status::not_found(("", resource), name))
    };
    let refer = |object: &Value| Reference {
        name: name.to_owned(),
        uid: text(object, "/metadata/uid").to_owned(),
    };
    let (object, slot) = match (version, kind) {
        ("v1", "Pod") => {
            let pod = find("core/pods", &bound.namespace, "pods")?;
            let (own, other) = (&bound.serviceaccount.name, text(&pod, "/spec/serviceAccountName"));
            if own != other {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {own:?} to pod running with different serviceaccount name."
                )));
            }
            let node = text(&pod, "/spec/nodeName");
            if !node.is_empty() {
                // The node may be unknown, as in a cluster that runs static pods before it has registered.
                let object = objects.get("core/nodes", "", node);
                let uid = object
                    .as_deref()
                    .map(|it| text(it, "/metadata/uid").to_owned())
                    .unwrap_or_default();
                bound.node = Some(Reference {
                    name: node.to_owned(),
                    uid,
                });
            }
            (pod, &mut bound.pod)
        }
        ("v1", "Secret") => (find("core/secrets", &bound.namespace, "secrets")?, &mut bound.secret),
        ("v1", "Node") => (find("core/nodes", "", "nodes")?, &mut bound.node),
        _ => {
            return Err(Status::bad_request(format!(
                "cannot bind token for serviceaccount {:?} to object of type {version}, Kind={kind}",
                bound.serviceaccount.name
            )));
        }
    };
    let reference_uid = text(reference, "/uid");
    let made = refer(&object);
    if !reference_uid.is_empty() && reference_uid != made.uid {
        let why = format!(
            "the UID in the bound object reference ({reference_uid}) does not match the UID in record. The object might \
             have been deleted and then recreated"
        );
        return Err(Status::conflict(("", kind), name, why));
    }
    *slot = Some(made);
    Ok(())
}

/// Checks a token: signature, issuer, time, audience, and that the objects it is bound to are still those. `audiences`: one
/// of these must be in the token. `now` in seconds since 1970.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify(
    keys: &KeyRing,
    token: &str,
    audiences: &[String],
    objects: &dyn Objects,
    now: i64,
) -> Result<Verified, TokenError> {
    let claims = signed_claims(keys, token)?;
    if claims.iss != keys.issuer {
        return Err(TokenError::Issuer);
    }
    if now >= claims.exp {
        return Err(TokenError::Expired);
    }
    if now + LEEWAY_S < claims.nbf {
        return Err(TokenError::NotYet);
    }
    let matched: Vec<String> = audiences.iter().filter(|it| claims.aud.contains(it)).cloned().collect();
    if matched.is_empty() {
        return Err(TokenError::Audience {
            has: claims.aud.clone(),
            wanted: audiences.to_vec(),
        });
    }
    let user = bound_user(&claims, objects, now)?;
    Ok(Verified {
        user,
        audiences: matched,
    })
}

fn signed_claims(keys: &KeyRing, token: &str) -> Result<Arc<Claims>, TokenError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(TokenError::Malformed);
    }
    if let Some(claims) = keys.known(token) {
        return Ok(claims);
    }
    let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Malformed)?;
    let key = header
        .kid
        .as_deref()
        .and_then(|id| keys.verifying(id))
        .ok_or(TokenError::Signature)?;
    let mut validation = Validation::new(Algorithm::ES256);
    // Times and audiences are ours to check: by the caller's clock, and with errors that tell them apart.
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    let data = jsonwebtoken::decode::<Claims>(token, &key.key, &validation).map_err(|error| match error.kind() {
        jsonwebtoken::errors::ErrorKind::InvalidSignature | jsonwebtoken::errors::ErrorKind::InvalidAlgorithm => {
            TokenError::Signature
        }
        _ => TokenError::Malformed,
    })?;
    let claims = Arc::new(data.claims);
    keys.remember(token, Arc::clone(&claims));
    Ok(claims)
}

fn bound_user(claims: &Claims, objects: &dyn Objects, now: i64) -> Result<User, TokenError> {
    let Bound {
        namespace,
        serviceaccount,
        pod,
        secret,
        node,
    } = &claims.kubernetes;
    if claims.sub != service_account::user_name(namespace, &serviceaccount.name) {
        return Err(TokenError::Malformed);
    }
    let check = |kind, prefix: &str, namespace: &str, reference: &Reference| {
        let object = objects.get(prefix, namespace, &reference.name);
        let same = object.is_some_and(|it| text(&it, "/metadata/uid") == reference.uid && !long_gone(&it, now));
        if same {
            Ok(())
        } else {
            Err(TokenError::Revoked {
                kind,
                name: reference.name.clone(),
            })
        }
    };
    check("service account", "core/serviceaccounts", namespace, serviceaccount)?;
    let mut user = User::service_account(namespace, &serviceaccount.name, &serviceaccount.uid);
    let mut extra = |key: &str, value: &str| {
        user.extra
            .insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
    };
    extra("credential-id", &format!("JTI={}", claims.jti));
    if let Some(secret) = secret {
        check("secret", "core/secrets", namespace, secret)?;
    }
    if let Some(pod) = pod {
        check("pod", "core/pods", namespace, pod)?;
        extra("pod-name", &pod.name);
        extra("pod-uid", &pod.uid);
    }
    if let Some(node) = node {
        // A pod's node is information; a token that is bound to the node itself dies with it.
        if pod.is_none() {
            check("node", "core/nodes", "", node)?;
        }
        extra("node-name", &node.name);
        if !node.uid.is_empty() {
            extra("node-uid", &node.uid);
        }
    }
    Ok(user)
}

/// Whether an object's own end is past; until then a terminating pod still needs its token.
fn long_gone(object: &Value, now: i64) -> bool {
    let Some(at) = object.pointer("/metadata/deletionTimestamp").and_then(Value::as_str) else {
        return false;
    };
    at.parse::<jiff::Timestamp>()
        .is_ok_and(|at| at.as_second() + LEEWAY_S < now)
}

/// RFC 3339 with whole seconds, as the API writes times.
fn timestamp(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .map(|it| it.to_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
