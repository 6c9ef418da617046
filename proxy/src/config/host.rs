//! What configuration defaults depend on: facts of this host, read once.

use super::ConfigError;
use std::{fs, path::PathBuf};

/// Facts of this host that defaults are derived from.
#[derive(Clone, Debug, PartialEq)]
pub struct Host {
    /// Lower-case host name, as kubelet registers it.
    pub hostname: String,
    /// Where cgroup v2 is mounted, if it is.
    pub cgroup2: Option<PathBuf>,
    /// `net.ipv4.ip_local_port_range`, first and last port inclusive.
    pub local_ports: (u16, u16),
}

impl Host {
    /// Reads `/proc`.
    ///
    /// # Errors
    /// `/proc` is not mounted or not readable.
    pub fn read() -> Result<Self, ConfigError> {
        let read = |path: &str| {
            fs::read_to_string(path).map_err(|error| ConfigError {
                object: path.to_owned(),
                cause: error.to_string(),
                remedy: "mount /proc and let the agent read it".to_owned(),
            })
        };
        Ok(Self {
            hostname: read("/proc/sys/kernel/hostname")?.trim().to_lowercase(),
            cgroup2: find_cgroup2(&read("/proc/self/mountinfo")?),
            // Absent in a network namespace without IPv4 sysctls: the kernel's own default.
            local_ports: read("/proc/sys/net/ipv4/ip_local_port_range")
                .ok()
                .and_then(|text| parse_port_pair(&text))
                .unwrap_or((32_768, 60_999)),
        })
    }
}

/// The mount point of cgroup v2 in `/proc/self/mountinfo` (proc(5)) that shows most of the host's pods.
///
/// Roots are relative to our own cgroup namespace (`cgroup_namespaces(7)`): in a pod with one of its own, `/` is the pod's
/// sub-tree, and what leads out of it, such as the host's tree that was mounted into the pod, begins with `/..`. Any
/// other sub-tree shows only part of the pods.
fn find_cgroup2(mountinfo: &str) -> Option<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        if source.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let rank = match root {
            _ if root == "/.." || root.starts_with("/../") => 0,
            "/" => 1,
            _ => 2,
        };
        Some((rank, PathBuf::from(unescape(point))))
    });
    // The first of equals: `min_by_key` keeps it.
    mounts.min_by_key(|(rank, _)| *rank).map(|(_, point)| point)
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn parse_port_pair(text: &str) -> Option<(u16, u16)> {
    let mut ports = text.split_whitespace().map(str::parse);
    Some((ports.next()?.ok()?, ports.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefers_the_whole_cgroup_tree() {
        let mountinfo = "24 1 0:22 / /proc rw shared:1 - proc proc rw\n\
            30 24 0:27 /kubepods /host/part rw - cgroup2 cgroup2 rw\n\
            31 24 0:27 / /run/my\\040cgroup rw,nosuid shared:4 - cgroup2 none rw\n";
        assert_eq!(find_cgroup2(mountinfo), Some(PathBuf::from("/run/my cgroup")));
        assert_eq!(
            find_cgroup2(mountinfo.split_inclusive('\n').nth(1).unwrap()),
            Some(PathBuf::from("/host/part"))
        );
        assert_eq!(find_cgroup2("31 24 0:27 / /sys/fs/cgroup rw - cgroup cgroup rw"), None);
        assert_eq!(find_cgroup2("nonsense\n - cgroup2"), None);
    }

    #[test]
    fn in_a_pod_prefers_the_hosts_tree() {
        let mountinfo = "31 24 0:27 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n\
            32 24 0:27 /../../.. /run/host/cgroup rw - cgroup2 cgroup2 rw\n\
            33 24 0:27 /..data /odd rw - cgroup2 cgroup2 rw\n";
        assert_eq!(find_cgroup2(mountinfo), Some(PathBuf::from("/run/host/cgroup")));
    }

    #[test]
    fn reads_this_host() {
        let host = Host::read().unwrap();
        assert!(!host.hostname.is_empty() && host.local_ports.0 < host.local_ports.1);
    }
}
