//! What the CNI plugin and the node agent share: the journal of addresses, the words between them, the specification.
//!
//! ```text
//! runtime ─ env + stdin ─▶ verbs ─ wire ─▶ agent        (the usual way)
//!                            └─ offline ─▶ journal      (DEL, CHECK and GC while no agent runs)
//! ```
//!
//! Everything is synchronous and needs little: the plugin is started once per verb and should end within a millisecond.

pub mod address;
pub mod journal;
pub mod ledger;
pub mod link;
pub mod offline;
pub mod pod;
pub mod spec;
pub mod verbs;
pub mod wire;
