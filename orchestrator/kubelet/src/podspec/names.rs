//! Names of pods and containers outside the API: labels and annotations on what the runtime keeps, log paths, hostnames.
//!
//! Labels and annotations are those of upstream, so that other tools of the node (`crictl`, log collectors) read them, and
//! so that a restarted kubelet knows its containers again: [`Identity`].

use super::{Cause, Facts, Invalid};
use crate::pod::{self, ContainerRef};
use k8s_openapi::api::core::v1::{Container, Pod};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fmt::Write,
    path::{Path, PathBuf},
};

const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_UID: &str = "io.kubernetes.pod.uid";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";
const HASH: &str = "io.kubernetes.container.hash";
const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
const PORTS: &str = "io.kubernetes.container.ports";
const PRE_STOP: &str = "io.kubernetes.container.preStopHandler";

/// Longest hostname that Linux takes. Source: `HOST_NAME_MAX`.
const HOSTNAME_CHARS: usize = 64;

/// Whose a sandbox or a container is, read from its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `metadata.uid` of the pod.
    pub pod_uid: String,
    /// Name of the pod.
    pub pod_name: String,
    /// Namespace of the pod.
    pub pod_namespace: String,
    /// Name of the container; `None` for a sandbox.
    pub container: Option<String>,
}

impl Identity {
    /// `None` for what no kubelet made.
    pub fn from_labels(labels: &BTreeMap<String, String>) -> Option<Self> {
        let get = |key: &str| labels.get(key).cloned();
        Some(Self {
            pod_uid: get(POD_UID)?,
            pod_name: get(POD_NAME)?,
            pod_namespace: get(POD_NAMESPACE)?,
            container: get(CONTAINER_NAME),
        })
    }
}

/// What a container's annotations say of the spec that it was made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// How often the container had been started anew; 0 if that cannot be read.
    pub restart_count: u32,
    /// [`hash`] of its spec.
    pub hash: String,
    /// Where in the container the last words are written.
    pub termination_message_path: String,
    /// `File` or `FallbackToLogsOnError`.
    pub termination_message_policy: String,
    /// `spec.terminationGracePeriodSeconds` in seconds, when it was made.
    pub termination_grace_period: Option<i64>,
}

impl Made {
    /// Reads the annotations that [`super::container()`] wrote.
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Self {
        let get = |key: &str| annotations.get(key).cloned().unwrap_or_default();
        Self {
            restart_count: get(RESTART_COUNT).parse().unwrap_or_default(),
            hash: get(HASH),
            termination_message_path: get(MESSAGE_PATH),
            termination_message_policy: get(MESSAGE_POLICY),
            termination_grace_period: get(GRACE_PERIOD).parse().ok(),
        }
    }
}

/// Changes when a running container has to be replaced: its image is the only field that can change under it.
pub fn hash(container: &Container) -> String {
    let mut hash = Sha256::new();
    for part in [container.name.as_str(), container.image.as_deref().unwrap_or_default()] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let mut out = String::new();
    for byte in &hash.finalize()[..8] {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

pub(super) fn sandbox_labels(pod: &Pod) -> BTreeMap<String, String> {
    let mut out = pod.metadata.labels.clone().unwrap_or_default();
    out.extend(pod_labels(pod));
    out
}

fn pod_labels(pod: &Pod) -> [(String, String); 3] {
    [
        (POD_NAME.to_owned(), pod::name(pod).to_owned()),
        (POD_NAMESPACE.to_owned(), pod::namespace(pod).to_owned()),
        (POD_UID.to_owned(), pod::uid(pod).to_owned()),
    ]
}

pub(super) fn container_labels(pod: &Pod, container: &ContainerRef) -> BTreeMap<String, String> {
    let mut out = BTreeMap::from(pod_labels(pod));
    out.insert(CONTAINER_NAME.to_owned(), container.name.clone());
    out
}

pub(super) fn container_annotations(pod: &Pod, container: &Container, attempt: u32) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let mut put = |key: &str, value: String| out.insert(key.to_owned(), value);
    put(HASH, hash(container));
    put(RESTART_COUNT, attempt.to_string());
    put(MESSAGE_PATH, termination_message_path(container).to_owned());
    put(
        MESSAGE_POLICY,
        container
            .termination_message_policy
            .clone()
            .unwrap_or_else(|| "File".to_owned()),
    );
    if let Some(grace) = pod.spec.as_ref().and_then(|it| it.termination_grace_period_seconds) {
        put(GRACE_PERIOD, grace.to_string());
    }
    if let Some(ports) = container.ports.as_ref().filter(|it| !it.is_empty()) {
        put(PORTS, serde_json::to_string(ports).unwrap_or_default());
    }
    if let Some(hook) = container.lifecycle.as_ref().and_then(|it| it.pre_stop.as_ref()) {
        put(PRE_STOP, serde_json::to_string(hook).unwrap_or_default());
    }
    out
}

/// Where in the container its last words are read from.
pub fn termination_message_path(container: &Container) -> &str {
    let path = container.termination_message_path.as_deref();
    path.filter(|it| !it.is_empty()).unwrap_or("/dev/termination-log")
}

/// Directory of a pod's logs, as `/var/log/pods/shop_web_<uid>`: no part can hold a `_`, so that it can be read back.
pub fn pod_log_directory(root: &Path, pod: &Pod) -> PathBuf {
    root.join(format!("{}_{}_{}", pod::namespace(pod), pod::name(pod), pod::uid(pod)))
}

/// Log of one start of a container, below the pod's log directory, as `app/3.log`.
pub fn container_log(container: &str, attempt: u32) -> String {
    format!("{container}/{attempt}.log")
}

/// The hostname of a pod, and the domain that it is in (empty if it has no `spec.subdomain`).
pub fn hostname_and_domain(pod: &Pod, facts: &Facts) -> (String, String) {
    let spec = pod.spec.as_ref();
    let some = |it: Option<&String>| it.filter(|it| !it.is_empty()).cloned();
    if let Some(name) = some(spec.and_then(|it| it.hostname_override.as_ref())) {
        return (name, String::new());
    }
    let hostname = some(spec.and_then(|it| it.hostname.as_ref())).unwrap_or_else(|| {
        // The names of pods may be longer than a label of DNS.
        let name: String = pod::name(pod).chars().take(63).collect();
        name.trim_end_matches(['-', '.']).to_owned()
    });
    let domain = some(spec.and_then(|it| it.subdomain.as_ref()))
        .map(|it| format!("{it}.{}.svc.{}", pod::namespace(pod), facts.cluster_domain));
    (hostname, domain.unwrap_or_default())
}

/// What `uname -n` says in a pod: empty for a pod on the node's network, which has the node's.
///
/// # Errors
/// With `setHostnameAsFQDN`, a name of more than 64 characters, which no kernel takes.
pub fn hostname(pod: &Pod, facts: &Facts) -> Result<String, Invalid> {
    if pod::host_network(pod) {
        return Ok(String::new());
    }
    let (hostname, domain) = hostname_and_domain(pod, facts);
    let full = pod.spec.as_ref().and_then(|it| it.set_hostname_as_fqdn) == Some(true) && !domain.is_empty();
    let out = if full { format!("{hostname}.{domain}") } else { hostname };
    if out.len() > HOSTNAME_CHARS {
        let cause = format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {out} is too long \
             ({HOSTNAME_CHARS} characters is the max, {} characters requested)",
            out.len()
        );
        return Err(Invalid::new(pod, None, "setHostnameAsFQDN", Cause::Malformed(cause)));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod_of;
    use serde_json::json;

    #[test]
    fn containers_are_known_again_by_labels_and_annotations() {
        let pod = pod_of(
            json!({"terminationGracePeriodSeconds": 5, "containers": [{"name": "app", "image": "web:1",
            "terminationMessagePolicy": "FallbackToLogsOnError", "ports": [{"containerPort": 80}]}]}),
        );
        let container = ContainerRef::named(&pod, "app").unwrap();
        let identity = Identity::from_labels(&container_labels(&pod, &container)).unwrap();
        assert_eq!(
            (
                identity.pod_name.as_str(),
                identity.pod_namespace.as_str(),
                identity.container.as_deref()
            ),
            ("web", "shop", Some("app"))
        );
        assert_eq!(identity.pod_uid, pod::uid(&pod));
        let sandbox = Identity::from_labels(&sandbox_labels(&pod)).unwrap();
        assert_eq!(sandbox.container, None);
        assert_eq!(Identity::from_labels(&BTreeMap::new()), None);
        let spec = container.spec(&pod).unwrap();
        let made = Made::from_annotations(&container_annotations(&pod, &spec, 7));
        assert_eq!(
            made,
            Made {
                restart_count: 7,
                hash: hash(&spec),
                termination_message_path: "/dev/termination-log".into(),
                termination_message_policy: "FallbackToLogsOnError".into(),
                termination_grace_period: Some(5),
            }
        );
        assert_eq!(Made::from_annotations(&BTreeMap::new()).restart_count, 0);
    }

    #[test]
    fn a_label_of_the_pod_cannot_make_it_another() {
        let mut pod = pod_of(json!({"containers": []}));
        pod.metadata.labels = Some(
            [
                (POD_UID.to_owned(), "other".to_owned()),
                ("app".to_owned(), "x".to_owned()),
            ]
            .into(),
        );
        let labels = sandbox_labels(&pod);
        assert_eq!(Identity::from_labels(&labels).unwrap().pod_uid, pod::uid(&pod));
        assert_eq!(labels.get("app").map(String::as_str), Some("x"));
    }

    #[test]
    fn the_hash_changes_with_name_and_image_only() {
        let of = |name: &str, image: &str| Container {
            name: name.into(),
            image: Some(image.into()),
            ..Container::default()
        };
        let first = hash(&of("a", "b"));
        assert_eq!(first.len(), 16);
        assert_eq!(
            first,
            hash(&Container {
                tty: Some(true),
                ..of("a", "b")
            })
        );
        assert_ne!(first, hash(&of("a", "c")));
        assert_ne!(hash(&of("ab", "c")), hash(&of("a", "bc")));
    }

    #[test]
    fn paths_of_logs_are_those_that_tools_expect() {
        let pod = pod_of(json!({"containers": []}));
        assert_eq!(
            pod_log_directory(Path::new("/var/log/pods"), &pod),
            Path::new("/var/log/pods/shop_web_11111111-2222-3333-4444-555555555555")
        );
        assert_eq!(container_log("app", 3), "app/3.log");
    }

    #[test]
    fn hostnames_are_labels_of_dns() {
        let facts = Facts {
            cluster_domain: "cluster.local".into(),
            ..Facts::default()
        };
        let of = |spec: serde_json::Value| {
            let pod = pod_of(spec);
            (hostname(&pod, &facts), hostname_and_domain(&pod, &facts).1)
        };
        assert_eq!(of(json!({"containers": []})), (Ok("web".into()), String::new()));
        let sub = json!({"containers": [], "hostname": "a", "subdomain": "db"});
        assert_eq!(of(sub.clone()), (Ok("a".into()), "db.shop.svc.cluster.local".into()));
        let mut full = sub;
        full["setHostnameAsFQDN"] = json!(true);
        assert_eq!(of(full.clone()).0, Ok("a.db.shop.svc.cluster.local".into()));
        full["hostname"] = json!("a".repeat(60));
        assert!(of(full).0.unwrap_err().message().contains("is too long"));
        assert_eq!(of(json!({"containers": [], "hostNetwork": true})).0, Ok(String::new()));
        assert_eq!(
            of(json!({"containers": [], "hostnameOverride": "x.y", "subdomain": "s"})).0,
            Ok("x.y".into())
        );
        let mut pod = pod_of(json!({"containers": []}));
        pod.metadata.name = Some(format!("{}-.{}", "a".repeat(61), "b".repeat(40)));
        assert_eq!(hostname(&pod, &facts).unwrap(), "a".repeat(61));
    }
}
