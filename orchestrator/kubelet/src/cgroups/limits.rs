//! Which files of a cgroup hold which limits.

use super::hierarchy::Hierarchy;
use crate::podspec::resources::{CPU_PERIOD_US, PodLimits, weight};

/// File and value, in the order of writing.
pub(super) fn files(hierarchy: &Hierarchy, limits: &PodLimits) -> Vec<(&'static str, String)> {
    let mut out = Vec::new();
    if hierarchy.two {
        if hierarchy.has("cpu") {
            let quota = limits.cpu_quota_us.map_or("max".to_owned(), |it| it.to_string());
            out.push(("cpu.weight", weight(limits.cpu_shares).to_string()));
            out.push(("cpu.max", format!("{quota} {CPU_PERIOD_US}")));
        }
        if hierarchy.has("memory") {
            out.push((
                "memory.max",
                limits.memory.map_or("max".to_owned(), |it| it.to_string()),
            ));
        }
        return out;
    }
    if hierarchy.has("cpu") {
        out.push(("cpu.shares", limits.cpu_shares.to_string()));
        out.push(("cpu.cfs_period_us", CPU_PERIOD_US.to_string()));
        out.push(("cpu.cfs_quota_us", limits.cpu_quota_us.unwrap_or(-1).to_string()));
    }
    if hierarchy.has("memory") {
        out.push(("memory.limit_in_bytes", limits.memory.unwrap_or(-1).to_string()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_its_files() {
        let limits = PodLimits {
            cpu_shares: 1024,
            cpu_quota_us: Some(50_000),
            memory: Some(1 << 20),
        };
        let text = |two: bool, controllers: &[&str], limits: &PodLimits| {
            let controllers = controllers.iter().map(|it| (*it).to_owned()).collect();
            let hierarchy = Hierarchy {
                mount: "/x".into(),
                two,
                controllers,
            };
            let all = files(&hierarchy, limits)
                .into_iter()
                .map(|(file, value)| format!("{file}={value}"));
            all.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            text(true, &["cpu", "memory", "io"], &limits),
            "cpu.weight=39 cpu.max=50000 100000 memory.max=1048576"
        );
        assert_eq!(
            text(false, &["cpu", "cpuacct"], &limits),
            "cpu.shares=1024 cpu.cfs_period_us=100000 cpu.cfs_quota_us=50000"
        );
        assert_eq!(text(false, &["memory"], &limits), "memory.limit_in_bytes=1048576");
        assert_eq!(text(false, &["freezer"], &limits), "");
        let none = PodLimits {
            cpu_shares: 2,
            cpu_quota_us: None,
            memory: None,
        };
        assert_eq!(
            text(true, &["cpu", "memory"], &none),
            "cpu.weight=1 cpu.max=max 100000 memory.max=max"
        );
        assert_eq!(text(false, &["memory"], &none), "memory.limit_in_bytes=-1");
    }
}
