//! Events about pods and the node, repeated ones counted instead of written again, and a chatty object bounded.

use crate::pod;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use std::{collections::HashMap, time::Duration};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How many events may wait for the API server; more are dropped.
const QUEUE: usize = 2000;

/// How often one event is tried.
const ATTEMPTS: u32 = 5;

/// How many different events are remembered for counting.
const REMEMBERED: usize = 4096;

/// Events that one object may have at once, then one each [`REFILL`]: upstream's bounds.
const BURST: f64 = 25.0;

/// See [`BURST`].
const REFILL: SignedDuration = SignedDuration::from_secs(300);

/// Whether something is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As it should be.
    Normal,
    /// Somebody may want to look.
    Warning,
}

#[derive(Clone, Debug)]
struct Told {
    about: ObjectReference,
    kind: Kind,
    reason: String,
    message: String,
    time: Timestamp,
}

/// Writes events, later and never in the way of anything.
#[derive(Clone, Debug)]
pub struct Recorder {
    queue: mpsc::Sender<Told>,
}

impl Recorder {
    /// Starts the task that writes; it ends with `stop`.
    pub fn new(client: Client, node: &str, stop: CancellationToken) -> Self {
        let (queue, inbox) = mpsc::channel(QUEUE);
        let node = node.to_owned();
        tokio::spawn(async move {
            let mut writer = Writer {
                client,
                node,
                known: HashMap::new(),
                budgets: HashMap::new(),
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = writer.run(inbox) => {}
            }
        });
        Self { queue }
    }

    /// About a pod, or about one of its containers by `field_path`.
    pub fn pod(&self, pod: &Pod, field_path: Option<String>, kind: Kind, reason: &str, message: &str) {
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(pod::namespace(pod).to_owned()),
            name: Some(pod::name(pod).to_owned()),
            uid: Some(pod::uid(pod).to_owned()),
            resource_version: pod.metadata.resource_version.clone(),
            field_path,
        };
        self.tell(about, kind, reason, message);
    }

    /// About the node. Its `uid` is its name here, as upstream's kubelet has it.
    pub fn node(&self, name: &str, kind: Kind, reason: &str, message: &str) {
        let about = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(name.to_owned()),
            uid: Some(name.to_owned()),
            ..ObjectReference::default()
        };
        self.tell(about, kind, reason, message);
    }

    fn tell(&self, about: ObjectReference, kind: Kind, reason: &str, message: &str) {
        tracing::debug!(object = about.name, reason, message, "event");
        let told = Told {
            about,
            kind,
            reason: reason.to_owned(),
            message: message.to_owned(),
            time: Timestamp::now(),
        };
        if self.queue.try_send(told).is_err() {
            tracing::warn!(
                reason,
                message,
                "an event was dropped: too many wait for the API server"
            );
        }
    }
}

type Key = (Option<String>, Option<String>, String, String);

struct Written {
    name: String,
    count: i32,
    last: Timestamp,
}

struct Writer {
    client: Client,
    node: String,
    known: HashMap<Key, Written>,
    budgets: HashMap<Option<String>, Budget>,
}

/// How many events an object may still have.
#[derive(Clone, Copy)]
struct Budget {
    left: f64,
    since: Timestamp,
}

impl Budget {
    fn take(&mut self, now: Timestamp) -> bool {
        let gained = now.duration_since(self.since).as_secs_f64() / REFILL.as_secs_f64();
        self.left = (self.left + gained).min(BURST);
        self.since = now;
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }
}

impl Writer {
    async fn run(&mut self, mut inbox: mpsc::Receiver<Told>) {
        while let Some(told) = inbox.recv().await {
            let budget = self.budgets.entry(told.about.uid.clone()).or_insert(Budget {
                left: BURST,
                since: told.time,
            });
            if !budget.take(told.time) {
                continue;
            }
            let mut wait = Duration::from_millis(500);
            for _ in 0..ATTEMPTS {
                match self.write(&told).await {
                    Ok(()) => break,
                    Err(kube::Error::Api(error)) if (400..500).contains(&error.code) && error.code != 429 => {
                        // As in a namespace that is being deleted.
                        tracing::debug!(reason = told.reason, error = %error, "an event was refused");
                        break;
                    }
                    Err(error) => tracing::debug!(error = %error, "an event could not be written"),
                }
                tokio::time::sleep(wait).await;
                wait *= 2;
            }
            self.forget();
        }
    }

    fn forget(&mut self) {
        if self.known.len() > REMEMBERED {
            let mut times: Vec<_> = self.known.values().map(|it| it.last).collect();
            times.sort_unstable();
            let half = times.get(REMEMBERED / 2).copied().unwrap_or_default();
            self.known.retain(|_, it| it.last > half);
        }
        if self.budgets.len() > REMEMBERED {
            self.budgets.clear();
        }
    }

    async fn write(&mut self, told: &Told) -> kube::Result<()> {
        let namespace = told.about.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let key: Key = (
            told.about.uid.clone(),
            told.about.field_path.clone(),
            told.reason.clone(),
            told.message.clone(),
        );
        if let Some(written) = self.known.get_mut(&key) {
            let count = written.count + 1;
            let body = json!({"count": count, "lastTimestamp": Time(told.time)});
            match api
                .patch(&written.name, &PatchParams::default(), &Patch::Merge(body))
                .await
            {
                Ok(_) => {
                    written.count = count;
                    written.last = told.time;
                    return Ok(());
                }
                // Events are deleted after an hour.
                Err(kube::Error::Api(error)) if error.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        let object = told.about.name.as_deref().unwrap_or_default();
        let name = format!("{object}.{:x}", told.time.as_nanosecond());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: told.about.clone(),
            reason: Some(told.reason.clone()),
            message: Some(told.message.clone()),
            type_: Some(format!("{:?}", told.kind)),
            count: Some(1),
            first_timestamp: Some(Time(told.time)),
            last_timestamp: Some(Time(told.time)),
            source: Some(EventSource {
                component: Some("kubelet".to_owned()),
                host: Some(self.node.clone()),
            }),
            reporting_component: Some("kubelet".to_owned()),
            reporting_instance: Some(self.node.clone()),
            ..Event::default()
        };
        match api.create(&PostParams::default(), &event).await {
            // Written by an attempt whose answer was lost.
            Err(kube::Error::Api(error)) if error.code == 409 => {}
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        let written = Written {
            name,
            count: 1,
            last: told.time,
        };
        self.known.insert(key, written);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chatty_object_is_bounded_and_recovers() {
        let start = Timestamp::UNIX_EPOCH;
        let mut budget = Budget {
            left: BURST,
            since: start,
        };
        let taken = (0..100).filter(|_| budget.take(start)).count();
        assert_eq!(taken, 25);
        let later = start + REFILL;
        assert!(budget.take(later));
        assert!(!budget.take(later));
    }
}
