//! What is told of the node: pure, from what was read.

use super::capacity::Capacity;
use crate::{
    Config,
    cri::v1::{Image, RuntimeStatus, VersionResponse},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus, NodeSystemInfo,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Time},
};
use std::{collections::BTreeMap, net::IpAddr};

/// Most images that are told: upstream's `nodeStatusMaxImages`.
const MAX_IMAGES: usize = 50;

/// Most names of an image that are told.
const MAX_NAMES: usize = 5;

/// The version of Kubernetes whose behaviour this kubelet has.
pub const KUBELET_VERSION: &str = "v1.36.0";

/// What was read of the node and its runtime.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What it has to give.
    pub capacity: Capacity,
    /// The runtime's conditions, or why it could not be asked.
    pub runtime: Result<RuntimeStatus, String>,
    /// The runtime's version, where it could be asked.
    pub version: Option<VersionResponse>,
    /// Images of the runtime.
    pub images: Vec<Image>,
    /// What does not change while the process runs.
    pub system: NodeSystemInfo,
}

/// Computes the status. Transition times are `now` where a condition changes, else those of `previous`.
pub fn compute(config: &Config, facts: &Facts, previous: &NodeStatus, now: Timestamp) -> NodeStatus {
    let amounts: BTreeMap<_, _> = facts
        .capacity
        .amounts()
        .into_iter()
        .map(|(name, amount)| (name, Quantity(amount)))
        .collect();
    let mut system = facts.system.clone();
    if let Some(version) = &facts.version {
        system.container_runtime_version = format!("{}://{}", version.runtime_name, version.runtime_version);
    }
    NodeStatus {
        addresses: Some(addresses(config)),
        allocatable: Some(amounts.clone()),
        capacity: Some(amounts),
        conditions: Some(conditions(facts, previous, now)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: i32::from(config.listen.port()),
            }),
        }),
        images: Some(images(&facts.images)),
        node_info: Some(system),
        ..NodeStatus::default()
    }
}

fn addresses(config: &Config) -> Vec<NodeAddress> {
    let mut all: Vec<NodeAddress> = config
        .node_ips
        .iter()
        .map(|it: &IpAddr| NodeAddress {
            type_: "InternalIP".to_owned(),
            address: it.to_string(),
        })
        .collect();
    all.push(NodeAddress {
        type_: "Hostname".to_owned(),
        address: config.node_name.clone(),
    });
    all
}

fn conditions(facts: &Facts, previous: &NodeStatus, now: Timestamp) -> Vec<NodeCondition> {
    let not_ready = not_ready(facts);
    let ready = match &not_ready {
        None => (
            "Ready",
            "True",
            "KubeletReady",
            "kubelet is posting ready status".to_owned(),
        ),
        Some(message) => ("Ready", "False", "KubeletNotReady", message.clone()),
    };
    let no_pressure = |type_: &'static str, reason: &'static str, what: &str| {
        (type_, "False", reason, format!("kubelet has {what} available"))
    };
    let all = [
        no_pressure("MemoryPressure", "KubeletHasSufficientMemory", "sufficient memory"),
        (
            "DiskPressure",
            "False",
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure".to_owned(),
        ),
        no_pressure("PIDPressure", "KubeletHasSufficientPID", "sufficient PID"),
        ready,
    ];
    let known = previous.conditions.as_deref().unwrap_or_default();
    all.into_iter()
        .map(|(type_, status, reason, message)| {
            let same = known.iter().find(|it| it.type_ == type_ && it.status == status);
            NodeCondition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message),
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: same.and_then(|it| it.last_transition_time.clone()).or(Some(Time(now))),
            }
        })
        .collect()
}

/// Why no pod can run here; `None`: pods can.
fn not_ready(facts: &Facts) -> Option<String> {
    let status = match &facts.runtime {
        Ok(status) => status,
        Err(error) => {
            return Some(format!(
                "container runtime status check may not have completed yet: {error}"
            ));
        }
    };
    let mut faults = Vec::new();
    for (type_, what) in [
        ("RuntimeReady", "container runtime not ready"),
        ("NetworkReady", "container runtime network not ready"),
    ] {
        match status.conditions.iter().find(|it| it.r#type == type_) {
            Some(it) if it.status => {}
            Some(it) => faults.push(format!(
                "{what}: {type_}=false reason:{} message:{}",
                it.reason, it.message
            )),
            None => faults.push(format!("{what}: {type_} is not told")),
        }
    }
    (!faults.is_empty()).then(|| faults.join(", "))
}

fn images(all: &[Image]) -> Vec<ContainerImage> {
    let mut sorted: Vec<_> = all.iter().collect();
    sorted.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    sorted
        .into_iter()
        .take(MAX_IMAGES)
        .map(|it| {
            let names = it.repo_digests.iter().chain(&it.repo_tags);
            ContainerImage {
                names: Some(names.take(MAX_NAMES).cloned().collect()),
                size_bytes: i64::try_from(it.size).ok(),
            }
        })
        .collect()
}

/// What the machine says of itself; what cannot be read is empty.
pub fn system_info() -> NodeSystemInfo {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let os_release = read("/etc/os-release");
    let os_image = os_release
        .lines()
        .find_map(|it| it.strip_prefix("PRETTY_NAME="))
        .unwrap_or("Linux")
        .trim_matches('"')
        .to_owned();
    NodeSystemInfo {
        architecture: architecture().to_owned(),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: String::new(),
        kernel_version: read("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: KUBELET_VERSION.to_owned(),
        machine_id: read("/etc/machine-id"),
        operating_system: "linux".to_owned(),
        os_image,
        system_uuid: read("/sys/class/dmi/id/product_uuid"),
        ..NodeSystemInfo::default()
    }
}

/// The name that Kubernetes has for this machine's kind: Go's.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
