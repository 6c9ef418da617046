//! What clients are told is what happened: LIST and WATCH replayed equal the store's own journal, for every selector, form
//! and start, over cuts and restarts; and nothing acknowledged is lost when the server is killed.
//!
//! `TRUTH_CASES` sets the number of random histories, `SERVER_KILLS` the rounds of being killed (500 take an hour).

#[path = "truth/follower.rs"]
mod follower;
#[path = "truth/histories.rs"]
mod histories;
#[path = "truth/killed.rs"]
mod killed;
#[path = "support/mod.rs"]
mod support;
