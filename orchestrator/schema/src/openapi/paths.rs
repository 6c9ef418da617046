//! One path per resource, place and subresource, with its verbs. kubectl looks here for the kind of a resource (`explain`)
//! and for `fieldValidation` among the parameters of `patch` (`apply`, `create`, `replace`).

use super::schemas::{Dialect, Schemas};
use crate::resource::{Resource, Scope};
use serde_json::{Map, Value, json};

/// What a path is about.
struct Place<'a> {
    resource: &'a Resource,
    /// Group, version and kind of the body.
    kind: [&'a str; 3],
    /// Full name of the body's schema; empty where there is none.
    schema: &'a str,
    namespaced: bool,
    /// As `Status`, for the operation's name.
    suffix: String,
}

/// Adds the paths of a resource.
pub(super) fn add(schemas: &mut Schemas<'_>, paths: &mut Map<String, Value>, resource: &Resource, schema: &str) {
    let base = format!("/{}", super::path(&resource.group, &resource.version));
    let plural = &resource.plural;
    let namespaced = resource.scope == Scope::Namespaced;
    let verb = |verb: &str| resource.verbs.iter().any(|it| &**it == verb);
    let kind = [&*resource.group, &*resource.version, &*resource.kind];
    let place = |suffix: &str, namespaced| Place {
        resource,
        kind,
        schema,
        namespaced,
        suffix: suffix.to_owned(),
    };
    let collection = if namespaced {
        format!("{base}/namespaces/{{namespace}}/{plural}")
    } else {
        format!("{base}/{plural}")
    };
    if namespaced && verb("list") {
        let place = place("ForAllNamespaces", false);
        put(
            paths,
            &format!("{base}/{plural}"),
            &place,
            [("list", "get", true)],
            schemas,
        );
    }
    let all = [
        ("list", "get", verb("list")),
        ("create", "post", verb("create")),
        ("deletecollection", "delete", verb("deletecollection")),
    ];
    put(paths, &collection, &place("", namespaced), all, schemas);
    let one = format!("{collection}/{{name}}");
    let verbs = [
        ("get", "get", verb("get")),
        ("update", "put", verb("update")),
        ("patch", "patch", verb("patch")),
        ("delete", "delete", verb("delete")),
    ];
    put(paths, &one, &place("", namespaced), verbs, schemas);
    for sub in &resource.subresources {
        let has = |verb: &str| sub.verbs.iter().any(|it| &**it == verb);
        let id = schemas.types.kind(&sub.group, &sub.version, &sub.kind);
        let own = (&*sub.group, &*sub.version, &*sub.kind) == (kind[0], kind[1], kind[2]);
        let name = if own {
            Some(schema.to_owned())
        } else {
            id.and_then(|id| schemas.want(id))
        };
        let place = Place {
            resource,
            kind: [&sub.group, &sub.version, &sub.kind],
            schema: name.as_deref().unwrap_or_default(),
            namespaced,
            suffix: capital(&sub.name),
        };
        let verbs = [
            ("get", "get", has("get")),
            ("create", "post", has("create")),
            ("update", "put", has("update")),
            ("patch", "patch", has("patch")),
            ("delete", "delete", has("delete")),
        ];
        put(paths, &format!("{one}/{}", sub.name), &place, verbs, schemas);
    }
}

/// Adds one path with those of its verbs that there are: name, method, whether.
fn put<const N: usize>(
    paths: &mut Map<String, Value>,
    path: &str,
    place: &Place<'_>,
    verbs: [(&str, &str, bool); N],
    schemas: &mut Schemas<'_>,
) {
    let mut item = Map::new();
    for (verb, method, there) in verbs {
        if there {
            item.insert(method.to_owned(), operation(verb, place, schemas));
        }
    }
    if item.is_empty() {
        return;
    }
    let named = path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let named = named.map(|name| {
        let mut parameter = parameter(schemas.dialect, name, "string");
        parameter["in"] = "path".into();
        parameter["required"] = true.into();
        parameter
    });
    let named: Vec<Value> = named.collect();
    if !named.is_empty() {
        item.insert("parameters".to_owned(), named.into());
    }
    paths.insert(path.to_owned(), item.into());
}

fn operation(verb: &str, place: &Place<'_>, schemas: &mut Schemas<'_>) -> Value {
    let [group, version, kind] = place.kind;
    let resource = place.resource;
    let list = format!("{}List", place.schema);
    let body = |schemas: &mut Schemas<'_>, name: &str| match name {
        "" => json!({"type": "string"}),
        name => schemas.reference(name),
    };
    let answer = match verb {
        "list" => schemas.reference(&list),
        "delete" | "deletecollection" => schemas.meta("Status"),
        _ => body(schemas, place.schema),
    };
    let request = match verb {
        "create" | "update" if !place.schema.is_empty() => Some(body(schemas, place.schema)),
        "delete" | "deletecollection" => Some(schemas.meta("DeleteOptions")),
        "patch" => Some(schemas.meta("Patch")),
        _ => None,
    };
    let dialect = schemas.dialect;
    let mut parameters: Vec<Value> = query(verb)
        .iter()
        .map(|(name, ty)| parameter(dialect, name, ty))
        .collect();
    let action = match verb {
        "create" => "post",
        "update" => "put",
        verb => verb,
    };
    let own_group = resource.group.split('.').next().unwrap_or_default();
    let own_group = if own_group.is_empty() { "core" } else { own_group };
    let operation_verb = match verb {
        "update" => "replace",
        "get" => "read",
        "deletecollection" => "deleteCollection",
        verb => verb,
    };
    let id = format!(
        "{operation_verb}{}{}{}{}{}",
        capital(own_group),
        capital(&resource.version),
        if place.namespaced { "Namespaced" } else { "" },
        resource.kind,
        place.suffix
    );
    let mut operation = json!({
        "operationId": id,
        "tags": [format!("{own_group}_{}", resource.version)],
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
    });
    match dialect {
        Dialect::V3 => {
            if let Some(schema) = request {
                let types: &[&str] = match verb {
                    "patch" if resource.custom.is_some() => &PATCHES[..3],
                    "patch" => &PATCHES,
                    _ => &["*/*"],
                };
                operation["requestBody"] = json!({ "content": content(types, &schema) });
            }
            let content = content(&["application/json", "application/yaml"], &answer);
            operation["responses"] = json!({"200": {"description": "OK", "content": content}});
        }
        Dialect::V2 => {
            if let Some(schema) = request {
                parameters.push(json!({"in": "body", "name": "body", "required": true, "schema": schema}));
                if verb == "patch" {
                    operation["consumes"] = json!(PATCHES);
                }
            }
            operation["produces"] = json!(["application/json", "application/yaml"]);
            operation["responses"] = json!({"200": {"description": "OK", "schema": answer}});
        }
    }
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    operation
}

/// The last one is for built-in types only.
const PATCHES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/apply-patch+yaml",
    "application/strategic-merge-patch+json",
];

/// Query parameters by verb.
fn query(verb: &str) -> &'static [(&'static str, &'static str)] {
    match verb {
        "list" | "deletecollection" => &[
            ("allowWatchBookmarks", "boolean"),
            ("continue", "string"),
            ("fieldSelector", "string"),
            ("labelSelector", "string"),
            ("limit", "integer"),
            ("resourceVersion", "string"),
            ("resourceVersionMatch", "string"),
            ("sendInitialEvents", "boolean"),
            ("timeoutSeconds", "integer"),
            ("watch", "boolean"),
        ],
        "create" | "update" => &[
            ("dryRun", "string"),
            ("fieldManager", "string"),
            ("fieldValidation", "string"),
        ],
        "patch" => &[
            ("dryRun", "string"),
            ("fieldManager", "string"),
            ("fieldValidation", "string"),
            ("force", "boolean"),
        ],
        "delete" => &[
            ("dryRun", "string"),
            ("gracePeriodSeconds", "integer"),
            ("propagationPolicy", "string"),
        ],
        _ => &[],
    }
}

fn parameter(dialect: Dialect, name: &str, ty: &str) -> Value {
    match dialect {
        Dialect::V3 => json!({"in": "query", "name": name, "schema": {"type": ty, "uniqueItems": true}}),
        Dialect::V2 => json!({"in": "query", "name": name, "type": ty, "uniqueItems": true}),
    }
}

fn content(types: &[&str], schema: &Value) -> Value {
    let content = types.iter().map(|ty| ((*ty).to_owned(), json!({ "schema": schema })));
    Value::Object(content.collect())
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters).collect(),
        None => String::new(),
    }
}
