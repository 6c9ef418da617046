//! Rows of the main kinds, and what holds for all.

use super::*;
use crate::{resource::Registry, samples};
use proptest::prelude::*;

fn now() -> Timestamp {
    "2024-05-06T12:00:00Z".parse().unwrap()
}

/// Cells as text, `-o wide` ones included.
fn cells(group: &str, version: &str, plural: &str, mut object: Value) -> String {
    object["metadata"]["name"] = "it".into();
    object["metadata"]["creationTimestamp"] = "2024-05-06T11:00:00Z".into();
    let registry = Registry::builtin();
    let resource = registry.resource(group, version, plural).unwrap();
    let (columns, rows) = rows(resource, [&object], now());
    assert_eq!(columns.len(), rows[0].len());
    rows[0].iter().map(text_of).collect::<Vec<_>>().join(" | ")
}

fn pod(status: &Value) -> String {
    let spec = json!({
        "initContainers": [{"name": "i"}, {"name": "side", "restartPolicy": "Always"}],
        "containers": [{"name": "a"}, {"name": "b"}],
    });
    let all = cells("", "v1", "pods", json!({"spec": spec, "status": status}));
    all.split(" | ").skip(1).take(3).collect::<Vec<_>>().join(" | ")
}

#[test]
fn every_source_is_known() {
    for resource in Registry::builtin().resources() {
        for column in &resource.columns {
            assert!(
                Source::try_parse(&column.source).is_some(),
                "{}: {}",
                resource.qualified(),
                column.source
            );
        }
    }
}

#[test]
fn pods_say_how_they_are() {
    let ended = json!({"terminated": {"exitCode": 0, "reason": "Completed"}});
    let runs = json!({"running": {}});
    let init = json!([{"name": "i", "state": ended}, {"name": "side", "started": true, "ready": true, "state": runs}]);
    let a = |state: &Value| {
        json!({"name": "a", "ready": true, "restartCount": 2, "state": state,
        "lastState": {"terminated": {"finishedAt": "2024-05-06T11:55:00Z"}}})
    };
    let b = json!({"name": "b", "ready": true, "state": runs});
    for (status, want) in [
        (json!({"phase": "Pending"}), "0/3 | Pending | 0"),
        (json!({"phase": "Failed", "reason": "Evicted"}), "0/3 | Evicted | 0"),
        (
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}]}),
            "0/3 | SchedulingGated | 0",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}),
            "0/3 | Init:0/2 | 0",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [
                {"name": "i", "restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
            "0/3 | Init:CrashLoopBackOff | 1",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 3}}}]}),
            "0/3 | Init:ExitCode:3 | 0",
        ),
        (
            json!({"phase": "Running", "initContainerStatuses": init, "containerStatuses": [a(&runs), b]}),
            "3/3 | Running | 2 (5m ago)",
        ),
        (
            json!({"phase": "Running", "containerStatuses": [a(&ended), b],
                "conditions": [{"type": "Ready", "status": "True"}]}),
            "1/3 | Running | 2 (5m ago)",
        ),
        (
            json!({"phase": "Running", "containerStatuses": [a(&ended), b]}),
            "1/3 | NotReady | 2 (5m ago)",
        ),
        (
            json!({"phase": "Succeeded", "containerStatuses": [a(&ended)]}),
            "0/3 | Completed | 2 (5m ago)",
        ),
        (
            json!({"phase": "Pending", "containerStatuses": [a(&json!({"waiting": {"reason": "ErrImagePull"}}))]}),
            "0/3 | ErrImagePull | 2 (5m ago)",
        ),
    ] {
        assert_eq!(pod(&status), want, "{status}");
    }
    let going = json!({"metadata": {"deletionTimestamp": "2024-05-06T11:59:00Z"}, "status": {"phase": "Running"},
        "spec": {"nodeName": "n", "readinessGates": [{"conditionType": "x"}]}});
    assert_eq!(
        cells("", "v1", "pods", going),
        "it | 0/0 | Terminating | 0 | 60m | <none> | n | <none> | 0/1"
    );
}

#[test]
fn rows_of_the_main_kinds() {
    let template = json!({"spec": {"containers": [{"name": "a", "image": "x:1"}, {"name": "b", "image": "y"}]}});
    for (api, plural, object, want) in [
        (
            ("apps", "v1"),
            "deployments",
            json!({"spec": {"replicas": 3, "template": template, "selector": {"matchLabels": {"b": "c"},
                "matchExpressions": [{"key": "a", "operator": "In", "values": ["2", "1"]}]}},
                "status": {"readyReplicas": 2, "updatedReplicas": 1}}),
            "it | 2/3 | 1 | 0 | 60m | a,b | x:1,y | a in (1,2),b=c",
        ),
        (
            ("apps", "v1"),
            "daemonsets",
            json!({"spec": {"template": {"spec": {"nodeSelector": {"a": "b"}}}}, "status": {"numberReady": 1}}),
            "it | 0 | 0 | 1 | 0 | 0 | a=b | 60m |  |  | <none>",
        ),
        (
            ("batch", "v1"),
            "jobs",
            json!({"spec": {"completions": 4}, "status": {"succeeded": 1, "startTime": "2024-05-06T11:50:00Z"}}),
            "it | Running | 1/4 | 10m | 60m |  |  | <none>",
        ),
        (
            ("batch", "v1"),
            "cronjobs",
            json!({"spec": {"schedule": "* * * * *", "suspend": false}, "status": {"active": [{}],
                "lastScheduleTime": "2024-05-06T11:59:30Z"}}),
            "it | * * * * * | <none> | False | 1 | 30s | 60m |  |  | <none>",
        ),
        (
            ("", "v1"),
            "services",
            json!({"spec": {"type": "LoadBalancer", "clusterIPs": ["10.96.0.1"], "selector": {"a": "b"},
                "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}}),
            "it | LoadBalancer | 10.96.0.1 | <pending> | 80:30080/TCP,53/UDP | 60m | a=b",
        ),
        (
            ("", "v1"),
            "nodes",
            json!({"metadata": {"labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/edge": ""}},
                "spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "192.168.0.1"}], "nodeInfo": {"kubeletVersion": "v1.36.0"}}}),
            "it | Ready,SchedulingDisabled | edge,worker | 60m | v1.36.0 | 192.168.0.1 | <none> | <unknown> | <unknown> \
             | <unknown>",
        ),
        (
            ("", "v1"),
            "persistentvolumeclaims",
            json!({"spec": {"volumeName": "v", "storageClassName": "fast", "volumeMode": "Filesystem"},
                "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"]}}),
            "it | Bound | v | 1Gi | RWO,RWX | fast | <unset> | 60m | Filesystem",
        ),
        (
            ("", "v1"),
            "events",
            json!({"type": "Normal", "reason": "Pulled", "message": "done\n", "count": 3, "lastTimestamp": "2024-05-06T11:59:00Z",
                "firstTimestamp": "2024-05-06T11:58:00Z", "source": {"component": "kubelet", "host": "n"},
                "involvedObject": {"kind": "Pod", "name": "p"}}),
            "60s | Normal | Pulled | pod/p |  | kubelet, n | done | 2m | 3 | it",
        ),
        (
            ("events.k8s.io", "v1"),
            "events",
            json!({"eventTime": "2024-05-06T11:59:00.000001Z", "note": "n", "regarding": {"kind": "Node"},
                "reportingController": "c", "series": null}),
            "59s |  |  | node |  | c | n | 59s | 1 | it",
        ),
        (
            ("networking.k8s.io", "v1"),
            "ingresses",
            json!({"spec": {"ingressClassName": "x", "tls": [{}], "rules": [{"host": "a"}, {"host": "b"}, {"host": "c"},
                {"host": "d"}]}, "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}}),
            "it | x | a,b,c + 1 more... | 1.2.3.4 | 80, 443 | 60m",
        ),
        (
            ("", "v1"),
            "endpoints",
            json!({"subsets": [{"addresses": [{"ip": "10.1.0.1"}, {"ip": "fd00::1"}], "ports": [{"port": 80}, {"port": 81}]}]}),
            "it | 10.1.0.1:80,[fd00::1]:80,10.1.0.1:81 + 1 more... | 60m",
        ),
        (
            ("autoscaling", "v2"),
            "horizontalpodautoscalers",
            json!({"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "minReplicas": 1, "maxReplicas": 9,
                "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}},
                    {"type": "Pods", "pods": {"target": {"averageValue": "10"}}}]},
                "status": {"currentMetrics": [{"resource": {"current": {"averageUtilization": 5}}}]}}),
            "it | Deployment/d | cpu: 5%/80%, <unknown>/10 | 1 | 9 | 0 | 60m",
        ),
        (
            ("", "v1"),
            "resourcequotas",
            json!({"status": {"hard": {"pods": "3", "limits.cpu": "2"}, "used": {"pods": "1"}}}),
            "it | pods: 1/3 | limits.cpu: 0/2 | 60m",
        ),
        (
            ("rbac.authorization.k8s.io", "v1"),
            "rolebindings",
            json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"},
                {"kind": "User", "name": "v"}, {"kind": "ServiceAccount", "name": "s", "namespace": "n"}]}),
            "it | Role/r | 60m | u, v |  | n/s",
        ),
        (
            ("rbac.authorization.k8s.io", "v1"),
            "roles",
            json!({}),
            "it | 2024-05-06T11:00:00Z",
        ),
        (
            ("", "v1"),
            "secrets",
            json!({"type": "Opaque", "data": {"a": "", "b": ""}}),
            "it | Opaque | 2 | 60m",
        ),
        (
            ("storage.k8s.io", "v1"),
            "storageclasses",
            json!({"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "p"}),
            "it (default) | p | Delete | Immediate | false | 60m",
        ),
        (
            ("certificates.k8s.io", "v1"),
            "certificatesigningrequests",
            json!({"spec": {"signerName": "s", "username": "u", "expirationSeconds": 86400},
                "status": {"certificate": "eA==", "conditions": [{"type": "Approved"}]}}),
            "it | 60m | s | u | 24h | Approved,Issued",
        ),
        (
            ("discovery.k8s.io", "v1"),
            "endpointslices",
            json!({"addressType": "IPv4", "ports": [{"port": 80}, {"name": "x"}], "endpoints": [{"addresses": ["10.1.0.1"]}]}),
            "it | IPv4 | 80,x | 10.1.0.1 | 60m",
        ),
        (
            ("policy", "v1"),
            "poddisruptionbudgets",
            json!({"spec": {"minAvailable": 1}}),
            "it | 1 | N/A | 0 | 60m",
        ),
    ] {
        assert_eq!(cells(api.0, api.1, plural, object), want, "{plural}");
    }
}

#[test]
fn columns_of_crds_are_typed() {
    let now = now();
    let object = json!({"s": {"n": 2.9, "t": "2024-05-06T11:59:00Z", "o": {"a": 1}, "b": true, "x": "y"}});
    let column = |ty: &str, path: &str| {
        let value = JsonPath::parse(path).unwrap().first(&object).cloned();
        value.map(|it| typed(ty, &it, now))
    };
    assert_eq!(column("integer", ".s.n"), Some(json!(2)));
    assert_eq!(column("date", ".s.t"), Some(json!("60s")));
    assert_eq!(column("date", ".s.x"), Some(json!("<invalid>")));
    assert_eq!(column("string", ".s.o"), Some(json!(r#"{"a":1}"#)));
    assert_eq!(column("boolean", ".s.b"), Some(json!(true)));
    assert_eq!(column("boolean", ".s.x"), Some(Value::Null));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_object_has_a_row(junk in prop::collection::vec(samples::any_json(), 1..6), mut seed in any::<u64>()) {
        let registry = Registry::builtin();
        for resource in registry.resources() {
            let mut object = samples::full(&resource.types, resource.ty, 8, &mut seed);
            samples::mutilate(&mut object, &junk, &mut seed);
            let (columns, rows) = rows(resource, [&object, &junk[0]], now());
            prop_assert!(rows.iter().all(|it| it.len() == columns.len()));
        }
    }
}
