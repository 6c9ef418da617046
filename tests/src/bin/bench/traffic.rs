//! New connections, round trips, datagrams and streams over every path, round after round.

use crate::{
    Output,
    lane::{self, Lane, NOWHERE, Path},
    sample::{Summary, short, variation},
    services::PORT,
};
use anyhow::{Context, Result, bail};
use clap::Args;
use harness::{
    Topology,
    measure::Work,
    report::{Align, Table},
};
use serde::Serialize;
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// What is measured on every lane, in this order.
const WORKS: [Work; 4] = [Work::Connections, Work::RoundTrips, Work::Datagrams, Work::Stream];
/// Coefficient of variation of direct routing above which absolute figures mean little.
const NOISY: f64 = 0.05;
/// The aim: what translating a socket may cost over a hook that finds nothing.
const HOOK_AIM_NS: f64 = 300.0;

#[derive(Args, Clone)]
#[allow(
    clippy::doc_markdown,
    reason = "these words are the help text, where backticks would show"
)]
pub(crate) struct Options {
    /// Rounds; each measures every path once, and begins with another one
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Seconds for each of the four loops of a path, in each round
    #[arg(long, value_name = "S", value_parser = seconds)]
    seconds: Option<Duration>,
    /// Two rounds of 0.3 s: shows that everything works, and little else
    #[arg(long)]
    quick: bool,
    /// Numbers of services
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,10000",
          value_parser = clap::value_parser!(u32).range(1..=50_000))]
    services: Vec<u32>,
    /// Only these paths, besides direct routing
    #[arg(long, value_enum, value_name = "PATH,...", value_delimiter = ',')]
    only: Vec<Path>,
    /// Processor of clients and servers, counted from 0 [default: the last]
    #[arg(long)]
    cpu: Option<usize>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text} is no number"))?;
    if !(0.01..=60.0).contains(&seconds) {
        return Err("between 0.01 and 60".to_string());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// One loop's figures over all rounds.
#[derive(Clone, Debug, Default, Serialize)]
struct Cell {
    per_second: Option<Summary>,
    /// Median of the rounds' ratios to direct routing in the same round.
    to_direct: Option<f64>,
    p50_us: Option<f64>,
    p99_us: Option<f64>,
    /// Direct routing only: coefficient of variation between rounds.
    variation: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Row {
    path: Path,
    services: usize,
    /// Until the services were in the kernel.
    setup_seconds: f64,
    connections: Cell,
    round_trips: Cell,
    datagrams: Cell,
    /// Bytes.
    stream: Cell,
}

#[derive(Debug, Serialize)]
struct HookRow {
    socket: &'static str,
    services: usize,
    p50_ns: Summary,
    p99_ns: Summary,
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    rounds: u32,
    seconds: f64,
    cpu: usize,
    rows: Vec<Row>,
    hook: Vec<HookRow>,
    noisy: bool,
    faults: Vec<String>,
}

/// What the figures depend on.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    kernel: String,
    processor: String,
    processors: usize,
}

impl Machine {
    pub(crate) fn this() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let processor = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or("unknown", |(_, name)| name);
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_string(),
            processor: processor.to_string(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    pub(crate) fn line(&self) -> String {
        format!("{} × {}, Linux {}", self.processors, self.processor, self.kernel)
    }
}

/// One figure of one loop.
#[derive(Clone, Copy)]
struct Figure {
    per_second: f64,
    p50_ns: u64,
    p99_ns: u64,
}

/// By lane, loop and round; `None` where it failed.
type Figures = Vec<[Vec<Option<Figure>>; WORKS.len()]>;

/// Runs all of it and prints the report; whether every loop worked.
pub(crate) fn run(options: &Options, output: Output) -> Result<bool> {
    let machine = Machine::this();
    let rounds = options.rounds.unwrap_or(if options.quick { 2 } else { 5 });
    let default_time = Duration::from_millis(if options.quick { 300 } else { 1_500 });
    let time = options.seconds.unwrap_or(default_time);
    let cpu = options.cpu.unwrap_or(machine.processors - 1);

    let wanted = wanted(options);
    let begun = Instant::now();
    let topologies: Vec<Topology> = wanted.iter().map(|_| lane::topology()).collect::<Result<_>>()?;
    eprintln!(
        "built {} topologies in {:.1} s",
        topologies.len(),
        begun.elapsed().as_secs_f64()
    );
    let mut lanes = Vec::new();
    for ((path, services), topology) in wanted.iter().zip(&topologies) {
        let lane = Lane::prepare(topology, *path, *services)
            .with_context(|| format!("{} with {services} services", path.name()))?;
        if *path != Path::Direct {
            eprintln!(
                "{}: {services} services in {:.2} s",
                path.name(),
                lane.setup.as_secs_f64()
            );
        }
        lanes.push(lane);
    }

    let mut faults = Vec::new();
    let mut figures: Figures = lanes.iter().map(|_| Default::default()).collect();
    let mut hook: Vec<[Vec<(f64, f64)>; 3]> = lanes.iter().map(|_| Default::default()).collect();
    for round in 0..rounds as usize {
        // Another one first each time, so that what drifts meets all alike.
        let first = round * lanes.len() / rounds as usize;
        let order: Vec<usize> = (0..lanes.len()).map(|at| (at + first) % lanes.len()).collect();
        // One loop over all lanes, then the next: what is compared is close in time.
        for (n, work) in WORKS.into_iter().enumerate() {
            eprintln!("round {} of {rounds}: {work}", round + 1);
            for &at in &order {
                figures[at][n].push(figure(&lanes[at], work, time, cpu, &mut faults));
            }
        }
        for &at in &order {
            if let Err(error) = time_hook(&lanes[0], &lanes[at], time / 3, cpu, &mut hook[at]) {
                faults.push(format!("{}: {error:#}", lanes[at].path.name()));
            }
        }
    }
    let report = Report {
        rows: rows(&lanes, &figures),
        hook: hook_rows(&lanes, &hook),
        noisy: false,
        machine,
        rounds,
        seconds: time.as_secs_f64(),
        cpu,
        faults,
    };
    drop(lanes);
    drop(topologies);
    eprintln!("removed all that was made");
    let report = Report {
        noisy: report.worst_variation() > NOISY,
        ..report
    };
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Table => report.print(),
    }
    Ok(report.faults.is_empty())
}

/// Paths and numbers of services, direct routing first.
fn wanted(options: &Options) -> Vec<(Path, usize)> {
    let mut wanted = vec![(Path::Direct, 0)];
    for path in clap::ValueEnum::value_variants() {
        if *path == Path::Direct || !(options.only.is_empty() || options.only.contains(path)) {
            continue;
        }
        if let Some(tool) = path.missing() {
            eprintln!("leaving {} out: there is no {tool} here", path.name());
            continue;
        }
        wanted.extend(options.services.iter().map(|services| (*path, *services as usize)));
    }
    wanted
}

fn figure(lane: &Lane<'_>, work: Work, time: Duration, cpu: usize, faults: &mut Vec<String>) -> Option<Figure> {
    let mut fault = |what: String| {
        faults.push(format!(
            "{} with {} services, {work}: {what}",
            lane.path.name(),
            lane.services
        ));
    };
    match lane.measure(work, time, cpu) {
        Ok((seen, per_second)) => {
            if seen.failed > 0 {
                let error = seen.error.unwrap_or_default();
                fault(format!("{} failed besides {}: {error}", seen.failed, seen.count));
            }
            Some(Figure {
                per_second,
                p50_ns: seen.p50_ns,
                p99_ns: seen.p99_ns,
            })
        }
        Err(error) => {
            fault(format!("{error:#}"));
            None
        }
    }
}

const HOOK_PLACES: [&str; 3] = ["no program", "program, no service", "program, VIP to backend"];

/// `plain` is a lane without programs, with the same client and routes.
fn time_hook(
    plain: &Lane<'_>,
    lane: &Lane<'_>,
    time: Duration,
    cpu: usize,
    into: &mut [Vec<(f64, f64)>; 3],
) -> Result<()> {
    let Some(vip) = lane.hook else { return Ok(()) };
    let nowhere = SocketAddr::new(NOWHERE.into(), PORT);
    for ((lane, dst), into) in [(plain, nowhere), (lane, nowhere), (lane, vip)].into_iter().zip(into) {
        let seen = lane.time_connect(dst, time, cpu)?;
        if seen.count == 0 {
            bail!("no connect ended within {time:?}");
        }
        into.push((seen.p50_ns as f64, seen.p99_ns as f64));
    }
    Ok(())
}

fn rows(lanes: &[Lane<'_>], figures: &Figures) -> Vec<Row> {
    let direct = lanes.iter().position(|lane| lane.path == Path::Direct);
    let row = |(lane, mine): (&Lane<'_>, &[Vec<Option<Figure>>; WORKS.len()])| {
        let cell = |work: usize| {
            let base = direct.map(|at| &figures[at][work][..]);
            cell(&mine[work], base, lane.path == Path::Direct)
        };
        Row {
            path: lane.path,
            services: lane.services,
            setup_seconds: lane.setup.as_secs_f64(),
            connections: cell(0),
            round_trips: cell(1),
            datagrams: cell(2),
            stream: cell(3),
        }
    };
    lanes.iter().zip(figures).map(row).collect()
}

fn cell(rounds: &[Option<Figure>], direct: Option<&[Option<Figure>]>, is_direct: bool) -> Cell {
    let there = || rounds.iter().flatten();
    let ratios = rounds.iter().zip(direct.unwrap_or_default());
    let ratios = ratios.filter_map(|(mine, base)| Some(mine.as_ref()?.per_second / base.as_ref()?.per_second));
    let median_us = |of: fn(&Figure) -> u64| {
        let median = Summary::of(there().map(|figure| of(figure) as f64))?.median;
        (median > 0.0).then_some(median / 1_000.0)
    };
    let rates: Vec<f64> = there().map(|figure| figure.per_second).collect();
    Cell {
        per_second: Summary::of(rates.iter().copied()),
        to_direct: Summary::of(ratios).map(|ratios| ratios.median),
        p50_us: median_us(|figure| figure.p50_ns),
        p99_us: median_us(|figure| figure.p99_ns),
        variation: is_direct.then(|| variation(&rates)),
    }
}

fn hook_rows(lanes: &[Lane<'_>], seen: &[[Vec<(f64, f64)>; 3]]) -> Vec<HookRow> {
    let mut rows = Vec::new();
    for (lane, places) in lanes.iter().zip(seen) {
        for (socket, rounds) in HOOK_PLACES.into_iter().zip(places) {
            let p50_ns = Summary::of(rounds.iter().map(|(p50, _)| *p50));
            let p99_ns = Summary::of(rounds.iter().map(|(_, p99)| *p99));
            if let (Some(p50_ns), Some(p99_ns)) = (p50_ns, p99_ns) {
                rows.push(HookRow {
                    socket,
                    services: lane.services,
                    p50_ns,
                    p99_ns,
                });
            }
        }
    }
    rows
}

impl Report {
    fn cells_of_direct(&self) -> impl Iterator<Item = (Work, &Cell)> {
        let direct = self.rows.iter().filter(|row| row.path == Path::Direct);
        direct.flat_map(|row| {
            WORKS
                .into_iter()
                .zip([&row.connections, &row.round_trips, &row.datagrams, &row.stream])
        })
    }

    fn worst_variation(&self) -> f64 {
        let variations = self.cells_of_direct().filter_map(|(_, cell)| cell.variation);
        variations.fold(0.0, f64::max)
    }

    fn print(&self) {
        println!(
            "{}; client, node and backend on processor {}; median (min–max) of {} rounds of {} s\n",
            self.machine.line(),
            self.cpu,
            self.rounds,
            self.seconds
        );
        println!("New TCP connections\n\n{}", self.connections().render());
        println!("On one connection or socket\n\n{}", self.others().render());
        if !self.hook.is_empty() {
            println!(
                "connect() of a TCP socket, up to where its route would be used\n\n{}",
                self.hook().render()
            );
        }
        println!("{}", self.verdict());
        for fault in &self.faults {
            println!("FAILED: {fault}");
        }
    }

    fn connections(&self) -> Table {
        let mut table = Table::new(&[
            ("PATH", Align::Left),
            ("SERVICES", Align::Right),
            ("PER SECOND", Align::Right),
            ("", Align::Left),
            ("× DIRECT", Align::Right),
            ("CPU µS EACH", Align::Right),
            ("CONNECT P50 µS", Align::Right),
            ("P99", Align::Right),
            ("SET UP IN S", Align::Right),
        ]);
        for row in &self.rows {
            let cell = &row.connections;
            let [rate, spread, ratio] = rates(cell, 1.0);
            let each = cell.per_second.map(|rates| 1e6 / rates.median);
            let setup = (row.services > 0).then_some(row.setup_seconds);
            table.row([
                row.path.name().to_string(),
                services(row.services),
                rate,
                spread,
                ratio,
                optional(each),
                optional(cell.p50_us),
                optional(cell.p99_us),
                optional(setup),
            ]);
        }
        table
    }

    fn others(&self) -> Table {
        let mut table = Table::new(&[
            ("PATH", Align::Left),
            ("SERVICES", Align::Right),
            ("ROUND TRIPS/S", Align::Right),
            ("", Align::Left),
            ("× DIRECT", Align::Right),
            ("UDP KPPS", Align::Right),
            ("", Align::Left),
            ("× DIRECT", Align::Right),
            ("STREAM GB/S", Align::Right),
            ("", Align::Left),
            ("× DIRECT", Align::Right),
        ]);
        for row in &self.rows {
            let cells = [(&row.round_trips, 1.0), (&row.datagrams, 1e-3), (&row.stream, 8e-9)];
            let first = [row.path.name().to_string(), services(row.services)];
            table.row(
                first
                    .into_iter()
                    .chain(cells.iter().flat_map(|(cell, unit)| rates(cell, *unit))),
            );
        }
        table
    }

    fn hook(&self) -> Table {
        let mut table = Table::new(&[
            ("SOCKET", Align::Left),
            ("SERVICES", Align::Right),
            ("P50 NS", Align::Right),
            ("", Align::Left),
            ("P99 NS", Align::Right),
            ("OVER NO SERVICE, NS", Align::Right),
            ("", Align::Left),
        ]);
        for row in &self.hook {
            let base = self
                .hook
                .iter()
                .find(|other| other.services == row.services && other.socket == HOOK_PLACES[1]);
            let over = base.map_or(0.0, |base| row.p50_ns.median - base.p50_ns.median);
            let is_hit = row.socket == HOOK_PLACES[2];
            let verdict = match is_hit {
                false => "",
                true if over <= HOOK_AIM_NS => "ok: at most 300",
                true => "MISSED: at most 300",
            };
            table.row([
                row.socket.to_string(),
                services(row.services),
                short(row.p50_ns.median),
                format!("({}–{})", short(row.p50_ns.min), short(row.p50_ns.max)),
                short(row.p99_ns.median),
                if is_hit { format!("{over:.0}") } else { String::new() },
                verdict.to_string(),
            ]);
        }
        table
    }

    fn verdict(&self) -> String {
        let each: Vec<String> = self
            .cells_of_direct()
            .filter_map(|(work, cell)| Some(format!("{work} {:.1} %", cell.variation? * 100.0)))
            .collect();
        let each = each.join(", ");
        if self.rounds < 2 {
            return "one round cannot tell how noisy this machine is".to_string();
        }
        if self.noisy {
            format!("noisy: use ratios only; direct routing varied between rounds by {each}")
        } else {
            format!("quiet; direct routing varied between rounds by {each}")
        }
    }
}

/// Rate, spread and ratio, of which direct routing has none.
fn rates(cell: &Cell, unit: f64) -> [String; 3] {
    let Some(rates) = cell.per_second else {
        return ["failed".to_string(), String::new(), String::new()];
    };
    let ratio = cell.to_direct.filter(|_| cell.variation.is_none());
    [
        short(rates.median * unit),
        format!("({}–{})", short(rates.min * unit), short(rates.max * unit)),
        ratio.map_or(String::new(), |ratio| format!("{ratio:.2}")),
    ]
}

fn services(count: usize) -> String {
    if count == 0 { String::new() } else { short(count as f64) }
}

fn optional(value: Option<f64>) -> String {
    value.map_or(String::new(), short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_pair_rounds() {
        let figure = |per_second| {
            Some(Figure {
                per_second,
                p50_ns: 2_000,
                p99_ns: 3_000,
            })
        };
        // Halfway through, the machine became half as fast: absolute figures say nothing, ratios stay.
        let direct = [figure(100.0), figure(100.0), figure(50.0), None];
        let mine = [figure(90.0), None, figure(45.0), figure(1.0)];
        let cell = cell(&mine, Some(&direct), false);
        assert!((cell.to_direct.unwrap() - 0.9).abs() < 1e-9, "{cell:?}");
        assert_eq!((cell.p50_us, cell.variation), (Some(2.0), None));
    }

    #[test]
    fn a_loop_that_never_worked_is_no_number() {
        let cell = cell(&[None, None], Some(&[None, None]), false);
        assert_eq!(rates(&cell, 1.0)[0], "failed");
    }
}
