//! What an [`Image`] means for the first packet of a flow: the lookups of the kernel programs, step by step.
//!
//! Compared with [`crate::plan::trace`] in tests; later the *programmed* verdict of audits and explanations.

use super::image::{Image, socket_addr};
use crate::{
    model::Family,
    plan::trace::{Origin, Packet, State, Target, Verdict},
};
use proxy_common::{
    abi::{Frontend, Slot, SlotKey, SourceRangeKeyV4, SourceRangeKeyV6, backend_flags, frontend_flags},
    select::slot_for,
};
use std::net::{IpAddr, SocketAddr};

/// What the programs do with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// A decision. [`Verdict::Forward`] lists what every flow hash may lead to, by slot, or the one backend that the
    /// client sticks to.
    Decided(Verdict),
    /// Some slot that a flow hash may lead to is missing, or its backend is another generation. In a packet that
    /// straddles a commit the programs notice and look again; in an image at rest it is a bug.
    StaleSlot,
}

/// The maps as a packet meets them: it may straddle writes, so each lookup has its own image, later or the same.
#[derive(Clone, Copy, Debug)]
pub struct Lookups<'a> {
    /// When the frontend is looked up.
    pub frontend: &'a Image,
    /// When the source range is looked up.
    pub ranges: &'a Image,
    /// When the slot is looked up.
    pub slot: &'a Image,
    /// When the backend is looked up.
    pub backend: &'a Image,
}

impl<'a> Lookups<'a> {
    /// All at one moment.
    pub const fn at(image: &'a Image) -> Self {
        Self {
            frontend: image,
            ranges: image,
            slot: image,
            backend: image,
        }
    }
}

/// Verdict on a packet whatever its flow hash.
pub fn judge(image: &Image, packet: &Packet, state: &State) -> Judgement {
    judge_straddling(Lookups::at(image), packet, state)
}

/// [`judge`] for a packet that straddles writes.
pub fn judge_straddling(maps: Lookups<'_>, packet: &Packet, state: &State) -> Judgement {
    let (frontend, side) = match admit(maps, packet) {
        Ok(admitted) => admitted,
        Err(verdict) => return Judgement::Decided(verdict),
    };
    let mut targets = Vec::with_capacity(side.count.into());
    // Neither a set nor a reason: no program's doing, and nothing to choose from.
    if side.count == 0 {
        return Judgement::StaleSlot;
    }
    for slot in 1..=side.count {
        match target(maps, packet, frontend, &side, slot) {
            Some(target) => targets.push(target),
            None => return Judgement::StaleSlot,
        }
    }
    if frontend.affinity_timeout_s != 0 {
        // The kernel knows the client by the set, and any frontend may lead there.
        let sharing = sharing(maps.frontend, packet, side.set);
        let mut stuck = sharing.filter_map(|destination| state.affinity.get(&(packet.source.ip(), destination)));
        if let Some(target) = stuck.find_map(|stuck| targets.iter().find(|target| target.addr == *stuck)) {
            return Judgement::Decided(Verdict::Forward(vec![*target]));
        }
    }
    Judgement::Decided(Verdict::Forward(targets))
}

/// Verdict on a packet with this flow hash and no affinity; [`Verdict::Forward`] has exactly one target.
pub fn judge_flow(maps: Lookups<'_>, packet: &Packet, hash: u32) -> Judgement {
    let (frontend, side) = match admit(maps, packet) {
        Ok(admitted) => admitted,
        Err(verdict) => return Judgement::Decided(verdict),
    };
    match slot_for(hash, side.count).and_then(|slot| target(maps, packet, frontend, &side, slot)) {
        Some(target) => Judgement::Decided(Verdict::Forward(vec![target])),
        None => Judgement::StaleSlot,
    }
}

/// The half of a frontend that is for one kind of client.
struct Side {
    set: u32,
    count: u16,
}

/// Frontend, source ranges, side: everything before a backend is chosen.
fn admit<'a>(maps: Lookups<'a>, packet: &Packet) -> Result<(&'a Frontend, Side), Verdict> {
    let destination = packet.destination;
    let frontend = maps
        .frontend
        .frontend(destination.ip(), destination.port(), packet.protocol)
        .ok_or(Verdict::Pass)?;
    let has = |bit| frontend.flags & bit != 0;
    if has(frontend_flags::SOURCE_RANGES) && !in_ranges(maps.ranges, frontend.ranges, packet.source.ip()) {
        return Err(Verdict::DropSourceRange);
    }
    let (side, drop, reject) = match packet.origin {
        Origin::Pod | Origin::Host => (
            Side {
                set: frontend.internal_set,
                count: frontend.internal_count,
            },
            frontend_flags::INTERNAL_DROP,
            frontend_flags::INTERNAL_REJECT,
        ),
        Origin::Outside => (
            Side {
                set: frontend.external_set,
                count: frontend.external_count,
            },
            frontend_flags::EXTERNAL_DROP,
            frontend_flags::EXTERNAL_REJECT,
        ),
    };
    match () {
        () if has(drop) => Err(Verdict::DropNoLocalEndpoints),
        () if has(reject) => Err(Verdict::Reject),
        () => Ok((frontend, side)),
    }
}

/// Addresses of the frontends whose side for this packet's origin leads to `set`.
fn sharing(image: &Image, packet: &Packet, set: u32) -> impl Iterator<Item = SocketAddr> {
    let outside = packet.origin == Origin::Outside;
    let shares = move |fe: &Frontend| set == if outside { fe.external_set } else { fe.internal_set };
    let v4 = image
        .frontends_v4
        .iter()
        .map(|(key, fe)| (socket_addr(key.addr, key.port), fe));
    let v6 = image
        .frontends_v6
        .iter()
        .map(|(key, fe)| (socket_addr(key.addr, key.port), fe));
    v4.chain(v6).filter(move |(_, fe)| shares(fe)).map(|(addr, _)| addr)
}

/// Slot and backend; `None` = stale.
fn target(maps: Lookups<'_>, packet: &Packet, frontend: &Frontend, side: &Side, slot: u16) -> Option<Target> {
    let key = SlotKey {
        set: side.set,
        slot: slot.into(),
    };
    let slot = maps.slot.slots.get(&key)?;
    let (addr, flags) = backend(maps.backend, Family::of(&packet.destination.ip()), slot)?;
    Some(Target {
        addr,
        masquerade: masquerade(packet, frontend, addr, flags),
    })
}

/// The bound backend that a slot means, with its flags.
fn backend(image: &Image, family: Family, slot: &Slot) -> Option<(SocketAddr, u16)> {
    let (generation, addr, flags) = match family {
        Family::V4 => {
            let entry = image.backends_v4.get(&slot.backend)?;
            (entry.generation, socket_addr(entry.addr, entry.port), entry.flags)
        }
        Family::V6 => {
            let entry = image.backends_v6.get(&slot.backend)?;
            (entry.generation, socket_addr(entry.addr, entry.port), entry.flags)
        }
    };
    (generation == slot.generation && flags & backend_flags::BOUND != 0).then_some((addr, flags))
}

/// Whether the backend must see this node's address as the source, so that its replies come back this way: a pod that
/// reaches itself (hairpin) would answer itself; a client outside would be answered past us, unless the backend is on
/// this node; and `masqueradeAll` asks for it.
fn masquerade(packet: &Packet, frontend: &Frontend, backend: SocketAddr, backend_flags: u16) -> bool {
    let pod = packet.origin == Origin::Pod;
    let remote = backend_flags & backend_flags::ON_NODE == 0;
    (pod && packet.source.ip() == backend.ip())
        || (packet.origin == Origin::Outside && remote)
        || (pod && frontend.flags & frontend_flags::MASQUERADE != 0)
}

/// Longest-prefix match as the trie does it: any entry that covers the address is a hit.
fn in_ranges(image: &Image, ranges: u32, source: IpAddr) -> bool {
    match source {
        IpAddr::V4(source) => (0..=32u8).any(|len| {
            let Ok(net) = ipnet::Ipv4Net::new(source, len) else {
                return false;
            };
            let prefix_len = 32 + u32::from(len);
            image.ranges_v4.contains(&SourceRangeKeyV4 {
                prefix_len,
                ranges,
                addr: net.network().octets(),
            })
        }),
        IpAddr::V6(source) => (0..=128u8).any(|len| {
            let Ok(net) = ipnet::Ipv6Net::new(source, len) else {
                return false;
            };
            let prefix_len = 32 + u32::from(len);
            image.ranges_v6.contains(&SourceRangeKeyV6 {
                prefix_len,
                ranges,
                addr: net.network().octets(),
            })
        }),
    }
}
