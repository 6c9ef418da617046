//! How long ADD and DEL take, by the real plugin as a runtime starts it: `cni_bench [COUNT] [BURST]`, as root.
//!
//! The agent runs in this process, in a network namespace of its own; its journal is in the system's temporary directory.
//! A duration is from the start of the plugin's process to its end.

use anyhow::{Context as _, Result, ensure};
use fairlead_cni::Config;
use nix::sched::{CloneFlags, unshare};
use std::{
    env,
    fs::{self, File},
    io::Write as _,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

fn main() -> Result<()> {
    let mut args = env::args().skip(1).map(|arg| arg.parse::<usize>());
    let count = args.next().transpose().context("COUNT")?.unwrap_or(300);
    let burst = args.next().transpose().context("BURST")?.unwrap_or(50);
    ensure!(count > 0 && burst > 0, "COUNT and BURST are at least 1");
    // All threads and plugins start after this, so they are there too.
    unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace; this needs root")?;
    let dir = env::temp_dir().join(format!("fairlead-cni-bench-{}", std::process::id()));
    fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
    let result = measure(&dir, count, burst);
    let _ = fs::remove_dir_all(&dir);
    result
}

fn measure(dir: &Path, count: usize, burst: usize) -> Result<()> {
    let config = Config {
        run_dir: dir.join("run"),
        cni_bin_dir: dir.join("bin"),
        cni_conf_dir: dir.join("net.d"),
        pod_cidrs: vec!["10.1.0.0/20".parse()?, "fd00:10:1::/64".parse()?],
        ..Config::new("node")
    };
    let bench = Bench {
        plugin: config.cni_bin_dir.join(fairlead_cni::PLUGIN_NAME),
        network: serde_json::json!({
            "cniVersion": "1.0.0", "name": "fairlead", "type": "fairlead-cni", "runDir": config.run_dir,
        })
        .to_string(),
    };
    let conflist = config.cni_conf_dir.join(fairlead_cni::CONFLIST);
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let agent = thread::spawn(move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            // Nobody listens there: pod networks are fixed.
            let client = kube::Client::try_from(kube::Config::new("http://127.0.0.1:1".parse()?))?;
            fairlead_cni::run(config, client, stopped).await
        })
    });
    while !conflist.exists() {
        ensure!(!agent.is_finished(), "the agent did not start");
        thread::sleep(Duration::from_millis(5));
    }

    println!("{:<34}{:>9}{:>9}{:>9}", "milliseconds", "p50", "p99", "max");
    let mut version = Vec::new();
    for _ in 0..count {
        version.push(bench.call("VERSION", "c", None)?);
    }
    show(&format!("VERSION, {count} in a row"), &mut version);
    let (mut adds, mut dels) = (Vec::new(), Vec::new());
    for n in 0..count {
        let netns = namespace()?;
        let container = format!("c{n}");
        adds.push(bench.call("ADD", &container, Some(&netns))?);
        dels.push(bench.call("DEL", &container, Some(&netns))?);
    }
    show(&format!("ADD, {count} in a row"), &mut adds);
    show(&format!("DEL, {count} in a row"), &mut dels);

    let netns: Vec<File> = (0..burst).map(|_| namespace()).collect::<Result<_>>()?;
    for verb in ["ADD", "DEL"] {
        let started = Instant::now();
        let mut all = thread::scope(|scope| {
            let calls = netns.iter().enumerate().map(|(n, netns)| {
                let bench = &bench;
                scope.spawn(move || bench.call(verb, &format!("b{n}"), Some(netns)))
            });
            let calls: Vec<_> = calls.collect();
            let done = calls
                .into_iter()
                .map(|call| call.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?);
            done.collect::<Result<Vec<_>>>()
        })?;
        let total = started.elapsed();
        show(&format!("{verb}, {burst} at once"), &mut all);
        println!("{:<34}{:>9.2}", "  all of them", total.as_secs_f64() * 1000.0);
    }
    stop.cancel();
    agent.join().map_err(|_| anyhow::anyhow!("the agent panicked"))?
}

struct Bench {
    plugin: PathBuf,
    network: String,
}

impl Bench {
    fn call(&self, verb: &str, container: &str, netns: Option<&File>) -> Result<Duration> {
        let started = Instant::now();
        let mut command = Command::new(&self.plugin);
        command.env_clear();
        command.envs([
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", container),
            ("CNI_IFNAME", "eth0"),
        ]);
        if let Some(netns) = netns {
            command.env(
                "CNI_NETNS",
                format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd()),
            );
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        child
            .stdin
            .take()
            .context("no pipe")?
            .write_all(self.network.as_bytes())?;
        let output = child.wait_with_output()?;
        let elapsed = started.elapsed();
        ensure!(
            output.status.success(),
            "{verb}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        Ok(elapsed)
    }
}

fn namespace() -> Result<File> {
    let made = thread::spawn(|| -> Result<File> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(File::open("/proc/thread-self/ns/net")?)
    });
    made.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
}

fn show(what: &str, durations: &mut [Duration]) {
    durations.sort_unstable();
    let at = |per_cent: usize| {
        let at = (durations.len() * per_cent).div_ceil(100).saturating_sub(1);
        durations.get(at).map_or(0.0, |it| it.as_secs_f64() * 1000.0)
    };
    println!("{what:<34}{:>9.2}{:>9.2}{:>9.2}", at(50), at(99), at(100));
}
