//! Answers that we build ourselves: TCP RST, ICMP and ICMPv6 errors.
//!
//! The packet is turned into its own answer: truncated or grown, headers written anew, sent back.

use crate::{
    family::Family,
    hook::Hook,
    maps::QUOTE,
    packet::{ETH, Parsed, Skb, TCP, UDP, tcp},
    route::{self, Packed, opaque},
};
use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_skb_change_tail};
use proxy_common::{abi::Node, csum, verdict::Verdict};

/// What an ICMP error says.
#[derive(Clone, Copy)]
pub(crate) enum Error {
    /// Destination unreachable, port unreachable (RFC 792, RFC 4443).
    PortUnreachable,
    /// Fragmentation needed / packet too big, with the MTU.
    TooBig(u16),
}

#[inline(always)]
fn resize(skb: Skb, len: u32) -> Result<(), Verdict> {
    // SAFETY: valid context.
    let code = unsafe { bpf_skb_change_tail(skb.0, len, 0) };
    if code == 0 {
        Ok(())
    } else {
        Err(Verdict::DropHelperFailed)
    }
}

/// Unfolded sum of `bytes`, whose length must be a multiple of 4.
#[inline(always)]
fn sum<const N: usize>(bytes: &[u8; N]) -> u64 {
    // SAFETY: reads N bytes of `bytes`; the helper wants a multiple of 4, which callers give.
    let sum = unsafe {
        bpf_csum_diff(
            core::ptr::null_mut(),
            0,
            core::ptr::from_ref(bytes).cast_mut().cast(),
            N as u32,
            0,
        )
    };
    sum as u64 & 0xffff_ffff
}

#[inline(always)]
fn finish(sum: u64) -> [u8; 2] {
    (!csum::fold(crate::nat::fold64(sum))).to_ne_bytes()
}

/// Swaps the hardware addresses.
#[inline(always)]
fn turn_ethernet(skb: Skb) -> Result<(), Verdict> {
    let [a0, a1, a2, a3, a4, a5, b0, b1, b2, b3, b4, b5]: [u8; 12] = skb.load(0).ok_or(Verdict::DropHelperFailed)?;
    skb.store(0, &[b0, b1, b2, b3, b4, b5, a0, a1, a2, a3, a4, a5])
}

/// Writes an IP header from the frontend to the client for `payload` bytes of `protocol`. Returns the sum of the
/// addresses for the pseudo header.
#[inline(always)]
fn ip_header<F: Family>(skb: Skb, parsed: &Parsed<F>, protocol: u8, payload: u16) -> Result<u64, Verdict> {
    let tuple = &parsed.tuple;
    if F::V6 {
        let [hi, lo] = payload.to_be_bytes();
        skb.store(ETH, &[0x60, 0, 0, 0, hi, lo, protocol, 64])?;
    } else {
        let [hi, lo] = (payload + 20).to_be_bytes();
        let mut header = [0x45, 0, hi, lo, 0, 0, 0x40, 0, 64, protocol, 0, 0];
        let check = finish(sum(&header) + F::sum(&tuple.src) + F::sum(&tuple.dst));
        header[10] = check[0];
        header[11] = check[1];
        skb.store(ETH, &header)?;
    }
    skb.store(ETH + F::SRC, &tuple.dst)?;
    skb.store(ETH + F::SRC + F::BITS / 8, &tuple.src)?;
    Ok(F::sum(&tuple.src) + F::sum(&tuple.dst))
}

#[inline(always)]
fn pseudo(protocol: u8, length: u16) -> u64 {
    u16::from_ne_bytes([0, protocol]) as u64 + u16::from_ne_bytes(length.to_be_bytes()) as u64
}

/// Answers a TCP packet with RST (RFC 9293, 3.10.7.1) or any other with ICMP port unreachable.
#[inline(never)]
pub(crate) fn reject<F: Family>(skb: Skb, parsed: &Parsed<F>, hook: Hook, node: &Node) -> Packed {
    Packed::pack(try_reject(skb, opaque(parsed), hook, opaque(node)))
}

#[inline(always)]
fn try_reject<F: Family>(skb: Skb, parsed: &Parsed<F>, hook: Hook, node: &Node) -> Result<i32, Verdict> {
    if parsed.tuple.protocol == TCP {
        if parsed.flags & tcp::RST != 0 {
            return Err(Verdict::RejectNoEndpoints);
        }
        reset::<F>(skb, parsed)?;
    } else {
        icmp::<F>(skb, parsed, Error::PortUnreachable)?;
    }
    turn_ethernet(skb)?;
    route::back(skb, hook, node)
}

/// Tells the sender that its packet does not fit.
#[inline(never)]
pub(crate) fn too_big<F: Family>(skb: Skb, parsed: &Parsed<F>, hook: Hook, node: &Node, mtu: u16) -> Packed {
    Packed::pack(try_too_big(skb, opaque(parsed), hook, opaque(node), mtu))
}

#[inline(always)]
fn try_too_big<F: Family>(skb: Skb, parsed: &Parsed<F>, hook: Hook, node: &Node, mtu: u16) -> Result<i32, Verdict> {
    icmp::<F>(skb, parsed, Error::TooBig(mtu))?;
    turn_ethernet(skb)?;
    route::back(skb, hook, node)
}

/// Where the IP packet ends by its own account: Ethernet pads short frames.
#[inline(always)]
fn end<F: Family>(skb: Skb) -> Result<u32, Verdict> {
    let (offset, header) = if F::V6 { (ETH + 4, F::HEADER) } else { (ETH + 2, 0) };
    let length: [u8; 2] = skb.load(offset).ok_or(Verdict::DropHelperFailed)?;
    Ok(ETH + header + u16::from_be_bytes(length) as u32)
}

#[inline(always)]
fn reset<F: Family>(skb: Skb, parsed: &Parsed<F>) -> Result<(), Verdict> {
    let old: [u8; 16] = skb.load(parsed.l4).ok_or(Verdict::DropHelperFailed)?;
    let seq = u32::from_be_bytes([old[4], old[5], old[6], old[7]]);
    let data = end::<F>(skb)?.wrapping_sub(parsed.l4 + (old[12] >> 4) as u32 * 4);
    let span = data + (parsed.flags & tcp::SYN != 0) as u32 + (parsed.flags & tcp::FIN != 0) as u32;
    let (seq, ack, bits) = if parsed.flags & tcp::ACK != 0 {
        ([old[8], old[9], old[10], old[11]], [0; 4], tcp::RST)
    } else {
        ([0; 4], seq.wrapping_add(span).to_be_bytes(), tcp::RST | tcp::ACK)
    };
    resize(skb, ETH + F::HEADER + 20)?;
    let addresses = ip_header(skb, parsed, TCP, 20)?;
    let (s, d) = (parsed.tuple.sport, parsed.tuple.dport);
    let mut header = [
        d[0], d[1], s[0], s[1], seq[0], seq[1], seq[2], seq[3], ack[0], ack[1], ack[2], ack[3], 0x50, bits, 0, 0, 0, 0,
        0, 0,
    ];
    let check = finish(sum(&header) + addresses + pseudo(TCP, 20));
    header[16] = check[0];
    header[17] = check[1];
    skb.store(ETH + F::HEADER, &header)
}

/// Length of the quoted packet: its IP header without options and 8 bytes of transport (RFC 792; for IPv6 more is
/// allowed and these suffice to find the socket).
const QUOTE_V4: usize = 28;
const QUOTE_V6: usize = 48;

#[inline(always)]
fn icmp<F: Family>(skb: Skb, parsed: &Parsed<F>, error: Error) -> Result<(), Verdict> {
    if parsed.l4 != ETH + F::HEADER {
        // IP options or extension headers: nobody sends them to a service; not worth a variable-size quote.
        return Err(Verdict::DropHelperFailed);
    }
    // SAFETY: this CPU's own entry.
    let quote = unsafe { &mut *QUOTE.get_ptr_mut(0).ok_or(Verdict::DropHelperFailed)? };
    if F::V6 {
        let head = match error {
            Error::PortUnreachable => [1, 4, 0, 0, 0, 0, 0, 0],
            Error::TooBig(mtu) => [2, 0, 0, 0, 0, 0, mtu.to_be_bytes()[0], mtu.to_be_bytes()[1]],
        };
        icmp_write::<F, QUOTE_V6>(skb, parsed, head, quote)
    } else {
        let head = match error {
            Error::PortUnreachable => [3, 3, 0, 0, 0, 0, 0, 0],
            Error::TooBig(mtu) => [3, 4, 0, 0, 0, 0, mtu.to_be_bytes()[0], mtu.to_be_bytes()[1]],
        };
        // SAFETY: a prefix of the larger array.
        let quote = unsafe { &mut *core::ptr::from_mut(quote).cast::<[u8; QUOTE_V4]>() };
        icmp_write::<F, QUOTE_V4>(skb, parsed, head, quote)
    }
}

#[inline(always)]
fn icmp_write<F: Family, const N: usize>(
    skb: Skb,
    parsed: &Parsed<F>,
    mut head: [u8; 8],
    quote: &mut [u8; N],
) -> Result<(), Verdict> {
    skb.load_into(ETH, quote)?;
    let quote = &*quote;
    let length = 8 + N as u16;
    resize(skb, ETH + F::HEADER + length as u32)?;
    let addresses = ip_header(skb, parsed, F::ICMP, length)?;
    let mut total = sum(&head) + sum(quote);
    if F::V6 {
        total += addresses + pseudo(F::ICMP, length);
    }
    let check = finish(total);
    head[2] = check[0];
    head[3] = check[1];
    skb.store(ETH + F::HEADER, &head)?;
    skb.store(ETH + F::HEADER + 8, quote)
}

/// Whether an answer may be sent at all: never to an ICMP packet, never to a later fragment (RFC 1122, 3.2.2).
#[inline(always)]
pub(crate) fn answerable<F: Family>(parsed: &Parsed<F>) -> bool {
    matches!(parsed.tuple.protocol, TCP | UDP) && !parsed.piece.later()
}
