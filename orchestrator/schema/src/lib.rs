//! What the API's objects look like. Data first: generated field facts (`data/`), one row per resource (`kinds.toml`),
//! and pure functions over them. No IO, no clock, no HTTP.

mod builtin;

pub mod docs;
pub mod openapi;
pub mod proto;
pub mod read;
pub mod resource;
pub mod strict;
pub mod types;

pub use resource::{Registry, Resource, Scope, Subresource};
pub use types::{Field, ListKind, Object, Scalar, Type, TypeId, Types};
