//! What the programs say themselves (`--bpf-log-level`), in the agent's own log.

use super::load::whole;
use crate::error::ApplyError;
use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Level, Log, Metadata, Record};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proxy_common::{abi::HOOKS, verdict::Verdict};
use std::{os::fd::AsFd as _, thread};

/// Turns the programs' numbers into words.
struct Words;

/// Verdict, hook and interface of one line; `None` if it is none of ours.
fn parse(line: &str) -> Option<(&'static str, &'static str, u32)> {
    let mut numbers = line.split(' ').map(str::parse::<u32>);
    let mut next = || numbers.next()?.ok();
    let (verdict, hook, ifindex) = (next()?, next()?, next()?);
    Some((
        Verdict::ALL.get(verdict as usize)?.label(),
        HOOKS.get(hook as usize)?,
        ifindex,
    ))
}

impl Log for Words {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = record.args().to_string();
        let Some((verdict, program, ifindex)) = parse(&line) else {
            tracing::debug!(target: "bpf", line);
            return;
        };
        match record.level() {
            Level::Error | Level::Warn => tracing::warn!(target: "bpf", program, ifindex, verdict),
            Level::Info => tracing::info!(target: "bpf", program, ifindex, verdict),
            Level::Debug => tracing::debug!(target: "bpf", program, ifindex, verdict),
            Level::Trace => tracing::trace!(target: "bpf", program, ifindex, verdict),
        }
    }

    fn flush(&self) {}
}

/// Reads the programs' log on a thread of its own, as long as the process lives.
pub(super) fn follow(bpf: &mut Ebpf) -> Result<(), ApplyError> {
    let op = || "read the programs' log (--bpf-log-level)".to_owned();
    let mut logger = EbpfLogger::init_with_logger(bpf, Words).map_err(|error| ApplyError::Kernel {
        op: op(),
        source: whole(&error),
    })?;
    thread::Builder::new()
        .name("bpf-log".into())
        .spawn(move || {
            loop {
                let mut fds = [PollFd::new(logger.as_fd(), PollFlags::POLLIN)];
                // An interrupted wait is a wait that found nothing.
                let _ = poll(&mut fds, PollTimeout::NONE);
                logger.flush();
            }
        })
        .map(drop)
        .map_err(|source| ApplyError::Kernel { op: op(), source })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn numbers_become_words() {
        assert_eq!(parse("2 0 7"), Some(("new_flow", "from_pod", 7)));
        assert_eq!(parse("99 0 7"), None);
        assert_eq!(parse("hello"), None);
    }
}
