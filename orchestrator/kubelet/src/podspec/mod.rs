//! What a pod's spec means to the container runtime: pure functions from a Pod, facts of the node and objects that the pod
//! refers to, to the messages that CRI takes.
//!
//! | field of the pod | file |
//! |---|---|
//! | names, labels, annotations, log paths, hostname | `names.rs` |
//! | `env`, `envFrom`, `enableServiceLinks`, `$(VAR)` | `env.rs`, `links.rs`, `expand.rs` |
//! | `fieldRef`, `resourceFieldRef` | `downward.rs` |
//! | `resources` | `resources.rs` |
//! | `securityContext`, `hostPID`, `hostIPC` … | `security.rs` |
//! | `dnsPolicy`, `dnsConfig` | `dns.rs` |
//! | `hostAliases` | `hosts.rs` |
//! | `volumeMounts` | `volumes/mounts.rs`, which needs the disk |

mod container;
mod dns;
pub mod downward;
mod env;
mod expand;
mod hosts;
mod links;
pub mod names;
pub mod resources;
mod sandbox;
mod security;

pub use container::{Inputs, container};
pub use dns::{Resolver, dns};
pub use env::{EnvObjects, Environment, environment};
pub use expand::{Expansion, expand};
pub use hosts::{hosts_file, hosts_file_of_node};
pub use sandbox::{forbidden_sysctls, sandbox};
pub use security::ImageUser;
pub(crate) use security::{common_user, fs_group};

use crate::pod;
use k8s_openapi::api::core::v1::Pod;
use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf};

/// What the node is, as far as its pods see it.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Name of the Node object.
    pub node_name: String,
    /// The node's addresses, the preferred family first: `status.hostIPs`.
    pub node_ips: Vec<IpAddr>,
    /// Name servers of `dnsPolicy: ClusterFirst`.
    pub cluster_dns: Vec<IpAddr>,
    /// As `cluster.local`; empty if the cluster has none.
    pub cluster_domain: String,
    /// The node's own resolver: `dnsPolicy: Default`. Cheap to read anew per sandbox, so that pods follow the node's file.
    pub resolver: Resolver,
    /// Directory of the logs of all pods; absolute.
    pub log_root: PathBuf,
    /// The cgroup below which `kubepods` is, as `/` or `/fairlead`.
    pub cgroup_root: String,
    /// Which kind of cgroups containers are put into.
    pub cgroup_version: CgroupVersion,
    /// `Node.status.allocatable`, by resource: limits of containers without limits, as the downward API shows them.
    pub allocatable: BTreeMap<String, String>,
    /// All memory of the node in bytes: what requests are measured against for the OOM killer.
    pub memory_capacity: i64,
    /// Directory of `seccompProfile.localhostProfile`; absolute.
    pub seccomp_root: PathBuf,
    /// Sysctls that pods may set besides the safe ones; a `*` at the end stands for anything.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Whether the runtime can mount read-only with all that is below (`RuntimeHandlerFeatures.recursiveReadOnlyMounts`).
    pub recursive_read_only: bool,
    /// Whether the runtime knows `supplementalGroupsPolicy` (`RuntimeFeatures.supplementalGroupsPolicy`).
    pub supplemental_groups_policy: bool,
}

/// Kinds of cgroup hierarchies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupVersion {
    /// One hierarchy per controller, or the hybrid in which v2 has no controllers.
    #[default]
    V1,
    /// One hierarchy.
    V2 {
        /// Whether swap is accounted (`memory.swap.max` exists).
        swap: bool,
    },
}

/// A pod that cannot be started as it is. [`Invalid::message`] is what the container's status shows under the reason
/// `CreateContainerConfigError`; `Display` also names the pod, the container and the field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// As `namespace/name`.
    pub pod: Box<str>,
    /// The container concerned, if it is one alone.
    pub container: Option<Box<str>>,
    /// The field concerned, as `env[2].valueFrom`, below the container or below the pod's spec.
    pub field: Box<str>,
    /// What is wrong.
    pub cause: Cause,
}

impl Invalid {
    pub(crate) fn new(pod: &Pod, container: Option<&str>, field: impl Into<Box<str>>, cause: Cause) -> Self {
        Self {
            pod: pod::full_name(pod).into(),
            container: container.map(Into::into),
            field: field.into(),
            cause,
        }
    }

    /// The cause alone, in the words of upstream.
    pub fn message(&self) -> String {
        self.cause.to_string()
    }

    /// Whether the same pod may start later without being edited, once an object appears or can be read.
    pub fn may_pass(&self) -> bool {
        !matches!(
            self.cause,
            Cause::Malformed(_) | Cause::Unsupported(_) | Cause::RunsAsRoot(_)
        )
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pod {}", self.pod)?;
        if let Some(container) = &self.container {
            write!(f, ", container {container}")?;
        }
        write!(f, ": {}: {}", self.field, self.cause)
    }
}

impl std::error::Error for Invalid {}

/// Why a pod cannot be started as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// An object that the pod refers to is not there.
    #[error("{kind} \"{name}\" not found")]
    Missing {
        /// `configmap`, `secret` …
        kind: &'static str,
        /// Its name, in the pod's namespace.
        name: String,
    },
    /// The object is there, the key is not.
    #[error("couldn't find key {key} in {kind} {object}")]
    MissingKey {
        /// The key.
        key: String,
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// As `namespace/name`.
        object: String,
    },
    /// An object could not be read; the API server may answer later.
    #[error("{0}")]
    Unavailable(String),
    /// The container would run as root, which its security context forbids.
    #[error("{0}")]
    RunsAsRoot(String),
    /// A value that says nothing.
    #[error("{0}")]
    Malformed(String),
    /// A feature that this kubelet or this node lacks.
    #[error("{0}")]
    Unsupported(String),
    /// The disk refused.
    #[error("{0}")]
    Io(String),
}
