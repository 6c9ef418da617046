//! Durations as Go writes them: `1s`, `15m0s`, `1.5h`, `250ms`.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, str::FromStr, time::Duration};

/// A `metav1.Duration`: never negative, at most about 292 years as in Go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub Duration);

/// Nanoseconds of each unit that `time.ParseDuration` knows, longest spelling first where one begins another.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

impl FromStr for GoDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("{text:?} is not a duration; write it as in 30s, 1m30s or 250ms");
        let mut rest = text.strip_prefix('+').unwrap_or(text);
        if rest.starts_with('-') {
            return Err(format!("{text:?} is negative; durations start at 0s"));
        }
        if rest == "0" {
            return Ok(Self::default());
        }
        if rest.is_empty() {
            return Err(invalid());
        }
        let mut nanos: u64 = 0;
        while !rest.is_empty() {
            let digits = rest
                .find(|c: char| !c.is_ascii_digit() && c != '.')
                .ok_or_else(invalid)?;
            let (number, tail) = rest.split_at(digits);
            // `ms` before `m`: the only unit that begins another one.
            let (unit, scale) = UNITS
                .iter()
                .filter(|(unit, _)| tail.starts_with(unit))
                .max_by_key(|(unit, _)| unit.len())
                .ok_or_else(invalid)?;
            nanos = scaled(number, *scale)
                .and_then(|n| nanos.checked_add(n))
                .ok_or_else(invalid)?;
            rest = &tail[unit.len()..];
        }
        i64::try_from(nanos).map_err(|_| invalid())?;
        Ok(Self(Duration::from_nanos(nanos)))
    }
}

/// `number` (digits with at most one point) times `scale`, in nanoseconds; `None` if it is no number or too large.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut nanos = whole.checked_mul(scale)?;
    let mut unit = scale;
    for digit in fraction.bytes() {
        unit /= 10;
        nanos = nanos.checked_add(u64::from(digit - b'0') * unit)?;
    }
    Some(nanos)
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        let (unit, scale) = match nanos {
            0 => return f.write_str("0s"),
            1..1_000 => ("ns", 1),
            1_000..1_000_000 => ("µs", 1_000),
            1_000_000..1_000_000_000 => ("ms", 1_000_000),
            _ => ("s", 1_000_000_000),
        };
        let mut nanos = nanos;
        if unit == "s" {
            let minutes = nanos / 60_000_000_000;
            nanos %= 60_000_000_000;
            if minutes >= 60 {
                write!(f, "{}h", minutes / 60)?;
            }
            if minutes > 0 {
                write!(f, "{}m", minutes % 60)?;
            }
        }
        write!(f, "{}", nanos / scale)?;
        let fraction = nanos % scale;
        if fraction > 0 {
            let width = scale.ilog10() as usize;
            let digits = format!("{fraction:0width$}");
            write!(f, ".{}", digits.trim_end_matches('0'))?;
        }
        f.write_str(unit)
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = GoDuration;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration as in 30s or 1m30s")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<GoDuration, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, nanos: u64) -> Result<GoDuration, E> {
                Ok(GoDuration(Duration::from_nanos(nanos)))
            }
            fn visit_i64<E: de::Error>(self, nanos: i64) -> Result<GoDuration, E> {
                u64::try_from(nanos)
                    .map(|nanos| GoDuration(Duration::from_nanos(nanos)))
                    .map_err(|_| E::custom(format!("{nanos} ns is negative; durations start at 0s")))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_as_go_does() {
        for (text, nanos, printed) in [
            ("0s", 0, "0s"),
            ("0", 0, "0s"),
            ("1s", 1_000_000_000, "1s"),
            ("15m0s", 900_000_000_000, "15m0s"),
            ("24h0m0s", 86_400_000_000_000, "24h0m0s"),
            ("1.5h", 5_400_000_000_000, "1h30m0s"),
            ("250ms", 250_000_000, "250ms"),
            ("1500ms", 1_500_000_000, "1.5s"),
            (".5s", 500_000_000, "500ms"),
            ("+1m1.05s", 61_050_000_000, "1m1.05s"),
            ("3us", 3_000, "3µs"),
        ] {
            let parsed: GoDuration = text.parse().unwrap();
            assert_eq!(parsed.0.as_nanos(), nanos, "{text}");
            assert_eq!(parsed.to_string(), printed);
            assert_eq!(printed.parse::<GoDuration>().unwrap(), parsed);
        }
    }

    #[test]
    fn refuses_what_go_refuses() {
        for text in ["", "1", "s", ".s", "1.2.3s", "1d", "-1s", "1s ", "99999999999h", "h1"] {
            assert!(text.parse::<GoDuration>().is_err(), "{text:?}");
        }
    }
}
