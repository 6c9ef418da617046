//! Numbers that may be percentages.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Which way a percentage of a small number is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    Up,
    Down,
}

/// A number or a percentage of `total`; 0 for what is neither (the API server refuses it).
pub(crate) fn resolve(value: Option<&IntOrString>, total: i32, round: Round) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(number)) => (*number).max(0),
        Some(IntOrString::String(text)) => {
            let percent = text.strip_suffix('%').and_then(|it| it.parse::<i64>().ok());
            let hundredths = percent.unwrap_or_default().max(0) * i64::from(total.max(0));
            let whole = match round {
                Round::Up => (hundredths + 99) / 100,
                Round::Down => hundredths / 100,
            };
            i32::try_from(whole).unwrap_or(i32::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_rounded_as_told() {
        let quarter = IntOrString::String("25%".to_owned());
        assert_eq!(resolve(Some(&quarter), 10, Round::Up), 3);
        assert_eq!(resolve(Some(&quarter), 10, Round::Down), 2);
        assert_eq!(resolve(Some(&quarter), 8, Round::Up), 2);
        assert_eq!(resolve(Some(&IntOrString::Int(4)), 1, Round::Up), 4);
        assert_eq!(resolve(Some(&IntOrString::String("much".to_owned())), 9, Round::Up), 0);
        assert_eq!(resolve(None, 9, Round::Up), 0);
    }
}
