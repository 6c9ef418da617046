//! Every map, its default size and who writes it. The agent resizes them by flag before loading.

use aya_ebpf::{
    btf_maps::SkStorage,
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray},
};
use proxy_common::{
    abi::{
        Affinity, AffinityKeyV4, AffinityKeyV6, BackendV4, BackendV6, Flow, FlowKey, FlowKeyV4, FlowKeyV6, FlowV4,
        FlowV6, FragmentKeyV4, FragmentKeyV6, FragmentPorts, Frontend, FrontendKeyV4, FrontendKeyV6, Node, Slot,
        SlotKey, SocketFrontendV4, SocketFrontendV6, SocketKeyV4, SocketKeyV6, StreamV4, StreamV6, V4, V6,
    },
    verdict,
};

/// `BPF_F_NO_PREALLOC`: memory for what is there. A deleted entry's memory may be reused at once: readers copy, and look
/// twice where it matters.
const NO_PREALLOC: u32 = 1;

/// What follows the prefix length in a source range key: the service's range id, then the address.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Range<A> {
    /// `Frontend::ranges`.
    pub(crate) ranges: u32,
    /// Source address.
    pub(crate) addr: A,
}

// Written by the agent.
#[map]
pub(crate) static FRONTENDS_V4: HashMap<FrontendKeyV4, Frontend> = HashMap::with_max_entries(131_072, NO_PREALLOC);
#[map]
pub(crate) static FRONTENDS_V6: HashMap<FrontendKeyV6, Frontend> = HashMap::with_max_entries(131_072, NO_PREALLOC);
#[map]
pub(crate) static SLOTS: HashMap<SlotKey, Slot> = HashMap::with_max_entries(524_288, NO_PREALLOC);
#[map]
pub(crate) static BACKENDS_V4: Array<BackendV4> = Array::with_max_entries(262_144, 0);
#[map]
pub(crate) static BACKENDS_V6: Array<BackendV6> = Array::with_max_entries(262_144, 0);
#[map]
pub(crate) static SOURCE_RANGES_V4: LpmTrie<Range<V4>, u32> = LpmTrie::with_max_entries(65_536, NO_PREALLOC);
#[map]
pub(crate) static SOURCE_RANGES_V6: LpmTrie<Range<V6>, u32> = LpmTrie::with_max_entries(65_536, NO_PREALLOC);
#[map]
pub(crate) static NODE: Array<Node> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static DEVICES: HashMap<u32, u32> = HashMap::with_max_entries(16_384, NO_PREALLOC);

// Written by the programs.
#[map]
pub(crate) static FLOWS_V4: LruHashMap<FlowKeyV4, FlowV4> = LruHashMap::with_max_entries(262_144, 0);
#[map]
pub(crate) static FLOWS_V6: LruHashMap<FlowKeyV6, FlowV6> = LruHashMap::with_max_entries(131_072, 0);
#[map]
pub(crate) static AFFINITY_V4: LruHashMap<AffinityKeyV4, Affinity> = LruHashMap::with_max_entries(65_536, 0);
#[map]
pub(crate) static AFFINITY_V6: LruHashMap<AffinityKeyV6, Affinity> = LruHashMap::with_max_entries(65_536, 0);
#[map]
pub(crate) static FRAGMENTS_V4: LruHashMap<FragmentKeyV4, FragmentPorts> = LruHashMap::with_max_entries(8_192, 0);
#[map]
pub(crate) static FRAGMENTS_V6: LruHashMap<FragmentKeyV6, FragmentPorts> = LruHashMap::with_max_entries(8_192, 0);
#[map]
pub(crate) static SOCKETS_V4: LruHashMap<SocketKeyV4, SocketFrontendV4> = LruHashMap::with_max_entries(65_536, 0);
#[map]
pub(crate) static SOCKETS_V6: LruHashMap<SocketKeyV6, SocketFrontendV6> = LruHashMap::with_max_entries(65_536, 0);
#[map]
pub(crate) static SOCKET_PEERS_V4: LruHashMap<SocketKeyV4, Slot> = LruHashMap::with_max_entries(65_536, 0);
#[map]
pub(crate) static SOCKET_PEERS_V6: LruHashMap<SocketKeyV6, Slot> = LruHashMap::with_max_entries(65_536, 0);
/// Kept in each socket and freed with it: no key, nothing to evict, no limit.
#[btf_map]
pub(crate) static STREAMS_V4: SkStorage<StreamV4> = SkStorage::new();
#[btf_map]
pub(crate) static STREAMS_V6: SkStorage<StreamV6> = SkStorage::new();
/// Entries under construction: too large for the stack together with their keys.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Draft<A> {
    /// Forward entry.
    pub(crate) forward: Flow<A>,
    /// Reply entry.
    pub(crate) reply: Flow<A>,
    /// The frontend as it was read.
    pub(crate) frontend: Frontend,
    /// The frontend as it was read once more.
    pub(crate) again: Frontend,
    /// Flags of the chosen backend.
    pub(crate) backend_flags: u32,
}
/// What the routing table said.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Known<A> {
    /// Source address.
    pub(crate) src: A,
    /// Destination address.
    pub(crate) dst: A,
    /// Interface of the packet that asked.
    pub(crate) ifindex: u32,
    /// Protocol, and above it the hook.
    pub(crate) asked: u32,
    /// When, as `Flow::routed`.
    pub(crate) at: u32,
    /// `Flow::ifindex`.
    pub(crate) to: u32,
    /// `Flow::mtu`.
    pub(crate) mtu: u16,
    /// `Flow::way`.
    pub(crate) way: u16,
}
/// Answers that one CPU remembers, for flows that begin.
pub(crate) const ROUTES: u32 = 256;
#[map]
pub(crate) static ROUTES_V4: PerCpuArray<Known<V4>> = PerCpuArray::with_max_entries(ROUTES, 0);
#[map]
pub(crate) static ROUTES_V6: PerCpuArray<Known<V6>> = PerCpuArray::with_max_entries(ROUTES, 0);
/// A flow that was reset.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Ended<A> {
    /// Key of either of its entries.
    pub(crate) key: FlowKey<A>,
    /// `Flow::seen` of that entry since then.
    pub(crate) at: u32,
}
/// Which part of `ENDED_*` is in use: `oldest..next`, wrapping, modulo [`ENDED`].
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Cursor {
    /// Where the next flow goes.
    pub(crate) next: u32,
    /// The one that has been there for longest.
    pub(crate) oldest: u32,
}
/// Reset flows that one CPU remembers: 100 000 resets a second for [`proxy_common::abi::idle::ENDED`]. The agent sweeps
/// those that find no room.
pub(crate) const ENDED: u32 = 1024;
#[map]
pub(crate) static ENDED_V4: PerCpuArray<Ended<V4>> = PerCpuArray::with_max_entries(ENDED, 0);
#[map]
pub(crate) static ENDED_V6: PerCpuArray<Ended<V6>> = PerCpuArray::with_max_entries(ENDED, 0);
/// One per family.
#[map]
pub(crate) static ENDED_CURSORS: PerCpuArray<Cursor> = PerCpuArray::with_max_entries(2, 0);
#[map]
pub(crate) static DRAFT_V4: PerCpuArray<Draft<V4>> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub(crate) static DRAFT_V6: PerCpuArray<Draft<V6>> = PerCpuArray::with_max_entries(1, 0);
/// The part of a packet that an ICMP error quotes: the larger of the families' IP header and eight bytes more.
#[map]
pub(crate) static QUOTE: PerCpuArray<[u8; 48]> = PerCpuArray::with_max_entries(1, 0);
/// Where a walk over IPv6 extension headers ended.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Extensions {
    /// Transport protocol.
    pub(crate) protocol: u32,
    /// Offset of its header.
    pub(crate) l4: u32,
    /// Fragment bits as IPv4 has them.
    pub(crate) piece: u32,
    /// Identification of the fragmented datagram.
    pub(crate) id: [u8; 4],
}
#[map]
pub(crate) static EXTENSIONS: PerCpuArray<Extensions> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(verdict::COUNT, 0);
