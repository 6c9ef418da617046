//! Objects that live for a limited time: Events.

use crate::core::ApiServer;
use fairlead_store::{Durability, Expect, Operation, Txn};
use jiff::Timestamp;
use serde::Deserialize;

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    creation_timestamp: Option<Timestamp>,
}

/// Deletes what is older than `ttl_s` seconds and was not changed since.
pub(crate) async fn sweep(server: &ApiServer, prefix: &str, ttl_s: u32, now: Timestamp) {
    let snapshot = server.cache.snapshot(prefix);
    for entry in snapshot.entries(None, None) {
        let Ok(Object { metadata }) = serde_json::from_slice(&entry.json) else { continue };
        // As upstream, a change prolongs a life; the last time that an event was seen is such a change.
        let seen = serde_json::from_slice::<serde_json::Value>(&entry.json).ok();
        let seen = seen.as_ref().and_then(|it| it["lastTimestamp"].as_str()?.parse::<Timestamp>().ok());
        let Some(born) = seen.max(metadata.creation_timestamp) else { continue };
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
