//! Upstream's fixtures of every kind, through defaults, columns and validation.

use fairlead_schema::{Registry, defaults, table, validate};
use flate2::read::GzDecoder;
use serde_json::Value;
use std::io::Read as _;

#[derive(serde::Deserialize)]
struct Fixture {
    name: String,
    json: Value,
}

#[test]
fn fixtures_are_completed_once_and_shown() {
    let mut text = String::new();
    let packed: &[u8] = include_bytes!("data/fixtures.jsonl.gz");
    GzDecoder::new(packed).read_to_string(&mut text).unwrap();
    let registry = Registry::builtin();
    let now = "2024-01-01T00:00:00Z".parse().unwrap();
    let mut seen = 0;
    for line in text.lines() {
        let Fixture { name, mut json } = serde_json::from_str(line).unwrap();
        let (api_version, kind) = (json["apiVersion"].as_str().unwrap(), json["kind"].as_str().unwrap());
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let Some(resource) = registry.kind(group, version, kind) else {
            continue;
        };
        seen += 1;
        let given = json.clone();
        defaults::apply(resource, &mut json);
        let once = json.clone();
        defaults::apply(resource, &mut json);
        assert_eq!(json, once, "{name}");
        let (columns, rows) = table::rows(resource, [&json], now);
        assert_eq!(columns.len(), rows[0].len(), "{name}");
        // A fixture's values are made up, so there is much to complain about, but never about a value's type.
        let causes = validate::object(resource, Some(&given), &json);
        let mistyped: Vec<_> = causes
            .iter()
            .filter(|it| it.reason == "FieldValueTypeInvalid")
            .collect();
        assert!(mistyped.is_empty(), "{name}: {mistyped:?}");
    }
    assert_eq!(
        seen,
        registry.resources().count() - WITHOUT.len(),
        "every kind has a fixture but {WITHOUT:?}"
    );
}

/// They are in other repositories of upstream.
const WITHOUT: [&str; 2] = ["APIService", "CustomResourceDefinition"];
