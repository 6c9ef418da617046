//! [`Quantity`]: amounts as the API writes them (`500m`, `1Gi`), exact, with the canonical form of messages.

use std::{cmp::Ordering, fmt};

/// An amount: exact to a billionth, which is all that the API promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// How it was written, and is written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Format {
    /// Powers of 1024.
    Binary,
    /// Powers of 1000.
    Decimal,
    /// `1e3`.
    Exponent,
}

const UNIT: i128 = 1_000_000_000;
const DECIMAL: [(&str, u32); 10] = [
    ("E", 18),
    ("P", 15),
    ("T", 12),
    ("G", 9),
    ("M", 6),
    ("k", 3),
    ("", 0),
    ("m", 3),
    ("u", 6),
    ("n", 9),
];
const BINARY: [(&str, u32); 6] = [("Ei", 60), ("Pi", 50), ("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];

impl Quantity {
    /// Nothing.
    pub const ZERO: Self = Self {
        nanos: 0,
        format: Format::Decimal,
    };

    /// A number of whole things.
    pub fn count(number: u32) -> Self {
        Self {
            nanos: i128::from(number) * UNIT,
            format: Format::Decimal,
        }
    }

    /// Reads one; `None` for what is none. What is finer than a billionth is rounded up, away from zero.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
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
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return None;
        }
        let (format, power, base) = unit(suffix)?;
        let digits: String = [whole, fraction].concat();
        let mut numerator: i128 = digits.trim_start_matches('0').parse().or_else(zero).ok()?;
        // value = digits * base^power / 10^fraction, in billionths.
        let mut denominator = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let factor = base.checked_pow(power.unsigned_abs())?;
        if power >= 0 {
            numerator = i128::checked_mul(numerator, factor)?;
        } else {
            denominator = denominator.checked_mul(factor)?;
        }
        let numerator = numerator.checked_mul(UNIT)?;
        let nanos = numerator / denominator + i128::from(numerator % denominator != 0);
        Some(Self {
            nanos: if negative { -nanos } else { nanos },
            format,
        })
    }

    /// Billionths.
    pub fn nanos(&self) -> i128 {
        self.nanos
    }

    /// As a number, for ratios.
    pub fn value(&self) -> f64 {
        // Ratios are compared with numbers that people write: the 53 bits are plenty.
        #[allow(clippy::cast_precision_loss)]
        let value = self.nanos as f64;
        value / 1e9
    }

    /// Whether it is nothing.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Compares amounts, however they are written.
    pub fn cmp_value(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }

    /// The sum, written as the first that is not nothing; at most what fits.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self {
            nanos: self.nanos.saturating_add(other.nanos),
            format,
        }
    }

    /// The difference.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            nanos: self.nanos.saturating_sub(other.nanos),
            format: self.format,
        }
    }

    /// The greater.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        if other.nanos > self.nanos { other } else { self }
    }
}

/// No digits but zeros are nothing, not an error; what is left of an error is one.
fn zero(error: std::num::ParseIntError) -> Result<i128, std::num::ParseIntError> {
    if *error.kind() == std::num::IntErrorKind::Empty {
        Ok(0)
    } else {
        Err(error)
    }
}

fn unit(suffix: &str) -> Option<(Format, i32, i128)> {
    if let Some((_, power)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Some((Format::Binary, i32::try_from(*power).ok()?, 2));
    }
    let at = DECIMAL.iter().position(|(name, _)| *name == suffix);
    if let Some(at) = at {
        let power = i32::try_from(DECIMAL[at].1).ok()?;
        return Some((Format::Decimal, if at > 6 { -power } else { power }, 10));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    (exponent.abs() <= 18).then_some((Format::Exponent, exponent, 10))
}

impl fmt::Display for Quantity {
    /// Canonical: no fraction, the largest unit that loses nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let kilo = 1024 * UNIT;
        if self.format == Format::Binary && self.nanos.abs() >= kilo && self.nanos % UNIT == 0 {
            let whole = self.nanos / UNIT;
            let unit = BINARY.iter().find(|(_, power)| whole % (1_i128 << power) == 0);
            return match unit {
                Some((name, power)) => write!(f, "{}{name}", whole >> power),
                None => write!(f, "{whole}"),
            };
        }
        for (at, (name, power)) in DECIMAL.iter().enumerate() {
            let scale = 10_i128.pow(*power);
            let size = if at > 6 { UNIT / scale } else { UNIT * scale };
            if self.nanos % size != 0 {
                continue;
            }
            let number = self.nanos / size;
            return match (self.format, power) {
                (Format::Exponent, 0) => write!(f, "{number}"),
                (Format::Exponent, _) => write!(f, "{number}e{}{power}", if at > 6 { "-" } else { "" }),
                _ => write!(f, "{number}{name}"),
            };
        }
        write!(f, "{}n", self.nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_and_written_as_upstream_writes_them() {
        for (text, canonical) in [
            ("0", "0"),
            ("00", "0"),
            ("1", "1"),
            ("1000", "1k"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("5.", "5"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("1Ki", "1Ki"),
            ("512", "512"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("12e-1", "1200e-3"),
            ("-1", "-1"),
            ("+1", "1"),
            ("100n", "100n"),
            ("0.0000000001", "1n"),
            ("1E", "1E"),
            ("1Ei", "1Ei"),
            ("1025", "1025"),
            ("1025Ki", "1025Ki"),
            ("2147483648", "2147483648"),
            ("128974848", "128974848"),
            ("129e6", "129e6"),
        ] {
            assert_eq!(
                Quantity::parse(text).map(|it| it.to_string()).as_deref(),
                Some(canonical),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_amount_is_none() {
        for text in [
            "",
            "-",
            "m",
            "1mi",
            "1 Gi",
            "1.2.3",
            "x",
            "1e",
            "1e99",
            "0x10",
            ".",
            "1KI",
            "99999999999999999999999999999999999999999999",
            "١",
        ] {
            assert_eq!(Quantity::parse(text), None, "{text}");
        }
    }

    #[test]
    fn sums_keep_the_form_of_the_first() {
        let parse = |it| Quantity::parse(it).unwrap();
        assert_eq!(parse("1Gi").plus(parse("1Gi")).to_string(), "2Gi");
        assert_eq!(Quantity::ZERO.plus(parse("1Gi")).to_string(), "1Gi");
        assert_eq!(parse("500m").plus(parse("500m")).to_string(), "1");
        assert_eq!(parse("1").minus(parse("100m")).to_string(), "900m");
        assert!(parse("1Gi").cmp_value(&parse("1G")).is_gt());
    }
}
