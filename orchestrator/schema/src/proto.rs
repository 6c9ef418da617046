//! Protobuf request bodies to JSON values. No code per kind: a walk over the wire, led by the field numbers in [`Types`].
//!
//! A body is the magic `k8s\0` and a `runtime.Unknown` message that names the kind and carries the object's bytes.
//! proto2 as upstream writes it has no notion of "unset" for plain fields: their zeros are on the wire and mean nothing,
//! while those of Go pointers (`replicas: 0`) were set by somebody; [`crate::types::Wire::pointer`] tells them apart.

mod special;
mod walk;

use crate::types::{TypeId, Types};
use serde_json::Value;
use std::fmt;
use walk::{Reader, Walker};

/// First bytes of every body.
pub const MAGIC: &[u8] = b"k8s\0";

/// `Content-Type` of such bodies.
pub const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// Messages inside messages; beyond that a body is refused. `JSONSchemaProps` of real CRDs reach about 60.
const MAX_DEPTH: usize = 128;

/// Values in one body; what a body of 3 MiB can make the server hold is bounded by this, not by the sender's wit.
const MAX_VALUES: usize = 500_000;

/// Why a body could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// Field path from the object's root, as `spec.containers[0].name`; empty for the body as a whole.
    pub path: String,
    /// What is wrong there.
    pub cause: DecodeCause,
}

/// What is wrong with a body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeCause {
    /// It does not begin with [`MAGIC`].
    #[error("the body does not begin with the magic of Kubernetes' protobuf")]
    NoMagic,
    /// The bytes are no protobuf, or not of this message.
    #[error("malformed protobuf: {0}")]
    Malformed(String),
    /// The envelope names a kind that is not built in.
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind {
        /// As the envelope says.
        api_version: String,
        /// As the envelope says.
        kind: String,
    },
    /// The envelope's content is encoded in a way that nobody agreed on.
    #[error("the envelope's content {0:?} is not supported")]
    Encoding(String),
    /// Deeper than 128 messages.
    #[error("nested deeper than {MAX_DEPTH} messages")]
    TooDeep,
    /// More than 500 000 values.
    #[error("more than {MAX_VALUES} values")]
    TooLarge,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(formatter, "{}: ", self.path)?;
        }
        self.cause.fmt(formatter)
    }
}

impl std::error::Error for DecodeError {}

impl From<DecodeCause> for DecodeError {
    fn from(cause: DecodeCause) -> Self {
        let path = String::new();
        Self { path, cause }
    }
}

impl DecodeError {
    /// The same error, one step further from the root.
    fn under(mut self, step: impl fmt::Display) -> Self {
        let dot = if self.path.is_empty() || self.path.starts_with('[') {
            ""
        } else {
            "."
        };
        self.path = format!("{step}{dot}{}", self.path);
        self
    }
}

/// Whether a body is protobuf, whatever its `Content-Type` says.
pub fn is_protobuf(body: &[u8]) -> bool {
    body.starts_with(MAGIC)
}

/// The object in a body, with `apiVersion` and `kind` as its envelope says.
///
/// # Errors
/// See [`DecodeCause`]; the path says where.
pub fn decode(types: &Types, body: &[u8]) -> Result<Value, DecodeError> {
    decode_or(types, None, body)
}

/// As [`decode`]; an envelope that names no kind is taken for `ty` (`DeleteOptions`, where a client says nothing).
///
/// # Errors
/// See [`DecodeCause`].
pub fn decode_or(types: &Types, ty: Option<TypeId>, body: &[u8]) -> Result<Value, DecodeError> {
    let body = body.strip_prefix(MAGIC).ok_or(DecodeCause::NoMagic)?;
    Walker::new(types, MAX_DEPTH, MAX_VALUES).envelope(ty, body)
}

/// `runtime.Unknown`, as far as it matters.
#[derive(Default)]
struct Unknown<'a> {
    api_version: String,
    kind: String,
    raw: &'a [u8],
    content_encoding: String,
    content_type: String,
}

impl<'a> Unknown<'a> {
    fn read(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut unknown = Self::default();
        let mut reader = Reader(body);
        while let Some((number, payload)) = reader.next()? {
            match number {
                1 => {
                    let mut meta = Reader(payload.bytes()?);
                    while let Some((number, payload)) = meta.next()? {
                        match number {
                            1 => unknown.api_version = payload.text()?.to_owned(),
                            2 => unknown.kind = payload.text()?.to_owned(),
                            _ => {}
                        }
                    }
                }
                2 => unknown.raw = payload.bytes()?,
                3 => unknown.content_encoding = payload.text()?.to_owned(),
                4 => unknown.content_type = payload.text()?.to_owned(),
                _ => {}
            }
        }
        Ok(unknown)
    }
}
