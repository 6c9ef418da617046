//! Definitions: judged, turned into rows, named, deleted.

use super::{definition as load, lines};
use crate::crd::{
    Definitions, check,
    cleanup::{self, Executor, Step},
    definition::{self, condition, note_storage_version},
    rows,
};
use fairlead_schema::{ListKind, Registry, Scope, Type};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

const NOW: &str = "2026-11-20T12:00:00Z";

#[test]
fn sound_definitions_pass() {
    for name in ["crontab", "certificates"] {
        assert_eq!(
            lines(&definition::validate(None, &load(name))),
            Vec::<String>::new(),
            "{name}"
        );
    }
    let crd = load("crontab");
    assert_eq!(crd["spec"]["names"]["singular"], "crontab");
    assert_eq!(crd["spec"]["names"]["listKind"], "CronTabList");
    assert_eq!(crd["spec"]["conversion"], json!({ "strategy": "None" }));
    assert_eq!(crd["status"]["storedVersions"], json!(["v1"]));
}

#[test]
fn each_fault_of_a_definition_is_named() {
    let cases: Vec<(&str, Value, &str)> = vec![
        (
            "/metadata/name",
            json!("x"),
            "metadata.name: Invalid value: \"x\": must be spec.names.plural+\".\"+spec.group",
        ),
        (
            "/spec/scope",
            json!("Galaxy"),
            "spec.scope: Unsupported value: \"Galaxy\": supported values: \"Cluster\", \"Namespaced\"",
        ),
        (
            "/spec/preserveUnknownFields",
            json!(true),
            "spec.preserveUnknownFields: Invalid value: true: cannot set to true",
        ),
        (
            "/spec/conversion/strategy",
            json!("Webhook"),
            "spec.conversion.strategy: Forbidden: this server converts",
        ),
        (
            "/spec/versions/1/storage",
            json!(true),
            "spec.versions: Invalid value: must have exactly one version marked as storage version",
        ),
        (
            "/spec/versions/1/name",
            json!("v1"),
            "spec.versions: Invalid value: must contain unique version names",
        ),
        (
            "/spec/versions/1/schema",
            Value::Null,
            "spec.versions[1].schema.openAPIV3Schema: Required value",
        ),
        (
            "/spec/names/shortNames",
            json!(["C"]),
            "spec.names.shortNames[0]: Invalid value: \"C\": a DNS-1035 label",
        ),
        (
            "/spec/names/listKind",
            json!("CronTab"),
            "spec.names.listKind: Invalid value: \"CronTab\": kind and listKind may not be the same",
        ),
        (
            "/spec/versions/0/subresources/scale/specReplicasPath",
            json!(".status.x"),
            "spec.versions[0].subresources.scale.specReplicasPath: Invalid value: \".status.x\": should be a json path under .spec",
        ),
        (
            "/spec/versions/0/selectableFields/0/jsonPath",
            json!(".spec.nope"),
            "spec.versions[0].selectableFields[0].jsonPath: Invalid value: \".spec.nope\": is an invalid path",
        ),
        (
            "/spec/versions/0/selectableFields/0/jsonPath",
            json!(".spec.raw"),
            "spec.versions[0].selectableFields[0].jsonPath: Invalid value: \".spec.raw\": must point to a field of type string",
        ),
        (
            "/spec/versions/0/additionalPrinterColumns/0/type",
            json!("text"),
            "spec.versions[0].additionalPrinterColumns[0].type: Invalid value: \"text\": must be one of boolean,date,integer,number,string",
        ),
        (
            "/spec/versions/0/deprecationWarning",
            json!("x"),
            "spec.versions[0].deprecationWarning: Invalid value: \"x\": can only be set for deprecated versions",
        ),
        (
            "/status/storedVersions",
            json!(["v1", "v9"]),
            "status.storedVersions[1]: Invalid value: \"v9\": missing from spec.versions",
        ),
        (
            "/spec/group",
            json!("x.k8s.io"),
            "metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups",
        ),
    ];
    for (pointer, value, want) in cases {
        let mut crd = load("crontab");
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        match crd.pointer_mut(parent).unwrap() {
            Value::Array(items) => items[field.parse::<usize>().unwrap()] = value,
            object => object[field] = value,
        }
        let found = lines(&definition::validate(None, &crd));
        assert!(found.iter().any(|it| it.starts_with(want)), "{pointer}: {found:#?}");
    }
}

#[test]
fn schemas_must_be_structural() {
    let cases = [
        (json!({}), "s.type: Required value: must not be empty at the root"),
        (
            json!({ "type": "array", "items": { "type": "string" } }),
            "s.type: Invalid value: \"array\": must be object at the root",
        ),
        (
            json!({ "type": "object", "properties": { "a": {} } }),
            "s.properties[a].type: Required value: must not be empty for specified object fields",
        ),
        (
            json!({ "type": "object", "properties": { "a": { "type": "array" } } }),
            "s.properties[a].items: Required value: must be specified",
        ),
        (
            json!({ "type": "object", "properties": { "a": { "type": "array", "items": {} } } }),
            "s.properties[a].items.type: Required value: must not be empty for specified array items",
        ),
        (
            json!({ "type": "object", "properties": { "a": { "$ref": "#/x" } } }),
            "s.properties[a].$ref: Forbidden: $ref is not supported",
        ),
        (
            json!({ "type": "object", "additionalProperties": true }),
            "s.additionalProperties: Forbidden: must not be used at the root",
        ),
        (
            json!({ "type": "object", "properties": { "a": { "type": "integer", "anyOf": [{ "type": "integer" }] } } }),
            "s.properties[a].anyOf[0].type: Forbidden: must be empty to be structural",
        ),
        (
            json!({ "type": "object", "oneOf": [{ "properties": { "b": { "minimum": 1 } } }] }),
            "s.properties[b]: Required value: because it is defined in s.oneOf[0].properties[b]",
        ),
        (
            json!({ "type": "object", "properties": { "metadata": { "type": "object", "properties": { "labels": { "type": "object" } } } } }),
            "s.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified",
        ),
        (
            json!({ "type": "object", "properties": { "a": { "type": "string", "pattern": "(" } } }),
            "s.properties[a].pattern: Invalid value: \"(\": must be a valid regular expression",
        ),
        (
            json!({ "type": "object", "properties": { "a": { "type": "array", "uniqueItems": true, "items": { "type": "string" } } } }),
            "s.properties[a].uniqueItems: Forbidden: uniqueItems cannot be set to true",
        ),
        (
            json!({ "type": "object", "properties": { "a": { "type": "array", "x-kubernetes-list-type": "map", "items": { "type": "object" } } } }),
            "s.properties[a].x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map",
        ),
        (
            json!({ "type": "object", "properties": { "a": { "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": { "type": "object", "properties": { "k": { "type": "string" } } } } } }),
            "s.properties[a].items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys",
        ),
        (
            json!({ "type": "object", "properties": { "a": { "type": "integer", "default": "x" } } }),
            "s.properties[a].default: Invalid value: \"string\": s.properties[a].default in body must be of type integer",
        ),
        (
            json!({ "type": "object", "properties": { "a": { "type": "object", "default": { "b": 1 } } } }),
            "s.properties[a].default: Invalid value: {\"b\":1}: must not have unknown fields",
        ),
        (
            json!({ "type": "object", "nullable": true }),
            "s.nullable: Forbidden: nullable cannot be true at the root",
        ),
        (
            json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": false }),
            "s.x-kubernetes-preserve-unknown-fields: Invalid value: false: must be true or undefined",
        ),
        (
            json!({ "type": "object", "properties": { "a": { "type": "object", "properties": { "b": { "type": "string" } }, "additionalProperties": { "type": "string" } } } }),
            "s.properties[a].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive",
        ),
    ];
    for (schema, want) in cases {
        let found = lines(&check::schema(&schema, "s", false));
        assert!(found.iter().any(|it| it.starts_with(want)), "{schema}: {found:#?}");
    }
    let either = json!({ "type": "object", "properties": { "a": { "x-kubernetes-int-or-string": true, "anyOf": [{ "type": "integer" }, { "type": "string" }] } } });
    assert!(check::schema(&either, "s", false).is_empty());
}

#[test]
fn updates_keep_what_storage_depends_on() {
    let mut old = load("crontab");
    old["status"]["conditions"] = json!([{ "type": "Established", "status": "True" }]);
    let mut new = old.clone();
    new["spec"]["scope"] = json!("Cluster");
    new["spec"]["names"]["kind"] = json!("Other");
    let found = lines(&definition::validate(Some(&old), &new));
    assert_eq!(
        found,
        [
            "spec.scope: Invalid value: \"Cluster\": field is immutable",
            "spec.names.kind: Invalid value: \"Other\": field is immutable"
        ]
    );
    // A new storage version joins those of which objects may be stored.
    let mut new = old.clone();
    new["spec"]["versions"][0]["storage"] = json!(false);
    new["spec"]["versions"][1]["storage"] = json!(true);
    note_storage_version(&mut new);
    assert_eq!(new["status"]["storedVersions"], json!(["v1", "v1beta1"]));
    assert!(definition::validate(Some(&old), &new).is_empty());
}

#[test]
fn rows_say_what_the_definition_says() {
    let rows = rows::rows(&load("crontab"));
    assert_eq!(
        rows.iter().map(|it| &*it.version).collect::<Vec<_>>(),
        ["v1", "v1beta1"]
    );
    let row = &rows[0];
    assert_eq!(
        (&*row.group, &*row.kind, &*row.plural, &*row.singular),
        ("stable.example.com", "CronTab", "crontabs", "crontab")
    );
    assert_eq!(row.scope, Scope::Namespaced);
    assert_eq!(row.short_names, ["ct".into()]);
    assert_eq!(row.custom.as_deref(), Some("crontabs.stable.example.com"));
    let storage = row.storage.as_ref().unwrap();
    assert_eq!(
        (&*storage.prefix, &*storage.version),
        ("stable.example.com/crontabs", "v1")
    );
    assert_eq!(rows[1].storage, row.storage, "versions share their objects");
    assert_eq!(
        rows[1].deprecation.as_deref(),
        Some("stable.example.com/v1beta1 CronTab is deprecated; use v1")
    );
    let scale = row.subresource("scale").unwrap().scale.as_ref().unwrap();
    assert_eq!(
        (&*scale.spec_replicas, scale.selector.as_deref()),
        ("spec.replicas", Some("status.labelSelector"))
    );
    assert_eq!(&*row.subresource("status").unwrap().kind, "CronTab");
    assert_eq!(
        row.columns.iter().map(|it| &*it.name).collect::<Vec<_>>(),
        ["Name", "Spec", "Age"]
    );
    assert_eq!(
        rows[1].columns.iter().map(|it| &*it.name).collect::<Vec<_>>(),
        ["Name", "Age"]
    );
    assert_eq!(
        (&*row.selectable[0].name, &*row.selectable[0].path),
        ("spec.image", "spec.image")
    );
    // Types for server-side apply.
    let at = |path: &[&str]| {
        row.types
            .at(row.ty, path.iter().copied())
            .map(|it| row.types.get(it).clone())
    };
    let Some(Type::List { kind, .. }) = at(&["spec", "env"]) else {
        panic!("env is a list")
    };
    assert_eq!(
        kind,
        ListKind::Map {
            keys: vec!["name".into()]
        }
    );
    assert!(matches!(
        at(&["spec", "hosts"]),
        Some(Type::List {
            kind: ListKind::Set,
            ..
        })
    ));
    assert!(matches!(at(&["spec", "labels"]), Some(Type::Map { .. })));
    assert_eq!(at(&["spec", "raw"]), Some(Type::Any));
    let Some(Type::List { kind, .. }) = at(&["metadata", "ownerReferences"]) else {
        panic!("metadata is typed")
    };
    assert_eq!(
        kind,
        ListKind::Map {
            keys: vec!["uid".into()]
        }
    );
    assert!(at(&["spec", "template", "metadata", "labels"]).is_some());
    assert!(row.custom_schema.as_ref().unwrap().openapi()["properties"]["spec"].is_object());
}

#[test]
fn a_change_costs_what_it_changes() {
    let base = Registry::builtin();
    let mut definitions = Definitions::default();
    let mut crds: Vec<Arc<Value>> = (0..50)
        .map(|at| {
            let mut crd = load("crontab");
            crd["spec"]["group"] = json!(format!("g{at}.example.com"));
            crd["metadata"]["name"] = json!(format!("crontabs.g{at}.example.com"));
            Arc::new(crd)
        })
        .collect();
    let first = definitions.rebuild(&base, &crds, NOW);
    assert_eq!(first.statuses.len(), 50);
    assert!(first.registry.epoch > base.epoch);
    assert!(first.registry.resource("", "v1", "pods").is_some());
    for (name, status) in &first.statuses {
        let at = crds.iter().position(|it| it["metadata"]["name"] == **name).unwrap();
        assert_eq!(condition(&json!({ "status": status }), "Established"), Some("True"));
        Arc::make_mut(&mut crds[at])["status"] = status.clone();
    }
    let second = definitions.rebuild(&base, &crds, "2027-01-01T00:00:00Z");
    assert!(second.statuses.is_empty(), "{:?}", second.statuses);
    assert!(!second.changed);
    assert_eq!(second.registry.epoch, first.registry.epoch);
    let changed = Arc::make_mut(&mut crds[7]);
    changed["metadata"]["generation"] = json!(2);
    changed["spec"]["versions"][1]["served"] = json!(false);
    let third = definitions.rebuild(&base, &crds, NOW);
    assert!(third.changed && third.registry.epoch > second.registry.epoch);
    for at in 0..50 {
        let group = format!("g{at}.example.com");
        let row = |registry: &Registry| registry.resource(&group, "v1", "crontabs").cloned().unwrap();
        let same = Arc::ptr_eq(&row(&second.registry), &row(&third.registry));
        assert_eq!(same, at != 7, "{group}");
    }
    assert!(
        third
            .registry
            .resource("g7.example.com", "v1beta1", "crontabs")
            .is_none()
    );
    crds.remove(7);
    let fourth = definitions.rebuild(&base, &crds, NOW);
    assert!(!fourth.registry.groups.contains_key("g7.example.com"));
}

#[test]
fn names_go_to_the_elder() {
    let base = Registry::builtin();
    let older = load("crontab");
    let mut younger = load("crontab");
    younger["metadata"] = json!({ "name": "tabs.stable.example.com", "creationTimestamp": "2026-02-01T00:00:00Z" });
    younger["spec"]["names"] =
        json!({ "plural": "tabs", "singular": "tab", "kind": "CronTab", "listKind": "TabList", "shortNames": ["ct"] });
    let crds = [Arc::new(younger), Arc::new(older)];
    let rebuilt = Definitions::default().rebuild(&base, &crds, NOW);
    let status = |name: &str| rebuilt.statuses.iter().find(|(it, _)| &**it == name).unwrap().1.clone();
    let won = status("crontabs.stable.example.com");
    assert_eq!(won["acceptedNames"]["shortNames"], json!(["ct"]));
    let lost = json!({ "status": status("tabs.stable.example.com") });
    assert_eq!(condition(&lost, "NamesAccepted"), Some("False"));
    assert_eq!(condition(&lost, "Established"), Some("False"));
    assert_eq!(
        lost["status"]["conditions"][0]["message"],
        "\"CronTab\" is already in use"
    );
    assert!(rebuilt.registry.resource("stable.example.com", "v1", "tabs").is_none());
    // Once the elder is gone, the names are free.
    let alone = [Arc::clone(&crds[0])];
    let rebuilt = Definitions::default().rebuild(&base, &alone, NOW);
    assert!(rebuilt.registry.resource("stable.example.com", "v1", "tabs").is_some());
}

#[test]
fn stored_schemas_that_are_not_structural_are_told_of() {
    let mut crd = load("crontab");
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["bad"] = json!({});
    let rebuilt = Definitions::default().rebuild(&Registry::builtin(), &[Arc::new(crd)], NOW);
    let crd = json!({ "status": rebuilt.statuses[0].1 });
    assert_eq!(condition(&crd, "NonStructuralSchema"), Some("True"));
}

/// Remembers what is stored; objects go with the second look.
struct Fake {
    stored: Mutex<Vec<Value>>,
    remaining: Mutex<Vec<usize>>,
}

impl Executor for Fake {
    async fn store(&self, crd: &Value) -> Result<Option<Value>, String> {
        self.stored.lock().unwrap().push(crd.clone());
        Ok(Some(crd.clone()))
    }

    async fn delete_objects(&self, _: &Value) -> Result<usize, String> {
        self.remaining.lock().unwrap().pop().ok_or_else(|| "no more".to_owned())
    }
}

#[tokio::test]
async fn objects_go_before_their_definition() {
    let mut crd = load("crontab");
    crd["status"]["conditions"] = json!([{ "type": "Established", "status": "True" }]);
    let Step::Hold(mut crd) = cleanup::next(&crd, None, NOW) else {
        panic!("it is held")
    };
    assert_eq!(crd["metadata"]["finalizers"], json!([cleanup::FINALIZER]));
    assert_eq!(cleanup::next(&crd, None, NOW), Step::Rest);
    crd["metadata"]["deletionTimestamp"] = json!(NOW);
    let fake = Fake {
        stored: Mutex::default(),
        remaining: Mutex::new(vec![0, 2]),
    };
    assert!(cleanup::run(&crd, &fake, NOW).await, "two objects are left");
    let marked = fake.stored.lock().unwrap().pop().unwrap();
    assert_eq!(condition(&marked, "Terminating"), Some("True"));
    assert!(!cleanup::run(&marked, &fake, NOW).await);
    let released = fake.stored.lock().unwrap().pop().unwrap();
    assert_eq!(released["metadata"]["finalizers"], json!([]));
    assert!(
        fake.stored.lock().unwrap().is_empty(),
        "a mark that is there is not written again"
    );
    assert!(cleanup::run(&marked, &fake, NOW).await, "deleting failed");
    let failed = fake.stored.lock().unwrap().pop().unwrap();
    assert!(
        failed["status"]["conditions"]
            .to_string()
            .contains("InstanceDeletionFailed")
    );
}
