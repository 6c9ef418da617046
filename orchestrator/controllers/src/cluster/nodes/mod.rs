//! Nodes: are they alive, what taints say so, who must leave them, and which subnets their pods get.

pub(crate) mod cidr;
pub(crate) mod cidrs;
pub(crate) mod evict;
pub(crate) mod evictions;
pub(crate) mod health;
pub(crate) mod lifecycle;
pub(crate) mod taints;
pub(crate) mod zones;

#[cfg(test)]
mod tests;

/// Taint: `Ready` is False.
pub(crate) const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// Taint: `Ready` is Unknown.
pub(crate) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Namespace of the leases by which nodes say that they are alive.
pub(crate) const LEASES: &str = "kube-node-lease";
