//! Forms of names and keys, and what upstream says about those that have not that form. Every function returns the
//! complaints, none when all is well. Sources: RFC 1123, RFC 1035, "Object Names and IDs", "Labels and Selectors".

use crate::resource::Resource;

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const LABEL_1035: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const KEY: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

/// Length of the random end of a generated name.
pub const SUFFIX_LENGTH: usize = 5;
/// What is left of `generateName` so that the name is a DNS label.
const MAX_GENERATED_PREFIX: usize = 63 - SUFFIX_LENGTH;

/// The name made of `metadata.generateName` and a random suffix.
pub fn generated(prefix: &str, suffix: &str) -> String {
    let end = (0..=prefix.len().min(MAX_GENERATED_PREFIX))
        .rev()
        .find(|it| prefix.is_char_boundary(*it));
    format!("{}{suffix}", &prefix[..end.unwrap_or(0)])
}

/// Which form the names of a kind have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Subdomain,
    Label,
    Label1035,
    PathSegment,
    /// A subdomain that leaves room for what is appended.
    Short(usize),
    Address,
}

fn form(resource: &Resource) -> Form {
    if resource.custom.is_some() {
        return Form::Subdomain;
    }
    match (&*resource.group, &*resource.plural) {
        ("", "namespaces") | ("apps", "statefulsets") => Form::Label,
        ("", "services") => Form::Label1035,
        ("rbac.authorization.k8s.io" | "flowcontrol.apiserver.k8s.io" | "certificates.k8s.io", _)
        | ("apiregistration.k8s.io", _) => Form::PathSegment,
        // A Job of a CronJob gets eleven characters more.
        ("batch", "cronjobs") => Form::Short(52),
        ("storage.k8s.io", "csidrivers") => Form::Short(63),
        ("networking.k8s.io", "ipaddresses") => Form::Address,
        _ => Form::Subdomain,
    }
}

/// Complaints about the name of an object of this resource. `prefix`: about its `generateName`.
pub fn object_name(resource: &Resource, name: &str, prefix: bool) -> Vec<String> {
    let masked;
    let masked = match name.strip_suffix('-') {
        // A prefix may end with a dash: something follows.
        Some(rest) if prefix && !rest.is_empty() => {
            masked = format!("{rest}a");
            masked.as_str()
        }
        _ => name,
    };
    match form(resource) {
        Form::Subdomain => dns1123_subdomain(masked),
        Form::Label => dns1123_label(masked),
        Form::Label1035 => dns1035_label(masked),
        Form::PathSegment => path_segment(name, prefix),
        Form::Short(at_most) => {
            let mut all = dns1123_subdomain(masked);
            if name.len() > at_most {
                all.push(too_long(at_most));
            }
            all
        }
        Form::Address => match name.parse::<std::net::IpAddr>() {
            Ok(address) if address.to_string() == name => Vec::new(),
            _ => vec!["must be a valid IP address in canonical form".into()],
        },
    }
}

fn too_long(at_most: usize) -> String {
    format!("must be no more than {at_most} characters")
}

fn too_many_bytes(at_most: usize) -> String {
    format!("must be no more than {at_most} bytes")
}

fn pattern(message: &str, pattern: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|it| format!("'{it}', ")).collect();
    if examples.is_empty() {
        return format!("{message} (regex used for validation is '{pattern}')");
    }
    format!(
        "{message} (e.g. {}regex used for validation is '{pattern}')",
        examples.join(" or ")
    )
}

fn is_lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = bytes.first().zip(bytes.last());
    ends.is_some_and(|(first, last)| is_lower(*first) && is_lower(*last))
        && bytes.iter().all(|it| is_lower(*it) || *it == b'-')
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

/// A DNS label of RFC 1123: at most 63 of `a-z`, `0-9` and `-`.
pub fn dns1123_label(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    if text.len() > 63 {
        all.push(too_long(63));
    }
    if !is_label(text) {
        all.push(if is_subdomain(text) {
            "must not contain dots".into()
        } else {
            let message = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                           start and end with an alphanumeric character";
            pattern(message, LABEL, &["my-name", "123-abc"])
        });
    }
    all
}

/// Labels with dots between them, at most 253 characters.
pub fn dns1123_subdomain(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    if text.len() > 253 {
        all.push(too_long(253));
    }
    if !is_subdomain(text) {
        let message = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and \
                       must start and end with an alphanumeric character";
        all.push(pattern(message, SUBDOMAIN, &["example.com"]));
    }
    all
}

/// `*.` and a subdomain.
pub fn wildcard_subdomain(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    if text.len() > 253 {
        all.push(too_long(253));
    }
    if !text.strip_prefix("*.").is_some_and(is_subdomain) {
        let message = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must \
                       consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character";
        all.push(pattern(message, &format!(r"\*\.{SUBDOMAIN}"), &["*.example.com"]));
    }
    all
}

/// A DNS label of RFC 1035: as [`dns1123_label`], and it starts with a letter.
pub fn dns1035_label(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    if text.len() > 63 {
        all.push(too_long(63));
    }
    if !(is_label(text) && text.starts_with(|it: char| it.is_ascii_lowercase())) {
        let message = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
                       alphabetic character, and end with an alphanumeric character";
        all.push(pattern(message, LABEL_1035, &["my-name", "abc-123"]));
    }
    all
}

/// What can stand between two slashes of a path.
pub fn path_segment(text: &str, prefix: bool) -> Vec<String> {
    if !prefix && matches!(text, "." | "..") {
        return vec![format!("may not be '{text}'")];
    }
    let bad = ["/", "%"].iter().filter(|it| text.contains(**it));
    bad.map(|it| format!("may not contain '{it}'")).collect()
}

fn is_key(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = bytes.first().zip(bytes.last());
    ends.is_some_and(|(first, last)| first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric())
        && bytes
            .iter()
            .all(|it| it.is_ascii_alphanumeric() || matches!(it, b'-' | b'_' | b'.'))
}

const KEY_MESSAGE: &str =
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const KEY_EXAMPLES: [&str; 3] = ["MyName", "my.name", "123-abc"];

/// A label's or annotation's key, a finalizer, a resource: a name, perhaps behind a subdomain and a slash.
pub fn qualified_name(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    let name = match text.split_once('/') {
        None => text,
        Some((_, name)) if name.contains('/') => {
            let form = pattern(KEY_MESSAGE, KEY, &KEY_EXAMPLES);
            return vec![format!(
                "a valid label key {form} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
        Some(("", name)) => {
            all.push("prefix part must be non-empty".into());
            name
        }
        Some((prefix, name)) => {
            all.extend(dns1123_subdomain(prefix).iter().map(|it| format!("prefix part {it}")));
            name
        }
    };
    if name.is_empty() {
        all.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        all.push(format!("name part {}", too_many_bytes(63)));
    }
    if !is_key(name) {
        all.push(format!("name part {}", pattern(KEY_MESSAGE, KEY, &KEY_EXAMPLES)));
    }
    all
}

/// A label's value: empty or as a key's name.
pub fn label_value(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    if text.len() > 63 {
        all.push(too_many_bytes(63));
    }
    if !text.is_empty() && !is_key(text) {
        let message = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and \
                       must start and end with an alphanumeric character";
        all.push(pattern(
            message,
            &format!("({KEY})?"),
            &["MyValue", "my_value", "12345"],
        ));
    }
    all
}

/// A name of a port: at most 15 of `a-z`, `0-9` and `-`, a letter among them. Source: RFC 6335 §5.1.
pub fn port_name(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    if text.len() > 15 {
        all.push(too_long(15));
    }
    if text.is_empty() || !text.bytes().all(|it| is_lower(it) || it == b'-') {
        all.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !text.bytes().any(|it| it.is_ascii_lowercase()) {
        all.push("must contain at least one letter (a-z)".into());
    }
    if text.contains("--") {
        all.push("must not contain consecutive hyphens".into());
    }
    if text.starts_with('-') || text.ends_with('-') {
        all.push("must not begin or end with a hyphen".into());
    }
    all
}

/// A name of an environment variable. Source: KEP-4369.
pub fn environment_name(text: &str) -> Vec<String> {
    if text.is_empty() {
        return vec!["environment variable name must be non-empty".into()];
    }
    if text.chars().all(|it| (' '..='~').contains(&it) && it != '=') {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".into()]
}

/// A key of a `ConfigMap` or Secret, which becomes a file's name.
pub fn config_key(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    if text.len() > 253 {
        all.push(too_long(253));
    }
    if text.is_empty()
        || !text
            .bytes()
            .all(|it| it.is_ascii_alphanumeric() || matches!(it, b'-' | b'.' | b'_'))
    {
        let message = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        all.push(pattern(
            message,
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match text {
        "." => all.push("must not be '.'".into()),
        ".." => all.push("must not be '..'".into()),
        _ if text.starts_with("..") => all.push("must not start with '..'".into()),
        _ => {}
    }
    all
}

/// A percentage such as `25%`.
pub fn percent(text: &str) -> Vec<String> {
    let digits = text.strip_suffix('%').unwrap_or_default();
    if !digits.is_empty() && digits.bytes().all(|it| it.is_ascii_digit()) {
        return Vec::new();
    }
    let message = "a valid percent string must be a numeric string followed by an ending '%'";
    vec![pattern(message, "[0-9]+%", &["1%", "93%"])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Registry;

    #[test]
    fn names_have_the_form_of_their_kind() {
        let registry = Registry::builtin();
        let is_name = |group: &str, plural: &str, name: &str| {
            object_name(registry.resource(group, "v1", plural).unwrap(), name, false).is_empty()
        };
        for (group, plural, good, bad) in [
            (
                "",
                "pods",
                &["a", "a.b-c", "0"] as &[&str],
                &["", "A", "a_b", "-a", "a-", "a..b", ".a"] as &[&str],
            ),
            ("", "namespaces", &["a-b", "0a"], &["a.b", "A"]),
            ("", "services", &["a-1"], &["1a", "a.b", ""]),
            (
                "rbac.authorization.k8s.io",
                "roles",
                &["system:node", "A b"],
                &["a/b", "..", "50%"],
            ),
            (
                "batch",
                "cronjobs",
                &["a"],
                &["a123456789b123456789c123456789d123456789e123456789fgh"],
            ),
            (
                "networking.k8s.io",
                "ipaddresses",
                &["10.96.0.1", "fd00::1"],
                &["10.96.0.01", "fd00:0::1", "x"],
            ),
        ] {
            for name in good {
                assert!(is_name(group, plural, name), "{plural} {name}");
            }
            for name in bad {
                assert!(!is_name(group, plural, name), "{plural} {name}");
            }
        }
        let pods = registry.resource("", "v1", "pods").unwrap();
        assert!(object_name(pods, "web-", true).is_empty());
        assert!(!object_name(pods, "-", true).is_empty());
    }

    #[test]
    fn keys_and_values() {
        for good in ["a", "a/b", "example.com/My_name.1", "0"] {
            assert!(qualified_name(good).is_empty(), "{good}");
        }
        for bad in ["", "/a", "a/", "a/b/c", "-a", "a b", "A.com/b", "ü"] {
            assert!(!qualified_name(bad).is_empty(), "{bad}");
        }
        assert!(label_value("").is_empty() && label_value("A.b_c-1").is_empty());
        assert!(!label_value("a b").is_empty() && !label_value(&"a".repeat(64)).is_empty());
        assert!(port_name("http-2").is_empty());
        for bad in ["", "1", "a--b", "-a", "A", "a23456789012345b"] {
            assert!(!port_name(bad).is_empty(), "{bad}");
        }
        assert!(environment_name("a.b C").is_empty() && !environment_name("a=b").is_empty());
        assert!(config_key("..a").len() == 1 && config_key("a/b").len() == 1 && config_key("a.b").is_empty());
        assert!(percent("25%").is_empty() && !percent("x%").is_empty() && !percent("%").is_empty());
    }

    #[test]
    fn messages_are_those_that_clients_know() {
        assert_eq!(
            dns1123_label("A"),
            [
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
              end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
              '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
    }

    #[test]
    fn generated_names_fit() {
        assert_eq!(generated("web-", "abcde"), "web-abcde");
        assert_eq!(generated(&"a".repeat(80), "abcde").len(), 63);
        assert_eq!(generated(&"ü".repeat(80), "abcde").len(), 63);
    }
}
