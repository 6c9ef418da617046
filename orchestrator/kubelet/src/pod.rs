//! Words that all parts of the kubelet use of a pod: [`ContainerRef`], [`Qos`], names and addresses in its object.

use fairlead_schema::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec, ResourceRequirements};
use std::{borrow::Cow, collections::BTreeMap, fmt};

/// Which list of the pod's spec a container is from, and so when it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ContainerKind {
    /// `spec.initContainers`, run to its end before the next one starts.
    Init,
    /// `spec.initContainers` with `restartPolicy: Always`: started in its turn, and kept running (KEP-753).
    Sidecar,
    /// `spec.containers`.
    App,
    /// `spec.ephemeralContainers`: added while the pod runs (KEP-277).
    Ephemeral,
}

impl ContainerKind {
    /// The list in the pod's spec, as field paths of events name it.
    pub fn field(self) -> &'static str {
        match self {
            Self::Init | Self::Sidecar => "initContainers",
            Self::App => "containers",
            Self::Ephemeral => "ephemeralContainers",
        }
    }
}

/// One container of a pod, by its place in the spec.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerRef {
    /// Its name, which is unique in the pod.
    pub name: String,
    /// Which list it is in.
    pub kind: ContainerKind,
    /// Where in that list, from 0.
    pub index: usize,
}

impl ContainerRef {
    /// All containers of a pod in the order of the spec: init containers (sidecars among them), containers, ephemeral ones.
    pub fn all(pod: &Pod) -> Vec<Self> {
        let Some(spec) = &pod.spec else { return Vec::new() };
        let init = spec
            .init_containers
            .iter()
            .flatten()
            .enumerate()
            .map(|(index, it)| Self {
                name: it.name.clone(),
                kind: if is_sidecar(it) {
                    ContainerKind::Sidecar
                } else {
                    ContainerKind::Init
                },
                index,
            });
        let app = spec.containers.iter().enumerate().map(|(index, it)| Self {
            name: it.name.clone(),
            kind: ContainerKind::App,
            index,
        });
        let ephemeral = spec.ephemeral_containers.iter().flatten().enumerate();
        let ephemeral = ephemeral.map(|(index, it)| Self {
            name: it.name.clone(),
            kind: ContainerKind::Ephemeral,
            index,
        });
        init.chain(app).chain(ephemeral).collect()
    }

    /// The container of that name.
    pub fn named(pod: &Pod, name: &str) -> Option<Self> {
        Self::all(pod).into_iter().find(|it| it.name == name)
    }

    /// What the spec says of this container; `None` if the pod has no such container, as after an edit of its list.
    /// Ephemeral containers are shown as containers: they have the same fields but `targetContainerName`.
    pub fn spec<'a>(&self, pod: &'a Pod) -> Option<Cow<'a, Container>> {
        let spec = pod.spec.as_ref()?;
        let found = match self.kind {
            ContainerKind::Init | ContainerKind::Sidecar => {
                Cow::Borrowed(spec.init_containers.as_ref()?.get(self.index)?)
            }
            ContainerKind::App => Cow::Borrowed(spec.containers.get(self.index)?),
            ContainerKind::Ephemeral => Cow::Owned(plain(spec.ephemeral_containers.as_ref()?.get(self.index)?)),
        };
        (found.name == self.name).then_some(found)
    }

    /// As `spec.containers{web}`: what events about a container refer to (`involvedObject.fieldPath`).
    pub fn field_path(&self) -> String {
        format!("spec.{}{{{}}}", self.kind.field(), self.name)
    }

    /// Whether it ends on its own before the pod's containers start.
    pub fn is_init(&self) -> bool {
        self.kind == ContainerKind::Init
    }
}

impl fmt::Display for ContainerRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Whether an init container is one that is kept running beside the others.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn plain(it: &EphemeralContainer) -> Container {
    Container {
        args: it.args.clone(),
        command: it.command.clone(),
        env: it.env.clone(),
        env_from: it.env_from.clone(),
        image: it.image.clone(),
        image_pull_policy: it.image_pull_policy.clone(),
        lifecycle: it.lifecycle.clone(),
        liveness_probe: it.liveness_probe.clone(),
        name: it.name.clone(),
        ports: it.ports.clone(),
        readiness_probe: it.readiness_probe.clone(),
        resize_policy: it.resize_policy.clone(),
        resources: it.resources.clone(),
        restart_policy: it.restart_policy.clone(),
        restart_policy_rules: it.restart_policy_rules.clone(),
        security_context: it.security_context.clone(),
        startup_probe: it.startup_probe.clone(),
        stdin: it.stdin,
        stdin_once: it.stdin_once,
        termination_message_path: it.termination_message_path.clone(),
        termination_message_policy: it.termination_message_policy.clone(),
        tty: it.tty,
        volume_devices: it.volume_devices.clone(),
        volume_mounts: it.volume_mounts.clone(),
        working_dir: it.working_dir.clone(),
    }
}

/// `metadata.uid`; empty where there is none.
pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// `metadata.name`; empty where there is none.
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// `metadata.namespace`, or `default`.
pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

/// As `default/web`: how errors and logs name a pod.
pub fn full_name(pod: &Pod) -> String {
    format!("{}/{}", namespace(pod), name(pod))
}

/// Whether the pod shares the node's network.
pub fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|it| it.host_network) == Some(true)
}

/// Quality of service: who is throttled and killed first. Source: `status.qosClass`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Qos {
    /// Every container has limits of CPU and memory, and requests no less.
    Guaranteed,
    /// Some container asks for something.
    Burstable,
    /// No container asks for anything.
    BestEffort,
}

impl Qos {
    /// The class of a pod, by what its containers (init containers too) or the pod as a whole ask of CPU and memory.
    pub fn of(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else { return Self::BestEffort };
        if let Some(resources) = pod_level(spec) {
            return Self::of_all(std::iter::once(Some(resources)));
        }
        let init = spec.init_containers.iter().flatten();
        Self::of_all(spec.containers.iter().chain(init).map(|it| it.resources.as_ref()))
    }

    fn of_all<'a>(all: impl Iterator<Item = Option<&'a ResourceRequirements>>) -> Self {
        let mut guaranteed = true;
        let mut asks = false;
        for resources in all {
            for resource in ["cpu", "memory"] {
                let amount = |of: fn(&ResourceRequirements) -> Option<&Amounts>| {
                    let amounts = resources.and_then(of);
                    amounts
                        .and_then(|it| Quantity::parse(&it.get(resource)?.0))
                        .filter(|it| it.sign().is_gt())
                };
                let limit = amount(|it| it.limits.as_ref());
                let request = amount(|it| it.requests.as_ref());
                asks |= limit.is_some() || request.is_some();
                // What is not requested is requested as high as its limit.
                guaranteed &= limit.is_some() && request.is_none_or(|it| Some(it) == limit);
            }
        }
        match (guaranteed && asks, asks) {
            (true, _) => Self::Guaranteed,
            (false, true) => Self::Burstable,
            (false, false) => Self::BestEffort,
        }
    }
}

impl fmt::Display for Qos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        })
    }
}

type Amounts = BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>;

/// What the pod asks as a whole (KEP-2837), if it asks CPU or memory so.
pub fn pod_level(spec: &PodSpec) -> Option<&ResourceRequirements> {
    let resources = spec.resources.as_ref()?;
    let names = |it: &Option<Amounts>| it.iter().flatten().any(|(name, _)| name == "cpu" || name == "memory");
    (names(&resources.requests) || names(&resources.limits)).then_some(resources)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A pod named `web` in `shop` with this spec.
    #[allow(clippy::needless_pass_by_value)] // literals read better by value
    pub(crate) fn pod_of(spec: Value) -> Pod {
        let metadata = json!({"name": "web", "namespace": "shop", "uid": "11111111-2222-3333-4444-555555555555"});
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})).unwrap()
    }

    #[test]
    fn containers_are_found_by_their_place() {
        let pod = pod_of(json!({
            "initContainers": [{"name": "first"}, {"name": "proxy", "restartPolicy": "Always"}],
            "containers": [{"name": "app"}],
            "ephemeralContainers": [{"name": "debug", "image": "tools", "targetContainerName": "app"}],
        }));
        let all = ContainerRef::all(&pod);
        let kinds: Vec<_> = all.iter().map(|it| (it.name.as_str(), it.kind, it.index)).collect();
        assert_eq!(
            kinds,
            [
                ("first", ContainerKind::Init, 0),
                ("proxy", ContainerKind::Sidecar, 1),
                ("app", ContainerKind::App, 0),
                ("debug", ContainerKind::Ephemeral, 0),
            ]
        );
        for it in &all {
            assert_eq!(it.spec(&pod).unwrap().name, it.name);
        }
        assert_eq!(all[3].spec(&pod).unwrap().image.as_deref(), Some("tools"));
        assert_eq!(all[1].field_path(), "spec.initContainers{proxy}");
        let other = pod_of(json!({"containers": [{"name": "other"}]}));
        assert!(
            all[2].spec(&other).is_none(),
            "another container in that place is not this one"
        );
        assert!(all[0].spec(&Pod::default()).is_none());
    }

    #[test]
    fn quality_of_service_is_by_cpu_and_memory_of_all_containers() {
        let both = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}});
        let limits = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        let less = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}});
        let storage = json!({"requests": {"ephemeral-storage": "1Gi"}});
        let cpu = json!({"limits": {"cpu": "1"}});
        let none = json!({});
        let zero = json!({"requests": {"cpu": "0"}});
        for (resources, want) in [
            (vec![&both], Qos::Guaranteed),
            (vec![&limits, &both], Qos::Guaranteed),
            (vec![&both, &none], Qos::Burstable),
            (vec![&less], Qos::Burstable),
            (vec![&cpu], Qos::Burstable),
            (vec![&storage, &none], Qos::BestEffort),
            (vec![&zero], Qos::BestEffort),
        ] {
            let containers: Vec<_> = resources
                .iter()
                .enumerate()
                .map(|(i, it)| json!({"name": format!("c{i}"), "resources": it}))
                .collect();
            let pod = pod_of(json!({"containers": containers}));
            assert_eq!(Qos::of(&pod), want, "{resources:?}");
            let (last, first) = containers.split_last().unwrap();
            let pod = pod_of(json!({"containers": [last], "initContainers": first}));
            assert_eq!(Qos::of(&pod), want, "{resources:?} with init containers");
        }
        let pod = pod_of(json!({"containers": [{"name": "a"}], "resources": both}));
        assert_eq!(Qos::of(&pod), Qos::Guaranteed, "the pod asks as a whole");
        assert_eq!(Qos::of(&Pod::default()), Qos::BestEffort);
    }
}
