//! Flows: choosing a backend for a new one, remembering it, finding it again.

use crate::{
    clock, ended,
    family::Family,
    hook::Hook,
    maps::{Draft, Range, SLOTS},
    packet::{self, Parsed},
    route::opaque,
};
use aya_ebpf::maps::lpm_trie::Key as PrefixKey;
use core::mem::MaybeUninit;
use proxy_common::{
    abi::{
        Affinity, AffinityKey, Backend, Flow, FlowKey, Frontend, FrontendKey, Node, Port, Slot, SlotKey, backend_flags,
        flow_flags as flags, frontend_flags, idle,
    },
    select,
    verdict::Verdict,
};

const ANY: u64 = 0;
const NOEXIST: u64 = 1;
const EEXIST: i32 = -17;

/// Reads of an entry until two agree.
const READS: u32 = 3;
/// Source ports tried for one new flow before it is dropped.
const PORT_TRIES: u32 = 8;

/// The frontend that a packet asks for, read until two reads agree: the agent may replace the entry meanwhile, and its
/// memory may at once serve another one. The copy goes where the caller has room for it.
#[inline(always)]
pub(crate) fn frontend<'a, F: Family>(tuple: &FlowKey<F::Addr>, copy: &'a mut Frontend) -> Option<&'a Frontend> {
    let key = FrontendKey {
        addr: tuple.dst,
        port: tuple.dport,
        protocol: tuple.protocol,
        pad: 0,
    };
    for _ in 0..READS {
        // SAFETY: the value may be reused under us; compared below. It does not overlap the copy.
        unsafe { packet::copy(F::frontends().get(&key)?, copy) };
        // SAFETY: as above.
        if *copy == *unsafe { F::frontends().get(&key) }? {
            return Some(copy);
        }
    }
    None
}

/// The entry of a slot, read as [`frontend`] is.
#[inline(always)]
fn slot(key: &SlotKey) -> Option<Slot> {
    for _ in 0..READS {
        // SAFETY: the value may be reused under us; compared below.
        let first = unsafe { SLOTS.get(key) }.copied()?;
        // SAFETY: as above.
        let again = unsafe { SLOTS.get(key) }.copied()?;
        if first == again {
            return Some(first);
        }
    }
    None
}

/// Hash of the packet's tuple with the node's secret.
#[inline(always)]
fn hash<F: Family>(tuple: &FlowKey<F::Addr>, seed: u32) -> u32 {
    let ports = u32::from_ne_bytes([tuple.sport[0], tuple.sport[1], tuple.dport[0], tuple.dport[1]]);
    select::flow_hash(F::fold(&tuple.src), F::fold(&tuple.dst), ports, tuple.protocol, seed)
}

/// A backend that was chosen.
#[derive(Clone, Copy)]
pub(crate) struct Choice<F: Family> {
    /// Its id.
    pub(crate) id: u32,
    /// Its entry as it was read.
    pub(crate) backend: Backend<F::Addr>,
}

/// Reads a backend if it is still what `generation` meant.
#[inline(always)]
pub(crate) fn backend<F: Family>(id: u32, generation: u32) -> Option<Backend<F::Addr>> {
    let backend = *F::backends().get(id)?;
    (backend.generation == generation).then_some(backend)
}

/// Slot → backend. A slot that is being rewritten can be stale once; then the caller looks again.
#[inline(always)]
pub(crate) fn pick<F: Family>(set: u32, count: u16, hash: u32) -> Option<Choice<F>> {
    let number = select::slot_for(hash, count)? as u32;
    let slot = slot(&SlotKey { set, slot: number })?;
    let backend = backend::<F>(slot.backend, slot.generation)?;
    Some(Choice {
        id: slot.backend,
        backend,
    })
}

/// The backend that this client stuck to, if it may still be chosen.
#[inline(always)]
fn sticky<F: Family>(key: &AffinityKey<F::Addr>, timeout_s: u32, now_s: u32, member: u16) -> Option<Choice<F>> {
    // SAFETY: an LRU entry may be reused under us; the generation check below rejects what does not fit.
    let affinity = unsafe { F::affinity().get(key) }?;
    let id = affinity.backend;
    if now_s.wrapping_sub(affinity.used_s) >= timeout_s {
        return None;
    }
    let backend = backend::<F>(id, affinity.generation)?;
    (backend.flags & member != 0).then_some(Choice { id, backend })
}

/// Decides what happens to the first packet of a flow and enters the flow. Anything but [`Verdict::NewFlow`] says why
/// there is none; a passing verdict lets the packet go.
///
/// A function of its own in the kernel too: its keys would not fit on the caller's stack.
#[inline(never)]
pub(crate) fn open<F: Family>(parsed: &Parsed<F>, hook: Hook, node: &Node) -> Verdict {
    match try_open(opaque(parsed), hook, opaque(node)) {
        Ok(()) => Verdict::NewFlow,
        Err(verdict) => verdict,
    }
}

#[inline(always)]
fn try_open<F: Family>(parsed: &Parsed<F>, hook: Hook, node: &Node) -> Result<(), Verdict> {
    let tuple = &parsed.tuple;
    // SAFETY: this CPU's own entry; programs of one CPU do not interleave.
    let draft = unsafe { &mut *F::draft().get_ptr_mut(0).ok_or(Verdict::DropHelperFailed)? };
    let frontend = frontend::<F>(tuple, &mut draft.frontend).ok_or(Verdict::NotService)?;
    if frontend.flags & frontend_flags::SOURCE_RANGES != 0 {
        let key = PrefixKey::new(
            32 + F::BITS,
            Range {
                ranges: frontend.ranges,
                addr: tuple.src,
            },
        );
        F::ranges().get(key).ok_or(Verdict::DropSourceRange)?;
    }
    let hash = hash::<F>(tuple, node.seed);
    match choose::<F>(tuple, draft, hash, matches!(hook, Hook::FromNet)) {
        Verdict::NewFlow => {}
        other => return Err(other),
    }
    describe::<F>(tuple, hook, node, draft)?;
    let port = reserve::<F>(tuple, node, draft, hash);
    if port > u16::MAX as u32 {
        let full = port == TABLE_FULL;
        return Err(if full {
            Verdict::DropFlowTableFull
        } else {
            Verdict::DropSnatPortsExhausted
        });
    }
    draft.forward.sport = (port as u16).to_ne_bytes();
    F::flows()
        .insert(tuple, &draft.forward, ANY)
        .map_err(|_| Verdict::DropFlowTableFull)
}

/// The half of a frontend that speaks to clients at one side of the node.
struct Side {
    set: u32,
    count: u16,
    local: bool,
}

impl Side {
    #[inline(always)]
    fn of(frontend: &Frontend, outside: bool) -> Result<Self, Verdict> {
        use frontend_flags as f;
        let (set, count, reject, drop, local) = if outside {
            (
                frontend.external_set,
                frontend.external_count,
                f::EXTERNAL_REJECT,
                f::EXTERNAL_DROP,
                f::EXTERNAL_LOCAL,
            )
        } else {
            (
                frontend.internal_set,
                frontend.internal_count,
                f::INTERNAL_REJECT,
                f::INTERNAL_DROP,
                f::INTERNAL_LOCAL,
            )
        };
        if frontend.flags & drop != 0 {
            return Err(Verdict::DropNoLocalEndpoints);
        }
        if frontend.flags & reject != 0 {
            return Err(Verdict::RejectNoEndpoints);
        }
        Ok(Self {
            set,
            count,
            local: frontend.flags & local != 0,
        })
    }
}

/// Enters the backend that the client stuck to, else the one that the flow's hash falls on, into the draft. Returns
/// [`Verdict::NewFlow`], or why there is none. Out of line for the stack.
#[inline(never)]
fn choose<F: Family>(tuple: &FlowKey<F::Addr>, draft: &mut Draft<F::Addr>, hash: u32, outside: bool) -> Verdict {
    match try_choose::<F>(opaque(tuple), draft, hash, outside) {
        Ok(choice) => {
            let out = &mut draft.forward;
            out.dst = choice.backend.addr;
            out.dport = choice.backend.port;
            out.backend = choice.id;
            out.generation = choice.backend.generation;
            draft.backend_flags = choice.backend.flags as u32;
            Verdict::NewFlow
        }
        Err(verdict) => verdict,
    }
}

#[inline(always)]
fn try_choose<F: Family>(
    tuple: &FlowKey<F::Addr>,
    draft: &mut Draft<F::Addr>,
    hash: u32,
    outside: bool,
) -> Result<Choice<F>, Verdict> {
    let frontend = &draft.frontend;
    let side = Side::of(frontend, outside)?;
    draft.forward.set = side.set;
    draft.forward.flags = if side.local { flags::LOCAL_SET } else { 0 };
    let timeout_s = frontend.affinity_timeout_s;
    if timeout_s == 0 {
        return pick_twice::<F>(tuple, &mut draft.again, &side, hash, outside);
    }
    let key = AffinityKey {
        client: tuple.src,
        set: side.set,
    };
    let now_s = (clock::now_ns() / 1_000_000_000) as u32;
    let member = if side.local {
        backend_flags::IN_LOCAL
    } else {
        backend_flags::IN_CLUSTER
    };
    let choice = match sticky::<F>(&key, timeout_s, now_s, member) {
        Some(choice) => choice,
        None => pick_twice::<F>(tuple, &mut draft.again, &side, hash, outside)?,
    };
    let value = Affinity {
        backend: choice.id,
        generation: choice.backend.generation,
        used_s: now_s,
    };
    // A full LRU evicts; a failure costs stickiness, not the flow.
    let _ = F::affinity().insert(&key, &value, ANY);
    Ok(choice)
}

/// [`pick`], and once more with a frontend read anew: the agent may be in the middle of a change.
#[inline(always)]
fn pick_twice<F: Family>(
    tuple: &FlowKey<F::Addr>,
    again: &mut Frontend,
    side: &Side,
    hash: u32,
    outside: bool,
) -> Result<Choice<F>, Verdict> {
    if let Some(choice) = pick::<F>(side.set, side.count, hash) {
        return Ok(choice);
    }
    let again = frontend::<F>(tuple, again).ok_or(Verdict::NotService)?;
    let side = Side::of(again, outside)?;
    pick::<F>(side.set, side.count, hash).ok_or(Verdict::DropStaleSlot)
}

/// Fills in the rest of the forward entry but for its source port.
#[inline(always)]
fn describe<F: Family>(
    tuple: &FlowKey<F::Addr>,
    hook: Hook,
    node: &Node,
    draft: &mut Draft<F::Addr>,
) -> Result<(), Verdict> {
    let frontend = &draft.frontend;
    let out = &mut draft.forward;
    let pod = matches!(hook, Hook::FromPod);
    let outside = matches!(hook, Hook::FromNet);
    let remote = draft.backend_flags & backend_flags::ON_NODE as u32 == 0;
    let masquerade = (pod && out.dst == tuple.src)
        || (outside && remote)
        || (pod && frontend.flags & frontend_flags::MASQUERADE != 0);
    out.flags |= hook.origin();
    if frontend.flags & frontend_flags::NODE_ADDRESS != 0 {
        out.flags |= flags::NODE_ADDRESS;
    }
    out.src = tuple.src;
    if masquerade {
        out.flags |= flags::MASQUERADED;
        out.src = F::snat(node);
        if out.src == F::ZERO {
            return Err(Verdict::DropNoSnatAddress);
        }
    }
    out.seen = clock::ticks();
    // Without it the rest of the route means nothing.
    out.routed = 0;
    Ok(())
}

/// [`reserve`] found no free port.
const EXHAUSTED: u32 = 0x1_0000;
/// [`reserve`] could not enter anything.
const TABLE_FULL: u32 = 0x1_0001;

/// Enters the reply tuple of a flow under the client's own port or, where that tuple belongs to another live flow (two
/// frontends, one backend, same client port) or masquerading needs it, under another port. Returns the port as it lies
/// in the packet, or one of the codes above.
#[inline(never)]
fn reserve<F: Family>(tuple: &FlowKey<F::Addr>, node: &Node, draft: &mut Draft<F::Addr>, hash: u32) -> u32 {
    let (tuple, node) = (opaque(tuple), opaque(node));
    // What the verifier reads back from a map it knows nothing about: one state instead of one for each way here.
    // SAFETY: a plain read of our own memory.
    let state = unsafe { core::ptr::addr_of!(draft.forward.flags).read_volatile() };
    // SAFETY: as above.
    let now = unsafe { core::ptr::addr_of!(draft.forward.seen).read_volatile() };
    let masquerade = state & flags::MASQUERADED != 0;
    let first = node.snat_port_first;
    let span = (node.snat_port_last.wrapping_sub(first) as u32 & 0xffff) + 1;
    let mut key = other::<F>(&draft.forward, tuple.protocol);
    key.dport = tuple.sport;
    let reply = &mut draft.reply;
    *reply = draft.forward;
    reply.src = tuple.dst;
    reply.dst = tuple.src;
    reply.sport = tuple.dport;
    reply.dport = tuple.sport;
    reply.flags = state | flags::REPLY;
    let own = u16::from_be_bytes(tuple.sport);
    let keep = !masquerade || (own >= first && own <= node.snat_port_last);
    let mut random = hash;
    for attempt in 0..PORT_TRIES {
        if attempt > 0 || !keep {
            random = select::mix(random ^ 0x9e37_79b9);
            let port = first as u32 + ((random as u64 * span as u64) >> 32) as u32;
            key.dport = (port as u16).to_be_bytes();
        }
        match F::flows().insert(&key, &*reply, NOEXIST) {
            Ok(()) => return u16::from_ne_bytes(key.dport) as u32,
            Err(EEXIST) => {}
            Err(_) => return TABLE_FULL,
        }
        // SAFETY: an LRU entry may be reused under us; the worst is one port not given away.
        let Some(taken) = (unsafe { F::flows().get(&key) }) else {
            continue;
        };
        let ours = (taken.dst == tuple.src)
            & (taken.src == tuple.dst)
            & (taken.dport == tuple.sport)
            & (taken.sport == tuple.dport);
        let idle = now.wrapping_sub(taken.seen) >= idle::limit(tuple.protocol, taken.flags);
        if ours | idle {
            if !ours {
                forget_client::<F>(taken, &key);
            }
            return match F::flows().insert(&key, &*reply, ANY) {
                Ok(()) => u16::from_ne_bytes(key.dport) as u32,
                Err(_) => TABLE_FULL,
            };
        }
    }
    EXHAUSTED
}

/// Removes the client's entry of a flow whose reply tuple `key` goes to another: that client's next packet must not
/// carry it any more, but open a flow of its own.
#[inline(never)]
fn forget_client<F: Family>(taken: &Flow<F::Addr>, key: &FlowKey<F::Addr>) {
    let (taken, key) = (opaque(taken), opaque(key));
    let client = other::<F>(taken, key.protocol);
    // SAFETY: an LRU entry may be reused under us; only an entry that leads to `key` is removed.
    let Some(forward) = (unsafe { F::flows().get(&client) }) else {
        return;
    };
    // The client may have opened the flow anew since, under another tuple.
    if ended::leads_to::<F>(forward, key) {
        let _ = F::flows().remove(&client);
    }
}

/// The key of the entry for the other direction.
#[inline(always)]
pub(crate) fn other<F: Family>(flow: &Flow<F::Addr>, protocol: u8) -> FlowKey<F::Addr> {
    key::<F>(flow.dst, flow.src, flow.dport, flow.sport, protocol)
}

/// A key. Its last four bytes are written as one word: the compiler would call a function to clear three bytes, and a
/// key is made for each packet.
#[inline(always)]
pub(crate) fn key<F: Family>(src: F::Addr, dst: F::Addr, sport: Port, dport: Port, protocol: u8) -> FlowKey<F::Addr> {
    let mut key = MaybeUninit::<FlowKey<F::Addr>>::uninit();
    let fields = key.as_mut_ptr();
    // SAFETY: every field is written: the word is the protocol, its first byte here (little-endian), and the padding
    // after it; keys are aligned to words.
    unsafe {
        (&raw mut (*fields).src).write(src);
        (&raw mut (*fields).dst).write(dst);
        (&raw mut (*fields).sport).write(sport);
        (&raw mut (*fields).dport).write(dport);
        (&raw mut (*fields).protocol).cast::<u32>().write(protocol as u32);
        key.assume_init()
    }
}
