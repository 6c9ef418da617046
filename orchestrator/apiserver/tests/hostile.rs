//! Clients that mean harm: every answer is a clear Status, nothing panics, and others are served meanwhile.
//!
//! `HOSTILE_WATCHERS` sets the number of watches that are open at one time (2 000; the machine allows many more).

#[path = "hostile/connections.rs"]
mod connections;
#[path = "hostile/made_up.rs"]
mod made_up;
#[path = "hostile/properties.rs"]
mod properties;
#[path = "hostile/requests.rs"]
mod requests;
#[path = "support/mod.rs"]
mod support;
#[path = "hostile/watchers.rs"]
mod watchers;
