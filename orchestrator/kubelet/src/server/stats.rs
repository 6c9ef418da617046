//! What containers and the node use: `/metrics/resource` and `/stats/summary`, which metrics-server and dashboards read.

use crate::cri::v1::{ContainerStats, UInt64Value};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{collections::BTreeMap, fmt::Write as _, io};

/// Label that every container of ours carries. Source: CRI's well-known labels.
const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_UID: &str = "io.kubernetes.pod.uid";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";

/// What the node as a whole uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct NodeUsage {
    /// Nanoseconds of processors since the boot.
    pub(super) cpu_ns: u64,
    /// Bytes.
    pub(super) memory_total: u64,
    /// Bytes that programs could have without swapping.
    pub(super) memory_available: u64,
}

impl NodeUsage {
    /// Reads it from the kernel.
    ///
    /// # Errors
    /// As the system says.
    pub(super) fn read() -> io::Result<Self> {
        let stat = std::fs::read_to_string("/proc/stat")?;
        let memory = std::fs::read_to_string("/proc/meminfo")?;
        Ok(Self::parse(&stat, &memory))
    }

    /// Source: proc(5). Times are in hundredths of a second on every architecture that runs this.
    fn parse(stat: &str, memory: &str) -> Self {
        let cpu = stat.lines().find_map(|it| it.strip_prefix("cpu ")).unwrap_or_default();
        // user nice system idle iowait irq softirq steal
        let busy = cpu
            .split_whitespace()
            .take(8)
            .enumerate()
            .filter(|(n, _)| !matches!(n, 3 | 4));
        let busy: u64 = busy.filter_map(|(_, it)| it.parse::<u64>().ok()).sum();
        let kib = |name: &str| {
            let line = memory.lines().find_map(|it| it.strip_prefix(name));
            let number = line.and_then(|it| it.trim_start_matches(':').split_whitespace().next());
            number.and_then(|it| it.parse::<u64>().ok()).unwrap_or_default() * 1024
        };
        Self {
            cpu_ns: busy * 10_000_000,
            memory_total: kib("MemTotal"),
            memory_available: kib("MemAvailable"),
        }
    }

    fn working_set(self) -> u64 {
        self.memory_total.saturating_sub(self.memory_available)
    }
}

/// One container's figures.
struct Used<'a> {
    namespace: &'a str,
    pod: &'a str,
    uid: &'a str,
    container: &'a str,
    stats: &'a ContainerStats,
}

impl Used<'_> {
    fn cpu_ns(&self) -> Option<u64> {
        number(self.stats.cpu.as_ref()?.usage_core_nano_seconds.as_ref())
    }

    fn working_set(&self) -> Option<u64> {
        number(self.stats.memory.as_ref()?.working_set_bytes.as_ref())
    }
}

fn number(value: Option<&UInt64Value>) -> Option<u64> {
    value.map(|it| it.value)
}

/// In order of pods; what is not a pod's, or does not run any more, is left out.
fn used(stats: &[ContainerStats]) -> Vec<Used<'_>> {
    fn one(stats: &ContainerStats) -> Option<Used<'_>> {
        stats.cpu.as_ref()?;
        let labels = &stats.attributes.as_ref()?.labels;
        let label = |name| labels.get(name).map(String::as_str);
        Some(Used {
            namespace: label(POD_NAMESPACE)?,
            pod: label(POD_NAME)?,
            uid: label(POD_UID).unwrap_or_default(),
            container: label(CONTAINER_NAME)?,
            stats,
        })
    }
    let mut all: Vec<_> = stats.iter().filter_map(one).collect();
    all.sort_by_key(|it| (it.namespace, it.pod, it.container));
    all
}

fn seconds(ns: u64) -> String {
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

/// One family of samples: label text and value of each.
fn family(out: &mut String, name: &str, kind: &str, help: &str, samples: &[(String, String)]) {
    // Writing to a String does not fail.
    let _ = writeln!(out, "# HELP {name} [STABLE] {help}\n# TYPE {name} {kind}");
    for (labels, value) in samples {
        let _ = writeln!(out, "{name}{labels} {value}");
    }
}

/// `/metrics/resource`. Source: the kubelet's resource metrics, KEP-727. `failed`: the runtime could not be asked.
pub(super) fn resource_metrics(stats: &[ContainerStats], node: NodeUsage, failed: bool) -> String {
    let used = used(stats);
    let container = |it: &Used<'_>| {
        format!(
            "{{container=\"{}\",namespace=\"{}\",pod=\"{}\"}}",
            it.container, it.namespace, it.pod
        )
    };
    let each = |value: &dyn Fn(&Used<'_>) -> Option<String>| -> Vec<_> {
        used.iter().filter_map(|it| Some((container(it), value(it)?))).collect()
    };
    let per_pod = |value: &dyn Fn(&Used<'_>) -> Option<u64>| {
        let mut sums: BTreeMap<_, u64> = BTreeMap::new();
        for it in &used {
            if let Some(value) = value(it) {
                *sums.entry((it.namespace, it.pod)).or_default() += value;
            }
        }
        sums
    };
    let labelled = |((namespace, pod), value): ((&str, &str), String)| {
        (format!("{{namespace=\"{namespace}\",pod=\"{pod}\"}}"), value)
    };
    let plain = |value: String| [(String::new(), value)];
    let mut out = String::new();
    let (counter, gauge) = ("counter", "gauge");
    let cpu = each(&|it| it.cpu_ns().map(seconds));
    let help = "Cumulative cpu time consumed by the container in core-seconds";
    family(&mut out, "container_cpu_usage_seconds_total", counter, help, &cpu);
    let memory = each(&|it| it.working_set().map(|it| it.to_string()));
    let help = "Current working set of the container in bytes";
    family(&mut out, "container_memory_working_set_bytes", gauge, help, &memory);
    let help = "Cumulative cpu time consumed by the node in core-seconds";
    family(
        &mut out,
        "node_cpu_usage_seconds_total",
        counter,
        help,
        &plain(seconds(node.cpu_ns)),
    );
    let help = "Current working set of the node in bytes";
    family(
        &mut out,
        "node_memory_working_set_bytes",
        gauge,
        help,
        &plain(node.working_set().to_string()),
    );
    let cpu: Vec<_> = per_pod(&|it| it.cpu_ns())
        .into_iter()
        .map(|(pod, ns)| labelled((pod, seconds(ns))))
        .collect();
    let help = "Cumulative cpu time consumed by the pod in core-seconds";
    family(&mut out, "pod_cpu_usage_seconds_total", counter, help, &cpu);
    let memory = per_pod(&|it| it.working_set()).into_iter();
    let memory: Vec<_> = memory.map(|(pod, bytes)| labelled((pod, bytes.to_string()))).collect();
    let help = "Current working set of the pod in bytes";
    family(&mut out, "pod_memory_working_set_bytes", gauge, help, &memory);
    let help = "1 if there was an error while getting container metrics, 0 otherwise";
    family(
        &mut out,
        "resource_scrape_error",
        gauge,
        help,
        &plain(u8::from(failed).to_string()),
    );
    out
}

/// `/stats/summary`. Source: `k8s.io/kubelet/pkg/apis/stats/v1alpha1`.
pub(super) fn summary(node_name: &str, stats: &[ContainerStats], node: NodeUsage, now: Timestamp) -> Value {
    let mut pods: Vec<Value> = Vec::new();
    for it in used(stats) {
        let time = |ns: i64| Timestamp::from_nanosecond(ns.into()).unwrap_or(now).to_string();
        let mut container = json!({ "name": it.container });
        if let Some(cpu) = &it.stats.cpu {
            container["cpu"] = json!({ "time": time(cpu.timestamp) });
            put(
                &mut container["cpu"],
                "usageCoreNanoSeconds",
                cpu.usage_core_nano_seconds.as_ref(),
            );
            put(&mut container["cpu"], "usageNanoCores", cpu.usage_nano_cores.as_ref());
        }
        if let Some(memory) = &it.stats.memory {
            container["memory"] = json!({ "time": time(memory.timestamp) });
            let memory_of = &mut container["memory"];
            put(memory_of, "workingSetBytes", memory.working_set_bytes.as_ref());
            put(memory_of, "availableBytes", memory.available_bytes.as_ref());
            put(memory_of, "usageBytes", memory.usage_bytes.as_ref());
            put(memory_of, "rssBytes", memory.rss_bytes.as_ref());
            put(memory_of, "pageFaults", memory.page_faults.as_ref());
            put(memory_of, "majorPageFaults", memory.major_page_faults.as_ref());
        }
        // A snapshotter that keeps no account gives a time of 0.
        if let Some(layer) = it.stats.writable_layer.as_ref().filter(|it| it.timestamp > 0) {
            container["rootfs"] = json!({ "time": time(layer.timestamp) });
            put(&mut container["rootfs"], "usedBytes", layer.used_bytes.as_ref());
            put(&mut container["rootfs"], "inodesUsed", layer.inodes_used.as_ref());
        }
        let reference = json!({ "name": it.pod, "namespace": it.namespace, "uid": it.uid });
        match pods.last_mut().filter(|last| last["podRef"] == reference) {
            Some(last) => {
                if let Some(containers) = last["containers"].as_array_mut() {
                    containers.push(container);
                }
            }
            None => pods.push(json!({ "podRef": reference, "containers": [container] })),
        }
    }
    json!({
        "node": {
            "nodeName": node_name,
            "cpu": { "time": now.to_string(), "usageCoreNanoSeconds": node.cpu_ns },
            "memory": {
                "time": now.to_string(),
                "availableBytes": node.memory_available,
                "workingSetBytes": node.working_set(),
            },
        },
        "pods": pods,
    })
}

fn put(to: &mut Value, name: &str, value: Option<&UInt64Value>) {
    if let Some(value) = number(value) {
        to[name] = value.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::v1::{ContainerAttributes, CpuUsage, MemoryUsage};

    fn container(pod: &str, name: &str, value: u64) -> ContainerStats {
        let labels = [
            (POD_NAME, pod),
            (POD_NAMESPACE, "n"),
            (POD_UID, "u"),
            (CONTAINER_NAME, name),
        ];
        ContainerStats {
            attributes: Some(ContainerAttributes {
                labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
                ..Default::default()
            }),
            cpu: Some(CpuUsage {
                timestamp: 1_800_000_000_000_000_000,
                usage_core_nano_seconds: Some(UInt64Value { value }),
                ..Default::default()
            }),
            memory: Some(MemoryUsage {
                working_set_bytes: Some(UInt64Value { value }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn node() -> NodeUsage {
        let stat = "cpu  100 10 50 9999 99 1 2 3 7 0\ncpu0 1 1 1 1\n";
        NodeUsage::parse(
            stat,
            "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    400 kB\n",
        )
    }

    #[test]
    fn the_nodes_own() {
        let expected = NodeUsage {
            cpu_ns: 1_660_000_000,
            memory_total: 1_024_000,
            memory_available: 409_600,
        };
        assert_eq!(node(), expected);
        assert!(NodeUsage::read().unwrap().memory_total > 0);
        assert_eq!(NodeUsage::parse("", ""), NodeUsage::default());
    }

    #[test]
    fn metrics() {
        let ended = ContainerStats {
            cpu: None,
            ..container("p", "a", 7)
        };
        let stats = [
            container("p", "b", 2),
            container("p", "a", 1_500_000_000),
            ended,
            ContainerStats::default(),
        ];
        let text = resource_metrics(&stats, node(), false);
        for line in [
            "container_cpu_usage_seconds_total{container=\"a\",namespace=\"n\",pod=\"p\"} 1.500000000",
            "container_memory_working_set_bytes{container=\"b\",namespace=\"n\",pod=\"p\"} 2",
            "pod_cpu_usage_seconds_total{namespace=\"n\",pod=\"p\"} 1.500000002",
            "pod_memory_working_set_bytes{namespace=\"n\",pod=\"p\"} 1500000002",
            "node_cpu_usage_seconds_total 1.660000000",
            "node_memory_working_set_bytes 614400",
            "resource_scrape_error 0",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
    }

    #[test]
    fn summaries() {
        let stats = [container("q", "c", 1), container("p", "b", 2), container("p", "a", 3)];
        let summary = summary("node", &stats, node(), "2026-11-20T10:00:00Z".parse().unwrap());
        assert_eq!(summary["node"]["nodeName"], "node");
        assert_eq!(summary["pods"].as_array().unwrap().len(), 2);
        let first = &summary["pods"][0];
        assert_eq!(first["podRef"], json!({ "name": "p", "namespace": "n", "uid": "u" }));
        assert_eq!(first["containers"][0]["name"], "a");
        assert_eq!(first["containers"][0]["cpu"]["usageCoreNanoSeconds"], 3);
        assert_eq!(first["containers"][1]["memory"]["workingSetBytes"], 2);
        assert!(first["containers"][1]["cpu"].get("usageNanoCores").is_none());
    }
}
