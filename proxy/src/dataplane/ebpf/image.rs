//! What the maps hold: one ordered map per BPF map.

use crate::{model::Protocol, plan::Backend};
use proxy_common::abi::{
    BackendV4, BackendV6, Frontend, FrontendKeyV4, FrontendKeyV6, Port, Slot, SlotKey, SourceRangeKeyV4,
    SourceRangeKeyV6, backend_flags, frontend_flags,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// Entries of the maps that the agent writes. Flow, affinity, fragment and socket maps belong to the programs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Image {
    /// `BACKENDS_V4`, bound ids only.
    pub backends_v4: BTreeMap<u32, BackendV4>,
    /// `BACKENDS_V6`, bound ids only.
    pub backends_v6: BTreeMap<u32, BackendV6>,
    /// `SLOTS` (set ids are unique over both families).
    pub slots: BTreeMap<SlotKey, Slot>,
    /// `SOURCE_RANGES_V4`.
    pub ranges_v4: BTreeSet<SourceRangeKeyV4>,
    /// `SOURCE_RANGES_V6`.
    pub ranges_v6: BTreeSet<SourceRangeKeyV6>,
    /// `FRONTENDS_V4`.
    pub frontends_v4: BTreeMap<FrontendKeyV4, Frontend>,
    /// `FRONTENDS_V6`.
    pub frontends_v6: BTreeMap<FrontendKeyV6, Frontend>,
}

/// Everything that was read from the kernel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// The entries that mean something.
    pub image: Image,
    /// [`BackendV4::generation`] of ids that are not bound but were once; ids never bound (generation 0) are left out.
    pub generations_v4: BTreeMap<u32, u32>,
    /// As above, for `BACKENDS_V6`.
    pub generations_v6: BTreeMap<u32, u32>,
}

impl Image {
    /// Adds the entries of `other`; an entry that both have is taken from `other`.
    pub fn merge(&mut self, other: &Self) {
        self.backends_v4
            .extend(other.backends_v4.iter().map(|(id, entry)| (*id, *entry)));
        self.backends_v6
            .extend(other.backends_v6.iter().map(|(id, entry)| (*id, *entry)));
        self.slots.extend(other.slots.iter().map(|(key, slot)| (*key, *slot)));
        self.ranges_v4.extend(other.ranges_v4.iter().copied());
        self.ranges_v6.extend(other.ranges_v6.iter().copied());
        self.frontends_v4
            .extend(other.frontends_v4.iter().map(|(key, entry)| (*key, *entry)));
        self.frontends_v6
            .extend(other.frontends_v6.iter().map(|(key, entry)| (*key, *entry)));
    }

    /// Drops the frontends that `claimant` has too. Their sets stay until this image's service is lowered again.
    pub fn cede(&mut self, claimant: &Self) {
        self.frontends_v4
            .retain(|key, _| !claimant.frontends_v4.contains_key(key));
        self.frontends_v6
            .retain(|key, _| !claimant.frontends_v6.contains_key(key));
    }

    /// The frontend of an address, port (host order) and protocol.
    pub fn frontend(&self, addr: IpAddr, port: u16, protocol: Protocol) -> Option<&Frontend> {
        match addr {
            IpAddr::V4(addr) => self.frontends_v4.get(&frontend_key_v4(addr, port, protocol)),
            IpAddr::V6(addr) => self.frontends_v6.get(&frontend_key_v6(addr, port, protocol)),
        }
    }
}

/// Key of `FRONTENDS_V4`; `port` in host order.
pub const fn frontend_key_v4(addr: Ipv4Addr, port: u16, protocol: Protocol) -> FrontendKeyV4 {
    FrontendKeyV4 {
        addr: addr.octets(),
        port: port.to_be_bytes(),
        protocol: protocol.number(),
        pad: 0,
    }
}

/// Key of `FRONTENDS_V6`; `port` in host order.
pub const fn frontend_key_v6(addr: Ipv6Addr, port: u16, protocol: Protocol) -> FrontendKeyV6 {
    FrontendKeyV6 {
        addr: addr.octets(),
        port: port.to_be_bytes(),
        protocol: protocol.number(),
        pad: 0,
    }
}

/// [`backend_flags`] of a bound backend.
pub fn bits_of(backend: &Backend) -> u16 {
    [
        (backend.in_cluster, backend_flags::IN_CLUSTER),
        (backend.in_local, backend_flags::IN_LOCAL),
        (backend.on_node, backend_flags::ON_NODE),
    ]
    .into_iter()
    .filter(|(on, _)| *on)
    .fold(backend_flags::BOUND, |bits, (_, bit)| bits | bit)
}

/// An ABI address and port as a socket address.
pub fn socket_addr(addr: impl Into<IpAddr>, port: Port) -> SocketAddr {
    SocketAddr::new(addr.into(), u16::from_be_bytes(port))
}

/// One map mutation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Binds a backend id, or changes its flags.
    PutBackendV4(u32, BackendV4),
    /// As above.
    PutBackendV6(u32, BackendV6),
    /// Unbinds an id: writes an entry that is zero but for this generation.
    FreeBackendV4(u32, u32),
    /// As above.
    FreeBackendV6(u32, u32),
    /// Writes a slot.
    PutSlot(SlotKey, Slot),
    /// Removes a slot.
    RemoveSlot(SlotKey),
    /// Allows a source range.
    PutRangeV4(SourceRangeKeyV4),
    /// Allows a source range.
    PutRangeV6(SourceRangeKeyV6),
    /// Forgets a source range.
    RemoveRangeV4(SourceRangeKeyV4),
    /// Forgets a source range.
    RemoveRangeV6(SourceRangeKeyV6),
    /// Writes a frontend: the commit.
    PutFrontendV4(FrontendKeyV4, Frontend),
    /// Writes a frontend: the commit.
    PutFrontendV6(FrontendKeyV6, Frontend),
    /// Stops intercepting.
    RemoveFrontendV4(FrontendKeyV4),
    /// Stops intercepting.
    RemoveFrontendV6(FrontendKeyV6),
}

/// One compact line: `+` writes, `-` removes, then the map, the key and the value.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PutBackendV4(id, be) => {
                write!(f, "+ BE4 {id} {} gen={}", socket_addr(be.addr, be.port), be.generation)?;
                backend_words(f, be.flags)
            }
            Self::PutBackendV6(id, be) => {
                write!(f, "+ BE6 {id} {} gen={}", socket_addr(be.addr, be.port), be.generation)?;
                backend_words(f, be.flags)
            }
            Self::FreeBackendV4(id, generation) => write!(f, "- BE4 {id} gen={generation}"),
            Self::FreeBackendV6(id, generation) => write!(f, "- BE6 {id} gen={generation}"),
            Self::PutSlot(key, slot) => {
                write!(
                    f,
                    "+ SLOT {}/{} be={} gen={}",
                    key.set, key.slot, slot.backend, slot.generation
                )
            }
            Self::RemoveSlot(key) => write!(f, "- SLOT {}/{}", key.set, key.slot),
            Self::PutRangeV4(key) => range(f, "+ RANGE4", key.ranges, key.addr.into(), key.prefix_len),
            Self::PutRangeV6(key) => range(f, "+ RANGE6", key.ranges, key.addr.into(), key.prefix_len),
            Self::RemoveRangeV4(key) => range(f, "- RANGE4", key.ranges, key.addr.into(), key.prefix_len),
            Self::RemoveRangeV6(key) => range(f, "- RANGE6", key.ranges, key.addr.into(), key.prefix_len),
            Self::PutFrontendV4(key, fe) => {
                frontend(f, "+ FE4", socket_addr(key.addr, key.port), key.protocol)?;
                frontend_words(f, fe)
            }
            Self::PutFrontendV6(key, fe) => {
                frontend(f, "+ FE6", socket_addr(key.addr, key.port), key.protocol)?;
                frontend_words(f, fe)
            }
            Self::RemoveFrontendV4(key) => frontend(f, "- FE4", socket_addr(key.addr, key.port), key.protocol),
            Self::RemoveFrontendV6(key) => frontend(f, "- FE6", socket_addr(key.addr, key.port), key.protocol),
        }
    }
}

fn backend_words(f: &mut fmt::Formatter<'_>, flags: u16) -> fmt::Result {
    let names = [
        (backend_flags::IN_CLUSTER, "cluster"),
        (backend_flags::IN_LOCAL, "local"),
        (backend_flags::ON_NODE, "on-node"),
    ];
    let mut separator = ' ';
    for (_, name) in names.iter().filter(|(bit, _)| flags & bit != 0) {
        write!(f, "{separator}{name}")?;
        separator = ',';
    }
    if flags & backend_flags::BOUND == 0 {
        f.write_str(" UNBOUND")?;
    }
    Ok(())
}

fn range(f: &mut fmt::Formatter<'_>, what: &str, ranges: u32, addr: IpAddr, prefix_len: u32) -> fmt::Result {
    write!(f, "{what} {ranges} {addr}/{}", prefix_len.saturating_sub(32))
}

fn frontend(f: &mut fmt::Formatter<'_>, what: &str, addr: SocketAddr, protocol: u8) -> fmt::Result {
    match [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .iter()
        .find(|p| p.number() == protocol)
    {
        Some(name) => write!(f, "{what} {addr}/{name}"),
        None => write!(f, "{what} {addr}/{protocol}"),
    }
}

fn frontend_words(f: &mut fmt::Formatter<'_>, fe: &Frontend) -> fmt::Result {
    use frontend_flags::{
        EXTERNAL_DROP, EXTERNAL_LOCAL, EXTERNAL_REJECT, INTERNAL_DROP, INTERNAL_LOCAL, INTERNAL_REJECT, MASQUERADE,
        NODE_ADDRESS, SOURCE_RANGES,
    };
    let mut side = |name, set: u32, count: u16, [local, reject, drop]: [u32; 3]| match fe.flags {
        flags if set != 0 && flags & local != 0 => write!(f, " {name}={set}({count},local)"),
        _ if set != 0 => write!(f, " {name}={set}({count})"),
        flags if flags & reject != 0 => write!(f, " {name}=reject"),
        flags if flags & drop != 0 => write!(f, " {name}=drop"),
        _ => write!(f, " {name}=none"),
    };
    side(
        "internal",
        fe.internal_set,
        fe.internal_count,
        [INTERNAL_LOCAL, INTERNAL_REJECT, INTERNAL_DROP],
    )?;
    side(
        "external",
        fe.external_set,
        fe.external_count,
        [EXTERNAL_LOCAL, EXTERNAL_REJECT, EXTERNAL_DROP],
    )?;
    if fe.affinity_timeout_s != 0 {
        write!(f, " affinity={}s", fe.affinity_timeout_s)?;
    }
    if fe.flags & SOURCE_RANGES != 0 {
        write!(f, " ranges={}", fe.ranges)?;
    }
    if fe.flags & NODE_ADDRESS != 0 {
        f.write_str(" node-address")?;
    }
    if fe.flags & MASQUERADE != 0 {
        f.write_str(" masquerade")?;
    }
    Ok(())
}
