//! The coarse monotonic clock: good to a few milliseconds, nearly free.

use aya_ebpf::{
    Global,
    helpers::generated::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns},
};
use proxy_common::abi::TICK_SHIFT;

/// Whether the kernel has `bpf_ktime_get_coarse_ns` (5.11); set by the agent before loading. With 0 the verifier removes
/// the branch, so an older kernel never sees the call.
#[unsafe(no_mangle)]
static COARSE_CLOCK: Global<u8> = Global::new(1);

/// Nanoseconds since boot.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    if COARSE_CLOCK.load() == 1 {
        // SAFETY: no arguments, no memory.
        unsafe { bpf_ktime_get_coarse_ns() }
    } else {
        // SAFETY: as above.
        unsafe { bpf_ktime_get_ns() }
    }
}

/// Ticks of 2^20 ns, wrapping.
#[inline(always)]
pub(crate) fn ticks() -> u32 {
    (now_ns() >> TICK_SHIFT) as u32
}

pub(crate) use proxy_common::abi::idle::SECOND;
