//! Whether a node is alive: pure. A node is heard when its lease or its heartbeat changes; how long ago that was is measured
//! by our clock alone, because clocks of nodes may be wrong.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Node, NodeCondition},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use std::time::Duration;

/// Conditions that become Unknown with a node that is silent. Source: `NodeCondition.type`.
const CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// What was last heard of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    uid: Option<String>,
    renewed: Option<Timestamp>,
    heartbeat: Option<Timestamp>,
    status: Option<String>,
    /// When one of the above changed last, by our clock.
    pub(crate) at: Timestamp,
}

/// A node's condition of a type.
pub(crate) fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    let conditions = node.status.as_ref().and_then(|it| it.conditions.as_ref());
    conditions.into_iter().flatten().find(|it| it.type_ == kind)
}

/// What is heard now: with the old time if nothing changed.
pub(crate) fn hear(before: Option<&Heard>, node: &Node, lease: Option<&Lease>, now: Timestamp) -> Heard {
    let ready = condition(node, "Ready");
    let mut heard = Heard {
        uid: node.metadata.uid.clone(),
        renewed: lease
            .and_then(|it| it.spec.as_ref())
            .and_then(|it| it.renew_time.as_ref())
            .map(|it| it.0),
        heartbeat: ready.and_then(|it| it.last_heartbeat_time.as_ref()).map(|it| it.0),
        status: ready.map(|it| it.status.clone()),
        at: now,
    };
    match before {
        Some(before) if before.uid == heard.uid => {
            // What we wrote ourselves is not its word.
            let ours = heard.status.as_deref() == Some("Unknown");
            let spoke = heard.renewed.is_some() && heard.renewed != before.renewed;
            let beat = !ours && (heard.heartbeat != before.heartbeat || heard.status != before.status);
            if !(spoke || beat) {
                heard.at = before.at;
            }
        }
        // One that never spoke is counted from its making.
        _ if heard.status.is_none() && heard.renewed.is_none() => {
            if let Some(created) = &node.metadata.creation_timestamp {
                heard.at = created.0.min(now);
            }
        }
        _ => {}
    }
    heard
}

/// Until when a node that is silent since then counts as alive.
pub(crate) fn deadline(heard: &Heard, grace: Duration, startup: Duration) -> Timestamp {
    let spoke = heard.status.is_some() || heard.renewed.is_some();
    let grace = SignedDuration::try_from(if spoke { grace } else { startup }).unwrap_or(SignedDuration::MAX);
    heard.at.saturating_add(grace).unwrap_or(Timestamp::MAX)
}

/// The conditions of a node that is silent; `None` if they say so already.
pub(crate) fn silenced(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    let mut all = node
        .status
        .as_ref()
        .and_then(|it| it.conditions.clone())
        .unwrap_or_default();
    let mut changed = false;
    for kind in CONDITIONS {
        match all.iter_mut().find(|it| it.type_ == kind) {
            None => {
                changed = true;
                all.push(NodeCondition {
                    type_: kind.to_owned(),
                    status: "Unknown".to_owned(),
                    reason: Some("NodeStatusNeverUpdated".to_owned()),
                    message: Some("Kubelet never posted node status.".to_owned()),
                    last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                    last_transition_time: Some(Time(now)),
                });
            }
            Some(condition) if condition.status != "Unknown" => {
                changed = true;
                condition.status = "Unknown".to_owned();
                condition.reason = Some("NodeStatusUnknown".to_owned());
                condition.message = Some("Kubelet stopped posting node status.".to_owned());
                condition.last_transition_time = Some(Time(now));
            }
            Some(_) => {}
        }
    }
    changed.then_some(all)
}
