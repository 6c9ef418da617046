//! A whole cluster of one node: how long until it is ready, until pods run and are gone, and what it weighs.

mod client;
mod pods;
mod programs;
mod report;
mod stages;

use crate::{Output, scale::resident, traffic::Machine};
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use harness::{Cluster, Topology, agent};
use report::{Report, Row};
use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    thread::sleep,
    time::{Duration, Instant},
};

/// Time after the start in which a cluster does what it does once.
const SETTLE: Duration = Duration::from_secs(5);
/// SIGTERM: what `up` makes of it is what Ctrl-C does.
const TERMINATE: i32 = 15;
/// The clock of /proc/PID/stat on every Linux that matters, ticks per second.
const TICKS: f64 = 100.0;

/// Aims of a cluster on one node.
const READY_AGAIN_AIM_S: f64 = 1.5;
const IDLE_AIM_MB: f64 = 100.0;
const BINARY_AIM_MB: f64 = 60.0;

#[derive(Args, Clone)]
pub(crate) struct Options {
    /// Starts with an empty data directory, each in namespaces of its own
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    starts: u32,
    /// Starts again on the directory of the last of them, containerd still running
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    restarts: u32,
    /// Pods that are created one after the other
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=90))]
    pods: u32,
    /// Pods that are created at once
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=90))]
    burst: u32,
    /// Pods of the burst that are deleted at once
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=90))]
    deletions: u32,
    /// Seconds of doing nothing
    #[arg(long, value_name = "S", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
    idle: u64,
    /// The CNI plugin's own benchmark; left out if absent, except by `cargo xtask bench`
    #[arg(long, value_name = "PATH", env = "FAIRLEAD_CNI_BENCH")]
    cni_bench: Option<PathBuf>,
    /// The DNS server's own benchmark, likewise
    #[arg(long, value_name = "PATH", env = "FAIRLEAD_DNS_BENCH")]
    dns_bench: Option<PathBuf>,
    /// Few of everything, with little to conclude from
    #[arg(long)]
    quick: bool,
}

impl Options {
    /// What is left of them with `--quick`.
    fn effective(&self) -> Self {
        let mut all = self.clone();
        if self.quick {
            all.starts = all.starts.min(1);
            all.restarts = all.restarts.min(2);
            all.pods = all.pods.min(5);
            all.burst = all.burst.min(10);
            all.idle = all.idle.min(5);
        }
        all.deletions = all.deletions.min(all.burst);
        all
    }
}

/// Runs all of it and prints the report.
pub(crate) fn run(options: &Options, output: Output) -> Result<bool> {
    let options = options.effective();
    let mut report = Report::new(Machine::this());
    let size = fs::metadata(agent::binary()?)?.len() as f64 / 1e6;
    // First, while nothing of ours runs beside them.
    if let Some(program) = &options.cni_bench {
        programs::cni(program, options.quick, &mut report)?;
    }
    if let Some(program) = &options.dns_bench {
        programs::dns(program, options.quick, &mut report)?;
    }
    let (mut cold, mut parts) = (Vec::new(), Parts::default());
    for number in 1..=options.starts {
        eprintln!("starting with an empty directory, {number} of {} …", options.starts);
        let topology = Topology::standard(1, 0)?;
        let begun = Instant::now();
        let cluster = Cluster::start(&topology, topology.node("node-a"), &[])?;
        cold.push(begun.elapsed().as_secs_f64());
        parts.add(&cluster.said());
        if number == options.starts {
            let imports = parts.0.get("images").into_iter().flatten();
            let less: Vec<f64> = cold.iter().zip(imports).map(|(all, import)| all - import).collect();
            report.add(Row::of("start to ready, empty directory", "s", &cold));
            report.add(Row::of("start to ready, less the image's import", "s", &less));
            parts.report("empty directory", &mut report);
            on_cluster(&options, &topology, &cluster, &mut report)?;
        }
    }
    report.add(Row::one("size of the program", "MB", size).at_most(BINARY_AIM_MB));
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Table => report.print(),
    }
    Ok(true)
}

fn on_cluster(options: &Options, topology: &Topology, cluster: &Cluster<'_>, report: &mut Report) -> Result<()> {
    let (mut again, mut parts) = (Vec::new(), Parts::default());
    for number in 1..=options.restarts {
        eprintln!("starting again, {number} of {} …", options.restarts);
        ensure!(
            cluster.stop(TERMINATE)? == Some(0),
            "SIGTERM did not end the cluster well:\n{}",
            cluster.said()
        );
        let begun = Instant::now();
        cluster.launch()?;
        again.push(begun.elapsed().as_secs_f64());
        parts.add(&cluster.said());
    }
    report.add(Row::of("start to ready, again, containerd running", "s", &again).at_most(READY_AGAIN_AIM_S));
    parts.report("again", report);
    idle(options, cluster, report)?;
    let node = topology.node("node-a").actor.pid();
    let kubeconfig = cluster.data().join("admin.kubeconfig");
    let log = cluster.data().join("log/containerd.log");
    let outcome = pods::measure(options, node, &kubeconfig, &log, report);
    outcome.with_context(|| format!("pods; the cluster said:\n{}", cluster.said()))?;
    let pid = cluster.pid().context("the cluster does not run")?;
    report.add(Row::one("memory after all pods", "MB", resident(pid, "VmRSS:")?));
    report.add(Row::one("memory at most", "MB", resident(pid, "VmHWM:")?));
    Ok(())
}

/// Memory and processor time of a cluster that runs no pod and is asked nothing.
fn idle(options: &Options, cluster: &Cluster<'_>, report: &mut Report) -> Result<()> {
    eprintln!("idling …");
    sleep(SETTLE);
    let own = cluster.pid().context("the cluster does not run")?;
    let containerd = fs::read_to_string(cluster.run_dir().join("containerd.pid"))?;
    let containerd: i32 = containerd.trim().parse().context("containerd.pid holds no number")?;
    let before = [spent_s(own)?, spent_s(containerd)?];
    sleep(Duration::from_secs(options.idle));
    let after = [spent_s(own)?, spent_s(containerd)?];
    let percent = |which: usize| (after[which] - before[which]) / options.idle as f64 * 100.0;
    report.add(Row::one("memory, idle", "MB", resident(own, "VmRSS:")?).at_most(IDLE_AIM_MB));
    report.add(Row::one("processor, idle", "% of one", percent(0)));
    report.add(Row::one(
        "containerd: memory, idle",
        "MB",
        resident(containerd, "VmRSS:")?,
    ));
    report.add(Row::one("containerd: processor, idle", "% of one", percent(1)));
    Ok(())
}

/// Processor time that a process has used, seconds: utime and stime of proc(5).
fn spent_s(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace());
    let mut times = fields.with_context(|| format!("{path} is odd"))?.skip(11);
    let mut ticks = || -> Option<f64> { times.next()?.parse().ok() };
    match (ticks(), ticks()) {
        (Some(user), Some(system)) => Ok((user + system) / TICKS),
        _ => bail!("{path} has no times"),
    }
}

/// What `up` says of its parts, seconds by part.
#[derive(Default)]
struct Parts(BTreeMap<String, Vec<f64>>);

impl Parts {
    /// Reads lines `✓ PART  1.23 s  DETAIL` or `… 45 ms …`, and the last one, `The cluster is ready in 1.23 s`.
    fn add(&mut self, said: &str) {
        for line in said.lines() {
            let Some((_, rest)) = line.split_once('✓') else {
                continue;
            };
            let words: Vec<&str> = rest.split_whitespace().collect();
            let unit = |word: &str| match word {
                "ms" => Some(1e-3),
                "s" => Some(1.0),
                _ => None,
            };
            let time = words.windows(2).enumerate().skip(1).find_map(|(at, pair)| {
                let number: f64 = pair[0].parse().ok()?;
                Some((at, number * unit(pair[1])?))
            });
            if let Some((at, seconds)) = time {
                self.0.entry(words[..at].join(" ")).or_default().push(seconds);
            }
        }
    }

    fn report(&self, when: &str, report: &mut Report) {
        for (part, seconds) in &self.0 {
            report.add(Row::of(&format!("  {part}, {when}"), "s", seconds));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_parts_are_read_from_what_up_prints() {
        let mut parts = Parts::default();
        parts.add(
            "Starting a cluster in /x\n  ✓ container runtime     274 ms  containerd 1.6.20\n  ✓ images                1.19 s  1 archives imported\n  ✓ kubelet, network      555 ms  node-a is Ready\nThe cluster is ready in 2.85 s\n",
        );
        let expected = [
            ("container runtime", 0.274),
            ("images", 1.19),
            ("kubelet, network", 0.555),
        ];
        let found: Vec<_> = parts.0.iter().map(|(part, times)| (part.as_str(), times[0])).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn processor_time_of_this_process_is_some() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(spent_s(pid).unwrap() >= 0.0);
        assert!(spent_s(0).is_err());
    }
}
