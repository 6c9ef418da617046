//! Per-CPU counters, one per verdict.

use crate::maps::COUNTERS;

/// Counts one packet or call by its verdict's number.
#[inline(always)]
pub(crate) fn count(verdict: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(verdict) {
        // SAFETY: the entry is this CPU's own and programs do not migrate while they run.
        unsafe { *counter += 1 };
    }
}
