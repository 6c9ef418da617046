//! What every controller stands on: one watch per kind for all of them, queues, clocks, events, ownership.
//!
//! A controller is a function of a [`Key`]. It reads [`Cache`]s, decides with a pure function, and writes through its own
//! client. Three things keep it right:
//! * a key is never with two workers at a time ([`Queue`]);
//! * it never runs on caches that are behind its own writes ([`Written`]);
//! * a failure or a panic hurts one key only, which is tried again with growing delays ([`Controller`]).

mod api;
mod cache;
mod clock;
mod controller;
mod events;
mod key;
mod owners;
mod queue;
mod statistics;
mod written;

#[cfg(test)]
mod tests;

pub use api::{Fault, Namespaced, Writer, revision};
pub use cache::{Cache, Cached, Caches, Change, Freshness};
pub use clock::Clock;
pub use controller::{Constructor, Controller, Next, Outcome};
pub use events::{Recorder, Severity};
pub use key::Key;
pub use owners::{Claim, claim, controller_of, judge, owner_key, reference};
pub use queue::Queue;
pub use statistics::{Counts, Statistics};
pub use written::Written;

use crate::{ClientFor, Config, SHARED};
use kube::Client;
use std::sync::Arc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What constructors of controllers get.
pub struct Frame {
    /// The settings of all.
    pub config: Config,
    /// The shared caches, one per kind.
    pub caches: Caches,
    clients: ClientFor,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Frame {
    /// A frame whose tasks end when `stop` is cancelled.
    #[must_use]
    pub fn new(config: Config, clients: ClientFor, stop: CancellationToken) -> Arc<Self> {
        let tasks = TaskTracker::new();
        let caches = Caches::new(clients(SHARED), stop.clone(), tasks.clone());
        Arc::new(Self {
            config,
            caches,
            clients,
            stop,
            tasks,
        })
    }

    /// The clock that decides.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.config.clock.clone()
    }

    /// A client that acts as this controller.
    #[must_use]
    pub fn client(&self, name: &str) -> Client {
        (self.clients)(name)
    }

    /// Writes Events as this controller.
    #[must_use]
    pub fn recorder(&self, name: &'static str) -> Recorder {
        Recorder::start(name, self.client(name), self.clock(), &self.tasks, self.stop.clone())
    }

    /// The shared cache of a kind. Its watch starts with the first call.
    #[must_use]
    pub fn cache<K: Cached>(&self) -> Arc<Cache<K>> {
        self.caches.of::<K>()
    }

    /// Starts a controller.
    pub fn start(self: &Arc<Self>, controller: Controller) {
        let (clock, statistics) = (self.clock(), self.config.statistics.clone());
        self.tasks.spawn(controller.run(clock, statistics, self.stop.clone()));
    }

    /// Waits until everything that was started has ended, after the token was cancelled.
    pub async fn finish(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
