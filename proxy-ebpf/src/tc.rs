//! The TC programs' common path: known flow, new flow, or none of our business.

use crate::{
    answer, clock,
    count::count,
    ended,
    family::{Family, Ipv4, Ipv6},
    flow,
    hook::Hook,
    maps::NODE,
    nat,
    packet::{self, Parsed, Skb, TCP, UDP, tcp},
    related,
    route::{self, NEXT, Route, SHOT},
};
use aya_ebpf::programs::TcContext;
use proxy_common::{
    abi::{Flow, FlowKey, FragmentKey, FragmentPorts, Node, flow_flags as flags, node_flags, way},
    verdict::{self, Kind, Verdict},
};

/// Ethertypes as they lie in `skb->protocol`.
const IPV4: u32 = 0x0800u16.to_be() as u32;
const IPV6: u32 = 0x86ddu16.to_be() as u32;

/// Runs the hook and counts its verdict: the only place that turns a verdict into a kernel action.
#[inline(always)]
pub(crate) fn run(skb: Skb, hook: Hook) -> i32 {
    if skb.tagged() {
        // Belongs to a VLAN device above this one.
        return NEXT;
    }
    let packed = match skb.protocol() {
        IPV4 => v4(skb, hook),
        IPV6 => v6(skb, hook),
        _ => pack(Err(Verdict::NotTranslatable)),
    };
    let verdict = (packed >> 32) as u32;
    count(verdict);
    if aya_log_ebpf::macro_support::level_enabled(aya_log_ebpf::macro_support::Level::Error) {
        log(skb, hook, verdict);
    }
    packed as u32 as i32
}

/// Says what happened to the packet: drops as warnings, answers as information, everything else in detail. Three numbers
/// (verdict, hook, interface), which the agent turns into words. Out of line: its buffers are not to stand on the stack
/// under the rest. Off, the verifier removes the call too.
#[inline(never)]
fn log(skb: Skb, hook: Hook, verdict: u32) {
    let ctx = TcContext::new(skb.0);
    let (hook, ifindex) = (hook as u32, skb.ifindex());
    if verdict::is(verdict, Kind::Dropped) {
        aya_log_ebpf::warn!(&ctx, "{} {} {}", verdict, hook, ifindex);
    } else if verdict::is(verdict, Kind::Answered) {
        aya_log_ebpf::info!(&ctx, "{} {} {}", verdict, hook, ifindex);
    } else if verdict::is(verdict, Kind::Forwarded) {
        aya_log_ebpf::debug!(&ctx, "{} {} {}", verdict, hook, ifindex);
    } else {
        aya_log_ebpf::trace!(&ctx, "{} {} {}", verdict, hook, ifindex);
    }
}

/// A verdict and the kernel's action in one register.
#[inline(always)]
fn pack(result: Result<(Verdict, i32), Verdict>) -> u64 {
    match result {
        Ok((verdict, action)) => (verdict as u64) << 32 | action as u32 as u64,
        Err(verdict) => {
            let action = if matches!(verdict.kind(), Kind::Passed) {
                NEXT
            } else {
                SHOT
            };
            (verdict as u64) << 32 | action as u32 as u64
        }
    }
}

/// The families out of line: together their locals do not fit on one stack frame.
#[inline(never)]
fn v4(skb: Skb, hook: Hook) -> u64 {
    pack(packet::<Ipv4>(skb, hook))
}

/// See [`v4`].
#[inline(never)]
fn v6(skb: Skb, hook: Hook) -> u64 {
    pack(packet::<Ipv6>(skb, hook))
}

/// What to do with a packet that belongs to a flow, or might open one.
enum Step {
    /// Client → backend with this entry.
    Forward,
    /// Backend → client with this entry.
    Back,
    /// Choose a backend first; then forward with this verdict.
    Open(Verdict),
}

#[inline(always)]
fn packet<F: Family>(skb: Skb, hook: Hook) -> Result<(Verdict, i32), Verdict> {
    let mut parsed = packet::parse::<F>(skb)?;
    let node = NODE.get(0).ok_or(Verdict::NotTranslatable)?;
    if parsed.tuple.protocol == F::ICMP {
        return related::translate::<F>(skb, &parsed, hook, node).unpack(Verdict::IcmpRelated);
    }
    if parsed.piece.later() {
        // SAFETY: an LRU entry may be reused under us; wrong ports find no flow.
        let ports = unsafe { F::fragments().get(fragment(&parsed)) }.ok_or(Verdict::NotTranslatable)?;
        parsed.tuple.sport = ports.sport;
        parsed.tuple.dport = ports.dport;
    }
    let direct = node.flags & node_flags::DIRECT != 0;
    let mut verdict = Verdict::Forward;
    let mut entry = F::flows().get_ptr_mut(&parsed.tuple);
    // SAFETY: the entry stays mapped while we run; an LRU entry may be reused for another flow under us, which every
    // LRU flow table has to live with.
    let step = match entry {
        // SAFETY: the entry stays mapped while we run.
        Some(entry) => judge::<F>(skb, &parsed, hook, direct, unsafe { &*entry })?,
        // An answer opens nothing: it is for a socket of this node that happens to have a frontend's port.
        None if begins(skb, hook) && parsed.flags & (tcp::SYN | tcp::ACK) != tcp::SYN | tcp::ACK => {
            Step::Open(Verdict::NewFlow)
        }
        None => return Err(Verdict::NotService),
    };
    if matches!(step, Step::Back) {
        verdict = Verdict::Reply;
    }
    if let Step::Open(opened) = step {
        verdict = opened;
        match flow::open::<F>(&parsed, hook, node) {
            Verdict::NewFlow => entry = F::flows().get_ptr_mut(&parsed.tuple),
            Verdict::RejectNoEndpoints if answer::answerable(&parsed) => {
                return answer::reject::<F>(skb, &parsed, hook, node).unpack(Verdict::RejectNoEndpoints);
            }
            other => return Err(other),
        }
    }
    let entry = entry.ok_or(Verdict::DropFlowTableFull)?;
    // SAFETY: as above.
    let entry = unsafe { &mut *entry };
    touch::<F>(&parsed, entry);
    remember_fragment(&parsed);
    deliver::<F>(skb, &parsed, hook, node, entry, verdict)
}

#[inline(always)]
fn fragment<F: Family>(parsed: &Parsed<F>) -> FragmentKey<F::Addr> {
    let tuple = &parsed.tuple;
    FragmentKey {
        src: tuple.src,
        dst: tuple.dst,
        id: parsed.id,
        protocol: tuple.protocol,
        pad: [0; 3],
    }
}

/// Later fragments of this datagram find their ports here.
#[inline(always)]
fn remember_fragment<F: Family>(parsed: &Parsed<F>) {
    if parsed.piece.first() {
        let ports = FragmentPorts {
            sport: parsed.tuple.sport,
            dport: parsed.tuple.dport,
        };
        // A failure costs this datagram its tail; the sender repeats it.
        let _ = F::fragments().insert(fragment(parsed), &ports, 0);
    }
}

/// Whether new flows begin at this hook for this packet.
#[inline(always)]
fn begins(skb: Skb, hook: Hook) -> bool {
    match hook {
        Hook::FromPod | Hook::FromNet => true,
        Hook::ToNet => skb.ingress_ifindex() == 0,
        Hook::ToPod => false,
    }
}

/// What a packet of a known flow means at this hook.
#[inline(always)]
fn judge<F: Family>(
    skb: Skb,
    parsed: &Parsed<F>,
    hook: Hook,
    direct: bool,
    entry: &Flow<F::Addr>,
) -> Result<Step, Verdict> {
    let state = entry.flags;
    let protocol = parsed.tuple.protocol;
    if state & flags::REPLY != 0 {
        return if hook.translates_reply(state, direct) {
            Ok(Step::Back)
        } else {
            Err(Verdict::NotService)
        };
    }
    if !begins(skb, hook) {
        return Err(Verdict::NotService);
    }
    let opening = protocol == TCP && parsed.flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    if state & hook.origin() == 0 {
        // Somebody elsewhere used this client's address; the flow belongs to whoever sends now.
        return if opening || protocol == UDP {
            Ok(Step::Open(Verdict::NewFlow))
        } else {
            Err(Verdict::NotService)
        };
    }
    let alive = flow::backend::<F>(entry.backend, entry.generation).is_some();
    if opening && (!alive || closed::<F>(entry, protocol)) {
        return Ok(Step::Open(Verdict::NewFlow));
    }
    if !alive && protocol == UDP {
        return Ok(Step::Open(Verdict::Reselected));
    }
    Ok(Step::Forward)
}

/// Whether either direction of a TCP flow has ended, so that a SYN opens a new connection on the same ports.
#[inline(always)]
fn closed<F: Family>(entry: &Flow<F::Addr>, protocol: u8) -> bool {
    if entry.flags & flags::CLOSED != 0 {
        return true;
    }
    // SAFETY: an LRU entry may be reused under us; at worst a retransmitted SYN chooses again.
    match unsafe { F::flows().get(flow::other::<F>(entry, protocol)) } {
        Some(reply) => reply.flags & flags::CLOSED != 0,
        None => true,
    }
}

/// Notes what the packet says about the flow, and once a second keeps both its entries young.
#[inline(always)]
fn touch<F: Family>(parsed: &Parsed<F>, entry: &mut Flow<F::Addr>) {
    let mut news = 0;
    if parsed.flags & (tcp::FIN | tcp::RST) != 0 {
        news |= flags::CLOSED;
    }
    let mut lost = 0;
    if parsed.flags & tcp::RST != 0 {
        news |= flags::ENDED;
    } else {
        lost = entry.flags & flags::ENDED;
    }
    if parsed.tuple.protocol == TCP && (parsed.flags & tcp::SYN) | (entry.flags & flags::REPLY) as u8 == 0 {
        news |= flags::CONFIRMED;
    }
    news &= !entry.flags;
    let now = clock::ticks();
    if news | lost == 0 && now.wrapping_sub(entry.seen) < clock::SECOND {
        return;
    }
    entry.flags = entry.flags & !lost | news;
    entry.seen = now;
    let key = flow::other::<F>(entry, parsed.tuple.protocol);
    match F::flows().get_ptr_mut(&key) {
        // SAFETY: as in `packet`.
        Some(other) => unsafe {
            (*other).seen = now;
            (*other).flags = (*other).flags & !lost | news;
        },
        None => restore::<F>(parsed, entry, &key),
    }
    if news & flags::ENDED != 0 {
        ended::note::<F>(&parsed.tuple, now);
    }
}

/// The other direction's entry was evicted: this packet still knows everything about it.
#[inline(always)]
fn restore<F: Family>(parsed: &Parsed<F>, entry: &Flow<F::Addr>, key: &FlowKey<F::Addr>) {
    let Some(draft) = F::draft().get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own entry; programs of one CPU do not interleave.
    let other = unsafe { &mut (*draft).reply };
    let tuple: &FlowKey<F::Addr> = &parsed.tuple;
    *other = *entry;
    other.src = tuple.dst;
    other.dst = tuple.src;
    other.sport = tuple.dport;
    other.dport = tuple.sport;
    other.flags = entry.flags ^ flags::REPLY;
    other.routed = 0;
    // Failing is no worse than before; the next second tries again.
    let _ = F::flows().insert(key, &*other, 1);
}

/// The way of a packet of this flow; a remembered answer is good for a second.
#[inline(always)]
fn way_of<F: Family>(skb: Skb, parsed: &Parsed<F>, hook: Hook, entry: &mut Flow<F::Addr>) -> Route {
    if entry.routed == 0 || (clock::ticks() | 1).wrapping_sub(entry.routed) >= clock::SECOND {
        route::refresh::<F>(skb, hook, parsed.tuple.protocol, entry);
    }
    Route {
        ifindex: entry.ifindex,
        mtu: entry.mtu,
        way: entry.way,
    }
}

/// Whether routers may cut the packet up: IPv4 without "don't fragment".
#[inline(always)]
fn may_fragment<F: Family>(skb: Skb) -> bool {
    if F::V6 {
        return false;
    }
    let [field, _]: [u8; 2] = skb.read(packet::ETH + 6).unwrap_or([0x40, 0]);
    field & 0x40 == 0
}

/// Translates the packet and sends it on.
#[inline(always)]
fn deliver<F: Family>(
    skb: Skb,
    parsed: &Parsed<F>,
    hook: Hook,
    node: &Node,
    entry: &mut Flow<F::Addr>,
    verdict: Verdict,
) -> Result<(Verdict, i32), Verdict> {
    let state = entry.flags;
    let direct = node.flags & node_flags::DIRECT != 0;
    let reply = state & flags::REPLY != 0;
    let masqueraded = state & flags::MASQUERADED != 0;
    // A masqueraded packet carries this node's address, which the stack would not take from another interface; a packet
    // that this node sends itself is already on its way to where the frontend's address is routed.
    let own = reply && hook.ingress() && state & flags::NODE_ADDRESS != 0 && state & flags::FROM_HOST == 0;
    let must = masqueraded || own && direct || (!reply && matches!(hook, Hook::ToNet));
    let to_host = reply && hook.ingress() && !masqueraded && state & flags::FROM_HOST != 0;
    let mut route = Route::STACK;
    if to_host {
        // From one of our own addresses, or from one that is routed elsewhere: `lo` takes both.
        route.way = way::LOCAL;
    } else if must || (direct && hook.ingress()) {
        route = way_of::<F>(skb, parsed, hook, entry);
        // The stack finds a neighbour that is not known yet, and knows the MTU. A stranger's address is expected on the
        // interface that it came from, not on `lo`.
        if !must && (route.mtu == 0 || route.way == way::LOCAL) {
            route = Route::STACK;
        }
    }
    if route::too_big::<F>(skb, parsed, route.mtu) {
        if must && may_fragment::<F>(skb) {
            // Not ours to refuse, and nothing after us fragments: the device has the last word.
        } else if must {
            if !answer::answerable(parsed) {
                return Err(Verdict::RejectTooBig);
            }
            return answer::too_big::<F>(skb, parsed, hook, node, route.mtu).unpack(Verdict::RejectTooBig);
        } else {
            // The stack fragments it or answers.
            route = Route::STACK;
        }
    }
    // Where we do the routing we also take one from the time to live; a packet whose last hop this is goes up the
    // stack, which answers.
    let mut hop = false;
    if hook.ingress() && matches!(route.way, way::PEER | way::NEIGHBOUR) {
        hop = nat::hops::<F>(skb) > 1;
        if !hop {
            route = Route::STACK;
        }
    }
    nat::rewrite::<F>(skb, parsed, entry, hop)?;
    Ok((verdict, route::send(skb, node, route)?))
}
