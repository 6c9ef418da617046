//! Every way a packet can leave our programs: one enum for the counters, metric labels, events and docs.
//!
//! Numbers are ABI (index into the `COUNTERS` per-CPU array): append, never renumber.

macro_rules! verdicts {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $label:literal, $kind:ident;)*) => {
        /// Outcome of one packet (or one socket call) at one hook.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Verdict { $($(#[$doc])* $name = $number,)* }

        impl Verdict {
            /// All verdicts, in ABI order.
            pub const ALL: &'static [Verdict] = &[$(Verdict::$name,)*];

            /// Metric label: lower-case words joined by `_`, never renamed.
            pub const fn label(self) -> &'static str {
                match self { $(Verdict::$name => $label,)* }
            }

            /// Whether the packet went on, was answered, or was dropped.
            pub const fn kind(self) -> Kind {
                match self { $(Verdict::$name => Kind::$kind,)* }
            }
        }
    };
}

/// Class of a [`Verdict`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Not ours, or ours and unchanged: the kernel goes on with the packet as it came.
    Passed,
    /// Translated and sent on.
    Forwarded,
    /// Answered with RST or an ICMP error.
    Answered,
    /// Dropped.
    Dropped,
}

verdicts! {
    /// No frontend and no flow: none of our business.
    NotService = 0, "not_service", Passed;
    /// Not IPv4/IPv6, a protocol that we do not translate, headers that cannot be read, or a later fragment of a
    /// datagram that is none of our business: the kernel's to judge.
    NotTranslatable = 1, "not_translatable", Passed;
    /// First packet of a flow: a backend was chosen.
    NewFlow = 2, "new_flow", Forwarded;
    /// Packet of a known flow, client to backend.
    Forward = 3, "forward", Forwarded;
    /// Packet of a known flow, backend to client.
    Reply = 4, "reply", Forwarded;
    /// The flow's backend is gone; another was chosen.
    Reselected = 5, "reselected", Forwarded;
    /// ICMP error about a translated flow, rewritten to the true endpoint.
    IcmpRelated = 6, "icmp_related", Forwarded;
    /// No usable endpoint anywhere: TCP RST or ICMP port unreachable.
    RejectNoEndpoints = 7, "reject_no_endpoints", Answered;
    /// `externalTrafficPolicy: Local` or `internalTrafficPolicy: Local` and no usable endpoint on this node.
    DropNoLocalEndpoints = 8, "drop_no_local_endpoints", Dropped;
    /// Source outside `loadBalancerSourceRanges`.
    DropSourceRange = 9, "drop_source_range", Dropped;
    /// Every tried source port towards this backend is in use by a live flow.
    DropSnatPortsExhausted = 10, "drop_snat_ports_exhausted", Dropped;
    /// A slot pointed to a backend that is no longer there, twice in a row.
    DropStaleSlot = 11, "drop_stale_slot", Dropped;
    /// A kernel helper refused to change or redirect the packet.
    DropHelperFailed = 12, "drop_helper_failed", Dropped;
    /// The flow table refused an entry (memory).
    DropFlowTableFull = 13, "drop_flow_table_full", Dropped;
    /// Socket load balancing chose a backend at connect or sendmsg.
    SocketTranslated = 14, "socket_translated", Forwarded;
    /// Socket load balancing left the decision to TC (policy needs the packet's source, or no endpoint).
    SocketLeftToTc = 15, "socket_left_to_tc", Passed;
    /// A packet too large for the way to its backend: ICMP fragmentation needed / packet too big.
    RejectTooBig = 16, "reject_too_big", Answered;
    /// The source address for masquerading is not configured for this family.
    DropNoSnatAddress = 17, "drop_no_snat_address", Dropped;
}

/// Whether the verdict with this number is of a kind: bits in a constant, so that the programs need no table.
#[inline(always)]
pub const fn is(number: u32, kind: Kind) -> bool {
    let mask = match kind {
        Kind::Passed => PASSED,
        Kind::Forwarded => FORWARDED,
        Kind::Answered => ANSWERED,
        Kind::Dropped => DROPPED,
    };
    mask >> (number & 31) & 1 != 0
}

const PASSED: u32 = numbers_of(Kind::Passed);
const FORWARDED: u32 = numbers_of(Kind::Forwarded);
const ANSWERED: u32 = numbers_of(Kind::Answered);
const DROPPED: u32 = numbers_of(Kind::Dropped);

const fn numbers_of(kind: Kind) -> u32 {
    let mut mask = 0;
    let mut index = 0;
    while index < Verdict::ALL.len() {
        if Verdict::ALL[index].kind() as u32 == kind as u32 {
            mask |= 1 << index;
        }
        index += 1;
    }
    mask
}

const _: () = assert!(COUNT <= 32);

/// Number of verdicts: size of the `COUNTERS` array.
pub const COUNT: u32 = Verdict::ALL.len() as u32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_labels_unique() {
        for (index, verdict) in Verdict::ALL.iter().enumerate() {
            assert_eq!(*verdict as usize, index);
        }
        for verdict in Verdict::ALL {
            assert!(is(*verdict as u32, verdict.kind()));
        }
        let labels: std::collections::BTreeSet<_> = Verdict::ALL.iter().map(|v| v.label()).collect();
        assert_eq!(labels.len(), Verdict::ALL.len());
    }
}
