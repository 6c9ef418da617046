//! Objects that live for a limited time: Events.

use crate::core::ApiServer;
use fairlead_store::{Durability, Expect, Operation, Txn};
use jiff::Timestamp;
use serde_json::Value;

/// Deletes what is older than `ttl_s` seconds and was not changed since.
pub(crate) async fn sweep(server: &ApiServer, prefix: &str, ttl_s: u32, now: Timestamp) {
    let snapshot = server.cache.snapshot(prefix);
    for entry in snapshot.entries(None, None) {
        let Ok(object) = serde_json::from_slice::<Value>(&entry.json) else {
            continue;
        };
        let time = |pointer: &str| object.pointer(pointer)?.as_str()?.parse::<Timestamp>().ok();
        // As upstream, a change prolongs a life; that an event was seen again is such a change.
        let Some(born) = [
            "/metadata/creationTimestamp",
            "/lastTimestamp",
            "/series/lastObservedTime",
        ]
        .into_iter()
        .filter_map(time)
        .max() else {
            continue;
        };
        if now.as_second() - born.as_second() < i64::from(ttl_s) {
            continue;
        }
        let deleted = server.cache.commit(Txn {
            key: entry.key.clone(),
            expect: Expect::At(entry.revision),
            operation: Operation::Delete,
            durability: Durability::Relaxed,
        });
        if let Err(error) = deleted.await {
            tracing::debug!(%error, "an expired object was not deleted; the next round tries again");
        }
    }
}
