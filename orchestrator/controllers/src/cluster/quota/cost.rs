//! What objects cost a quota: pure. Names are those of `ResourceQuota.spec.hard`.

use super::amount::Amount;
use crate::cluster::podview;
use k8s_openapi::{
    api::core::v1::{
        Container, PersistentVolumeClaim, Pod, PodSpec, ResourceQuota, ScopedResourceSelectorRequirement, Service,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use std::{collections::BTreeMap, sync::Arc};

pub(super) type Amounts = BTreeMap<String, Amount>;

/// Kinds that are counted by their plural alone.
const COUNTED: [&str; 4] = ["configmaps", "secrets", "replicationcontrollers", "resourcequotas"];

/// Objects of a namespace that cost more than their number.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pub(super) pods: Vec<Arc<Pod>>,
    pub(super) services: Vec<Arc<Service>>,
    pub(super) claims: Vec<Arc<PersistentVolumeClaim>>,
}

fn read(all: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    let all = all.into_iter().flatten();
    all.filter_map(|(name, it)| Some((name.clone(), Amount::parse(&it.0)?)))
        .collect()
}

fn add(total: &mut Amounts, more: &Amounts) {
    for (name, it) in more {
        let slot = total.entry(name.clone()).or_insert(Amount::NOTHING);
        *slot = slot.plus(*it);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Requests,
    Limits,
}

fn of_container(container: &Container, kind: Kind) -> Amounts {
    let resources = container.resources.as_ref();
    read(resources.and_then(|it| match kind {
        Kind::Requests => it.requests.as_ref(),
        Kind::Limits => it.limits.as_ref(),
    }))
}

/// What a pod needs at its peak: all containers and sidecars, or an init container beside the sidecars before it. What is
/// said for the whole pod overrides that. Source: KEP-753, KEP-2837.
fn of_spec(spec: &PodSpec, kind: Kind) -> Amounts {
    let mut total = Amounts::new();
    for container in &spec.containers {
        add(&mut total, &of_container(container, kind));
    }
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        let own = of_container(container, kind);
        let mut together = own.clone();
        add(&mut together, &sidecars);
        for (name, it) in together {
            let slot = peak.entry(name).or_insert(Amount::NOTHING);
            *slot = slot.max(it);
        }
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut sidecars, &own);
            add(&mut total, &own);
        }
    }
    for (name, it) in peak {
        let slot = total.entry(name).or_insert(Amount::NOTHING);
        *slot = slot.max(it);
    }
    let whole = spec.resources.as_ref();
    total.extend(read(whole.and_then(|it| match kind {
        Kind::Requests => it.requests.as_ref(),
        Kind::Limits => it.limits.as_ref(),
    })));
    total
}

fn of_pod(pod: &Pod) -> Amounts {
    let one = Amount::of(1);
    let mut cost = Amounts::from([("count/pods".to_owned(), one)]);
    let Some(spec) = pod.spec.as_ref().filter(|_| !podview::is_terminal(pod)) else {
        return cost;
    };
    cost.insert("pods".to_owned(), one);
    let overhead = read(spec.overhead.as_ref());
    for kind in [Kind::Requests, Kind::Limits] {
        let mut asked = of_spec(spec, kind);
        let mut more = overhead.clone();
        if kind == Kind::Limits {
            more.retain(|name, _| asked.contains_key(name));
        }
        add(&mut asked, &more);
        for (name, it) in asked {
            let native = ["cpu", "memory", "ephemeral-storage"].contains(&name.as_str());
            match kind {
                Kind::Requests => {
                    if native || name.starts_with("hugepages-") {
                        cost.insert(name.clone(), it);
                    }
                    cost.insert(format!("requests.{name}"), it);
                }
                Kind::Limits if native => drop(cost.insert(format!("limits.{name}"), it)),
                Kind::Limits => {}
            }
        }
    }
    cost
}

fn of_service(service: &Service) -> Amounts {
    let one = Amount::of(1);
    let mut cost = Amounts::from([("services".to_owned(), one), ("count/services".to_owned(), one)]);
    let Some(spec) = &service.spec else { return cost };
    let ports = Amount::of(spec.ports.as_ref().map_or(0, Vec::len));
    match spec.type_.as_deref() {
        Some("NodePort") => drop(cost.insert("services.nodeports".to_owned(), ports)),
        Some("LoadBalancer") => {
            cost.insert("services.loadbalancers".to_owned(), one);
            if spec.allocate_load_balancer_node_ports.unwrap_or(true) {
                cost.insert("services.nodeports".to_owned(), ports);
            }
        }
        _ => {}
    }
    cost
}

fn of_claim(claim: &PersistentVolumeClaim) -> Amounts {
    let one = Amount::of(1);
    let mut cost = Amounts::from([
        ("persistentvolumeclaims".to_owned(), one),
        ("count/persistentvolumeclaims".to_owned(), one),
    ]);
    let annotations = claim.metadata.annotations.as_ref();
    let old = annotations.and_then(|it| it.get("volume.beta.kubernetes.io/storage-class"));
    let own = claim.spec.as_ref().and_then(|it| it.storage_class_name.as_ref());
    let class = old.or(own).filter(|it| !it.is_empty());
    let resources = claim.spec.as_ref().and_then(|it| it.resources.as_ref());
    let size = read(resources.and_then(|it| it.requests.as_ref())).remove("storage");
    let mut put = |name: &str, it: Amount| {
        if let Some(class) = class {
            cost.insert(format!("{class}.storageclass.storage.k8s.io/{name}"), it);
        }
    };
    put("persistentvolumeclaims", one);
    if let Some(size) = size {
        put("requests.storage", size);
        cost.insert("requests.storage".to_owned(), size);
    }
    cost
}

fn in_scope(pod: &Pod, scope: &ScopedResourceSelectorRequirement) -> bool {
    let spec = pod.spec.clone().unwrap_or_default();
    let bounded = spec.active_deadline_seconds.is_some_and(|it| it >= 0);
    let asks = |kind| {
        let all = of_spec(&spec, kind);
        ["cpu", "memory"]
            .iter()
            .any(|it| all.get(*it).is_some_and(|it| !it.is_nothing()))
    };
    let best_effort = || !asks(Kind::Requests) && !asks(Kind::Limits);
    match scope.scope_name.as_str() {
        "Terminating" => bounded,
        "NotTerminating" => !bounded,
        "BestEffort" => best_effort(),
        "NotBestEffort" => !best_effort(),
        "CrossNamespacePodAffinity" => crosses_namespaces(&spec),
        "PriorityClass" => {
            let class = spec.priority_class_name.unwrap_or_default();
            let listed = scope.values.iter().flatten().any(|it| *it == class);
            match scope.operator.as_str() {
                "In" => !class.is_empty() && listed,
                "NotIn" => !listed,
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        _ => false,
    }
}

fn crosses_namespaces(spec: &PodSpec) -> bool {
    let affinity = spec.affinity.clone().unwrap_or_default();
    let (near, apart) = (
        affinity.pod_affinity.unwrap_or_default(),
        affinity.pod_anti_affinity.unwrap_or_default(),
    );
    let required = [
        near.required_during_scheduling_ignored_during_execution,
        apart.required_during_scheduling_ignored_during_execution,
    ];
    let preferred = [
        near.preferred_during_scheduling_ignored_during_execution,
        apart.preferred_during_scheduling_ignored_during_execution,
    ];
    let preferred = preferred.into_iter().flatten().flatten().map(|it| it.pod_affinity_term);
    let mut all = required.into_iter().flatten().flatten().chain(preferred);
    all.any(|it| it.namespaces.is_some_and(|it| !it.is_empty()) || it.namespace_selector.is_some())
}

/// The scopes of a quota; a pod counts if it is in all of them, and nothing else counts if there are any.
fn scopes(quota: &ResourceQuota) -> Vec<ScopedResourceSelectorRequirement> {
    let Some(spec) = &quota.spec else { return Vec::new() };
    let plain = spec
        .scopes
        .iter()
        .flatten()
        .map(|it| ScopedResourceSelectorRequirement {
            scope_name: it.clone(),
            operator: "Exists".to_owned(),
            values: None,
        });
    let selected = spec.scope_selector.as_ref().and_then(|it| it.match_expressions.clone());
    plain.chain(selected.into_iter().flatten()).collect()
}

/// A kind that is only counted: group and plural.
pub(super) type Counted = (String, String);

/// What a quota's resource counts, if it is a number of objects of a kind that costs nothing else.
pub(super) fn counted(resource: &str) -> Option<Counted> {
    if COUNTED.contains(&resource) {
        return Some((String::new(), resource.to_owned()));
    }
    let name = resource.strip_prefix("count/")?;
    let (plural, group) = name.split_once('.').unwrap_or((name, ""));
    let costly = group.is_empty() && ["pods", "services", "persistentvolumeclaims"].contains(&plural);
    (!costly).then(|| (group.to_owned(), plural.to_owned()))
}

/// `status.used`, for each resource in `spec.hard`. `count`: how many objects of a counted kind there are.
pub(super) fn used(
    quota: &ResourceQuota,
    content: &Content,
    count: impl Fn(&Counted) -> usize,
) -> BTreeMap<String, Quantity> {
    let hard = quota.spec.as_ref().and_then(|it| it.hard.clone()).unwrap_or_default();
    let scopes = scopes(quota);
    let mut total = Amounts::new();
    for pod in &content.pods {
        if scopes.iter().all(|it| in_scope(pod, it)) {
            add(&mut total, &of_pod(pod));
        }
    }
    if scopes.is_empty() {
        for service in &content.services {
            add(&mut total, &of_service(service));
        }
        for claim in &content.claims {
            add(&mut total, &of_claim(claim));
        }
        for resource in hard.keys() {
            if let Some(kind) = counted(resource) {
                total.insert(resource.clone(), Amount::of(count(&kind)));
            }
        }
    }
    hard.into_keys()
        .map(|name| {
            let amount = total.get(&name).copied().unwrap_or(Amount::NOTHING);
            (name, Quantity(amount.to_string()))
        })
        .collect()
}
