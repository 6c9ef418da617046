//! `resources` as CPU shares, quotas, memory limits and scores for the OOM killer: of containers, and of pods as a whole.

use super::{CgroupVersion, Facts};
use crate::{
    cri::v1::LinuxContainerResources,
    pod::{self, ContainerKind, ContainerRef, Qos},
};
use fairlead_schema::quantity::Quantity;
use k8s_openapi::{
    api::core::v1::{Container, Pod, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity as Text,
};
use std::collections::BTreeMap;

/// Length of the time in which a quota may be used up, in microseconds: the kernel's default.
pub const CPU_PERIOD_US: i64 = 100_000;
/// The fewest shares that the kernel knows: for those who ask for no CPU.
pub const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
/// A quota below 1 ms is refused by the kernel.
const MIN_QUOTA_US: i64 = 1000;

const OOM_GUARANTEED: i64 = -997;
const OOM_BEST_EFFORT: i64 = 1000;
/// Priority from which pods are of the node or of the cluster. Source: `system-cluster-critical`.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// CPU and memory; `None` is nothing asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// In thousandths of a CPU.
    pub cpu_milli: Option<i64>,
    /// In bytes.
    pub memory: Option<i64>,
}

impl Amount {
    fn of(amounts: Option<&BTreeMap<String, Text>>) -> Self {
        let get = |name: &str| {
            amounts
                .and_then(|it| Quantity::parse(&it.get(name)?.0))
                .filter(|it| it.sign().is_gt())
        };
        Self {
            cpu_milli: get("cpu").map(Quantity::millis),
            memory: get("memory").map(Quantity::whole),
        }
    }

    fn plus(self, other: Self) -> Self {
        self.joined(other, i64::saturating_add)
    }

    fn max(self, other: Self) -> Self {
        self.joined(other, i64::max)
    }

    fn joined(self, other: Self, join: fn(i64, i64) -> i64) -> Self {
        let both = |a: Option<i64>, b: Option<i64>| match (a, b) {
            (Some(a), Some(b)) => Some(join(a, b)),
            (one, other) => one.or(other),
        };
        Self {
            cpu_milli: both(self.cpu_milli, other.cpu_milli),
            memory: both(self.memory, other.memory),
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli.or(other.cpu_milli),
            memory: self.memory.or(other.memory),
        }
    }
}

/// What a container or a pod asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asks {
    /// What it is sure to get; as high as its limit where it says nothing.
    pub requests: Amount,
    /// What it never gets more of.
    pub limits: Amount,
}

impl Asks {
    fn of(resources: Option<&ResourceRequirements>) -> Self {
        let limits = Amount::of(resources.and_then(|it| it.limits.as_ref()));
        let requests = Amount::of(resources.and_then(|it| it.requests.as_ref())).or(limits);
        Self { requests, limits }
    }

    /// What one container asks.
    pub fn of_container(container: &Container) -> Self {
        Self::of(container.resources.as_ref())
    }

    /// What a pod asks at its highest: init containers run one by one beside the sidecars before them, the others all at
    /// once; plus `spec.overhead`. What the pod asks as a whole goes before (KEP-2837). A limit is there only if every
    /// container has one: otherwise one of them may have all.
    pub fn of_pod(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else { return Self::default() };
        let init: Vec<_> = spec.init_containers.iter().flatten().collect();
        let all = || init.iter().copied().chain(&spec.containers).map(Self::of_container);
        let highest = |of: fn(&Self) -> Amount| {
            let mut sidecars = Amount::default();
            let mut peak = Amount::default();
            for container in &init {
                let own = of(&Self::of_container(container));
                peak = peak.max(own.plus(sidecars));
                if pod::is_sidecar(container) {
                    sidecars = sidecars.plus(own);
                }
            }
            spec.containers
                .iter()
                .map(|it| of(&Self::of_container(it)))
                .fold(sidecars, Amount::plus)
                .max(peak)
        };
        let mut limits = highest(|it| it.limits);
        if !all().all(|it| it.limits.cpu_milli.is_some()) {
            limits.cpu_milli = None;
        }
        if !all().all(|it| it.limits.memory.is_some()) {
            limits.memory = None;
        }
        let whole = Self::of(pod::pod_level(spec));
        let overhead = Amount::of(spec.overhead.as_ref());
        let limits = whole.limits.or(limits);
        Self {
            requests: whole.requests.or(highest(|it| it.requests)).plus(overhead),
            limits: Amount {
                cpu_milli: limits
                    .cpu_milli
                    .map(|it| it.saturating_add(overhead.cpu_milli.unwrap_or(0))),
                memory: limits.memory.map(|it| it.saturating_add(overhead.memory.unwrap_or(0))),
            },
        }
    }
}

/// `cpu.shares`: 1024 for each CPU asked, within what the kernel knows.
pub fn shares(cpu_milli: i64) -> i64 {
    (i128::from(cpu_milli) * 1024 / 1000).clamp(i128::from(MIN_SHARES), i128::from(MAX_SHARES)) as i64
}

/// `cpu.weight` for shares: 2…262144 as 1…10000. Source: KEP-2254.
pub fn weight(shares: i64) -> i64 {
    1 + (shares.clamp(MIN_SHARES, MAX_SHARES) - MIN_SHARES) * 9999 / (MAX_SHARES - MIN_SHARES)
}

/// `cpu.cfs_quota_us` for a limit, per [`CPU_PERIOD_US`].
pub fn quota(cpu_milli: i64) -> i64 {
    let quota = i128::from(cpu_milli) * i128::from(CPU_PERIOD_US) / 1000;
    quota.clamp(i128::from(MIN_QUOTA_US), i128::from(i64::MAX)) as i64
}

/// What the cgroup of a pod is limited to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodLimits {
    /// `cpu.shares`.
    pub cpu_shares: i64,
    /// `cpu.cfs_quota_us` per [`CPU_PERIOD_US`]; `None` is without limit.
    pub cpu_quota_us: Option<i64>,
    /// In bytes; `None` is without limit.
    pub memory: Option<i64>,
}

impl PodLimits {
    /// By what all containers ask together, and by the pod's class.
    pub fn of(pod: &Pod) -> Self {
        if Qos::of(pod) == Qos::BestEffort {
            return Self {
                cpu_shares: MIN_SHARES,
                cpu_quota_us: None,
                memory: None,
            };
        }
        let asks = Asks::of_pod(pod);
        Self {
            cpu_shares: shares(asks.requests.cpu_milli.unwrap_or(0)),
            cpu_quota_us: asks.limits.cpu_milli.map(quota),
            memory: asks.limits.memory,
        }
    }
}

/// The resources of a container, as the runtime takes them.
pub(super) fn of_container(
    pod: &Pod,
    reference: &ContainerRef,
    container: &Container,
    facts: &Facts,
) -> LinuxContainerResources {
    let asks = Asks::of_container(container);
    let mut out = LinuxContainerResources {
        cpu_shares: shares(asks.requests.cpu_milli.unwrap_or(0)),
        memory_limit_in_bytes: asks.limits.memory.unwrap_or(0),
        oom_score_adj: oom_score_adj(pod, reference, container, facts.memory_capacity),
        ..LinuxContainerResources::default()
    };
    if let Some(limit) = asks.limits.cpu_milli {
        out.cpu_period = CPU_PERIOD_US;
        out.cpu_quota = quota(limit);
    }
    if let CgroupVersion::V2 { swap } = facts.cgroup_version {
        // One process of a container without the others is rarely of use.
        out.unified.insert("memory.oom.group".to_owned(), "1".to_owned());
        if swap {
            out.unified.insert("memory.swap.max".to_owned(), "0".to_owned());
        }
    }
    out
}

/// The sum of a sandbox's containers, for runtimes that size machines by it.
pub(super) fn of_sandbox(pod: &Pod) -> LinuxContainerResources {
    let asks = Asks::of_pod(pod);
    let mut out = LinuxContainerResources {
        cpu_shares: shares(asks.requests.cpu_milli.unwrap_or(0)),
        memory_limit_in_bytes: asks.limits.memory.unwrap_or(0),
        ..LinuxContainerResources::default()
    };
    if let Some(limit) = asks.limits.cpu_milli {
        out.cpu_period = CPU_PERIOD_US;
        out.cpu_quota = quota(limit);
    }
    out
}

/// Who is killed first when memory runs out: of burstable containers those that asked for the smallest part of the node's
/// memory, `capacity` in bytes. Always between the guaranteed and those that asked for nothing.
fn oom_score_adj(pod: &Pod, reference: &ContainerRef, container: &Container, capacity: i64) -> i64 {
    let critical = pod
        .spec
        .as_ref()
        .and_then(|it| it.priority)
        .is_some_and(|it| it >= CRITICAL_PRIORITY);
    match Qos::of(pod) {
        _ if critical => return OOM_GUARANTEED,
        Qos::Guaranteed => return OOM_GUARANTEED,
        Qos::BestEffort => return OOM_BEST_EFFORT,
        Qos::Burstable => {}
    }
    let by = |request: i64| {
        let part = i128::from(request) * 1000 / i128::from(capacity.max(1));
        1000 - part.clamp(0, 1000) as i64
    };
    let spec = pod.spec.as_ref();
    // What the pod asks as a whole and its containers do not is theirs in equal parts.
    let whole = spec
        .and_then(pod::pod_level)
        .and_then(|it| Asks::of(Some(it)).requests.memory);
    let share = whole.map_or(0, |whole| {
        let all: Vec<_> = ContainerRef::all(pod)
            .iter()
            .filter_map(|it| Some(it.spec(pod)?.into_owned()))
            .collect();
        let asked = all.iter().filter_map(|it| Asks::of_container(it).requests.memory);
        let asked = asked.fold(0, i64::saturating_add);
        whole.saturating_sub(asked).max(0) / (all.len().max(1) as i64)
    });
    let request = |it: &Container| {
        Asks::of_container(it)
            .requests
            .memory
            .unwrap_or(0)
            .saturating_add(share)
    };
    let mut score = by(request(container));
    if reference.kind == ContainerKind::Sidecar {
        // A sidecar outlives the containers that it serves.
        let least = spec
            .iter()
            .flat_map(|it| &it.containers)
            .map(request)
            .min()
            .unwrap_or(0);
        score = score.min(by(least));
    }
    score.clamp(OOM_BEST_EFFORT + OOM_GUARANTEED, OOM_BEST_EFFORT - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod_of;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[test]
    fn amounts_become_what_the_kernel_takes() {
        for (milli, want) in [
            (0, 2),
            (1, 2),
            (2, 2),
            (10, 10),
            (100, 102),
            (1000, 1024),
            (1_000_000, 262_144),
        ] {
            assert_eq!(shares(milli), want, "{milli}");
        }
        for (shares, want) in [(0, 1), (2, 1), (1024, 39), (262_144, 10_000), (i64::MAX, 10_000)] {
            assert_eq!(weight(shares), want, "{shares}");
        }
        for (milli, want) in [(1, 1000), (10, 1000), (11, 1100), (500, 50_000), (2000, 200_000)] {
            assert_eq!(quota(milli), want, "{milli}");
        }
        assert_eq!((shares(i64::MAX), quota(i64::MAX)), (262_144, i64::MAX));
    }

    fn resources_of(pod: Value, name: &str, version: CgroupVersion) -> LinuxContainerResources {
        let pod = pod_of(pod);
        let reference = ContainerRef::named(&pod, name).unwrap();
        let spec = reference.spec(&pod).unwrap();
        let facts = Facts {
            memory_capacity: 16 << 30,
            cgroup_version: version,
            ..Facts::default()
        };
        of_container(&pod, &reference, &spec, &facts)
    }

    #[test]
    fn a_container_gets_what_it_asks() {
        let pod = json!({"containers": [
            {"name": "a", "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}}},
            {"name": "b"},
            {"name": "c", "resources": {"limits": {"cpu": "1"}}},
        ]});
        let it = resources_of(pod.clone(), "a", CgroupVersion::V1);
        assert_eq!((it.cpu_shares, it.cpu_quota, it.cpu_period), (256, 150_000, 100_000));
        assert_eq!(it.memory_limit_in_bytes, 64 << 20);
        assert!(it.unified.is_empty());
        let it = resources_of(pod.clone(), "b", CgroupVersion::V2 { swap: true });
        assert_eq!(
            (it.cpu_shares, it.cpu_quota, it.cpu_period, it.memory_limit_in_bytes),
            (2, 0, 0, 0)
        );
        let unified: Vec<_> = it.unified.iter().map(|(a, b)| format!("{a}={b}")).collect();
        assert_eq!(unified, ["memory.oom.group=1", "memory.swap.max=0"]);
        let it = resources_of(pod, "c", CgroupVersion::V1);
        assert_eq!(it.cpu_shares, 1024, "a limit alone is a request too");
    }

    #[test]
    fn those_who_asked_for_little_are_killed_first() {
        let score = |pod: Value, name: &str| resources_of(pod, name, CgroupVersion::V1).oom_score_adj;
        let memory = |amount: &str| json!({"requests": {"memory": amount}});
        let both = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        let one = |resources: Value| json!({"containers": [{"name": "a", "resources": resources}]});
        assert_eq!(score(one(both), "a"), -997);
        assert_eq!(score(one(json!({})), "a"), 1000);
        assert_eq!(score(one(memory("4Gi")), "a"), 750);
        assert_eq!(score(one(memory("1Ki")), "a"), 999);
        assert_eq!(score(one(memory("16Gi")), "a"), 3);
        assert_eq!(score(one(memory("64Gi")), "a"), 3);
        let mut critical = one(json!({}));
        critical["priority"] = json!(2_000_001_000);
        assert_eq!(score(critical, "a"), -997);
        let sidecar = json!({
            "initContainers": [{"name": "s", "restartPolicy": "Always"}],
            "containers": [{"name": "a", "resources": memory("8Gi")}, {"name": "b", "resources": memory("4Gi")}],
        });
        assert_eq!(score(sidecar.clone(), "s"), 750);
        assert_eq!(score(sidecar, "a"), 500);
        let whole = json!({
            "containers": [{"name": "a", "resources": memory("2Gi")}, {"name": "b"}],
            "resources": {"requests": {"memory": "6Gi"}},
        });
        assert_eq!((score(whole.clone(), "a"), score(whole, "b")), (750, 875));
    }

    #[test]
    fn a_pod_is_limited_only_if_all_its_containers_are() {
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}});
        let of = |spec: Value| PodLimits::of(&pod_of(spec));
        let it = of(json!({"containers": [{"name": "a", "resources": full}, {"name": "b", "resources": full}]}));
        assert_eq!(
            it,
            PodLimits {
                cpu_shares: 1024,
                cpu_quota_us: Some(200_000),
                memory: Some(2 << 30)
            }
        );
        let it = of(json!({"containers": [{"name": "a", "resources": full}, {"name": "b"}]}));
        assert_eq!(
            it,
            PodLimits {
                cpu_shares: 512,
                cpu_quota_us: None,
                memory: None
            }
        );
        let it = of(json!({"containers": [{"name": "a", "resources": full}], "initContainers": [{"name": "i"}]}));
        assert_eq!(it.memory, None, "the init container may have more");
        assert_eq!(of(json!({"containers": [{"name": "a"}]})).cpu_shares, 2);
        let it = of(json!({"containers": [{"name": "a"}], "resources": full}));
        assert_eq!(
            it,
            PodLimits {
                cpu_shares: 512,
                cpu_quota_us: Some(100_000),
                memory: Some(1 << 30)
            }
        );
        let overhead =
            json!({"containers": [{"name": "a", "resources": full}], "overhead": {"memory": "1Gi", "cpu": "1"}});
        let it = of(overhead);
        assert_eq!(
            it,
            PodLimits {
                cpu_shares: 1536,
                cpu_quota_us: Some(200_000),
                memory: Some(2 << 30)
            }
        );
    }

    /// What runs at once, at each point of a pod's life.
    fn peak(init: &[(bool, i64)], app: &[i64]) -> i64 {
        let mut points = Vec::new();
        for (at, (sidecar, own)) in init.iter().enumerate() {
            let before: i64 = init[..at].iter().filter(|it| it.0).map(|it| it.1).sum();
            points.push(before + own);
            let _ = sidecar;
        }
        let sidecars: i64 = init.iter().filter(|it| it.0).map(|it| it.1).sum();
        points.push(sidecars + app.iter().sum::<i64>());
        points.into_iter().max().unwrap()
    }

    proptest! {
        #[test]
        fn a_pod_asks_what_it_asks_at_its_highest(
            init in prop::collection::vec((any::<bool>(), 1i64..5000), 0..5),
            app in prop::collection::vec(1i64..5000, 1..5),
        ) {
            let resources = |milli: i64| json!({
                "requests": {"cpu": format!("{milli}m"), "memory": milli.to_string()},
                "limits": {"cpu": format!("{milli}m"), "memory": milli.to_string()},
            });
            let init_containers: Vec<_> = init.iter().enumerate().map(|(i, (sidecar, milli))| {
                let policy = if *sidecar { json!("Always") } else { Value::Null };
                json!({"name": format!("i{i}"), "restartPolicy": policy, "resources": resources(*milli)})
            }).collect();
            let containers: Vec<_> = app.iter().enumerate()
                .map(|(i, milli)| json!({"name": format!("a{i}"), "resources": resources(*milli)})).collect();
            let asks = Asks::of_pod(&pod_of(json!({"initContainers": init_containers, "containers": containers})));
            let want = Some(peak(&init, &app));
            prop_assert_eq!(asks.requests, Amount { cpu_milli: want, memory: want });
            prop_assert_eq!(asks.limits, asks.requests);
        }

        #[test]
        fn more_cpu_is_never_less_of_anything(a in 0i64..10_000_000, b in 0i64..10_000_000) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(shares(low) <= shares(high));
            prop_assert!(quota(low) <= quota(high));
            prop_assert!(weight(shares(low)) <= weight(shares(high)));
            prop_assert!((1..=10_000).contains(&weight(shares(high))));
        }
    }
}
