//! For tests of this crate and of those above it.

pub use crate::etcd_double::EtcdDouble;

use crate::{Indexed, Indexer, Key};
use serde_json::Value;

/// Indexes `metadata` as the server does, and no fields.
#[derive(Clone, Copy, Debug, Default)]
pub struct MetadataIndexer;

impl Indexer for MetadataIndexer {
    fn index(&self, _: &Key, json: &[u8]) -> Indexed {
        let object: Value = serde_json::from_slice(json).unwrap_or_default();
        let metadata = &object["metadata"];
        let text = |it: &Value| it.as_str().unwrap_or_default().into();
        let mut labels: Vec<(Box<str>, Box<str>)> = match metadata["labels"].as_object() {
            Some(labels) => labels
                .iter()
                .map(|(name, value)| (name.as_str().into(), text(value)))
                .collect(),
            None => Vec::new(),
        };
        labels.sort();
        let owners = metadata["ownerReferences"].as_array().map_or(&[][..], Vec::as_slice);
        Indexed {
            uid: text(&metadata["uid"]),
            labels: labels.into(),
            fields: Box::default(),
            owners: owners.iter().map(|it| text(&it["uid"])).collect(),
        }
    }
}
