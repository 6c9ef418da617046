//! Who may do what, through the router: certificates, tokens, nodes, roles, and what must never be shown.

#[path = "rights/credentials.rs"]
mod credentials;
#[path = "rights/detours.rs"]
mod detours;
#[path = "rights/matrix.rs"]
mod matrix;
#[path = "rights/nodes.rs"]
mod nodes;
#[path = "rights/secrecy.rs"]
mod secrecy;
#[path = "support/mod.rs"]
mod support;
