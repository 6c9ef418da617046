//! Who asks, and whether they may: client certificates of the cluster's authority, or tokens, which the API server reviews;
//! rights, which it reviews always. Both answers are remembered for a short while.

use super::{Refusal, route::Route};
use http::{HeaderMap, StatusCode, header};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{
    Client,
    api::{Api, PostParams},
};
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// How long a yes counts. A right that is taken away is gone after this.
const YES: Duration = Duration::from_secs(30);
/// How long a no counts.
const NO: Duration = Duration::from_secs(5);
/// Most answers that are remembered, of each kind.
const MOST: usize = 1024;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) groups: Vec<String>,
    pub(super) extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Common name and organizations of a certificate, which TLS has verified.
    pub(super) fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?;
        let mut groups: Vec<String> = subject
            .iter_organization()
            .filter_map(|it| it.as_str().ok().map(str::to_owned))
            .collect();
        groups.push("system:authenticated".to_owned());
        Some(Self {
            name: name.to_owned(),
            uid: String::new(),
            groups,
            extra: BTreeMap::new(),
        })
    }
}

/// Answers with the time until which they count.
struct Remembered<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K: Eq + Hash, V: Clone> Remembered<K, V> {
    fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    fn get(&self, key: &K) -> Option<V> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, value) = known.get(key)?;
        (Instant::now() < *until).then(|| value.clone())
    }

    fn put(&self, key: K, value: V, counts: Duration) {
        let now = Instant::now();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.retain(|_, (until, _)| now < *until);
        }
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(key, (now + counts, value));
    }
}

/// Lets in who may.
pub(super) struct Door {
    client: Client,
    node: String,
    tokens: Remembered<[u8; 32], Option<User>>,
    rights: Remembered<(User, &'static str, &'static str), bool>,
}

impl Door {
    pub(super) fn new(client: Client, node: String) -> Self {
        let (tokens, rights) = (Remembered::new(), Remembered::new());
        Self {
            client,
            node,
            tokens,
            rights,
        }
    }

    /// Finds out who asks.
    ///
    /// # Errors
    /// Nobody who is known; an API server that cannot be asked.
    pub(super) async fn who(&self, certificate: Option<&User>, headers: &HeaderMap) -> Result<User, Refusal> {
        if let Some(user) = certificate {
            return Ok(user.clone());
        }
        let unauthorized = || Refusal::new(StatusCode::UNAUTHORIZED, "Unauthorized");
        let given = headers.get(header::AUTHORIZATION).and_then(|it| it.to_str().ok());
        let (scheme, token) = given.and_then(|it| it.split_once(' ')).ok_or_else(unauthorized)?;
        if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
            return Err(unauthorized());
        }
        // The token itself is not kept.
        let key: [u8; 32] = Sha256::digest(token).into();
        if let Some(known) = self.tokens.get(&key) {
            return known.ok_or_else(unauthorized);
        }
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.trim().to_owned(),
                ..TokenReviewSpec::default()
            },
            ..TokenReview::default()
        };
        let reviews = Api::<TokenReview>::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await;
        let status = answer
            .map_err(|error| unavailable("token", &error))?
            .status
            .unwrap_or_default();
        let user = status
            .user
            .filter(|_| status.authenticated == Some(true))
            .map(|it| User {
                name: it.username.unwrap_or_default(),
                uid: it.uid.unwrap_or_default(),
                groups: it.groups.unwrap_or_default(),
                extra: it.extra.unwrap_or_default(),
            });
        self.tokens
            .put(key, user.clone(), if user.is_some() { YES } else { NO });
        user.ok_or_else(unauthorized)
    }

    /// Finds out whether they may.
    ///
    /// # Errors
    /// They may not; an API server that cannot be asked.
    pub(super) async fn may(&self, user: &User, route: &Route) -> Result<(), Refusal> {
        let (verb, subresources) = route.right();
        for subresource in subresources {
            if self.has(user, verb, subresource).await? {
                return Ok(());
            }
        }
        let wanted = subresources[0];
        let text = format!(
            "Forbidden (user={}, verb={verb}, resource=nodes, subresource={wanted}, node={})",
            user.name, self.node
        );
        Err(Refusal::new(StatusCode::FORBIDDEN, text))
    }

    async fn has(&self, user: &User, verb: &'static str, subresource: &'static str) -> Result<bool, Refusal> {
        let key = (user.clone(), verb, subresource);
        if let Some(known) = self.rights.get(&key) {
            return Ok(known);
        }
        let attributes = ResourceAttributes {
            verb: Some(verb.to_owned()),
            version: Some("v1".to_owned()),
            resource: Some("nodes".to_owned()),
            subresource: Some(subresource.to_owned()),
            name: Some(self.node.clone()),
            ..ResourceAttributes::default()
        };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: Some(user.uid.clone()).filter(|it| !it.is_empty()),
                groups: Some(user.groups.clone()),
                extra: Some(user.extra.clone()),
                resource_attributes: Some(attributes),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let reviews = Api::<SubjectAccessReview>::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await;
        let allowed = answer
            .map_err(|error| unavailable("right", &error))?
            .status
            .is_some_and(|it| it.allowed);
        self.rights.put(key, allowed, if allowed { YES } else { NO });
        Ok(allowed)
    }
}

fn unavailable(what: &str, error: &kube::Error) -> Refusal {
    let text = format!("the API server could not be asked about this {what}: {error}");
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn answers_are_forgotten() {
        let known = Remembered::new();
        known.put(1, true, YES);
        assert_eq!(known.get(&1), Some(true));
        tokio::time::advance(YES).await;
        assert_eq!(known.get(&1), None);
        for key in 0..10 * MOST {
            known.put(key, true, YES);
        }
        assert!(known.0.lock().unwrap().len() <= MOST);
        assert_eq!(known.get(&(10 * MOST - 1)), Some(true));
    }

    #[test]
    fn users_of_certificates() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut wanted = rcgen::CertificateParams::default();
        wanted.distinguished_name = rcgen::DistinguishedName::new();
        wanted.distinguished_name.push(rcgen::DnType::CommonName, "jane");
        wanted.distinguished_name.push(rcgen::DnType::OrganizationName, "devs");
        let certificate = wanted.self_signed(&key).unwrap();
        let user = User::of_certificate(certificate.der()).unwrap();
        assert_eq!(
            (&*user.name, user.groups),
            ("jane", vec!["devs".to_owned(), "system:authenticated".to_owned()])
        );
        assert!(User::of_certificate(&CertificateDer::from(vec![1, 2, 3])).is_none());
    }
}
