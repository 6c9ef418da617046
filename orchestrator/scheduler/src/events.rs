//! Events: what people see of our decisions. A repeated one is counted, not written again.

use crate::metrics::Metrics;
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::ObjectReference,
        events::v1::{Event, EventSeries},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::mpsc;

/// Events that wait to be written. More than these at one time are lost: deciding never waits for telling.
const WAITING: usize = 8192;
/// Events that are written at one time.
const AT_ONCE: usize = 8;
/// What is remembered for counting. More than these are forgotten, and written anew.
const REMEMBERED: usize = 4096;
/// The most that a note may have. Source: `events.k8s.io/v1 Event.note`, 1 kB.
const LONGEST: usize = 1023;

/// One event.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) about: ObjectReference,
    pub(crate) warning: bool,
    pub(crate) reason: &'static str,
    pub(crate) action: &'static str,
    pub(crate) note: String,
    pub(crate) at: Timestamp,
}

/// Writes events, in a task of its own.
#[derive(Clone, Debug)]
pub(crate) struct Teller {
    queue: mpsc::Sender<Told>,
    metrics: Metrics,
}

/// Object, reason and note of an event; its name, and how often it was told.
type Remembered = BTreeMap<(String, &'static str, String), (String, i32)>;

impl Teller {
    /// Starts a teller. It ends when the returned future is dropped, or nobody can tell it anything any more.
    pub(crate) fn new(client: Client, name: String, metrics: Metrics) -> (Self, impl Future<Output = ()>) {
        let (queue, told) = mpsc::channel(WAITING);
        let writer = Arc::new(Writer {
            client,
            name,
            remembered: Mutex::default(),
            metrics: metrics.clone(),
        });
        let task = futures::stream::unfold(told, |mut told| async move { Some((told.recv().await?, told)) })
            .for_each_concurrent(AT_ONCE, move |told| {
                let writer = Arc::clone(&writer);
                async move { writer.write(told).await }
            });
        (Self { queue, metrics }, task)
    }

    pub(crate) fn tell(&self, about: ObjectReference, warning: bool, what: (&'static str, &'static str), note: String) {
        let (reason, action) = what;
        let told = Told {
            about,
            warning,
            reason,
            action,
            note: shorten(note),
            at: Timestamp::now(),
        };
        if self.queue.try_send(told).is_err() {
            self.metrics.lost_event();
        }
    }
}

fn shorten(mut note: String) -> String {
    if note.len() > LONGEST {
        let mut end = LONGEST - 3;
        while !note.is_char_boundary(end) {
            end -= 1;
        }
        note.truncate(end);
        note.push_str("...");
    }
    note
}

struct Writer {
    client: Client,
    name: String,
    remembered: Mutex<Remembered>,
    metrics: Metrics,
}

impl Writer {
    fn remembered(&self) -> std::sync::MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write(&self, told: Told) {
        let namespace = told.about.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let of_object = told.about.uid.clone().or(told.about.name.clone()).unwrap_or_default();
        let key = (of_object, told.reason, told.note.clone());
        let again = self.remembered().get_mut(&key).map(|(name, count)| {
            *count += 1;
            (name.clone(), *count)
        });
        if let Some((name, count)) = again {
            let series = json!({ "series": { "count": count, "lastObservedTime": MicroTime(told.at) } });
            let patched = api.patch(&name, &PatchParams::default(), &Patch::Merge(&series)).await;
            if patched.is_ok() {
                return;
            }
            // Events have a limited life.
            self.remembered().remove(&key);
        }
        let event = self.event(&told, namespace);
        let name = event.metadata.name.clone().unwrap_or_default();
        match api.create(&PostParams::default(), &event).await {
            Ok(_) if told.warning => {
                let mut remembered = self.remembered();
                if remembered.len() >= REMEMBERED {
                    remembered.clear();
                }
                remembered.insert(key, (name, 1));
            }
            Ok(_) => {}
            Err(error) => {
                self.metrics.lost_event();
                tracing::debug!(event = name, error = %error, "an event could not be written");
            }
        }
    }

    fn event(&self, told: &Told, namespace: String) -> Event {
        let object = told.about.name.clone().unwrap_or_default();
        // A name has at most 253 characters.
        let object: String = object.chars().take(230).collect();
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{object}.{:x}", told.at.as_nanosecond())),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(told.at)),
            type_: Some(if told.warning { "Warning" } else { "Normal" }.to_owned()),
            reason: Some(told.reason.to_owned()),
            action: Some(told.action.to_owned()),
            note: Some(told.note.clone()),
            regarding: Some(told.about.clone()),
            reporting_controller: Some(self.name.clone()),
            reporting_instance: Some(self.name.clone()),
            series: None::<EventSeries>,
            ..Event::default()
        }
    }
}
