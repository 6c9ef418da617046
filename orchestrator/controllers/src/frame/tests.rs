//! Queues, clocks, caches and controllers without an API server.

use super::{
    Cache, Change, Clock, Controller, Fault, Key, Next, Queue, Statistics, Written, cache::Barrier, judge,
    owners::Claim,
};
use futures::FutureExt as _;
use k8s_openapi::{
    api::core::v1::{ConfigMap, Pod},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{core::Selector, runtime::watcher::Event};
use proptest::prelude::*;
use serde_json::json;
use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

fn key(name: &str) -> Key {
    Key::new("n", name)
}

fn map(name: &str, revision: u64, owner: Option<&str>) -> ConfigMap {
    let owners =
        owner.map(|uid| json!([{"apiVersion": "v1", "kind": "X", "name": "x", "uid": uid, "controller": true}]));
    let uid = format!("uid-{name}");
    let meta = json!({"name": name, "namespace": "n", "uid": uid, "resourceVersion": revision.to_string(), "ownerReferences": owners});
    serde_json::from_value(json!({"metadata": meta})).unwrap()
}

fn names(maps: Vec<Arc<ConfigMap>>) -> Vec<String> {
    maps.iter().map(|it| it.metadata.name.clone().unwrap()).collect()
}

#[tokio::test]
async fn a_key_waits_once_and_never_has_two_workers() {
    let queue = Queue::new(Clock::default());
    queue.add(key("a"));
    queue.add(key("a"));
    queue.add(key("b"));
    assert_eq!(queue.next().await, key("a"));
    queue.add(key("a"));
    queue.add(key("a"));
    assert_eq!(queue.next().await, key("b"));
    assert_eq!(queue.next().now_or_never(), None, "`a` has a worker");
    queue.done(&key("a"));
    assert_eq!(queue.next().await, key("a"));
    queue.done(&key("a"));
    assert_eq!(queue.next().now_or_never(), None);
}

#[tokio::test]
async fn delays_follow_the_clock_and_the_sooner_counts() {
    let clock = Clock::default();
    let queue = Queue::new(clock.clone());
    queue.add_after(key("a"), Duration::from_secs(1000));
    queue.add_after(key("a"), Duration::from_secs(5000));
    queue.add_after(key("b"), Duration::from_secs(3000));
    queue.add_after(key("b"), Duration::from_secs(2000));
    assert_eq!(queue.next().now_or_never(), None);
    let (first, ()) = tokio::join!(queue.next(), async { clock.advance(Duration::from_secs(1001)) });
    assert_eq!(first, key("a"));
    clock.advance(Duration::from_secs(1000));
    assert_eq!(queue.next().await, key("b"));
    clock.advance(Duration::from_secs(10_000));
    assert_eq!(queue.next().now_or_never(), None);
}

#[tokio::test]
async fn delays_after_failures_double_until_a_success() {
    let clock = Clock::default();
    let queue = Queue::new(clock.clone());
    for _ in 0..30 {
        queue.retry(key("a"));
        clock.advance(Duration::from_secs(101));
        assert_eq!(queue.next().await, key("a"));
        queue.done(&key("a"));
    }
    assert_eq!(queue.failures(&key("a")), 30);
    queue.retry(key("a"));
    clock.advance(Duration::from_secs(90));
    assert_eq!(queue.next().now_or_never(), None);
    queue.forget(&key("a"));
    assert_eq!(queue.failures(&key("a")), 0);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Add(u8),
    Take,
    Done,
}

proptest! {
    /// Nothing that was added is lost, nothing is taken twice at a time.
    #[test]
    fn queues_keep_their_word(steps in prop::collection::vec(
        prop_oneof![(0u8..4).prop_map(Step::Add), Just(Step::Take), Just(Step::Done)], 0..60,
    )) {
        let queue = Queue::new(Clock::default());
        let mut dirty = HashSet::new();
        let mut working = Vec::new();
        for step in steps {
            match step {
                Step::Add(name) => {
                    dirty.insert(key(&name.to_string()));
                    queue.add(key(&name.to_string()));
                }
                Step::Take => match queue.next().now_or_never() {
                    Some(key) => {
                        prop_assert!(dirty.remove(&key));
                        prop_assert!(!working.contains(&key));
                        working.push(key);
                    }
                    None => prop_assert!(dirty.iter().all(|it| working.contains(it))),
                },
                Step::Done => if let Some(key) = working.pop() {
                    queue.done(&key);
                },
            }
        }
    }
}

#[tokio::test]
async fn a_cache_indexes_and_tells_every_change_once() {
    let cache = Arc::new(Cache::<ConfigMap>::default());
    cache.add_index("first-letter", |it| {
        it.metadata.name.as_ref()?.get(..1).map(str::to_owned)
    });
    let mut list = Vec::new();
    for event in [
        Event::Init,
        Event::InitApply(map("a1", 5, Some("owner"))),
        Event::InitApply(map("b1", 3, None)),
        Event::InitDone,
    ] {
        cache.apply(event, &mut list);
    }
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&told);
    cache.listen(move |change: &Change<ConfigMap>| {
        let revision = |it: &Option<Arc<ConfigMap>>| it.as_ref().and_then(|it| it.metadata.resource_version.clone());
        let sides = (revision(&change.old), revision(&change.new));
        log.lock().unwrap().push(sides);
    });
    cache.listen(|_| panic!("a listener of somebody else"));
    cache.apply(Event::Apply(map("a1", 7, None)), &mut list);
    cache.apply(Event::Apply(map("a2", 8, Some("owner"))), &mut list);
    cache.apply(Event::Delete(map("b1", 9, None)), &mut list);
    assert_eq!(names(cache.controlled_by("owner")), ["a2"]);
    assert_eq!(names(cache.orphans("n")), ["a1"]);
    assert_eq!(names(cache.indexed("first-letter", "a")), ["a1", "a2"]);
    assert_eq!(names(cache.in_namespace("n")), ["a1", "a2"]);
    assert!(cache.in_namespace("m").is_empty());
    // A list after a gap: what is not in it is gone, what is the same is not told again.
    for event in [
        Event::Init,
        Event::InitApply(map("a2", 8, Some("owner"))),
        Event::InitApply(map("c", 12, None)),
        Event::InitDone,
    ] {
        cache.apply(event, &mut list);
    }
    assert_eq!(names(cache.all()), ["a2", "c"]);
    assert_eq!(cache.freshness().revision, 12);
    let some = |it: &str| Some(it.to_owned());
    let expected = [
        (None, some("5")),
        (None, some("3")),
        (some("5"), some("7")),
        (None, some("8")),
        (some("9"), None),
        (some("7"), None),
        (None, some("12")),
    ];
    assert_eq!(*told.lock().unwrap(), expected);
}

#[tokio::test]
async fn writes_are_waited_for() {
    let cache = Arc::new(Cache::<ConfigMap>::default());
    let mut list = Vec::new();
    cache.apply(Event::Init, &mut list);
    cache.apply(Event::InitDone, &mut list);
    let written = Written::new();
    let blocked = || written.seen(&key("owner")).now_or_never().is_none();
    written.note(&key("owner"), &cache, &map("a", 10, None));
    assert!(blocked());
    assert!(written.seen(&key("another")).now_or_never().is_some());
    cache.apply(Event::Apply(map("b", 9, None)), &mut list);
    assert!(blocked());
    cache.apply(Event::Apply(map("a", 10, None)), &mut list);
    assert!(!blocked());
    // The watch broke, and what was written was deleted meanwhile: a list from after the write is as good.
    written.note(&key("owner"), &cache, &map("c", 11, None));
    cache.apply(Event::Init, &mut list);
    assert!(blocked());
    cache.apply(Event::InitDone, &mut list);
    assert!(!blocked());
    // A deletion is seen when the object goes, is going, or another has its name.
    cache.apply(Event::Apply(map("d", 20, None)), &mut list);
    written.note_deleted(&key("owner"), &cache, &map("d", 20, None));
    assert!(blocked());
    let mut other = map("d", 21, None);
    other.metadata.uid = Some("another".to_owned());
    cache.apply(Event::Apply(other), &mut list);
    assert!(!blocked());
    let _: Barrier = cache.barrier(1);
}

#[tokio::test]
async fn a_panic_or_a_failure_hurts_one_key_only() {
    let (sender, mut done) = mpsc::unbounded_channel();
    let tries = Arc::new(AtomicUsize::new(0));
    let statistics = Statistics::default();
    let counted = Arc::clone(&tries);
    let controller = Controller::new("test-controller", 2, move |key| {
        let (sender, tries) = (sender.clone(), Arc::clone(&counted));
        async move {
            if &*key.name == "bad" {
                match tries.fetch_add(1, Ordering::SeqCst) {
                    0 => panic!("a bad object"),
                    1 => return Err(Fault::Other("still bad".to_owned())),
                    _ => {}
                }
            }
            sender.send(key).unwrap();
            Ok(Next::Change)
        }
    });
    let cache = Arc::new(Cache::<ConfigMap>::default());
    let mut list = Vec::new();
    for event in [
        Event::Init,
        Event::InitApply(map("bad", 1, None)),
        Event::InitApply(map("good", 2, None)),
        Event::InitDone,
    ] {
        cache.apply(event, &mut list);
    }
    let stop = CancellationToken::new();
    let run = controller
        .on_own(&cache)
        .run(Clock::default(), statistics.clone(), stop.clone());
    let run = tokio::spawn(run);
    let mut seen = HashSet::new();
    while seen.len() < 2 {
        seen.insert(done.recv().await.unwrap());
    }
    stop.cancel();
    run.await.unwrap();
    let counts = statistics.of("test-controller");
    assert_eq!((counts.failures, counts.panics), (1, 1));
    assert!(
        statistics
            .render()
            .contains("controller_panics_total{controller=\"test-controller\"} 1")
    );
}

#[test]
fn ownership_is_judged_by_selector_and_life() {
    let selector = |text: &str| {
        let labels = LabelSelector {
            match_labels: Some([("app".to_owned(), text.to_owned())].into()),
            match_expressions: None,
        };
        Selector::try_from(labels).unwrap()
    };
    let pod = |owner: Option<&str>, app: &str, deleted: bool| -> Pod {
        let owners =
            owner.map(|uid| json!([{"apiVersion": "v1", "kind": "X", "name": "x", "uid": uid, "controller": true}]));
        let deleted = deleted.then_some("2026-01-01T00:00:00Z");
        let meta =
            json!({"name": "p", "labels": {"app": app}, "ownerReferences": owners, "deletionTimestamp": deleted});
        serde_json::from_value(json!({"metadata": meta})).unwrap()
    };
    let owner = |deleted: bool| {
        let mut owner = map("o", 1, None);
        if deleted {
            owner.metadata.deletion_timestamp = pod(None, "", true).metadata.deletion_timestamp;
        }
        owner
    };
    let cases = [
        (Some("uid-o"), "a", false, false, Claim::Mine),
        (Some("uid-o"), "b", false, false, Claim::Release),
        (Some("uid-o"), "b", false, true, Claim::Other),
        (Some("other"), "a", false, false, Claim::Other),
        (None, "a", false, false, Claim::Adopt),
        (None, "a", true, false, Claim::Other),
        (None, "a", false, true, Claim::Other),
        (None, "b", false, false, Claim::Other),
    ];
    for (controller, app, pod_deleted, owner_deleted, expected) in cases {
        let judged = judge(
            &owner(owner_deleted),
            &selector("a"),
            &pod(controller, app, pod_deleted),
            true,
        );
        assert_eq!(judged, expected, "{controller:?} {app} {pod_deleted} {owner_deleted}");
    }
    assert_eq!(
        judge(&owner(false), &selector("a"), &pod(None, "a", false), false),
        Claim::Other
    );
}
