//! The benchmarks that parts have of their own: run, and their tables read.

use super::report::{Report, Row};
use anyhow::{Context as _, Result, ensure};
use std::{path::Path, process::Command};

/// Aim for one ADD, milliseconds.
const ADD_AIM_MS: f64 = 3.0;

/// The CNI plugin: one call after the other, and a burst.
///
/// # Errors
/// It fails, or says nothing that can be read.
pub(crate) fn cni(program: &Path, quick: bool, report: &mut Report) -> Result<()> {
    eprintln!("the CNI plugin …");
    let (count, burst) = if quick { ("30", "10") } else { ("300", "50") };
    let text = output(program, &[count, burst])?;
    let rows = cni_rows(&text);
    ensure!(!rows.is_empty(), "{} said no times:\n{text}", program.display());
    for (what, samples, times) in rows {
        let mut row = Row::told(&format!("CNI {what}"), "ms", samples, times);
        if what.starts_with("ADD") && what.ends_with("in a row") {
            row = row.at_most(ADD_AIM_MS);
        }
        report.add(row);
    }
    Ok(())
}

/// The DNS server with many Services, one processor for it and one for its client.
///
/// # Errors
/// As [`cni`].
pub(crate) fn dns(program: &Path, quick: bool, report: &mut Report) -> Result<()> {
    eprintln!("the DNS server …");
    let rounds = if quick { "1" } else { "5" };
    let text = output(program, &["--services", "10000", "--rounds", rounds])?;
    let rows = dns_rows(&text);
    ensure!(!rows.is_empty(), "{} said no rates:\n{text}", program.display());
    for (what, [rate, p50, p99]) in rows {
        report.add(Row::one(&format!("DNS {what}"), "queries/s", rate));
        report.add(Row::one(&format!("DNS {what}, one at a time, p50"), "µs", p50));
        report.add(Row::one(&format!("DNS {what}, one at a time, p99"), "µs", p99));
    }
    Ok(())
}

fn output(program: &Path, args: &[&str]) -> Result<String> {
    let shown = program.display();
    let output = Command::new(program).args(args).output();
    let output = output.with_context(|| format!("{shown} cannot be run; build it, or leave it out"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{shown}: {}\n{errors}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Lines `ADD, 300 in a row   1.02  2.03  3.04`: what, how many, p50, p99, most.
fn cni_rows(text: &str) -> Vec<(String, usize, [f64; 3])> {
    let read = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (what, times) = words.split_at_checked(words.len().checked_sub(3)?)?;
        let verb = what.first()?.strip_suffix(',')?;
        let samples: usize = what.get(1)?.parse().ok()?;
        let mut times = times.iter().map(|it| it.parse::<f64>().ok());
        let times = [times.next()??, times.next()??, times.next()??];
        Some((format!("{verb}, {}", what.get(2..)?.join(" ")), samples, times))
    };
    text.lines().filter_map(read).collect()
}

/// Lines `fairlead A 150000 30.1 50.2 0`: which questions, per second, p50, p99; the last number is of lost ones.
fn dns_rows(text: &str) -> Vec<(String, [f64; 3])> {
    let read = |line: &str| {
        let words: Vec<&str> = line.strip_prefix("fairlead ")?.split_whitespace().collect();
        let (what, numbers) = words.split_at_checked(words.len().checked_sub(4)?)?;
        let mut numbers = numbers.iter().map(|it| it.parse::<f64>().ok());
        Some((what.join(" "), [numbers.next()??, numbers.next()??, numbers.next()??]))
    };
    text.lines().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read() {
        let text = "milliseconds                            p50      p99      max\nVERSION, 300 in a row                  0.50     0.90     1.20\nADD, 50 at once                        9.50    10.00    11.00\n  all of them                         12.00\n";
        let expected = [
            ("VERSION, in a row".to_owned(), 300, [0.5, 0.9, 1.2]),
            ("ADD, at once".to_owned(), 50, [9.5, 10.0, 11.0]),
        ];
        assert_eq!(cni_rows(text), expected);
        let text = "server     questions           queries/s     p50 µs     p99 µs       lost\nfairlead   half NXDOMAIN          150000       10.5       20.0          0\nserver VmRSS: 20 kB\n";
        assert_eq!(dns_rows(text), [("half NXDOMAIN".to_owned(), [150_000.0, 10.5, 20.0])]);
    }
}
