//! Several runs of the same thing, in few words.

use serde::Serialize;

/// Median and spread of the rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Summary {
    /// Of at least one value; `None` of none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        };
        Some(Self { median, min, max })
    }
}

/// Standard deviation (of a sample) over mean; 0 for fewer than two values.
pub(crate) fn variation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt() / mean
}

/// A number with blanks between groups of three digits, and as many decimals as its size deserves.
pub(crate) fn short(value: f64) -> String {
    let decimals = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{value:.decimals$}");
    let (whole, rest) = text
        .split_once('.')
        .map_or((text.as_str(), None), |(whole, rest)| (whole, Some(rest)));
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    rest.map_or(grouped.clone(), |rest| format!("{grouped}.{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even() {
        let of = |values: &[f64]| Summary::of(values.iter().copied()).map(|summary| summary.median);
        assert_eq!(
            [of(&[3.0, 1.0, 2.0]), of(&[4.0, 1.0]), of(&[])],
            [Some(2.0), Some(2.5), None]
        );
    }

    #[test]
    fn variation_is_relative() {
        assert_eq!([variation(&[5.0]), variation(&[5.0, 5.0])], [0.0, 0.0]);
        assert!((variation(&[9.0, 10.0, 11.0]) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(
            [short(16_267.4), short(999.5), short(21.42), short(0.5)],
            ["16 267", "1 000", "21.4", "0.50"]
        );
    }
}
