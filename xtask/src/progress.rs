//! One line when a step begins, one when it ends, with its duration.

use std::{
    fmt::Display,
    io::{self, Write as _},
    time::{Duration, Instant},
};

/// Where progress is written. A closed pipe is no reason to stop, so write errors are ignored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    to_stderr: bool,
}

impl Progress {
    /// For commands whose result is the progress itself.
    pub(crate) fn stdout() -> Self {
        Self { to_stderr: false }
    }

    /// For commands whose stdout belongs to the program they run.
    pub(crate) fn stderr() -> Self {
        Self { to_stderr: true }
    }

    /// Nothing had to be done.
    pub(crate) fn there(&self, what: impl Display) {
        self.line(format_args!("✓ {what}: already there"));
    }

    /// A step begins; finish it with [`Step::done`] or [`Step::failed`].
    pub(crate) fn begin(&self, what: impl Display) -> Step {
        self.line(format_args!("→ {what} …"));
        Step {
            progress: *self,
            what: what.to_string(),
            start: Instant::now(),
        }
    }

    /// A remark.
    pub(crate) fn say(&self, what: impl Display) {
        self.line(format_args!("  {what}"));
    }

    /// A line as it is.
    pub(crate) fn line(&self, line: impl Display) {
        let _ = if self.to_stderr {
            writeln!(io::stderr(), "{line}")
        } else {
            writeln!(io::stdout(), "{line}")
        };
    }
}

/// A step that has begun.
#[derive(Debug)]
pub(crate) struct Step {
    progress: Progress,
    what: String,
    start: Instant,
}

impl Step {
    /// It worked.
    pub(crate) fn done(self) {
        self.progress
            .line(format_args!("✓ {} ({})", self.what, seconds(self.start.elapsed())));
    }

    /// It did not.
    pub(crate) fn failed(self) {
        self.progress
            .line(format_args!("✗ {} ({})", self.what, seconds(self.start.elapsed())));
    }
}

fn seconds(elapsed: Duration) -> String {
    if elapsed < Duration::from_secs(10) {
        format!("{:.1} s", elapsed.as_secs_f64())
    } else {
        format!("{} s", elapsed.as_secs())
    }
}
