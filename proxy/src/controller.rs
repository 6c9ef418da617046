//! The one task that owns the kernel: events and host facts in, plans into the kernel, status and metrics out.
//!
//! Time and IO live here; [`Core`] decides and is synchronous. Bursts coalesce: whatever has arrived when a sync ends is
//! in the next one, and nothing waits for more to come.

mod core;
mod summary;

pub use self::core::{Core, Input, Outputs};
pub use crate::dataplane::{Changed, SyncReport};

use crate::{
    error::ApplyError,
    heap,
    hostview::{HostFacts, Link},
    model::{Event, NodeView, ObjectName},
    plan::Plan,
};
use std::{collections::BTreeSet, pin::pin};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

/// The joint to the model and the planner.
pub trait Planning: Send + 'static {
    /// Takes an event in; returns the services whose plan may be another one now.
    fn apply(&mut self, event: Event) -> BTreeSet<ObjectName>;
    /// Brings the plan in step; returns the services whose plan is another one now, or came, or went.
    fn update(&mut self, node: &NodeView, changed: &Changed) -> BTreeSet<ObjectName>;
    /// The plan as of the last [`Planning::update`].
    fn plan(&self) -> &Plan;
}

/// The joint to the dataplane. All calls come from one thread at a time.
pub trait Kernel: Send + 'static {
    /// Makes the kernel follow `plan`, of which only `changed` may differ from the last successful sync.
    ///
    /// # Errors
    /// The kernel refused; the caller forgets and tries again later with [`Changed::All`].
    fn sync(&mut self, plan: &Plan, changed: &Changed) -> Result<SyncReport, ApplyError>;
    /// The next sync reads the kernel first.
    fn forget(&mut self);
    /// Writes what programs need to know of this node.
    ///
    /// # Errors
    /// The kernel refused; tried again later.
    fn set_node(&mut self, node: &NodeView) -> Result<(), ApplyError>;
    /// Puts programs on a link. Idempotent.
    ///
    /// # Errors
    /// The kernel refused; tried again while the link exists.
    fn attach(&mut self, link: &Link) -> Result<Attached, ApplyError>;
    /// Takes programs off a link, which may be gone already.
    ///
    /// # Errors
    /// The kernel refused for another reason than that the link is gone.
    fn detach(&mut self, link: &Link) -> Result<(), ApplyError>;
}

impl<T: Planning + ?Sized> Planning for Box<T> {
    fn apply(&mut self, event: Event) -> BTreeSet<ObjectName> {
        (**self).apply(event)
    }
    fn update(&mut self, node: &NodeView, changed: &Changed) -> BTreeSet<ObjectName> {
        (**self).update(node, changed)
    }
    fn plan(&self) -> &Plan {
        (**self).plan()
    }
}

impl<T: Kernel + ?Sized> Kernel for Box<T> {
    fn sync(&mut self, plan: &Plan, changed: &Changed) -> Result<SyncReport, ApplyError> {
        (**self).sync(plan, changed)
    }
    fn forget(&mut self) {
        (**self).forget();
    }
    fn set_node(&mut self, node: &NodeView) -> Result<(), ApplyError> {
        (**self).set_node(node)
    }
    fn attach(&mut self, link: &Link) -> Result<Attached, ApplyError> {
        (**self).attach(link)
    }
    fn detach(&mut self, link: &Link) -> Result<(), ApplyError> {
        (**self).detach(link)
    }
}

/// How a link was attached to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// As in `tcx` or `clsact`.
    pub mode: String,
    /// Why this mode.
    pub detail: String,
}

/// Why [`run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It was told to; the current sync has ended.
    Stopped,
    /// The source's channel closed, which it never does while it works.
    SourceEnded,
    /// The host facts' channel closed, which it never does while rtnetlink works: new pods' links would go unnoticed.
    HostEnded,
    /// A sync panicked: the core is lost, the kernel goes on with the last plan.
    Panicked,
}

/// Most batches that one sync takes in, so that a source that never pauses cannot keep changes from the kernel.
const BURST: usize = 1024;

/// Runs until `stop` is ready or something ends. Returns the core, whose kernel may be cleaned up now.
pub async fn run<P: Planning, K: Kernel>(
    core: Core<P, K>,
    mut events: mpsc::Receiver<Vec<Event>>,
    mut host: watch::Receiver<HostFacts>,
    stop: impl Future<Output = ()>,
) -> (Option<Core<P, K>>, Exit) {
    let mut stop = pin!(stop);
    let mut core = core;
    let mut input = Input {
        facts: Some(host.borrow_and_update().clone()),
        ..Input::default()
    };
    loop {
        // Kernel work is system calls: not on a worker that serves health checks. A panic must not look like progress.
        let stepped = tokio::task::spawn_blocking(move || {
            if core.step(input) {
                heap::give_back();
            }
            core
        });
        core = match stepped.await {
            Ok(core) => core,
            Err(error) => {
                tracing::error!(%error, "a sync panicked; the kernel goes on with the last plan");
                return (None, Exit::Panicked);
            }
        };
        input = Input::default();
        tokio::select! {
            biased;
            () = &mut stop => return (Some(core), Exit::Stopped),
            batch = events.recv() => match batch {
                Some(batch) => input.batches.push((batch, Instant::now())),
                None => return (Some(core), Exit::SourceEnded),
            },
            changed = host.changed() => match changed {
                Ok(()) => input.facts = Some(host.borrow_and_update().clone()),
                Err(_) => return (Some(core), Exit::HostEnded),
            },
            () = sleep_until(core.deadline()) => {}
        }
        while input.batches.len() < BURST
            && let Ok(batch) = events.try_recv()
        {
            input.batches.push((batch, Instant::now()));
        }
        // Events come first above; facts must not starve behind them.
        if host.has_changed().unwrap_or(false) {
            input.facts = Some(host.borrow_and_update().clone());
        }
    }
}

#[cfg(test)]
mod tests;
