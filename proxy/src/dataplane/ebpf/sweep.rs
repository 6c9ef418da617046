//! Removing flows that are over, so that the LRU has room and need not evict idle ones that are not.
//!
//! The programs decide nothing by an entry's age but which ports may be given away; here entries past their
//! [limit](idle::limit) go. A flow that wakes up between being read and being removed loses one entry, which its next
//! packet restores from the other, or chooses anew by the same hash.

use super::table::Table;
use proxy_common::abi::{FlowKeyV4, FlowKeyV6, FlowV4, FlowV6, TICK_SHIFT, idle};
use std::{
    io,
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::Duration,
};

/// Time between sweeps. A sweep reads both tables in batches: tens of milliseconds when they are full.
const PERIOD: Duration = Duration::from_secs(10);

/// The flow tables.
pub(super) struct Flows {
    pub(super) v4: Table<FlowKeyV4, FlowV4>,
    pub(super) v6: Table<FlowKeyV6, FlowV6>,
}

/// A running sweeper; ends when dropped.
#[derive(Debug)]
pub(super) struct Sweeper {
    _stop: Sender<()>,
}

impl Sweeper {
    /// Sweeps every [`PERIOD`] on a thread of its own.
    pub(super) fn start(flows: Flows) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        thread::Builder::new().name("flow-sweep".into()).spawn(move || {
            while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                match flows.sweep(now()) {
                    Ok(removed) => tracing::debug!(removed, "flows swept"),
                    Err(error) => {
                        tracing::warn!(%error, "flows cannot be swept; the oldest go first when the table is full");
                    }
                }
            }
        })?;
        Ok(Self { _stop: stop })
    }
}

/// Ticks of the clock that the programs use.
fn now() -> u32 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid; this clock exists on every kernel that has eBPF.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    ((time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64) >> TICK_SHIFT) as u32
}

impl Flows {
    /// Removes what is past its limit at `now`, ticks. Returns how many entries went.
    pub(super) fn sweep(&self, now: u32) -> io::Result<usize> {
        let mut removed = 0;
        for (key, flow) in self.v4.read_all()? {
            if over(now, flow.seen, key.protocol, flow.flags) {
                self.v4.remove(&key)?;
                removed += 1;
            }
        }
        for (key, flow) in self.v6.read_all()? {
            if over(now, flow.seen, key.protocol, flow.flags) {
                self.v6.remove(&key)?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// Whether an entry is past its limit. One that was touched after `now` was read is not, however far the clock wraps.
fn over(now: u32, seen: u32, protocol: u8, flags: u32) -> bool {
    let age = now.wrapping_sub(seen);
    age >= idle::limit(protocol, flags) && age < u32::MAX / 2
}

#[cfg(test)]
mod tests {
    use super::over;
    use proxy_common::abi::{flow_flags, idle};

    #[test]
    fn each_kind_of_flow_has_its_time() {
        let open = flow_flags::CONFIRMED;
        for (protocol, flags, limit) in [
            (6, 0, idle::UNCONFIRMED),
            (6, open, idle::TCP),
            (6, open | flow_flags::CLOSED, idle::CLOSED),
            (17, 0, idle::UDP),
        ] {
            assert!(!over(limit - 1, 0, protocol, flags), "{protocol} {flags}");
            assert!(over(limit, 0, protocol, flags), "{protocol} {flags}");
        }
    }

    #[test]
    fn the_clock_may_wrap_and_entries_may_be_newer() {
        assert!(over(idle::UDP - 5, u32::MAX - 10, 17, 0));
        assert!(!over(100, 101, 17, 0));
    }
}
