//! The eBPF dataplane: TC programs decide, cgroup programs short-cut.

pub mod image;
pub mod object;
