//! OpenAPI documents: what kubectl looks for, what a custom resource brings, and upstream's own documents.

use fairlead_schema::{
    Registry, Resource,
    openapi::{Document, OpenApi},
};
use serde_json::{Value, json};
use std::sync::Arc;

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
