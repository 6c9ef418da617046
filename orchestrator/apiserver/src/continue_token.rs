//! Tokens of paged lists: where the next page begins, and at which revision.

use crate::status::{Result, Status};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

/// Place in a paged list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContinueToken {
    /// Layout of the token.
    v: String,
    /// Revision of the first page; -1: the newest, pages may not fit together.
    rv: i64,
    /// `NAMESPACE/NAME` of the last object of the page before.
    start: String,
}

const LAYOUT: &str = "meta.k8s.io/v1";

impl ContinueToken {
    /// After this object, at this revision (`None`: the newest).
    pub fn after(revision: Option<u64>, namespace: &str, name: &str) -> Self {
        Self {
            v: LAYOUT.to_owned(),
            rv: revision.and_then(|it| i64::try_from(it).ok()).unwrap_or(-1),
            start: format!("{namespace}/{name}"),
        }
    }

    /// For the client.
    pub fn encode(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    /// From a client.
    ///
    /// # Errors
    /// 400: it is none of ours.
    pub fn decode(text: &str) -> Result<Self> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok();
        let token: Option<Self> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        match token {
            Some(token) if token.v == LAYOUT && token.start.contains('/') && token.rv >= -1 && token.rv != 0 => {
                Ok(token)
            }
            _ => Err(Status::bad_request(
                "continue key is not valid: it is none that this server gave out",
            )),
        }
    }

    /// The revision of the list; `None`: the newest.
    pub fn revision(&self) -> Option<u64> {
        u64::try_from(self.rv).ok()
    }

    /// Namespace and name of the last object before.
    pub fn start(&self) -> (&str, &str) {
        self.start.split_once('/').unwrap_or(("", &self.start))
    }

    /// The same place in the newest state: what a client gets with 410, to go on if it can live with gaps.
    #[must_use]
    pub fn inconsistent(mut self) -> Self {
        self.rv = -1;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trip(revision in proptest::option::of(1..=i64::MAX as u64), namespace in "[a-z]{0,9}", name in "[a-z./-]{1,9}") {
            let token = ContinueToken::after(revision, &namespace, &name);
            let back = ContinueToken::decode(&token.encode()).unwrap();
            prop_assert_eq!(back.revision(), revision);
            prop_assert_eq!(back.start(), (&*namespace, &*name));
        }

        #[test]
        fn garbage_is_refused_and_never_panics(text in ".{0,60}") {
            prop_assert!(ContinueToken::decode(&text).is_err());
        }
    }
}
