//! Keeps logs small: a file that has grown too large is renamed, the runtime is told to open a new one, and the oldest are
//! removed. Source of the limits: `containerLogMaxSize` and `containerLogMaxFiles` of `KubeletConfiguration`.

use super::{rotated, rotated_name};
use futures::future::BoxFuture;
use jiff::Timestamp;
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// How large and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes from which on a file is rotated.
    pub max_bytes: u64,
    /// Files of one run of a container, with the one that is written; at least 2.
    pub max_files: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 10 << 20,
            max_files: 5,
        }
    }
}

/// How often sizes are looked at. Growing files give no event that would be cheaper.
const EVERY: Duration = Duration::from_secs(10);

/// Tells the runtime to write a new file: CRI's `ReopenContainerLog` for this container id.
pub type Reopen = Arc<dyn Fn(String) -> BoxFuture<'static, anyhow::Result<()>> + Send + Sync>;

/// The running containers: id and log file of each.
pub type Active = Arc<dyn Fn() -> Vec<(String, PathBuf)> + Send + Sync>;

/// Rotates the logs of all running containers of a node.
#[derive(Clone)]
pub struct Rotator {
    limits: Limits,
    active: Active,
    reopen: Reopen,
}

impl Rotator {
    /// Of these containers, by these limits.
    #[must_use]
    pub fn new(limits: Limits, active: Active, reopen: Reopen) -> Self {
        Self { limits, active, reopen }
    }

    /// Looks every 10 s, until it is told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = ticks.tick() => self.round(Timestamp::now()).await,
            }
        }
    }

    /// Looks once. What fails is logged, and hurts only the container that it is about.
    pub async fn round(&self, now: Timestamp) {
        for (id, path) in (self.active)() {
            if let Err(error) = self.one(&id, &path, now).await {
                tracing::warn!(container = id, path = %path.display(), error = %format!("{error:#}"), "log not rotated");
            }
        }
    }

    async fn one(&self, id: &str, path: &Path, now: Timestamp) -> anyhow::Result<()> {
        match tokio::fs::metadata(path).await {
            Ok(found) if found.len() >= self.limits.max_bytes => {}
            Ok(_) => return Ok(()),
            // Not written yet, or the pod is going away.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let older = rotated_name(path, now);
        tokio::fs::rename(path, &older).await?;
        if let Err(error) = (self.reopen)(id.to_owned()).await {
            // The runtime goes on writing to the renamed file: give it its name back, so that readers find it.
            if !tokio::fs::try_exists(path).await? {
                tokio::fs::rename(&older, path).await?;
            }
            return Err(error);
        }
        let (path, keep) = (path.to_owned(), self.limits.max_files.max(2) - 1);
        tokio::task::spawn_blocking(move || remove_oldest(&path, keep)).await??;
        Ok(())
    }
}

/// Removes rotated files but the newest `keep`.
fn remove_oldest(path: &Path, keep: usize) -> io::Result<()> {
    let all = rotated(path)?;
    for old in &all[..all.len().saturating_sub(keep)] {
        std::fs::remove_file(old)?;
    }
    Ok(())
}
