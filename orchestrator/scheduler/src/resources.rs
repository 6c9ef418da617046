//! What pods ask for and nodes have: sums, and the arithmetic of a pod's containers.

use crate::quantity;
use k8s_openapi::{
    api::core::v1::{Container, ContainerStatus, Pod, PodSpec},
    apimachinery::pkg::api::resource::Quantity,
};
use std::collections::BTreeMap;

/// Processors of a container that asks for none, where nodes are scored: thousandths. Source: upstream's default.
const UNASKED_CPU: i128 = 100;
/// Bytes of memory of a container that asks for none, where nodes are scored. Source: upstream's default.
const UNASKED_MEMORY: i128 = 200 * 1024 * 1024;

/// Amounts by resource. Wide enough that no sum of real amounts overflows, so that what is added can be taken away again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a processor.
    pub cpu: i128,
    /// Bytes.
    pub memory: i128,
    /// Bytes of local storage.
    pub ephemeral: i128,
    /// Pods, which only nodes have.
    pub pods: i128,
    /// Everything else in its own unit: huge pages, extended resources. Nothing is zero.
    pub other: BTreeMap<String, i128>,
}

impl Resources {
    /// Reads a `ResourceList`. What cannot be read is left out and named in `faults`.
    pub fn read(list: Option<&BTreeMap<String, Quantity>>, path: &str, faults: &mut Vec<String>) -> Self {
        let mut all = Self::default();
        for (name, quantity) in list.into_iter().flatten() {
            let read = match name.as_str() {
                "cpu" => quantity::millis(quantity),
                _ => quantity::units(quantity),
            };
            match read.filter(|it| *it >= 0) {
                Some(amount) => all.set(name, amount),
                None => faults.push(format!("{path}[{name}]: {:?} is no amount", quantity.0)),
            }
        }
        all
    }

    /// The amount of one resource.
    pub fn get(&self, name: &str) -> i128 {
        match name {
            "cpu" => self.cpu,
            "memory" => self.memory,
            "ephemeral-storage" => self.ephemeral,
            "pods" => self.pods,
            _ => self.other.get(name).copied().unwrap_or(0),
        }
    }

    fn set(&mut self, name: &str, amount: i128) {
        match name {
            "cpu" => self.cpu = amount,
            "memory" => self.memory = amount,
            "ephemeral-storage" => self.ephemeral = amount,
            "pods" => self.pods = amount,
            _ if amount == 0 => drop(self.other.remove(name)),
            _ => drop(self.other.insert(name.to_owned(), amount)),
        }
    }

    fn combine(&mut self, other: &Self, with: impl Fn(i128, i128) -> i128) {
        self.cpu = with(self.cpu, other.cpu);
        self.memory = with(self.memory, other.memory);
        self.ephemeral = with(self.ephemeral, other.ephemeral);
        self.pods = with(self.pods, other.pods);
        for (name, amount) in &other.other {
            let sum = with(self.get(name), *amount);
            self.set(name, sum);
        }
    }

    /// Adds each amount.
    pub fn add(&mut self, other: &Self) {
        self.combine(other, |mine, theirs| mine + theirs);
    }

    /// Takes each amount away.
    pub fn subtract(&mut self, other: &Self) {
        self.combine(other, |mine, theirs| mine - theirs);
    }

    /// Takes the larger of each amount.
    pub fn raise(&mut self, other: &Self) {
        self.combine(other, i128::max);
    }

    /// What is asked for, by name. Zeros are left out, and the number of pods.
    pub fn asked(&self) -> impl Iterator<Item = (&str, i128)> {
        let usual = [
            ("cpu", self.cpu),
            ("memory", self.memory),
            ("ephemeral-storage", self.ephemeral),
        ];
        let other = self.other.iter().map(|(name, amount)| (name.as_str(), *amount));
        usual.into_iter().chain(other).filter(|(_, amount)| *amount > 0)
    }
}

/// What a pod counts for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodResources {
    /// What it asks for; what must be free on a node.
    pub requests: Resources,
    /// Processors (thousandths) and memory (bytes) that it counts for where nodes are scored: containers that ask for
    /// nothing are taken for small ones, so that they too spread.
    pub usual: (i128, i128),
}

/// One container's amounts: exact, and with the usual ones in place of what it does not ask for.
#[derive(Clone, Default)]
struct Amounts {
    exact: Resources,
    usual: Resources,
}

impl Amounts {
    fn add(&mut self, other: &Self) {
        self.exact.add(&other.exact);
        self.usual.add(&other.usual);
    }

    fn raise(&mut self, other: &Self) {
        self.exact.raise(&other.exact);
        self.usual.raise(&other.usual);
    }
}

fn container(container: &Container, status: Option<&ContainerStatus>, path: &str, faults: &mut Vec<String>) -> Amounts {
    let requests = container.resources.as_ref().and_then(|it| it.requests.as_ref());
    let path = format!("{path}[{}].resources.requests", container.name);
    let mut exact = Resources::read(requests, &path, faults);
    // KEP-1287: while a container is resized, it counts for the larger of what it asks for and what it has.
    for granted in [
        status.and_then(|it| it.allocated_resources.as_ref()),
        status.and_then(|it| it.resources.as_ref()?.requests.as_ref()),
    ] {
        exact.raise(&Resources::read(granted, "status.containerStatuses.resources", faults));
    }
    let names = |name| requests.is_some_and(|it| it.contains_key(name));
    let mut usual = exact.clone();
    if !names("cpu") {
        usual.cpu = UNASKED_CPU;
    }
    if !names("memory") {
        usual.memory = UNASKED_MEMORY;
    }
    Amounts { exact, usual }
}

/// What a pod asks for: the larger of what its containers need while it runs and what any init container needs while it
/// starts, each with the sidecars that were started before it; pod-level amounts in their place; and its overhead.
/// Source: KEP-753 (sidecars), KEP-2837 (pod-level resources), KEP-688 (overhead).
pub fn of_pod(pod: &Pod, spec: &PodSpec, faults: &mut Vec<String>) -> PodResources {
    let status = pod.status.as_ref();
    let find = |all: Option<&Vec<ContainerStatus>>, name: &str| -> Option<ContainerStatus> {
        all?.iter().find(|it| it.name == name).cloned()
    };
    let mut running = Amounts::default();
    for it in &spec.containers {
        let status = find(status.and_then(|it| it.container_statuses.as_ref()), &it.name);
        running.add(&container(it, status.as_ref(), "spec.containers", faults));
    }
    let mut sidecars = Amounts::default();
    let mut starting = Amounts::default();
    for it in spec.init_containers.iter().flatten() {
        let status = find(status.and_then(|it| it.init_container_statuses.as_ref()), &it.name);
        let amounts = container(it, status.as_ref(), "spec.initContainers", faults);
        if it.restart_policy.as_deref() == Some("Always") {
            running.add(&amounts);
            sidecars.add(&amounts);
            starting.raise(&sidecars);
        } else {
            let mut now = sidecars.clone();
            now.add(&amounts);
            starting.raise(&now);
        }
    }
    running.raise(&starting);
    let level = spec.resources.as_ref().and_then(|it| it.requests.as_ref());
    let read = Resources::read(level, "spec.resources.requests", faults);
    for name in level.into_iter().flatten().map(|(name, _)| name) {
        running.exact.set(name, read.get(name));
        running.usual.set(name, read.get(name));
    }
    let overhead = Resources::read(spec.overhead.as_ref(), "spec.overhead", faults);
    running.exact.add(&overhead);
    running.usual.add(&overhead);
    // A pod is one pod, whatever it says.
    running.exact.pods = 0;
    PodResources {
        usual: (running.usual.cpu, running.usual.memory),
        requests: running.exact,
    }
}
