//! Adds up the results of test programs.

use std::fmt;

/// Results so far. Its `Display` is the closing line of `cargo xtask test`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Tests that passed.
    pub(super) passed: u64,
    /// Tests that failed, and checks (format, lints, rules) that did.
    pub(super) failed: u64,
    /// Tests that did not run.
    pub(super) skipped: u64,
}

impl Tally {
    /// Counts a line of a test program, if it is a result: `test result: ok. 3 passed; 0 failed; 1 ignored; ...`
    pub(super) fn add(&mut self, line: &str) {
        let Some((_, counts)) = line
            .strip_prefix("test result: ")
            .and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for count in counts.split(';') {
            let Some((number, what)) = count.trim().split_once(' ') else {
                continue;
            };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }

    /// Counts a test as skipped that the test program counted as passed.
    pub(super) fn skip(&mut self) {
        self.passed = self.passed.saturating_sub(1);
        self.skipped += 1;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_up_results_and_nothing_else() {
        let mut tally = Tally::default();
        tally.add("test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.01s");
        assert_eq!(tally.to_string(), "3 passed, 0 failed");
        tally.add("test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 2.51s");
        tally.add("test tests::a ... ok");
        tally.add("a test printed: test result: ok. 7 passed");
        tally.skip();
        assert_eq!(tally.to_string(), "4 passed, 1 failed, 2 skipped");
    }
}
