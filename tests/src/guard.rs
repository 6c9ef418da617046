//! What outlives a process and so needs a guard: a temporary directory and a cgroup. One reaper process per guard
//! removes both when its pipe closes, so the same code cleans up after a drop, a panic and a SIGKILL.

use anyhow::{Context, Result, bail};
use std::{
    fs,
    io::{self, BufRead, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Beginning of the name of every directory and cgroup that the harness makes.
pub const PREFIX: &str = "fairlead-test-";

/// How long a process that was waited for may take.
const ENDING: Duration = Duration::from_secs(60);

/// A directory under the system's temporary directory and a cgroup, both with the same unique name.
#[derive(Debug)]
pub struct Scratch {
    /// The directory.
    pub dir: PathBuf,
    /// The cgroup v2 directory.
    pub cgroup: PathBuf,
    pipe: Option<ChildStdin>,
    reaper: Child,
}

impl Scratch {
    /// Makes both, and the reaper first.
    ///
    /// # Errors
    /// If this machine has no cgroup v2 mount, or this process may not write there.
    pub fn new() -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "{PREFIX}{}-{}",
            std::process::id(),
            COUNTER.fetch_add(1, Ordering::Relaxed)
        );
        let dir = std::env::temp_dir().join(&name);
        let cgroup = cgroup2_mount()?.join(&name);
        let mut reaper = crate::actor::program()?
            .arg("reap")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("start the reaper")?;
        let mut pipe = reaper.stdin.take().context("the reaper has no standard input")?;
        for (kind, path) in [("cgroup", &cgroup), ("dir", &dir)] {
            writeln!(pipe, "{kind} {}", path.display()).context("write to the reaper")?;
        }
        let scratch = Self {
            dir,
            cgroup,
            pipe: Some(pipe),
            reaper,
        };
        for path in [&scratch.dir, &scratch.cgroup] {
            fs::create_dir(path).with_context(|| format!("make {}; this needs root", path.display()))?;
        }
        Ok(scratch)
    }

    /// Lets a process end by itself before the cgroup is emptied: it has things to remove of its own.
    ///
    /// # Errors
    /// If the reaper is gone.
    pub fn wait_for(&self, pid: u32) -> Result<()> {
        let mut pipe = self.pipe.as_ref().context("the reaper's pipe is closed")?;
        writeln!(pipe, "wait {pid}").context("write to the reaper")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.pipe.take());
        // Whatever the reaper could not remove it has said on standard error.
        let _ = self.reaper.wait();
    }
}

/// Where cgroup v2 is mounted.
///
/// # Errors
/// If it is not.
pub fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    for line in mounts.lines() {
        // "36 35 98:0 / /mount/point options [optional fields] - type source options" (proc_pid_mountinfo(5))
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        if right.split(' ').next() == Some("cgroup2")
            && let Some(point) = left.split(' ').nth(4)
        {
            return Ok(PathBuf::from(point));
        }
    }
    bail!("cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

/// The reaper: remembers `cgroup PATH` and `dir PATH` lines, and at their end kills what is left in the cgroups and
/// removes everything. Paths without [`PREFIX`] in their last component are refused.
pub fn reap(lines: impl BufRead) {
    // Ctrl-C ends the test; the reaper goes on until the pipe closes.
    let _ = nix::unistd::setsid();
    let lines: Vec<String> = lines.lines().map_while(Result::ok).collect();
    for pid in lines.iter().filter_map(|line| line.strip_prefix("wait ")) {
        wait_for(pid);
    }
    for line in &lines {
        let Some((kind, path)) = line.split_once(' ').filter(|(kind, _)| *kind != "wait") else {
            continue;
        };
        let path = Path::new(path);
        let ours = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        let outcome = match kind {
            _ if !ours => Err(io::Error::other("not made by the harness")),
            "cgroup" => remove_cgroup(path),
            _ => fs::remove_dir_all(path),
        };
        match outcome {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                eprintln!("could not remove {kind} {}: {error}", path.display());
            }
            _ => {}
        }
    }
}

/// Until a process has ended, or [`ENDING`] is over. It is no child of the reaper's.
fn wait_for(pid: &str) {
    let begun = Instant::now();
    let proc = Path::new("/proc").join(pid);
    // A process that was waited for by nobody stays as a zombie, which has no program any more.
    while fs::read_link(proc.join("exe")).is_ok() && begun.elapsed() < ENDING {
        thread::sleep(Duration::from_millis(5));
    }
}

fn remove_cgroup(root: &Path) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        // Since 5.14; before that the processes end by themselves, as their pipes are closed too.
        let _ = fs::write(root.join("cgroup.kill"), "1");
        match remove_tree(root) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                // cgroup.events could be polled, but not on the kernels where cgroup.kill is missing.
                thread::sleep(Duration::from_millis(5));
            }
            outcome => return outcome,
        }
    }
}

/// A cgroup's files go with it; only directories are removed, children first.
fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reaper_removes_only_what_the_harness_made() {
        let foreign = std::env::temp_dir().join(format!("foreign-{}", std::process::id()));
        let own = std::env::temp_dir().join(format!("{PREFIX}unit-{}", std::process::id()));
        for path in [&foreign, &own] {
            fs::create_dir_all(path.join("below")).unwrap();
        }
        reap(format!("dir {}\ndir {}\nnonsense\n", foreign.display(), own.display()).as_bytes());
        let left = (foreign.exists(), own.exists());
        fs::remove_dir_all(&foreign).unwrap();
        assert_eq!(left, (true, false));
    }
}
