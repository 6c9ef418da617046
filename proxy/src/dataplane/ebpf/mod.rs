//! The eBPF dataplane: TC programs decide, cgroup programs short-cut.

pub mod diff;
mod ids;
pub mod image;
pub mod judge;
pub mod lower;
pub mod object;
mod pool;
