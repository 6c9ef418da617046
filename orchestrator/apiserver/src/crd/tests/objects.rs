//! Objects: read, completed, judged.

use super::{lines, schema};
use crate::crd::Schema;
use fairlead_schema::CustomSchema as _;
use serde_json::{Value, json};

fn crontab(spec: Value) -> Value {
    let mut spec = spec;
    if spec.get("cronSpec").is_none() {
        spec["cronSpec"] = json!("* * * * */5");
    }
    json!({ "apiVersion": "stable.example.com/v1", "kind": "CronTab", "metadata": { "name": "a" }, "spec": spec })
}

/// What the server does before it stores.
fn judge(schema: &Schema, old: Option<&Value>, mut new: Value) -> Vec<String> {
    schema.prune(&mut new);
    schema.default(&mut new);
    lines(&schema.validate(old, &new))
}

#[test]
fn unknown_fields_are_dropped_and_named() {
    let schema = schema("crontab");
    let mut object = crontab(json!({
        "foo": 1,
        "env": [{ "name": "A", "bar": { "baz": 1 } }],
        "raw": { "any": { "thing": [1] } },
        "labels": { "x": "a" },
        "template": { "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "nope": 1 }, "spec": { "kept": 1 } },
        "nothing": null,
        "image": null,
        "until": null,
    }));
    object["extra"] = json!(1);
    object["metadata"]["labels"] = json!({ "a": "b" });
    object["metadata"]["unknown"] = json!(1);
    let unknown = schema.prune(&mut object);
    assert_eq!(
        unknown,
        [
            "extra",
            "metadata.unknown",
            "spec.env[0].bar",
            "spec.foo",
            "spec.template.metadata.nope"
        ]
    );
    let spec = &object["spec"];
    assert!(spec.get("foo").is_none() && spec["env"][0].get("bar").is_none());
    assert_eq!(spec["raw"], json!({ "any": { "thing": [1] } }));
    assert_eq!(spec["template"]["spec"], json!({ "kept": 1 }));
    assert_eq!(object["metadata"], json!({ "name": "a", "labels": { "a": "b" } }));
    // Null is a value of the nullable field; of the others it is absence, which a default fills.
    assert_eq!(spec.get("nothing"), Some(&Value::Null));
    assert!(spec.get("until").is_none());
    schema.default(&mut object);
    assert_eq!(object["spec"]["image"], "busybox");
}

#[test]
fn defaults_go_where_something_is() {
    let crontabs = schema("crontab");
    let mut object = crontab(json!({ "env": [{ "name": "A" }, { "name": "B", "weight": 2 }], "replicas": 3 }));
    crontabs.default(&mut object);
    assert_eq!(
        object["spec"],
        json!({
            "cronSpec": "* * * * */5", "image": "busybox", "replicas": 3, "minReplicas": 0, "maxReplicas": 10,
            "env": [{ "name": "A", "weight": 0.5 }, { "name": "B", "weight": 2 }],
        })
    );
    // A default that is an object gets the defaults below it; what is absent without a default stays absent.
    let mut object = json!({ "spec": { "issuerRef": { "name": "x" } } });
    schema("certificates").default(&mut object);
    assert_eq!(
        object["spec"]["privateKey"],
        json!({ "algorithm": "RSA", "size": 2048, "rotationPolicy": "Always" })
    );
    assert_eq!(object["spec"]["issuerRef"]["kind"], "Issuer");
    assert!(object["spec"].get("keystores").is_none());
}

#[test]
fn faults_are_worded_as_upstream_words_them() {
    let schema = schema("crontab");
    let cases = [
        (json!({}), vec![]),
        (
            json!({ "replicas": "three" }),
            vec![
                r#"spec.replicas: Invalid value: "string": spec.replicas in body must be of type integer: "string""#,
                "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; \
                 correct the existing errors to complete validation",
            ],
        ),
        (
            json!({ "cronSpec": "never" }),
            vec![
                r#"spec.cronSpec: Invalid value: "never": spec.cronSpec in body should match '^(\d+|\*)(/\d+)?(\s+(\d+|\*)(/\d+)?){4}$'"#,
            ],
        ),
        (
            json!({ "replicas": 11, "maxReplicas": 12 }),
            vec!["spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10"],
        ),
        (
            json!({ "labels": { "x": "c" } }),
            vec![
                r#"spec.labels.x: Unsupported value: "c": supported values: "a", "b""#,
                "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; \
                 correct the existing errors to complete validation",
            ],
        ),
        (
            json!({ "env": [{ "value": "v" }] }),
            vec![
                "spec.env[0].name: Required value",
                "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; \
                 correct the existing errors to complete validation",
            ],
        ),
        (
            json!({ "env": [{ "name": "" }] }),
            vec![r#"spec.env[0].name: Invalid value: "": spec.env[0].name in body should be at least 1 chars long"#],
        ),
        (
            json!({ "env": [{ "name": "A" }, { "name": "A" }] }),
            vec![r#"spec.env[1]: Duplicate value: {"name":"A"}"#],
        ),
        (
            json!({ "hosts": ["a", "a"] }),
            vec![r#"spec.hosts[1]: Duplicate value: "a""#],
        ),
        (json!({ "port": 80 }), vec![]),
        (json!({ "port": "http" }), vec![]),
        (
            json!({ "until": "tomorrow" }),
            vec![
                r#"spec.until: Invalid value: "tomorrow": spec.until in body must be of type date-time: "tomorrow""#,
                "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; \
                 correct the existing errors to complete validation",
            ],
        ),
        (
            json!({ "template": { "kind": "" } }),
            vec![
                "spec.template.apiVersion: Required value",
                r#"spec.template.kind: Invalid value: "": must not be empty"#,
                "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; \
                 correct the existing errors to complete validation",
            ],
        ),
        (
            json!({ "replicas": 2, "minReplicas": 3 }),
            vec!["spec.replicas: Invalid value: replicas should be greater than or equal to minReplicas."],
        ),
        (
            json!({ "replicas": 5, "maxReplicas": 4 }),
            vec!["spec: Invalid value: replicas is 5, at most 4"],
        ),
    ];
    for (spec, want) in cases {
        assert_eq!(judge(&schema, None, crontab(spec.clone())), want, "{spec}");
    }
    let mut long = crontab(json!({}));
    long["metadata"]["name"] = json!("x".repeat(41));
    assert_eq!(
        judge(&schema, None, long),
        ["<nil>: Invalid value: the name is too long"]
    );
}

#[test]
fn junctors_say_which_schema_was_missed() {
    let schema = schema("certificates");
    let with = |jks: Value| json!({ "spec": { "issuerRef": { "name": "x" }, "secretName": "s", "commonName": "c", "keystores": { "jks": jks } } });
    let none = judge(&schema, None, with(json!({ "create": true })));
    assert_eq!(
        none[0],
        r#"<nil>: Invalid value: "": "spec.keystores.jks" must validate one and only one schema (oneOf). Found none valid"#
    );
    assert_eq!(none[1], "spec.keystores.jks.password: Required value");
    let both = judge(
        &schema,
        None,
        with(json!({ "create": true, "password": "p", "passwordSecretRef": { "name": "n" } })),
    );
    assert_eq!(
        both,
        [
            r#"<nil>: Invalid value: "": "spec.keystores.jks" must validate one and only one schema (oneOf). Found 2 valid alternatives"#
        ]
    );
    assert!(judge(&schema, None, with(json!({ "create": true, "password": "p" }))).is_empty());
}

#[test]
fn rules_of_a_large_definition() {
    let schema = schema("certificates");
    let spec = |more: Value| {
        let mut spec = json!({ "issuerRef": { "name": "x" }, "secretName": "s", "commonName": "c" });
        for (name, value) in more.as_object().unwrap() {
            spec[name] = value.clone();
        }
        json!({ "spec": spec })
    };
    let container = |limits: Value| json!([{ "http": { "podTemplate": { "spec": { "containers": [{ "name": "a", "resources": { "limits": limits } }] } } } }]);
    let cases = [
        (json!({ "dnsNames": ["*.example.com", "example.com"] }), None),
        (
            json!({ "dnsNames": ["*.*.example.com"] }),
            Some(
                "spec.dnsNames[0]: Invalid value: \"*.*.example.com\": *.*.example.com has a wildcard that is not its first label",
            ),
        ),
        (json!({ "ipAddresses": ["10.0.0.1", "::1"] }), None),
        (
            json!({ "ipAddresses": ["10.0.0"] }),
            Some("spec.ipAddresses[0]: Invalid value: \"10.0.0\": no IP address"),
        ),
        (json!({ "renewBefore": "24h" }), None),
        (
            json!({ "renewBefore": "9000h" }),
            Some("spec: Invalid value: renewBefore must be shorter than duration"),
        ),
        (json!({ "notAfter": "2030-01-01T00:00:00Z" }), None),
        (
            json!({ "notAfter": "2010-01-01T00:00:00Z" }),
            Some("spec: Invalid value: notAfter is long ago"),
        ),
        (json!({ "privateKey": { "size": 4096 } }), None),
        (
            json!({ "privateKey": { "size": 1024 } }),
            Some("spec.privateKey.size: Invalid value: RSA keys have 2048, 4096 or 8192 bits"),
        ),
        (json!({ "privateKey": { "size": 1024, "algorithm": "ECDSA" } }), None),
        (
            json!({ "solvers": container(json!({ "cpu": "100m", "memory": 5 })) }),
            None,
        ),
        (
            json!({ "solvers": container(json!({ "cpu": "1.2.3" })) }),
            Some(
                "spec.solvers[0].http.podTemplate.spec.containers[0].resources.limits[cpu]: Invalid value: \"1.2.3\": no quantity",
            ),
        ),
    ];
    for (more, want) in cases {
        let found = judge(&schema, None, spec(more.clone()));
        assert_eq!(found, want.into_iter().collect::<Vec<_>>(), "{more}");
    }
    let nobody = json!({ "spec": { "issuerRef": { "name": "x" }, "secretName": "s" } });
    assert_eq!(
        judge(&schema, None, nobody),
        ["spec: Invalid value: one of dnsNames, commonName and ipAddresses is needed"]
    );
}

#[test]
fn transition_rules_see_the_old_object() {
    let schema = schema("crontab");
    let old = crontab(json!({ "immutable": "x", "env": [{ "name": "A", "value": "1" }, { "name": "B" }] }));
    let update = |spec: Value| {
        let mut old = old.clone();
        schema.default(&mut old);
        judge(&schema, Some(&old), crontab(spec))
    };
    assert!(
        judge(&schema, None, old.clone()).is_empty(),
        "nothing is immutable when it is made"
    );
    assert_eq!(
        update(json!({ "immutable": "y" })),
        ["spec.immutable: Forbidden: Value is immutable"]
    );
    // Items of a map are found by their keys, wherever they stand.
    assert_eq!(
        update(json!({ "immutable": "x", "env": [{ "name": "B" }, { "name": "A" }] })),
        ["spec.env[1]: Invalid value: a value cannot be taken away"]
    );
    assert!(update(json!({ "immutable": "x", "env": [{ "name": "B" }, { "name": "C" }] })).is_empty());
}

#[test]
fn what_does_not_change_need_not_be_valid() {
    let schema = schema("crontab");
    let mut old = crontab(json!({
        "cronSpec": "of an older schema", "replicas": 99, "hosts": ["a", "a"], "labels": { "x": "c" }, "maxReplicas": 100,
    }));
    schema.default(&mut old);
    let mut new = old.clone();
    new["spec"]["image"] = json!("other");
    assert!(judge(&schema, Some(&old), new.clone()).is_empty());
    new["spec"]["labels"]["y"] = json!("d");
    let found = judge(&schema, Some(&old), new);
    assert_eq!(
        found[0],
        r#"spec.labels.y: Unsupported value: "d": supported values: "a", "b""#
    );
    // Rules are held to the same: this one judges what did not change.
    let mut old = crontab(json!({ "replicas": 5, "maxReplicas": 4 }));
    schema.default(&mut old);
    let mut new = old.clone();
    new["metadata"]["labels"] = json!({ "a": "b" });
    assert!(judge(&schema, Some(&old), new.clone()).is_empty());
    new["spec"]["image"] = json!("other");
    assert_eq!(
        judge(&schema, Some(&old), new),
        ["spec: Invalid value: replicas is 5, at most 4"]
    );
}
