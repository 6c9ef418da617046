//! A Kubernetes API server that is generic by data: one core for every kind.

pub mod authn;
pub mod authz;
pub mod objects;
pub mod pki;
pub mod rejection;
