//! Counts tries.

use super::Verdict;
use k8s_openapi::api::core::v1::Probe;

/// Tries in a row, and what was concluded from them. Pure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    success_threshold: u32,
    failure_threshold: u32,
    last: Option<Verdict>,
    in_a_row: u32,
    concluded: Option<Verdict>,
}

impl Counter {
    /// With the thresholds of this probe; the API's defaults are 1 and 3.
    #[must_use]
    pub fn new(probe: &Probe) -> Self {
        let threshold =
            |given: Option<i32>, default| given.and_then(|it| u32::try_from(it).ok()).unwrap_or(default).max(1);
        Self {
            success_threshold: threshold(probe.success_threshold, 1),
            failure_threshold: threshold(probe.failure_threshold, 3),
            last: None,
            in_a_row: 0,
            concluded: None,
        }
    }

    /// One more try; the verdict, if it is another one than before.
    pub fn record(&mut self, tried: Verdict) -> Option<Verdict> {
        if self.last == Some(tried) {
            self.in_a_row = self.in_a_row.saturating_add(1);
        } else {
            (self.last, self.in_a_row) = (Some(tried), 1);
        }
        let needed = match tried {
            Verdict::Success => self.success_threshold,
            Verdict::Failure => self.failure_threshold,
        };
        if self.in_a_row < needed || self.concluded == Some(tried) {
            return None;
        }
        self.concluded = Some(tried);
        self.concluded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `s` and `f` are tries; the answer has `.` where nothing new was concluded.
    fn run(success_threshold: Option<i32>, failure_threshold: Option<i32>, tries: &str) -> String {
        let mut counter = Counter::new(&Probe {
            success_threshold,
            failure_threshold,
            ..Probe::default()
        });
        let one = |it| match counter.record(if it == 's' { Verdict::Success } else { Verdict::Failure }) {
            None => '.',
            Some(Verdict::Success) => 's',
            Some(Verdict::Failure) => 'f',
        };
        tries.chars().map(one).collect()
    }

    #[test]
    fn thresholds() {
        for (success, failure, tries, expected) in [
            (None, None, "sssss", "s...."),
            (None, None, "fffff", "..f.."),
            (None, None, "ffsfffs", "..s..fs"),
            (Some(1), Some(1), "sfsf", "sfsf"),
            (Some(3), Some(2), "sssfsfffsssss", "..s...f...s.."),
            (Some(2), Some(3), "sfsfsfss", ".......s"),
            (Some(0), Some(-1), "sfff", "s..f"),
        ] {
            assert_eq!(
                run(success, failure, tries),
                expected,
                "{success:?} {failure:?} {tries}"
            );
        }
    }
}
