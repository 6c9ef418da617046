//! How often each controller did what.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
};

/// Counts per controller; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Statistics(Arc<Mutex<BTreeMap<&'static str, Counts>>>);

/// What one controller did since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Runs over a key.
    pub runs: u64,
    /// Runs that ended in a failure and are repeated.
    pub failures: u64,
    /// Runs that panicked: faults of ours.
    pub panics: u64,
}

impl Statistics {
    /// The counts of one controller.
    #[must_use]
    pub fn of(&self, controller: &str) -> Counts {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(controller).copied().unwrap_or_default()
    }

    pub(super) fn count(&self, controller: &'static str, change: impl FnOnce(&mut Counts)) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(all.entry(controller).or_default());
    }

    /// In the OpenMetrics text format, without the final `# EOF`.
    #[must_use]
    pub fn render(&self) -> String {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut text = String::new();
        for (name, help, pick) in METRICS {
            let _ = writeln!(text, "# TYPE {name} counter\n# HELP {name} {help}");
            for (controller, counts) in &all {
                let _ = writeln!(text, "{name}_total{{controller=\"{controller}\"}} {}", pick(counts));
            }
        }
        text
    }
}

type Metric = (&'static str, &'static str, fn(&Counts) -> u64);

const METRICS: [Metric; 3] = [
    ("controller_runs", "Runs over one object.", |it| it.runs),
    ("controller_failures", "Runs that failed and are repeated.", |it| {
        it.failures
    }),
    ("controller_panics", "Runs that panicked.", |it| it.panics),
];
