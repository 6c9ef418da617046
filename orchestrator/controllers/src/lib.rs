//! The controllers: each watches some kinds and makes the cluster what they say.
//!
//! [`frame`] has what all share: caches, queues, events, ownership. [`workloads`] makes pods of Deployments, Jobs and
//! the like; [`cluster`] keeps everything else: EndpointSlices, namespaces, nodes, garbage.
#![cfg_attr(
    test,
    allow(
        clippy::needless_pass_by_value,
        reason = "tables of JSON read better without borrows"
    )
)]

pub mod cluster;
pub mod frame;
pub mod workloads;

use frame::{Clock, Constructor, Frame, Statistics};
use kube::Client;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// A client for one controller, by its name (`deployment-controller`): it acts as
/// `system:serviceaccount:kube-system:<name>`, with the rights of `system:controller:<name>`.
///
/// One name is special: for [`SHARED`] it acts as the user `system:kube-controller-manager`, who may list and watch
/// everything; the shared caches use it.
pub type ClientFor = Arc<dyn Fn(&str) -> Client + Send + Sync>;

/// The name whose client fills the shared caches: the user `system:kube-controller-manager`, not a service account.
pub const SHARED: &str = "kube-controller-manager";

/// What the controllers are told.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The time that decides; tests move it.
    pub clock: Clock,
    /// Counts of what all controllers did; keep a clone to show them.
    pub statistics: Statistics,
    /// Settings of the controllers in [`cluster`].
    pub cluster: cluster::Config,
}

/// Runs every controller until `stop`.
///
/// A controller that fails or panics over one object tries that object again later and goes on with the others; a watch
/// that breaks is resumed. So this returns only after `stop` was cancelled.
///
/// # Errors
/// None today; what cannot be gone on with in future.
pub async fn run(config: Config, clients: ClientFor, stop: CancellationToken) -> anyhow::Result<()> {
    let all = workloads::all().into_iter().chain(cluster::all());
    run_these(config, clients, all, stop).await
}

/// As [`run`], with some controllers only: those of [`workloads::all`] or [`cluster::all`] that somebody wants.
///
/// # Errors
/// As [`run`].
pub async fn run_these(
    config: Config,
    clients: ClientFor,
    constructors: impl IntoIterator<Item = Constructor>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let frame = Frame::new(config, clients, stop.child_token());
    for constructor in constructors {
        frame.start(constructor(&frame));
    }
    stop.cancelled().await;
    frame.finish().await;
    Ok(())
}
