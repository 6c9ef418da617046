//! The pure part: tables of what is decided and why, and properties of random clusters.

#[path = "decisions/amounts.rs"]
mod amounts;
#[path = "decisions/clusters.rs"]
mod clusters;
#[path = "decisions/making.rs"]
mod making;
#[path = "decisions/oracle.rs"]
mod oracle;
#[path = "decisions/queues.rs"]
mod queues;
#[path = "decisions/scores.rs"]
mod scores;
#[path = "decisions/victims.rs"]
mod victims;
#[path = "decisions/worlds.rs"]
mod worlds;
