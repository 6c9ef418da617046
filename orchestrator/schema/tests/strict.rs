//! Bodies as clients send them: unknown and repeated fields, wrong types, and the form in which objects are kept.

use fairlead_schema::{
    TypeId, Types, read,
    strict::{check, normalise},
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn kind(types: &Types, api_version: &str, kind: &str) -> TypeId {
    types.kind_of(api_version, kind).unwrap()
}

fn normal(api_version: &str, of: &str, mut value: Value) -> Result<Value, Vec<String>> {
    let types = Types::builtin();
    match normalise(&types, kind(&types, api_version, of), &mut value) {
        Ok(()) => Ok(value),
        Err(problems) => Err(problems.iter().map(ToString::to_string).collect()),
    }
}

#[test]
fn unknown_fields_are_named_by_path() {
    let types = Types::builtin();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"x": "y"}, "nmae": "b"},
        "spec": {"containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "1"}}, "prot": 80}],
                 "volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "hostPaht": {}}]},
        "extra": null,
    });
    let found: Vec<String> = check(&types, kind(&types, "v1", "Pod"), &pod)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        found,
        [
            "unknown field \"extra\"",
            "unknown field \"metadata.nmae\"",
            "unknown field \"spec.containers[0].prot\"",
            "unknown field \"spec.volumes[1].hostPaht\"",
        ]
    );
    // What is any JSON is not looked into.
    let revision = json!({"data": {"whatever": [1]}, "revision": 1});
    assert!(check(&types, kind(&types, "apps/v1", "ControllerRevision"), &revision).is_empty());
}

#[test]
fn wrong_types_are_told_in_upstreams_words() {
    let deployment =
        json!({"spec": {"replicas": "3", "template": {"spec": {"containers": [{"ports": [{"containerPort": 1.5}]}]}}}});
    assert_eq!(
        normal("apps/v1", "Deployment", deployment).unwrap_err(),
        [
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            "json: cannot unmarshal number 1.5 into Go struct field \
             ContainerPort.spec.template.spec.containers.ports.containerPort of type int32",
        ]
    );
    let errors = |value| normal("v1", "Pod", value).unwrap_err().join("\n");
    assert!(
        errors(json!({"spec": []}))
            .ends_with("cannot unmarshal array into Go struct field Pod.spec of type v1.PodSpec")
    );
    assert!(errors(json!({"metadata": {"labels": {"a": 1}}})).contains("cannot unmarshal number into Go struct field"));
    assert!(errors(json!({"metadata": {"generation": 9223372036854775808_u64}})).contains("of type int64"));
    assert!(
        errors(json!({"metadata": {"creationTimestamp": "yesterday"}}))
            .contains("metadata.creationTimestamp: parsing time")
    );
    assert!(errors(json!([])).contains("cannot unmarshal array into Go value of type v1.Pod"));
    let secret = normal("v1", "Secret", json!({"data": {"a": "*"}})).unwrap_err();
    assert!(secret[0].starts_with("data.a: illegal base64 data"), "{secret:?}");
    let limits = json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "much"}}}]}});
    assert!(errors(limits).contains("spec.containers[0].resources.limits.cpu: quantities must match"));
}

#[test]
fn objects_take_the_form_that_upstream_keeps() {
    let pod = json!({
        "metadata": {"name": "a", "creationTimestamp": null, "labels": {}, "annotations": {"a": null},
                     "deletionTimestamp": "2026-01-02T03:04:05.678+02:00", "unknown": 1},
        "spec": {
            "containers": [{
                "name": "c", "image": "", "stdin": false, "resources": {},
                "ports": [{"containerPort": 80.0, "hostPort": 0}],
                "securityContext": {"runAsUser": 0},
                "livenessProbe": {"httpGet": {"port": 0}},
            }],
            "hostNetwork": false, "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0,
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": 1024}}], "tolerations": [], "securityContext": null,
        },
        "status": {},
    });
    assert_eq!(
        normal("v1", "Pod", pod).unwrap(),
        json!({
            "metadata": {"name": "a", "annotations": {"a": ""}, "deletionTimestamp": "2026-01-02T01:04:05Z"},
            "spec": {
                "containers": [{
                    "name": "c", "resources": {}, "ports": [{"containerPort": 80}],
                    "securityContext": {"runAsUser": 0}, "livenessProbe": {"httpGet": {"port": 0}},
                }],
                "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0,
                "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1024"}}],
            },
            "status": {},
        })
    );
    // No omitempty: zeros stay.
    let status = json!({"status": {"replicas": 0, "readyReplicas": 0}});
    assert_eq!(
        normal("apps/v1", "ReplicaSet", status).unwrap(),
        json!({"status": {"replicas": 0}})
    );
}

#[test]
fn bodies_name_what_they_repeat() {
    let body = br#"{"a": 1, "b": [{"c": 1, "c": 2}, {"d": {"e": 1, "e": {"f": 1, "f": 2}}}], "a": 2}"#;
    let (value, duplicates) = read::json(body).unwrap();
    assert_eq!(value, json!({"a": 2, "b": [{"c": 2}, {"d": {"e": {"f": 2}}}]}));
    let duplicates: Vec<String> = duplicates.iter().map(ToString::to_string).collect();
    assert_eq!(
        duplicates,
        [
            "duplicate field \"b[0].c\"",
            "duplicate field \"b[1].d.e.f\"",
            "duplicate field \"b[1].d.e\"",
            "duplicate field \"a\"",
        ]
    );
    assert!(read::json(b"{} {}").is_err());
    assert!(read::json(b"{").is_err());
    assert!(read::json("[".repeat(500).as_bytes()).is_err());
}

#[test]
fn yaml_reads_as_its_json() {
    let text = "metadata:\n  labels: {app: web, 1: one, true: t}\nspec:\n  replicas: 3\n  port: \"80\"\n  on: yes\n  ratio: 1.5\n  \
                none: ~\n  args: [a, 'null', null]\n  text: |\n    two\n    lines\n";
    let (value, duplicates) = read::yaml(text.as_bytes()).unwrap();
    assert_eq!(duplicates, []);
    assert_eq!(
        value["metadata"]["labels"],
        json!({"app": "web", "1": "one", "true": "t"})
    );
    assert_eq!(value["spec"]["replicas"], json!(3));
    assert_eq!(value["spec"]["port"], json!("80"));
    assert_eq!(value["spec"]["ratio"], json!(1.5));
    assert_eq!(value["spec"]["none"], json!(null));
    assert_eq!(value["spec"]["args"], json!(["a", "null", null]));
    assert_eq!(value["spec"]["text"], json!("two\nlines\n"));

    let (value, duplicates) = read::yaml(b"a: 1\nb:\n- c: 1\n  c: 2\na: 3\n").unwrap();
    assert_eq!(value, json!({"a": 3, "b": [{"c": 2}]}));
    let duplicates: Vec<String> = duplicates.iter().map(ToString::to_string).collect();
    assert_eq!(duplicates, ["duplicate field \"b[0].c\"", "duplicate field \"a\""]);

    // JSON is YAML: kubectl sends apply patches so.
    let (value, _) = read::yaml(br#"{"apiVersion":"v1","kind":"Pod","spec":{"x":"a\nb"}}"#).unwrap();
    assert_eq!(value, json!({"apiVersion": "v1", "kind": "Pod", "spec": {"x": "a\nb"}}));
    assert!(read::yaml(b"a: [").is_err());
    assert!(read::yaml(b"a: 1\n---\nb: 2\n").is_err());
}

fn any_json() -> impl Strategy<Value = Value> {
    let names = prop::sample::select(vec![
        "metadata",
        "spec",
        "status",
        "containers",
        "name",
        "labels",
        "template",
        "volumes",
        "emptyDir",
        "resources",
        "limits",
        "ports",
        "containerPort",
        "replicas",
        "creationTimestamp",
        "securityContext",
        "runAsUser",
        "extra",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        "\\PC{0,12}".prop_map(Value::from),
        "[0-9.eEKMGim+-]{1,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(8, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(names.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn random_json_never_panics_and_normal_forms_are_stable(value in any_json()) {
        let types = Types::builtin();
        for of in [("v1", "Pod"), ("apps/v1", "Deployment"), ("apiextensions.k8s.io/v1", "CustomResourceDefinition")] {
            let ty = kind(&types, of.0, of.1);
            let _ = check(&types, ty, &value);
            let mut once = value.clone();
            if normalise(&types, ty, &mut once).is_ok() {
                prop_assert!(check(&types, ty, &once).is_empty());
                let mut twice = once.clone();
                prop_assert_eq!(normalise(&types, ty, &mut twice), Ok(()));
                prop_assert_eq!(once, twice);
            }
        }
    }

    #[test]
    fn what_json_writes_is_read_back(value in any_json()) {
        let text = serde_json::to_vec(&value).unwrap();
        let (read, duplicates) = read::json(&text).unwrap();
        prop_assert!(duplicates.is_empty());
        prop_assert_eq!(read, serde_json::from_slice::<Value>(&text).unwrap());
    }

    #[test]
    fn random_bodies_never_panic(text in "\\PC{0,60}", bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let _ = read::json(text.as_bytes());
        let _ = read::yaml(text.as_bytes());
        let _ = read::json(&bytes);
        let _ = read::yaml(&bytes);
    }
}
