//! Rewriting a packet's tuple with its checksums.

use crate::{
    family::Family,
    packet::{ETH, Parsed, Skb, TCP, copy, same},
};
use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_l4_csum_replace};
use proxy_common::{
    abi::{Flow, FlowKey, Port},
    csum,
    verdict::Verdict,
};

/// `BPF_F_PSEUDO_HDR`: the change is in the pseudo header.
pub(crate) const PSEUDO: u64 = 0x10;
/// `BPF_F_MARK_MANGLED_0`: UDP without a checksum stays without (RFC 768).
const MANGLED_0: u64 = 0x20;
/// `BPF_F_IPV6` (6.16): IPv6 addresses are not covered by a header checksum that would cancel out.
const IPV6: u64 = 0x80;

/// Folds a sum of 32-bit words to 32 bits.
#[inline(always)]
pub(crate) fn fold64(sum: u64) -> u32 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum as u32
}

/// One's complement difference that turns `old` into `new`, as 32-bit sums.
#[inline(always)]
pub(crate) fn difference(old: u64, new: u64) -> u32 {
    fold64(!fold64(old) as u64 + fold64(new) as u64)
}

#[inline(always)]
fn ports_sum(a: Port, b: Port) -> u64 {
    u16::from_ne_bytes(a) as u64 + u16::from_ne_bytes(b) as u64
}

/// Tells the transport checksum at `offset` that words summing to `old` became words summing to `new`.
#[inline(always)]
pub(crate) fn fix_l4<F: Family>(skb: Skb, offset: u32, diff: u32, flags: u64) -> Result<(), Verdict> {
    let family = if F::V6 && flags & PSEUDO != 0 { IPV6 } else { 0 };
    // SAFETY: valid context; offsets are checked by the helper.
    let mut code = unsafe { bpf_l4_csum_replace(skb.0, offset, 0, diff as u64, flags | family) };
    if F::V6 && code != 0 {
        // A kernel before 6.16 does not know the flag.
        // SAFETY: as above.
        code = unsafe { bpf_l4_csum_replace(skb.0, offset, 0, diff as u64, flags) };
    }
    if code == 0 {
        Ok(())
    } else {
        Err(Verdict::DropHelperFailed)
    }
}

/// Source and destination address, as they lie next to each other in headers, [`FlowKey`] and [`Flow`].
pub(crate) type Pair<F> = [<F as Family>::Addr; 2];

/// The addresses of a tuple.
#[inline(always)]
pub(crate) fn key_pair<F: Family>(key: &FlowKey<F::Addr>) -> &Pair<F> {
    // SAFETY: `repr(C)`, the first two fields are the addresses, and addresses are byte arrays.
    unsafe { &*core::ptr::from_ref(key).cast() }
}

/// The addresses that a flow writes.
#[inline(always)]
pub(crate) fn flow_pair<F: Family>(flow: &Flow<F::Addr>) -> &Pair<F> {
    // SAFETY: as above.
    unsafe { &*core::ptr::from_ref(flow).cast() }
}

/// One's complement difference between two pairs of addresses.
#[inline(always)]
pub(crate) fn pair_difference<F: Family>(old: &Pair<F>, new: &Pair<F>) -> u32 {
    if F::V6 {
        let (old, new) = (core::ptr::from_ref(old).cast_mut(), core::ptr::from_ref(new).cast_mut());
        // SAFETY: both are 32 readable bytes.
        unsafe { bpf_csum_diff(old.cast(), 32, new.cast(), 32, 0) as u32 }
    } else {
        difference(F::sum(&old[0]) + F::sum(&old[1]), F::sum(&new[0]) + F::sum(&new[1]))
    }
}

/// Writes new addresses into the IP header and, for IPv4, mends its checksum. Returns the pseudo header's difference.
#[inline(always)]
pub(crate) fn rewrite_addresses<F: Family>(skb: Skb, old: &Pair<F>, new: &Pair<F>, hop: bool) -> Result<u32, Verdict> {
    let diff = pair_difference::<F>(old, new);
    let header: *mut u8 = if F::V6 {
        skb.at::<[u8; 40]>(ETH).ok_or(Verdict::DropHelperFailed)?.cast()
    } else {
        skb.at::<[u8; 20]>(ETH).ok_or(Verdict::DropHelperFailed)?.cast()
    };
    // SAFETY: the fixed header is there; everything is written as bytes.
    unsafe {
        copy(core::ptr::from_ref(new), header.add(F::SRC as usize).cast());
        if F::V6 {
            *header.add(7) -= hop as u8;
        } else {
            let check: *mut [u8; 2] = header.add(10).cast();
            let mut sum = !u16::from_ne_bytes(*check) as u64 + diff as u64;
            if hop {
                *header.add(8) -= 1;
                // One less in the high byte of the word (time to live, protocol).
                sum += !u16::from_ne_bytes([1, 0]) as u64;
            }
            *check = (!csum::fold(fold64(sum))).to_ne_bytes();
        }
    }
    Ok(diff)
}

/// Time to live or hop limit.
#[inline(always)]
pub(crate) fn hops<F: Family>(skb: Skb) -> u8 {
    let offset = if F::V6 { ETH + 7 } else { ETH + 8 };
    match skb.at::<u8>(offset) {
        // SAFETY: bounds checked.
        Some(hops) => unsafe { *hops },
        None => 0,
    }
}

/// Gives the packet the flow's tuple; `hop` takes one from its time to live.
#[inline(always)]
pub(crate) fn rewrite<F: Family>(skb: Skb, parsed: &Parsed<F>, flow: &Flow<F::Addr>, hop: bool) -> Result<(), Verdict> {
    let old = &parsed.tuple;
    let l4 = parsed.l4;
    let has_ports = !parsed.piece.later();
    let ports_change = has_ports && !(same(old.sport, flow.sport) && same(old.dport, flow.dport));
    let diff = rewrite_addresses::<F>(skb, key_pair::<F>(old), flow_pair::<F>(flow), hop)?;
    if !has_ports {
        return Ok(());
    }
    let ports = [flow.sport[0], flow.sport[1], flow.dport[0], flow.dport[1]];
    if ports_change {
        match skb.at_variable::<[u8; 4]>(l4) {
            // SAFETY: bounds checked.
            Some(field) => unsafe { *field = ports },
            None => skb.store(l4, &ports)?,
        }
    }
    let (check, mangled) = if old.protocol == TCP {
        (l4 + 16, 0)
    } else {
        (l4 + 6, MANGLED_0)
    };
    fix_l4::<F>(skb, check, diff, PSEUDO | mangled)?;
    if ports_change {
        let diff = difference(ports_sum(old.sport, old.dport), ports_sum(flow.sport, flow.dport));
        fix_l4::<F>(skb, check, diff, mangled)?;
    }
    Ok(())
}
