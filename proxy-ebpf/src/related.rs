//! ICMP errors about translated packets: rewritten so that they reach the true endpoint and speak of what it sent.

use crate::{
    family::Family,
    hook::Hook,
    nat::{self, difference},
    packet::{self, Parsed, Skb, TCP, UDP},
    route::{self, Packed, opaque},
};
use proxy_common::{
    abi::{Flow, FlowKey, Node, flow_flags as flags, node_flags, way},
    csum,
    verdict::Verdict,
};

/// Whether an ICMP type is an error that quotes a packet (RFC 792, RFC 4443).
#[inline(always)]
fn is_error<F: Family>(kind: u8) -> bool {
    if F::V6 {
        (1..=4).contains(&kind)
    } else {
        matches!(kind, 3 | 4 | 11 | 12)
    }
}

/// Translates an ICMP error at `hook`, if it quotes a packet of a flow that is ours to translate here.
#[inline(never)]
pub(crate) fn translate<F: Family>(skb: Skb, parsed: &Parsed<F>, hook: Hook, node: &Node) -> Packed {
    Packed::pack(try_translate(skb, opaque(parsed), hook, opaque(node)))
}

#[inline(always)]
fn try_translate<F: Family>(skb: Skb, parsed: &Parsed<F>, hook: Hook, node: &Node) -> Result<i32, Verdict> {
    let [kind, _]: [u8; 2] = skb.read(parsed.l4).ok_or(Verdict::NotTranslatable)?;
    if !is_error::<F>(kind) || parsed.l4 > packet::MAX_OFFSET / 2 {
        return Err(Verdict::NotTranslatable);
    }
    // The quoted IP header; one with options or extension headers is not worth the walk.
    let inner = parsed.l4 + 8;
    let protocol: u8 = skb
        .load(inner + if F::V6 { 6 } else { 9 })
        .ok_or(Verdict::NotTranslatable)?;
    let first: u8 = skb.load(inner).ok_or(Verdict::NotTranslatable)?;
    if !matches!(protocol, TCP | UDP) || (!F::V6 && first != 0x45) {
        return Err(Verdict::NotTranslatable);
    }
    let mut key = FlowKey {
        src: F::ZERO,
        dst: F::ZERO,
        sport: [0; 2],
        dport: [0; 2],
        protocol,
        pad: [0; 3],
    };
    // The quoted packet went the other way: its reply would carry the reversed tuple, and that is what flows know.
    skb.load_into(inner + F::SRC, &mut key.dst)?;
    skb.load_into(inner + F::SRC + F::BITS / 8, &mut key.src)?;
    skb.load_into(inner + F::HEADER, &mut key.dport)?;
    skb.load_into(inner + F::HEADER + 2, &mut key.sport)?;
    // SAFETY: an LRU entry may be reused under us: one garbled error.
    let flow = unsafe { F::flows().get(&key) }.ok_or(Verdict::NotService)?;
    let direct = node.flags & node_flags::DIRECT != 0;
    let reply = flow.flags & flags::REPLY != 0;
    let here = if reply {
        hook.translates_reply(flow.flags, direct)
    } else {
        flow.flags & hook.origin() != 0 && (hook.ingress() || skb.ingress_ifindex() == 0)
    };
    if !here {
        return Err(Verdict::NotService);
    }
    if !quoted::<F>(skb, parsed.l4, &key, flow) || !error::<F>(skb, parsed, &key, flow) {
        return Err(Verdict::DropHelperFailed);
    }
    // The error goes where a packet of the flow would; its source does not matter for that.
    let masqueraded = flow.flags & flags::MASQUERADED != 0;
    let must = masqueraded || (!reply && !hook.ingress());
    if reply && hook.ingress() && !masqueraded && flow.flags & flags::FROM_HOST != 0 {
        return route::to_self(skb, node);
    }
    if !must && !(direct && hook.ingress()) {
        return Ok(route::NEXT);
    }
    let route = route::lookup::<F>(skb, hook, F::ICMP, &flow.src, &flow.dst).open();
    if !must && route.way == way::LOCAL {
        return Ok(route::NEXT);
    }
    route::send(skb, node, route)
}

/// The error itself: from the quoted packet's receiver or a router on the way, to the quoted packet's sender.
#[inline(never)]
fn error<F: Family>(skb: Skb, parsed: &Parsed<F>, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> bool {
    let (parsed, key, flow) = (opaque(parsed), opaque(key), opaque(flow));
    let old = nat::key_pair::<F>(&parsed.tuple);
    let mut new = *old;
    if old[0] == key.src {
        new[0] = flow.src;
    }
    if old[1] == key.dst {
        new[1] = flow.dst;
    }
    match nat::rewrite_addresses::<F>(skb, old, &new, false) {
        Ok(pseudo) => !F::V6 || nat::fix_l4::<F>(skb, parsed.l4 + 2, pseudo, nat::PSEUDO).is_ok(),
        Err(_) => false,
    }
}

/// The quoted packet, as its sender knows it. Its own transport checksum is verified by nobody and stays.
#[inline(never)]
fn quoted<F: Family>(skb: Skb, l4: u32, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> bool {
    write_quote::<F>(skb, l4, opaque(key), opaque(flow)).is_ok()
}

#[inline(always)]
fn write_quote<F: Family>(skb: Skb, l4: u32, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> Result<(), Verdict> {
    let inner = l4 + 8;
    let addresses = nat::pair_difference::<F>(nat::key_pair::<F>(key), nat::flow_pair::<F>(flow));
    let mut body = difference(
        u16::from_ne_bytes(key.sport) as u64 + u16::from_ne_bytes(key.dport) as u64,
        u16::from_ne_bytes(flow.sport) as u64 + u16::from_ne_bytes(flow.dport) as u64,
    ) as u64;
    if F::V6 {
        body += addresses as u64;
    } else {
        // The quoted header's checksum takes up the difference, so the ICMP checksum does not change for it.
        let check: [u8; 2] = skb.load(inner + 10).ok_or(Verdict::DropHelperFailed)?;
        let sum = !u16::from_ne_bytes(check) as u64 + addresses as u64;
        skb.store(inner + 10, &(!csum::fold(nat::fold64(sum))).to_ne_bytes())?;
    }
    skb.store(inner + F::SRC, &flow.dst)?;
    skb.store(inner + F::SRC + F::BITS / 8, &flow.src)?;
    skb.store(inner + F::HEADER, &flow.dport)?;
    skb.store(inner + F::HEADER + 2, &flow.sport)?;
    nat::fix_l4::<F>(skb, l4 + 2, nat::fold64(body), 0)
}
