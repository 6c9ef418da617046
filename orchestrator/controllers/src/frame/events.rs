//! Events about objects, as `kubectl describe` shows them: repeated ones are counted up instead of written again.

use super::Clock;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use std::collections::HashMap;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Events that wait to be written; more are dropped.
const WAITING: usize = 1000;
/// Events that are remembered for counting up.
const REMEMBERED: usize = 4096;
/// Events about one object that may be new at once; more are dropped, and one is allowed again every `REFILL_S`.
const BURST: f64 = 25.0;
/// Seconds until one more event about an object may be written.
const REFILL_S: f64 = 300.0;

/// Whether somebody should look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// As it should be.
    Normal,
    /// Somebody should look at it.
    Warning,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Writes Events as one controller. Never waits: what cannot be written in time is dropped, and said in the log.
#[derive(Clone, Debug)]
pub struct Recorder {
    sender: mpsc::Sender<Note>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Subject {
    api_version: String,
    kind: String,
    namespace: String,
    name: String,
    uid: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Note {
    subject: Subject,
    severity: Severity,
    reason: String,
    message: String,
}

impl Recorder {
    pub(super) fn start(
        component: &'static str,
        client: Client,
        clock: Clock,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let (sender, mut notes) = mpsc::channel(WAITING);
        tasks.spawn(async move {
            let mut scribe = Scribe {
                component,
                client,
                clock,
                known: HashMap::new(),
                budgets: HashMap::new(),
                serial: 0,
            };
            loop {
                let note = tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    note = notes.recv() => note,
                };
                let Some(note) = note else { return };
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    () = scribe.write(note) => {}
                }
            }
        });
        Self { sender }
    }

    /// An Event about an object.
    pub fn record<K: Resource<DynamicType = ()>>(
        &self,
        about: &K,
        severity: Severity,
        reason: &str,
        message: impl Into<String>,
    ) {
        let meta = about.meta();
        let note = Note {
            subject: Subject {
                api_version: K::api_version(&()).into_owned(),
                kind: K::kind(&()).into_owned(),
                namespace: meta.namespace.clone().unwrap_or_default(),
                name: meta.name.clone().unwrap_or_default(),
                uid: meta.uid.clone().unwrap_or_default(),
            },
            severity,
            reason: reason.to_owned(),
            message: message.into(),
        };
        if self.sender.try_send(note).is_err() {
            tracing::debug!(reason, "an event was dropped: too many wait to be written");
        }
    }

    /// A Normal one.
    pub fn normal<K: Resource<DynamicType = ()>>(&self, about: &K, reason: &str, message: impl Into<String>) {
        self.record(about, Severity::Normal, reason, message);
    }

    /// A Warning.
    pub fn warning<K: Resource<DynamicType = ()>>(&self, about: &K, reason: &str, message: impl Into<String>) {
        self.record(about, Severity::Warning, reason, message);
    }
}

struct Scribe {
    component: &'static str,
    client: Client,
    clock: Clock,
    /// Name and count of the Event that was written for a note.
    known: HashMap<Note, (String, i32)>,
    /// What is left for a subject, and since when.
    budgets: HashMap<Subject, (f64, Timestamp)>,
    serial: u64,
}

impl Scribe {
    async fn write(&mut self, note: Note) {
        let now = self.clock.now();
        if !self.may_write(&note.subject, now) {
            return;
        }
        let namespace = match note.subject.namespace.as_str() {
            // Events about objects of the cluster are kept here.
            "" => "default",
            namespace => namespace,
        };
        let api = Api::<Event>::namespaced(self.client.clone(), namespace);
        if let Some((name, count)) = self.known.get_mut(&note) {
            let next = count.saturating_add(1);
            let patch = json!({"count": next, "lastTimestamp": Time(now)});
            let patched = api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await;
            match patched {
                Ok(_) => {
                    *count = next;
                    return;
                }
                // It expired: it is written anew.
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                Err(error) => return self.lost(&note, &error),
            }
        }
        self.serial += 1;
        let stamp = u64::try_from(now.as_nanosecond())
            .unwrap_or_default()
            .wrapping_add(self.serial);
        let name = format!("{}.{stamp:x}", note.subject.name);
        let event = self.event(&note, &name, namespace, now);
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                if self.known.len() >= REMEMBERED {
                    self.known.clear();
                }
                self.known.insert(note, (name, 1));
            }
            Err(error) => self.lost(&note, &error),
        }
    }

    fn lost(&self, note: &Note, error: &kube::Error) {
        let (component, reason, object) = (self.component, &note.reason, &note.subject.name);
        tracing::debug!(component, reason, object, error = %error, "an event could not be written");
    }

    fn may_write(&mut self, subject: &Subject, now: Timestamp) -> bool {
        if self.budgets.len() >= REMEMBERED {
            self.budgets.clear();
        }
        let (left, since) = self.budgets.entry(subject.clone()).or_insert((BURST, now));
        *left = (*left + now.duration_since(*since).as_secs_f64() / REFILL_S).min(BURST);
        *since = now;
        let may = *left >= 1.0;
        if may {
            *left -= 1.0;
        }
        may
    }

    fn event(&self, note: &Note, name: &str, namespace: &str, now: Timestamp) -> Event {
        let subject = note.subject.clone();
        Event {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some(subject.api_version),
                kind: Some(subject.kind),
                namespace: Some(subject.namespace).filter(|it| !it.is_empty()),
                name: Some(subject.name),
                uid: Some(subject.uid),
                ..ObjectReference::default()
            },
            reason: Some(note.reason.clone()),
            message: Some(note.message.clone()),
            type_: Some(note.severity.as_str().to_owned()),
            source: Some(EventSource {
                component: Some(self.component.to_owned()),
                host: None,
            }),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            count: Some(1),
            reporting_component: Some(self.component.to_owned()),
            ..Event::default()
        }
    }
}
