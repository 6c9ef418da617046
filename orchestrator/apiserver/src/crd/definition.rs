//! A CustomResourceDefinition itself: its defaults, and whether it may be stored.
//! Source: `pkg/apis/apiextensions/{v1/defaults.go,validation/validation.go}`.

use super::{
    cel::path,
    check,
    faults::{self, child, forbidden, index, invalid, key, required},
    structural::{array, flag},
};
use crate::value::same;
use fairlead_schema::Fault;
use serde_json::{Value, json};

/// Selectable fields of one version at most. Source: `MaxSelectableFields`.
const MAX_SELECTABLE: usize = 8;

/// The annotation that projects of Kubernetes itself put on definitions in its own groups.
const APPROVED: &str = "api-approved.kubernetes.io";

/// Completes a definition: `singular`, `listKind`, `conversion`, `storedVersions`.
pub fn apply_defaults(crd: &mut Value) {
    if !crd["spec"]["names"].is_object() {
        return;
    }
    let kind = crd["spec"]["names"]["kind"].as_str().unwrap_or_default().to_owned();
    let names = &mut crd["spec"]["names"];
    let is_empty = |value: &Value| value.as_str().unwrap_or_default().is_empty();
    if !kind.is_empty() && is_empty(&names["singular"]) {
        names["singular"] = json!(kind.to_lowercase());
    }
    if !kind.is_empty() && is_empty(&names["listKind"]) {
        names["listKind"] = json!(format!("{kind}List"));
    }
    if !crd["spec"]["conversion"].is_object() {
        crd["spec"]["conversion"] = json!({ "strategy": "None" });
    }
    let stored = array(&crd["status"], "storedVersions").next().is_some();
    let storage = array(&crd["spec"], "versions")
        .find(|it| flag(it, "storage"))
        .map(|it| it["name"].clone());
    if let Some(storage) = storage.filter(|_| !stored) {
        if !crd["status"].is_object() {
            crd["status"] = json!({});
        }
        crd["status"]["storedVersions"] = json!([storage]);
    }
}

/// What a write of the definition itself does to its status: the storage version is one of those that may hold objects.
pub fn note_storage_version(crd: &mut Value) {
    let storage = array(&crd["spec"], "versions")
        .find(|it| flag(it, "storage"))
        .map(|it| it["name"].clone());
    let Some(storage) = storage else { return };
    if array(&crd["status"], "storedVersions").all(|it| *it != storage) {
        if !crd["status"].is_object() {
            crd["status"] = json!({});
        }
        match crd["status"]["storedVersions"].as_array_mut() {
            Some(versions) => versions.push(storage),
            None => crd["status"]["storedVersions"] = json!([storage]),
        }
    }
}

/// All faults of a definition that has its defaults; `old`: what it would replace.
pub fn validate(old: Option<&Value>, new: &Value) -> Vec<Fault> {
    let mut judge = Judge { faults: Vec::new() };
    judge.definition(old, new);
    judge.faults
}

struct Judge {
    faults: Vec<Fault>,
}

impl Judge {
    fn push(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    fn definition(&mut self, old: Option<&Value>, new: &Value) {
        let spec = &new["spec"];
        let name = new["metadata"]["name"].as_str().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (group, plural) = (text(&spec["group"]), text(&spec["names"]["plural"]));
        let wanted = format!("{plural}.{group}");
        if name != wanted {
            let why = "must be spec.names.plural+\".\"+spec.group";
            self.push(invalid("metadata.name", &json!(name), why));
        }
        if group.is_empty() {
            self.push(required("spec.group", ""));
        } else if !is_subdomain(&group) {
            self.push(invalid("spec.group", &json!(group), NO_SUBDOMAIN));
        } else if !group.contains('.') {
            self.push(invalid(
                "spec.group",
                &json!(group),
                "should be a domain with at least one dot",
            ));
        }
        self.approval(new, &group);
        match spec["scope"].as_str() {
            None | Some("") => self.push(required("spec.scope", "")),
            Some("Cluster" | "Namespaced") => {}
            Some(_) => self.push(faults::not_supported(
                "spec.scope",
                &spec["scope"],
                &["Cluster", "Namespaced"],
            )),
        }
        if flag(spec, "preserveUnknownFields") {
            let why = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema \
                       instead";
            self.push(invalid("spec.preserveUnknownFields", &json!(true), why));
        }
        self.names(&spec["names"], "spec.names");
        self.conversion(&spec["conversion"]);
        self.versions(old, spec);
        self.stored_versions(new);
        if let Some(old) = old {
            self.immutable(old, new);
        }
    }

    /// Groups of Kubernetes itself. Source: KEP-1111.
    fn approval(&mut self, crd: &Value, group: &str) {
        let protected = ["k8s.io", "kubernetes.io"]
            .iter()
            .any(|domain| group == *domain || group.ends_with(&format!(".{domain}")));
        if !protected {
            return;
        }
        let path = key("metadata.annotations", APPROVED);
        let why = "protected groups must have approval annotation \"api-approved.kubernetes.io\", see \
                   https://github.com/kubernetes/enhancements/pull/1111";
        match crd["metadata"]["annotations"][APPROVED].as_str() {
            None | Some("") => self.push(required(&path, why)),
            Some(text) if text.starts_with("unapproved") => {}
            Some(text) if text.contains("://") => {}
            Some(text) => self.push(invalid(&path, &json!(text), why)),
        }
    }

    fn names(&mut self, names: &Value, path: &str) {
        let text = |name: &str| names[name].as_str().unwrap_or_default();
        for name in ["plural", "singular", "kind", "listKind"] {
            let value = text(name);
            let path = child(path, name);
            let mixed = matches!(name, "kind" | "listKind");
            if value.is_empty() {
                self.push(required(&path, ""));
            } else if !is_label(&if mixed { value.to_lowercase() } else { value.to_owned() }) {
                let prefix = if mixed {
                    "may have mixed case, but should otherwise match: "
                } else {
                    ""
                };
                self.push(invalid(&path, &json!(value), &format!("{prefix}{NO_LABEL}")));
            }
        }
        for list in ["shortNames", "categories"] {
            for (at, name) in array(names, list).enumerate() {
                if !name.as_str().is_some_and(is_label) {
                    self.push(invalid(&index(&child(path, list), at), name, NO_LABEL));
                }
            }
        }
        if !text("kind").is_empty() && text("kind") == text("listKind") {
            let why = "kind and listKind may not be the same";
            self.push(invalid(&child(path, "listKind"), &names["listKind"], why));
        }
    }

    fn conversion(&mut self, conversion: &Value) {
        let path = "spec.conversion";
        match conversion["strategy"].as_str() {
            None | Some("None") => {
                if !conversion["webhook"].is_null() {
                    let why = "should not be set when strategy is not set to Webhook";
                    self.push(forbidden(&child(path, "webhook"), why));
                }
            }
            Some("Webhook") => {
                let why = "this server converts versions by apiVersion alone and calls no conversion webhook; use the \
                           strategy None and versions of one shape";
                self.push(forbidden(&child(path, "strategy"), why));
            }
            Some(_) => {
                let value = &conversion["strategy"];
                self.push(faults::not_supported(
                    &child(path, "strategy"),
                    value,
                    &["None", "Webhook"],
                ));
            }
        }
    }

    fn versions(&mut self, old: Option<&Value>, spec: &Value) {
        let versions: Vec<&Value> = array(spec, "versions").collect();
        let path = "spec.versions";
        if versions.is_empty() {
            self.push(required(path, ""));
            return;
        }
        let mut names: Vec<&str> = versions.iter().filter_map(|it| it["name"].as_str()).collect();
        names.sort_unstable();
        names.dedup();
        if names.len() != versions.len() {
            self.push(faults::invalid_unshown(path, "must contain unique version names"));
        }
        if versions.iter().filter(|it| flag(it, "storage")).count() != 1 {
            self.push(faults::invalid_unshown(
                path,
                "must have exactly one version marked as storage version",
            ));
        }
        for (at, version) in versions.into_iter().enumerate() {
            let path = index(path, at);
            if !version["name"].as_str().is_some_and(is_label) {
                self.push(invalid(&child(&path, "name"), &version["name"], NO_LABEL));
            }
            let before = old.into_iter().flat_map(|old| array(&old["spec"], "versions"));
            let before = before.filter(|it| it["name"] == version["name"]).last();
            self.version(before, version, &path);
        }
    }

    fn version(&mut self, old: Option<&Value>, version: &Value, path: &str) {
        self.deprecation(version, path);
        let status = version["subresources"]["status"].is_object();
        let schema_path = child(path, "schema.openAPIV3Schema");
        let schema = &version["schema"]["openAPIV3Schema"];
        if !schema.is_object() {
            self.push(required(&schema_path, ""));
        } else if !old.is_some_and(|old| {
            same(&old["schema"], &version["schema"]) && old["subresources"] == version["subresources"]
        }) {
            // What is stored already was judged then, perhaps by other rules.
            self.faults.extend(check::schema(schema, &schema_path, status));
        }
        self.subresources(&version["subresources"], &child(path, "subresources"));
        for (at, column) in array(version, "additionalPrinterColumns").enumerate() {
            self.column(column, &index(&child(path, "additionalPrinterColumns"), at));
        }
        self.selectable(version, schema, &child(path, "selectableFields"));
    }

    fn deprecation(&mut self, version: &Value, path: &str) {
        let path = child(path, "deprecationWarning");
        let Some(text) = version["deprecationWarning"].as_str() else {
            return;
        };
        let mut why = Vec::new();
        if !flag(version, "deprecated") {
            why.push("can only be set for deprecated versions".to_owned());
        }
        if text.len() > 256 {
            why.push("must be <= 256 characters long".to_owned());
        }
        if text.is_empty() {
            why.push("must not be an empty string".to_owned());
        }
        if let Some((at, _)) = text.char_indices().find(|(_, c)| c.is_control()) {
            why.push(format!(
                "must only contain printable UTF-8 characters; non-printable character found at index {at}"
            ));
        }
        for why in why {
            self.push(invalid(&path, &json!(text), &why));
        }
    }

    fn subresources(&mut self, subresources: &Value, path: &str) {
        let Some(scale) = subresources.get("scale").filter(|it| it.is_object()) else {
            return;
        };
        for (name, roots, why) in [
            ("specReplicasPath", &[".spec."][..], "should be a json path under .spec"),
            (
                "statusReplicasPath",
                &[".status."][..],
                "should be a json path under .status",
            ),
            (
                "labelSelectorPath",
                &[".spec.", ".status."][..],
                "should be a json path under either .spec or .status",
            ),
        ] {
            let field = child(path, &format!("scale.{name}"));
            match scale[name].as_str().unwrap_or_default() {
                "" if name == "labelSelectorPath" => {}
                "" => self.push(required(&field, "")),
                text if !text.starts_with('.') => {
                    self.push(invalid(
                        &field,
                        &json!(text),
                        "must be a simple json path starting with .",
                    ));
                }
                text if !roots.iter().any(|root| text.starts_with(root)) => {
                    self.push(invalid(&field, &json!(text), why));
                }
                _ => {}
            }
        }
    }

    fn column(&mut self, column: &Value, path: &str) {
        const TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
        const FORMATS: [&str; 8] = [
            "byte",
            "date",
            "date-time",
            "double",
            "float",
            "int32",
            "int64",
            "password",
        ];
        let text = |name: &str| column[name].as_str().unwrap_or_default();
        if text("name").is_empty() {
            self.push(required(&child(path, "name"), ""));
        }
        let types = format!("must be one of {}", TYPES.join(","));
        match text("type") {
            "" => self.push(required(&child(path, "type"), &types)),
            ty if !TYPES.contains(&ty) => self.push(invalid(&child(path, "type"), &json!(ty), &types)),
            _ => {}
        }
        let format = text("format");
        if !format.is_empty() && !FORMATS.contains(&format) {
            let why = format!("must be one of {}", FORMATS.join(","));
            self.push(invalid(&child(path, "format"), &json!(format), &why));
        }
        match text("jsonPath") {
            "" => self.push(required(&child(path, "jsonPath"), "")),
            source if !source.starts_with('.') => {
                let why = "must be a simple json path starting with .";
                self.push(invalid(&child(path, "jsonPath"), &json!(source), why));
            }
            source => {
                if let Err(error) = fairlead_schema::jsonpath::JsonPath::parse(source) {
                    self.push(invalid(&child(path, "jsonPath"), &json!(source), &error.to_string()));
                }
            }
        }
    }

    fn selectable(&mut self, version: &Value, schema: &Value, path: &str) {
        let mut seen = Vec::new();
        for (at, field) in array(version, "selectableFields").enumerate() {
            let path = child(&index(path, at), "jsonPath");
            let source = field["jsonPath"].as_str().unwrap_or_default();
            if source.is_empty() {
                self.push(required(&path, ""));
                continue;
            }
            let resolved = path::resolve(source, schema).filter(|_| !source.contains('['));
            let Some((name, below)) = resolved else {
                self.push(invalid(
                    &path,
                    &json!(source),
                    "is an invalid path: the schema has no such field",
                ));
                continue;
            };
            if name == "metadata" || name.starts_with("metadata.") {
                self.push(invalid(&path, &json!(source), "must not point to fields in metadata"));
            }
            if !check::is_selectable(below) {
                let why = "must point to a field of type string, boolean or integer. Enum string fields and strings with \
                           formats are allowed.";
                self.push(invalid(&path, &json!(source), why));
            }
            if seen.contains(&name) {
                self.push(faults::duplicate(&path, &json!(source), ""));
            } else {
                seen.push(name);
            }
        }
        if seen.len() > MAX_SELECTABLE {
            self.push(faults::too_many(path, seen.len(), MAX_SELECTABLE as u64));
        }
    }

    fn stored_versions(&mut self, crd: &Value) {
        let path = "status.storedVersions";
        let stored: Vec<&str> = array(&crd["status"], "storedVersions")
            .filter_map(Value::as_str)
            .collect();
        if stored.is_empty() {
            self.push(invalid(path, &json!(stored), "must have at least one stored version"));
            return;
        }
        let versions = || array(&crd["spec"], "versions");
        for version in versions().filter(|it| flag(it, "storage")) {
            let name = version["name"].as_str().unwrap_or_default();
            if !stored.contains(&name) {
                self.push(invalid(
                    path,
                    &json!(stored),
                    &format!("must have the storage version {name}"),
                ));
            }
        }
        for (at, name) in stored.iter().enumerate() {
            if !versions().any(|it| it["name"] == **name) {
                let why = format!(
                    "missing from spec.versions; {name} was previously a storage version, and must remain in \
                     spec.versions until a storage migration ensures no data remains persisted in {name} and removes \
                     {name} from status.storedVersions"
                );
                self.push(invalid(&index(path, at), &json!(name), &why));
            }
        }
    }

    fn immutable(&mut self, old: &Value, new: &Value) {
        let established = condition(old, "Established") == Some("True");
        let mut fixed = vec!["/spec/group", "/spec/names/plural"];
        // What is served has objects, whose place and kind cannot change.
        if established {
            fixed.extend(["/spec/scope", "/spec/names/kind"]);
        }
        for pointer in fixed {
            let (before, after) = (old.pointer(pointer), new.pointer(pointer));
            if before != after {
                let path = pointer.trim_start_matches('/').replace('/', ".");
                self.push(invalid(&path, after.unwrap_or(&Value::Null), "field is immutable"));
            }
        }
    }
}

/// The status of a condition, as `True`.
pub fn condition<'a>(crd: &'a Value, ty: &str) -> Option<&'a str> {
    array(&crd["status"], "conditions").find(|it| it["type"] == ty)?["status"].as_str()
}

const NO_LABEL: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
                        character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
                        validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";

const NO_SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and \
                            must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation \
                            is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

/// RFC 1035 §2.3.1, in lower case.
fn is_label(text: &str) -> bool {
    let inner = text
        .bytes()
        .all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-');
    (1..=63).contains(&text.len())
        && inner
        && text.starts_with(|it: char| it.is_ascii_lowercase())
        && !text.ends_with('-')
}

/// RFC 1123 §2.1, in lower case.
fn is_subdomain(text: &str) -> bool {
    let label = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}
