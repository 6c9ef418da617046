//! What was measured of a cluster.

use crate::{sample::short, traffic::Machine};
use harness::report::{Align, Table};
use serde::Serialize;

/// One thing that was measured, once or often.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    what: String,
    unit: &'static str,
    samples: usize,
    p50: f64,
    p99: f64,
    least: f64,
    most: f64,
    /// The median may be at most this.
    #[serde(skip_serializing_if = "Option::is_none")]
    aim_p50: Option<f64>,
    /// The 99th percentile may be at most this.
    #[serde(skip_serializing_if = "Option::is_none")]
    aim_p99: Option<f64>,
}

impl Row {
    /// Of samples in any order.
    pub(crate) fn of(what: &str, unit: &'static str, samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self {
            what: what.to_owned(),
            unit,
            samples: sorted.len(),
            p50: nearest(&sorted, 0.5),
            p99: nearest(&sorted, 0.99),
            least: nearest(&sorted, 0.0),
            most: nearest(&sorted, 1.0),
            aim_p50: None,
            aim_p99: None,
        }
    }

    /// Of what is measured once.
    pub(crate) fn one(what: &str, unit: &'static str, value: f64) -> Self {
        Self::of(what, unit, &[value])
    }

    /// Of what another program has summed up.
    pub(crate) fn told(what: &str, unit: &'static str, samples: usize, [p50, p99, most]: [f64; 3]) -> Self {
        let mut row = Self::of(what, unit, &[p50, p99, most]);
        (row.samples, row.p50, row.p99, row.most) = (samples, p50, p99, most);
        row
    }

    /// With an aim for the median, or for the one value.
    pub(crate) fn at_most(mut self, aim: f64) -> Self {
        self.aim_p50 = Some(aim);
        self
    }

    /// With an aim for the 99th percentile.
    pub(crate) fn p99_at_most(mut self, aim: f64) -> Self {
        self.aim_p99 = Some(aim);
        self
    }

    fn verdict(&self) -> String {
        let judge = |what: &str, value: f64, aim: Option<f64>| {
            let aim = aim?;
            let word = if value > aim { "MISSED:" } else { "ok:" };
            Some(format!("{word}{what} at most {} {}", short(aim), self.unit))
        };
        let many = if self.samples > 1 { " p50" } else { "" };
        let all = [
            judge(many, self.p50, self.aim_p50),
            judge(" p99", self.p99, self.aim_p99),
        ];
        all.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// Nearest rank in a sorted slice; 0 in an empty one.
fn nearest(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// Everything, in the order in which it was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new(machine: Machine) -> Self {
        Self {
            machine,
            rows: Vec::new(),
        }
    }

    /// Adds a row, and tells it to who waits.
    pub(crate) fn add(&mut self, row: Row) {
        eprintln!("  {}: {} {}", row.what.trim(), short(row.p50), row.unit);
        self.rows.push(row);
    }

    pub(crate) fn print(&self) {
        println!("{}\n", self.machine.line());
        let mut table = Table::new(&[
            ("", Align::Left),
            ("UNIT", Align::Left),
            ("SAMPLES", Align::Right),
            ("P50", Align::Right),
            ("P99", Align::Right),
            ("LEAST", Align::Right),
            ("MOST", Align::Right),
            ("AIM", Align::Left),
        ]);
        for row in &self.rows {
            let spread =
                [row.p99, row.least, row.most].map(|it| if row.samples > 1 { short(it) } else { String::new() });
            let head = [
                row.what.clone(),
                row.unit.to_owned(),
                row.samples.to_string(),
                short(row.p50),
            ];
            table.row(head.into_iter().chain(spread).chain([row.verdict()]));
        }
        print!("{}", table.render());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_of_what_was_measured() {
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let row = Row::of("x", "ms", &samples);
        assert_eq!([row.p50, row.p99, row.least, row.most], [50.0, 99.0, 1.0, 100.0]);
        assert_eq!(Row::of("x", "ms", &[]).p50, 0.0);
    }

    #[test]
    fn aims_are_met_or_missed() {
        let row = |aim, p99| Row::of("x", "ms", &[1.0, 3.0]).at_most(aim).p99_at_most(p99);
        assert_eq!(
            row(1.0, 2.0).verdict(),
            "ok: p50 at most 1.00 ms, MISSED: p99 at most 2.00 ms"
        );
        assert_eq!(Row::one("x", "s", 2.0).at_most(1.0).verdict(), "MISSED: at most 1.00 s");
        assert_eq!(Row::one("x", "s", 2.0).verdict(), "");
    }
}
