//! Log lines to standard error.

use crate::flags::LogFormat;
use anyhow::Context;
use std::{
    io::{IsTerminal, stderr},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};
use tracing_subscriber::EnvFilter;

/// Starts logging; call once. `level` is what `--log-level` takes.
///
/// # Errors
/// `level` is none.
pub(crate) fn start(format: LogFormat, level: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(level)
        .with_context(|| format!("--log-level {level:?}: use error, warn, info, debug or trace"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    let started = match format {
        LogFormat::Text => builder.with_ansi(stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}

/// Starts logging to the end of a file that its owner alone may read; call once.
///
/// # Errors
/// `level` is none, or the file cannot be written.
pub(crate) fn start_to_file(path: &Path, format: LogFormat, level: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(level)
        .with_context(|| format!("--log-level {level:?}: use error, warn, info, debug or trace"))?;
    let mut options = std::fs::OpenOptions::new();
    let file = options.create(true).append(true).mode(0o600).open(path);
    let file = file.with_context(|| format!("{} cannot be written", path.display()))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::sync::Mutex::new(file));
    let started = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}

/// kube-proxy's `logging.verbosity` as a level: 0 to 1 is ordinary operation, from 6 on are payloads.
pub(crate) const fn level_of_verbosity(verbosity: u32) -> &'static str {
    match verbosity {
        0..=1 => "info",
        2..=5 => "debug",
        _ => "trace",
    }
}
