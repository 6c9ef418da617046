//! Tables for people: columns as wide as their widest cell.

/// How a column is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table: headers with their alignment, then rows.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns and no rows.
    pub fn new(columns: &[(&str, Align)]) -> Self {
        let columns = columns.iter().map(|(name, align)| (name.to_string(), *align)).collect();
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    /// Adds a row; missing cells are empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The text, one line per row, without trailing blanks.
    pub fn render(&self) -> String {
        let cell = |row: &[String], column: usize| row.get(column).cloned().unwrap_or_default();
        let header: Vec<String> = self.columns.iter().map(|(name, _)| name.clone()).collect();
        let lines: Vec<&[String]> = std::iter::once(header.as_slice())
            .chain(self.rows.iter().map(Vec::as_slice))
            .collect();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| {
                lines
                    .iter()
                    .map(|line| cell(line, column).chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        for line in lines {
            let cells = self
                .columns
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(column, ((_, align), width))| match align {
                    Align::Left => format!("{:<width$}", cell(line, column)),
                    Align::Right => format!("{:>width$}", cell(line, column)),
                });
            text += cells.collect::<Vec<_>>().join("  ").trim_end();
            text.push('\n');
        }
        text
    }
}

/// Microseconds as people read them: `87 µs`, `1.20 ms`.
pub fn micros(us: u64) -> String {
    if us < 1_000 {
        format!("{us} µs")
    } else {
        format!("{:.2} ms", us as f64 / 1_000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&[("WHO", Align::Left), ("µS", Align::Right), ("", Align::Left)]);
        table.row(["outside", "7", "ok"].map(String::from));
        table.row(["a1".to_string()]);
        assert_eq!(table.render(), "WHO      µS\noutside   7  ok\na1\n");
    }

    #[test]
    fn durations_are_short() {
        assert_eq!([micros(0), micros(999), micros(1_200)], ["0 µs", "999 µs", "1.20 ms"]);
    }
}
