//! What the API's objects look like. Data first: generated field facts (`data/`), one row per resource (`kinds.toml`),
//! and pure functions over them. No IO, no clock, no HTTP.

mod builtin;
pub mod columns;
pub mod custom;
pub mod defaults;
pub mod jsonpath;
pub mod kinds;
pub mod proto;
pub mod read;
pub mod resource;
pub mod strict;
pub mod table;
pub mod types;

pub use custom::{CustomSchema, Fault};
pub use resource::{Registry, Resource, Scope, Subresource};
pub use types::{Field, ListKind, Object, Scalar, Type, TypeId, Types};

mod pending; pub use pending::*;

#[cfg(test)]
mod samples;
