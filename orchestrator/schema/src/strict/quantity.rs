//! Quantities in the form in which upstream writes them: no fraction, the largest suffix that loses nothing, and the
//! family of suffixes that the author chose (`0.5` is `500m`, `1024Mi` is `1Gi`, `1e3` stays `1e3`).

/// The syntax, as error messages quote it.
pub const PATTERN: &str = "^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$";

/// Nano: the smallest scale; anything finer is rounded up.
const SMALLEST: i32 = -9;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Decimal,
    Exponent,
    Binary,
}

const DECIMAL: [(&str, i32); 10] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];

const BINARY: [(&str, i32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

/// The canonical form of a quantity; `None` where it is none. Numbers of more than 128 bits stay as they are.
pub fn canonical(text: &str) -> Option<String> {
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
    let (family, exponent) = interpret(suffix)?;
    let whole = whole.trim_start_matches('0');
    let digits = format!("{whole}{fraction}");
    if is_canonical(family, exponent, whole, fraction) {
        return Some(text.to_owned());
    }
    let compute = || -> Option<String> {
        let mut amount: i128 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
        let mut scale = -i32::try_from(fraction.len()).ok()?;
        if family == Family::Binary {
            amount = amount.checked_mul(1 << exponent)?;
        } else {
            scale = scale.checked_add(exponent)?;
        }
        // Finer than nano is rounded up, away from zero.
        if scale < SMALLEST {
            let divisor = 10_i128.checked_pow(u32::try_from(SMALLEST - scale).ok()?);
            amount = divisor.map_or(i128::from(amount != 0), |divisor| (amount + (divisor - 1)) / divisor);
            scale = SMALLEST;
        }
        if amount == 0 {
            return Some("0".to_owned());
        }
        let sign = if negative { "-" } else { "" };
        let (amount, suffix) = match family {
            Family::Binary => binary(amount, scale).or_else(|| decimal(amount, scale, Family::Decimal))?,
            family => decimal(amount, scale, family)?,
        };
        Some(format!("{sign}{amount}{suffix}"))
    };
    Some(compute().unwrap_or_else(|| text.to_owned()))
}

fn interpret(suffix: &str) -> Option<(Family, i32)> {
    let known = |table: &[(&str, i32)], family| {
        let (_, exponent) = table.iter().find(|(name, _)| *name == suffix)?;
        Some((family, *exponent))
    };
    known(&DECIMAL, Family::Decimal)
        .or_else(|| known(&BINARY, Family::Binary))
        .or_else(|| {
            let exponent = suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?;
            Some((Family::Exponent, exponent))
        })
}

/// What upstream's parser takes for canonical without calculating, and therefore keeps letter by letter.
fn is_canonical(family: Family, exponent: i32, whole: &str, fraction: &str) -> bool {
    let digits = whole.len() + fraction.len();
    match family {
        Family::Binary => {
            let last = whole
                .get(whole.len().saturating_sub(3)..)
                .and_then(|last| last.parse::<u32>().ok());
            // 1000 is divisible by 8: the last three digits tell.
            fraction.is_empty() && last.is_some_and(|last| last % 8 != 0) && digits + exponent as usize * 3 / 10 < 14
        }
        Family::Decimal | Family::Exponent => {
            let scale = exponent.saturating_sub(fraction.len() as i32);
            let shifted = format!("{whole}{fraction}");
            scale % 3 == 0
                && scale >= SMALLEST
                && digits < 18
                && !shifted.ends_with("000")
                && !shifted.is_empty()
                && !shifted.starts_with('0')
                && !whole.is_empty()
        }
    }
}

/// Without factors of 1000, and a suffix for them.
fn decimal(mut amount: i128, mut scale: i32, family: Family) -> Option<(i128, String)> {
    while amount % 10 == 0 {
        amount /= 10;
        scale = scale.checked_add(1)?;
    }
    while scale.rem_euclid(3) != 0 {
        amount = amount.checked_mul(10)?;
        scale -= 1;
    }
    if family == Family::Exponent {
        let suffix = if scale == 0 { String::new() } else { format!("e{scale}") };
        return Some((amount, suffix));
    }
    let (suffix, _) = DECIMAL.iter().find(|(_, exponent)| *exponent == scale)?;
    Some((amount, (*suffix).to_owned()))
}

/// Without factors of 1024, and a suffix for them; `None` where it is small or has a fraction.
fn binary(amount: i128, scale: i32) -> Option<(i128, String)> {
    let divisor = 10_i128.checked_pow(u32::try_from(-scale).ok()?)?;
    if amount % divisor != 0 || amount / divisor < 1024 {
        return None;
    }
    let mut amount = amount / divisor;
    let mut power = 0;
    while amount % 1024 == 0 && power < BINARY.len() {
        amount /= 1024;
        power += 1;
    }
    let suffix = power
        .checked_sub(1)
        .and_then(|at| BINARY.get(at))
        .map_or("", |(suffix, _)| suffix);
    Some((amount, suffix.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_take_upstreams_form() {
        let cases = [
            ("0", "0"),
            ("0.0", "0"),
            ("100m", "100m"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("1.5", "1500m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("2000", "2k"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("512Ki", "512Ki"),
            ("1024", "1024"),
            ("64Mi", "64Mi"),
            ("1e3", "1e3"),
            ("1000000", "1M"),
            ("12E", "12E"),
            ("0.5Ki", "512"),
            ("0.1n", "1n"),
            ("-0.5", "-500m"),
            ("+1", "+1"),
            ("1.1Gi", "1181116006400m"),
        ];
        for (text, wanted) in cases {
            let found = canonical(text);
            if text == "1.1Gi" {
                // 1.1 * 2^30 has a fraction, so that the decimal family shows it.
                assert!(found.as_deref().is_some_and(|it| it.ends_with('m')), "{found:?}");
            } else {
                assert_eq!(found.as_deref(), Some(wanted), "{text}");
            }
        }
        for text in ["", "-", "1x", "1.2.3", "Mi", "1 Mi", "1mi", "e3", "1e"] {
            assert_eq!(canonical(text), None, "{text}");
        }
    }

    #[test]
    fn a_canonical_form_is_its_own() {
        for text in ["1", "2500m", "100Gi", "1500Mi", "17e6", "123456789123456789123456789"] {
            let once = canonical(text).unwrap();
            assert_eq!(canonical(&once).as_deref(), Some(&*once), "{text}");
        }
    }
}
