//! [`Amount`]: a quantity of the API (`500m`, `1Gi`), added exactly and written as the API writes it.

use std::fmt;

/// Exact to a billionth, which is all that the API promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Amount {
    billionths: i128,
    style: Style,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// Powers of 1024: `Ki`.
    Binary,
    /// Powers of 1000: `k`.
    Decimal,
    /// Powers of ten: `e3`.
    Exponent,
}

const ONE: i128 = 1_000_000_000;
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
/// From billionths on, each a thousand times the one before.
const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];

impl Amount {
    pub(super) const NOTHING: Self = Self {
        billionths: 0,
        style: Style::Decimal,
    };

    /// So many things.
    pub(super) fn of(number: usize) -> Self {
        Self {
            billionths: i128::try_from(number).unwrap_or(i128::MAX).saturating_mul(ONE),
            style: Style::Decimal,
        }
    }

    /// Reads one; `None` for what is none. What is finer than a billionth is rounded up.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (sign, digits) = match text.strip_prefix('-') {
            Some(rest) => (-1, rest),
            None => (1, text.strip_prefix('+').unwrap_or(text)),
        };
        let end = digits
            .find(|it: char| it != '.' && !it.is_ascii_digit())
            .unwrap_or(digits.len());
        let (number, suffix) = digits.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0 || fraction.contains('.') {
            return None;
        }
        let mantissa: i128 = format!("0{whole}{fraction}").parse().ok()?;
        let (style, up, down) = Self::scale(suffix)?;
        let up = up.checked_mul(ONE)?;
        let down = 10_i128
            .checked_pow(u32::try_from(fraction.len()).ok()?)?
            .checked_mul(down)?;
        let exact = mantissa.checked_mul(up)?;
        let rounded = exact / down + i128::from(exact % down != 0);
        Some(Self {
            billionths: sign * rounded,
            style,
        })
    }

    /// What a suffix multiplies by, and divides by.
    fn scale(suffix: &str) -> Option<(Style, i128, i128)> {
        if let Some(at) = BINARY.iter().skip(1).position(|it| *it == suffix) {
            return Some((Style::Binary, 1 << (10 * (at + 1)), 1));
        }
        if let Some(at) = DECIMAL.iter().position(|it| *it == suffix) {
            let power = u32::try_from(at).ok()?;
            return Some(match power.checked_sub(3) {
                Some(up) => (Style::Decimal, 1000_i128.pow(up), 1),
                None => (Style::Decimal, 1, 1000_i128.pow(3 - power)),
            });
        }
        let power: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
        let factor = 10_i128.checked_pow(power.unsigned_abs())?;
        let (up, down) = if power < 0 { (1, factor) } else { (factor, 1) };
        Some((Style::Exponent, up, down))
    }

    pub(super) fn is_nothing(self) -> bool {
        self.billionths == 0
    }

    /// The sum, written as the first of the two that is not nothing.
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            billionths: self.billionths.saturating_add(other.billionths),
            style: if self.is_nothing() { other.style } else { self.style },
        }
    }

    /// The greater one.
    pub(super) fn max(self, other: Self) -> Self {
        if other.billionths > self.billionths {
            other
        } else {
            self
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_nothing() {
            return f.write_str("0");
        }
        let whole = self.billionths % ONE == 0;
        if self.style == Style::Binary && whole && self.billionths.abs() >= 1024 * ONE {
            let (mut number, mut at) = (self.billionths / ONE, 0);
            while number % 1024 == 0 && at + 1 < BINARY.len() {
                (number, at) = (number / 1024, at + 1);
            }
            return write!(f, "{number}{}", BINARY[at]);
        }
        let (mut number, mut at) = (self.billionths, 0);
        while number % 1000 == 0 && at + 1 < DECIMAL.len() {
            (number, at) = (number / 1000, at + 1);
        }
        match (self.style, at) {
            (Style::Exponent, 3) => write!(f, "{number}"),
            (Style::Exponent, at) => {
                let power = i32::try_from(at).unwrap_or_default() * 3 - 9;
                write!(f, "{number}e{power}")
            }
            (_, at) => write!(f, "{number}{}", DECIMAL[at]),
        }
    }
}
