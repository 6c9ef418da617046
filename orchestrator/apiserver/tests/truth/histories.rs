//! Random writers and followers, over random lives of a server.

use crate::{
    follower::{Follower, Form, Journal, Plan, Selector, Start, revision},
    support::TestServer,
};
use fairlead_apiserver::{Inside, Settings};
use fairlead_store::{
    Backend, Change, Limits,
    redb_store::{Options, RedbStore},
    testing::EtcdDouble,
};
use futures::StreamExt as _;
use http::Method;
use proptest::{prelude::*, test_runner::TestRunner};
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};
use tokio::sync::Notify;

pub(crate) const NAMESPACES: [&str; 2] = ["default", "kube-public"];
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const LABELS: [&str; 3] = ["x", "y", "z"];
const PREFIX: &str = "core/configmaps";

#[derive(Clone, Copy, Debug)]
enum Write {
    Create(&'static str),
    Update(&'static str),
    Merge(&'static str),
    Json(&'static str),
    Apply(&'static str),
    Delete,
    /// A finalizer, which a deletion waits for.
    Hold,
    Release,
    DeleteAll(&'static str),
    /// Lets an hour pass, where time can.
    Wait,
}

type Step = (Write, usize, usize);

#[derive(Clone, Debug)]
struct Life {
    writers: Vec<Vec<Step>>,
    /// Revisions before the newest are compacted away at the end.
    compacts: Option<u64>,
}

#[derive(Clone, Debug)]
struct History {
    lives: Vec<Life>,
    followers: Vec<Plan>,
    max_events: usize,
}

fn write() -> impl Strategy<Value = Write> {
    let label = || proptest::sample::select(&LABELS[..]);
    prop_oneof![
        4 => label().prop_map(Write::Create),
        3 => label().prop_map(Write::Update),
        2 => label().prop_map(Write::Merge),
        2 => label().prop_map(Write::Json),
        2 => label().prop_map(Write::Apply),
        3 => Just(Write::Delete),
        1 => Just(Write::Hold),
        1 => Just(Write::Release),
        1 => label().prop_map(Write::DeleteAll),
        1 => Just(Write::Wait),
    ]
}

fn plan() -> impl Strategy<Value = Plan> {
    let selector = prop_oneof![
        Just(Selector::All),
        proptest::sample::select(&NAMESPACES[..]).prop_map(Selector::Namespace),
        proptest::sample::select(&LABELS[..]).prop_map(Selector::Label),
        proptest::sample::select(&LABELS[..]).prop_map(Selector::NotLabel),
        proptest::sample::select(&NAMES[..]).prop_map(Selector::NameIsNot),
    ];
    let form = prop_oneof![Just(Form::Object), Just(Form::Metadata), Just(Form::Table)];
    let start = prop_oneof![
        Just(Start::List(0)),
        (1..4usize).prop_map(Start::List),
        Just(Start::Zero),
        Just(Start::WatchList),
    ];
    (selector, form, start, proptest::option::weighted(0.3, 0..10usize)).prop_map(
        |(selector, form, start, sleeps_after)| Plan {
            selector,
            form,
            start,
            sleeps_after,
        },
    )
}

fn history(lives: std::ops::Range<usize>) -> impl Strategy<Value = History> {
    let steps = proptest::collection::vec((write(), 0..NAMESPACES.len(), 0..NAMES.len()), 1..25);
    let life = (
        proptest::collection::vec(steps, 1..4),
        proptest::option::weighted(0.3, 0..20u64),
    );
    let life = life.prop_map(|(writers, compacts)| Life { writers, compacts });
    let max_events = prop_oneof![Just(4usize), Just(16), Just(10_000)];
    (
        proptest::collection::vec(life, lives),
        proptest::collection::vec(plan(), 1..6),
        max_events,
    )
        .prop_map(|(lives, followers, max_events)| History {
            lives,
            followers,
            max_events,
        })
}

/// What a writer was told: the object as acknowledged.
type Acknowledged = Vec<Value>;

async fn write_all(door: Inside, steps: Vec<Step>, waits: bool) -> Acknowledged {
    let mut acknowledged = Vec::new();
    for (write, namespace, name) in steps {
        let (namespace, name) = (NAMESPACES[namespace], NAMES[name]);
        let all = format!("/api/v1/namespaces/{namespace}/configmaps");
        let one = format!("{all}/{name}");
        let object = |label: &str| {
            json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "labels": { "l": label } },
                "data": { "n": acknowledged.len().to_string() } })
        };
        let merge = Some("application/merge-patch+json");
        let (method, path, media_type, body) = match write {
            Write::Create(label) => (Method::POST, all, None, Some(object(label))),
            Write::Update(label) => (Method::PUT, one, None, Some(object(label))),
            Write::Merge(label) => (
                Method::PATCH,
                one,
                merge,
                Some(json!({ "metadata": { "labels": { "l": label } } })),
            ),
            Write::Json(label) => {
                let patch = json!([{ "op": "add", "path": "/metadata/labels/l", "value": label }]);
                (Method::PATCH, one, Some("application/json-patch+json"), Some(patch))
            }
            Write::Apply(label) => (
                Method::PATCH,
                format!("{one}?fieldManager=me&force=true"),
                Some("application/apply-patch+yaml"),
                Some(object(label)),
            ),
            Write::Delete => (Method::DELETE, one, None, None),
            Write::Hold => (
                Method::PATCH,
                one,
                merge,
                Some(json!({ "metadata": { "finalizers": ["example.com/f"] } })),
            ),
            Write::Release => (
                Method::PATCH,
                one,
                merge,
                Some(json!({ "metadata": { "finalizers": null } })),
            ),
            Write::DeleteAll(label) => (Method::DELETE, format!("{all}?labelSelector=l%3D{label}"), None, None),
            Write::Wait => {
                if waits {
                    tokio::time::sleep(Duration::from_secs(61)).await;
                }
                continue;
            }
        };
        let media_type = media_type.unwrap_or("application/json");
        let (code, answer) = door.request(method, &path, media_type, body.as_ref()).await;
        assert!(
            matches!(code, 200 | 201 | 404 | 409 | 422),
            "{write:?} {path}: {answer}"
        );
        // A write that took the last finalizer away is answered with what was never stored: the object is gone.
        let meta = &answer["metadata"];
        let gone = meta["deletionTimestamp"].is_string() && meta.get("finalizers").is_none();
        if code <= 201 && answer["kind"] == "ConfigMap" && !gone {
            acknowledged.push(answer);
        }
    }
    acknowledged
}

/// Makes the objects by which followers know the end.
async fn mark(door: &Inside, end: &str) {
    for namespace in NAMESPACES {
        let path = format!("/api/v1/namespaces/{namespace}/configmaps");
        let object = json!({ "metadata": { "name": end, "labels": { "l": "end" } } });
        let (code, answer) = door
            .request(Method::POST, &path, "application/json", Some(&object))
            .await;
        assert_eq!(code, 201, "{answer}");
    }
}

/// What the store says, until the last mark.
async fn journal(backend: Arc<dyn Backend>, from: u64, end: String) -> Vec<Change> {
    let mut changes = backend.watch(Some(PREFIX.to_owned()), from);
    let mut journal: Vec<Change> = Vec::new();
    let last = NAMESPACES[NAMESPACES.len() - 1];
    while let Some(batch) = changes.next().await {
        journal.extend(batch.expect("the journal is never compacted before it is read"));
        let is_last = |it: &Change| *it.key.name == *end && *it.key.namespace == *last;
        if let Some(at) = journal.iter().position(is_last) {
            journal.truncate(at + 1);
            return journal;
        }
    }
    panic!("the store closed before the end");
}

async fn live(history: History, directory: Option<&Path>, waits: bool) -> Result<(), String> {
    let mut followers: Vec<Follower> = history.followers.iter().copied().map(Follower::new).collect();
    let (mut all, mut acknowledged): (Vec<Change>, Acknowledged) = Default::default();
    let lives = history.lives.len();
    for (number, life) in history.lives.into_iter().enumerate() {
        let redb = directory.map(|directory| Arc::new(RedbStore::open(directory, Options::default()).unwrap()));
        let backend: Arc<dyn Backend> = match &redb {
            Some(redb) => Arc::clone(redb) as _,
            None => Arc::new(EtcdDouble::new()),
        };
        let opened = backend.revision();
        if let Some(last) = all.last().filter(|it| it.revision > opened) {
            return Err(format!("opened at {opened} after {}", last.revision));
        }
        let end = format!("zz-end-{number}");
        let reads = tokio::spawn(journal(Arc::clone(&backend), opened, end.clone()));
        let settings = Settings {
            history: Limits {
                min_events: history.max_events.min(4),
                max_events: history.max_events,
                ..Limits::default()
            },
            ..Settings::default()
        };
        let server = TestServer::over(Arc::clone(&backend), settings).await;
        let written = Arc::new(Notify::new());
        let follows: Vec<_> = followers
            .into_iter()
            .map(|mut follower| {
                let (door, end, written) = (server.admin(), end.clone(), Arc::clone(&written));
                tokio::spawn(async move {
                    follower.follow(&door, &end, &written).await;
                    follower
                })
            })
            .collect();
        let writes = life
            .writers
            .into_iter()
            .map(|steps| tokio::spawn(write_all(server.admin(), steps, waits)));
        let writes: Vec<_> = writes.collect();
        for write in writes {
            acknowledged.extend(write.await.map_err(|error| error.to_string())?);
        }
        mark(&server.admin(), &end).await;
        // Each follower that sleeps gets a wake of its own, also if it falls asleep later.
        for _ in &follows {
            written.notify_waiters();
            written.notify_one();
        }
        let followed = async {
            let mut back = Vec::new();
            for follow in follows {
                // One that fell asleep after the others took the wakes is woken here.
                let mut follow = follow;
                let follower = loop {
                    tokio::select! {
                        ended = &mut follow => break ended.map_err(|error| error.to_string())?,
                        () = tokio::task::yield_now() => written.notify_one(),
                    }
                };
                back.push(follower);
            }
            Ok::<_, String>(back)
        };
        followers = followed.await?;
        all.extend(reads.await.map_err(|error| error.to_string())?);
        if let Some(back) = life.compacts {
            let before = backend.revision().saturating_sub(back);
            backend.compact(before).await.map_err(|error| error.to_string())?;
        }
        if server.running.server.metrics.faults() > 0 {
            return Err("the server met a fault".to_owned());
        }
        server.running.stop().await;
        if let Some(redb) = redb {
            redb.close();
        }
        if number + 1 < lives {
            followers.iter_mut().for_each(Follower::reconnect);
        }
    }
    check_acknowledged(&all, &acknowledged)?;
    let journal = Journal(&all);
    for follower in &followers {
        journal
            .check(follower)
            .map_err(|fault| format!("{:?}: {fault}", follower.plan))?;
    }
    Ok(())
}

/// Every answer to a write shows what was stored at its revision.
fn check_acknowledged(all: &[Change], acknowledged: &[Value]) -> Result<(), String> {
    let by_revision: BTreeMap<_, _> = all.iter().map(|it| (it.revision, it)).collect();
    for object in acknowledged {
        let at = revision(object);
        let change = by_revision
            .get(&at)
            .ok_or_else(|| format!("acknowledged at {at}, never written: {object}"))?;
        let record = change.now.as_ref().or(change.before.as_ref());
        let mut stored: Value = serde_json::from_slice(&record.ok_or("an empty change")?.value).unwrap();
        stored["metadata"]["resourceVersion"] = json!(at.to_string());
        // Whoever removes the last finalizer is shown what it asked for, which was never stored.
        let meta = &object["metadata"];
        let went = meta["deletionTimestamp"].is_string() && meta["finalizers"].is_null();
        let same = if went {
            stored["metadata"]["uid"] == meta["uid"]
        } else {
            stored == *object
        };
        if !same {
            return Err(format!("acknowledged {object}, stored {stored}"));
        }
    }
    Ok(())
}

fn run(lives: std::ops::Range<usize>, cases: u32, one: impl Fn(History) -> Result<(), String>) {
    let cases = std::env::var("TRUTH_CASES").map_or(cases, |it| it.parse().unwrap());
    let mut runner = TestRunner::new(ProptestConfig {
        cases,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(&history(lives), |history| one(history).map_err(TestCaseError::fail))
        .unwrap();
}

/// One thread and a clock that jumps: bookmarks come, and what follows what is the scheduler's choice alone.
#[test]
fn in_memory_with_bookmarks() {
    run(1..2, 60, |history| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(live(history, None, true))
    });
}

/// Several threads, a store on disk, restarts.
#[test]
fn on_disk_over_restarts() {
    run(2..4, 12, |history| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .enable_all()
            .build()
            .unwrap();
        let directory = tempfile::tempdir().unwrap();
        runtime.block_on(live(history, Some(directory.path()), false))
    });
}
