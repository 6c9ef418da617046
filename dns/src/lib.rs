//! Cluster DNS: Corefile, records of Services and pods, cache, forwarding.

pub mod cache;
pub mod corefile;
pub mod engine;
pub mod forward;
pub mod hosts;
pub mod message;
pub mod metrics;
pub mod name;
mod run;
mod server;
pub mod watch;
pub mod wire;
pub mod zone;

pub use run::{Bound, Config, Http, Source, run};
