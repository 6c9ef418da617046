//! One way of making a kernel follow a [`Plan`](crate::plan::Plan), and the loop that does it.

pub mod ebpf;

use crate::{error::ApplyError, model::ObjectName, plan::ServicePlan};
use std::fmt;

/// One way of making a kernel follow a plan: ebpf, and later nftables, iptables, ipvs, userspace.
///
/// Between any two ops the node serves the old plan or the new one: ops are ordered grow, commit, shrink.
pub trait Dataplane {
    /// What the kernel holds for some services: map entries, rules, sockets. The image of several services is the
    /// [`Extend`]ed union of theirs; no two services share an entry.
    type Image: Clone + Default + PartialEq + fmt::Debug;
    /// One mutation; its `Display` is its line in golden files.
    type Op: Clone + fmt::Display + fmt::Debug;
    /// Name in flags, logs and metric labels.
    const NAME: &'static str;

    /// What the kernel should hold for one service; `None` = nothing, its ids may be given away after the next
    /// successful [`Dataplane::execute`]. Pure up to ids already promised: an id is never rebound while in use, and
    /// lowering the same plan again gives the same image.
    fn lower(&mut self, service: &ObjectName, plan: Option<&ServicePlan>) -> Self::Image;
    /// Adds another service's entries to `image`.
    fn merge(image: &mut Self::Image, other: &Self::Image);
    /// Pure; every prefix serves old or new, never neither.
    fn diff(have: &Self::Image, want: &Self::Image) -> Vec<Self::Op>;
    /// Reads everything from the kernel.
    fn observe(&mut self) -> Result<Self::Image, ApplyError>;
    /// The only one that changes anything; may stop half way.
    fn execute(&mut self, ops: &[Self::Op]) -> Result<(), ApplyError>;
}
