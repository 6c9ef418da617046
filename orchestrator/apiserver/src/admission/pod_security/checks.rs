//! The single checks. Source: the Pod Security Standards; wording as upstream's. Each gives one phrase, or none.

use crate::objects::{flag, items, pairs, text, texts};
use serde_json::Value;
use std::collections::BTreeSet;

/// What the baseline level forbids, in the order of upstream's names.
pub(super) fn baseline(pod: &Value) -> Vec<String> {
    let checks = [
        app_armor(pod),
        capabilities(pod),
        host_namespaces(pod),
        host_paths(pod),
        host_ports(pod),
        host_probes(pod),
        privileged(pod),
        proc_mount(pod),
        se_linux(pod),
        unconfined(pod),
        sysctls(pod),
        host_process(pod),
    ];
    checks.into_iter().flatten().collect()
}

/// What the restricted level forbids: everything of the baseline, and more.
pub(super) fn restricted(pod: &Value) -> Vec<String> {
    let checks = [
        escalation(pod),
        app_armor(pod),
        dropped_capabilities(pod),
        host_namespaces(pod),
        host_ports(pod),
        host_probes(pod),
        privileged(pod),
        proc_mount(pod),
        volume_types(pod),
        root(pod),
        root_user(pod),
        se_linux(pod),
        seccomp(pod),
        sysctls(pod),
        host_process(pod),
    ];
    checks.into_iter().flatten().collect()
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["/spec/initContainers", "/spec/containers", "/spec/ephemeralContainers"];
    lists.into_iter().flat_map(|it| items(pod, it))
}

fn name(container: &Value) -> &str {
    text(container, "/name")
}

/// `container "a"`, `containers "a", "b"`.
fn named<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let names: Vec<String> = names.into_iter().map(|it| format!("{it:?}")).collect();
    let plural = if names.len() == 1 { "" } else { "s" };
    (!names.is_empty()).then(|| format!("{word}{plural} {}", names.join(", ")))
}

fn quoted(words: &BTreeSet<&str>) -> String {
    words.iter().map(|it| format!("{it:?}")).collect::<Vec<_>>().join(", ")
}

/// Those that set something wrong: `pod`, `containers "a", "b"`, or both.
fn setters(pod: &Value, wrong: impl Fn(&Value) -> bool) -> Option<String> {
    let own = pod.pointer("/spec/securityContext").is_some_and(&wrong);
    let wrong = |it: &&Value| it.get("securityContext").is_some_and(&wrong);
    let containers = named("container", containers(pod).filter(wrong).map(name));
    match (own, containers) {
        (true, Some(containers)) => Some(format!("pod and {containers}")),
        (true, None) => Some("pod".to_owned()),
        (false, containers) => containers,
    }
}

fn app_armor(pod: &Value) -> Option<String> {
    let allowed = |it: &str| it.is_empty() || it == "runtime/default" || it.starts_with("localhost/");
    let mut wrong: Vec<String> = setters(pod, |it| text(it, "/appArmorProfile/type") == "Unconfined")
        .map(|who| format!("{who} must not set AppArmor profile type to \"Unconfined\""))
        .into_iter()
        .collect();
    let annotations = pairs(pod, "/metadata/annotations")
        .filter(|(key, value)| key.starts_with("container.apparmor.security.beta.kubernetes.io/") && !allowed(value));
    let annotations: Vec<String> = annotations.map(|(key, value)| format!("{key}={value:?}")).collect();
    if !annotations.is_empty() {
        let plural = if annotations.len() == 1 { "" } else { "s" };
        wrong.push(format!("annotation{plural} {}", annotations.join(", ")));
    }
    let plural = if wrong.len() + annotations.len().saturating_sub(1) == 1 {
        ""
    } else {
        "s"
    };
    (!wrong.is_empty()).then(|| format!("forbidden AppArmor profile{plural} ({})", wrong.join("; ")))
}

/// Capabilities that a runtime gives anyway.
const DEFAULT_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Containers that add capabilities other than those allowed, and which.
fn added<'a>(pod: &'a Value, allowed: &[&str]) -> Option<String> {
    let (mut who, mut what) = (Vec::new(), BTreeSet::new());
    for container in containers(pod) {
        let extra: Vec<&'a str> = texts(container, "/securityContext/capabilities/add")
            .filter(|it| !allowed.contains(it))
            .collect();
        if !extra.is_empty() {
            who.push(name(container));
            what.extend(extra);
        }
    }
    let who = named("container", who)?;
    Some(format!(
        "{who} must not include {} in securityContext.capabilities.add",
        quoted(&what)
    ))
}

fn capabilities(pod: &Value) -> Option<String> {
    added(pod, &DEFAULT_CAPABILITIES).map(|it| format!("non-default capabilities ({it})"))
}

/// Whether the pod is for Windows, where the things of Linux do not exist.
fn windows(pod: &Value) -> bool {
    text(pod, "/spec/os/name") == "windows"
}

fn dropped_capabilities(pod: &Value) -> Option<String> {
    if windows(pod) {
        return None;
    }
    let keeps = |it: &&Value| !texts(it, "/securityContext/capabilities/drop").any(|it| it == "ALL");
    let keepers = named("container", containers(pod).filter(keeps).map(name));
    let keepers = keepers.map(|it| format!("{it} must set securityContext.capabilities.drop=[\"ALL\"]"));
    let both: Vec<String> = [keepers, added(pod, &["NET_BIND_SERVICE"])]
        .into_iter()
        .flatten()
        .collect();
    (!both.is_empty()).then(|| format!("unrestricted capabilities ({})", both.join("; ")))
}

fn host_namespaces(pod: &Value) -> Option<String> {
    let shared = ["hostNetwork", "hostPID", "hostIPC"];
    let shared = shared.into_iter().filter(|it| flag(pod, &format!("/spec/{it}")));
    let shared: Vec<String> = shared.map(|it| format!("{it}=true")).collect();
    (!shared.is_empty()).then(|| format!("host namespaces ({})", shared.join(", ")))
}

fn volumes_with(pod: &Value, wrong: impl Fn(&Value) -> bool) -> Vec<&str> {
    items(pod, "/spec/volumes")
        .iter()
        .filter(|it| wrong(it))
        .map(name)
        .collect()
}

fn host_paths(pod: &Value) -> Option<String> {
    let volumes = named(
        "volume",
        volumes_with(pod, |it| it.get("hostPath").is_some_and(|it| !it.is_null())),
    )?;
    Some(format!("hostPath volumes ({volumes})"))
}

fn host_ports(pod: &Value) -> Option<String> {
    let (mut who, mut ports) = (Vec::new(), BTreeSet::new());
    for container in containers(pod) {
        let own = items(container, "/ports")
            .iter()
            .filter_map(|it| it.get("hostPort")?.as_i64());
        let own: Vec<i64> = own.filter(|it| *it != 0).collect();
        if !own.is_empty() {
            who.push(name(container));
            ports.extend(own);
        }
    }
    let one = who.len() == 1;
    let who = named("container", who)?;
    let plural = if ports.len() == 1 { "" } else { "s" };
    let ports: Vec<String> = ports.iter().map(i64::to_string).collect();
    let verb = if one { "uses" } else { "use" };
    Some(format!("hostPort ({who} {verb} hostPort{plural} {})", ports.join(", ")))
}

/// A probe that names a host makes the kubelet ask it: KEP-4940.
fn host_probes(pod: &Value) -> Option<String> {
    let handlers = [
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "lifecycle/postStart",
        "lifecycle/preStop",
    ];
    let mut hosts = BTreeSet::new();
    let mut who = Vec::new();
    for container in containers(pod) {
        let mut own = BTreeSet::new();
        for handler in handlers {
            for action in ["httpGet", "tcpSocket"] {
                let host = text(container, &format!("/{handler}/{action}/host"));
                if !matches!(host, "" | "127.0.0.1" | "::1") {
                    own.insert(host);
                }
            }
        }
        if !own.is_empty() {
            who.push(name(container));
            hosts.extend(own);
        }
    }
    let one = who.len() == 1;
    let who = named("container", who)?;
    let verb = if one { "uses" } else { "use" };
    Some(format!(
        "probe or lifecycle host ({who} {verb} probe or lifecycle hosts {})",
        quoted(&hosts)
    ))
}

fn privileged(pod: &Value) -> Option<String> {
    let wrong = |it: &&Value| flag(it, "/securityContext/privileged");
    let who = named("container", containers(pod).filter(wrong).map(name))?;
    Some(format!(
        "privileged ({who} must not set securityContext.privileged=true)"
    ))
}

fn proc_mount(pod: &Value) -> Option<String> {
    let own = |it: &Value| text(it, "/securityContext/procMount").to_owned();
    let wrong: Vec<&Value> = containers(pod)
        .filter(|it| !matches!(own(it).as_str(), "" | "Default"))
        .collect();
    let kinds: Vec<String> = wrong.iter().map(|it| own(it)).collect();
    let kinds: BTreeSet<&str> = kinds.iter().map(String::as_str).collect();
    let who = named("container", wrong.into_iter().map(name))?;
    Some(format!(
        "procMount ({who} must not set securityContext.procMount to {})",
        quoted(&kinds)
    ))
}

fn se_linux(pod: &Value) -> Option<String> {
    const TYPES: [&str; 5] = [
        "",
        "container_t",
        "container_init_t",
        "container_kvm_t",
        "container_engine_t",
    ];
    let context = |it: &Value, field: &str| text(it, &format!("/seLinuxOptions/{field}")).to_owned();
    let wrong_type = |it: &Value| !TYPES.contains(&context(it, "type").as_str());
    let user = |it: &Value| !context(it, "user").is_empty();
    let role = |it: &Value| !context(it, "role").is_empty();
    let who = setters(pod, |it| wrong_type(it) || user(it) || role(it))?;
    let all: Vec<&Value> = pod
        .pointer("/spec/securityContext")
        .into_iter()
        .chain(containers(pod).filter_map(|it| it.get("securityContext")))
        .collect();
    let types: Vec<String> = all
        .iter()
        .filter(|it| wrong_type(it))
        .map(|it| context(it, "type"))
        .collect();
    let types: BTreeSet<&str> = types.iter().map(String::as_str).collect();
    let mut what = Vec::new();
    if !types.is_empty() {
        what.push(format!(
            "type{} {}",
            if types.len() == 1 { "" } else { "s" },
            quoted(&types)
        ));
    }
    what.extend(all.iter().any(|it| user(it)).then(|| "user may not be set".to_owned()));
    what.extend(all.iter().any(|it| role(it)).then(|| "role may not be set".to_owned()));
    Some(format!(
        "seLinuxOptions ({who} set forbidden securityContext.seLinuxOptions: {})",
        what.join("; ")
    ))
}

fn unconfined(pod: &Value) -> Option<String> {
    let who = setters(pod, |it| text(it, "/seccompProfile/type") == "Unconfined")?;
    Some(format!(
        "seccompProfile ({who} must not set securityContext.seccompProfile.type to \"Unconfined\")"
    ))
}

fn seccomp(pod: &Value) -> Option<String> {
    if windows(pod) {
        return None;
    }
    let good = |it: Option<&Value>| {
        matches!(
            it.map_or("", |it| text(it, "/seccompProfile/type")),
            "RuntimeDefault" | "Localhost"
        )
    };
    let unset = |it: Option<&Value>| it.is_none_or(|it| text(it, "/seccompProfile/type").is_empty());
    let wrong = setters(pod, |it| !unset(Some(it)) && !good(Some(it)));
    let own = pod.pointer("/spec/securityContext");
    let lacking = containers(pod).filter(|it| unset(it.get("securityContext")) && !good(own));
    let lacking = named("container", lacking.map(name));
    let types = "securityContext.seccompProfile.type to";
    let mut what = Vec::new();
    what.extend(wrong.map(|who| format!("{who} must not set {types} \"Unconfined\"")));
    if what.is_empty() || unset(own) {
        what.extend(lacking.map(|who| format!("pod or {who} must set {types} \"RuntimeDefault\" or \"Localhost\"")));
    }
    (!what.is_empty()).then(|| format!("seccompProfile ({})", what.join("; ")))
}

fn sysctls(pod: &Value) -> Option<String> {
    const SAFE: [&str; 11] = [
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_rmem",
    ];
    let names = items(pod, "/spec/securityContext/sysctls").iter().map(name);
    let unsafe_ones: Vec<&str> = names
        .filter(|it| !SAFE.contains(it) && *it != "net.ipv4.tcp_wmem")
        .collect();
    (!unsafe_ones.is_empty()).then(|| format!("forbidden sysctls ({})", unsafe_ones.join(", ")))
}

fn host_process(pod: &Value) -> Option<String> {
    let who = setters(pod, |it| flag(it, "/windowsOptions/hostProcess"))?;
    Some(format!(
        "hostProcess ({who} must not set securityContext.windowsOptions.hostProcess=true)"
    ))
}

fn escalation(pod: &Value) -> Option<String> {
    if windows(pod) {
        return None;
    }
    let wrong = |it: &&Value| {
        let set = it
            .pointer("/securityContext/allowPrivilegeEscalation")
            .and_then(Value::as_bool);
        set.unwrap_or(true)
    };
    let who = named("container", containers(pod).filter(wrong).map(name))?;
    Some(format!(
        "allowPrivilegeEscalation != false ({who} must set securityContext.allowPrivilegeEscalation=false)"
    ))
}

fn volume_types(pod: &Value) -> Option<String> {
    const ALLOWED: [&str; 9] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let kind = |volume: &Value| -> Option<String> {
        let fields = volume
            .as_object()?
            .iter()
            .filter(|(field, value)| *field != "name" && !value.is_null());
        let mut wrong = fields
            .map(|(field, _)| field)
            .filter(|it| !ALLOWED.contains(&it.as_str()));
        wrong.next().cloned()
    };
    let names = volumes_with(pod, |it| kind(it).is_some());
    let kinds: Vec<String> = items(pod, "/spec/volumes").iter().filter_map(kind).collect();
    let kinds: BTreeSet<&str> = kinds.iter().map(String::as_str).collect();
    let verb = if names.len() == 1 { "uses" } else { "use" };
    let volumes = named("volume", names)?;
    let plural = if kinds.len() == 1 { "" } else { "s" };
    Some(format!(
        "restricted volume types ({volumes} {verb} restricted volume type{plural} {})",
        quoted(&kinds)
    ))
}

fn root(pod: &Value) -> Option<String> {
    let set = |it: Option<&Value>| it?.get("runAsNonRoot")?.as_bool();
    let own = set(pod.pointer("/spec/securityContext"));
    let wrong = containers(pod).filter(|it| set(it.get("securityContext")) == Some(false));
    let wrong = named("container", wrong.map(name));
    let must = "securityContext.runAsNonRoot";
    if let Some(who) = wrong {
        let who = if own == Some(false) {
            format!("pod and {who}")
        } else {
            who
        };
        return Some(format!("runAsNonRoot != true ({who} must not set {must}=false)"));
    }
    let implicit = containers(pod).filter(|it| set(it.get("securityContext")).is_none());
    let implicit = named("container", implicit.map(name));
    match (own, implicit) {
        (Some(true), _) | (None, None) => None,
        (Some(false), _) => Some(format!("runAsNonRoot != true (pod must not set {must}=false)")),
        (None, Some(who)) => Some(format!("runAsNonRoot != true (pod or {who} must set {must}=true)")),
    }
}

fn root_user(pod: &Value) -> Option<String> {
    let who = setters(pod, |it| it.get("runAsUser").and_then(Value::as_i64) == Some(0))?;
    Some(format!("runAsUser=0 ({who} must not set runAsUser=0)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_baseline_check_says_what_is_wrong() {
        let one = |container: Value| json!({"spec": {"containers": [container]}});
        for (pod, phrase) in [
            (one(json!({"name": "a"})), ""),
            (
                json!({"spec": {"hostNetwork": true, "hostPID": true}}),
                "host namespaces (hostNetwork=true, hostPID=true)",
            ),
            (
                one(json!({"name": "a", "securityContext": {"capabilities": {"add": ["NET_ADMIN", "CHOWN"]}}})),
                "non-default capabilities (container \"a\" must not include \"NET_ADMIN\" in securityContext.capabilities.add)",
            ),
            (
                json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/"}}, {"name": "w", "hostPath": {}}]}}),
                "hostPath volumes (volumes \"v\", \"w\")",
            ),
            (
                one(json!({"name": "a", "ports": [{"hostPort": 80}, {"hostPort": 0}]})),
                "hostPort (container \"a\" uses hostPort 80)",
            ),
            (
                one(json!({"name": "a", "securityContext": {"procMount": "Unmasked"}})),
                "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")",
            ),
            (
                json!({"spec": {"securityContext": {"seLinuxOptions": {"type": "x", "user": "u"}}}}),
                "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"x\"; user may not be set)",
            ),
            (
                json!({"spec": {"securityContext": {"seccompProfile": {"type": "Unconfined"}}}}),
                "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")",
            ),
            (
                json!({"spec": {"securityContext": {"sysctls": [{"name": "kernel.msgmax"},
                {"name": "net.ipv4.tcp_syncookies"}]}}}),
                "forbidden sysctls (kernel.msgmax)",
            ),
            (
                json!({"spec": {"securityContext": {"windowsOptions": {"hostProcess": true}}}}),
                "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
            ),
            (
                one(json!({"name": "a", "livenessProbe": {"httpGet": {"host": "10.0.0.1"}}})),
                "probe or lifecycle host (container \"a\" uses probe or lifecycle hosts \"10.0.0.1\")",
            ),
            (
                json!({"metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/a": "unconfined"}}}),
                "forbidden AppArmor profile (annotation container.apparmor.security.beta.kubernetes.io/a=\"unconfined\")",
            ),
        ] {
            assert_eq!(baseline(&pod).join(", "), phrase, "{pod}");
        }
    }

    #[test]
    fn a_careful_pod_is_let_through() {
        let pod = json!({"spec": {
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [{"name": "a", "securityContext": {"allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}],
        }});
        assert_eq!(restricted(&pod), [""; 0]);
        for (pointer, value, phrase) in [
            (
                "/spec/securityContext/runAsNonRoot",
                json!(false),
                "runAsNonRoot != true (pod must not set",
            ),
            (
                "/spec/containers/0/securityContext/capabilities/add/0",
                json!("CHOWN"),
                "must not include \"CHOWN\"",
            ),
            (
                "/spec/volumes/0",
                json!({"name": "v", "nfs": {}}),
                "(volume \"v\" uses restricted volume type \"nfs\")",
            ),
            (
                "/spec/securityContext/seccompProfile/type",
                json!("Unconfined"),
                "must not set securityContext.seccompProfile",
            ),
            (
                "/spec/containers/0/securityContext",
                json!({}),
                "allowPrivilegeEscalation != false",
            ),
        ] {
            let mut pod = pod.clone();
            *pod.pointer_mut(pointer).unwrap() = value;
            let said = restricted(&pod).join(", ");
            assert!(said.contains(phrase), "{pointer}: {said}");
        }
    }
}
