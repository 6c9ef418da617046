//! The two address families behind one generic source; everything below [`Family`] is written once.

use crate::maps::{
    AFFINITY_V4, AFFINITY_V6, BACKENDS_V4, BACKENDS_V6, DRAFT_V4, DRAFT_V6, Draft, ENDED_V4, ENDED_V6, Ended, FLOWS_V4,
    FLOWS_V6, FRAGMENTS_V4, FRAGMENTS_V6, FRONTENDS_V4, FRONTENDS_V6, Known, ROUTES_V4, ROUTES_V6, Range,
    SOCKET_PEERS_V4, SOCKET_PEERS_V6, SOCKETS_V4, SOCKETS_V6, SOURCE_RANGES_V4, SOURCE_RANGES_V6, STREAMS_V4,
    STREAMS_V6,
};
use aya_ebpf::{
    bindings::bpf_fib_lookup,
    btf_maps::SkStorage,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray},
};
use proxy_common::abi::{
    Affinity, AffinityKey, Backend, Flow, FlowKey, FragmentKey, FragmentPorts, Frontend, FrontendKey, Node, Slot,
    SocketFrontend, SocketKey, Stream, V4, V6,
};

/// An address family: its addresses, its maps, its header facts.
pub(crate) trait Family: 'static {
    /// Address as it lies in the packet.
    type Addr: Copy + PartialEq + 'static;
    /// Whether this is IPv6: folded away in each instance.
    const V6: bool;
    /// Size of the fixed IP header.
    const HEADER: u32;
    /// Offset of the source address in the IP header; the destination follows it.
    const SRC: u32;
    /// Bits of an address.
    const BITS: u32;
    /// ICMP or ICMPv6.
    const ICMP: u8;
    /// Address family number for a FIB lookup.
    const AF: u8;
    /// The unspecified address.
    const ZERO: Self::Addr;

    fn frontends() -> &'static HashMap<FrontendKey<Self::Addr>, Frontend>;
    fn backends() -> &'static Array<Backend<Self::Addr>>;
    fn flows() -> &'static LruHashMap<FlowKey<Self::Addr>, Flow<Self::Addr>>;
    fn affinity() -> &'static LruHashMap<AffinityKey<Self::Addr>, Affinity>;
    fn fragments() -> &'static LruHashMap<FragmentKey<Self::Addr>, FragmentPorts>;
    fn ranges() -> &'static LpmTrie<Range<Self::Addr>, u32>;
    fn sockets() -> &'static LruHashMap<SocketKey<Self::Addr>, SocketFrontend<Self::Addr>>;
    fn socket_peers() -> &'static LruHashMap<SocketKey<Self::Addr>, Slot>;
    fn ended() -> &'static PerCpuArray<Ended<Self::Addr>>;
    fn routes() -> &'static PerCpuArray<Known<Self::Addr>>;
    fn streams() -> &'static SkStorage<Stream<Self::Addr>>;
    fn draft() -> &'static PerCpuArray<Draft<Self::Addr>>;

    /// One's complement sum of the address's 16-bit words, unfolded.
    fn sum(addr: &Self::Addr) -> u64;
    /// The address as 32 bits for the flow hash.
    fn fold(addr: &Self::Addr) -> u32;
    /// The address that masqueraded packets get.
    fn snat(node: &Node) -> Self::Addr;
    /// Fills in the addresses of a FIB lookup.
    fn fib(params: &mut bpf_fib_lookup, src: &Self::Addr, dst: &Self::Addr);
}

/// IPv4.
pub(crate) enum Ipv4 {}
/// IPv6.
pub(crate) enum Ipv6 {}

#[inline(always)]
fn word(bytes: [u8; 4]) -> u32 {
    u32::from_ne_bytes(bytes)
}

/// The four 32-bit words of an IPv6 address.
#[inline(always)]
pub(crate) fn words(addr: &V6) -> [u32; 4] {
    let a = addr;
    [
        word([a[0], a[1], a[2], a[3]]),
        word([a[4], a[5], a[6], a[7]]),
        word([a[8], a[9], a[10], a[11]]),
        word([a[12], a[13], a[14], a[15]]),
    ]
}

impl Family for Ipv4 {
    type Addr = V4;
    const V6: bool = false;
    const HEADER: u32 = 20;
    const SRC: u32 = 12;
    const BITS: u32 = 32;
    const ICMP: u8 = 1;
    const AF: u8 = 2;
    const ZERO: V4 = [0; 4];

    #[inline(always)]
    fn frontends() -> &'static HashMap<FrontendKey<V4>, Frontend> {
        &FRONTENDS_V4
    }
    #[inline(always)]
    fn backends() -> &'static Array<Backend<V4>> {
        &BACKENDS_V4
    }
    #[inline(always)]
    fn flows() -> &'static LruHashMap<FlowKey<V4>, Flow<V4>> {
        &FLOWS_V4
    }
    #[inline(always)]
    fn affinity() -> &'static LruHashMap<AffinityKey<V4>, Affinity> {
        &AFFINITY_V4
    }
    #[inline(always)]
    fn fragments() -> &'static LruHashMap<FragmentKey<V4>, FragmentPorts> {
        &FRAGMENTS_V4
    }
    #[inline(always)]
    fn ranges() -> &'static LpmTrie<Range<V4>, u32> {
        &SOURCE_RANGES_V4
    }
    #[inline(always)]
    fn sockets() -> &'static LruHashMap<SocketKey<V4>, SocketFrontend<V4>> {
        &SOCKETS_V4
    }
    #[inline(always)]
    fn socket_peers() -> &'static LruHashMap<SocketKey<V4>, Slot> {
        &SOCKET_PEERS_V4
    }
    #[inline(always)]
    fn ended() -> &'static PerCpuArray<Ended<V4>> {
        &ENDED_V4
    }
    #[inline(always)]
    fn routes() -> &'static PerCpuArray<Known<V4>> {
        &ROUTES_V4
    }
    #[inline(always)]
    fn streams() -> &'static SkStorage<Stream<V4>> {
        &STREAMS_V4
    }
    #[inline(always)]
    fn draft() -> &'static PerCpuArray<Draft<V4>> {
        &DRAFT_V4
    }

    #[inline(always)]
    fn sum(addr: &V4) -> u64 {
        word(*addr) as u64
    }
    #[inline(always)]
    fn fold(addr: &V4) -> u32 {
        word(*addr)
    }
    #[inline(always)]
    fn snat(node: &Node) -> V4 {
        node.snat_v4
    }
    #[inline(always)]
    fn fib(params: &mut bpf_fib_lookup, src: &V4, dst: &V4) {
        params.__bindgen_anon_3.ipv4_src = word(*src);
        params.__bindgen_anon_4.ipv4_dst = word(*dst);
    }
}

impl Family for Ipv6 {
    type Addr = V6;
    const V6: bool = true;
    const HEADER: u32 = 40;
    const SRC: u32 = 8;
    const BITS: u32 = 128;
    const ICMP: u8 = 58;
    const AF: u8 = 10;
    const ZERO: V6 = [0; 16];

    #[inline(always)]
    fn frontends() -> &'static HashMap<FrontendKey<V6>, Frontend> {
        &FRONTENDS_V6
    }
    #[inline(always)]
    fn backends() -> &'static Array<Backend<V6>> {
        &BACKENDS_V6
    }
    #[inline(always)]
    fn flows() -> &'static LruHashMap<FlowKey<V6>, Flow<V6>> {
        &FLOWS_V6
    }
    #[inline(always)]
    fn affinity() -> &'static LruHashMap<AffinityKey<V6>, Affinity> {
        &AFFINITY_V6
    }
    #[inline(always)]
    fn fragments() -> &'static LruHashMap<FragmentKey<V6>, FragmentPorts> {
        &FRAGMENTS_V6
    }
    #[inline(always)]
    fn ranges() -> &'static LpmTrie<Range<V6>, u32> {
        &SOURCE_RANGES_V6
    }
    #[inline(always)]
    fn sockets() -> &'static LruHashMap<SocketKey<V6>, SocketFrontend<V6>> {
        &SOCKETS_V6
    }
    #[inline(always)]
    fn socket_peers() -> &'static LruHashMap<SocketKey<V6>, Slot> {
        &SOCKET_PEERS_V6
    }
    #[inline(always)]
    fn ended() -> &'static PerCpuArray<Ended<V6>> {
        &ENDED_V6
    }
    #[inline(always)]
    fn routes() -> &'static PerCpuArray<Known<V6>> {
        &ROUTES_V6
    }
    #[inline(always)]
    fn streams() -> &'static SkStorage<Stream<V6>> {
        &STREAMS_V6
    }
    #[inline(always)]
    fn draft() -> &'static PerCpuArray<Draft<V6>> {
        &DRAFT_V6
    }

    #[inline(always)]
    fn sum(addr: &V6) -> u64 {
        let w = words(addr);
        w[0] as u64 + w[1] as u64 + w[2] as u64 + w[3] as u64
    }
    #[inline(always)]
    fn fold(addr: &V6) -> u32 {
        let w = words(addr);
        w[0] ^ w[1].rotate_left(8) ^ w[2].rotate_left(16) ^ w[3].rotate_left(24)
    }
    #[inline(always)]
    fn snat(node: &Node) -> V6 {
        node.snat_v6
    }
    #[inline(always)]
    fn fib(params: &mut bpf_fib_lookup, src: &V6, dst: &V6) {
        params.__bindgen_anon_3.ipv6_src = words(src);
        params.__bindgen_anon_4.ipv6_dst = words(dst);
    }
}
