//! Cluster DNS: Corefile, records of Services and pods, cache, forwarding.

pub mod corefile;
pub mod name;
pub mod wire;
pub mod zone;
