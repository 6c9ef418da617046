//! [`sandbox`]: what all containers of a pod share.

use super::{Cause, Facts, Invalid, dns, names, resources, security};
use crate::{
    cgroups,
    cri::v1::{LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol},
    pod::{self, ContainerKind, ContainerRef},
};
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeMap;

/// Sysctls that hurt nobody but the pod itself. Source: the documentation of `securityContext.sysctls`.
const SAFE_SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// The sandbox of a pod. `attempt` counts the sandboxes that the pod had before.
///
/// # Errors
/// A hostname that no kernel takes, sysctls that the node does not allow, features that it lacks.
pub fn sandbox(pod: &Pod, facts: &Facts, attempt: u32) -> Result<PodSandboxConfig, Invalid> {
    let forbidden = forbidden_sysctls(pod, &facts.allowed_unsafe_sysctls);
    if !forbidden.is_empty() {
        let cause = format!("forbidden sysctl: {} not allowlisted", forbidden.join(", "));
        return Err(Invalid::new(
            pod,
            None,
            "securityContext.sysctls",
            Cause::Malformed(cause),
        ));
    }
    Ok(PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: pod::name(pod).to_owned(),
            uid: pod::uid(pod).to_owned(),
            namespace: pod::namespace(pod).to_owned(),
            attempt,
        }),
        hostname: names::hostname(pod, facts)?,
        log_directory: names::pod_log_directory(&facts.log_root, pod).display().to_string(),
        dns_config: Some(dns(pod, facts).0),
        port_mappings: port_mappings(pod),
        labels: names::sandbox_labels(pod),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: cgroups::parent(&facts.cgroup_root, pod),
            security_context: Some(security::of_sandbox(pod, facts)?),
            sysctls: sysctls(pod),
            overhead: None,
            resources: Some(resources::of_sandbox(pod)),
        }),
        windows: None,
    })
}

/// Sysctls of a pod that the node does not allow: such pods are refused with the reason `SysctlForbidden`.
pub fn forbidden_sysctls(pod: &Pod, allowed: &[String]) -> Vec<String> {
    let is_allowed = |name: &String| {
        let matches = |it: &String| match it.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => it == name,
        };
        SAFE_SYSCTLS.contains(&name.as_str()) || allowed.iter().any(matches)
    };
    sysctls(pod).into_keys().filter(|it| !is_allowed(it)).collect()
}

/// The kernel takes `a/b` for `a.b`.
fn sysctls(pod: &Pod) -> BTreeMap<String, String> {
    let context = pod.spec.as_ref().and_then(|it| it.security_context.as_ref());
    let all = context.iter().flat_map(|it| it.sysctls.iter().flatten());
    all.map(|it| (it.name.replace('/', "."), it.value.clone())).collect()
}

/// Ports of all containers that go on running; none for a pod on the node's network, which has them already.
fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    if pod::host_network(pod) {
        return Vec::new();
    }
    let all = ContainerRef::all(pod);
    let lasting = all
        .iter()
        .filter(|it| matches!(it.kind, ContainerKind::Sidecar | ContainerKind::App));
    let mut out: Vec<PortMapping> = Vec::new();
    for container in lasting.filter_map(|it| it.spec(pod)) {
        for port in container.ports.iter().flatten() {
            let protocol = match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            };
            let mapping = PortMapping {
                protocol: protocol.into(),
                container_port: port.container_port,
                host_port: port.host_port.unwrap_or(0),
                host_ip: port.host_ip.clone().unwrap_or_default(),
            };
            if !out.contains(&mapping) {
                out.push(mapping);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod_of;
    use serde_json::json;

    #[test]
    fn a_sandbox_has_what_its_containers_share() {
        let mut pod = pod_of(json!({
            "hostname": "front", "subdomain": "db",
            "initContainers": [
                {"name": "i", "ports": [{"containerPort": 1}]},
                {"name": "s", "restartPolicy": "Always", "ports": [{"containerPort": 9000}]}],
            "containers": [{"name": "a", "ports": [{"containerPort": 80, "hostPort": 8080, "hostIP": "127.0.0.1"},
                {"containerPort": 53, "protocol": "UDP"}]}, {"name": "b", "ports": [{"containerPort": 9000}]}],
            "securityContext": {"sysctls": [{"name": "net/ipv4/tcp_syncookies", "value": "1"}]},
        }));
        pod.metadata.annotations = Some([("note".to_owned(), "x".to_owned())].into());
        let facts = Facts {
            log_root: "/var/log/pods".into(),
            cgroup_root: "/top".into(),
            ..Facts::default()
        };
        let it = sandbox(&pod, &facts, 2).unwrap();
        let metadata = it.metadata.unwrap();
        assert_eq!(
            (metadata.name.as_str(), metadata.namespace.as_str(), metadata.attempt),
            ("web", "shop", 2)
        );
        assert_eq!(it.hostname, "front");
        assert_eq!(
            it.log_directory,
            "/var/log/pods/shop_web_11111111-2222-3333-4444-555555555555"
        );
        let ports: Vec<_> = it
            .port_mappings
            .iter()
            .map(|it| (it.protocol, it.container_port, it.host_port))
            .collect();
        assert_eq!(ports, [(0, 9000, 0), (0, 80, 8080), (1, 53, 0)]);
        assert_eq!(it.annotations.get("note").map(String::as_str), Some("x"));
        let linux = it.linux.unwrap();
        assert_eq!(
            linux.cgroup_parent,
            "/top/kubepods/besteffort/pod11111111-2222-3333-4444-555555555555"
        );
        assert_eq!(
            linux.sysctls.get("net.ipv4.tcp_syncookies").map(String::as_str),
            Some("1")
        );
    }

    #[test]
    fn a_pod_on_the_nodes_network_maps_no_ports() {
        let pod = pod_of(json!({"hostNetwork": true,
            "containers": [{"name": "a", "ports": [{"containerPort": 80, "hostPort": 80}]}]}));
        let it = sandbox(&pod, &Facts::default(), 0).unwrap();
        assert!(it.port_mappings.is_empty() && it.hostname.is_empty());
    }

    #[test]
    fn sysctls_of_the_node_are_refused_unless_allowed() {
        let sysctl = |name: &str| json!({"name": name, "value": "1"});
        let pod = pod_of(json!({"containers": [], "securityContext": {"sysctls":
            [sysctl("kernel.shm_rmid_forced"), sysctl("kernel.msgmax"), sysctl("net.core.somaxconn")]}}));
        assert_eq!(forbidden_sysctls(&pod, &[]), ["kernel.msgmax", "net.core.somaxconn"]);
        assert_eq!(forbidden_sysctls(&pod, &["kernel.msg*".into()]), ["net.core.somaxconn"]);
        let error = sandbox(&pod, &Facts::default(), 0).unwrap_err();
        assert_eq!(
            error.message(),
            "forbidden sysctl: kernel.msgmax, net.core.somaxconn not allowlisted"
        );
        let allowed = Facts {
            allowed_unsafe_sysctls: vec!["kernel.msg*".into(), "net.core.somaxconn".into()],
            ..Facts::default()
        };
        assert!(sandbox(&pod, &allowed, 0).is_ok());
    }
}
