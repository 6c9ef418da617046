//! The workload controllers over a real API server in the same process, with a stand-in for kubelet and scheduler.
#![allow(
    clippy::needless_pass_by_value,
    reason = "tables of JSON read better without borrows"
)]

mod cluster;
mod daemons;
mod jobs;
mod kubelet;
mod rollouts;
mod stateful;
