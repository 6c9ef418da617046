//! The scheduler against a real API server: every rule at work, and who is tried again when.

#[path = "cluster/burst.rs"]
mod burst;
#[path = "cluster/rules.rs"]
mod rules;
#[path = "support/mod.rs"]
mod support;
#[path = "cluster/waking.rs"]
mod waking;
