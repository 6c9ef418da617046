//! The API server. One core for every kind: resources are rows of data, requests become changes of JSON values by pure
//! functions, and every error that a client sees is a `Status` as upstream would word it.

pub mod admission;
pub mod authn;
pub mod authz;
pub mod managed_fields;
pub mod objects;
pub mod patch;
pub mod pki;
pub mod rejection;
pub mod value;
