//! Per-CPU counters, one per verdict.

use crate::maps::COUNTERS;
use proxy_common::verdict::Verdict;

/// Counts one packet or call.
#[inline(always)]
pub(crate) fn count(verdict: Verdict) {
    if let Some(counter) = COUNTERS.get_ptr_mut(verdict as u32) {
        // SAFETY: the entry is this CPU's own and programs do not migrate while they run.
        unsafe { *counter += 1 };
    }
}
