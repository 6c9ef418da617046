//! [`Quantity`]: amounts such as `100m`, `1.5Gi`, `2e3`. Source: `apimachinery/pkg/api/resource.Quantity`.

use serde_json::Value;
use std::cmp::Ordering;

/// An amount in billionths, which is as fine as quantities get; what is finer is rounded up, what is larger than 64 bits
/// is cut off there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity(i128);

const NANO: i128 = 1_000_000_000;
const MAX: i128 = i64::MAX as i128 * NANO;

impl Quantity {
    /// Reads `[+-]digits[.digits][suffix]`, the suffix being `n u m k M G T P E`, `Ki Mi Gi Ti Pi Ei`, or an exponent.
    pub fn parse(text: &str) -> Option<Self> {
        // Nobody means more digits than these; work stays bounded.
        if text.len() > 128 {
            return None;
        }
        let (negative, rest) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest
            .find(|it: char| !it.is_ascii_digit() && it != '.')
            .unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return None;
        }
        let (base, exponent) = scale(suffix)?;
        // The digits without the point, and how often ten (or 1024) goes onto them.
        let digits = whole.chars().chain(fraction.chars());
        let mut value = Amount::default();
        digits.for_each(|digit| value.push(digit));
        let amount = value.scaled(fraction.len() as i32, base, exponent).min(MAX);
        Some(Self(if negative { -amount } else { amount }))
    }

    /// As [`Quantity::parse`]; JSON numbers are quantities too.
    pub fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Self::parse(text),
            Value::Number(number) => Self::parse(&number.to_string()),
            _ => None,
        }
    }

    /// Rounded up.
    pub fn whole(self) -> i64 {
        let up = i128::from(self.0 % NANO > 0);
        i64::try_from(self.0 / NANO + up).unwrap_or(i64::MAX)
    }

    /// In thousandths, rounded up: CPUs.
    pub fn millis(self) -> i64 {
        let milli = NANO / 1000;
        let up = i128::from(self.0 % milli > 0);
        i64::try_from(self.0 / milli + up).unwrap_or(i64::MAX)
    }

    /// Less than, equal to or greater than nothing.
    pub fn sign(self) -> Ordering {
        self.0.cmp(&0)
    }

    /// Whether there is no fraction.
    pub fn is_whole(self) -> bool {
        self.0 % NANO == 0
    }

    /// The sum, at most what fits.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self((self.0 + other.0).clamp(-MAX, MAX))
    }
}

fn scale(suffix: &str) -> Option<(i128, i32)> {
    Some(match suffix {
        "" => (10, 0),
        "n" => (10, -9),
        "u" => (10, -6),
        "m" => (10, -3),
        "k" => (10, 3),
        "M" => (10, 6),
        "G" => (10, 9),
        "T" => (10, 12),
        "P" => (10, 15),
        "E" => (10, 18),
        "Ki" => (1024, 1),
        "Mi" => (1024, 2),
        "Gi" => (1024, 3),
        "Ti" => (1024, 4),
        "Pi" => (1024, 5),
        "Ei" => (1024, 6),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if digits.is_empty() || digits.len() > 3 || !digits.bytes().all(|it| it.is_ascii_digit()) {
                return None;
            }
            (10, exponent.parse().ok()?)
        }
    })
}

/// Digits, and how many further ones no longer fit.
#[derive(Default)]
struct Amount {
    digits: i128,
    dropped: i32,
    /// Something other than zeros was dropped.
    inexact: bool,
}

impl Amount {
    fn push(&mut self, digit: char) {
        let digit = i128::from(digit as u8 - b'0');
        if self.digits < MAX && self.dropped == 0 {
            self.digits = self.digits * 10 + digit;
        } else {
            self.dropped += 1;
            self.inexact |= digit != 0;
        }
    }

    /// In billionths, rounded up.
    fn scaled(&self, fraction: i32, base: i128, exponent: i32) -> i128 {
        let mut value = self.digits;
        if value == 0 {
            return 0;
        }
        let mut tens = 9 - fraction + self.dropped;
        let mut inexact = self.inexact;
        if base == 10 {
            tens += exponent;
        } else {
            for _ in 0..exponent {
                value = value.saturating_mul(base);
            }
        }
        while tens > 0 && value <= MAX {
            value = value.saturating_mul(10);
            tens -= 1;
        }
        while tens < 0 && value > 0 {
            inexact |= value % 10 != 0;
            value /= 10;
            tens += 1;
        }
        value + i128::from(inexact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities_are_read() {
        for (text, millis) in [
            ("0", 0),
            ("1", 1000),
            ("100m", 100),
            ("0.1", 100),
            ("1.5", 1500),
            ("1k", 1_000_000),
            ("1Ki", 1_024_000),
            ("1.5Ki", 1_536_000),
            ("2e3", 2_000_000),
            ("2E-1", 200),
            ("-1", -1000),
            ("+.5", 500),
            ("5.", 5000),
            ("1n", 1),
            ("0.0000000001", 1),
            ("100000000000000000000000000000000000000000E", i64::MAX),
        ] {
            assert_eq!(Quantity::parse(text).map(Quantity::millis), Some(millis), "{text}");
        }
        for text in [
            "", ".", "1.2.3", "m", "1mm", "1K", "1e", "1ee3", "e3", " 1", "1 ", "--1", "0x1", "1e9999",
        ] {
            assert_eq!(Quantity::parse(text), None, "{text}");
        }
        assert_eq!(Quantity::parse("1Ei").map(Quantity::whole), Some(1 << 60));
        assert!(Quantity::parse("1Gi") > Quantity::parse("1G"));
    }

    proptest! {
        #[test]
        fn whole_numbers_keep_their_value(number in any::<i64>()) {
            prop_assert_eq!(Quantity::parse(&number.to_string()).map(Quantity::whole), Some(number.max(-i64::MAX)));
        }

        #[test]
        fn any_text_is_read_or_not(text in "[0-9.eE+mKiG-]{0,40}") {
            let _ = Quantity::parse(&text);
        }
    }
}
