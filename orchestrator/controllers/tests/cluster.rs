//! The controllers of the cluster against the real API server, in process, with pods and nodes that are only objects.

#[path = "cluster/endpoints.rs"]
mod endpoints;
#[path = "cluster/garbage.rs"]
mod garbage;
#[path = "cluster/kubelets.rs"]
mod kubelets;
#[path = "cluster/namespaces.rs"]
mod namespaces;
#[path = "cluster/nodes.rs"]
mod nodes;
#[path = "cluster/services.rs"]
mod services;
#[path = "cluster/world.rs"]
mod world;
