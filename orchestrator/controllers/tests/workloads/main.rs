//! The workload controllers over a real API server in the same process, with a stand-in for kubelet and scheduler.

mod cluster;
mod daemons;
mod jobs;
mod kubelet;
mod rollouts;
mod stateful;
