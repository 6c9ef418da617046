//! `fairlead down`: ends pods and everything that serves them; with `--all` also what lasts.

use super::{
    containerd,
    layout::{Elsewhere, Layout},
    lock::Lock,
    node::network,
    progress::Progress,
};
use crate::{joints, orchestrator::flags::DownArgs};
use anyhow::{Context as _, Result, bail};
use fairlead_kubelet::cri::Runtime;
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::time::sleep;

/// Time until the cluster's process must have ended.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two looks at another process.
const LOOK: Duration = Duration::from_millis(10);
/// Time for a container to end by itself before it is killed: nothing waits for it any more.
const GRACE: Duration = Duration::from_secs(1);

/// Runs the command. Safe to repeat; goes on after an error and reports all of them.
///
/// # Errors
/// What is left.
pub(crate) fn main(args: &DownArgs) -> Result<()> {
    let layout = Layout::of(&args.data_dir, args.run_dir.as_deref())?;
    super::block_on(async {
        let progress = Progress::new();
        if !layout.is_clusters() {
            if layout.data.exists() {
                bail!(
                    "{} holds no cluster of ours: give the --data-dir of one",
                    layout.data.display()
                );
            }
            progress.line(format_args!(
                "Nothing is there: {} does not exist",
                layout.data.display()
            ));
            return Ok(());
        }
        let elsewhere = Elsewhere::read(&layout);
        let mut left: Vec<String> = Vec::new();
        let mut step = |name: &str, result: Result<String>, since: Instant| match result {
            Ok(detail) if detail.is_empty() => {}
            Ok(detail) => progress.done(name, since, detail),
            Err(error) => left.push(format!("{name}: {error:#}")),
        };
        let since = Instant::now();
        // What runs must not lose its directories under its feet.
        let ended = end_process(&layout).await?;
        step("process", Ok(ended), since);
        let since = Instant::now();
        step("pods", end_pods(&layout).await, since);
        let since = Instant::now();
        let ended = containerd::stop(&layout).await;
        step(
            "container runtime",
            ended.map(|it| if it { "ended".into() } else { String::new() }),
            since,
        );
        let since = Instant::now();
        let uninstalled = fairlead_cni::uninstall(&network(&layout, ""));
        step("node network", uninstalled.map(|()| "removed".into()), since);
        let since = Instant::now();
        let programs = joints::cleanup(&elsewhere.bpffs, None);
        step("service proxy", programs.map(|it| it.join(", ")), since);
        let since = Instant::now();
        step("mounts", unmount_below(&[&layout.run, &layout.data]), since);
        let since = Instant::now();
        step("cgroups", remove_cgroups(&elsewhere.pod_cgroup), since);
        for (name, directory) in [("run directory", &layout.run), ("data directory", &layout.data)] {
            let since = Instant::now();
            if (args.all || name == "run directory") && directory.exists() {
                step(name, remove_directory(directory), since);
            }
        }
        if !left.is_empty() {
            bail!(
                "not everything could be removed; run it again as root:\n  {}",
                left.join("\n  ")
            );
        }
        progress.total("Down");
        Ok(())
    })
}

async fn end_process(layout: &Layout) -> Result<String> {
    let Some(pid) = Lock::holder(layout) else {
        return Ok(String::new());
    };
    kill(Pid::from_raw(pid), Signal::SIGTERM).with_context(|| format!("process {pid} cannot be ended"))?;
    let begun = Instant::now();
    while Lock::holder(layout).is_some() {
        if begun.elapsed() > PATIENCE {
            bail!("process {pid} does not end; end it by hand: kill -9 {pid}");
        }
        sleep(LOOK).await;
    }
    Ok(format!("{pid} ended"))
}

/// Ends every sandbox of our containerd. Where containerd is gone but its shims are not, it is started once more.
async fn end_pods(layout: &Layout) -> Result<String> {
    let socket = match containerd::socket_of_running(layout) {
        Some(socket) => socket,
        None if layout.data.join("containerd").is_dir() && layout.run.join("containerd").is_dir() => {
            containerd::start(layout, fairlead_images::PAUSE_IMAGE).await?.socket
        }
        None => return Ok(String::new()),
    };
    let runtime = Runtime::new(&socket)?;
    let sandboxes = runtime.sandboxes(None).await?;
    let containers = runtime.containers(None).await?;
    let stops = containers.iter().map(|it| runtime.stop_container(&it.id, GRACE));
    for stopped in futures::future::join_all(stops).await {
        stopped?;
    }
    let ends = sandboxes.iter().map(|sandbox| async {
        runtime.stop_sandbox(&sandbox.id).await?;
        runtime.remove_sandbox(&sandbox.id).await
    });
    for ended in futures::future::join_all(ends).await {
        ended?;
    }
    Ok(format!("{} ended", sandboxes.len()))
}

/// Mount points strictly below our directories, the deepest first. The directories themselves may be the user's own mounts.
fn mounted_below(directories: &[&Path]) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo cannot be read")?;
    let unescaped = |text: &str| text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\");
    let mut points: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| Some(PathBuf::from(unescaped(line.split(' ').nth(4)?))))
        .filter(|point| directories.iter().any(|it| point.starts_with(it) && point != it))
        .collect();
    points.sort_by_key(|it| std::cmp::Reverse(it.components().count()));
    Ok(points)
}

fn unmount_below(directories: &[&Path]) -> Result<String> {
    let points = mounted_below(directories)?;
    for point in &points {
        umount2(point, MntFlags::MNT_DETACH).with_context(|| format!("{} cannot be unmounted", point.display()))?;
    }
    Ok(if points.is_empty() {
        String::new()
    } else {
        format!("{} unmounted", points.len())
    })
}

/// Removes a directory and what is in it, unless something is mounted there still: that may be somebody's data.
fn remove_directory(directory: &Path) -> Result<String> {
    if let Some(point) = mounted_below(&[directory])?.first() {
        bail!("{} stays: {} is mounted below it", directory.display(), point.display());
    }
    let removed = fs::remove_dir_all(directory);
    // A mount of the user's own cannot be removed, and is none of ours: what was in it is gone.
    let empty = || fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none());
    if removed.is_err() && empty() {
        return Ok(format!("{} emptied", directory.display()));
    }
    removed.with_context(|| format!("{} stays", directory.display()))?;
    Ok(format!("{} removed", directory.display()))
}

/// Removes the pods' cgroups in every hierarchy: `kubepods` below the node's root, and that root if it is ours alone.
fn remove_cgroups(root: &str) -> Result<String> {
    let root = root.trim_matches('/');
    let table = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo cannot be read")?;
    let mut removed = 0;
    for line in table.lines() {
        let Some((mount, source)) = line.split_once(" - ") else {
            continue;
        };
        if !matches!(source.split(' ').next(), Some("cgroup" | "cgroup2")) {
            continue;
        }
        let Some(point) = mount.split(' ').nth(4) else { continue };
        let own = Path::new(point).join(root);
        removed += remove_tree(&own.join("kubepods"))?;
        // It stays if somebody else has something in it.
        if !root.is_empty() && own.is_dir() && fs::remove_dir(&own).is_ok() {
            removed += 1;
        }
    }
    Ok(if removed == 0 {
        String::new()
    } else {
        format!("{removed} removed")
    })
}

/// Removes a cgroup and those below it. A cgroup is a directory whose files cannot be removed.
fn remove_tree(cgroup: &Path) -> Result<usize> {
    let Ok(entries) = fs::read_dir(cgroup) else {
        return Ok(0);
    };
    let mut removed = 0;
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|it| it.is_dir()) {
            removed += remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
        .with_context(|| format!("cgroup {} cannot be removed: something runs in it", cgroup.display()))?;
    Ok(removed + 1)
}
