//! Bootstrap tokens: what a machine joins with before it has a certificate. Each is a Secret
//! `kube-system/bootstrap-token-ID` of type `bootstrap.kubernetes.io/token`.

use super::User;
use crate::objects::{Objects, text};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::Value;

/// Type of the Secrets.
pub const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
/// Their names begin with this, the token's id follows.
pub const NAME_PREFIX: &str = "bootstrap-token-";
/// Group of all who come with such a token.
pub const GROUP: &str = "system:bootstrappers";
const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 16;

/// Id and secret of a token `ID.SECRET`, six and sixteen lower case letters and digits.
pub fn split(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |text: &str| text.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit());
    (id.len() == ID_BYTES && secret.len() == SECRET_BYTES && plain(id) && plain(secret)).then_some((id, secret))
}

/// The user that comes with a token. `now` in seconds since 1970.
///
/// # Errors
/// Why it is refused; nothing of the token is in it but its id.
pub fn user(id: &str, secret: &str, objects: &dyn Objects, now: i64) -> Result<User, String> {
    let name = format!("{NAME_PREFIX}{id}");
    let stored = objects
        .get("core/secrets", "kube-system", &name)
        .ok_or_else(|| format!("there is no Secret kube-system/{name}"))?;
    let refused = |why: &str| Err(format!("Secret kube-system/{name}: {why}"));
    if text(&stored, "/type") != SECRET_TYPE {
        return refused("is of another type");
    }
    if stored["metadata"].get("deletionTimestamp").is_some() {
        return refused("is being deleted");
    }
    let data = |key: &str| decoded(&stored["data"][key]);
    if data("token-id").as_deref() != Some(id) {
        return refused("token-id is not that of its name");
    }
    if !data("token-secret").is_some_and(|it| equal(it.as_bytes(), secret.as_bytes())) {
        return refused("the secret is another");
    }
    if let Some(end) = data("expiration") {
        match end.parse::<Timestamp>() {
            Ok(end) if end.as_second() > now => {}
            Ok(_) => return refused("has expired"),
            Err(_) => return refused("expiration is no RFC 3339 time"),
        }
    }
    if data("usage-bootstrap-authentication").as_deref() != Some("true") {
        return refused("usage-bootstrap-authentication is not \"true\"");
    }
    let extra = data("auth-extra-groups").unwrap_or_default();
    let extra: Vec<&str> = extra.split(',').map(str::trim).filter(|it| !it.is_empty()).collect();
    if let Some(wrong) = extra.iter().find(|it| !it.starts_with(&format!("{GROUP}:"))) {
        return refused(&format!("auth-extra-groups: {wrong:?} does not begin with {GROUP}:"));
    }
    Ok(User::authenticated(
        format!("system:bootstrap:{id}"),
        std::iter::once(GROUP).chain(extra),
    ))
}

fn decoded(value: &Value) -> Option<String> {
    String::from_utf8(STANDARD.decode(value.as_str()?).ok()?).ok()
}

/// Whether two texts are equal, in a time that does not depend on where they differ.
fn equal(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len() && left.iter().zip(right).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    struct One(Value);

    impl Objects for One {
        fn get(&self, prefix: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
            let found = (prefix, namespace, name) == ("core/secrets", "kube-system", "bootstrap-token-abcdef");
            found.then(|| Arc::new(self.0.clone()))
        }

        fn list(&self, _: &str, _: Option<&str>) -> Vec<Arc<Value>> {
            Vec::new()
        }
    }

    fn secret(change: impl Fn(&mut Value)) -> One {
        let encode = |text: &str| STANDARD.encode(text);
        let mut object = json!({
            "metadata": {"name": "bootstrap-token-abcdef", "namespace": "kube-system"}, "type": SECRET_TYPE,
            "data": {"token-id": encode("abcdef"), "token-secret": encode("0123456789abcdef"),
                "usage-bootstrap-authentication": encode("true"), "expiration": encode("2030-01-01T00:00:00Z"),
                "auth-extra-groups": encode("system:bootstrappers:nodes")},
        });
        change(&mut object);
        One(object)
    }

    const NOW: i64 = 1_800_000_000;

    #[test]
    fn who_brings_the_token_is_a_bootstrapper() {
        let user = user("abcdef", "0123456789abcdef", &secret(|_| ()), NOW).unwrap();
        assert_eq!(user.name, "system:bootstrap:abcdef");
        assert!(user.in_group(GROUP) && user.in_group("system:bootstrappers:nodes"));
        assert!(user.in_group("system:authenticated"));
    }

    #[test]
    fn anything_else_is_refused() {
        let good = "0123456789abcdef";
        let objects = secret(|_| ());
        assert!(
            user("abcdef", "0123456789abcdee", &objects, NOW)
                .unwrap_err()
                .contains("another")
        );
        assert!(user("ffffff", good, &objects, NOW).is_err());
        assert!(
            user("abcdef", good, &objects, 2_000_000_000)
                .unwrap_err()
                .contains("expired")
        );
        let changed = |path: &str, value: Value| {
            let objects = secret(|it| *it.pointer_mut(path).unwrap() = value.clone());
            user("abcdef", good, &objects, NOW).unwrap_err()
        };
        assert!(changed("/type", json!("Opaque")).contains("type"));
        assert!(changed("/data/usage-bootstrap-authentication", json!(STANDARD.encode("false"))).contains("usage"));
        assert!(
            changed("/data/auth-extra-groups", json!(STANDARD.encode("system:masters"))).contains("system:masters")
        );
        assert!(changed("/data/expiration", json!(STANDARD.encode("soon"))).contains("expiration"));
        assert!(changed("/data/token-id", json!(STANDARD.encode("abcdeg"))).contains("token-id"));
    }

    #[test]
    fn only_what_looks_like_one_is_looked_up() {
        assert_eq!(split("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for wrong in [
            "abcdef",
            "abcde.0123456789abcdef",
            "abcdef.0123456789abcdeF",
            "../..0.0123456789abcdef",
            "a.b.c",
        ] {
            assert_eq!(split(wrong), None, "{wrong}");
        }
    }
}
