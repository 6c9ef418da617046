//! What is refused, in which words; and that nothing panics.

use super::*;
use crate::{defaults, resource::Registry, samples};
use proptest::prelude::*;
use serde_json::json;

fn complete(group: &str, plural: &str, mut object: Value) -> (std::sync::Arc<Resource>, Value) {
    let registry = Registry::builtin();
    let resource = registry
        .resource(group, "v1", plural)
        .or_else(|| registry.resource(group, "v2", plural))
        .unwrap();
    let meta = &mut object["metadata"];
    if meta["name"].is_null() {
        meta["name"] = "it".into();
    }
    if resource.scope == crate::Scope::Namespaced && meta["namespace"].is_null() {
        meta["namespace"] = "default".into();
    }
    defaults::apply(resource, &mut object);
    (std::sync::Arc::clone(resource), object)
}

fn told_on_create(group: &str, plural: &str, given: Value) -> Vec<String> {
    let (resource, new) = complete(group, plural, given);
    object(&resource, None, &new).iter().map(ToString::to_string).collect()
}

fn told_on_update(group: &str, plural: &str, old: Value, new: Value) -> Vec<String> {
    let (resource, old) = complete(group, plural, old);
    let (_, new) = complete(group, plural, new);
    assert_eq!(object(&resource, None, &old), [], "the old object is good");
    object(&resource, Some(&old), &new)
        .iter()
        .map(ToString::to_string)
        .collect()
}

/// The object with the value at the pointer replaced.
fn with(object: &Value, pointer: &str, value: Value) -> Value {
    let mut object = object.clone();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = object.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer}"));
    match parent {
        Value::Array(items) => items.push(value),
        parent => parent[name] = value,
    }
    object
}

fn pod() -> Value {
    json!({"spec": {
        "containers": [{
            "name": "a", "image": "i", "env": [{"name": "N", "value": "v"}],
            "ports": [{"name": "http", "containerPort": 80}],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "500m"}},
            "livenessProbe": {"httpGet": {"port": "http"}},
        }],
        "volumes": [{"name": "v", "configMap": {"name": "c"}}],
        "tolerations": [{"key": "k", "operator": "Exists"}],
    }})
}

fn deployment() -> Value {
    json!({"spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "a", "image": "i"}]}},
    }})
}

#[test]
fn good_objects_pass() {
    let template = deployment()["spec"].clone();
    let job = json!({"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "i"}]}}});
    for (group, plural, object) in [
        ("", "pods", pod()),
        ("apps", "deployments", deployment()),
        ("apps", "replicasets", deployment()),
        ("apps", "daemonsets", deployment()),
        (
            "apps",
            "statefulsets",
            with(&deployment(), "/spec/serviceName", "s".into()),
        ),
        (
            "",
            "replicationcontrollers",
            json!({"spec": {"template": template["template"]}}),
        ),
        ("batch", "jobs", json!({"spec": job})),
        (
            "batch",
            "cronjobs",
            json!({"spec": {"schedule": "*/5 * * * *", "jobTemplate": {"spec": job}}}),
        ),
        (
            "",
            "services",
            json!({"spec": {"ports": [{"port": 80}], "selector": {"a": "b"}}}),
        ),
        ("", "services", json!({"spec": {"clusterIP": "None"}})),
        (
            "",
            "services",
            json!({"spec": {"type": "ExternalName", "externalName": "example.com"}}),
        ),
        (
            "",
            "configmaps",
            json!({"data": {"a": "b"}, "binaryData": {"c": "YQ=="}}),
        ),
        ("", "secrets", json!({"stringData": {"a": "b"}})),
        ("", "namespaces", json!({})),
        (
            "",
            "nodes",
            json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}}),
        ),
        ("", "serviceaccounts", json!({})),
        (
            "",
            "events",
            json!({"involvedObject": {"kind": "Pod", "namespace": "default"}}),
        ),
        (
            "",
            "persistentvolumes",
            json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}}}),
        ),
        (
            "",
            "persistentvolumeclaims",
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
        ),
        (
            "",
            "resourcequotas",
            json!({"spec": {"hard": {"pods": "3", "requests.cpu": "1"}}}),
        ),
        (
            "",
            "limitranges",
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}}]}}),
        ),
        (
            "networking.k8s.io",
            "ingresses",
            json!({"spec": {"rules": [{"host": "*.example.com", "http": {"paths": [
                {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {"number": 80}}}}]}}]}}),
        ),
        (
            "networking.k8s.io",
            "networkpolicies",
            json!({"spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
                "ports": [{"port": 80, "endPort": 90}]}]}}),
        ),
        (
            "rbac.authorization.k8s.io",
            "clusterroles",
            json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]},
                {"verbs": ["get"], "nonResourceURLs": ["/healthz"]}]}),
        ),
        (
            "rbac.authorization.k8s.io",
            "rolebindings",
            json!({"roleRef": {"kind": "ClusterRole", "name": "system:x"}, "subjects": [
                {"kind": "Group", "name": "system:masters"},
                {"kind": "ServiceAccount", "name": "s", "namespace": "n"}]}),
        ),
        (
            "autoscaling",
            "horizontalpodautoscalers",
            json!({"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "maxReplicas": 3}}),
        ),
        (
            "policy",
            "poddisruptionbudgets",
            json!({"spec": {"minAvailable": "50%", "selector": {}}}),
        ),
        ("storage.k8s.io", "storageclasses", json!({"provisioner": "p"})),
        (
            "coordination.k8s.io",
            "leases",
            json!({"spec": {"holderIdentity": "x", "leaseDurationSeconds": 15}}),
        ),
        (
            "discovery.k8s.io",
            "endpointslices",
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.1.0.1"]}], "ports": [{"port": 80}]}),
        ),
        (
            "apiextensions.k8s.io",
            "customresourcedefinitions",
            json!({"metadata": {"name": "foos.example.com"}, "spec": {
                "group": "example.com", "scope": "Namespaced", "names": {"plural": "foos", "kind": "Foo"},
                "versions": [{"name": "v1", "served": true, "storage": true,
                    "schema": {"openAPIV3Schema": {"type": "object"}}}]}}),
        ),
        (
            "admissionregistration.k8s.io",
            "validatingwebhookconfigurations",
            json!({"webhooks": [{"name": "a.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "clientConfig": {"service": {"namespace": "n", "name": "s"}}, "rules": [{"operations": ["CREATE"],
                "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["pods"]}]}]}),
        ),
        ("scheduling.k8s.io", "priorityclasses", json!({"value": 5})),
        ("node.k8s.io", "runtimeclasses", json!({"handler": "h"})),
        (
            "flowcontrol.apiserver.k8s.io",
            "prioritylevelconfigurations",
            json!({"spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": {}}}}}),
        ),
    ] {
        assert_eq!(told_on_create(group, plural, object), [""; 0], "{plural}");
    }
}

#[test]
fn metadata() {
    let label = "metadata.labels: Invalid value: \"a b\": a valid label must be an empty string or consist of alphanumeric \
                 characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or \
                 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
    assert_eq!(
        told_on_create("", "configmaps", json!({"metadata": {"labels": {"x": "a b"}}})),
        [label]
    );
    let big = json!({"metadata": {"annotations": {"x": "y".repeat(256 * 1024)}}});
    assert_eq!(
        told_on_create("", "configmaps", big),
        ["metadata.annotations: Too long: may not be more than 262144 bytes"]
    );
    assert_eq!(
        told_on_create("", "nodes", json!({"metadata": {"namespace": "n"}})),
        ["metadata.namespace: Forbidden: not allowed on this type"]
    );
    let owners = json!([{"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "", "controller": true}]);
    assert_eq!(
        told_on_create("", "configmaps", json!({"metadata": {"ownerReferences": owners}})),
        ["metadata.ownerReferences.uid: Invalid value: \"\": must not be empty"]
    );
    let (old, new) = (json!({"metadata": {"uid": "1"}}), json!({"metadata": {"uid": "2"}}));
    assert_eq!(
        told_on_update("", "configmaps", old, new),
        ["metadata.uid: Invalid value: \"2\": field is immutable"]
    );
    let gone = json!({"metadata": {"deletionTimestamp": "2024-01-01T00:00:00Z", "finalizers": ["a/b"]}});
    let more = with(&gone, "/metadata/finalizers/-", "c/d".into());
    assert_eq!(
        told_on_update("", "configmaps", gone, more),
        [
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new \
         finalizers [\"c/d\"]"
        ]
    );
}

#[test]
fn pods() {
    let first = "/spec/containers/0";
    for (at, value, want) in [
        ("/spec/containers", json!([]), "spec.containers: Required value"),
        (
            "/spec/restartPolicy",
            json!("No"),
            "spec.restartPolicy: Unsupported value: \"No\": supported values: \"Always\", \"Never\", \"OnFailure\"",
        ),
        (
            "/spec/containers/-",
            json!({"name": "a", "image": "i"}),
            "spec.containers[1].name: Duplicate value: \"a\"",
        ),
        (
            "/spec/containers/-",
            json!({"name": "b"}),
            "spec.containers[1].image: Required value",
        ),
        (
            &format!("{first}/volumeMounts/-"),
            json!({"name": "w", "mountPath": "/w"}),
            "spec.containers[0].volumeMounts[1].name: Not found: \"w\"",
        ),
        (
            &format!("{first}/volumeMounts/-"),
            json!({"name": "v", "mountPath": "/v"}),
            "spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/v\": must be unique",
        ),
        (
            &format!("{first}/ports/-"),
            json!({"containerPort": 0}),
            "spec.containers[0].ports[1].containerPort: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            &format!("{first}/resources/requests/cpu"),
            json!("2"),
            "spec.containers[0].resources.requests[cpu]: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ),
        (
            &format!("{first}/resources/requests/cpu"),
            json!("x"),
            "spec.containers[0].resources.requests[cpu]: Invalid value: \"x\": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (
            &format!("{first}/env/-"),
            json!({"name": "a=b"}),
            "spec.containers[0].env[1].name: Invalid value: \"a=b\": a valid environment variable name must consist only of printable ASCII characters other than '='",
        ),
        (
            &format!("{first}/livenessProbe"),
            json!({}),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
        (
            "/spec/volumes/-",
            json!({"name": "w", "emptyDir": {}, "hostPath": {"path": "/x"}}),
            "spec.volumes[1].hostPath: Forbidden: may not specify more than 1 volume type",
        ),
        (
            "/spec/volumes/-",
            json!({"name": "v", "emptyDir": {}}),
            "spec.volumes[1].name: Duplicate value: \"v\"",
        ),
        (
            "/spec/tolerations/-",
            json!({"key": "k", "operator": "Equal", "tolerationSeconds": 3}),
            "spec.tolerations[1].effect: Invalid value: null: effect must be 'NoExecute' when `tolerationSeconds` is set",
        ),
        (
            "/spec/terminationGracePeriodSeconds",
            json!(-1),
            "spec.terminationGracePeriodSeconds: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            "/spec/hostNetwork",
            json!("yes"),
            "spec.hostNetwork: Invalid value: \"string\": must be of type boolean: \"yes\"",
        ),
    ] {
        assert_eq!(told_on_create("", "pods", with(&pod(), at, value)), [want], "{at}");
    }
}

#[test]
fn pods_change_little() {
    let image = with(&pod(), "/spec/containers/0/image", "j".into());
    assert_eq!(told_on_update("", "pods", pod(), image), [""; 0]);
    let toleration = with(&pod(), "/spec/tolerations/-", json!({"key": "l", "operator": "Exists"}));
    assert_eq!(told_on_update("", "pods", pod(), toleration.clone()), [""; 0]);
    for new in [
        with(&pod(), "/spec/nodeName", "n".into()),
        with(&pod(), "/spec/containers/0/env", json!([])),
    ] {
        let told = told_on_update("", "pods", pod(), new);
        assert!(
            told.len() == 1 && told[0].starts_with("spec: Forbidden: pod updates may not change fields other than")
        );
    }
    assert_eq!(told_on_update("", "pods", toleration, pod()).len(), 1);
    let (resource, old) = complete("", "pods", pod());
    let (_, bound) = complete("", "pods", with(&pod(), "/spec/nodeName", "n".into()));
    assert_eq!(subresource(&resource, "binding", &old, &bound), []);
    let resized = with(&pod(), "/spec/containers/0/resources", json!({"limits": {"cpu": "2"}}));
    let (_, resized) = complete("", "pods", resized);
    assert_eq!(subresource(&resource, "resize", &old, &resized), []);
    assert_eq!(subresource(&resource, "resize", &old, &bound).len(), 1);
    let debug = json!([{"name": "d", "image": "i"}]);
    let (_, debugged) = complete("", "pods", with(&pod(), "/spec/ephemeralContainers", debug));
    assert_eq!(subresource(&resource, "ephemeralcontainers", &old, &debugged), []);
    assert_eq!(subresource(&resource, "ephemeralcontainers", &debugged, &old).len(), 1);
}

#[test]
fn workloads() {
    let labels =
        "spec.template.metadata.labels: Invalid value: {\"a\":\"c\"}: `selector` does not match template `labels`";
    for (at, value, want) in [
        ("/spec/template/metadata/labels", json!({"a": "c"}), labels),
        ("/spec/selector", json!(null), "spec.selector: Required value"),
        (
            "/spec/selector",
            json!({"matchLabels": {}}),
            "spec.selector: Invalid value: {\"matchLabels\":{}}: empty selector is invalid for deployment",
        ),
        (
            "/spec/replicas",
            json!(-1),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            "/spec/template/spec/restartPolicy",
            json!("Never"),
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
        ),
        (
            "/spec/strategy",
            json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}),
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
        ),
        (
            "/spec/strategy",
            json!({"type": "Recreate", "rollingUpdate": {}}),
            "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
        ),
        (
            "/spec/replicas",
            json!("3"),
            "spec.replicas: Invalid value: \"string\": must be of type integer: \"3\"",
        ),
    ] {
        let told = told_on_create("apps", "deployments", with(&deployment(), at, value));
        assert!(told.contains(&want.to_owned()), "{at}: {told:?}");
    }
    let mut other = with(&deployment(), "/spec/selector/matchLabels/c", "d".into());
    other["spec"]["template"]["metadata"]["labels"]["c"] = "d".into();
    assert_eq!(
        told_on_update("apps", "deployments", deployment(), other),
        ["spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"b\",\"c\":\"d\"}}: field is immutable"]
    );
    let service = with(&deployment(), "/spec/serviceName", "s".into());
    assert_eq!(told_on_update("apps", "statefulsets", deployment(), service).len(), 1);
    let mut claiming = with(
        &deployment(),
        "/spec/volumeClaimTemplates",
        json!([{"metadata": {"name": "data"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]),
    );
    claiming["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "data", "mountPath": "/d"}]);
    assert_eq!(told_on_create("apps", "statefulsets", claiming), [""; 0]);
    let scaled = with(&deployment(), "/spec/replicas", 3.into());
    assert_eq!(told_on_update("apps", "statefulsets", deployment(), scaled), [""; 0]);
    let job = json!({"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "i"}]}}}});
    assert_eq!(
        told_on_create(
            "batch",
            "jobs",
            with(&job, "/spec/template/spec/restartPolicy", "Always".into())
        ),
        ["spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""]
    );
    let image = with(
        &job,
        "/spec/template/spec/containers",
        json!([{"name": "a", "image": "j"}]),
    );
    assert_eq!(told_on_update("batch", "jobs", job.clone(), image).len(), 1);
    let suspended = with(&job, "/spec/suspend", true.into());
    let placed = with(&suspended, "/spec/template/spec/nodeSelector", json!({"a": "b"}));
    assert_eq!(told_on_update("batch", "jobs", suspended, placed), [""; 0]);
}

#[test]
fn services() {
    let service = json!({"spec": {"ports": [{"port": 80, "name": "a"}]}});
    for (at, value, want) in [
        ("/spec/ports", json!([]), "spec.ports: Required value"),
        (
            "/spec/ports/-",
            json!({"port": 81}),
            "spec.ports[1].name: Required value",
        ),
        (
            "/spec/ports/-",
            json!({"port": 81, "name": "a"}),
            "spec.ports[1].name: Duplicate value: \"a\"",
        ),
        (
            "/spec/ports/-",
            json!({"port": 80, "name": "b"}),
            "spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}",
        ),
        (
            "/spec/ports",
            json!([{"port": 80, "nodePort": 30000}]),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            "/spec/type",
            json!("X"),
            "spec.type: Unsupported value: \"X\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
        ),
        (
            "/spec/externalIPs",
            json!(["127.0.0.1"]),
            "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
        ),
        ("/spec/type", json!("ExternalName"), "spec.externalName: Required value"),
        (
            "/metadata",
            json!({"name": "1a"}),
            "metadata.name: Invalid value: \"1a\": a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')",
        ),
    ] {
        assert_eq!(
            told_on_create("", "services", with(&service, at, value)),
            [want],
            "{at}"
        );
    }
    let old = with(&service, "/spec/clusterIP", "10.96.0.1".into());
    let new = with(&service, "/spec/clusterIP", "10.96.0.2".into());
    assert_eq!(
        told_on_update("", "services", old, new),
        ["spec.clusterIPs[0]: Invalid value: [\"10.96.0.2\"]: may not change once set"]
    );
}

#[test]
fn other_kinds() {
    for (group, plural, given, want) in [
        (
            "",
            "configmaps",
            json!({"data": {"a/b": ""}}),
            "data[a/b]: Invalid value: \"a/b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
        ),
        (
            "",
            "secrets",
            json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}),
            "data[tls.key]: Required value",
        ),
        (
            "",
            "persistentvolumeclaims",
            json!({"spec": {"accessModes": ["ReadWriteOnce"]}}),
            "spec.resources.requests[storage]: Required value",
        ),
        (
            "networking.k8s.io",
            "ingresses",
            json!({"spec": {"defaultBackend": {"service": {"name": "s"}}}}),
            "spec.defaultBackend.service: Required value: port name or number is required",
        ),
        (
            "rbac.authorization.k8s.io",
            "roles",
            json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}]}),
            "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs",
        ),
        (
            "rbac.authorization.k8s.io",
            "clusterroles",
            json!({"rules": [{"apiGroups": [""], "resources": ["x"]}]}),
            "rules[0].verbs: Required value: verbs must contain at least one value",
        ),
        (
            "policy",
            "poddisruptionbudgets",
            json!({"spec": {"minAvailable": "x"}}),
            "spec.minAvailable: Invalid value: \"x\": a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
        ),
        (
            "scheduling.k8s.io",
            "priorityclasses",
            json!({"value": 2000000000}),
            "value: Forbidden: maximum allowed value of a user defined priority is 1000000000",
        ),
        (
            "batch",
            "cronjobs",
            json!({"spec": {"schedule": "x", "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "i"}]}}}}}}),
            "spec.schedule: Invalid value: \"x\": expected exactly 5 fields, found 1: [\"x\"]",
        ),
    ] {
        assert_eq!(told_on_create(group, plural, given), [want], "{plural}");
    }
    let frozen = json!({"immutable": true, "data": {"a": "b"}});
    assert_eq!(
        told_on_update("", "configmaps", frozen.clone(), with(&frozen, "/data/a", "c".into())),
        ["data: Forbidden: field is immutable when `immutable` is set"]
    );
    assert_eq!(
        told_on_update("", "secrets", json!({}), json!({"type": "x"})),
        ["type: Invalid value: \"x\": field is immutable"]
    );
    let binding = json!({"roleRef": {"kind": "Role", "name": "a"}});
    let other = with(&binding, "/roleRef/name", "b".into());
    let told = told_on_update("rbac.authorization.k8s.io", "rolebindings", binding, other);
    assert!(
        told.len() == 1 && told[0].ends_with("cannot change roleRef"),
        "{told:?}"
    );
    let claim = json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    assert_eq!(
        told_on_update(
            "",
            "persistentvolumeclaims",
            claim.clone(),
            with(&claim, "/spec/volumeName", "v".into())
        ),
        [""; 0]
    );
    let class = with(&claim, "/spec/accessModes", json!(["ReadOnlyMany"]));
    assert_eq!(told_on_update("", "persistentvolumeclaims", claim, class).len(), 1);
    let crd = json!({"metadata": {"name": "foos.example.com"}, "spec": {"group": "example.com", "scope": "Cluster",
        "names": {"plural": "bars", "kind": "Bar"}, "versions": [{"name": "v1", "schema": {"openAPIV3Schema": {}}}]}});
    assert_eq!(
        told_on_create("apiextensions.k8s.io", "customresourcedefinitions", crd).len(),
        2
    );
}

#[test]
fn complaints_are_bounded() {
    let labels: serde_json::Map<String, Value> = (0..2000).map(|it| (format!("-{it}"), "".into())).collect();
    assert_eq!(
        told_on_create("", "configmaps", json!({"metadata": {"labels": labels}})).len(),
        MAX_CAUSES
    );
    let long = told_on_create(
        "",
        "configmaps",
        json!({"metadata": {"labels": {"a": "ü".repeat(100_000)}}}),
    );
    assert!(long.iter().all(|it| it.len() < 4096));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn nothing_panics(junk in prop::collection::vec(samples::any_json(), 1..6), mut seed in any::<u64>()) {
        let registry = Registry::builtin();
        for resource in registry.resources() {
            let old = samples::full(&resource.types, resource.ty, 10, &mut seed);
            let mut new = old.clone();
            samples::mutilate(&mut new, &junk, &mut seed);
            for (old, new) in [(None, &old), (None, &new), (Some(&old), &new), (Some(&new), &old), (Some(&new), &junk[0])] {
                object(resource, old, new);
                for name in ["status", "resize", "ephemeralcontainers"] {
                    subresource(resource, name, old.unwrap_or(new), new);
                }
            }
            prop_assert!(same(&old, &old) && same(&new, &new));
        }
    }
}
