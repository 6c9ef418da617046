//! The map ABI: every key and value that crosses between the agent and the kernel programs.
//!
//! Addresses and ports are in network byte order exactly as they lie in a packet, so that programs compare without
//! swapping; every other integer is in host order. Types with an address are generic over it: one source, two layouts,
//! no 16-byte keys for IPv4. Pinned maps outlive their writer: a changed layout needs a new [`ABI_VERSION`], which is
//! part of the pin path.

/// Layout version of all maps; names the pin directory.
pub const ABI_VERSION: u32 = 1;

/// An IPv4 address as it lies in the packet.
pub type V4 = [u8; 4];
/// An IPv6 address as it lies in the packet.
pub type V6 = [u8; 16];
/// A port as it lies in the packet (network byte order).
pub type Port = [u8; 2];

/// A map key or value that is nothing but its bytes.
///
/// # Safety
/// The type has no padding and every bit pattern is a value of it.
pub unsafe trait Plain: Copy + Default {
    /// The bytes, as the kernel sees them.
    fn as_bytes(&self) -> &[u8] {
        // SAFETY: no padding, so every byte is initialised; the slice borrows `self`.
        unsafe { core::slice::from_raw_parts(core::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }

    /// From the kernel's bytes; `None` if there are not exactly as many as the type has.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != size_of::<Self>() {
            return None;
        }
        // SAFETY: the length was checked, the read is unaligned, and every bit pattern is a value.
        Some(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }
}

// SAFETY: an integer has no padding and no invalid bit pattern.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}

/// Declares `repr(C)` structs, aligned so that the kernel side copies words and not bytes, and proves, per address family, that they have no padding: their size is the sum of
/// their fields.
macro_rules! abi {
    ($($(#[$doc:meta])* struct $name:ident $(<$a:ident> as $v4:ident, $v6:ident)? {
        $($(#[$fdoc:meta])* $field:ident: $ty:ty,)*
    })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(C, align(4))]
        pub struct $name $(<$a>)? { $($(#[$fdoc])* pub $field: $ty,)* }
        abi!(@plain $name, $($a as $v4, $v6,)? $($ty),*);
    )*};
    (@plain $name:ident, $a:ident as $v4:ident, $v6:ident, $($ty:ty),*) => {
        #[doc = concat!("[`", stringify!($name), "`] of IPv4.")]
        pub type $v4 = $name<V4>;
        #[doc = concat!("[`", stringify!($name), "`] of IPv6.")]
        pub type $v6 = $name<V6>;
        const _: () = { type $a = V4; assert!(size_of::<$v4>() == 0 $(+ size_of::<$ty>())*) };
        const _: () = { type $a = V6; assert!(size_of::<$v6>() == 0 $(+ size_of::<$ty>())*) };
        // SAFETY: the assertions above; all fields are integers or arrays of them.
        unsafe impl Plain for $v4 {}
        // SAFETY: as above.
        unsafe impl Plain for $v6 {}
    };
    (@plain $name:ident, $($ty:ty),*) => {
        const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$ty>())*);
        // SAFETY: the assertion above; all fields are integers or arrays of them.
        unsafe impl Plain for $name {}
    };
}

abi! {
    /// Key of `FRONTENDS_*`: an address, port and protocol that we intercept.
    struct FrontendKey<A> as FrontendKeyV4, FrontendKeyV6 {
        /// Destination address.
        addr: A,
        /// Destination port.
        port: Port,
        /// IANA protocol number.
        protocol: u8,
        /// Zero.
        pad: u8,
    }
    /// Value of `FRONTENDS_*`: what to do with a new flow, by where it comes from.
    struct Frontend {
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
    struct SlotKey {
        /// Set id, never 0.
        set: u32,
        /// 1-based position.
        slot: u32,
    }
    /// Value of `SLOTS`: a backend and the generation under which it was meant.
    struct Slot {
        /// Index into `BACKENDS_*`, never 0.
        backend: u32,
        /// [`Backend::generation`] at the time of writing; a mismatch means that the backend is gone.
        generation: u32,
    }
    /// Value of `BACKENDS_*`, an array indexed by backend id. Unbound entries lack [`backend_flags::BOUND`].
    struct Backend<A> as BackendV4, BackendV6 {
        /// Bumped each time the id is bound to an endpoint and each time it is unbound, so it survives in the map even
        /// while the id is free; 0 = never bound. Flows and slots that remember another generation are stale.
        generation: u32,
        /// Address.
        addr: A,
        /// Port.
        port: Port,
        /// Bits of [`backend_flags`].
        flags: u16,
        /// Zero.
        reserved: u32,
    }
    /// Key of `FLOWS_*`: a packet's own tuple, either as the client sent it (entry of kind forward) or as the
    /// backend's reply carries it (kind reply).
    struct FlowKey<A> as FlowKeyV4, FlowKeyV6 {
        /// Source address.
        src: A,
        /// Destination address.
        dst: A,
        /// Source port.
        sport: Port,
        /// Destination port.
        dport: Port,
        /// IANA protocol number.
        protocol: u8,
        /// Zero.
        pad: [u8; 3],
    }
    /// Value of `FLOWS_*`: the tuple to write into the packet, and the flow's state.
    struct Flow<A> as FlowV4, FlowV6 {
        /// New source address.
        src: A,
        /// New destination address.
        dst: A,
        /// New source port.
        sport: Port,
        /// New destination port.
        dport: Port,
        /// Bits of [`flow_flags`].
        flags: u32,
        /// Index into `BACKENDS_*`.
        backend: u32,
        /// Generation of that backend when the flow chose it.
        generation: u32,
        /// Set that the backend was chosen from.
        set: u32,
        /// [Ticks](TICK_SHIFT) of the coarse monotonic clock: last packet, to about a second.
        seen: u32,
        /// Ticks, as above: when `ifindex` was looked up; 0 = never.
        routed: u32,
        /// Where packets go after translation.
        ifindex: u32,
        /// Largest IP packet that fits there, bytes.
        mtu: u16,
        /// One of [`way`].
        way: u16,
    }
    /// Key of `AFFINITY_*`: a client and the set that it was balanced over.
    struct AffinityKey<A> as AffinityKeyV4, AffinityKeyV6 {
        /// Client address.
        client: A,
        /// Set id.
        set: u32,
    }
    /// Value of `AFFINITY_*`.
    struct Affinity {
        /// Index into `BACKENDS_*`.
        backend: u32,
        /// Its generation.
        generation: u32,
        /// Seconds of the coarse monotonic clock: last new connection.
        used_s: u32,
    }
    /// Key of `SOURCE_RANGES_*`, a longest-prefix-match trie: the 32 bits of `ranges`, then the source prefix.
    struct SourceRangeKey<A> as SourceRangeKeyV4, SourceRangeKeyV6 {
        /// Bits that count: 32 + prefix length.
        prefix_len: u32,
        /// [`Frontend::ranges`].
        ranges: u32,
        /// Source address.
        addr: A,
    }
    /// Key of `FRAGMENTS_*` (LRU): a datagram in pieces, by the addresses it carries on the wire.
    struct FragmentKey<A> as FragmentKeyV4, FragmentKeyV6 {
        /// Source address.
        src: A,
        /// Destination address.
        dst: A,
        /// IP identification as it lies in the packet; IPv4 uses the first two bytes.
        id: [u8; 4],
        /// IANA protocol number.
        protocol: u8,
        /// Zero.
        pad: [u8; 3],
    }
    /// Value of `FRAGMENTS_*`: the ports of the first fragment.
    struct FragmentPorts {
        /// Source port.
        sport: Port,
        /// Destination port.
        dport: Port,
    }
    /// Value of `STREAMS_*`, which lies in the socket itself: what a connected stream socket asked for, and what it got.
    struct Stream<A> as StreamV4, StreamV6 {
        /// Frontend address, to show to the application.
        addr: A,
        /// Backend address: only while the socket is connected to it does the rest hold.
        backend: A,
        /// Frontend port.
        port: Port,
        /// Backend port.
        backend_port: Port,
    }
    /// Key of `SOCKETS_*` and `SOCKET_PEERS_*` (LRU): a datagram socket and an address that it talks to.
    struct SocketKey<A> as SocketKeyV4, SocketKeyV6 {
        /// Kernel socket cookie, host order, as bytes so that the key needs no alignment.
        cookie: [u8; 8],
        /// Backend address, or the frontend's in `SOCKET_PEERS_*`.
        addr: A,
        /// Port of that address.
        port: Port,
        /// Zero.
        pad: [u8; 2],
    }
    /// Value of `SOCKETS_*`: the frontend to show to the application.
    struct SocketFrontend<A> as SocketFrontendV4, SocketFrontendV6 {
        /// Frontend address.
        addr: A,
        /// Frontend port.
        port: Port,
        /// Zero.
        pad: [u8; 2],
    }
    /// The one entry of `NODE`: what the programs need to know of this node.
    struct Node {
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

/// A tick is 2^20 ns, about a millisecond: nanoseconds shifted right by this, wrapping at 32 bits (52 days).
pub const TICK_SHIFT: u32 = 20;

/// Names of the TC programs by the number with which they sign their log.
pub const HOOKS: [&str; 4] = ["from_pod", "to_pod", "from_net", "to_net"];

/// How long a flow that nobody uses keeps its entries, in ticks: for the programs, which may give its ports away, and for
/// the agent, which sweeps.
pub mod idle {
    use super::{TICK_SHIFT, flow_flags};

    /// About one second.
    pub const SECOND: u32 = (1_000_000_000u64 >> TICK_SHIFT) as u32;
    /// A connection that was reset, when another one is reset after it: time for what was on its way meanwhile, and for
    /// the answer to an RST that nobody of the two has sent (RFC 5961, 3.2), which shows that the flow goes on.
    pub const ENDED: u32 = SECOND / 100;
    /// A connection that has ended. Late packets of its own are rare, and a SYN opens a new flow anyway.
    pub const CLOSED: u32 = 10 * SECOND;
    /// A connection that the client never went on with.
    pub const UNCONFIRMED: u32 = 60 * SECOND;
    /// UDP.
    pub const UDP: u32 = 180 * SECOND;
    /// An established connection: a day, as connection tracking has it.
    pub const TCP: u32 = 86_400 * SECOND;

    /// The limit for a flow of this protocol with these [`super::flow_flags`].
    #[inline(always)]
    pub const fn limit(protocol: u8, flags: u32) -> u32 {
        if flags & flow_flags::CLOSED != 0 {
            CLOSED
        } else if protocol != 6 {
            UDP
        } else if flags & flow_flags::CONFIRMED == 0 {
            UNCONFIRMED
        } else {
            TCP
        }
    }
}

/// How a translated packet goes on: [`Flow::way`].
pub mod way {
    /// Up the kernel's stack.
    pub const STACK: u16 = 0;
    /// Out of `ifindex`, the kernel resolves the neighbour.
    pub const NEIGHBOUR: u16 = 1;
    /// Into the network namespace behind the veth `ifindex`.
    pub const PEER: u16 = 2;
    /// Delivered to this node itself.
    pub const LOCAL: u16 = 3;
}

/// Value of `DEVICES`, keyed by interface index: what is known of an interface that carries our programs.
pub mod device_flags {
    /// Pod-facing veth or netkit: packets may be redirected to its peer.
    pub const PEER: u32 = 1;
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
    /// Masquerade pods too: `masqueradeAll` and a ClusterIP.
    pub const MASQUERADE: u32 = 1 << 8;
}

/// Bits of [`Backend::flags`].
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

/// Bits of [`Flow::flags`].
pub mod flow_flags {
    /// Entry keyed by the backend's reply (else by the client's packet).
    pub const REPLY: u32 = 1;
    /// FIN or RST seen in either direction; both entries have it.
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
    /// The client has sent more than its first packet: not a stray or spoofed SYN. Both entries have it.
    pub const CONFIRMED: u32 = 1 << 8;
    /// The last packet was an RST. Both entries have it, and lose it where the flow goes on after all.
    pub const ENDED: u32 = 1 << 9;
}

/// Bits of [`Node::flags`].
pub mod node_flags {
    /// Send translated packets straight to the next interface instead of up the stack.
    pub const DIRECT: u32 = 1;
}
