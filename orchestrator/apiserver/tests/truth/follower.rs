//! A client that lists and watches as it was told to, and notes all that it is told.

use bytes::Bytes;
use fairlead_apiserver::{Inside, http::Body};
use fairlead_store::{Change, Revision};
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use serde_json::Value;
use std::{collections::BTreeMap, collections::VecDeque, sync::Arc};
use tokio::sync::Notify;
use tower::ServiceExt as _;

/// Namespace and name.
pub(crate) type Name = (String, String);

/// What a follower sees: everything that its selector lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Selector {
    All,
    Namespace(&'static str),
    Label(&'static str),
    NotLabel(&'static str),
    NameIsNot(&'static str),
}

impl Selector {
    /// Path and the parameters of the selector.
    fn place(self) -> (String, &'static str, String) {
        let all = "/api/v1/configmaps".to_owned();
        match self {
            Self::All => (all, "", String::new()),
            Self::Namespace(namespace) => (format!("/api/v1/namespaces/{namespace}/configmaps"), "", String::new()),
            Self::Label(value) => (all, "labelSelector", format!("l%20in%20({value},end)")),
            Self::NotLabel(value) => (all, "labelSelector", format!("l!%3D{value}")),
            Self::NameIsNot(name) => (all, "fieldSelector", format!("metadata.name!%3D{name}")),
        }
    }

    /// The same, written a second time: whether an object is selected.
    pub(crate) fn selects(self, object: &Value) -> bool {
        let meta = &object["metadata"];
        match self {
            Self::All => true,
            Self::Namespace(namespace) => meta["namespace"] == namespace,
            Self::Label(value) => meta["labels"]["l"] == value || meta["labels"]["l"] == "end",
            Self::NotLabel(value) => meta["labels"]["l"] != value,
            Self::NameIsNot(name) => meta["name"] != name,
        }
    }

    /// The last object that it lets through.
    fn last(self) -> &'static str {
        match self {
            Self::Namespace(namespace) => namespace,
            _ => super::histories::NAMESPACES[super::histories::NAMESPACES.len() - 1],
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Object,
    Metadata,
    Table,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// A list in pages of so many (0: one page), and a watch from its revision.
    List(usize),
    /// A watch that begins with everything.
    Zero,
    /// A list as a watch.
    WatchList,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) selector: Selector,
    pub(crate) form: Form,
    pub(crate) start: Start,
    /// Reads so many events, then nothing until the writers have ended.
    pub(crate) sleeps_after: Option<usize>,
}

/// One event: type, namespace and name, revision.
pub(crate) type Event = (String, Name, Revision);

/// From one list on, until the server said that it is too old.
#[derive(Debug, Default)]
pub(crate) struct Segment {
    /// What the list showed, and its revision; `None`: it came as events.
    pub(crate) listed: Option<(Revision, Vec<(Name, Revision)>)>,
    /// Initial events, in order, and the revision of their bookmark.
    pub(crate) initial: Vec<(Name, Revision)>,
    pub(crate) bookmarked: Option<Revision>,
    pub(crate) events: Vec<Event>,
    /// Number of events before each later bookmark, and its revision.
    pub(crate) bookmarks: Vec<(usize, Revision)>,
}

pub(crate) struct Follower {
    pub(crate) plan: Plan,
    pub(crate) segments: Vec<Segment>,
    /// Where the next watch begins; `None`: list again.
    at: Option<Revision>,
    read: usize,
}

/// How a follower's time on one server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It has seen the last object of this life.
    Caught,
    /// It must begin anew.
    Again,
}

pub(crate) fn revision(object: &Value) -> Revision {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

fn name(object: &Value) -> Name {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

impl Follower {
    pub(crate) fn new(plan: Plan) -> Self {
        Self {
            plan,
            segments: Vec::new(),
            at: None,
            read: 0,
        }
    }

    /// Follows one server until the object `end` of the last namespace it sees.
    pub(crate) async fn follow(&mut self, door: &Inside, end: &str, written: &Arc<Notify>) {
        while self.once(door, end, written).await == Ended::Again {}
    }

    async fn once(&mut self, door: &Inside, end: &str, written: &Notify) -> Ended {
        let last = (self.plan.selector.last().to_owned(), end.to_owned());
        let mut initial = false;
        let from = match (self.at, self.plan.start) {
            (Some(revision), _) => format!("resourceVersion={revision}"),
            (None, Start::List(limit)) => {
                let Some(segment) = self.list(door, limit).await else {
                    return Ended::Again;
                };
                let (revision, listed) = segment.listed.clone().unwrap();
                self.segments.push(segment);
                self.at = Some(revision);
                if listed.iter().any(|(name, _)| *name == last) {
                    return Ended::Caught;
                }
                format!("resourceVersion={revision}")
            }
            (None, Start::Zero) => {
                // Nothing tells where its initial events end: only the journal does.
                self.segments.push(Segment::default());
                String::new()
            }
            (None, Start::WatchList) => {
                self.segments.push(Segment::default());
                initial = true;
                "sendInitialEvents=true&resourceVersionMatch=NotOlderThan".to_owned()
            }
        };
        let mut lines = self
            .open(door, &format!("watch=true&allowWatchBookmarks=true&{from}"))
            .await;
        loop {
            if self.plan.sleeps_after.is_some_and(|after| self.read == after) {
                self.read += 1;
                written.notified().await;
            }
            let Some(line) = lines.next().await else {
                return Ended::Again;
            };
            let (kind, object) = (line["type"].as_str().unwrap(), self.object(&line["object"]));
            let segment = self.segments.last_mut().unwrap();
            match kind {
                "ERROR" => {
                    assert_eq!(line["object"]["code"], 410, "{line}");
                    self.at = None;
                    return Ended::Again;
                }
                "BOOKMARK" if initial => {
                    assert_eq!(object["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
                    segment.bookmarked = Some(revision(&object));
                    self.at = segment.bookmarked;
                    initial = false;
                    // Seen among the initial ones.
                    if segment.initial.iter().any(|(name, _)| *name == last) {
                        return Ended::Caught;
                    }
                }
                "BOOKMARK" => {
                    segment.bookmarks.push((segment.events.len(), revision(&object)));
                    self.at = Some(revision(&object));
                }
                _ if initial => {
                    assert_eq!(kind, "ADDED");
                    segment.initial.push((name(&object), revision(&object)));
                }
                _ => {
                    let name = name(&object);
                    let caught = name == last && kind != "DELETED";
                    segment.events.push((kind.to_owned(), name, revision(&object)));
                    self.read += 1;
                    // Initial events of a watch without a start are not in the order of revisions.
                    if self.plan.start != Start::Zero || self.at.is_some() {
                        self.at = Some(revision(&object));
                    }
                    if caught {
                        return Ended::Caught;
                    }
                }
            }
        }
    }

    /// After a restart. A follower that does not know where it is begins anew.
    pub(crate) fn reconnect(&mut self) {
        if self.plan.start == Start::Zero {
            self.at = None;
        }
    }

    fn accept(&self) -> &'static str {
        match self.plan.form {
            Form::Object => "application/json",
            Form::Metadata => "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
            Form::Table => "application/json;as=Table;v=v1;g=meta.k8s.io",
        }
    }

    /// The object of an event, out of a Table's row where it came as one.
    fn object(&self, shown: &Value) -> Value {
        if shown["kind"] == "Table" && shown["rows"][0].is_object() {
            return shown["rows"][0]["object"].clone();
        }
        shown.clone()
    }

    fn request(&self, query: &str) -> Request<Empty<Bytes>> {
        let (path, parameter, value) = self.plan.selector.place();
        let uri = if parameter.is_empty() {
            format!("{path}?{query}")
        } else {
            format!("{path}?{query}&{parameter}={value}")
        };
        let request = Request::builder().uri(uri).header("accept", self.accept());
        request.body(Empty::new()).unwrap()
    }

    async fn open(&self, door: &Inside, query: &str) -> Lines {
        let response = door.clone().oneshot(self.request(query)).await.unwrap();
        assert_eq!(response.status(), 200, "{query}");
        Lines {
            body: response.into_body(),
            rest: Vec::new(),
            lines: VecDeque::new(),
        }
    }

    /// All pages; `None` when the first page grew too old before the last.
    async fn list(&self, door: &Inside, limit: usize) -> Option<Segment> {
        let mut listed = Vec::new();
        let mut query = format!("limit={limit}");
        let mut at = None;
        loop {
            let response = door.clone().oneshot(self.request(&query)).await.unwrap();
            let code = response.status().as_u16();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let list: Value = serde_json::from_slice(&body).unwrap();
            if code == 410 {
                assert!(list["metadata"]["continue"].is_string(), "{list}");
                return None;
            }
            assert_eq!(code, 200, "{list}");
            assert_eq!(*at.get_or_insert(revision(&list)), revision(&list), "pages of one list");
            let items = if self.plan.form == Form::Table { "rows" } else { "items" };
            for item in list[items].as_array().into_iter().flatten() {
                let object = if self.plan.form == Form::Table {
                    &item["object"]
                } else {
                    item
                };
                listed.push((name(object), revision(object)));
            }
            match list["metadata"]["continue"].as_str() {
                Some(token) if !token.is_empty() => query = format!("limit={limit}&continue={token}"),
                _ => {
                    return Some(Segment {
                        listed: Some((at.unwrap(), listed)),
                        ..Segment::default()
                    });
                }
            }
        }
    }
}

struct Lines {
    body: Body,
    rest: Vec<u8>,
    lines: VecDeque<Value>,
}

impl Lines {
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            let frame = self.body.frame().await?.unwrap();
            self.rest.extend_from_slice(&frame.into_data().unwrap());
            while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                self.lines.push_back(serde_json::from_slice(&line).unwrap());
            }
        }
    }
}

/// What the store itself says happened.
pub(crate) struct Journal<'a>(pub(crate) &'a [Change]);

impl Journal<'_> {
    fn objects(change: &Change) -> (Option<Value>, Option<Value>) {
        let read = |record: &Option<fairlead_store::Record>| {
            record.as_ref().map(|it| serde_json::from_slice(&it.value).unwrap())
        };
        (read(&change.before), read(&change.now))
    }

    /// What a selector lets through at a revision.
    pub(crate) fn state(&self, selector: Selector, at: Revision) -> BTreeMap<Name, Revision> {
        let mut state = BTreeMap::new();
        for change in self.0.iter().filter(|it| it.revision <= at) {
            let key = (change.key.namespace.to_string(), change.key.name.to_string());
            match Self::objects(change).1.filter(|it| selector.selects(it)) {
                Some(_) => state.insert(key, change.revision),
                None => state.remove(&key),
            };
        }
        state
    }

    /// What a watch of a selector is told after a revision.
    pub(crate) fn events(&self, selector: Selector, after: Revision) -> Vec<Event> {
        let later = self.0.iter().filter(|it| it.revision > after);
        let events = later.filter_map(|change| {
            let (before, now) = Self::objects(change);
            let was = before.is_some_and(|it| selector.selects(&it));
            let is = now.is_some_and(|it| selector.selects(&it));
            let kind = match (was, is) {
                (false, true) => "ADDED",
                (true, true) => "MODIFIED",
                (true, false) => "DELETED",
                (false, false) => return None,
            };
            let key = (change.key.namespace.to_string(), change.key.name.to_string());
            Some((kind.to_owned(), key, change.revision))
        });
        events.collect()
    }

    /// Compares what a follower was told with what happened.
    pub(crate) fn check(&self, follower: &Follower) -> Result<(), String> {
        let selector = follower.plan.selector;
        let mut newest = 0;
        for segment in &follower.segments {
            let (at, told) = match (&segment.listed, segment.bookmarked) {
                (Some((at, listed)), _) => {
                    self.same_state(selector, *at, listed)?;
                    (*at, &segment.events[..])
                }
                (None, Some(at)) => {
                    self.same_state(selector, at, &segment.initial)?;
                    (at, &segment.events[..])
                }
                // Cut before the bookmark, or a watch from zero: the first events are some state.
                (None, None) if follower.plan.start == Start::Zero => self.zero(selector, newest, &segment.events)?,
                (None, None) => continue,
            };
            if at < newest {
                return Err(format!("listed at {at} after {newest}"));
            }
            let expected = self.events(selector, at);
            if expected.get(..told.len()) != Some(told) {
                let same = expected.iter().zip(told).take_while(|(a, b)| a == b).count();
                return Err(format!(
                    "after {at}, event {same}: expected {:?}, told {:?}",
                    expected.get(same),
                    told.get(same)
                ));
            }
            for (before, bookmark) in &segment.bookmarks {
                let skipped = segment.events.len() - told.len();
                let happened = expected.iter().filter(|it| it.2 <= *bookmark).count();
                if Some(happened) != before.checked_sub(skipped) {
                    return Err(format!(
                        "bookmark {bookmark} behind {before} events, {happened} happened"
                    ));
                }
            }
            newest = told.iter().map(|it| it.2).chain([at]).max().unwrap_or(at);
        }
        Ok(())
    }

    fn same_state(&self, selector: Selector, at: Revision, shown: &[(Name, Revision)]) -> Result<(), String> {
        let expected: Vec<_> = self.state(selector, at).into_iter().collect();
        if expected == shown {
            return Ok(());
        }
        Err(format!("at {at}: expected {expected:?}, listed {shown:?}"))
    }

    /// Finds a state that a watch from zero may have begun with: events in the order of keys, then those that followed.
    fn zero<'e>(
        &self,
        selector: Selector,
        newest: Revision,
        events: &'e [Event],
    ) -> Result<(Revision, &'e [Event]), String> {
        let later = self.0.iter().map(|it| it.revision).filter(|it| *it > newest);
        for at in std::iter::once(newest).chain(later) {
            let state = self.state(selector, at);
            // A follower that has seen what it waits for does not read the rest of the state.
            let (initial, rest) = events.split_at(state.len().min(events.len()));
            let same = initial
                .iter()
                .zip(&state)
                .all(|(told, (name, revision))| (told.0.as_str(), &told.1, told.2) == ("ADDED", name, *revision));
            let expected = self.events(selector, at);
            if same && expected.get(..rest.len()) == Some(rest) {
                return Ok((at, rest));
            }
        }
        Err(format!(
            "the first events are no state: {:?}",
            &events[..events.len().min(20)]
        ))
    }
}
