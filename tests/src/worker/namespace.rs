//! Makes the calling process a host of its own: cgroup, network namespace, and for nodes a mount namespace.

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use std::{fs, path::Path};

/// Moves this process into `cgroup`, then into a new network namespace; with `mounts` (an empty directory) also into a
/// mount namespace with its own /sys (so that /sys/class/net is this host's) and its own bpffs at /sys/fs/bpf.
///
/// Must run before any thread is started: namespaces are per thread.
pub(super) fn enter(cgroup: Option<&str>, mounts: Option<&str>) -> Result<(), String> {
    if let Some(cgroup) = cgroup {
        fs::write(Path::new(cgroup).join("cgroup.procs"), "0")
            .map_err(|error| format!("enter cgroup {cgroup}: {error}"))?;
    }
    let mut flags = CloneFlags::CLONE_NEWNET;
    flags.set(CloneFlags::CLONE_NEWNS, mounts.is_some());
    unshare(flags).map_err(|error| format!("make namespaces: {error}; this needs root"))?;
    // Addresses are usable at once, nothing configures itself, and ICMP errors are not rationed.
    let settings = [
        ("net/ipv6/conf/all/disable_ipv6", "0"),
        ("net/ipv6/conf/default/disable_ipv6", "0"),
        ("net/ipv6/conf/lo/disable_ipv6", "0"),
        ("net/ipv6/conf/all/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv6/conf/default/dad_transmits", "0"),
        ("net/ipv6/conf/default/accept_ra", "0"),
        ("net/ipv6/conf/default/router_solicitations", "0"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("net/ipv4/icmp_ratelimit", "0"),
        ("net/ipv4/icmp_msgs_per_sec", "100000"),
        ("net/ipv4/icmp_msgs_burst", "10000"),
        ("net/ipv6/icmp/ratelimit", "0"),
    ];
    for (path, value) in settings {
        // Some exist only on some kernels, or only outside namespaces; what matters is asserted by the self-tests.
        let _ = fs::write(format!("/proc/sys/{path}"), value);
    }
    mounts.map_or(Ok(()), own_mounts)
}

fn own_mounts(scratch: &str) -> Result<(), String> {
    let failed = |what: &str| {
        let what = what.to_string();
        move |error: nix::Error| format!("{what}: {error}")
    };
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(failed("make mounts private"))?;
    // A new sysfs hides the cgroup mounts below the old one; they move over by way of `scratch`.
    let cgroups = "/sys/fs/cgroup";
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(cgroups), scratch, none, bind, none).map_err(failed("bind /sys/fs/cgroup"))?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).map_err(failed("mount sysfs on /sys"))?;
    mount(Some(scratch), cgroups, none, MsFlags::MS_MOVE, none).map_err(failed("move cgroups to the new /sys"))?;
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).map_err(failed("mount bpffs on /sys/fs/bpf"))
}
