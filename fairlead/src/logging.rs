//! Log lines to standard error.

use crate::flags::LogFormat;
use anyhow::Context;
use std::io::{IsTerminal, stderr};
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

/// kube-proxy's `logging.verbosity` as a level: 0 to 1 is ordinary operation, from 6 on are payloads.
pub(crate) const fn level_of_verbosity(verbosity: u32) -> &'static str {
    match verbosity {
        0..=1 => "info",
        2..=5 => "debug",
        _ => "trace",
    }
}
