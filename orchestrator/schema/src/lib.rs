//! What the API's objects look like. Data first: generated field facts (`data/`), one row per resource (`kinds.toml`),
//! and pure functions over them. No IO, no clock, no HTTP.

mod builtin;
pub mod columns;
pub mod custom;
pub mod defaults;
pub mod docs;
pub mod jsonpath;
pub mod kinds;
pub mod names;
pub mod openapi;
pub mod proto;
pub mod quantity;
pub mod read;
pub mod resource;
pub mod strict;
pub mod table;
pub mod types;
pub mod validate;

pub use custom::{CustomSchema, Fault};
pub use resource::{Registry, Resource, Scope, Subresource};
pub use types::{Field, ListKind, Object, Scalar, Type, TypeId, Types};

#[cfg(test)]
mod samples;
