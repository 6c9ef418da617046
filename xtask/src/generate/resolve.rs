//! From Go declarations to field facts: JSON names, types, markers, and places in protobuf messages.

use super::{
    golang::{Declaration, Form, Markers, Member, Packages},
    protobuf,
};
use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Facts by full name, as `io.k8s.api.core.v1.Pod`.
pub(super) type Types = BTreeMap<String, Type>;

/// Facts about one named type.
#[derive(Clone, Debug)]
pub(super) struct Type {
    name: String,
    /// Group, version, kind.
    kinds: Vec<[String; 3]>,
    atomic: bool,
    /// What it is where it is no object: `quantity`, `any`.
    scalar: Option<&'static str>,
    /// Messages whose fields stand in this object: number and type.
    inline: Vec<(u32, String)>,
    /// By JSON name.
    pub(super) fields: BTreeMap<String, Field>,
}

/// Facts about one field.
#[derive(Clone, Debug, Default)]
pub(super) struct Field {
    /// `string`, a full name, `[]…`, `{}…`.
    pub(super) ty: String,
    pub(super) required: bool,
    default: Option<Value>,
    pub(super) list_type: Option<String>,
    pub(super) list_keys: Vec<String>,
    pub(super) map_type: Option<String>,
    struct_type: Option<String>,
    pub(super) patch_strategy: Option<String>,
    pub(super) patch_key: Option<String>,
    wire: Option<Wire>,
}

#[derive(Clone, Debug)]
struct Wire {
    number: u32,
    encoding: &'static str,
    pointer: bool,
    always: bool,
}

/// Types whose JSON form is no object of their fields.
const SPECIAL: [(&str, &str); 11] = [
    ("io.k8s.apimachinery.pkg.api.resource.Quantity", "quantity"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Duration", "string"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1", "any"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime", "microTime"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Time", "time"),
    ("io.k8s.apimachinery.pkg.runtime.RawExtension", "any"),
    ("io.k8s.apimachinery.pkg.util.intstr.IntOrString", "intOrString"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON", "any"),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray",
        "any",
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool",
        "any",
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray",
        "any",
    ),
];

/// Kinds that the published schemas lack.
const MORE_KINDS: [&str; 4] = ["NodeMetrics", "NodeMetricsList", "PodMetrics", "PodMetricsList"];
const METRICS: &str = "io.k8s.metrics.pkg.apis.metrics.v1beta1";

/// Field numbers of the one served package whose sources no distribution carries: type, field, number, pointer.
const AGGREGATOR: [(&str, &str, u32, bool); 21] = [
    ("APIService", "metadata", 1, false),
    ("APIService", "spec", 2, false),
    ("APIService", "status", 3, false),
    ("APIServiceCondition", "type", 1, false),
    ("APIServiceCondition", "status", 2, false),
    ("APIServiceCondition", "lastTransitionTime", 3, false),
    ("APIServiceCondition", "reason", 4, false),
    ("APIServiceCondition", "message", 5, false),
    ("APIServiceList", "metadata", 1, false),
    ("APIServiceList", "items", 2, false),
    ("APIServiceSpec", "service", 1, true),
    ("APIServiceSpec", "group", 2, false),
    ("APIServiceSpec", "version", 3, false),
    ("APIServiceSpec", "insecureSkipTLSVerify", 4, false),
    ("APIServiceSpec", "caBundle", 5, false),
    ("APIServiceSpec", "groupPriorityMinimum", 7, false),
    ("APIServiceSpec", "versionPriority", 8, false),
    ("APIServiceStatus", "conditions", 1, false),
    ("ServiceReference", "namespace", 1, false),
    ("ServiceReference", "name", 2, false),
    ("ServiceReference", "port", 3, true),
];

/// Resolves every published type, and what those refer to.
///
/// # Errors
/// A declaration is missing or has a form that is not known here.
pub(super) fn run(packages: Packages, published: &Map<String, Value>) -> Result<Types> {
    let mut resolver = Resolver {
        packages,
        messages: BTreeMap::new(),
        types: Types::new(),
        wanted: published.keys().cloned().collect(),
    };
    resolver
        .wanted
        .extend(MORE_KINDS.map(|kind| format!("{METRICS}.{kind}")));
    while let Some(name) = resolver.wanted.pop_first() {
        if resolver.types.contains_key(&name) {
            continue;
        }
        let mut ty = resolver.named(&name, published).with_context(|| name.clone())?;
        ty.kinds = kinds(&name, published.get(&name));
        resolver.types.insert(name, ty);
    }
    Ok(resolver.types)
}

fn kinds(name: &str, published: Option<&Value>) -> Vec<[String; 3]> {
    if let Some(kind) = name.strip_prefix(METRICS).and_then(|rest| rest.strip_prefix('.')) {
        let known = MORE_KINDS.contains(&kind);
        return known
            .then(|| ["metrics.k8s.io", "v1beta1", kind].map(str::to_owned))
            .into_iter()
            .collect();
    }
    let listed = published.and_then(|schema| schema["x-kubernetes-group-version-kind"].as_array());
    let part = |kind: &Value, key: &str| kind[key].as_str().unwrap_or_default().to_owned();
    let kinds = listed
        .into_iter()
        .flatten()
        .map(|kind| ["group", "version", "kind"].map(|key| part(kind, key)));
    // Kinds of meta/v1 are in every group and version; naming one says enough.
    let everywhere = listed.is_some_and(|listed| listed.len() > 3);
    kinds
        .filter(|[group, version, _]| !everywhere || (group.is_empty() && version == "v1"))
        .collect()
}

struct Resolver {
    packages: Packages,
    /// By Go import path.
    messages: BTreeMap<String, protobuf::Messages>,
    types: Types,
    wanted: BTreeSet<String>,
}

/// A type expression, resolved.
struct Expression {
    ty: String,
    pointer: bool,
}

impl Resolver {
    fn named(&mut self, name: &str, published: &Map<String, Value>) -> Result<Type> {
        let mut ty = Type {
            name: name.to_owned(),
            kinds: Vec::new(),
            atomic: false,
            scalar: None,
            inline: Vec::new(),
            fields: BTreeMap::new(),
        };
        if let Some((_, scalar)) = SPECIAL.iter().find(|(special, _)| *special == name) {
            ty.scalar = Some(scalar);
            return Ok(ty);
        }
        let (package, local) = import_path(name)?;
        if !self.packages.has(&package) {
            let schema = published.get(name).context("neither Go sources nor a schema")?;
            ty.fields = from_schema(local, schema)?;
            return Ok(ty);
        }
        let declaration = self.declaration(&package, local)?;
        ty.atomic = declaration.markers.get("structType") == Some("atomic");
        let (declaration, members) = self.members(&package, declaration)?;
        let messages = self.messages(&package)?.get(local).cloned().unwrap_or_default();
        for member in &members {
            self.member(&mut ty, &package, &declaration, member, &messages)
                .with_context(|| member.expression.clone())?;
        }
        Ok(ty)
    }

    fn declaration(&mut self, package: &str, local: &str) -> Result<Declaration> {
        let found = self.packages.get(package)?.types.get(local);
        found.cloned().with_context(|| format!("{package} declares no {local}"))
    }

    fn messages(&mut self, package: &str) -> Result<&protobuf::Messages> {
        if !self.messages.contains_key(package) {
            let messages = protobuf::messages(&self.packages.get(package)?.dir)?;
            self.messages.insert(package.to_owned(), messages);
        }
        self.messages.get(package).context("just inserted")
    }

    /// The members of a struct, or of the struct from which a type is derived, and the declaration they stand in.
    fn members(&mut self, package: &str, declaration: Declaration) -> Result<(Declaration, Vec<Member>)> {
        match &declaration.form {
            Form::Struct(members) => {
                let members = members.clone();
                Ok((declaration, members))
            }
            Form::Derived(expression) | Form::Alias(expression) => {
                let (package, local) = locate(package, &declaration, expression)?;
                let declaration = self.declaration(&package, &local)?;
                self.members(&package, declaration)
            }
        }
    }

    fn member(
        &mut self,
        ty: &mut Type,
        package: &str,
        declaration: &Declaration,
        member: &Member,
        messages: &BTreeMap<u32, protobuf::Field>,
    ) -> Result<()> {
        let Some(tag) = member.tags.get("json") else {
            return Ok(());
        };
        let mut options = tag.split(',');
        let json_name = options.next().unwrap_or_default();
        let options: Vec<&str> = options.collect();
        if json_name == "-" {
            return Ok(());
        }
        let number = match member.tags.get("protobuf") {
            Some(tag) => Some(
                tag.split(',')
                    .nth(1)
                    .context("a protobuf tag without number")?
                    .parse::<u32>()?,
            ),
            None => None,
        };
        let resolved = self.expression(package, declaration, &member.expression)?;
        if options.contains(&"inline") {
            return self.inline(ty, number, &resolved.ty, messages);
        }
        let omitted = options.contains(&"omitempty") || options.contains(&"omitzero");
        let marked = |key| member.markers.get(key).is_some();
        let mut field = Field {
            required: marked("required") || !(omitted || marked("optional")),
            default: self.default(package, declaration, &member.markers)?,
            ..Field::of(&resolved.ty, &member.markers)
        };
        field.patch_strategy = member.tags.get("patchStrategy").cloned();
        field.patch_key = member.tags.get("patchMergeKey").cloned();
        // Without a message the package is not sent as protobuf (meta/v1 for discovery, version).
        if let (Some(number), false) = (number, messages.is_empty()) {
            let message = messages.get(&number);
            let message = message.with_context(|| format!("generated.proto has no field {number}"))?;
            field.wire = Some(Wire {
                number,
                encoding: encoding(message, &resolved.ty),
                pointer: resolved.pointer,
                always: !omitted && !resolved.pointer,
            });
        }
        ty.fields.insert(json_name.to_owned(), field);
        Ok(())
    }

    /// Takes over the fields of an embedded type.
    fn inline(
        &mut self,
        ty: &mut Type,
        number: Option<u32>,
        embedded: &str,
        messages: &BTreeMap<u32, protobuf::Field>,
    ) -> Result<()> {
        if !self.types.contains_key(embedded) {
            let facts = self.named(embedded, &Map::new()).with_context(|| embedded.to_owned())?;
            self.types.insert(embedded.to_owned(), facts);
        }
        let facts = &self.types[embedded];
        for (name, field) in &facts.fields {
            let field = Field {
                wire: None,
                ..field.clone()
            };
            ty.fields.insert(name.clone(), field);
        }
        if let (Some(number), false) = (number, messages.is_empty()) {
            ty.inline.push((number, embedded.to_owned()));
        }
        Ok(())
    }

    /// The marker's JSON, or the constant that `ref(…)` names.
    fn default(&mut self, package: &str, declaration: &Declaration, markers: &Markers) -> Result<Option<Value>> {
        let Some(marker) = markers.get("default") else {
            return Ok(None);
        };
        let text = match marker.strip_prefix("ref(").and_then(|rest| rest.strip_suffix(')')) {
            None => marker.to_owned(),
            Some(constant) => {
                let (package, local) = match constant.rsplit_once('.') {
                    Some((path, local)) if path.contains('/') => (path.to_owned(), local.to_owned()),
                    _ => locate(package, declaration, constant)?,
                };
                let value = self.packages.get(&package)?.constants.get(&local).cloned();
                value.with_context(|| format!("{package} has no constant {local}"))?
            }
        };
        serde_json::from_str(&text)
            .with_context(|| format!("the default {text}"))
            .map(Some)
    }

    fn expression(&mut self, package: &str, declaration: &Declaration, expression: &str) -> Result<Expression> {
        if let Some(inner) = expression.strip_prefix('*') {
            let ty = self.expression(package, declaration, inner)?.ty;
            return Ok(Expression { ty, pointer: true });
        }
        let ty = if expression == "[]byte" {
            "bytes".to_owned()
        } else if let Some(item) = expression.strip_prefix("[]") {
            format!("[]{}", self.expression(package, declaration, item)?.ty)
        } else if let Some(rest) = expression.strip_prefix("map[") {
            let (_, value) = rest.split_once(']').context("a map without a value type")?;
            format!("{{}}{}", self.expression(package, declaration, value)?.ty)
        } else {
            match expression {
                "string" => "string".to_owned(),
                "bool" => "boolean".to_owned(),
                "int32" | "int" => "int32".to_owned(),
                "int64" => "int64".to_owned(),
                "float64" => "double".to_owned(),
                _ => {
                    let (package, local) = locate(package, declaration, expression)?;
                    self.reference(&package, &local)?
                }
            }
        };
        Ok(Expression { ty, pointer: false })
    }

    fn reference(&mut self, package: &str, local: &str) -> Result<String> {
        let name = full_name(package, local);
        if SPECIAL.iter().any(|(special, _)| *special == name) {
            self.wanted.insert(name.clone());
            return Ok(name);
        }
        let declaration = self.declaration(package, local)?;
        match &declaration.form {
            Form::Struct(_) => {}
            Form::Alias(expression) => return Ok(self.expression(package, &declaration, expression)?.ty),
            Form::Derived(expression) => {
                let ty = self.expression(package, &declaration, expression)?.ty;
                // A struct derived from a struct is a type of its own; text, lists and maps are just that.
                if !ty.starts_with("io.k8s.") || SPECIAL.iter().any(|(special, _)| *special == ty) {
                    return Ok(ty);
                }
            }
        }
        self.wanted.insert(name.clone());
        Ok(name)
    }
}

impl Field {
    fn of(ty: &str, markers: &Markers) -> Self {
        let text = |key| markers.get(key).map(str::to_owned);
        Self {
            ty: ty.to_owned(),
            list_type: text("listType"),
            list_keys: markers.all("listMapKey").to_vec(),
            map_type: text("mapType"),
            struct_type: text("structType"),
            ..Self::default()
        }
    }

    fn to_json(&self) -> Value {
        let mut json = Map::new();
        json.insert("type".into(), self.ty.clone().into());
        if self.required {
            json.insert("required".into(), true.into());
        }
        if let Some(default) = &self.default {
            json.insert("default".into(), default.clone());
        }
        match self.list_type.as_deref() {
            Some("map") => drop(json.insert("list".into(), json!(self.list_keys))),
            Some("set") => drop(json.insert("list".into(), "set".into())),
            _ => {}
        }
        if self.map_type.as_deref() == Some("atomic") || self.struct_type.as_deref() == Some("atomic") {
            json.insert("atomic".into(), true.into());
        }
        if self.struct_type.as_deref() == Some("granular") {
            json.insert("atomic".into(), false.into());
        }
        if let Some(strategy) = &self.patch_strategy {
            json.insert("patch".into(), strategy.clone().into());
        }
        if let Some(key) = &self.patch_key {
            json.insert("key".into(), key.clone().into());
        }
        if let Some(wire) = &self.wire {
            json.insert("wire".into(), wire.to_json());
        }
        json.into()
    }
}

impl Wire {
    fn to_json(&self) -> Value {
        let mut json: Vec<Value> = vec![self.number.into(), self.encoding.into()];
        if self.pointer {
            json.push("pointer".into());
        }
        if self.always {
            json.push("always".into());
        }
        json.into()
    }
}

impl Type {
    /// Its kinds as `apps/v1 Deployment`, `v1 Pod`.
    pub(super) fn api_versions(&self) -> Vec<String> {
        let kinds = self.kinds.iter().map(|[group, version, kind]| match &**group {
            "" => format!("{version} {kind}"),
            group => format!("{group}/{version} {kind}"),
        });
        kinds.collect()
    }

    /// One line of JSON, the name first.
    pub(super) fn to_json(&self) -> String {
        let mut parts = vec![format!("\"name\":{}", json!(self.name))];
        if !self.kinds.is_empty() {
            parts.push(format!("\"kinds\":{}", json!(self.kinds)));
        }
        if let Some(scalar) = self.scalar {
            parts.push(format!("\"type\":{}", json!(scalar)));
        } else {
            if self.atomic {
                parts.push("\"atomic\":true".to_owned());
            }
            if !self.inline.is_empty() {
                parts.push(format!("\"inline\":{}", json!(self.inline)));
            }
            let fields = self.fields.iter().map(|(name, field)| (name.clone(), field.to_json()));
            let fields: Value = fields.collect::<Map<_, _>>().into();
            parts.push(format!("\"fields\":{fields}"));
        }
        format!("{{{}}}", parts.join(","))
    }
}

/// How one value of a message's field is encoded. A list that may not repeat is a message of `items`.
fn encoding(field: &protobuf::Field, ty: &str) -> &'static str {
    if !field.repeated && ty.starts_with("[]") {
        return "items";
    }
    match &*field.ty {
        "string" => "string",
        "bytes" => "bytes",
        "bool" | "int32" | "int64" | "uint32" | "uint64" => "varint",
        "double" => "fixed64",
        _ => "message",
    }
}

/// `metav1.ObjectMeta` or `Pod`, as import path and name.
fn locate(package: &str, declaration: &Declaration, expression: &str) -> Result<(String, String)> {
    match expression.split_once('.') {
        None => Ok((package.to_owned(), expression.to_owned())),
        Some((alias, local)) => match declaration.imports.get(alias) {
            Some(path) => Ok((path.clone(), local.to_owned())),
            None => bail!("{package} uses {expression}, but its file does not import {alias}"),
        },
    }
}

/// `k8s.io/api/core/v1` and `Pod` are `io.k8s.api.core.v1.Pod`.
fn full_name(package: &str, local: &str) -> String {
    let (host, rest) = package.split_once('/').unwrap_or((package, ""));
    let host = host.rsplit('.').collect::<Vec<_>>().join(".");
    format!("{host}.{}.{local}", rest.replace('/', "."))
}

fn import_path(name: &str) -> Result<(String, &str)> {
    let (package, local) = name.rsplit_once('.').context("a name without a package")?;
    let rest = package.strip_prefix("io.k8s.").context("not a package of upstream's")?;
    Ok((format!("k8s.io/{}", rest.replace('.', "/")), local))
}

/// The facts of a type of which only the published schema is to be had.
fn from_schema(local: &str, schema: &Value) -> Result<BTreeMap<String, Field>> {
    let required = schema["required"].as_array();
    let is_required = |name: &str| required.is_some_and(|names| names.iter().any(|it| it == name));
    let properties = schema["properties"]
        .as_object()
        .context("a schema without properties")?;
    let text = |schema: &Value, key: &str| schema[key].as_str().map(str::to_owned);
    let mut fields = BTreeMap::new();
    for (name, property) in properties {
        let ty = schema_type(property).with_context(|| name.clone())?;
        let wire = AGGREGATOR.iter().find(|(of, field, ..)| *of == local && field == name);
        let wire = wire.map(|(_, _, number, pointer)| Wire {
            number: *number,
            encoding: schema_encoding(&ty),
            pointer: *pointer,
            always: is_required(name),
        });
        let keys = property["x-kubernetes-list-map-keys"].as_array();
        let keys = keys.into_iter().flatten().filter_map(Value::as_str);
        let field = Field {
            required: is_required(name),
            default: None,
            list_type: text(property, "x-kubernetes-list-type"),
            list_keys: keys.map(str::to_owned).collect(),
            map_type: None,
            struct_type: None,
            patch_strategy: text(property, "x-kubernetes-patch-strategy"),
            patch_key: text(property, "x-kubernetes-patch-merge-key"),
            wire,
            ty,
        };
        fields.insert(name.clone(), field);
    }
    Ok(fields)
}

fn schema_type(schema: &Value) -> Result<String> {
    if let Some(name) = schema["$ref"].as_str() {
        return Ok(name.rsplit('/').next().unwrap_or(name).to_owned());
    }
    let ty = match &schema["type"] {
        Value::Array(types) => types.iter().find_map(|ty| ty.as_str().filter(|ty| *ty != "null")),
        other => other.as_str(),
    };
    Ok(match (ty, schema["format"].as_str()) {
        (Some("array"), _) => format!("[]{}", schema_type(&schema["items"])?),
        (Some("string"), Some("byte")) => "bytes".to_owned(),
        (Some("integer"), Some("int32")) => "int32".to_owned(),
        (Some("integer"), _) => "int64".to_owned(),
        (Some(ty @ ("string" | "boolean")), _) => ty.to_owned(),
        other => bail!("the schema's type {other:?} is not known here"),
    })
}

fn schema_encoding(ty: &str) -> &'static str {
    match ty.trim_start_matches("[]") {
        "string" => "string",
        "bytes" => "bytes",
        "int32" | "int64" | "boolean" => "varint",
        _ => "message",
    }
}
