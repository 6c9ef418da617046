//! The file `/etc/hosts` of a pod.

use k8s_openapi::api::core::v1::Pod;
use std::{fmt::Write, net::IpAddr};

/// For a pod with addresses of its own: the loopback names, its own names, and `hostAliases`. `hostname` and `domain` are
/// what [`super::names::hostname`] gives; an empty domain is none.
pub fn hosts_file(pod: &Pod, pod_ips: &[IpAddr], hostname: &str, domain: &str) -> String {
    let mut out = String::from("# Kubernetes-managed hosts file.\n");
    // Names and addresses that Linux distributions put there; RFC 4291 has the multicast ones.
    out.push_str("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n");
    out.push_str("ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n");
    for ip in pod_ips {
        let _ = match domain {
            "" => writeln!(out, "{ip}\t{hostname}"),
            domain => writeln!(out, "{ip}\t{hostname}.{domain}\t{hostname}"),
        };
    }
    out + &aliases(pod)
}

/// For a pod on the node's network: the node's own file, and `hostAliases`.
pub fn hosts_file_of_node(pod: &Pod, of_node: &str) -> String {
    format!(
        "# Kubernetes-managed hosts file (host network).\n{of_node}{}",
        aliases(pod)
    )
}

fn aliases(pod: &Pod) -> String {
    let all: Vec<_> = pod
        .spec
        .iter()
        .flat_map(|it| it.host_aliases.iter().flatten())
        .collect();
    if all.is_empty() {
        return String::new();
    }
    let mut out = String::from("\n# Entries added by HostAliases.\n");
    for alias in all {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        let _ = writeln!(out, "{}\t{names}", alias.ip);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod_of;
    use serde_json::json;

    #[test]
    fn a_pod_finds_itself_and_its_aliases() {
        let pod = pod_of(json!({"containers": [], "hostAliases": [
            {"ip": "10.9.9.9", "hostnames": ["a.example", "b.example"]}, {"ip": "::5"}]}));
        let ips = ["10.1.0.5".parse().unwrap(), "fd01::5".parse().unwrap()];
        let text = hosts_file(&pod, &ips, "web", "");
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.contains("\n10.1.0.5\tweb\nfd01::5\tweb\n\n# Entries added by HostAliases.\n"));
        assert!(text.ends_with("10.9.9.9\ta.example\tb.example\n::5\t\n"));
        let text = hosts_file(
            &pod_of(json!({"containers": []})),
            &ips[..1],
            "web",
            "db.shop.svc.cluster.local",
        );
        assert!(text.ends_with("10.1.0.5\tweb.db.shop.svc.cluster.local\tweb\n"));
    }

    #[test]
    fn a_pod_on_the_nodes_network_has_the_nodes_file() {
        let pod = pod_of(json!({"containers": [], "hostAliases": [{"ip": "10.9.9.9", "hostnames": ["a"]}]}));
        let text = hosts_file_of_node(&pod, "127.0.0.1 localhost node-1\n");
        let want = "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost node-1\n\n\
            # Entries added by HostAliases.\n10.9.9.9\ta\n";
        assert_eq!(text, want);
    }
}
