//! Removing flows soon after their reset, so that the next ones find memory that is free and still in the cache, and
//! never their own ports taken by the dead.
//!
//! Not at once: packets that were on their way are still translated, and a reset that its receiver does not believe ends
//! nothing. Each reset puts its flow behind the others of this CPU, and removes one or two that have rested for
//! [`idle::ENDED`]. Flows that end with FIN, or that nobody is reset after, are the agent's to sweep.

use crate::{
    family::Family,
    flow,
    maps::{ENDED, ENDED_CURSORS},
    packet,
    route::opaque,
};
use proxy_common::abi::{Flow, FlowKey, flow_flags as flags, idle};

/// Flows removed per reset: more than one, so that a burst's remains become fewer.
const REMOVALS: u32 = 2;

/// Notes that the flow of `key` was reset at `now`, which its entries have as `seen`. Returns nothing of interest: what
/// the kernel calls as a function has to return a number.
#[inline(never)]
pub(crate) fn note<F: Family>(key: &FlowKey<F::Addr>, now: u32) -> u32 {
    let key = opaque(key);
    let Some(cursor) = ENDED_CURSORS.get_ptr_mut(F::V6 as u32) else {
        return 0;
    };
    // SAFETY: this CPU's own entry; programs of one CPU do not interleave.
    let cursor = unsafe { &mut *cursor };
    let Some(slot) = F::ended().get_ptr_mut(cursor.next % ENDED) else {
        return 0;
    };
    // SAFETY: as above.
    let slot = unsafe { &mut *slot };
    // SAFETY: the map's entry and the caller's key do not overlap.
    unsafe { packet::copy(key, &mut slot.key) };
    slot.at = now;
    cursor.next = cursor.next.wrapping_add(1);
    if cursor.next.wrapping_sub(cursor.oldest) > ENDED {
        // The oldest was overwritten.
        cursor.oldest = cursor.next.wrapping_sub(ENDED);
    }
    for _ in 0..REMOVALS {
        if cursor.oldest == cursor.next {
            break;
        }
        let Some(oldest) = F::ended().get_ptr_mut(cursor.oldest % ENDED) else {
            break;
        };
        // SAFETY: as above.
        let oldest = unsafe { &*oldest };
        if now.wrapping_sub(oldest.at) < idle::ENDED {
            break;
        }
        cursor.oldest = cursor.oldest.wrapping_add(1);
        remove::<F>(&oldest.key, oldest.at);
    }
    0
}

/// Removes both entries of a flow if nothing has happened to it since `at`.
#[inline(never)]
fn remove<F: Family>(key: &FlowKey<F::Addr>, at: u32) -> u32 {
    let key = opaque(key);
    // SAFETY: an LRU entry may be reused under us; then the other one does not lead back to `key`.
    let Some(entry) = (unsafe { F::flows().get(key) }) else {
        return 0;
    };
    if entry.flags & flags::ENDED == 0 || entry.seen != at {
        return 0;
    }
    let other = flow::other::<F>(entry, key.protocol);
    // SAFETY: as above.
    if unsafe { F::flows().get(&other) }.is_some_and(|back| leads_to::<F>(back, key)) {
        // Gone already is as good.
        let _ = F::flows().remove(&other);
    }
    let _ = F::flows().remove(key);
    0
}

/// Whether an answer to the packets of `entry` carries the tuple `key`.
#[inline(always)]
pub(crate) fn leads_to<F: Family>(entry: &Flow<F::Addr>, key: &FlowKey<F::Addr>) -> bool {
    (entry.src == key.dst) & (entry.dst == key.src) & (entry.sport == key.dport) & (entry.dport == key.sport)
}
