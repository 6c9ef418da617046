//! For tests of this crate and of those above it.

pub use crate::etcd_double::EtcdDouble;

use crate::{Indexed, Indexer, Key};
use serde::Deserialize;
use std::{borrow::Cow, collections::BTreeMap};

/// Indexes `metadata` as the server does, and no fields.
#[derive(Clone, Copy, Debug, Default)]
pub struct MetadataIndexer;

#[derive(Default, Deserialize)]
struct Object<'a> {
    #[serde(borrow, default)]
    metadata: Metadata<'a>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata<'a> {
    #[serde(borrow)]
    uid: Cow<'a, str>,
    labels: BTreeMap<Box<str>, Box<str>>,
    #[serde(borrow)]
    owner_references: Vec<Owner<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Owner<'a> {
    #[serde(borrow)]
    uid: Cow<'a, str>,
}

impl Indexer for MetadataIndexer {
    fn index(&self, _: &Key, json: &[u8]) -> Indexed {
        let Object { metadata } = serde_json::from_slice(json).unwrap_or_default();
        Indexed {
            uid: metadata.uid.into(),
            labels: metadata.labels.into_iter().collect(),
            fields: Box::default(),
            owners: metadata.owner_references.into_iter().map(|it| it.uid.into()).collect(),
        }
    }
}
