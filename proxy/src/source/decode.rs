//! Documents → typed API objects → model: the step that both sources share, and where a bad object stops.

use super::{Key, Object};
use crate::{
    error::Skipped,
    model::{Converted, EndpointSlice, Interner, Node, ObjectName, Service},
};
use k8s_openapi::api::{core::v1, discovery};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::sync::Arc;

/// Kinds that a proxy acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Service,
    Slice,
    Node,
}

impl Kind {
    /// From `apiVersion` and `kind`; `None` for kinds that are not a proxy's business.
    pub(super) fn from_api(api_version: &str, kind: &str) -> Option<Self> {
        match (api_version, kind) {
            ("v1", "Service") => Some(Self::Service),
            ("discovery.k8s.io/v1", "EndpointSlice") => Some(Self::Slice),
            ("v1", "Node") => Some(Self::Node),
            _ => None,
        }
    }

    /// Which object a document names, even where the rest of it makes no sense.
    pub(super) fn key_of(self, document: &Value, strings: &mut Interner) -> Option<Key> {
        let text = |field| {
            document
                .get("metadata")?
                .get(field)?
                .as_str()
                .filter(|text| !text.is_empty())
        };
        Some(self.key(text("namespace").unwrap_or("default"), text("name")?, strings))
    }

    /// The key of an object of this kind.
    pub(super) fn key(self, namespace: &str, name: &str, strings: &mut Interner) -> Key {
        let name: Arc<str> = name.into();
        match self {
            Self::Node => Key::Node(name),
            Self::Service => Key::Service(ObjectName {
                namespace: strings.intern(namespace),
                name,
            }),
            Self::Slice => Key::Slice(ObjectName {
                namespace: strings.intern(namespace),
                name,
            }),
        }
    }
}

/// A field that has the wrong shape, so that the object is not even an API object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    /// Path, as in `spec.ports[1].port`; empty for the document itself.
    pub(super) field: String,
    /// What serde found there.
    pub(super) reason: String,
}

/// A document, understood as far as possible.
#[derive(Debug)]
pub(super) enum Decoded {
    /// Ours.
    Object(Object),
    /// Sound, but not for this proxy.
    NotOurs(Key),
    /// Sound, but without a name that could be used.
    Nameless,
}

/// Reads a typed object out of a document.
pub(super) fn typed<K: DeserializeOwned>(document: Value) -> Result<K, Malformed> {
    serde_path_to_error::deserialize(document).map_err(|err| {
        let field = err.path().to_string();
        Malformed {
            field: if field == "." { String::new() } else { field },
            reason: err.into_inner().to_string(),
        }
    })
}

/// Converts a document of a known kind.
pub(super) fn decode(
    kind: Kind,
    document: Value,
    strings: &mut Interner,
) -> Result<(Decoded, Vec<Skipped>), Malformed> {
    Ok(match kind {
        Kind::Service => service(&typed(document)?, strings),
        Kind::Slice => slice(&typed(document)?, strings),
        Kind::Node => node(&typed(document)?, strings),
    })
}

/// Converts a Service.
pub(super) fn service(api: &v1::Service, strings: &mut Interner) -> (Decoded, Vec<Skipped>) {
    let (converted, skipped) = Service::from_api(api, strings);
    (wrap(converted, Object::Service, Key::Service), skipped)
}

/// Converts an EndpointSlice.
pub(super) fn slice(api: &discovery::v1::EndpointSlice, strings: &mut Interner) -> (Decoded, Vec<Skipped>) {
    let (converted, skipped) = EndpointSlice::from_api(api, strings);
    (wrap(converted, Object::Slice, Key::Slice), skipped)
}

/// Converts a Node.
pub(super) fn node(api: &v1::Node, strings: &mut Interner) -> (Decoded, Vec<Skipped>) {
    let (node, skipped) = Node::from_api(api, strings);
    (
        node.map_or(Decoded::Nameless, |node| Decoded::Object(Object::Node(node))),
        skipped,
    )
}

fn wrap<T>(converted: Converted<T>, object: fn(T) -> Object, key: fn(ObjectName) -> Key) -> Decoded {
    match converted {
        Converted::Ours(ours) => Decoded::Object(object(ours)),
        Converted::NotOurs { name, why } => {
            let key = key(name);
            tracing::debug!(object = %key, why, "not for this proxy");
            Decoded::NotOurs(key)
        }
        Converted::Nameless => Decoded::Nameless,
    }
}
