//! The cache over a backend in memory: what is read is what was written, at every revision.

use bytes::Bytes;
use fairlead_store::{
    Backend, Cache, Durability, Expect, Indexed, Key, Limits, Operation, Revision, StoreError, Txn, WatchEnd,
    WatchEvent, encode,
    testing::{EtcdDouble, MetadataIndexer},
};
use serde_json::json;
use std::{sync::Arc, time::Duration};

const PODS: &str = "core/pods";

fn key(prefix: &str, namespace: &str, name: &str) -> Key {
    Key {
        prefix: prefix.into(),
        namespace: namespace.into(),
        name: name.into(),
    }
}

fn object(name: &str, value: u64) -> Bytes {
    encode(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "uid": format!("uid-{name}"), "labels": {"b": "2", "a": "1"}},
        "spec": {"value": value},
    }))
}

fn put(key: &Key, expect: Expect, value: u64) -> Txn {
    let operation = Operation::Put(object(&key.name, value));
    Txn {
        key: key.clone(),
        expect,
        operation,
        durability: Durability::Durable,
    }
}

fn delete(key: &Key, at: Revision) -> Txn {
    Txn {
        key: key.clone(),
        expect: Expect::At(at),
        operation: Operation::Delete,
        durability: Durability::Durable,
    }
}

async fn cache() -> (EtcdDouble, Arc<Cache>) {
    let backend = EtcdDouble::new();
    let cache = Cache::open(Arc::new(backend.clone()), Arc::new(MetadataIndexer))
        .await
        .unwrap();
    (backend, cache)
}

fn names(events: &[WatchEvent]) -> Vec<(Revision, String)> {
    let kind = |it: &WatchEvent| match (&it.before, &it.now) {
        (None, Some(now)) => format!("+{}", now.key.name),
        (Some(_), Some(now)) => format!("~{}", now.key.name),
        (Some(before), None) => format!("-{}", before.key.name),
        (None, None) => "?".into(),
    };
    events.iter().map(|it| (it.revision, kind(it))).collect()
}

#[tokio::test]
async fn a_write_is_seen_when_it_returns() {
    let (_, cache) = cache().await;
    let pod = key(PODS, "default", "a");
    let made = cache.commit(put(&pod, Expect::Absent, 1)).await.unwrap();
    let entry = cache.get(&pod).unwrap();
    assert!(Arc::ptr_eq(&entry, made.now.as_ref().unwrap()));
    assert_eq!((entry.revision, cache.revision(), made.revision), (1, 1, 1));
    let json: serde_json::Value = serde_json::from_slice(&entry.json).unwrap();
    assert_eq!(json["metadata"]["resourceVersion"], "1");
    let labels = [("a", "1"), ("b", "2")].map(|(name, value)| (name.into(), value.into()));
    let indexed = Indexed {
        uid: "uid-a".into(),
        labels: labels.into(),
        ..Indexed::default()
    };
    assert_eq!(entry.indexed, indexed);

    let changed = cache.commit(put(&pod, Expect::At(1), 2)).await.unwrap();
    assert!(Arc::ptr_eq(changed.before.as_ref().unwrap(), &entry));
    let gone = cache.commit(delete(&pod, 2)).await.unwrap();
    assert!(gone.now.is_none() && cache.get(&pod).is_none());
    let last: serde_json::Value = serde_json::from_slice(&gone.deleted.unwrap().json).unwrap();
    assert_eq!(
        (&last["metadata"]["resourceVersion"], &last["spec"]["value"]),
        (&json!("3"), &json!(2))
    );
}

#[tokio::test]
async fn a_conflict_names_what_is_there() {
    let (_, cache) = cache().await;
    let pod = key(PODS, "default", "a");
    cache.commit(put(&pod, Expect::Absent, 1)).await.unwrap();
    for txn in [
        put(&pod, Expect::Absent, 2),
        put(&pod, Expect::At(7), 2),
        delete(&pod, 7),
    ] {
        match cache.commit(txn).await {
            Err(StoreError::Conflict { found: Some(found), .. }) => assert_eq!(found.modified, 1),
            other => panic!("{other:?}"),
        }
    }
    let absent = cache.commit(delete(&key(PODS, "default", "b"), 1)).await;
    assert!(matches!(absent, Err(StoreError::Conflict { found: None, .. })));
    assert_eq!(cache.revision(), 1);
}

#[tokio::test]
async fn a_watch_sees_its_resource_only_and_progress_covers_the_others() {
    let (_, cache) = cache().await;
    let mut pods = cache.watch(PODS, 0).unwrap();
    for name in ["a", "b"] {
        cache
            .commit(put(&key(PODS, "default", name), Expect::Absent, 1))
            .await
            .unwrap();
        cache
            .commit(put(&key("apps/deployments", "default", name), Expect::Absent, 1))
            .await
            .unwrap();
    }
    assert_eq!(pods.progress(), 0, "the first event is not handed out yet");
    cache.commit(delete(&key(PODS, "default", "a"), 1)).await.unwrap();
    let events = pods.next().await.unwrap();
    assert_eq!(names(&events), [(1, "+a".into()), (3, "+b".into()), (5, "-a".into())]);
    cache
        .commit(put(&key("apps/deployments", "default", "c"), Expect::Absent, 1))
        .await
        .unwrap();
    assert_eq!(pods.progress(), 6);
    assert!(pods.try_next().unwrap().is_empty());

    let later = cache.watch(PODS, 3).unwrap().next().await.unwrap();
    assert_eq!(names(&later), [(5, "-a".into())]);
    assert!(matches!(
        cache.watch(PODS, 7),
        Err(StoreError::Future { asked: 7, newest: 6 })
    ));
    let mut unknown = cache.watch("nothing/here", 6).unwrap();
    assert!(cache.snapshot("nothing/here").is_empty() && unknown.try_next().unwrap().is_empty());
    cache
        .commit(put(&key("nothing/here", "", "x"), Expect::Absent, 1))
        .await
        .unwrap();
    assert_eq!(names(&unknown.next().await.unwrap()), [(7, "+x".into())]);
}

#[tokio::test]
async fn snapshots_stay_and_past_ones_come_back() {
    let (_, cache) = cache().await;
    let mut states = vec![Vec::new()];
    let mut live = std::collections::BTreeMap::new();
    for step in 0u64..300 {
        let pod = key(PODS, ["x", "y"][step as usize % 2], &format!("p{}", step * 7 % 40));
        let made = match live.get(&pod) {
            Some(&at) if step % 3 == 0 => cache.commit(delete(&pod, at)).await.unwrap(),
            Some(&at) => cache.commit(put(&pod, Expect::At(at), step)).await.unwrap(),
            None => cache.commit(put(&pod, Expect::Absent, step)).await.unwrap(),
        };
        match made.now {
            Some(now) => drop(live.insert(pod, now.revision)),
            None => drop(live.remove(&pod)),
        }
        states.push(live.iter().map(|(key, at)| (key.clone(), *at)).collect::<Vec<_>>());
    }
    for at in (0..=300).rev().chain([17, 250, 17]) {
        let snapshot = cache.snapshot_at(PODS, at as u64).unwrap();
        let found: Vec<_> = snapshot
            .entries(None, None)
            .map(|it| (it.key.clone(), it.revision))
            .collect();
        assert_eq!((found, snapshot.revision()), (states[at].clone(), at as u64));
        assert_eq!(snapshot.len(), states[at].len());
    }
    let snapshot = cache.snapshot(PODS);
    let wanted: Vec<_> = states[300]
        .iter()
        .filter(|(key, _)| &*key.namespace == "y" && &*key.name > "p2")
        .collect();
    let page: Vec<_> = snapshot
        .entries(Some("y"), Some(("y", "p2")))
        .map(|it| (it.key.clone(), it.revision))
        .collect();
    assert_eq!(page.iter().collect::<Vec<_>>(), wanted);
    assert_eq!(
        snapshot.entries(Some("y"), Some(("x", "p9"))).count(),
        snapshot.entries(Some("y"), None).count()
    );
    assert_eq!(snapshot.entries(Some("none"), None).count(), 0);
    assert!(matches!(cache.snapshot_at(PODS, 301), Err(StoreError::Future { .. })));
}

#[tokio::test]
async fn a_slow_watcher_expires_and_others_go_on() {
    let backend = EtcdDouble::new();
    let limits = Limits {
        min_events: 2,
        max_events: 4,
        ..Limits::default()
    };
    let cache = Cache::open_with(Arc::new(backend), Arc::new(MetadataIndexer), limits)
        .await
        .unwrap();
    let (mut slow, mut quick) = (cache.watch(PODS, 0).unwrap(), cache.watch(PODS, 0).unwrap());
    for at in 1..=9 {
        cache
            .commit(put(&key(PODS, "default", &format!("p{at}")), Expect::Absent, 1))
            .await
            .unwrap();
        assert_eq!(quick.next().await.unwrap().len(), 1);
    }
    assert_eq!(slow.next().await.unwrap_err(), WatchEnd::Expired);
    assert_eq!(slow.progress(), 0);
    assert!(matches!(
        cache.watch(PODS, 3),
        Err(StoreError::Compacted { asked: 3, oldest: 5 })
    ));
    assert!(matches!(cache.snapshot_at(PODS, 3), Err(StoreError::Compacted { .. })));
    assert_eq!(cache.watch(PODS, 5).unwrap().next().await.unwrap().len(), 4);
    assert_eq!(cache.snapshot_at(PODS, 5).unwrap().len(), 5);
}

#[tokio::test]
async fn an_opened_cache_holds_what_was_there() {
    let backend = EtcdDouble::new();
    for at in 0..2_500 {
        let prefix = [PODS, "apps/deployments", "core/nodes"][at % 3];
        backend
            .commit(put(&key(prefix, "ns", &format!("n{at:04}")), Expect::Absent, at as u64))
            .await
            .unwrap();
    }
    let cache = Cache::open(Arc::new(backend), Arc::new(MetadataIndexer)).await.unwrap();
    let counts = [PODS, "apps/deployments", "core/nodes"].map(|it| cache.snapshot(it).len());
    assert_eq!((counts, cache.revision()), ([834, 833, 833], 2_500));
    assert!(
        cache
            .snapshot(PODS)
            .entries(None, None)
            .is_sorted_by(|a, b| a.key < b.key)
    );
    assert_eq!(cache.get(&key(PODS, "ns", "n0003")).unwrap().revision, 4);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_revision_ends_in_time() {
    let (backend, cache) = cache().await;
    let late = cache.wait_for(1, Duration::from_secs(3)).await;
    assert!(matches!(late, Err(StoreError::Future { asked: 1, newest: 0 })));
    let (seen, _) = tokio::join!(
        cache.wait_for(1, Duration::from_secs(3)),
        backend.commit(put(&key(PODS, "default", "a"), Expect::Absent, 1)),
    );
    seen.unwrap();
    assert_eq!(cache.snapshot(PODS).len(), 1);
}

#[tokio::test]
async fn closing_ends_every_watch() {
    let (backend, cache) = cache().await;
    let mut watcher = cache.watch(PODS, 0).unwrap();
    cache
        .commit(put(&key(PODS, "default", "a"), Expect::Absent, 1))
        .await
        .unwrap();
    backend.close();
    assert_eq!(
        watcher.next().await.unwrap().len(),
        1,
        "what was written is handed out first"
    );
    assert_eq!(watcher.next().await.unwrap_err(), WatchEnd::Closed);
    assert_eq!(
        cache.watch("new/one", 1).unwrap().next().await.unwrap_err(),
        WatchEnd::Closed
    );
    let refused = cache.commit(put(&key(PODS, "default", "b"), Expect::Absent, 1)).await;
    assert!(matches!(refused, Err(StoreError::Closed(_))));
    assert!(cache.is_closed());

    let (_, dropped) = self::cache().await;
    let mut watcher = dropped.watch(PODS, 0).unwrap();
    drop(dropped);
    assert_eq!(watcher.next().await.unwrap_err(), WatchEnd::Closed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_and_watches_fit_together_under_load() {
    let (_, cache) = cache().await;
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let cache = Arc::clone(&cache);
            tokio::spawn(async move {
                for step in 0u64..400 {
                    let pod = key(PODS, &format!("w{writer}"), &format!("p{}", step % 10));
                    let txn = match cache.get(&pod) {
                        Some(entry) if step % 7 == 0 => delete(&pod, entry.revision),
                        Some(entry) => put(&pod, Expect::At(entry.revision), step),
                        None => put(&pod, Expect::Absent, step),
                    };
                    let made = cache.commit(txn).await.unwrap();
                    assert_eq!(cache.get(&pod).map(|it| it.revision), made.now.map(|it| it.revision));
                }
            })
        })
        .collect();
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let cache = Arc::clone(&cache);
            tokio::spawn(async move {
                // Lists anywhere, watches from there; the replay must meet every later list at its revision.
                let first = cache.snapshot(PODS);
                let mut model: std::collections::BTreeMap<Key, Revision> = first
                    .entries(None, None)
                    .map(|it| (it.key.clone(), it.revision))
                    .collect();
                let mut watcher = cache.watch(PODS, first.revision()).unwrap();
                let mut at = first.revision();
                while at < 1_600 {
                    let later = cache.snapshot(PODS);
                    while at < later.revision() {
                        for event in watcher.next().await.unwrap() {
                            assert!(event.revision > at, "in order, and once");
                            if event.revision > later.revision() && at <= later.revision() {
                                let listed = later
                                    .entries(None, None)
                                    .map(|it| (it.key.clone(), it.revision))
                                    .collect();
                                assert_eq!(model, listed);
                            }
                            at = event.revision;
                            let previous = match &event.now {
                                Some(now) => model.insert(now.key.clone(), now.revision),
                                None => model.remove(&event.before.as_ref().unwrap().key),
                            };
                            assert_eq!(previous, event.before.map(|it| it.revision));
                        }
                    }
                    if at == later.revision() {
                        let listed = later
                            .entries(None, None)
                            .map(|it| (it.key.clone(), it.revision))
                            .collect();
                        assert_eq!(model, listed);
                    }
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for task in writers.into_iter().chain(readers) {
        task.await.unwrap();
    }
    assert_eq!(cache.revision(), 1_600);
}
