//! What must hold for whatever a client sends, as pure functions: properties of the normal suite, and bodies of the fuzz
//! targets in `fuzz/`.
#![allow(dead_code, reason = "each target uses a part")]

use fairlead_apiserver::{
    continue_token::ContinueToken,
    http::options::{DeleteOptions, ListOptions, WriteOptions},
    request_info::RequestInfo,
    selectors::{FieldSelector, LabelSelector},
};
use fairlead_schema::{
    Registry, Resource, defaults,
    jsonpath::JsonPath,
    proto, read, strict,
    table::Printer,
    types::{Scalar, Type, TypeId, Types},
    validate,
};
use http::Method;
use jiff::Timestamp;
use rand::{RngExt as _, rngs::StdRng, seq::IndexedRandom as _};
use serde_json::{Map, Value, json};
use std::sync::{Arc, LazyLock};

pub(crate) static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::builtin);

/// Every resource that can be made, in a fixed order.
pub(crate) fn resources() -> Vec<Arc<Resource>> {
    let mut all: Vec<_> = REGISTRY
        .resources()
        .filter(|it| it.verbs.iter().any(|verb| &**verb == "create"))
        .map(Arc::clone)
        .collect();
    all.sort_by_key(|it| (it.group.clone(), it.version.clone(), it.plural.clone()));
    all
}

/// Bodies in each of the three notations, as an object of some kind.
pub(crate) fn body(bytes: &[u8]) {
    let types = Types::builtin();
    let resources = resources();
    let (first, rest) = bytes.split_first().unwrap_or((&0, &[]));
    let resource = &resources[usize::from(*first) % resources.len()];
    let read = [
        read::json(rest).ok().map(|it| it.0),
        read::yaml(rest).ok().map(|it| it.0),
        proto::decode(&types, rest).ok(),
        proto::decode(&types, &[proto::MAGIC, rest].concat()).ok(),
    ];
    for value in read.into_iter().flatten() {
        object(resource, value);
    }
}

/// What a write does to an object before anything is known of other objects.
pub(crate) fn object(resource: &Resource, mut value: Value) {
    if !value.is_object() {
        return;
    }
    let problems = strict::check(&resource.types, resource.ty, &value);
    assert!(problems.len() <= 100);
    assert!(problems.iter().all(|it| it.path.len() <= 10_000));
    if strict::normalise(&resource.types, resource.ty, &mut value).is_err() {
        return;
    }
    // What was dropped is gone, and nothing else changes by doing it again.
    let mut again = value.clone();
    assert!(strict::normalise(&resource.types, resource.ty, &mut again).is_ok());
    assert_eq!(again, value, "{}", resource.plural);
    defaults::apply(resource, &mut value);
    let mut again = value.clone();
    defaults::apply(resource, &mut again);
    assert_eq!(again, value, "defaults of {}", resource.plural);
    let _ = validate::object(resource, None, &value);
    let causes = validate::object(resource, Some(&value), &value);
    assert!(causes.len() < 100_000);
    for subresource in &resource.subresources {
        let _ = validate::subresource(resource, &subresource.name, &value, &value);
    }
    let printer = Printer::new(resource);
    assert_eq!(
        printer.cells(&value, Timestamp::UNIX_EPOCH).len(),
        printer.definitions().len()
    );
    // What is answered can be read again, as long as it is not too deep to be stored.
    if !fairlead_apiserver::value::deeper_than(&value, fairlead_apiserver::value::MAX_DEPTH) {
        let text = serde_json::to_vec(&value).unwrap_or_default();
        assert_eq!(read::json(&text).map(|it| it.0), Ok(value));
    }
}

/// Selectors of labels and fields.
pub(crate) fn selectors(text: &str) {
    let labels = json!({ "metadata": { "labels": { "a": "b", "c": "", "n": "5" } } });
    if let Ok(selector) = LabelSelector::parse(text) {
        let first = selector.matches_object(&labels);
        assert_eq!(first, selector.matches_object(&labels));
        assert_eq!(selector.is_empty(), selector == LabelSelector::default());
    }
    for resource in [("", "v1", "pods"), ("apps", "v1", "replicasets"), ("", "v1", "events")] {
        if let Some(resource) = REGISTRY.resource(resource.0, resource.1, resource.2) {
            let _ = FieldSelector::parse(text, resource);
        }
    }
    let pieces: Vec<_> = text.split(' ').collect();
    let expression = json!({ "matchLabels": { pieces[0]: text },
        "matchExpressions": [{ "key": text, "operator": pieces[pieces.len() - 1], "values": pieces }] });
    let _ = LabelSelector::from_object(&expression);
}

/// Paths, queries and tokens.
pub(crate) fn request(text: &str) {
    let (path, query) = text.split_once('?').unwrap_or((text, text));
    for method in [
        Method::GET,
        Method::POST,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
    ] {
        let info = RequestInfo::parse(&method, path, query);
        assert!(info.is_resource || (info.resource.is_empty() && info.name.is_empty() && info.subresource.is_empty()));
        assert!(!info.is_resource || !info.resource.is_empty(), "{path}");
    }
    for watch in [false, true] {
        if let Ok(options) = ListOptions::read(query, watch) {
            let _ = options.revision();
        }
    }
    let _ = WriteOptions::read(query);
    let _ = DeleteOptions::read(query, &Value::Null);
    if let Ok(token) = ContinueToken::decode(text) {
        assert_eq!(ContinueToken::decode(&token.encode()).as_ref().ok(), Some(&token));
        let _ = (token.start(), token.revision());
        assert_eq!(token.inconsistent().revision(), None);
    }
}

/// Paths of columns and of custom-columns.
pub(crate) fn json_path(text: &str) {
    let Ok(path) = JsonPath::parse(text) else { return };
    let object = json!({ "a": { "b": [1, { "c": "d", "e": null }, [2, 3], "x"] }, "metadata": { "name": "n", "labels": { "a.b/c": "v" } } });
    let found = path.find(&object);
    assert_eq!(path.first(&object), found.first().copied());
    assert!(found.len() < 10_000);
}

const WORDS: [&str; 30] = [
    "",
    "a",
    "A",
    "a-b",
    "default",
    "..",
    "/",
    "/x",
    "a/b",
    "1",
    "-1",
    "0.5Gi",
    "100m",
    "1e400",
    "TCP",
    "ClusterIP",
    "NodePort",
    "None",
    "10.96.0.7",
    "::1",
    "999.1.1.1/99",
    "example.com",
    "é",
    "\u{0}",
    "*",
    "50%",
    "300%",
    "Always",
    "2024-01-01T00:00:00Z",
    "YQ==",
];
const NUMBERS: [i64; 14] = [
    0,
    1,
    -1,
    2,
    80,
    443,
    30_000,
    65_535,
    65_536,
    i32::MAX as i64,
    i32::MIN as i64,
    i64::MAX,
    i64::MIN,
    10_000_000_000,
];

/// A value of a type, and now and then of another.
pub(crate) fn value(types: &Types, ty: TypeId, depth: usize, random: &mut StdRng) -> Value {
    if random.random_range(0..60) == 0 {
        return [
            json!(null),
            json!([]),
            json!({}),
            json!(1.5),
            json!("x"),
            json!([null]),
            json!({ "": null }),
        ]
        .choose(random)
        .cloned()
        .unwrap_or_default();
    }
    let word = |random: &mut StdRng| json!(WORDS.choose(random).copied().unwrap_or_default());
    let number = |random: &mut StdRng| NUMBERS.choose(random).copied().unwrap_or_default();
    let few = |random: &mut StdRng| if depth == 0 { 0 } else { random.random_range(0..3) };
    match types.get(ty) {
        Type::Any => json!({ "a": [word(random)] }),
        Type::Map { value: ty, .. } => {
            let mut map = Map::new();
            for _ in 0..few(random) {
                let key = word(random).as_str().unwrap_or_default().to_owned();
                map.insert(key, value(types, *ty, depth - 1, random));
            }
            map.into()
        }
        Type::List { item, .. } => (0..few(random))
            .map(|_| value(types, *item, depth - 1, random))
            .collect(),
        Type::Object(object) => {
            let mut map = Map::new();
            // The larger the type, the smaller the chance of each field: objects stay of a size.
            let chance = (4.0 / (object.fields.len() as f64 + 1.0)).clamp(0.1, 0.8);
            for (name, field) in &object.fields {
                if depth > 0 && random.random_bool(if field.required { 0.95 } else { chance }) {
                    map.insert(name.to_string(), value(types, field.ty, depth - 1, random));
                }
            }
            map.into()
        }
        Type::Scalar(scalar) => match scalar {
            Scalar::Int32 => json!(number(random).clamp(i32::MIN.into(), i32::MAX.into())),
            Scalar::Int64 => json!(number(random)),
            Scalar::Double => json!(0.5),
            Scalar::Boolean => json!(random.random_bool(0.5)),
            Scalar::Time | Scalar::MicroTime => json!("2024-01-01T00:00:00Z"),
            Scalar::Bytes => json!("YQ=="),
            Scalar::Quantity => json!(["1", "100m", "-1", "1e18", "9223372036854775807Ei", "0"].choose(random)),
            Scalar::IntOrString if random.random_bool(0.5) => {
                json!(number(random).clamp(i32::MIN.into(), i32::MAX.into()))
            }
            Scalar::IntOrString | Scalar::String => word(random),
        },
    }
}

/// An object of a kind that may exist, by its name at least.
pub(crate) fn made_up(resource: &Resource, random: &mut StdRng) -> Value {
    let mut object = value(&resource.types, resource.ty, 7, random);
    if !object.is_object() {
        object = json!({});
    }
    object["apiVersion"] = json!(resource.api_version());
    object["kind"] = json!(*resource.kind);
    if !object["metadata"].is_object() || random.random_bool(0.9) {
        object["metadata"] = json!({ "name": "made-up" });
    }
    object
}
