//! What the maps hold: one ordered map per BPF map.

use proxy_common::abi::{
    BackendV4, BackendV6, Frontend, FrontendKeyV4, FrontendKeyV6, Slot, SlotKey, SourceRangeKeyV4, SourceRangeKeyV6,
};
use std::collections::{BTreeMap, BTreeSet};

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
