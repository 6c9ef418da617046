//! WATCH: the state as events where asked for, then every change, then bookmarks while nothing happens.

use super::{
    Call,
    list::{Filter, wait_for},
    present::{self, Tabulator},
};
use crate::{
    http::{Body, Form, body, body::BoxError, options::ListOptions},
    object,
    status::{Result, Status},
};
use bytes::{BufMut as _, Bytes, BytesMut};
use fairlead_store::{Entry, StoreError, WatchEnd, WatchEvent, Watcher};
use http::{Response, StatusCode};
use rand::RngExt as _;
use serde_json::{Value, json};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};

/// How long a watch lasts when the client does not say, seconds: a random time in this range, as upstream.
const LIFETIME_S: std::ops::Range<u64> = 1800..3600;
/// The longest that a client gets, seconds: a year, far from the end of the clock.
const LONGEST_S: u64 = 365 * 24 * 3600;
/// Time between bookmarks, upstream's value.
const BOOKMARKS: Duration = Duration::from_secs(60);
/// Marks the bookmark behind the initial events. Source: KEP-3157.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// Answers with a stream of events.
pub(crate) async fn watch(call: &Arc<Call>) -> Result<Response<Body>> {
    let options = ListOptions::read(&call.query, true)?;
    let filter = Filter::read(call, &options)?;
    let storage = call.resource.storage.as_ref();
    let prefix = &storage
        .ok_or_else(|| Status::method_not_allowed(&call.resource, "watch"))?
        .prefix;
    let asked = options.revision()?;
    let cache = &call.server.cache;
    if let Some(revision) = asked
        && options.send_initial_events.is_some()
    {
        wait_for(call, revision).await?;
    }
    let initial = match (options.send_initial_events, asked) {
        (Some(wanted), _) => wanted,
        (None, None | Some(0)) => true,
        (None, Some(_)) => false,
    };
    let (pending, after) = if initial {
        let snapshot = cache.snapshot(prefix);
        let entries = snapshot.entries(filter.namespace.as_deref(), None);
        let entries: VecDeque<_> = entries.filter(|entry| filter.passes(entry)).map(Arc::clone).collect();
        (entries, snapshot.revision())
    } else {
        let now = cache.revision();
        (
            VecDeque::new(),
            asked.filter(|_| options.send_initial_events.is_none()).unwrap_or(now),
        )
    };
    let asked = options.timeout_s.filter(|it| *it > 0).map(|it| it.min(LONGEST_S));
    let lifetime = asked.unwrap_or_else(|| rand::rng().random_range(LIFETIME_S));
    let mut stream = Stream {
        call: Arc::clone(call),
        filter,
        initial: pending,
        bookmark_initial: (options.send_initial_events == Some(true) && options.bookmarks).then_some(after),
        watcher: None,
        bookmarks: options.bookmarks.then(bookmark_timer),
        ends: Instant::now() + Duration::from_secs(lifetime),
        table_started: false,
        tabulator: (call.accept.form == Form::Table).then(|| Tabulator::new(call, options.include_object)),
        open: call.server.metrics.open_watch(),
        failed: None,
    };
    match cache.watch(prefix, after) {
        Ok(watcher) => stream.watcher = Some(watcher),
        Err(StoreError::Compacted { asked, oldest }) => {
            stream.failed = Some(Status::expired(format!("too old resource version: {asked} ({oldest})")));
        }
        Err(StoreError::Future { .. }) => {
            wait_for(call, after).await?;
            stream.watcher = cache.watch(prefix, after).ok();
        }
        Err(other) => return Err(Status::unavailable(other.to_string())),
    }
    let frames = futures::stream::unfold(stream, |mut stream| async move {
        let frame = stream.next().await?;
        Some((Ok::<_, BoxError>(frame), stream))
    });
    let media_type = match (call.accept.form, call.accept.yaml) {
        (Form::Object, _) => "application/json",
        _ => "application/json;stream=watch",
    };
    let mut response = body::with_type(StatusCode::OK, media_type, body::streamed(frames));
    response.extensions_mut().insert(body::Endless);
    Ok(response)
}

fn bookmark_timer() -> Interval {
    // Jittered, so that a thousand watches do not wake together.
    let jitter = rand::rng().random_range(0..5_000);
    let mut timer = interval_at(Instant::now() + BOOKMARKS - Duration::from_millis(jitter), BOOKMARKS);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    timer
}

struct Stream {
    call: Arc<Call>,
    filter: Filter,
    initial: VecDeque<Arc<Entry>>,
    /// Send the bookmark behind the initial events, at this revision.
    bookmark_initial: Option<u64>,
    watcher: Option<Watcher>,
    bookmarks: Option<Interval>,
    ends: Instant,
    table_started: bool,
    tabulator: Option<Tabulator>,
    /// Counted while it lives.
    #[expect(dead_code, reason = "held for its drop")]
    open: crate::metrics::OpenWatch,
    failed: Option<Status>,
}

/// Initial objects of one frame.
const BATCH: usize = 64;

impl Stream {
    /// The next bytes; `None`: the end.
    async fn next(&mut self) -> Option<Bytes> {
        if !self.initial.is_empty() {
            let mut frame = BytesMut::new();
            for _ in 0..BATCH {
                let Some(entry) = self.initial.pop_front() else { break };
                self.event(&mut frame, "ADDED", &entry);
            }
            return Some(frame.freeze());
        }
        if let Some(revision) = self.bookmark_initial.take() {
            return Some(self.bookmark(revision, true));
        }
        if let Some(status) = self.failed.take() {
            return Some(error(&status));
        }
        loop {
            let watcher = self.watcher.as_mut()?;
            tokio::select! {
                biased;
                () = self.call.server.stopping() => return None,
                () = sleep_until(self.ends) => return None,
                events = watcher.next() => match events {
                    Ok(events) => {
                        let mut frame = BytesMut::new();
                        for event in &events {
                            self.change(&mut frame, event);
                        }
                        if !frame.is_empty() {
                            return Some(frame.freeze());
                        }
                    }
                    Err(WatchEnd::Expired) => {
                        self.watcher = None;
                        let status = Status::expired("The resourceVersion for the provided watch is too old.");
                        return Some(error(&status));
                    }
                    Err(WatchEnd::Closed) => return None,
                },
                () = tick(&mut self.bookmarks) => {
                    let revision = watcher.progress();
                    return Some(self.bookmark(revision, false));
                }
            }
        }
    }

    /// What a change is to this watch: an object that enters the selection is added, one that leaves it is deleted.
    fn change(&mut self, frame: &mut BytesMut, event: &WatchEvent) {
        let passes = |entry: &&Arc<Entry>| self.filter.passes(entry);
        let before = event.before.as_ref().filter(passes);
        let now = event.now.as_ref().filter(passes);
        match (before, now) {
            (None, Some(now)) => self.event(frame, "ADDED", &Arc::clone(now)),
            (Some(_), Some(now)) => self.event(frame, "MODIFIED", &Arc::clone(now)),
            (Some(before), None) => {
                // The last state that was selected, with the revision of this change.
                let gone = event
                    .deleted
                    .clone()
                    .unwrap_or_else(|| Arc::new(before.at_revision(event.revision)));
                self.event(frame, "DELETED", &gone);
            }
            (None, None) => {}
        }
    }

    fn event(&mut self, frame: &mut BytesMut, kind: &str, entry: &Entry) {
        let text = match self.call.accept.form {
            Form::Object => present::text_of(&self.call.resource, entry),
            form => present::object_of(&self.call.resource, entry).map(|value| {
                let value = self.transform(form, &value);
                serde_json::to_vec(&value).unwrap_or_default().into()
            }),
        };
        match text {
            Ok(text) => put(frame, kind, &text),
            Err(status) => put(
                frame,
                "ERROR",
                &serde_json::to_vec(&status.to_json()).unwrap_or_default(),
            ),
        }
    }

    fn transform(&mut self, form: Form, value: &Value) -> Value {
        match (form, &self.tabulator) {
            (Form::Table, Some(tabulator)) => {
                let definitions = !std::mem::replace(&mut self.table_started, true);
                let mut table = tabulator.table(std::iter::once(value), definitions);
                table["metadata"] = json!({ "resourceVersion": object::meta(value, "resourceVersion") });
                table
            }
            _ => object::partial(value, self.call.accept.meta_version()),
        }
    }

    fn bookmark(&mut self, revision: u64, initial: bool) -> Bytes {
        let resource = &self.call.resource;
        let mut value = json!({
            "kind": &*resource.kind, "apiVersion": resource.api_version(),
            "metadata": { "resourceVersion": revision.to_string(), "creationTimestamp": null },
        });
        if initial {
            value["metadata"]["annotations"] = json!({ INITIAL_EVENTS_END: "true" });
        }
        let value = match self.call.accept.form {
            Form::Object => value,
            form => self.transform(form, &value),
        };
        let mut frame = BytesMut::new();
        put(&mut frame, "BOOKMARK", &serde_json::to_vec(&value).unwrap_or_default());
        frame.freeze()
    }
}

async fn tick(timer: &mut Option<Interval>) {
    match timer {
        Some(timer) => {
            timer.tick().await;
        }
        None => std::future::pending().await,
    }
}

fn put(frame: &mut BytesMut, kind: &str, text: &[u8]) {
    frame.reserve(text.len() + kind.len() + 24);
    frame.put_slice(b"{\"type\":\"");
    frame.put_slice(kind.as_bytes());
    frame.put_slice(b"\",\"object\":");
    frame.put_slice(text);
    frame.put_slice(b"}\n");
}

fn error(status: &Status) -> Bytes {
    let mut frame = BytesMut::new();
    put(
        &mut frame,
        "ERROR",
        &serde_json::to_vec(&status.to_json()).unwrap_or_default(),
    );
    frame.freeze()
}
