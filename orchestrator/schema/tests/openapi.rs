//! OpenAPI documents: what kubectl looks for, what a custom resource brings, and upstream's own documents.

use fairlead_schema::{
    Registry, Resource,
    openapi::{Document, OpenApi},
};
use flate2::read::GzDecoder;
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs, io::Read as _, sync::Arc};

fn none(_: &Resource) -> Option<Value> {
    None
}

fn read(document: &Document) -> Value {
    serde_json::from_slice(&document.body).unwrap()
}

fn document(group: &str, version: &str) -> Value {
    read(
        &OpenApi::default()
            .group_version(&Registry::builtin(), group, version, &none)
            .unwrap(),
    )
}

#[test]
fn the_index_names_every_group_and_version_with_its_hash() {
    let (openapi, registry) = (OpenApi::default(), Registry::builtin());
    let index = read(&openapi.index(&registry, &none));
    let paths = index["paths"].as_object().unwrap();
    for (path, group, version) in [
        ("api/v1", "", "v1"),
        ("apis/apps/v1", "apps", "v1"),
        ("apis/rbac.authorization.k8s.io/v1", "rbac.authorization.k8s.io", "v1"),
    ] {
        let document = openapi.group_version(&registry, group, version, &none).unwrap();
        let url = format!("/openapi/v3/{path}?hash={}", document.hash);
        assert_eq!(paths[path], json!({ "serverRelativeURL": url }));
        // The second time it is the same one, not another like it.
        let again = openapi.group_version(&registry, group, version, &none).unwrap();
        assert!(Arc::ptr_eq(&document, &again));
    }
    assert!(openapi.group_version(&registry, "apps", "v9", &none).is_none());
}

#[test]
fn every_reference_leads_somewhere() {
    let (openapi, registry) = (OpenApi::default(), Registry::builtin());
    let mut documents = vec![("v2".to_owned(), read(&openapi.v2(&registry, &none)))];
    for (group, versions) in &registry.groups {
        for version in &versions.versions {
            let name = format!("{group}/{}", version.name);
            documents.push((name, document(group, &version.name)));
        }
    }
    assert!(documents.len() > 15);
    for (name, document) in &documents {
        let (prefix, schemas) = match document["components"]["schemas"].as_object() {
            Some(schemas) => ("#/components/schemas/", schemas),
            None => ("#/definitions/", document["definitions"].as_object().unwrap()),
        };
        let mut values = vec![document];
        while let Some(value) = values.pop() {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(reference)) = map.get("$ref") {
                        let target = reference.strip_prefix(prefix).unwrap();
                        assert!(schemas.contains_key(target), "{name}: {reference}");
                    }
                    values.extend(map.values());
                }
                Value::Array(list) => values.extend(list),
                _ => {}
            }
        }
    }
}

#[test]
fn kubectl_finds_kinds_and_field_validation() {
    let apps = document("apps", "v1");
    let gvk = json!({"group": "apps", "version": "v1", "kind": "Deployment"});
    let patch = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"], gvk);
    let names: Vec<&str> = patch["parameters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
    let list = &apps["paths"]["/apis/apps/v1/deployments"]["get"];
    assert_eq!(
        (&list["x-kubernetes-action"], &list["x-kubernetes-group-version-kind"]),
        (&json!("list"), &gvk)
    );
    let schema = &apps["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(schema["x-kubernetes-group-version-kind"], json!([gvk]));
    let scale = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]["patch"];
    assert_eq!(scale["x-kubernetes-group-version-kind"]["kind"], "Scale");

    let core = document("", "v1");
    assert!(core["paths"]["/api/v1/nodes/{name}"]["get"].is_object());
    assert!(core["paths"]["/api/v1/namespaces/{namespace}/pods/{name}/status"]["patch"].is_object());
    let ports = &core["components"]["schemas"]["io.k8s.api.core.v1.ServiceSpec"]["properties"]["ports"];
    assert_eq!(ports["x-kubernetes-list-map-keys"], json!(["port", "protocol"]));
    assert_eq!(ports["x-kubernetes-patch-merge-key"], "port");
    assert!(ports["description"].as_str().unwrap().len() > 20);
}

#[test]
fn custom_resources_bring_their_schema() {
    let mut registry = Registry::builtin();
    let mut widget = Resource::clone(registry.resource("apps", "v1", "deployments").unwrap());
    for (field, text) in [
        (&mut widget.group, "example.com"),
        (&mut widget.kind, "Widget"),
        (&mut widget.plural, "widgets"),
    ] {
        *field = text.into();
    }
    widget.custom = Some("widgets.example.com".into());
    registry.insert(Arc::new(widget));
    let schema = |size: &str| {
        json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "size": {"type": size, "nullable": true, "description": "How big."},
            "not": {"anyOf": [{"type": "string"}], "x-kubernetes-int-or-string": true}}}}})
    };
    let openapi = OpenApi::default();
    let integer = |_: &Resource| Some(schema("integer"));
    let first = openapi.group_version(&registry, "example.com", "v1", &integer).unwrap();
    let schemas = read(&first)["components"]["schemas"].clone();
    let object = &schemas["com.example.v1.Widget"];
    assert_eq!(object["properties"]["spec"], schema("integer")["properties"]["spec"]);
    assert_eq!(object["x-kubernetes-group-version-kind"][0]["group"], "example.com");
    assert!(
        object["properties"]["metadata"]["allOf"][0]["$ref"]
            .as_str()
            .unwrap()
            .ends_with("v1.ObjectMeta")
    );
    assert!(schemas["com.example.v1.WidgetList"].is_object());
    // Strategic merge is for built-in types.
    let patch = &read(&first)["paths"]["/apis/example.com/v1/namespaces/{namespace}/widgets/{name}"]["patch"];
    assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_null());

    let string = |_: &Resource| Some(schema("string"));
    let second = openapi.group_version(&registry, "example.com", "v1", &string).unwrap();
    assert_ne!(first.hash, second.hash);
    let v2 = read(&openapi.v2(&registry, &string));
    let properties = &v2["definitions"]["com.example.v1.Widget"]["properties"]["spec"]["properties"];
    // A property that is called `not` is no keyword; what version 2 lacks is gone.
    assert_eq!(properties["not"], json!({"x-kubernetes-int-or-string": true}));
    assert_eq!(properties["size"], json!({"description": "How big."}));
}

/// Documents that upstream published, from version 1.26 or so: what they have, ours must have too. Ours have more (types
/// and fields that are newer), which is no difference; each other one is a line of the golden file and explained there.
#[test]
fn upstreams_documents_differ_only_where_we_know() {
    let registry = Registry::builtin();
    let mut text = String::new();
    let packed: &[u8] = include_bytes!("data/openapi.jsonl.gz");
    GzDecoder::new(packed).read_to_string(&mut text).unwrap();
    let mut differences = BTreeSet::new();
    for line in text.lines() {
        let theirs: Value = serde_json::from_str(line).unwrap();
        let name = theirs["document"].as_str().unwrap();
        let (group, version) = match *name.split('/').collect::<Vec<_>>() {
            ["api", version] => ("", version),
            ["apis", group, version] => (group, version),
            _ => panic!("{name}"),
        };
        let Some(ours) = OpenApi::default().group_version(&registry, group, version, &none) else {
            differences.insert(format!("{name}: not served"));
            continue;
        };
        let ours = read(&ours);
        for path in theirs["paths"].as_array().unwrap().iter().filter_map(Value::as_str) {
            if ours["paths"][path].is_null() && !path.contains("/watch/") {
                differences.insert(format!("path {path}"));
            }
        }
        for (name, schema) in theirs["schemas"].as_object().unwrap() {
            let name = name.strip_prefix("io.k8s.").unwrap();
            let found = &ours["components"]["schemas"][format!("io.k8s.{name}")];
            if found.is_null() {
                differences.insert(format!("type {name}"));
            } else {
                compare(name, schema, found, &mut differences);
            }
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/openapi.txt");
    let golden = fs::read_to_string(path).unwrap_or_default();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let comments = golden.lines().filter(|line| line.starts_with('#')).map(str::to_owned);
        let lines: Vec<String> = comments.chain(differences).collect();
        fs::write(path, lines.join("\n") + "\n").unwrap();
        return;
    }
    let known: BTreeSet<String> = golden
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    let new: Vec<&String> = differences.difference(&known).collect();
    let gone: Vec<&String> = known.difference(&differences).collect();
    assert!(new.is_empty() && gone.is_empty(), "new: {new:#?}\ngone: {gone:#?}");
}

fn compare(path: &str, theirs: &Value, ours: &Value, differences: &mut BTreeSet<String>) {
    let (theirs, ours) = (flat(theirs), flat(ours));
    for key in ["type", "format", "$ref", "oneOf"] {
        if theirs[key] != ours[key] {
            differences.insert(format!("{path}: {key} is {}, theirs {}", ours[key], theirs[key]));
        }
    }
    // Theirs name kinds of meta/v1 in every group and version, ours once.
    let kinds = |schema: &Value| {
        schema["x-kubernetes-group-version-kind"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    };
    let all = kinds(&theirs);
    let known = |kind: &Value| all.contains(kind);
    if kinds(&ours).is_empty() != all.is_empty() || !kinds(&ours).iter().all(known) {
        differences.insert(format!("{path}: kinds are {:?}, theirs {all:?}", kinds(&ours)));
    }
    // That version had few list types; where it has one, it must be ours.
    for (key, value) in theirs.as_object().unwrap() {
        let extension = key.starts_with("x-kubernetes-") && key != "x-kubernetes-group-version-kind";
        if extension && value != &ours[key] {
            differences.insert(format!("{path}: {key} is {}, theirs {value}", ours[key]));
        }
    }
    let required = |schema: &Value| -> BTreeSet<String> {
        let names = schema["required"].as_array().into_iter().flatten();
        names.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    for name in required(&theirs).symmetric_difference(&required(&ours)) {
        if !theirs["properties"][name].is_null() {
            let whose = if required(&ours).contains(name) {
                "ours"
            } else {
                "theirs"
            };
            differences.insert(format!("{path}: {name} is required in {whose} only"));
        }
    }
    for inner in ["items", "additionalProperties"] {
        if theirs[inner].is_object() {
            compare(&format!("{path}[]"), &theirs[inner], &ours[inner], differences);
        }
    }
    for (name, schema) in theirs["properties"].as_object().into_iter().flatten() {
        let found = &ours["properties"][name];
        if found.is_null() {
            differences.insert(format!("field {path}.{name}"));
        } else {
            compare(&format!("{path}.{name}"), schema, found, differences);
        }
    }
}

/// `allOf` with one reference says the reference.
fn flat(schema: &Value) -> Value {
    let mut flat = if schema.is_object() { schema.clone() } else { json!({}) };
    if let Some([Value::Object(only)]) = schema["allOf"].as_array().map(Vec::as_slice) {
        flat.as_object_mut().unwrap().extend(only.clone());
    }
    flat
}
