//! `PodSecurity`: the levels baseline and restricted of the Pod Security Standards, by labels of the namespace.

mod checks;

use super::{Operation, Plugin, Request};
use crate::{
    objects::{label, text},
    status::{Cause, Status},
};
use serde_json::Value;

pub(super) struct PodSecurity;

/// A level of the standards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "privileged" => Some(Self::Privileged),
            "baseline" => Some(Self::Baseline),
            "restricted" => Some(Self::Restricted),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

const PREFIX: &str = "pod-security.kubernetes.io/";
const MODES: [&str; 3] = ["enforce", "audit", "warn"];

/// Level and version of one mode of a namespace. A level that nobody knows counts as the strictest, for a typo must not
/// open a namespace.
fn policy(namespace: &Value, mode: &str) -> (Level, String) {
    let level = label(namespace, &format!("{PREFIX}{mode}"));
    let level = level.map_or(Level::Privileged, |it| Level::parse(it).unwrap_or(Level::Restricted));
    let version = label(namespace, &format!("{PREFIX}{mode}-version"));
    (level, version.unwrap_or("latest").to_owned())
}

/// What a pod does that a level does not allow, as upstream puts it; `None` if nothing.
fn violations(level: Level, pod: &Value) -> Option<String> {
    let all = match level {
        Level::Privileged => Vec::new(),
        Level::Baseline => checks::baseline(pod),
        Level::Restricted => checks::restricted(pod),
    };
    (!all.is_empty()).then(|| all.join(", "))
}

/// Where a resource has the template of its pods.
fn template(resource: &str) -> Option<&'static str> {
    match resource {
        "replicationcontrollers" | "replicasets" | "deployments" | "statefulsets" | "daemonsets" | "jobs" => {
            Some("/spec/template")
        }
        "cronjobs" => Some("/spec/jobTemplate/spec/template"),
        "podtemplates" => Some("/template"),
        _ => None,
    }
}

impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn validate(&self, request: &Request<'_>, object: Option<&Value>) -> Result<(), Status> {
        let attributes = request.attributes;
        let Some(object) = object else { return Ok(()) };
        if attributes.is("", "namespaces", "") {
            return namespace(request, object);
        }
        if attributes.namespace.is_empty() {
            return Ok(());
        }
        let pods = attributes.is("", "pods", "") || attributes.is("", "pods", "ephemeralcontainers");
        let pod = match template(&attributes.resource.plural) {
            _ if pods => object,
            Some(pointer) if attributes.subresource.is_empty() => match object.pointer(pointer) {
                Some(template) => template,
                None => return Ok(()),
            },
            _ => return Ok(()),
        };
        let unchanged = attributes.operation == Operation::Update
            && request
                .old
                .is_some_and(|old| pods && old.get("spec") == object.get("spec"));
        if unchanged {
            return Ok(());
        }
        let Some(namespace) = request.objects.get("core/namespaces", "", attributes.namespace) else {
            return Ok(());
        };
        let (enforced, version) = policy(&namespace, "enforce");
        if pods && let Some(why) = violations(enforced, pod) {
            return Err(request.forbidden(format!("violates PodSecurity \"{}:{version}\": {why}", enforced.name())));
        }
        let (warned, version) = policy(&namespace, "warn");
        if let Some(why) = violations(warned, pod) {
            request.warn(format!(
                "would violate PodSecurity \"{}:{version}\": {why}",
                warned.name()
            ));
        }
        Ok(())
    }
}

/// Labels of a namespace must make sense; a stricter one warns of the pods that are there already.
fn namespace(request: &Request<'_>, namespace: &Value) -> Result<(), Status> {
    let name = text(namespace, "/metadata/name");
    let mut causes = Vec::new();
    for mode in MODES {
        let key = format!("{PREFIX}{mode}");
        let changed = request.old.is_none_or(|old| label(old, &key) != label(namespace, &key));
        let Some(level) = label(namespace, &key).filter(|_| changed) else {
            continue;
        };
        if Level::parse(level).is_none() {
            causes.push(Cause {
                reason: "FieldValueInvalid",
                message: format!("Invalid value: {level:?}: must be one of privileged, baseline, restricted"),
                field: format!("metadata.labels[{key}]"),
            });
        }
    }
    if !causes.is_empty() {
        return Err(Status::invalid_kind("", "Namespace", name, causes));
    }
    let (level, version) = policy(namespace, "enforce");
    let Some(old) = request.old else { return Ok(()) };
    if level <= policy(old, "enforce").0 {
        return Ok(());
    }
    let mut found: Vec<String> = Vec::new();
    for pod in request.objects.list("core/pods", Some(name)) {
        if let Some(why) = violations(level, &pod) {
            found.push(format!("{}: {why}", text(&pod, "/metadata/name")));
        }
    }
    if !found.is_empty() {
        request.warn(format!(
            "existing pods in namespace {name:?} violate the new PodSecurity enforce level \"{}:{version}\"",
            level.name()
        ));
        found.into_iter().for_each(|it| request.warn(it));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{admission::fixture::Case, objects::fake::Map};
    use serde_json::json;

    #[allow(clippy::needless_pass_by_value)] // literals read better by value
    fn world(labels: Value) -> Map {
        let mut world = Map::default();
        world.put("core/namespaces", json!({"metadata": {"name": "ns", "labels": labels}}));
        world
    }

    #[allow(clippy::needless_pass_by_value)] // literals read better by value
    fn pod(spec: Value) -> Value {
        json!({"metadata": {"namespace": "ns", "name": "p"}, "spec": spec})
    }

    #[test]
    fn the_namespace_decides() {
        let privileged = json!({"containers": [{"name": "c", "securityContext": {"privileged": true}}]});
        let said = "pods \"p\" is forbidden: violates PodSecurity \"baseline:latest\": privileged (container \"c\" must \
            not set securityContext.privileged=true)";
        for (labels, refused, warned) in [
            (json!({}), "", ""),
            (json!({"pod-security.kubernetes.io/enforce": "privileged"}), "", ""),
            (json!({"pod-security.kubernetes.io/enforce": "baseline"}), said, ""),
            (
                json!({"pod-security.kubernetes.io/enforce": "tpyo"}),
                "restricted:latest",
                "",
            ),
            (
                json!({"pod-security.kubernetes.io/warn": "baseline", "pod-security.kubernetes.io/warn-version": "v1.30"}),
                "",
                "would violate PodSecurity \"baseline:v1.30\": privileged",
            ),
        ] {
            match Case::create(&world(labels.clone()), "pods", pod(privileged.clone())).run(&PodSecurity) {
                Ok((_, warnings)) => {
                    assert!(refused.is_empty(), "{labels}");
                    let text = warnings.join("\n");
                    assert!(
                        text.contains(warned) && text.is_empty() == warned.is_empty(),
                        "{labels}: {text}"
                    );
                }
                Err(it) => assert!(!refused.is_empty() && it.message.contains(refused), "{labels}: {it}"),
            }
        }
    }

    #[test]
    fn restricted_reads_as_upstream() {
        let world = world(json!({"pod-security.kubernetes.io/enforce": "restricted"}));
        let refused = Case::create(&world, "pods", pod(json!({"containers": [{"name": "nginx"}]}))).run(&PodSecurity);
        assert_eq!(
            refused.unwrap_err().message,
            "pods \"p\" is forbidden: violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false \
             (container \"nginx\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities \
             (container \"nginx\" must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or \
             container \"nginx\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"nginx\" \
             must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
    }

    #[test]
    fn templates_are_warned_about_not_refused() {
        let world = world(json!({"pod-security.kubernetes.io/enforce": "baseline",
            "pod-security.kubernetes.io/warn": "baseline"}));
        let deployment = json!({"metadata": {"namespace": "ns", "name": "d"}, "spec": {"template": {"spec":
            {"hostNetwork": true}}}});
        let (_, warnings) = Case::create(&world, "deployments", deployment)
            .run(&PodSecurity)
            .unwrap();
        assert_eq!(
            warnings,
            ["would violate PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)"]
        );
    }

    #[test]
    fn labels_must_make_sense_and_tell_of_old_pods() {
        let mut world = world(json!({}));
        world.put("core/pods", pod(json!({"hostPID": true})));
        let namespace = |level: &str| {
            json!({"metadata": {"name": "ns", "labels":
            {"pod-security.kubernetes.io/enforce": level}}})
        };
        let update = |level: &str| Case {
            operation: Operation::Update,
            old: Some(namespace("privileged")),
            ..Case::create(&world, "namespaces", namespace(level))
        };
        let (_, warnings) = update("baseline").run(&PodSecurity).unwrap();
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert_eq!(warnings[1], "p: host namespaces (hostPID=true)");
        assert_eq!(update("high").run(&PodSecurity).unwrap_err().code, 422);
    }
}
