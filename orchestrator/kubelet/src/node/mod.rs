//! The node: what all workers share, its object at the API server, its lease, and the pods of its manifests.

pub mod admit;
pub mod capacity;
mod lease;
mod outside;
mod register;
mod served;
pub mod static_pods;
pub mod status;

pub use lease::keep_lease;
pub use outside::Outside;
pub use register::keep_status;
pub(crate) use served::server_state;

use crate::{
    Config,
    cgroups::Cgroups,
    cri::Runtime,
    events::Recorder,
    images::Images,
    podspec::{CgroupVersion, Facts, Resolver},
    probes::Prober,
    table::PodTable,
};
use anyhow::{Context as _, Result};
use kube::Client;
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::Notify;

/// What all workers share.
pub struct Node {
    /// Settings.
    pub config: Config,
    /// Acts as `system:node:<name>`.
    pub client: Client,
    /// The container runtime.
    pub runtime: Runtime,
    /// Writes events.
    pub events: Recorder,
    /// Brings images.
    pub images: Images,
    /// Probes containers.
    pub prober: Prober,
    /// What runs here.
    pub table: Arc<PodTable>,
    /// Volumes, cgroups and objects: what a pod needs besides containers.
    pub outside: Outside,
    /// Woken when something that the Node's status tells has changed.
    pub changed: Notify,
    facts: Arc<Facts>,
}

impl Node {
    /// Puts the parts together.
    ///
    /// # Errors
    /// A directory that cannot be made.
    pub fn new(
        config: Config,
        client: Client,
        runtime: Runtime,
        events: Recorder,
        prober: Prober,
        table: Arc<PodTable>,
    ) -> Result<Self> {
        let images = Images::new(runtime.clone(), client.clone(), events.clone());
        let cgroups = Cgroups::new(&config.cgroup_root).context("the cgroups of pods")?;
        let facts = Arc::new(facts(&config, cgroups.version()));
        let outside = Outside::new(&config, client.clone(), Arc::clone(&facts), cgroups)?;
        Ok(Self {
            images,
            facts,
            outside,
            changed: Notify::new(),
            config,
            client,
            runtime,
            events,
            prober,
            table,
        })
    }

    /// Labels that the Node is registered with.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.config.labels.clone();
        for (key, value) in [
            ("kubernetes.io/hostname", self.config.node_name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", status::architecture()),
        ] {
            labels.insert(key.to_owned(), value.to_owned());
        }
        labels
    }

    /// What pods see of the node, its resolver as it is now.
    pub fn facts(&self) -> Facts {
        let mut facts = Facts::clone(&self.facts);
        facts.resolver = resolver(&self.config);
        facts
    }
}

fn resolver(config: &Config) -> Resolver {
    match std::fs::read_to_string(&config.resolv_conf) {
        Ok(text) => Resolver::parse(&text),
        Err(error) => {
            tracing::warn!(file = %config.resolv_conf.display(), error = %error, "the node's resolver is unknown");
            Resolver::default()
        }
    }
}

fn facts(config: &Config, cgroup_version: CgroupVersion) -> Facts {
    let capacity = capacity::read(config.max_pods, &config.root_dir);
    Facts {
        node_name: config.node_name.clone(),
        node_ips: config.node_ips.clone(),
        cluster_dns: config.cluster_dns.clone(),
        cluster_domain: config.cluster_domain.clone(),
        resolver: resolver(config),
        log_root: config.log_dir.clone(),
        cgroup_root: config.cgroup_root.clone(),
        cgroup_version,
        allocatable: capacity.amounts(),
        memory_capacity: i64::try_from(capacity.memory_bytes).unwrap_or(i64::MAX),
        seccomp_root: config.root_dir.join("seccomp"),
        allowed_unsafe_sysctls: Vec::new(),
        recursive_read_only: false,
        supplemental_groups_policy: false,
    }
}
