//! Whether an SPDX licence expression can be satisfied by licences that we allow.

use std::collections::BTreeSet;

/// `OR` needs one side, `AND` both, and `AND` binds tighter; `a/b` is the old spelling of `a OR b`. A licence `WITH` an
/// exception is allowed as a whole or by its licence alone: an exception only permits more. What cannot be read is
/// not allowed.
pub(super) fn allowed(expression: &str, licences: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut words = words.as_slice();
    let verdict = any(&mut words, licences);
    words.is_empty() && verdict == Some(true)
}

/// `None`: not an expression.
fn any(words: &mut &[&str], licences: &BTreeSet<String>) -> Option<bool> {
    let mut verdict = all(words, licences)?;
    while take(words, "OR") {
        verdict |= all(words, licences)?;
    }
    Some(verdict)
}

fn all(words: &mut &[&str], licences: &BTreeSet<String>) -> Option<bool> {
    let mut verdict = one(words, licences)?;
    while take(words, "AND") {
        verdict &= one(words, licences)?;
    }
    Some(verdict)
}

fn one(words: &mut &[&str], licences: &BTreeSet<String>) -> Option<bool> {
    if take(words, "(") {
        let verdict = any(words, licences)?;
        return take(words, ")").then_some(verdict);
    }
    let licence = next(words)?;
    if take(words, "WITH") {
        let exception = next(words)?;
        return Some(licences.contains(licence) || licences.contains(&format!("{licence} WITH {exception}")));
    }
    Some(licences.contains(licence))
}

fn next<'a>(words: &mut &[&'a str]) -> Option<&'a str> {
    let (first, rest) = words.split_first()?;
    *words = rest;
    Some(first)
}

fn take(words: &mut &[&str], word: &str) -> bool {
    let found = words.first() == Some(&word);
    if found {
        *words = &words[1..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_mean_what_spdx_says() {
        let licences = ["MIT", "Apache-2.0", "Unicode-3.0"].map(str::to_owned).into();
        for (expression, verdict) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("GPL-3.0 OR MIT", true),
            ("Unlicense/MIT", true),
            ("MIT AND GPL-3.0", false),
            ("(MIT OR GPL-3.0) AND Unicode-3.0", true),
            ("MIT OR GPL-3.0 AND GPL-2.0", true),
            ("(MIT OR GPL-3.0) AND GPL-2.0", false),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("GPL-2.0 WITH Classpath-exception-2.0", false),
            ("(MIT", false),
            ("MIT MIT", false),
            ("MIT OR", false),
            ("", false),
        ] {
            assert_eq!(allowed(expression, &licences), verdict, "{expression}");
        }
    }
}
