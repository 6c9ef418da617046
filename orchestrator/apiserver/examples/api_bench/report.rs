//! What was measured.

use serde_json::json;
use std::fmt::Write as _;

/// One figure: a median and what it is the median of.
pub(crate) struct Row {
    name: String,
    unit: &'static str,
    median: f64,
    least: f64,
    most: f64,
    samples: usize,
}

impl Row {
    pub(crate) fn of(name: &str, unit: &'static str, samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        Self {
            name: name.to_owned(),
            unit,
            median: percentile(&mut sorted, 0.5),
            least: sorted.first().copied().unwrap_or_default(),
            most: sorted.last().copied().unwrap_or_default(),
            samples: samples.len(),
        }
    }

    pub(crate) fn one(name: &str, unit: &'static str, value: f64) -> Self {
        Self::of(name, unit, &[value])
    }
}

/// Sorts, and takes the value below which this share lies.
pub(crate) fn percentile(samples: &mut [f64], share: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let at = ((samples.len() as f64 - 1.0) * share).round();
    samples.get(at.max(0.0) as usize).copied().unwrap_or_default()
}

#[derive(Default)]
pub(crate) struct Report(Vec<Row>);

impl Report {
    pub(crate) fn add(&mut self, row: Row) {
        eprintln!("  {}: {:.2} {}", row.name, row.median, row.unit);
        self.0.push(row);
    }

    pub(crate) fn text(&self) -> String {
        let mut text = format!("{:<44} {:>10}  {:<14} {}\n", "what", "median", "unit", "least … most");
        for row in &self.0 {
            let spread = if row.samples > 1 {
                format!("{:.2} … {:.2}", row.least, row.most)
            } else {
                String::new()
            };
            // Writing into a String cannot fail.
            let _ = writeln!(text, "{:<44} {:>10.2}  {:<14} {spread}", row.name, row.median, row.unit);
        }
        text
    }

    pub(crate) fn json(&self) -> String {
        let rows = self.0.iter().map(|row| {
            json!({
                "name": row.name, "unit": row.unit, "median": row.median, "least": row.least, "most": row.most,
                "samples": row.samples,
            })
        });
        format!("{:#}\n", json!({ "rows": rows.collect::<Vec<_>>() }))
    }
}
