//! Where a translated packet goes: up the stack, or straight to the next interface.

use crate::{
    clock,
    family::Family,
    hook::Hook,
    maps::{DEVICES, ROUTES},
    packet::{ETH, Parsed, Skb, TCP},
};
use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS,
        bpf_fib_lookup as Params,
    },
    helpers::generated::{bpf_fib_lookup, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
};
use core::mem::MaybeUninit;
use proxy_common::{
    abi::{Flow, Node, device_flags, way},
    select,
    verdict::Verdict,
};

/// Let the kernel go on with the packet (and other programs see it).
pub(crate) const NEXT: i32 = -1;
/// Drop.
pub(crate) const SHOT: i32 = 2;
const REDIRECT: i64 = 7;
const TO_INGRESS: u64 = 1;

/// Hides what a reference points to from the optimiser, which would otherwise pass its fields instead of the reference
/// to a function of its own, and run out of the five argument registers.
#[inline(always)]
pub(crate) fn opaque<T>(reference: &T) -> &T {
    core::hint::black_box(reference)
}

/// What a function that the kernel calls as such returns: one register for an action or a verdict.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Packed(u64);

impl Packed {
    const ACTION: u64 = 1 << 63;

    /// Puts an action or a verdict into one register.
    #[inline(always)]
    pub(crate) fn pack(result: Result<i32, Verdict>) -> Self {
        match result {
            Ok(action) => Self(Self::ACTION | action as u32 as u64),
            Err(verdict) => Self(verdict as u32 as u64),
        }
    }

    /// An action counts as `verdict`; a verdict stays what it is.
    #[inline(always)]
    pub(crate) fn unpack(self, verdict: Verdict) -> Result<(Verdict, i32), Verdict> {
        if self.0 & Self::ACTION != 0 {
            return Ok((verdict, self.0 as u32 as i32));
        }
        // SAFETY: without the bit, `pack` put a verdict's own number here.
        Err(unsafe { core::mem::transmute::<u32, Verdict>(self.0 as u32) })
    }
}

/// An answer of the routing table.
#[derive(Clone, Copy)]
pub(crate) struct Route {
    /// Outgoing interface, unless `way` is the stack.
    pub(crate) ifindex: u32,
    /// Largest IP packet, bytes; 0 = unknown.
    pub(crate) mtu: u16,
    /// One of [`way`].
    pub(crate) way: u16,
}

/// A [`Route`] in one register.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct PackedRoute(u64);

impl PackedRoute {
    #[inline(always)]
    fn pack(route: Route) -> Self {
        Self((route.ifindex as u64) << 32 | (route.mtu as u64) << 16 | route.way as u64)
    }

    #[inline(always)]
    pub(crate) fn open(self) -> Route {
        Route {
            ifindex: (self.0 >> 32) as u32,
            mtu: (self.0 >> 16) as u16,
            way: self.0 as u16,
        }
    }
}

impl Route {
    /// Up the stack.
    pub(crate) const STACK: Self = Self {
        ifindex: 0,
        mtu: 0,
        way: way::STACK,
    };
}

/// Enters the way of a flow's packets into its entry: what this CPU was told within the last second for a packet between
/// the same addresses, else what the routing table says now. Returns nothing of interest: what the kernel calls as a
/// function has to return a number.
#[inline(never)]
pub(crate) fn refresh<F: Family>(skb: Skb, hook: Hook, protocol: u8, entry: *mut Flow<F::Addr>) -> u32 {
    // SAFETY: the caller's own reference.
    let entry = unsafe { &mut *entry };
    let now = clock::ticks() | 1;
    let (ifindex, asked) = (skb.ifindex(), (hook as u32) << 8 | protocol as u32);
    let at = select::mix(F::fold(&entry.src) ^ F::fold(&entry.dst).rotate_left(16) ^ ifindex) % ROUTES;
    let Some(known) = F::routes().get_ptr_mut(at) else {
        return 0;
    };
    // SAFETY: this CPU's own entry; programs of one CPU do not interleave.
    let known = unsafe { &mut *known };
    let fits = known.at != 0
        && now.wrapping_sub(known.at) < clock::SECOND
        && known.ifindex == ifindex
        && known.asked == asked
        && known.src == entry.src
        && known.dst == entry.dst;
    if !fits {
        let route = lookup::<F>(skb, hook, protocol, &entry.src, &entry.dst).open();
        // Without a neighbour yet the answer is half a one: ask again for the next packet.
        let half = route.mtu == 0 && matches!(route.way, way::NEIGHBOUR | way::PEER);
        known.at = if half { 0 } else { now };
        known.src = entry.src;
        known.dst = entry.dst;
        known.ifindex = ifindex;
        known.asked = asked;
        known.to = route.ifindex;
        known.mtu = route.mtu;
        known.way = route.way;
    }
    entry.routed = known.at;
    entry.ifindex = known.to;
    entry.mtu = known.mtu;
    entry.way = known.way;
    0
}

/// Asks the kernel's routing table for the way from here to `dst`.
#[inline(never)]
pub(crate) fn lookup<F: Family>(skb: Skb, hook: Hook, protocol: u8, src: &F::Addr, dst: &F::Addr) -> PackedRoute {
    PackedRoute::pack(ask::<F>(skb, hook, protocol, opaque(src), opaque(dst)))
}

#[inline(always)]
fn ask<F: Family>(skb: Skb, hook: Hook, protocol: u8, src: &F::Addr, dst: &F::Addr) -> Route {
    let mut params = MaybeUninit::<Params>::uninit();
    // Word by word: the compiler would call a function that clears byte by byte.
    for at in 0..size_of::<Params>() / size_of::<u32>() {
        // SAFETY: within the struct, which is aligned to words.
        unsafe { params.as_mut_ptr().cast::<u32>().add(at).write_volatile(0) };
    }
    // SAFETY: all-zero is a valid value of this C struct.
    let params = unsafe { params.assume_init_mut() };
    params.family = F::AF;
    params.l4_protocol = protocol;
    params.ifindex = skb.ifindex();
    // Any length makes the kernel look up the route's own MTU, with what path MTU discovery has learnt.
    params.__bindgen_anon_1.tot_len = 1;
    F::fib(params, src, dst);
    // SAFETY: `params` is valid for the size given.
    let code = unsafe { bpf_fib_lookup(skb.0.cast(), params, size_of::<Params>() as i32, 0) };
    let code = code as u32;
    if code == BPF_FIB_LKUP_RET_NOT_FWDED {
        return Route {
            way: way::LOCAL,
            ..Route::STACK
        };
    }
    if code != BPF_FIB_LKUP_RET_SUCCESS && code != BPF_FIB_LKUP_RET_NO_NEIGH && code != BPF_FIB_LKUP_RET_FRAG_NEEDED {
        return Route::STACK;
    }
    let ifindex = params.ifindex;
    let mtu = if code == BPF_FIB_LKUP_RET_NO_NEIGH {
        0
    } else {
        // SAFETY: both arms of the union are 16-bit integers.
        match unsafe { params.__bindgen_anon_1.mtu_result } {
            // Before 5.12 the kernel leaves what we wrote: no limit that we know.
            0..68 => u16::MAX,
            mtu => mtu,
        }
    };
    // SAFETY: NO_PREALLOC map, the entry outlives this program run.
    let device = unsafe { DEVICES.get(ifindex) }.copied().unwrap_or(0);
    let peer = hook.ingress() && device & device_flags::PEER != 0;
    Route {
        ifindex,
        mtu,
        way: if peer { way::PEER } else { way::NEIGHBOUR },
    }
}

/// Whether the packet (or, for GSO, each of its segments) is larger than `mtu`.
#[inline(always)]
pub(crate) fn too_big<F: Family>(skb: Skb, parsed: &Parsed<F>, mtu: u16) -> bool {
    if mtu == 0 || skb.len() <= mtu as u32 + ETH {
        return false;
    }
    let segment = skb.gso_size();
    if segment == 0 {
        return true;
    }
    let transport = if parsed.tuple.protocol == TCP {
        (skb.read::<[u8; 2]>(parsed.l4 + 12).unwrap_or([0x50, 0])[0] >> 4) as u32 * 4
    } else {
        8
    };
    parsed.l4 - ETH + transport + segment > mtu as u32
}

/// Sends the packet on its way.
#[inline(always)]
pub(crate) fn send(skb: Skb, node: &Node, route: Route) -> Result<i32, Verdict> {
    let code = match route.way {
        // SAFETY: plain integers; a bad interface index is refused or drops the packet.
        way::PEER => unsafe { bpf_redirect_peer(route.ifindex, 0) },
        // SAFETY: as above; without a next hop the kernel looks it up.
        way::NEIGHBOUR => unsafe { bpf_redirect_neigh(route.ifindex, core::ptr::null_mut(), 0, 0) },
        way::LOCAL if skb.ifindex() != node.lo_ifindex => return to_self(skb, node),
        _ => return Ok(NEXT),
    };
    if code == REDIRECT {
        Ok(code as i32)
    } else {
        Err(Verdict::DropHelperFailed)
    }
}

/// Delivers the packet to this node's own sockets through `lo`, which accepts our own addresses as a source.
#[inline(always)]
pub(crate) fn to_self(skb: Skb, node: &Node) -> Result<i32, Verdict> {
    // The receiving side compares with lo's all-zero hardware address.
    skb.store(0, &[0u8; 12])?;
    // SAFETY: plain integers.
    let code = unsafe { bpf_redirect(node.lo_ifindex, TO_INGRESS) };
    if code == REDIRECT {
        Ok(code as i32)
    } else {
        Err(Verdict::DropHelperFailed)
    }
}

/// Sends an answer that we built back to where the packet came from.
#[inline(always)]
pub(crate) fn back(skb: Skb, hook: Hook, node: &Node) -> Result<i32, Verdict> {
    if matches!(hook, Hook::ToNet) {
        return to_self(skb, node);
    }
    // SAFETY: plain integers.
    let code = unsafe { bpf_redirect(skb.ifindex(), 0) };
    if code == REDIRECT {
        Ok(code as i32)
    } else {
        Err(Verdict::DropHelperFailed)
    }
}
