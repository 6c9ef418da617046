//! Amounts as the API writes them (`500m`, `1Gi`, `2e3`), exact to a billionth.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

const NANO: i128 = 1_000_000_000;

/// Whole units, rounded up. `None` for what is no amount or fits nowhere.
pub(crate) fn units(quantity: &Quantity) -> Option<i128> {
    nanos(&quantity.0).map(|it| ceil(it, NANO))
}

/// Thousandths, rounded up, as processors are counted. `None` as [`units`].
pub(crate) fn millis(quantity: &Quantity) -> Option<i128> {
    nanos(&quantity.0).map(|it| ceil(it, NANO / 1000))
}

fn ceil(value: i128, by: i128) -> i128 {
    value.div_euclid(by) + i128::from(value.rem_euclid(by) != 0)
}

/// Source of the grammar: the doc of `resource.Quantity`.
fn nanos(text: &str) -> Option<i128> {
    let text = text.trim();
    let (sign, rest) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    let end = rest.find(|it: char| it != '.' && !it.is_ascii_digit());
    let (number, suffix) = rest.split_at(end.unwrap_or(rest.len()));
    let (base, power) = scale(suffix)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let mut above = 0_i128;
    for digit in whole.bytes().chain(fraction.bytes()) {
        above = above.checked_mul(10)?.checked_add(i128::from(digit - b'0'))?;
    }
    let mut below = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let factor = base.checked_pow(power.unsigned_abs())?;
    if power < 0 {
        below = below.checked_mul(factor)?;
    } else {
        above = above.checked_mul(factor)?;
    }
    let exact = above.checked_mul(NANO)?;
    // Rounded up, away from zero: a request is never taken for less than it says.
    let rounded = exact / below + i128::from(exact % below != 0);
    // Sums of as many amounts as there can be pods must not overflow.
    (rounded <= i128::from(i64::MAX) * NANO).then_some(sign * rounded)
}

fn scale(suffix: &str) -> Option<(i128, i32)> {
    let binary = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    if let Some(at) = binary.iter().position(|it| *it == suffix) {
        return Some((1024, i32::try_from(at).ok()? + 1));
    }
    let power = match suffix {
        "n" => -9,
        "u" => -6,
        "m" => -3,
        "" => 0,
        "k" => 3,
        "M" => 6,
        "G" => 9,
        "T" => 12,
        "P" => 15,
        "E" => 18,
        _ => suffix.strip_prefix(['e', 'E'])?.parse().ok()?,
    };
    Some((10, power))
}

#[cfg(test)]
mod tests {
    use super::{millis, units};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    #[test]
    fn amounts() {
        for (text, whole, milli) in [
            ("1", 1, 1000),
            ("500m", 1, 500),
            ("1Gi", 1 << 30, 1000 << 30),
            ("1.5k", 1500, 1_500_000),
            ("2e3", 2000, 2_000_000),
            ("1E3", 1000, 1_000_000),
            ("5E", 5_000_000_000_000_000_000, 5_000_000_000_000_000_000_000),
            ("100n", 1, 1),
            ("-1", -1, -1000),
            (".5", 1, 500),
            ("1.", 1, 1000),
            ("0", 0, 0),
        ] {
            let quantity = Quantity(text.to_owned());
            assert_eq!(
                (units(&quantity), millis(&quantity)),
                (Some(whole), Some(milli)),
                "{text}"
            );
        }
        for text in [
            "", "x", "1x", "1.2.3", "-", "1e", "99E", "1Kii", "e3", ".", "1e99999", "1 Gi", "½",
        ] {
            assert_eq!(units(&Quantity(text.to_owned())), None, "{text}");
        }
    }
}
