//! The two documents by which others verify our service account tokens (`OpenID` Connect Discovery 1.0, RFC 7517).

use super::keys::KeyRing;
use serde_json::{Value, json};

/// Path of [`configuration`].
pub const CONFIGURATION_PATH: &str = "/.well-known/openid-configuration";
/// Path of [`jwks`].
pub const JWKS_PATH: &str = "/openid/v1/jwks";
/// Content type of [`jwks`]; the other is plain JSON.
pub const JWKS_TYPE: &str = "application/jwk-set+json";

/// The discovery document. `server` is where clients reach us, as `https://10.96.0.1:443`.
pub fn configuration(keys: &KeyRing, server: &str) -> Value {
    json!({
        "issuer": keys.issuer,
        "jwks_uri": format!("{}{JWKS_PATH}", server.trim_end_matches('/')),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}

/// The public keys.
pub fn jwks(keys: &KeyRing) -> Value {
    let all = keys.ids().into_iter().filter_map(|id| {
        let key = keys.verifying(id)?;
        Some(json!({"use": "sig", "kty": "EC", "kid": id, "crv": "P-256", "alg": "ES256", "x": key.x, "y": key.y}))
    });
    json!({"keys": all.collect::<Vec<_>>()})
}
