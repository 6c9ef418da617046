//! Ends all processes of cgroups and removes the cgroups.

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use std::{
    collections::HashSet,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How often a cgroup is tried whose last process is dead: the kernel forgets it a moment later, and tells nobody when.
const AGAIN: Duration = Duration::from_millis(1);

/// Removes these directories, which are the same cgroup in several hierarchies, and all below them. What is not there is no
/// error.
pub(super) fn all(dirs: &[PathBuf], patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    let mut trees = Vec::new();
    for dir in dirs {
        collect(dir, &mut trees)?;
    }
    end(&trees, deadline)?;
    // Children come after their parents.
    for dir in trees.iter().rev() {
        remove(dir, deadline)?;
    }
    Ok(())
}

/// A directory and all below it.
fn collect(dir: &Path, out: &mut Vec<PathBuf>) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    out.push(dir.to_owned());
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), out)?;
        }
    }
    Ok(())
}

/// Kills until nobody is left. New ones may appear until the last that can fork is dead.
fn end(dirs: &[PathBuf], deadline: Instant) -> io::Result<()> {
    loop {
        let found = processes(dirs)?;
        let held: Vec<(Pid, OwnedFd)> = found
            .iter()
            .filter_map(|it| Some((*it, pidfd_open(*it, PidfdFlags::empty()).ok()?)))
            .collect();
        if held.is_empty() {
            return Ok(());
        }
        // The number may have become another process's before we held it; who is listed now is the one we hold.
        let still = processes(dirs)?;
        let held: Vec<_> = held.into_iter().filter(|it| still.contains(&it.0)).collect();
        for (_, process) in &held {
            match pidfd_send_signal(process, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        for (pid, process) in &held {
            if !exits(process, deadline)? {
                let text = format!("process {} does not die", pid.as_raw_nonzero());
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
            }
        }
        if Instant::now() >= deadline {
            let text = format!(
                "processes keep appearing in {}",
                dirs.first().map_or(Path::new(""), |it| it).display()
            );
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
        }
    }
}

fn processes(dirs: &[PathBuf]) -> io::Result<HashSet<Pid>> {
    let mut out = HashSet::new();
    for dir in dirs {
        let text = match fs::read_to_string(dir.join("cgroup.procs")) {
            // Removed meanwhile; or no cgroup.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => continue,
            text => text?,
        };
        // 0 is a process that our namespace does not see.
        out.extend(text.lines().filter_map(|it| Pid::from_raw(it.trim().parse().ok()?)));
    }
    Ok(out)
}

fn exits(process: &OwnedFd, deadline: Instant) -> io::Result<bool> {
    let left = deadline.saturating_duration_since(Instant::now());
    let left = Timespec {
        tv_sec: left.as_secs().cast_signed(),
        tv_nsec: left.subsec_nanos().into(),
    };
    loop {
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

fn remove(dir: &Path, deadline: Instant) -> io::Result<()> {
    loop {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                let pause = Timespec {
                    tv_sec: 0,
                    tv_nsec: AGAIN.subsec_nanos().into(),
                };
                let _ = poll(&mut [], Some(&pause));
            }
            Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", dir.display()))),
            Ok(()) => return Ok(()),
        }
    }
}
