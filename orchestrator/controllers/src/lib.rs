//! The controllers: each watches some kinds and makes the cluster what they say.

use kube::Client;
use std::sync::Arc;

/// A client for one controller, by its name (`deployment-controller`): it acts as
/// `system:serviceaccount:kube-system:<name>`, with the rights of `system:controller:<name>`.
pub type ClientFor = Arc<dyn Fn(&str) -> Client + Send + Sync>;
