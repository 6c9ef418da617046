//! Names of images: `[registry[:port]/]path[:tag][@digest]`, as the distribution project defines them.

/// A name of an image, in parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Host and port of the registry; `docker.io` where the name has none.
    pub registry: String,
    /// The path there, with `library/` before the short names of `docker.io`.
    pub path: String,
    /// Without the colon.
    pub tag: Option<String>,
    /// As `sha256:…`.
    pub digest: Option<String>,
}

impl Reference {
    /// Reads a name; `None` where it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(is_digest(digest).then_some(digest)?)),
            None => (text, None),
        };
        // A colon after the last slash begins a tag, one before it a port.
        let (name, tag) = match name.rfind(':').filter(|at| !name[*at..].contains('/')) {
            Some(at) => (&name[..at], Some(&name[at + 1..])),
            None => (name, None),
        };
        if tag.is_some_and(|it| !is_tag(it)) {
            return None;
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
            _ => ("docker.io", name),
        };
        let valid = is_registry(registry) && path.split('/').all(is_component) && name.len() <= 255;
        let short = registry == "docker.io" && !path.contains('/');
        valid.then(|| Self {
            registry: registry.to_owned(),
            path: if short {
                format!("library/{path}")
            } else {
                path.to_owned()
            },
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
        })
    }
}

/// The name with `:latest` where it has neither tag nor digest; `None` where it is no name.
pub fn with_default_tag(text: &str) -> Option<String> {
    let parsed = Reference::parse(text)?;
    let bare = parsed.tag.is_none() && parsed.digest.is_none();
    Some(if bare {
        format!("{text}:latest")
    } else {
        text.to_owned()
    })
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':').filter(|(_, port)| !port.contains(']')) {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let port_fine = port.is_none_or(|it| !it.is_empty() && it.bytes().all(|it| it.is_ascii_digit()));
    let six = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    let host_fine = match six {
        Some(six) => six.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            let fine = label.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-');
            !label.is_empty() && fine && !label.starts_with('-') && !label.ends_with('-')
        }),
    };
    port_fine && host_fine
}

/// Lower-case letters and digits, with `.`, one or two `_`, or any number of `-` between them.
fn is_component(text: &str) -> bool {
    let alphanumeric = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = bytes.first().copied().is_some_and(alphanumeric) && bytes.last().copied().is_some_and(alphanumeric);
    let separators = text.split(|it: char| it.is_ascii_lowercase() || it.is_ascii_digit());
    let fine = |it: &str| matches!(it, "" | "." | "_" | "__") || it.bytes().all(|it| it == b'-');
    ends && separators.into_iter().all(fine)
}

fn is_tag(text: &str) -> bool {
    let word = |it: u8| it.is_ascii_alphanumeric() || it == b'_';
    let first = text.bytes().next().is_some_and(word);
    first && text.len() <= 128 && text.bytes().all(|it| word(it) || it == b'.' || it == b'-')
}

fn is_digest(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else {
        return false;
    };
    let fine = algorithm.starts_with(|it: char| it.is_ascii_alphabetic())
        && algorithm
            .bytes()
            .all(|it| it.is_ascii_alphanumeric() || b"+._-".contains(&it));
    fine && hex.len() >= 32 && hex.bytes().all(|it| it.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_told_from_what_is_none() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let table = [
            ("busybox", "docker.io", "library/busybox", None),
            ("busybox:1.36", "docker.io", "library/busybox", Some("1.36")),
            ("team/app", "docker.io", "team/app", None),
            ("localhost/app:x", "localhost", "app", Some("x")),
            ("127.0.0.1:5000/a/b:t", "127.0.0.1:5000", "a/b", Some("t")),
            ("[::1]:5000/a", "[::1]:5000", "a", None),
            ("ghcr.io/a__b/c--d:v1.0-x_", "ghcr.io", "a__b/c--d", Some("v1.0-x_")),
        ];
        for (text, registry, path, tag) in table {
            let parsed = Reference::parse(text).unwrap();
            assert_eq!(
                (&*parsed.registry, &*parsed.path, parsed.tag.as_deref()),
                (registry, path, tag),
                "{text}"
            );
            let with_digest = Reference::parse(&format!("{text}@{digest}")).unwrap();
            assert_eq!(with_digest.digest.as_deref(), Some(&*digest));
        }
        for text in [
            "",
            "Upper",
            "a b",
            "a:",
            "a:-x",
            "a//b",
            "-a",
            "a..b",
            "a@sha256:12",
            "host.io:x/a",
            "a:b:c",
            "a___b",
        ] {
            assert_eq!(Reference::parse(text), None, "{text}");
        }
        assert_eq!(with_default_tag("a.io/b").as_deref(), Some("a.io/b:latest"));
        assert_eq!(with_default_tag("a.io/b:c").as_deref(), Some("a.io/b:c"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}|[a-z0-9:@/._\\[\\]-]{0,40}") {
            if let Some(parsed) = Reference::parse(&text) {
                prop_assert!(!parsed.path.is_empty());
            }
        }
    }
}
