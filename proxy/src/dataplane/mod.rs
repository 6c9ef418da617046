//! One way of making a kernel follow a [`Plan`](crate::plan::Plan), and the loop that does it.

pub mod ebpf;
pub mod fake;
mod reconciler;

pub use self::reconciler::{Changed, Reconciler, SyncReport};

use crate::{
    error::{ApplyError, Skipped},
    model::ObjectName,
    plan::ServicePlan,
};
use std::fmt;

/// One way of making a kernel follow a plan: ebpf, and later nftables, iptables, ipvs, userspace.
///
/// Between any two ops the node serves the old plan or the new one: ops are ordered grow, commit, shrink.
///
/// The [`Reconciler`] calls in rounds: perhaps [`observe`](Dataplane::observe), then [`lower`](Dataplane::lower) at
/// most once per service, [`merge`](Dataplane::merge), [`diff`](Dataplane::diff), and one
/// [`execute`](Dataplane::execute), which comes even when there are no ops: its success is what makes released ids
/// reusable. After an error of `execute` the next round observes and covers every service.
pub trait Dataplane {
    /// What the kernel holds for some services: map entries, rules, sockets. The image of several services is the
    /// [`merge`](Dataplane::merge)d union of theirs; no two services share an entry.
    type Image: Clone + Default + PartialEq + fmt::Debug;
    /// One mutation; its `Display` is its line in golden files.
    type Op: Clone + fmt::Display + fmt::Debug;
    /// Name in flags, logs and metric labels.
    const NAME: &'static str;

    /// What the kernel should hold for one service; `None` = nothing, its ids may be given away after the next
    /// successful [`Dataplane::execute`]. Pure up to ids already promised: an id is never rebound while in use, and
    /// lowering the same plan again gives the same image.
    ///
    /// `have` is what the result will be compared with: the entries of the services of this round, or the whole kernel.
    /// It tells which entries cost no room and, after a restart, which ids the kernel already uses for this service.
    ///
    /// # Errors
    /// [`ApplyError::Full`] when the service does not fit; then nothing was promised, and everything promised to it
    /// before stays so. Never for `None`.
    fn lower(
        &mut self,
        service: &ObjectName,
        plan: Option<&ServicePlan>,
        have: &Self::Image,
    ) -> Result<Lowered<Self::Image>, ApplyError>;
    /// Adds another service's entries to `image`.
    fn merge(image: &mut Self::Image, other: &Self::Image);
    /// Takes from `image` the frontends that `claimant` has too. A service that did not fit keeps its old image, but
    /// not what another service owns by now.
    fn cede(image: &mut Self::Image, claimant: &Self::Image);
    /// Pure; every prefix serves old or new, never neither.
    fn diff(have: &Self::Image, want: &Self::Image) -> Vec<Self::Op>;
    /// Reads everything from the kernel and adopts the ids found there.
    fn observe(&mut self) -> Result<Self::Image, ApplyError>;
    /// The only one that changes anything; may stop half way.
    fn execute(&mut self, ops: &[Self::Op]) -> Result<(), ApplyError>;
}

/// What one service became.
#[derive(Clone, Debug, PartialEq)]
pub struct Lowered<I> {
    /// What the kernel should hold.
    pub image: I,
    /// What this dataplane cannot express, at most one entry per field; the rest of the service is in `image`.
    pub skipped: Vec<Skipped>,
}
