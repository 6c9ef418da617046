//! One process per data directory and host: a locked file with its process id.

use super::layout::Layout;
use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use std::{
    fs,
    io::{Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
};

/// Held while the process runs; the kernel lets go of it however the process ends.
#[derive(Debug)]
pub(crate) struct Lock(#[allow(dead_code, reason = "held, not read")] Flock<fs::File>);

impl Lock {
    /// Takes it.
    ///
    /// # Errors
    /// Another process has it: which.
    pub(crate) fn take(layout: &Layout) -> Result<Self> {
        let path = layout.pid_file();
        let mut options = fs::OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path);
        let file = file.with_context(|| format!("{} cannot be written", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                file.set_len(0)?;
                file.rewind()?;
                write!(file, "{}", std::process::id())?;
                Ok(Self(file))
            }
            Err(_) => {
                let pid = fs::read_to_string(&path).unwrap_or_default();
                bail!(
                    "{} is in use by process {pid}: stop that one, or give another --data-dir",
                    layout.data.display()
                )
            }
        }
    }

    /// The process that has it now.
    pub(crate) fn holder(layout: &Layout) -> Option<i32> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(layout.pid_file())
            .ok()?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(_) => None,
            Err(_) => fs::read_to_string(layout.pid_file()).ok()?.trim().parse().ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_has_it_and_the_others_learn_who() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::make(&dir.path().join("d"), Some(&dir.path().join("r"))).unwrap();
        assert_eq!(Lock::holder(&layout), None);
        let lock = Lock::take(&layout).unwrap();
        let error = Lock::take(&layout).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        assert_eq!(Lock::holder(&layout), i32::try_from(std::process::id()).ok());
        drop(lock);
        assert_eq!(Lock::holder(&layout), None);
        Lock::take(&layout).unwrap();
    }
}
