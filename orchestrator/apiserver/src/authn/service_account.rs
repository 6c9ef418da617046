//! Names of service accounts as users and groups.

use super::names::{SERVICE_ACCOUNT_PREFIX, SERVICE_ACCOUNTS};

/// `system:serviceaccount:NAMESPACE:NAME`.
pub fn user_name(namespace: &str, name: &str) -> String {
    format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}")
}

/// The two groups of a namespace's service accounts.
pub fn groups(namespace: &str) -> [String; 2] {
    [SERVICE_ACCOUNTS.to_owned(), format!("{SERVICE_ACCOUNTS}:{namespace}")]
}

/// Namespace and name of a service account's user name; `None` if it is no such name, or holds what no object is called.
pub fn split(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(SERVICE_ACCOUNT_PREFIX)?.split_once(':')?;
    (is_label(namespace) && !name.is_empty() && name.split('.').all(is_label)).then_some((namespace, name))
}

/// RFC 1123: lower case letters, digits and inner dashes, at most 63.
fn is_label(text: &str) -> bool {
    let inner = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-';
    !text.is_empty() && text.len() <= 63 && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_objects_are_split() {
        assert_eq!(split(&user_name("ns", "a.b")), Some(("ns", "a.b")));
        for wrong in [
            "system:serviceaccount:ns",
            "system:serviceaccount:ns:",
            "system:serviceaccount::a",
            "bob",
            "system:serviceaccount:n/s:a",
            "system:serviceaccount:ns:a:b",
        ] {
            assert_eq!(split(wrong), None, "{wrong}");
        }
    }
}
