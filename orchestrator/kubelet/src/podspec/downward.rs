//! The downward API: fields of the pod and resources of its containers, as text for variables and files.

use super::{Cause, Facts};
use crate::pod::{self, ContainerRef};
use fairlead_schema::quantity::Quantity;
use k8s_openapi::api::core::v1::{Pod, ResourceFieldSelector};
use std::{collections::BTreeMap, fmt::Write, net::IpAddr};

/// The value of `fieldRef.fieldPath` for an environment variable. `pod_ips` are the sandbox's addresses, the node's for
/// pods on its network.
///
/// # Errors
/// [`Cause::Malformed`] for a path that no variable can have.
pub fn field(pod: &Pod, path: &str, facts: &Facts, pod_ips: &[IpAddr]) -> Result<String, Cause> {
    let metadata = &pod.metadata;
    let spec = pod.spec.as_ref();
    let join = |all: &[IpAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    if let Some((map, key)) = path.strip_suffix("']").and_then(|it| it.split_once("['")) {
        let map = match map {
            "metadata.labels" => &metadata.labels,
            "metadata.annotations" => &metadata.annotations,
            _ => return Err(unknown(path)),
        };
        return Ok(map.as_ref().and_then(|it| it.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => pod::name(pod).to_owned(),
        "metadata.namespace" => pod::namespace(pod).to_owned(),
        "metadata.uid" => pod::uid(pod).to_owned(),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => spec.and_then(|it| it.service_account_name.clone()).unwrap_or_default(),
        "status.hostIP" => join(&facts.node_ips[..facts.node_ips.len().min(1)]),
        "status.hostIPs" => join(&facts.node_ips),
        "status.podIP" => join(&pod_ips[..pod_ips.len().min(1)]),
        "status.podIPs" => join(pod_ips),
        _ => return Err(unknown(path)),
    })
}

/// The value of `fieldRef.fieldPath` for a file: fields of the metadata alone, all labels or annotations too, which then
/// are lines of `key="value"`.
///
/// # Errors
/// [`Cause::Malformed`] for a path that no file can have: what a pod gets only as it starts would not be right later.
pub fn file(pod: &Pod, path: &str, facts: &Facts) -> Result<String, Cause> {
    let lines = |map: &Option<BTreeMap<String, String>>| {
        let lines = map
            .iter()
            .flatten()
            .map(|(key, value)| format!("{key}={}", quoted(value)));
        lines.collect::<Vec<_>>().join("\n")
    };
    match path {
        "metadata.labels" => Ok(lines(&pod.metadata.labels)),
        "metadata.annotations" => Ok(lines(&pod.metadata.annotations)),
        _ if path.starts_with("metadata.") => field(pod, path, facts, &[]),
        _ => Err(unknown(path)),
    }
}

fn unknown(path: &str) -> Cause {
    Cause::Malformed(format!("unsupported fieldPath: {path}"))
}

/// As Go's `%q`, which readers of those files undo.
fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for it in text.chars() {
        match it {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            it if it.is_ascii_control() => {
                let _ = write!(out, "\\x{:02x}", it as u32);
            }
            it if it.is_control() || it == '\u{feff}' => {
                let _ = write!(out, "\\u{:04x}", it as u32);
            }
            it => out.push(it),
        }
    }
    out.push('"');
    out
}

/// The value of a `resourceFieldRef`: the amount over the divisor, rounded up. A container without a limit has the pod's,
/// else what the node can give; one without a request has 0. `own` is the container that the variable is for.
///
/// # Errors
/// [`Cause::Malformed`] for an unknown container, resource or divisor; huge pages are not known here.
pub fn resource(
    pod: &Pod,
    own: Option<&str>,
    selector: &ResourceFieldSelector,
    facts: &Facts,
) -> Result<String, Cause> {
    let malformed = |text: String| Cause::Malformed(text);
    let name = selector.container_name.as_deref().filter(|it| !it.is_empty()).or(own);
    let name = name.ok_or_else(|| malformed("a file from a resourceFieldRef needs a containerName".to_owned()))?;
    let container = ContainerRef::named(pod, name).and_then(|it| Some(it.spec(pod)?.into_owned()));
    let container = container.ok_or_else(|| malformed(format!("container {name} not found")))?;
    let (limit, resource) = match selector.resource.split_once('.') {
        Some(("limits", it)) => (true, it),
        Some(("requests", it)) => (false, it),
        _ => {
            return Err(malformed(format!(
                "unsupported container resource: {}",
                selector.resource
            )));
        }
    };
    if !["cpu", "memory", "ephemeral-storage"].contains(&resource) {
        return Err(malformed(format!(
            "unsupported container resource: {}",
            selector.resource
        )));
    }
    let parse =
        |text: &str| Quantity::parse(text).ok_or_else(|| malformed(format!("{text:?} is not an amount of {resource}")));
    let resources = container.resources.as_ref();
    let of_pod = pod.spec.as_ref().and_then(|it| it.resources.as_ref());
    let amount = if limit {
        let own = resources.and_then(|it| it.limits.as_ref()?.get(resource));
        let own = own.or_else(|| of_pod.and_then(|it| it.limits.as_ref()?.get(resource)));
        own.map(|it| it.0.as_str())
            .or_else(|| facts.allocatable.get(resource).map(String::as_str))
    } else {
        resources.and_then(|it| Some(it.requests.as_ref()?.get(resource)?.0.as_str()))
    };
    let amount = parse(amount.unwrap_or("0"))?;
    let divisor = match &selector.divisor {
        Some(it) if !it.0.is_empty() => parse(&it.0)?,
        _ => Quantity::default(),
    };
    let one = divisor.sign().is_eq();
    let (amount, divisor) = match resource {
        "cpu" => (amount.millis(), if one { 1000 } else { divisor.millis() }),
        _ => (amount.whole(), if one { 1 } else { divisor.whole() }),
    };
    if divisor <= 0 {
        return Err(malformed(format!(
            "the divisor of {} must be above 0",
            selector.resource
        )));
    }
    Ok((amount / divisor + i64::from(amount % divisor > 0)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod_of;
    use serde_json::json;

    fn facts() -> Facts {
        Facts {
            node_name: "node-1".into(),
            node_ips: vec!["192.168.0.9".parse().unwrap(), "fd00::9".parse().unwrap()],
            allocatable: [("cpu", "1900m"), ("memory", "16Gi")]
                .map(|(a, b)| (a.to_owned(), b.to_owned()))
                .into(),
            ..Facts::default()
        }
    }

    #[test]
    fn fields_of_the_pod_are_values() {
        let mut pod = pod_of(json!({"containers": [], "serviceAccountName": "robot"}));
        pod.metadata.labels = Some([("app".to_owned(), "web".to_owned())].into());
        pod.metadata.annotations = Some([("example.com/a.b".to_owned(), "x".to_owned())].into());
        let ips = ["10.1.0.5".parse().unwrap(), "fd01::5".parse().unwrap()];
        for (path, want) in [
            ("metadata.name", "web"),
            ("metadata.namespace", "shop"),
            ("metadata.uid", "11111111-2222-3333-4444-555555555555"),
            ("metadata.labels['app']", "web"),
            ("metadata.labels['none']", ""),
            ("metadata.annotations['example.com/a.b']", "x"),
            ("spec.nodeName", "node-1"),
            ("spec.serviceAccountName", "robot"),
            ("status.hostIP", "192.168.0.9"),
            ("status.hostIPs", "192.168.0.9,fd00::9"),
            ("status.podIP", "10.1.0.5"),
            ("status.podIPs", "10.1.0.5,fd01::5"),
        ] {
            assert_eq!(field(&pod, path, &facts(), &ips).as_deref(), Ok(want), "{path}");
        }
        for path in [
            "metadata.labels",
            "metadata.labels['",
            "spec['x']",
            "status.phase",
            "",
            "metadata.labels[']",
        ] {
            let error = field(&pod, path, &facts(), &ips).unwrap_err();
            assert_eq!(error.to_string(), format!("unsupported fieldPath: {path}"));
        }
        assert_eq!(field(&pod, "status.podIP", &Facts::default(), &[]).as_deref(), Ok(""));
    }

    #[test]
    fn files_show_all_labels_quoted() {
        let mut pod = pod_of(json!({"containers": []}));
        pod.metadata.labels = Some([("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())].into());
        let hard = "say \"hi\"\\\n\tü\u{1}\u{85}";
        pod.metadata.annotations = Some([("k".to_owned(), hard.to_owned())].into());
        assert_eq!(file(&pod, "metadata.labels", &facts()).unwrap(), "a=\"1\"\nb=\"2\"");
        assert_eq!(
            file(&pod, "metadata.annotations", &facts()).unwrap(),
            "k=\"say \\\"hi\\\"\\\\\\n\\tü\\x01\\u0085\""
        );
        assert_eq!(file(&pod, "metadata.labels['a']", &facts()).as_deref(), Ok("1"));
        assert!(
            file(&pod, "status.podIP", &facts()).is_err(),
            "files have no address: it may change"
        );
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let pod = pod_of(json!({"containers": [
            {"name": "a", "resources": {"limits": {"cpu": "1500m", "memory": "100Mi"}, "requests": {"cpu": "0.25"}}},
            {"name": "b"},
        ]}));
        for (container, resource_name, divisor, want) in [
            ("a", "limits.cpu", None, "2"),
            ("a", "limits.cpu", Some("1m"), "1500"),
            ("a", "limits.cpu", Some("1"), "2"),
            ("a", "limits.cpu", Some("0"), "2"),
            ("a", "requests.cpu", Some("1m"), "250"),
            ("a", "requests.cpu", None, "1"),
            ("a", "limits.memory", None, "104857600"),
            ("a", "limits.memory", Some("1Mi"), "100"),
            ("a", "limits.memory", Some("1M"), "105"),
            ("a", "limits.memory", Some("1Gi"), "1"),
            ("a", "requests.memory", Some("1Mi"), "0"),
            ("a", "limits.ephemeral-storage", None, "0"),
            ("b", "limits.cpu", None, "2"),
            ("b", "limits.cpu", Some("1m"), "1900"),
            ("b", "limits.memory", Some("1Gi"), "16"),
            ("b", "requests.cpu", Some("1m"), "0"),
        ] {
            let selector = json!({"resource": resource_name, "divisor": divisor});
            let selector: ResourceFieldSelector = serde_json::from_value(selector).unwrap();
            let got = resource(&pod, Some(container), &selector, &facts());
            assert_eq!(got.as_deref(), Ok(want), "{container} {resource_name} {divisor:?}");
        }
        for (container, resource_name, divisor) in [
            ("c", "limits.cpu", "1"),
            ("a", "limits.hugepages-2Mi", "1"),
            ("a", "cpu", "1"),
            ("a", "limits.cpu", "-1"),
            ("a", "limits.cpu", "much"),
        ] {
            let selector = json!({"resource": resource_name, "divisor": divisor, "containerName": container});
            let selector: ResourceFieldSelector = serde_json::from_value(selector).unwrap();
            assert!(
                resource(&pod, None, &selector, &facts()).is_err(),
                "{container} {resource_name} {divisor}"
            );
        }
    }

    #[test]
    fn the_limit_of_the_pod_stands_for_that_of_a_container() {
        let pod = pod_of(json!({"containers": [{"name": "a"}], "resources": {"limits": {"memory": "1Gi"}}}));
        let selector = ResourceFieldSelector {
            resource: "limits.memory".into(),
            ..Default::default()
        };
        assert_eq!(
            resource(&pod, Some("a"), &selector, &facts()).as_deref(),
            Ok("1073741824")
        );
    }
}
