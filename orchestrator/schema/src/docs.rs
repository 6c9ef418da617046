//! Descriptions of types and fields, for OpenAPI and `kubectl explain`. They are compressed in the binary and unpacked
//! for as long as a document is being built.

use flate2::read::GzDecoder;
use std::collections::HashMap;

static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/docs.json.gz"));

/// The unpacked table: some 1.5 MB.
#[derive(Clone, Debug)]
pub struct Docs {
    /// By full name, then by field; the empty field is the type itself.
    texts: HashMap<String, HashMap<String, String>>,
}

impl Docs {
    /// Unpacks the table.
    pub fn load() -> Self {
        let texts = serde_json::from_reader(GzDecoder::new(PACKED));
        Self {
            texts: texts.expect("the build script wrote the table, and a test reads it"),
        }
    }

    /// What a type is for.
    pub fn of_type(&self, name: &str) -> Option<&str> {
        self.texts.get(name)?.get("").map(String::as_str)
    }

    /// What a field of a type is for.
    pub fn of_field(&self, name: &str, field: &str) -> Option<&str> {
        let text = self.texts.get(name).and_then(|fields| fields.get(field));
        let common = || match field {
            "apiVersion" => Some("Group and version of the schema that this object follows, as `apps/v1`."),
            "kind" => Some("Name of the object's schema, as `Deployment`."),
            _ => None,
        };
        text.map(String::as_str).or_else(common)
    }

    /// Some bytes that change whenever the texts do.
    pub(crate) fn fingerprint() -> &'static [u8] {
        PACKED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_found_by_json_name() {
        let docs = Docs::load();
        let text = docs.of_type("io.k8s.api.core.v1.Pod").unwrap();
        assert!(text.starts_with("Pod is"), "{text}");
        let of = |name: &str, field: &str| docs.of_field(&format!("io.k8s.{name}"), field).map(str::len);
        for (name, field) in [
            ("api.core.v1.ServiceSpec", "clusterIPs"),
            ("api.core.v1.Container", "tty"),
            ("api.core.v1.Secret", "type"),
            ("apimachinery.pkg.apis.meta.v1.ObjectMeta", "ownerReferences"),
            (
                "apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps",
                "format",
            ),
            ("api.apps.v1.Deployment", "kind"),
        ] {
            assert!(of(name, field) > Some(10), "{name}.{field}");
        }
        assert_eq!(of("api.core.v1.Container", "nothing"), None);
    }
}
