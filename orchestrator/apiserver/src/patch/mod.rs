//! Patches that the client computed: JSON patch, JSON merge patch and strategic merge patch. Pure: the object in, the
//! changed object out. Server-side apply is [`crate::managed_fields`].

mod json;
mod strategic;

pub use json::{MAX_COPIED_BYTES, MAX_OPERATIONS, json_patch};
pub use strategic::strategic_merge_patch;

use crate::value::{MAX_DEPTH, deeper_than};
use serde_json::Value;

/// Why a patch does not apply. [`PatchError::code`] and [`PatchError::reason`] go into the `Status`, the text into its
/// message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is malformed. Where upstream answers 500 to a malformed strategic merge patch (a merge key is
    /// missing, say), this is 400 too: trying again does not help.
    #[error("{0}")]
    BadRequest(String),
    /// The patch asks for more than is allowed.
    #[error("Request entity is too large: {0}")]
    TooLarge(String),
    /// The patch is well formed and does not fit this object: a `test` failed, a path is not there.
    #[error("the server rejected our request due to an error in our request: {0}")]
    Unprocessable(String),
}

impl PatchError {
    /// HTTP status code.
    pub fn code(&self) -> u16 {
        match self {
            Self::BadRequest(_) => 400,
            Self::TooLarge(_) => 413,
            Self::Unprocessable(_) => 422,
        }
    }

    /// `reason` of the `Status`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "BadRequest",
            Self::TooLarge(_) => "RequestEntityTooLarge",
            Self::Unprocessable(_) => "Invalid",
        }
    }
}

/// Applies a JSON merge patch (RFC 7396): `null` deletes, objects are merged, everything else replaces.
///
/// # Errors
/// [`PatchError::BadRequest`] for a patch that is no object, since an API object is always one.
pub fn merge_patch(object: &Value, patch: &Value) -> Result<Value, PatchError> {
    if !patch.is_object() {
        return Err(PatchError::BadRequest("Invalid JSON Patch".into()));
    }
    check_depth(object, patch)?;
    let mut patched = object.clone();
    json_patch::merge(&mut patched, patch);
    Ok(patched)
}

fn check_depth(object: &Value, patch: &Value) -> Result<(), PatchError> {
    if deeper_than(object, MAX_DEPTH) || deeper_than(patch, MAX_DEPTH) {
        return Err(PatchError::BadRequest(format!(
            "exceeded max depth of {MAX_DEPTH}; flatten the object"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn merge_patch_follows_the_rfc() {
        // RFC 7396 appendix A, those whose target and patch are objects.
        let cases = [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ];
        for (object, patch, wanted) in cases {
            assert_eq!(merge_patch(&object, &patch), Ok(wanted), "{object} {patch}");
        }
        let error = merge_patch(&json!({}), &json!([1])).unwrap_err();
        assert_eq!((error.code(), error.reason()), (400, "BadRequest"));
    }

    #[test]
    fn depth_is_bounded() {
        let deep = (0..=MAX_DEPTH).fold(json!(1), |inner, _| json!({"a": inner}));
        assert_eq!(merge_patch(&json!({}), &deep).unwrap_err().code(), 400);
        assert_eq!(merge_patch(&deep, &json!({})).unwrap_err().code(), 400);
    }
}
