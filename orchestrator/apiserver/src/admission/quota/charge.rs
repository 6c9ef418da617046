//! [`Charge`]: what one object costs, in the names that quotas use.

use crate::{
    admission::{
        limits::{Amounts, add, amounts, pod_amounts},
        quantity::Quantity,
    },
    objects::{Objects, items, text, texts},
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What an object costs, and what scopes ask about it.
#[derive(Clone, Debug, Default)]
pub(super) struct Charge {
    pub(super) amounts: Amounts,
    /// `None`: no pod, so no scope selects it.
    pub(super) pod: Option<PodFacts>,
}

/// What the scopes of quotas look at.
#[derive(Clone, Debug)]
pub(super) struct PodFacts {
    terminating: bool,
    best_effort: bool,
    priority_class: String,
    crosses_namespaces: bool,
}

impl Charge {
    /// Of an object under a store prefix.
    pub(super) fn of(prefix: &str, object: &Value) -> Self {
        let (group, resource) = prefix.split_once('/').unwrap_or(("", prefix));
        let mut charge = Self::default();
        let one = Quantity::count(1);
        let counted = if group == "core" {
            format!("count/{resource}")
        } else {
            format!("count/{resource}.{group}")
        };
        charge.amounts.insert(counted, one);
        if group != "core" {
            return charge;
        }
        match resource {
            "pods" => {
                charge.pod = Some(PodFacts::of(object));
                if !matches!(text(object, "/status/phase"), "Succeeded" | "Failed") {
                    charge.amounts.insert(resource.to_owned(), one);
                    add_pod(&mut charge.amounts, object);
                }
            }
            "services" => {
                charge.amounts.insert(resource.to_owned(), one);
                add_service(&mut charge.amounts, object);
            }
            "persistentvolumeclaims" => {
                charge.amounts.insert(resource.to_owned(), one);
                add_claim(&mut charge.amounts, object);
            }
            "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas" => {
                charge.amounts.insert(resource.to_owned(), one);
            }
            _ => {}
        }
        charge
    }
}

impl PodFacts {
    fn of(pod: &Value) -> Self {
        let asks = |kind| {
            pod_amounts(pod, kind)
                .iter()
                .any(|(name, it)| is_basic(name) && !it.is_zero())
        };
        let affinities = ["podAffinity", "podAntiAffinity"];
        let lists = [
            "requiredDuringSchedulingIgnoredDuringExecution",
            "preferredDuringSchedulingIgnoredDuringExecution",
        ];
        let mut terms = affinities
            .iter()
            .flat_map(|it| lists.iter().map(move |list| format!("/spec/affinity/{it}/{list}")));
        let crosses = |term: &Value| {
            let term = term.get("podAffinityTerm").unwrap_or(term);
            !items(term, "/namespaces").is_empty() || term.get("namespaceSelector").is_some_and(|it| !it.is_null())
        };
        Self {
            terminating: pod
                .pointer("/spec/activeDeadlineSeconds")
                .and_then(Value::as_i64)
                .is_some_and(|it| it >= 0),
            best_effort: !asks("requests") && !asks("limits"),
            priority_class: text(pod, "/spec/priorityClassName").to_owned(),
            crosses_namespaces: terms.any(|it| items(pod, &it).iter().any(crosses)),
        }
    }

    fn in_scope(&self, scope: &str, operator: &str, values: &BTreeSet<&str>) -> bool {
        match scope {
            "Terminating" => self.terminating,
            "NotTerminating" => !self.terminating,
            "BestEffort" => self.best_effort,
            "NotBestEffort" => !self.best_effort,
            "CrossNamespacePodAffinity" => self.crosses_namespaces,
            "PriorityClass" => {
                let class = self.priority_class.as_str();
                match operator {
                    "In" => !class.is_empty() && values.contains(class),
                    "NotIn" => !values.contains(class),
                    "DoesNotExist" => class.is_empty(),
                    _ => !class.is_empty(),
                }
            }
            _ => false,
        }
    }
}

/// What decides a pod's quality of service.
fn is_basic(resource: &str) -> bool {
    matches!(resource, "cpu" | "memory")
}

fn add_pod(amounts: &mut Amounts, pod: &Value) {
    let overhead = crate::admission::limits::amounts(pod, "/spec/overhead");
    for kind in ["requests", "limits"] {
        let mut asked = pod_amounts(pod, kind);
        if kind == "requests" {
            add(&mut asked, &overhead);
        } else {
            let limited = overhead.iter().filter(|(name, _)| asked.contains_key(*name));
            let limited: Amounts = limited.map(|(name, it)| (name.clone(), *it)).collect();
            add(&mut asked, &limited);
        }
        for (name, amount) in asked {
            let native = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
            if kind == "requests" && (native || name.starts_with("hugepages-")) {
                amounts.insert(name.clone(), amount);
            }
            if kind == "requests" || native {
                amounts.insert(format!("{kind}.{name}"), amount);
            }
        }
    }
}

fn add_service(amounts: &mut Amounts, service: &Value) {
    let ports = || Quantity::count(u32::try_from(items(service, "/spec/ports").len()).unwrap_or(u32::MAX));
    match text(service, "/spec/type") {
        "NodePort" => {
            amounts.insert("services.nodeports".to_owned(), ports());
        }
        "LoadBalancer" => {
            amounts.insert("services.loadbalancers".to_owned(), Quantity::count(1));
            let allocated = service
                .pointer("/spec/allocateLoadBalancerNodePorts")
                .and_then(Value::as_bool);
            if allocated.unwrap_or(true) {
                amounts.insert("services.nodeports".to_owned(), ports());
            }
        }
        _ => {}
    }
}

fn add_claim(all: &mut Amounts, claim: &Value) {
    let own = text(claim, "/spec/storageClassName");
    let old = crate::objects::annotation(claim, "volume.beta.kubernetes.io/storage-class");
    let class = old.unwrap_or(own);
    let size = amounts(claim, "/spec/resources/requests").get("storage").copied();
    let classed = |name: &str| format!("{class}.storageclass.storage.k8s.io/{name}");
    if !class.is_empty() {
        all.insert(classed("persistentvolumeclaims"), Quantity::count(1));
    }
    if let Some(size) = size {
        all.insert("requests.storage".to_owned(), size);
        if !class.is_empty() {
            all.insert(classed("requests.storage"), size);
        }
    }
}

/// Whether a quota is about an object: all its scopes select it.
pub(super) fn matches(quota: &Value, charge: &Charge) -> bool {
    let hard = quota.pointer("/spec/hard").and_then(Value::as_object);
    if !hard.is_some_and(|it| charge.amounts.keys().any(|name| it.contains_key(name))) && charge.pod.is_none() {
        return false;
    }
    let simple = texts(quota, "/spec/scopes").map(|it| (it, "Exists", BTreeSet::new()));
    let selected = items(quota, "/spec/scopeSelector/matchExpressions").iter();
    let selected = selected.map(|it| {
        (
            text(it, "/scopeName"),
            text(it, "/operator"),
            texts(it, "/values").collect(),
        )
    });
    simple.chain(selected).all(|(scope, operator, values)| {
        charge
            .pod
            .as_ref()
            .is_some_and(|pod| pod.in_scope(scope, operator, &values))
    })
}

/// What a pod must say because a quota counts it, as `requests.cpu for: a,b; requests.memory for: b`.
pub(super) fn missing(hard: &Amounts, charge: &Charge, pod: &Value) -> Option<String> {
    charge.pod.as_ref()?;
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for resource in hard.keys() {
        let (kind, name) = match resource.as_str() {
            "cpu" | "memory" => ("requests", resource.as_str()),
            "requests.cpu" | "requests.memory" | "limits.cpu" | "limits.memory" => resource.split_once('.')?,
            _ => continue,
        };
        // Said once for the whole pod is said.
        if pod.pointer(&format!("/spec/resources/{kind}/{name}")).is_some() {
            continue;
        }
        for container in ["/spec/initContainers", "/spec/containers"]
            .iter()
            .flat_map(|it| items(pod, it))
        {
            if container.pointer(&format!("/resources/{kind}/{name}")).is_none() {
                missing.entry(resource).or_default().insert(text(container, "/name"));
            }
        }
    }
    let parts = missing.iter().map(|(resource, containers)| {
        let containers: Vec<&str> = containers.iter().copied().collect();
        format!("{resource} for: {}", containers.join(","))
    });
    let parts: Vec<String> = parts.collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// What the objects of a quota's namespace cost it: `status.used` as amounts.
pub fn used(objects: &dyn Objects, quota: &Value) -> BTreeMap<String, Quantity> {
    let namespace = text(quota, "/metadata/namespace");
    let hard = amounts(quota, "/spec/hard");
    let mut used: Amounts = hard.keys().map(|it| (it.clone(), Quantity::ZERO)).collect();
    let prefixes: BTreeSet<String> = hard.keys().map(|it| prefix_of(it)).collect();
    for prefix in prefixes {
        for object in objects.list(&prefix, Some(namespace)) {
            let charge = Charge::of(&prefix, &object);
            if !matches(quota, &charge) {
                continue;
            }
            let counted = charge.amounts.into_iter().filter(|(name, _)| hard.contains_key(name));
            add(&mut used, &counted.collect());
        }
    }
    used
}

/// `status` of a quota as it should be: what the quota controller writes.
pub fn status(objects: &dyn Objects, quota: &Value) -> Value {
    let used: BTreeMap<String, String> = used(objects, quota)
        .into_iter()
        .map(|(name, it)| (name, it.to_string()))
        .collect();
    json!({"hard": quota.pointer("/spec/hard").cloned().unwrap_or_default(), "used": used})
}

/// Where the objects are that cost a resource.
fn prefix_of(resource: &str) -> String {
    if let Some(counted) = resource.strip_prefix("count/") {
        return match counted.split_once('.') {
            Some((plural, group)) => format!("{group}/{plural}"),
            None => format!("core/{counted}"),
        };
    }
    let core = match resource {
        "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas" => resource,
        "persistentvolumeclaims" | "requests.storage" => "persistentvolumeclaims",
        _ if resource.starts_with("services") => "services",
        _ if resource.contains(".storageclass.storage.k8s.io/") => "persistentvolumeclaims",
        _ => "pods",
    };
    format!("core/{core}")
}
