//! Golden values of the main kinds, and what holds for all.

use super::*;
use crate::{resource::Registry, samples};
use proptest::prelude::*;
use serde_json::json;

fn defaulted(group: &str, version: &str, plural: &str, mut object: Value) -> Value {
    let registry = Registry::builtin();
    apply(registry.resource(group, version, plural).unwrap(), &mut object);
    object
}

#[test]
fn a_pod() {
    let pod = defaulted(
        "",
        "v1",
        "pods",
        json!({"metadata": {"name": "a"}, "spec": {
            "hostNetwork": true,
            "containers": [{
                "name": "c",
                "image": "registry:5000/nginx",
                "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}},
                "livenessProbe": {"httpGet": {"port": 80}, "timeoutSeconds": 0},
                "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            }],
            "volumes": [
                {"name": "e"},
                {"name": "s", "secret": {"secretName": "s"}},
                {"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
                {"name": "h", "hostPath": {"path": "/x"}},
            ],
        }}),
    );
    let want = json!({"metadata": {"name": "a"}, "spec": {
        "hostNetwork": true,
        "containers": [{
            "name": "c",
            "image": "registry:5000/nginx",
            "imagePullPolicy": "Always",
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File",
            "ports": [{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}],
            "resources": {
                "limits": {"cpu": "1", "memory": "1Gi"},
                "requests": {"cpu": "500m", "memory": "1Gi"},
            },
            "livenessProbe": {
                "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
                "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3,
            },
            "env": [{"name": "N", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}}],
        }],
        "volumes": [
            {"name": "e", "emptyDir": {}},
            {"name": "s", "secret": {"secretName": "s", "defaultMode": 420}},
            {"name": "p", "projected": {
                "defaultMode": 420,
                "sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}}],
            }},
            {"name": "h", "hostPath": {"path": "/x", "type": ""}},
        ],
        "dnsPolicy": "ClusterFirst",
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "schedulerName": "default-scheduler",
        "securityContext": {},
        "enableServiceLinks": true,
    }, "status": {"phase": "Pending"}});
    assert_eq!(pod, want);
}

#[test]
fn a_deployment() {
    let got = defaulted(
        "apps",
        "v1",
        "deployments",
        json!({"spec": {"replicas": 0, "template": {"spec": {"containers": [{"name": "c", "image": "a:1",
            "resources": {"limits": {"cpu": "1"}}}]}}}}),
    );
    let want = json!({"spec": {
        "replicas": 0,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}},
        "revisionHistoryLimit": 10,
        "progressDeadlineSeconds": 600,
        "template": {"spec": {
            "containers": [{
                "name": "c", "image": "a:1", "imagePullPolicy": "IfNotPresent",
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "resources": {"limits": {"cpu": "1"}},
            }],
            "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "terminationGracePeriodSeconds": 30,
            "schedulerName": "default-scheduler", "securityContext": {},
        }},
    }});
    assert_eq!(got, want);
    let got = defaulted(
        "apps",
        "v1",
        "deployments",
        json!({"spec": {"strategy": {"type": "Recreate"}}}),
    );
    assert_eq!(got["spec"]["strategy"], json!({"type": "Recreate"}));
}

#[test]
fn services() {
    let got = defaulted("", "v1", "services", json!({"spec": {"ports": [{"port": 80}]}}));
    let want = json!({"spec": {
        "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
        "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
    }});
    assert_eq!(got, want);
    let got = defaulted(
        "",
        "v1",
        "services",
        json!({"spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP", "ports": []}}),
    );
    let want = json!({"spec": {
        "type": "LoadBalancer", "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
        "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster",
        "allocateLoadBalancerNodePorts": true, "ports": [],
    }});
    assert_eq!(got, want);
    let got = defaulted("", "v1", "services", json!({"spec": {"type": "ExternalName"}}));
    assert_eq!(
        got,
        json!({"spec": {"type": "ExternalName", "sessionAffinity": "None"}})
    );
}

#[test]
fn jobs() {
    let got = defaulted(
        "batch",
        "v1",
        "jobs",
        json!({"spec": {"template": {"metadata": {"labels": {"a": "b"}}}}}),
    );
    let want = json!({"metadata": {"labels": {"a": "b"}}, "spec": {
        "completions": 1, "parallelism": 1, "backoffLimit": 6, "completionMode": "NonIndexed", "suspend": false,
        "podReplacementPolicy": "TerminatingOrFailed", "template": {"metadata": {"labels": {"a": "b"}}},
    }});
    assert_eq!(got, want);
    // A work queue: parallelism alone leaves completions open.
    let got = defaulted(
        "batch",
        "v1",
        "jobs",
        json!({"spec": {"parallelism": 3, "podFailurePolicy": {"rules": []}}}),
    );
    assert_eq!(got["spec"].get("completions"), None);
    assert_eq!(got["spec"]["podReplacementPolicy"], "Failed");
}

#[test]
fn small_kinds() {
    for (group, plural, given, want) in [
        (
            "",
            "secrets",
            json!({"data": {"a": "YQ==", "b": "Yg=="}, "stringData": {"b": "new"}}),
            json!({"type": "Opaque", "data": {"a": "YQ==", "b": "bmV3"}}),
        ),
        (
            "",
            "namespaces",
            json!({"metadata": {"name": "n"}}),
            json!({
                "metadata": {"name": "n", "labels": {"kubernetes.io/metadata.name": "n"}},
                "status": {"phase": "Active"},
            }),
        ),
        (
            "networking.k8s.io",
            "networkpolicies",
            json!({"spec": {"podSelector": {}, "egress": [{"ports": [{"port": 1}]}]}}),
            json!({"spec": {
                "podSelector": {}, "egress": [{"ports": [{"port": 1, "protocol": "TCP"}]}],
                "policyTypes": ["Ingress", "Egress"],
            }}),
        ),
        (
            "rbac.authorization.k8s.io",
            "rolebindings",
            json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User"}, {"kind": "ServiceAccount"}]}),
            json!({
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
                "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io"}, {"kind": "ServiceAccount"}],
            }),
        ),
        (
            "apiextensions.k8s.io",
            "customresourcedefinitions",
            json!({"spec": {"names": {"kind": "Foo"}}}),
            json!({"spec": {
                "names": {"kind": "Foo", "singular": "foo", "listKind": "FooList"},
                "conversion": {"strategy": "None"},
            }}),
        ),
        (
            "",
            "limitranges",
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}}]}}),
            json!({"spec": {"limits": [{
                "type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}, "default": {"cpu": "2"},
                "defaultRequest": {"cpu": "2", "memory": "1Mi"},
            }]}}),
        ),
    ] {
        assert_eq!(defaulted(group, "v1", plural, given), want, "{plural}");
    }
}

#[test]
fn pull_policy_follows_the_tag() {
    for (image, want) in [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("nginx:1.25", "IfNotPresent"),
        ("host:5000/a/nginx", "Always"),
        ("host:5000/a/nginx:1", "IfNotPresent"),
        ("nginx@sha256:00", "IfNotPresent"),
        ("nginx:latest@sha256:00", "Always"),
        ("", "IfNotPresent"),
    ] {
        let pod = defaulted("", "v1", "pods", json!({"spec": {"containers": [{"image": image}]}}));
        assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], want, "{image}");
    }
}

#[test]
fn custom_resources_get_their_schemas_defaults() {
    let mut types = Types::default();
    let text = types.push(Type::Scalar(crate::Scalar::String));
    let field = |ty, default| Field {
        ty,
        required: false,
        default,
        patch: Default::default(),
        wire: None,
    };
    let mut inner = crate::Object::default();
    inner.fields.insert("mode".into(), field(text, Some(json!("fast"))));
    let inner = types.push(Type::Object(inner));
    let mut outer = crate::Object::default();
    outer.fields.insert("spec".into(), field(inner, Some(json!({}))));
    let outer = types.push(Type::Object(outer));
    let mut object = json!({"kind": "Foo"});
    apply_type(&Arc::new(types), outer, &mut object);
    assert_eq!(object, json!({"kind": "Foo", "spec": {"mode": "fast"}}));
}

fn is_idempotent(resource: &Resource, mut object: Value) {
    apply(resource, &mut object);
    let once = object.clone();
    apply(resource, &mut object);
    assert_eq!(object, once, "{}", resource.qualified());
}

#[test]
fn full_objects_of_every_kind_are_completed_once() {
    let mut seed = 1;
    for resource in Registry::builtin().resources() {
        for _ in 0..8 {
            let object = samples::full(&resource.types, resource.ty, 12, &mut seed);
            is_idempotent(resource, object);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn nothing_is_too_odd(junk in prop::collection::vec(samples::any_json(), 1..6), mut seed in any::<u64>()) {
        let registry = Registry::builtin();
        let resources: Vec<_> = registry.resources().collect();
        let resource = resources[seed as usize % resources.len()];
        let mut object = samples::full(&resource.types, resource.ty, 10, &mut seed);
        samples::mutilate(&mut object, &junk, &mut seed);
        is_idempotent(resource, object);
        is_idempotent(resource, junk[0].clone());
    }
}
