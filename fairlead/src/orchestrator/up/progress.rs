//! One line per part as it comes up, with the time it took.

use std::{
    fmt::Display,
    io::{IsTerminal as _, Write as _, stdout},
    time::{Duration, Instant},
};

/// Prints what happens. Nothing is printed where the standard output is closed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    begun: Instant,
    colour: bool,
}

impl Progress {
    /// The clock starts now.
    pub(crate) fn new() -> Self {
        Self {
            begun: Instant::now(),
            colour: stdout().is_terminal(),
        }
    }

    /// A part is there; it took from `since` until now.
    pub(crate) fn done(&self, part: &str, since: Instant, detail: impl Display) {
        let (on, off) = if self.colour { ("\x1b[32m", "\x1b[0m") } else { ("", "") };
        self.line(format_args!(
            "  {on}✓{off} {part:<18} {:>9}  {detail}",
            shown(since.elapsed())
        ));
    }

    /// Everything is there.
    pub(crate) fn total(&self, what: impl Display) {
        self.line(format_args!("\n{what} in {}", shown(self.begun.elapsed())));
    }

    /// Something to read.
    #[allow(clippy::unused_self, reason = "what prints is the progress")]
    pub(crate) fn line(&self, text: impl Display) {
        // Nobody reads a closed output.
        let _ = writeln!(stdout(), "{text}");
    }
}

fn shown(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.2} s", time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        assert_eq!(shown(Duration::from_millis(7)), "7 ms");
        assert_eq!(shown(Duration::from_millis(1234)), "1.23 s");
    }
}
