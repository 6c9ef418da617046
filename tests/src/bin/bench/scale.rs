//! One agent with many services: how long until they are in the kernel, what a change costs, what they weigh.

use crate::{
    Output, lane,
    sample::short,
    services::{self, Format, Service},
    traffic::Machine,
};
use anyhow::{Context, Result, bail};
use clap::Args;
use harness::{
    Agent, AgentOptions, agent,
    proto::percentile,
    report::{Align, Table},
};
use serde::Serialize;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::Path,
    time::{Duration, Instant},
};

/// Services per file: a change of one file should cost what the file holds, whatever else the folder holds.
const PER_FILE: usize = 100;
/// Milliseconds that a change may take before the run gives up.
const PATIENCE_MS: u64 = 30_000;
/// Time for the agent to give back what only the start needed.
const SETTLE: Duration = Duration::from_secs(2);

/// Aims for 10 000 services with 10 endpoints.
const FIRST_SYNC_AIM_S: f64 = 0.5;
const CHANGE_AIM_MS: f64 = 5.0;
const RSS_AIM_MB: f64 = 100.0;

#[derive(Args, Clone)]
pub(crate) struct Options {
    /// Numbers of services
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1000,10000",
          value_parser = clap::value_parser!(u32).range(1..=50_000))]
    services: Vec<u32>,
    /// Endpoints of each service
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    endpoints: u32,
    /// Changes of one endpoint, one after the other
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    changes: u32,
    /// Syntax of the manifest files
    #[arg(long, value_enum, default_value = "json")]
    format: Format,
    /// 20 changes only
    #[arg(long)]
    quick: bool,
}

/// Percentiles of a duration over all changes, milliseconds.
#[derive(Debug, Serialize)]
struct Percentiles {
    p50_ms: f64,
    p99_ms: f64,
}

#[derive(Debug, Serialize)]
struct Memory {
    /// Resident, once the services were in the kernel.
    ready_mb: f64,
    /// Resident, after a pause.
    settled_mb: f64,
    /// Resident, after all changes.
    changed_mb: f64,
    /// The most it ever was.
    peak_mb: f64,
}

#[derive(Debug, Serialize)]
struct Scale {
    services: u32,
    endpoints: u32,
    manifests_mb: f64,
    /// Start of the process → every service in the kernel, as a script sees it.
    ready_seconds: f64,
    /// Of this the first sync, from plan to kernel, as the agent says.
    first_sync_seconds: f64,
    first_sync_ops: u64,
    /// Rename of a file with one changed endpoint → kernel, as a script sees it.
    rename_to_kernel: Percentiles,
    /// Event → kernel, as the agent says.
    event_to_kernel: Percentiles,
    memory: Memory,
    /// Kernel memory of all maps.
    maps_mb: f64,
    /// The largest maps, MB.
    largest_maps_mb: BTreeMap<String, f64>,
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    format: &'static str,
    changes: u32,
    scales: Vec<Scale>,
}

/// Runs all of it and prints the report.
pub(crate) fn run(options: &Options, output: Output) -> Result<bool> {
    let changes = if options.quick {
        options.changes.min(20)
    } else {
        options.changes
    };
    let scales = options
        .services
        .iter()
        .map(|services| measure(*services, changes, options).with_context(|| format!("{services} services")))
        .collect::<Result<_>>()?;
    let report = Report {
        machine: Machine::this(),
        format: options.format.extension(),
        changes,
        scales,
    };
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Table => report.print(),
    }
    Ok(true)
}

fn measure(count: u32, changes: u32, options: &Options) -> Result<Scale> {
    let mut all: Vec<Service> = (0..count as usize)
        .map(|n| Service::numbered(n, options.endpoints as usize))
        .collect();
    let files = services::files(&all, PER_FILE, options.format)?;
    let topology = lane::topology()?;
    let node = topology.node("node-a");
    let folder = node.dir.join("manifests");
    fs::create_dir_all(&folder)?;
    let mut bytes = 0;
    for (name, text) in &files {
        bytes += text.len();
        fs::write(folder.join(name), text)?;
    }
    let megabytes = bytes as f64 / 1e6;
    eprintln!(
        "{count} services with {} endpoints: {} files, {megabytes:.1} MB",
        options.endpoints,
        files.len()
    );

    // Twice what is served: an id rests before it is used again.
    let backends = (2 * count * options.endpoints).next_power_of_two().max(1 << 18);
    let flags = [("--max-backends", backends), ("--max-slots", 2 * backends)];
    let agent_options = AgentOptions {
        flags: flags
            .iter()
            .flat_map(|(flag, value)| [flag.to_string(), value.to_string()])
            .collect(),
        ..AgentOptions::default()
    };
    let begun = Instant::now();
    let agent = Agent::start(node, &agent_options, &[])?;
    let ready_seconds = begun.elapsed().as_secs_f64();
    let status = agent.status()?;
    let pid = agent.pid().context("the agent has ended")?;
    let ready_mb = resident(pid, "VmRSS:")?;
    if status["plan"]["services"] != count {
        bail!("the agent serves {} services", status["plan"]["services"]);
    }
    // Part of the measurement: memory is given back some time after its last use.
    std::thread::sleep(SETTLE);
    let settled_mb = resident(pid, "VmRSS:")?;

    eprintln!("in the kernel after {ready_seconds:.2} s; changing one endpoint {changes} times");
    let (renames, syncs) = change(&agent, &folder, &mut all, changes, options)?;
    let maps = maps_mb(pid)?;
    let mut largest: Vec<(&String, &f64)> = maps.iter().collect();
    largest.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    Ok(Scale {
        services: count,
        endpoints: options.endpoints,
        manifests_mb: megabytes,
        ready_seconds,
        first_sync_seconds: status["last_sync"]["seconds"].as_f64().unwrap_or_default(),
        first_sync_ops: status["last_sync"]["ops"].as_u64().unwrap_or_default(),
        rename_to_kernel: percentiles(renames),
        event_to_kernel: percentiles(syncs),
        memory: Memory {
            ready_mb,
            settled_mb,
            changed_mb: resident(pid, "VmRSS:")?,
            peak_mb: resident(pid, "VmHWM:")?,
        },
        maps_mb: maps.values().sum(),
        largest_maps_mb: largest
            .into_iter()
            .take(5)
            .map(|(name, mb)| (name.clone(), *mb))
            .collect(),
    })
}

/// Replaces one endpoint of one service in its file, `changes` times. Nanoseconds from rename to kernel, and of the sync.
fn change(
    agent: &Agent<'_>,
    folder: &Path,
    all: &mut [Service],
    changes: u32,
    options: &Options,
) -> Result<(Vec<u64>, Vec<u64>)> {
    let node = agent.node();
    let staged = node.dir.join("staged");
    let (mut renames, mut syncs) = (Vec::new(), Vec::new());
    for n in 0..changes {
        // A prime step, so that successive changes are in different files.
        let at = n as usize * 1_009 % all.len();
        let first = all[at].endpoints.first_mut().context("a service without endpoints")?;
        *first = Ipv4Addr::from(u32::from(*first) ^ (1 << 16 | 1 << 22));
        let file = at / PER_FILE;
        let of_file = &all[file * PER_FILE..all.len().min((file + 1) * PER_FILE)];
        let name = format!("services-{file:03}.{}", options.format.extension());
        fs::write(&staged, services::file(of_file, options.format)?)?;
        let applied = agent.status()?["applied_events"]
            .as_u64()
            .context("no applied_events")?;

        let begun = Instant::now();
        fs::rename(&staged, folder.join(&name))?;
        let path = format!("/status?applied_at_least={}", applied + 1);
        let reply = node.actor.http_get(agent::STATUS, &path, PATIENCE_MS)?;
        let elapsed = begun.elapsed();
        let status: Value = serde_json::from_str(&reply.body)?;
        if status["applied_events"].as_u64() < Some(applied + 1) {
            bail!("change {n} of {name} did not arrive within {PATIENCE_MS} ms");
        }
        let sync = &status["last_sync"];
        if sync["ops"].as_u64().unwrap_or_default() == 0 || sync["services"] != 1 {
            bail!("change {n} of {name} touched one service, but the sync was {sync}");
        }
        renames.push(elapsed.as_nanos() as u64);
        syncs.push((sync["seconds"].as_f64().unwrap_or_default() * 1e9) as u64);
    }
    Ok((renames, syncs))
}

fn percentiles(mut durations_ns: Vec<u64>) -> Percentiles {
    durations_ns.sort_unstable();
    let ms = |percent| percentile(&durations_ns, percent) as f64 / 1e6;
    Percentiles {
        p50_ms: ms(50.0),
        p99_ms: ms(99.0),
    }
}

/// A line of /proc/PID/status, MB.
pub(crate) fn resident(pid: i32, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kb: f64 = line
        .and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok())
        .with_context(|| format!("/proc/{pid}/status has no {field}"))?;
    Ok(kb * 1_024.0 / 1e6)
}

/// Kernel memory of the maps that a process holds, MB, by kind and entry size (a descriptor knows no name).
fn maps_mb(pid: i32) -> Result<BTreeMap<String, f64>> {
    let mut by_id = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor may be closed meanwhile.
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let field = |name: &str| -> Option<u64> {
            let value = text.lines().find_map(|line| line.strip_prefix(name))?;
            value.trim().parse().ok()
        };
        let shape = ["map_type:", "key_size:", "value_size:", "max_entries:"].map(field);
        if let ([Some(kind), Some(key), Some(value), Some(entries)], Some(id), Some(bytes)) =
            (shape, field("map_id:"), field("memlock:"))
        {
            // enum bpf_map_type in linux/bpf.h
            let kind = match kind {
                1 => "hash",
                2 => "array",
                6 => "per-CPU array",
                9 => "LRU hash",
                11 => "LPM trie",
                _ => "other",
            };
            let name = format!("{kind}, {key} + {value} bytes, {entries} entries, id {id}");
            by_id.insert(name, bytes as f64 / 1e6);
        }
    }
    Ok(by_id)
}

impl Report {
    fn print(&self) {
        println!(
            "{}; {} manifests, {PER_FILE} services per file\n",
            self.machine.line(),
            self.format
        );
        let mut columns = vec![("", Align::Left)];
        let titles: Vec<String> = self
            .scales
            .iter()
            .map(|scale| format!("{} × {}", short(f64::from(scale.services)), scale.endpoints))
            .collect();
        columns.extend(titles.iter().map(|title| (title.as_str(), Align::Right)));
        columns.push(("AIM", Align::Left));
        let mut table = Table::new(&columns);
        let mut line = |what: &str, aim: Option<(f64, &str)>, of: &dyn Fn(&Scale) -> f64| {
            let cells = self.scales.iter().map(|scale| short(of(scale)));
            let verdict = aim.map_or(String::new(), |(most, unit)| {
                let missed = self.scales.iter().any(|scale| of(scale) > most);
                format!("{} at most {most} {unit}", if missed { "MISSED:" } else { "ok:" })
            });
            table.row([what.to_string()].into_iter().chain(cells).chain([verdict]));
        };
        line("manifests, MB", None, &|scale| scale.manifests_mb);
        line("start of the process to ready, s", None, &|scale| scale.ready_seconds);
        line("first sync, s", Some((FIRST_SYNC_AIM_S, "s")), &|scale| {
            scale.first_sync_seconds
        });
        line("first sync, operations", None, &|scale| scale.first_sync_ops as f64);
        line("change: event to map, p50 ms", None, &|scale| {
            scale.event_to_kernel.p50_ms
        });
        line("change: event to map, p99 ms", Some((CHANGE_AIM_MS, "ms")), &|scale| {
            scale.event_to_kernel.p99_ms
        });
        line("change: rename to map, p50 ms", None, &|scale| {
            scale.rename_to_kernel.p50_ms
        });
        line("change: rename to map, p99 ms", None, &|scale| {
            scale.rename_to_kernel.p99_ms
        });
        line("resident when ready, MB", None, &|scale| scale.memory.ready_mb);
        line("resident settled, MB", Some((RSS_AIM_MB, "MB")), &|scale| {
            scale.memory.settled_mb
        });
        line("resident after the changes, MB", Some((RSS_AIM_MB, "MB")), &|scale| {
            scale.memory.changed_mb
        });
        line("resident at most, MB", None, &|scale| scale.memory.peak_mb);
        line("kernel memory of maps, MB", None, &|scale| scale.maps_mb);
        println!("{}", table.render());
        if let Some(last) = self.scales.last() {
            println!("Largest maps, MB:");
            for (name, mb) in &last.largest_maps_mb {
                println!("  {:>6}  {name}", short(*mb));
            }
        }
    }
}
