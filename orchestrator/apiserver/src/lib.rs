//! The API server. One core for every kind: resources are rows of data, requests become changes of JSON values by pure
//! functions, and every error that a client sees is a `Status` as upstream would word it.

pub mod admission;
pub mod authn;
pub mod authz;
mod bootstrap;
pub mod continue_token;
mod convert;
pub mod core;
pub mod crd;
mod discovery;
mod expiry;
mod handlers;
mod health;
mod hooks;
pub mod http;
mod indexer;
pub mod inside;
pub mod listen;
pub mod managed_fields;
pub mod metrics;
mod object;
pub mod objects;
pub mod open;
pub mod patch;
pub mod pki;
pub mod request_info;
pub mod selectors;
pub mod service;
pub mod status;
mod stream;
pub mod value;

pub use crate::core::{ApiServer, Settings};
pub use discovery::KUBERNETES_VERSION;
pub use inside::Inside;
pub use service::Api;
