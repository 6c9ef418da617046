//! Where Services, EndpointSlices and the Node come from: one stream of [`crate::model::Event`]s.
//!
//! `kubernetes.rs` follows an API server, `manifests.rs` a folder of files.

pub mod kubernetes;
pub mod manifests;
