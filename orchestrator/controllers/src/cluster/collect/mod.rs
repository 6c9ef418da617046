//! Garbage: objects whose owners are gone, whatever their kind.
//!
//! `graph.rs` knows who owns whom, from metadata of every kind; `decide.rs` says what becomes of one object; `monitor.rs`
//! watches all kinds, also those that come later; `collector.rs` does what was decided, after asking the API server.

pub(crate) mod collector;
pub(crate) mod decide;
pub(crate) mod graph;
pub(crate) mod monitor;

#[cfg(test)]
mod tests;

/// Finalizer: dependents go first.
pub(crate) const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer: dependents stay, and forget their owner.
pub(crate) const ORPHAN: &str = "orphan";
