//! Named formats of text. Source: `pkg/apiserver/validation/formats.go` of apiextensions and `strfmt` of kube-openapi:
//! a format that is not in this list is not checked.

use super::pattern;
use base64::Engine as _;
use regex::Regex;
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

/// Formats that are one expression.
const EXPRESSIONS: &[(&str, &str)] = &[
    ("bsonobjectid", "^[0-9a-fA-F]{24}$"),
    (
        "creditcard",
        r"^(?:4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}|3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35\d{3})\d{11})$",
    ),
    (
        "duration",
        r"^[+-]?(?:0|(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+)$",
    ),
    (
        "durationwords",
        r"^\s*(?:\d+(?:\.\d+)?\s*(?:ns|nano|nanos|nanosecond|nanoseconds|us|µs|micro|micros|microsecond|microseconds|ms|milli|millis|millisecond|milliseconds|s|sec|secs|second|seconds|m|min|mins|minute|minutes|h|hr|hrs|hour|hours|d|day|days|w|wk|wks|week|weeks)\s*)+$",
    ),
    (
        "email",
        r#"^(?:[^<>@",;\s]+|[^<>@]*<[^<>@\s]+)@[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?>?$"#,
    ),
    ("hexcolor", "^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$"),
    (
        "k8s-long-name",
        r"^[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*$",
    ),
    ("k8s-short-name", "^[a-z0-9](?:[-a-z0-9]*[a-z0-9])?$"),
    (
        "rgbcolor",
        r"^rgb\(\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*\)$",
    ),
    ("ssn", r"^\d{3}[- ]?\d{2}[- ]?\d{4}$"),
    (
        "uuid",
        "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$",
    ),
    (
        "uuid3",
        "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$",
    ),
    (
        "uuid4",
        "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$",
    ),
    (
        "uuid5",
        "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$",
    ),
];

/// Whether a text has a format; `None` for formats that nobody checks.
pub(crate) fn matches(format: &str, text: &str) -> Option<bool> {
    // Upstream compares format names without their dashes where the name has none of its own.
    let name = if format.starts_with("k8s-") {
        format.to_owned()
    } else {
        format.replace('-', "")
    };
    Some(match name.as_str() {
        "byte" => base64::engine::general_purpose::STANDARD.decode(text).is_ok(),
        "cidr" => is_cidr(text),
        "date" => text.len() == 10 && jiff::civil::Date::strptime("%Y-%m-%d", text).is_ok(),
        "datetime" => is_date_time(text),
        "duration" => is("duration", text) || is("durationwords", text),
        "hostname" => is_hostname(text),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "isbn" => isbn10(text) || isbn13(text),
        "isbn10" => isbn10(text),
        "isbn13" => isbn13(text),
        "k8s-long-name" => text.len() <= 253 && is("k8s-long-name", text),
        "k8s-short-name" => text.len() <= 63 && is("k8s-short-name", text),
        "mac" => is_mac(text),
        "password" => true,
        "uri" => is_uri(text),
        "creditcard" => is(
            "creditcard",
            &text.chars().filter(char::is_ascii_digit).collect::<String>(),
        ),
        "durationwords" => return None,
        other if EXPRESSIONS.iter().any(|(name, _)| *name == other) => is(other, text),
        _ => return None,
    })
}

fn is(name: &str, text: &str) -> bool {
    static COMPILED: LazyLock<HashMap<&str, Regex>> = LazyLock::new(|| {
        let all = EXPRESSIONS.iter();
        all.filter_map(|(name, source)| Some((*name, pattern::compile(source).ok()?)))
            .collect()
    });
    COMPILED.get(name).is_some_and(|regex| regex.is_match(text))
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else {
        return false;
    };
    let max = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    bits.bytes().all(|it| it.is_ascii_digit()) && bits.len() <= 3 && bits.parse::<u16>().is_ok_and(|bits| bits <= max)
}

/// RFC 3339 §5.6 `date-time`, letters in either case.
fn is_date_time(text: &str) -> bool {
    let shaped = pattern_date_time().is_some_and(|regex| regex.is_match(text));
    shaped
        && (text.parse::<jiff::Timestamp>().is_ok() || text.replacen([' '], "T", 1).parse::<jiff::Timestamp>().is_ok())
}

fn pattern_date_time() -> Option<&'static Regex> {
    static SHAPE: LazyLock<Option<Regex>> = LazyLock::new(|| {
        pattern::compile(r"^\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})$").ok()
    });
    SHAPE.as_ref()
}

/// RFC 1034 §3.1 with the digits of RFC 1123 §2.1, at most 255 octets, labels at most 63.
fn is_hostname(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|it| it.is_ascii_alphanumeric() || it == b'-' || it == b'_' || it >= 0x80)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    !text.is_empty() && text.len() <= 255 && text.strip_suffix('.').unwrap_or(text).split('.').all(label)
}

/// EUI-48, EUI-64 or 20 octets, as `00:00:5e:00:53:01`, with dashes, or as `0000.5e00.5301`.
fn is_mac(text: &str) -> bool {
    let groups = |separator: char, width: usize| {
        let parts: Vec<&str> = text.split(separator).collect();
        let octets = parts.len() * width / 2;
        matches!(octets, 6 | 8 | 20)
            && parts
                .iter()
                .all(|part| part.len() == width && part.bytes().all(|it| it.is_ascii_hexdigit()))
    };
    groups(':', 2) || groups('-', 2) || groups('.', 4)
}

/// An absolute URI or an absolute path. Source: Go's `url.ParseRequestURI`.
fn is_uri(text: &str) -> bool {
    if text.is_empty() || text.bytes().any(|it| it < 0x20 || it == 0x7f) || !escapes_are_sound(text) {
        return false;
    }
    if text.starts_with('/') {
        return true;
    }
    let Some((scheme, rest)) = text.split_once(':') else {
        return false;
    };
    let sound = scheme.starts_with(|it: char| it.is_ascii_alphabetic())
        && scheme
            .bytes()
            .all(|it| it.is_ascii_alphanumeric() || matches!(it, b'+' | b'-' | b'.'));
    let authority = rest
        .strip_prefix("//")
        .map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
    sound && authority.is_none_or(|host| !host.contains([' ', '<', '>', '"', '\\', '^', '`', '{', '|', '}']))
}

fn escapes_are_sound(text: &str) -> bool {
    let bytes = text.as_bytes();
    let hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
    bytes
        .iter()
        .enumerate()
        .all(|(at, byte)| *byte != b'%' || (hex(at + 1) && hex(at + 2)))
}

fn digits_of_isbn(text: &str) -> Vec<char> {
    text.chars().filter(|it| !matches!(it, '-' | ' ')).collect()
}

/// ISO 2108:1972: the sum weighted 1 to 10 is a multiple of 11.
fn isbn10(text: &str) -> bool {
    let digits = digits_of_isbn(text);
    let value = |(at, c): (usize, &char)| match c {
        'X' | 'x' if at == 9 => Some(100),
        c => c.to_digit(10).map(|digit| digit * (at as u32 + 1)),
    };
    let sum: Option<u32> = digits.iter().enumerate().map(value).sum();
    digits.len() == 10 && sum.is_some_and(|sum| sum.is_multiple_of(11))
}

/// ISO 2108:2005: the sum weighted 1, 3, 1, 3 … is a multiple of 10.
fn isbn13(text: &str) -> bool {
    let digits = digits_of_isbn(text);
    let value = |(at, c): (usize, &char)| c.to_digit(10).map(|digit| digit * if at % 2 == 0 { 1 } else { 3 });
    let sum: Option<u32> = digits.iter().enumerate().map(value).sum();
    digits.len() == 13 && sum.is_some_and(|sum| sum.is_multiple_of(10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_know_their_own() {
        let cases: &[(&str, &[&str], &[&str])] = &[
            (
                "date-time",
                &["2024-02-29T12:00:00Z", "2024-02-29t12:00:00.123+01:00"],
                &["2023-02-29T12:00:00Z", "2024-02-29", "now"],
            ),
            ("date", &["2024-02-29"], &["2023-02-29", "2024-2-9", "20240229"]),
            (
                "duration",
                &["1h30m", "300ms", "-1.5h", "0", "22 ns", "1 week"],
                &["1", "h", "1x", ""],
            ),
            ("ipv4", &["10.0.0.1"], &["10.0.0.256", "::1", "10.0.0"]),
            ("ipv6", &["::1", "fd00::a"], &["10.0.0.1", "::g"]),
            (
                "cidr",
                &["10.0.0.0/8", "fd00::/64"],
                &["10.0.0.0/33", "10.0.0.0", "10.0.0.0/+8"],
            ),
            (
                "uri",
                &["https://example.com/a?b=c", "/path", "mailto:a@b"],
                &["example", "http://a b/", "http://a/%zz", ""],
            ),
            ("email", &["a@b.example", "Name <a@b.example>"], &["a", "@b", "a@"]),
            (
                "uuid",
                &[
                    "123e4567-e89b-12d3-a456-426614174000",
                    "123E4567E89B12D3A456426614174000",
                ],
                &["123e4567"],
            ),
            (
                "uuid4",
                &["123e4567-e89b-42d3-a456-426614174000"],
                &["123e4567-e89b-12d3-a456-426614174000"],
            ),
            ("byte", &["aGVsbG8=", ""], &["aGVsbG8", "%"]),
            ("hostname", &["a.b-c.example", "localhost"], &["-a", "a..b", ""]),
            (
                "mac",
                &["00:00:5e:00:53:01", "0000.5e00.5301", "00-00-5e-00-53-01"],
                &["00:00", "00:00:5e:00:53:0g"],
            ),
            ("isbn", &["0321751043", "978-0321751041"], &["0321751044"]),
            ("hexcolor", &["#FFF", "00ff00"], &["#FFFF"]),
            ("k8s-short-name", &["a-b"], &["a.b", "-a", "A"]),
            ("k8s-long-name", &["a.b-c"], &["a..b", "A.b"]),
        ];
        for (format, good, bad) in cases {
            for text in *good {
                assert_eq!(matches(format, text), Some(true), "{format} {text:?}");
            }
            for text in *bad {
                assert_eq!(matches(format, text), Some(false), "{format} {text:?}");
            }
        }
        assert_eq!(matches("int32", "x"), None);
        for (name, source) in EXPRESSIONS {
            assert!(pattern::compile(source).is_ok(), "{name}");
        }
    }
}
