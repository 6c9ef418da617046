//! Who asks: a [`User`] from a client certificate, a token, or nothing.

pub mod bootstrap;
pub mod impersonate;
pub mod keys;
pub mod oidc;
pub mod service_account;
pub mod tokens;
pub mod x509;

use crate::{objects::Objects, status::Status};
use keys::KeyRing;
use std::{collections::BTreeMap, sync::Arc};
use tokens::TokenError;

/// Groups and names that the API defines.
pub mod names {
    /// Everyone whom we know.
    pub const AUTHENTICATED: &str = "system:authenticated";
    /// Everyone else.
    pub const UNAUTHENTICATED: &str = "system:unauthenticated";
    /// User name of everyone else.
    pub const ANONYMOUS: &str = "system:anonymous";
    /// May do everything; no rule can take it away.
    pub const MASTERS: &str = "system:masters";
    /// All nodes.
    pub const NODES: &str = "system:nodes";
    /// What a node's user name starts with.
    pub const NODE_PREFIX: &str = "system:node:";
    /// All service accounts; with `:NAMESPACE`, those of one namespace.
    pub const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
    /// What a service account's user name starts with; then `NAMESPACE:NAME`.
    pub const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";
}

/// Who makes a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Unique among users at one time.
    pub name: String,
    /// Unique over all time; empty where nothing gives one.
    pub uid: String,
    /// Groups, `system:authenticated` among them.
    pub groups: Vec<String>,
    /// What the authenticator knows besides; keys in lower case.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Who did not say who they are.
    pub fn anonymous() -> Self {
        Self {
            name: names::ANONYMOUS.to_owned(),
            groups: vec![names::UNAUTHENTICATED.to_owned()],
            ..Self::default()
        }
    }

    /// A user of these groups and of `system:authenticated`.
    pub fn authenticated(name: impl Into<String>, groups: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().map(Into::into).collect();
        if !groups.iter().any(|it| it == names::AUTHENTICATED) {
            groups.push(names::AUTHENTICATED.to_owned());
        }
        Self {
            name: name.into(),
            groups,
            ..Self::default()
        }
    }

    /// A service account as a user: `system:serviceaccount:NAMESPACE:NAME`.
    pub fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        let groups = service_account::groups(namespace);
        let mut user = Self::authenticated(service_account::user_name(namespace, name), groups);
        user.uid = uid.to_owned();
        user
    }

    /// Whether the user is in a group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|it| it == group)
    }
}

/// What a request brings to say who makes it. Its Debug output shows no token.
#[derive(Clone, Copy, Default)]
pub struct Credentials<'a> {
    /// The client certificate in DER, already verified against the CA by TLS.
    pub certificate: Option<&'a [u8]>,
    /// The value of the `Authorization` header.
    pub authorization: Option<&'a str>,
}

impl std::fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let certificate = self.certificate.map(<[u8]>::len);
        let authorization = self.authorization.map(|_| "redacted");
        f.debug_struct("Credentials")
            .field("certificate_bytes", &certificate)
            .field("authorization", &authorization)
            .finish()
    }
}

/// Tells who makes a request.
#[derive(Clone, Debug)]
pub struct Authenticator {
    /// Keys that sign and verify service account tokens.
    pub keys: Arc<KeyRing>,
    /// Audiences that name this server; tokens must have one of them.
    pub audiences: Vec<String>,
    /// Whether requests without credentials go on as `system:anonymous`.
    pub anonymous: bool,
}

impl Authenticator {
    /// Who makes the request. A certificate goes before a token, as upstream has it; credentials that are given and wrong
    /// are an error, never anonymous. `now` in seconds since 1970.
    ///
    /// # Errors
    /// 401 without a reason in it; the reason is logged here, the token never.
    pub fn authenticate(&self, credentials: Credentials<'_>, objects: &dyn Objects, now: i64) -> Result<User, Status> {
        if let Some(der) = credentials.certificate {
            match x509::user(der) {
                Ok(user) => return Ok(user),
                Err(reason) => {
                    // A certificate that names nobody may still come with a token that does.
                    tracing::debug!(%reason, "client certificate names no user");
                    if credentials.authorization.is_none() {
                        return Err(Status::unauthorized());
                    }
                }
            }
        }
        if let Some(header) = credentials.authorization {
            let Some(token) = bearer(header) else {
                tracing::debug!("authorization header holds no bearer token");
                return Err(Status::unauthorized());
            };
            if let Some((id, secret)) = bootstrap::split(token) {
                return bootstrap::user(id, secret, objects, now).map_err(|reason| {
                    tracing::debug!(%reason, "bootstrap token refused");
                    Status::unauthorized()
                });
            }
            let verified = tokens::verify(&self.keys, token, &self.audiences, objects, now);
            return verified.map(|it| it.user).map_err(|reason| {
                tracing::debug!(%reason, "token refused");
                Status::unauthorized()
            });
        }
        if self.anonymous {
            return Ok(User::anonymous());
        }
        Err(Status::unauthorized())
    }

    /// As [`Self::authenticate`] for a bare token, with its own audiences: what `TokenReview` asks. Empty `audiences`: the
    /// server's own.
    ///
    /// # Errors
    /// Why the token is refused; it holds nothing of the token.
    pub fn review(
        &self,
        token: &str,
        audiences: &[String],
        objects: &dyn Objects,
        now: i64,
    ) -> Result<tokens::Verified, TokenError> {
        let audiences = if audiences.is_empty() {
            &self.audiences
        } else {
            audiences
        };
        tokens::verify(&self.keys, token, audiences, objects, now)
    }
}

/// The token of `Authorization: Bearer TOKEN` (RFC 6750); the scheme in any case.
pub fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_decides_whether_there_is_a_token() {
        for (header, token) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Basic abc", None),
            ("Bearer", None),
            ("Bearer ", None),
            ("", None),
        ] {
            assert_eq!(bearer(header), token, "{header:?}");
        }
    }

    #[test]
    fn credentials_do_not_show_their_token() {
        let credentials = Credentials {
            certificate: Some(b"der"),
            authorization: Some("Bearer hush-hush"),
        };
        let shown = format!("{credentials:?}");
        assert!(!shown.contains("hush"), "{shown}");
    }
}
