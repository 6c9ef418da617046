//! The map ABI: every key and value that crosses between the agent and the kernel programs.
//!
//! Addresses and ports are in network byte order exactly as they lie in a packet, so that programs compare without
//! swapping; every other integer is in host order. Pinned maps outlive their writer: a changed layout needs a new
//! [`ABI_VERSION`], which is part of the pin path.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Layout version of all maps; names the pin directory.
pub const ABI_VERSION: u32 = 1;

/// An address as it lies in the packet.
pub type V4 = [u8; 4];
/// An address as it lies in the packet.
pub type V6 = [u8; 16];
/// A port as it lies in the packet (network byte order).
pub type Port = [u8; 2];

macro_rules! abi {
    ($($(#[$doc:meta])* struct $name:ident ($size:literal) { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, IntoBytes, FromBytes, Immutable)]
        #[repr(C)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }
        const _: () = assert!(size_of::<$name>() == $size);
    )*};
}

abi! {
    /// Key of `FRONTENDS_V4`: an address, port and protocol that we intercept.
    struct FrontendKeyV4 (8) {
        /// Destination address.
        addr: V4,
        /// Destination port.
        port: Port,
        /// IANA protocol number.
        protocol: u8,
        /// Zero.
        pad: u8,
    }
    /// Key of `FRONTENDS_V6`; see [`FrontendKeyV4`].
    struct FrontendKeyV6 (20) {
        /// Destination address.
        addr: V6,
        /// Destination port.
        port: Port,
        /// IANA protocol number.
        protocol: u8,
        /// Zero.
        pad: u8,
    }
    /// Value of `FRONTENDS_*`: what to do with a new flow, by where it comes from.
    struct Frontend (32) {
        /// Set of backends for clients on this node (pods and the node itself); 0 = none, see `flags`.
        internal_set: u32,
        /// Set of backends for clients outside this node; 0 = none, see `flags`.
        external_set: u32,
        /// Backends in `internal_set`.
        internal_count: u16,
        /// Backends in `external_set`.
        external_count: u16,
        /// Bits of [`frontend_flags`].
        flags: u32,
        /// Seconds, 0 = off. Source: `Service.spec.sessionAffinityConfig.clientIP.timeoutSeconds`, 1 to 86 400.
        affinity_timeout_s: u32,
        /// Key into `SOURCE_RANGES_*`, meaningful with [`frontend_flags::SOURCE_RANGES`].
        ranges: u32,
        /// Zero.
        reserved: [u32; 2],
    }
    /// Key of `SLOTS`: position of a backend in a set.
    struct SlotKey (8) {
        /// Set id, never 0.
        set: u32,
        /// 1-based position.
        slot: u32,
    }
    /// Value of `SLOTS`: a backend and the generation under which it was meant.
    struct Slot (8) {
        /// Index into `BACKENDS_*`, never 0.
        backend: u32,
        /// [`BackendV4::generation`] at the time of writing; a mismatch means that the backend is gone.
        generation: u32,
    }
    /// Value of `BACKENDS_V4`, an array indexed by backend id. Unbound entries lack [`backend_flags::BOUND`].
    struct BackendV4 (16) {
        /// Bumped each time the id is bound to an endpoint and each time it is unbound, so it survives in the map even
        /// while the id is free; 0 = never bound. Flows and slots that remember another generation are stale.
        generation: u32,
        /// Address.
        addr: V4,
        /// Port.
        port: Port,
        /// Bits of [`backend_flags`].
        flags: u16,
        /// Zero.
        reserved: u32,
    }
    /// Value of `BACKENDS_V6`; see [`BackendV4`].
    struct BackendV6 (28) {
        /// See [`BackendV4::generation`].
        generation: u32,
        /// Address.
        addr: V6,
        /// Port.
        port: Port,
        /// Bits of [`backend_flags`].
        flags: u16,
        /// Zero.
        reserved: u32,
    }
    /// Key of `FLOWS_V4`: a packet's own tuple, either as the client sent it (entry of kind forward) or as the
    /// backend's reply carries it (kind reply).
    struct FlowKeyV4 (16) {
        /// Source address.
        src: V4,
        /// Destination address.
        dst: V4,
        /// Source port.
        sport: Port,
        /// Destination port.
        dport: Port,
        /// IANA protocol number.
        protocol: u8,
        /// Zero.
        pad: [u8; 3],
    }
    /// Key of `FLOWS_V6`; see [`FlowKeyV4`].
    struct FlowKeyV6 (40) {
        /// Source address.
        src: V6,
        /// Destination address.
        dst: V6,
        /// Source port.
        sport: Port,
        /// Destination port.
        dport: Port,
        /// IANA protocol number.
        protocol: u8,
        /// Zero.
        pad: [u8; 3],
    }
    /// Value of `FLOWS_V4`: the tuple to write into the packet, and the flow's state.
    struct FlowV4 (44) {
        /// New source address.
        src: V4,
        /// New destination address.
        dst: V4,
        /// New source port.
        sport: Port,
        /// New destination port.
        dport: Port,
        /// Bits of [`flow_flags`].
        flags: u32,
        /// Index into `BACKENDS_V4`.
        backend: u32,
        /// Generation of that backend when the flow chose it.
        generation: u32,
        /// Milliseconds of the coarse monotonic clock, wrapping: last packet, to a second.
        seen_ms: u32,
        /// Milliseconds, as above: when `ifindex` was looked up.
        routed_ms: u32,
        /// Where packets go after translation; 0 = up the stack.
        ifindex: u32,
        /// Largest IP packet that fits there, bytes.
        mtu: u16,
        /// How to get there: 0 stack, 1 neighbour redirect, 2 peer redirect.
        way: u16,
        /// Set that the backend was chosen from.
        set: u32,
    }
    /// Value of `FLOWS_V6`; see [`FlowV4`].
    struct FlowV6 (68) {
        /// New source address.
        src: V6,
        /// New destination address.
        dst: V6,
        /// New source port.
        sport: Port,
        /// New destination port.
        dport: Port,
        /// Bits of [`flow_flags`].
        flags: u32,
        /// Index into `BACKENDS_V6`.
        backend: u32,
        /// Generation of that backend when the flow chose it.
        generation: u32,
        /// See [`FlowV4::seen_ms`].
        seen_ms: u32,
        /// See [`FlowV4::routed_ms`].
        routed_ms: u32,
        /// See [`FlowV4::ifindex`].
        ifindex: u32,
        /// See [`FlowV4::mtu`].
        mtu: u16,
        /// See [`FlowV4::way`].
        way: u16,
        /// Set that the backend was chosen from.
        set: u32,
    }
    /// Key of `AFFINITY_V4`: a client and the set that it was balanced over.
    struct AffinityKeyV4 (8) {
        /// Client address.
        client: V4,
        /// Set id.
        set: u32,
    }
    /// Key of `AFFINITY_V6`.
    struct AffinityKeyV6 (20) {
        /// Client address.
        client: V6,
        /// Set id.
        set: u32,
    }
    /// Value of `AFFINITY_*`.
    struct Affinity (12) {
        /// Index into `BACKENDS_*`.
        backend: u32,
        /// Its generation.
        generation: u32,
        /// Seconds of the coarse monotonic clock: last new connection.
        used_s: u32,
    }
    /// Key of `SOURCE_RANGES_V4`, a longest-prefix-match trie: the 32 bits of `ranges`, then the source prefix.
    struct SourceRangeKeyV4 (12) {
        /// Bits that count: 32 + prefix length.
        prefix_len: u32,
        /// [`Frontend::ranges`].
        ranges: u32,
        /// Source address.
        addr: V4,
    }
    /// Key of `SOURCE_RANGES_V6`; see [`SourceRangeKeyV4`].
    struct SourceRangeKeyV6 (24) {
        /// Bits that count: 32 + prefix length.
        prefix_len: u32,
        /// [`Frontend::ranges`].
        ranges: u32,
        /// Source address.
        addr: V6,
    }
    /// Key of `FRAGMENTS_V4` (LRU): a datagram in pieces, by the addresses it carries on the wire.
    struct FragmentKeyV4 (12) {
        /// Source address.
        src: V4,
        /// Destination address.
        dst: V4,
        /// IP identification, as it lies in the packet.
        id: [u8; 2],
        /// IANA protocol number.
        protocol: u8,
        /// Zero.
        pad: u8,
    }
    /// Key of `FRAGMENTS_V6` (LRU); see [`FragmentKeyV4`].
    struct FragmentKeyV6 (40) {
        /// Source address.
        src: V6,
        /// Destination address.
        dst: V6,
        /// Identification of the fragment header.
        id: [u8; 4],
        /// IANA protocol number.
        protocol: u8,
        /// Zero.
        pad: [u8; 3],
    }
    /// Value of `FRAGMENTS_*`: the ports of the first fragment.
    struct FragmentPorts (4) {
        /// Source port.
        sport: Port,
        /// Destination port.
        dport: Port,
    }
    /// Key of `SOCKETS_V4` (LRU): a socket and the backend that it sends to.
    struct SocketKeyV4 (16) {
        /// Kernel socket cookie.
        cookie: u64,
        /// Backend address, or the frontend's in `SOCKET_PEERS_V4`.
        addr: V4,
        /// Port of that address.
        port: Port,
        /// Zero.
        pad: [u8; 2],
    }
    /// Key of `SOCKETS_V6` (LRU); see [`SocketKeyV4`].
    struct SocketKeyV6 (32) {
        /// Kernel socket cookie.
        cookie: u64,
        /// Backend address, or the frontend's in `SOCKET_PEERS_V6`.
        addr: V6,
        /// Port of that address.
        port: Port,
        /// Zero.
        pad: [u8; 6],
    }
    /// Value of `SOCKETS_V4`: the frontend to show to the application.
    struct SocketFrontendV4 (8) {
        /// Frontend address.
        addr: V4,
        /// Frontend port.
        port: Port,
        /// Zero.
        pad: [u8; 2],
    }
    /// Value of `SOCKETS_V6`.
    struct SocketFrontendV6 (20) {
        /// Frontend address.
        addr: V6,
        /// Frontend port.
        port: Port,
        /// Zero.
        pad: [u8; 2],
    }
    /// The one entry of `NODE`: what the programs need to know of this node.
    struct Node (48) {
        /// Masquerade source of IPv4, zero = none.
        snat_v4: V4,
        /// Masquerade source of IPv6, zero = none.
        snat_v6: V6,
        /// First source port given to masqueraded flows, host order.
        snat_port_first: u16,
        /// Last source port given to masqueraded flows, host order.
        snat_port_last: u16,
        /// Mixed into every flow hash.
        seed: u32,
        /// Bits of [`node_flags`].
        flags: u32,
        /// Interface index of `lo`.
        lo_ifindex: u32,
        /// Zero.
        reserved: [u32; 3],
    }
}

/// Bits of [`Frontend::flags`].
pub mod frontend_flags {
    /// Clients on this node: answer with RST or ICMP port unreachable.
    pub const INTERNAL_REJECT: u32 = 1;
    /// Clients on this node: drop.
    pub const INTERNAL_DROP: u32 = 1 << 1;
    /// Clients outside: answer with RST or ICMP port unreachable.
    pub const EXTERNAL_REJECT: u32 = 1 << 2;
    /// Clients outside: drop.
    pub const EXTERNAL_DROP: u32 = 1 << 3;
    /// Only sources in `SOURCE_RANGES_*` under [`super::Frontend::ranges`] may pass.
    pub const SOURCE_RANGES: u32 = 1 << 4;
    /// The frontend's address is one of this node's own.
    pub const NODE_ADDRESS: u32 = 1 << 5;
    /// `internal_set` is the Local set of its service port (else the Cluster set).
    pub const INTERNAL_LOCAL: u32 = 1 << 6;
    /// `external_set` is the Local set of its service port (else the Cluster set).
    pub const EXTERNAL_LOCAL: u32 = 1 << 7;
}

/// Bits of [`BackendV4::flags`].
pub mod backend_flags {
    /// May be chosen from the Cluster set.
    pub const IN_CLUSTER: u16 = 1;
    /// May be chosen from the Local set.
    pub const IN_LOCAL: u16 = 1 << 1;
    /// Runs on this node, so replies pass here without masquerading.
    pub const ON_NODE: u16 = 1 << 2;
    /// The id is bound to an endpoint; without it the rest of the entry except the generation is zero.
    pub const BOUND: u16 = 1 << 3;
}

/// Bits of [`FlowV4::flags`].
pub mod flow_flags {
    /// Entry keyed by the backend's reply (else by the client's packet).
    pub const REPLY: u32 = 1;
    /// FIN or RST seen in this direction.
    pub const CLOSED: u32 = 1 << 1;
    /// The source was masqueraded.
    pub const MASQUERADED: u32 = 1 << 2;
    /// The client is a pod of this node.
    pub const FROM_POD: u32 = 1 << 3;
    /// The client is this node itself.
    pub const FROM_HOST: u32 = 1 << 4;
    /// The client is outside this node.
    pub const FROM_OUTSIDE: u32 = 1 << 5;
    /// The frontend's address is one of this node's own.
    pub const NODE_ADDRESS: u32 = 1 << 6;
    /// Chosen from a Local set.
    pub const LOCAL_SET: u32 = 1 << 7;
}

/// Bits of [`Node::flags`].
pub mod node_flags {
    /// Send translated packets straight to the next interface instead of up the stack.
    pub const DIRECT: u32 = 1;
    /// Masquerade ClusterIP traffic of pods too. Source: `KubeProxyConfiguration.*.masqueradeAll`.
    pub const MASQUERADE_ALL: u32 = 1 << 1;
}
