//! The four TC hooks and what each is responsible for.

use proxy_common::abi::flow_flags as flags;

/// Where a packet is. The numbers are those of the programs' log ([`proxy_common::abi::HOOKS`]).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    /// Ingress of a pod-facing link: the packet comes from a pod.
    FromPod,
    /// Egress of a pod-facing link: it goes to a pod.
    ToPod,
    /// Ingress of a NIC: it comes from outside.
    FromNet,
    /// Egress of a NIC or of `lo`: it leaves, or goes from this node to itself.
    ToNet,
}

impl Hook {
    /// Peer redirects and neighbour redirects of others' packets start here.
    #[inline(always)]
    pub(crate) const fn ingress(self) -> bool {
        matches!(self, Self::FromPod | Self::FromNet)
    }

    /// The `FROM_*` flag of clients whose packets enter here; 0 where none do.
    #[inline(always)]
    pub(crate) const fn origin(self) -> u32 {
        match self {
            Self::FromPod => flags::FROM_POD,
            Self::FromNet => flags::FROM_OUTSIDE,
            Self::ToNet => flags::FROM_HOST,
            Self::ToPod => 0,
        }
    }

    /// Whether a reply entry is translated here.
    ///
    /// Without direct forwarding a flow is translated at the client's edge in both directions, so that connection
    /// tracking in the stack sees one consistent flow. Masqueraded replies are addressed to this node and must be caught
    /// when they arrive, or on `lo` where a backend has this node's address too; so must replies to the node's own
    /// sockets, which have no later hook. Direct forwarding skips the client's edge, so it translates on arrival.
    #[inline(always)]
    pub(crate) const fn translates_reply(self, flow: u32, direct: bool) -> bool {
        if flow & flags::MASQUERADED != 0 {
            return !matches!(self, Self::ToPod);
        }
        match self {
            Self::FromPod => direct || flow & flags::FROM_HOST != 0,
            Self::FromNet => flow & flags::FROM_HOST != 0 || (direct && flow & flags::FROM_POD != 0),
            Self::ToPod => flow & flags::FROM_POD != 0,
            Self::ToNet => flow & (flags::FROM_OUTSIDE | flags::FROM_HOST) != 0,
        }
    }
}
