//! Copies of the store, damage to its files, and who may open it.

use bytes::Bytes;
use fairlead_store::{
    Backend, Cache, Durability, Expect, Key, Operation, RangeQuery, Record, Revision, StoreError, Txn, encode,
    redb_store::{Options, RedbStore, check, restore},
    testing::MetadataIndexer,
};
use futures::StreamExt;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;
use std::{fs, path::Path, sync::Arc, time::Duration};
use tempfile::TempDir;

/// Nothing reaches redb until the store is closed, unless a test asks for it.
fn lazy() -> Options {
    let long = Duration::from_secs(3_600);
    Options {
        log_bytes: 256 << 10,
        checkpoint_bytes: 1 << 30,
        checkpoint_after: long,
        keep: None,
    }
}

fn txn(name: u64, durability: Durability) -> Txn {
    let value: Bytes = encode(&json!({"metadata": {"name": name}, "filling": "x".repeat(name as usize % 700)}));
    let key = Key {
        prefix: "core/pods".into(),
        namespace: "a".into(),
        name: format!("n{name}").into(),
    };
    Txn {
        key,
        expect: Expect::Absent,
        operation: Operation::Put(value),
        durability,
    }
}

async fn objects(store: &RedbStore) -> Vec<Record> {
    store.range(RangeQuery::default()).await.unwrap().records
}

async fn filled(writes: u64) -> (TempDir, RedbStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = RedbStore::open(directory.path(), lazy()).unwrap();
    for name in 0..writes {
        store.commit(txn(name, Durability::Durable)).await.unwrap();
    }
    (directory, store)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_made_under_load_is_one_moment_and_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(RedbStore::open(&directory.path().join("store"), lazy()).unwrap());
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for name in 0..200 {
                    store
                        .commit(txn(writer * 1_000 + name, Durability::Relaxed))
                        .await
                        .unwrap();
                }
            })
        })
        .collect();
    let mut announced = store.watch(None, 0);
    announced.next().await.unwrap().unwrap();
    let copy = directory.path().join("copy");
    let at = store.snapshot(&copy).await.unwrap();
    for writer in writers {
        writer.await.unwrap();
    }
    assert!(at >= 1);
    let then = store
        .range(RangeQuery {
            at: Some(at),
            ..RangeQuery::default()
        })
        .await
        .unwrap()
        .records;
    assert_eq!(
        (then.len() as u64, store.revision()),
        (at, 800),
        "one object for each revision"
    );
    let report = check(&copy).unwrap();
    assert_eq!((report.revision, report.objects, report.writes), (at, at, at));

    match store.snapshot(&copy).await {
        Err(StoreError::Io { source, .. }) => assert_eq!(source.kind(), std::io::ErrorKind::AlreadyExists),
        other => panic!("{other:?}"),
    }
    let target = directory.path().join("restored");
    let goes_on = restore(&copy, &target).unwrap();
    assert!(restore(&copy, &target).is_err(), "there is a store already");
    let restored = RedbStore::open(&target, lazy()).unwrap();
    assert_eq!((objects(&restored).await, restored.revision()), (then, goes_on));
    assert!(
        goes_on > store.revision() + 1_000_000,
        "no revision that a client saw is used for something else"
    );
    for seen in [at + 1, 800, goes_on - 1] {
        let watch = restored.watch(None, seen).next().await;
        assert!(
            matches!(watch, Some(Err(StoreError::Compacted { .. }))),
            "{seen}: {watch:?}"
        );
    }
    let made = restored.commit(txn(9_999, Durability::Durable)).await.unwrap();
    assert_eq!(made.revision, goes_on + 1);
}

#[tokio::test]
async fn one_process_at_a_time() {
    let (directory, store) = filled(3).await;
    match RedbStore::open(directory.path(), lazy()) {
        Err(StoreError::Io { what, .. }) => assert!(what.contains("in use by another process"), "{what}"),
        other => panic!("{other:?}"),
    }
    assert!(check(directory.path()).is_err());
    let mut watch = store.watch(None, 0);
    assert_eq!(watch.next().await.unwrap().unwrap().len(), 3);
    store.close();
    assert!(matches!(
        store.commit(txn(7, Durability::Durable)).await,
        Err(StoreError::Closed(_))
    ));
    assert!(matches!(
        store.range(RangeQuery::default()).await,
        Err(StoreError::Closed(_))
    ));
    let again = RedbStore::open(directory.path(), lazy()).unwrap();
    assert_eq!(
        objects(&again).await.len(),
        3,
        "while a watch of the closed one is still held"
    );
    assert!(matches!(watch.next().await, Some(Err(StoreError::Closed(_)))));
}

/// What a crash leaves behind: the files as they are while the store idles.
fn crashed(directory: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in fs::read_dir(directory).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    copy
}

/// Overwrites a few bytes so far from the end of what was written to the log.
fn tear(directory: &Path, from_the_end: usize) {
    let path = directory.join("log-0.wal");
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.iter().rposition(|it| *it != 0).unwrap();
    bytes[end - from_the_end - 4..end - from_the_end].fill(0xee);
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_torn_tail_is_cut_and_its_revisions_are_not_used_again() {
    let (directory, store) = filled(20).await;
    let mut last = 0;
    for name in 20..30 {
        last = store.commit(txn(name, Durability::Relaxed)).await.unwrap().revision;
    }
    let whole = crashed(directory.path());
    let torn = crashed(directory.path());
    tear(torn.path(), 100);

    let store = RedbStore::open(whole.path(), lazy()).unwrap();
    assert_eq!(objects(&store).await.len(), 30);
    assert!(store.revision() > last);

    let store = RedbStore::open(torn.path(), lazy()).unwrap();
    assert_eq!(
        objects(&store).await.len(),
        29,
        "the last relaxed write is lost, and no other"
    );
    assert!(store.revision() > last, "its revision was seen and is not used again");
    let lost = store.lost();
    assert_eq!((lost[0].0, lost[0].1 + 1), (last, store.revision()));
    let seen = store.watch(None, last).next().await;
    assert!(
        matches!(seen, Some(Err(StoreError::Compacted { asked, oldest })) if (asked, oldest) == (last, store.revision()))
    );
    let store = Arc::new(store);
    let cache = Cache::open(Arc::clone(&store) as Arc<dyn Backend>, Arc::new(MetadataIndexer))
        .await
        .unwrap();
    for seen in [last, last + 1, store.revision() - 1] {
        assert!(
            matches!(cache.watch("core/pods", seen), Err(StoreError::Compacted { .. })),
            "{seen} is not what it was"
        );
        assert!(matches!(
            cache.snapshot_at("core/pods", seen),
            Err(StoreError::Compacted { .. })
        ));
    }
    assert_eq!(
        cache.snapshot_at("core/pods", last - 5).unwrap().len(),
        25,
        "what is durable goes on"
    );
    let mut watcher = cache.watch("core/pods", last - 3).unwrap();
    assert_eq!(watcher.next().await.unwrap().len(), 2);
    drop((cache, watcher));
    let next = store.commit(txn(30, Durability::Durable)).await.unwrap();
    let changes = store.watch(None, last - 1).next().await.unwrap().unwrap();
    assert_eq!(
        changes.iter().map(|it| it.revision).collect::<Vec<Revision>>(),
        [next.revision]
    );
    store.close();
    let store = RedbStore::open(torn.path(), lazy()).unwrap();
    assert_eq!(
        (store.lost(), store.revision()),
        (lost.clone(), next.revision),
        "remembered until it is compacted away"
    );
    store.compact(next.revision).await.unwrap();
    assert_eq!(store.lost(), []);
}

#[tokio::test]
async fn a_hole_among_acknowledged_writes_is_damage() {
    let (directory, store) = filled(20).await;
    let holed = crashed(directory.path());
    tear(holed.path(), 2_000);
    match RedbStore::open(holed.path(), lazy()) {
        Err(error @ StoreError::Damaged { .. }) => {
            let text = error.to_string();
            assert!(
                text.contains("acknowledged") && text.contains("fairlead store restore"),
                "{text}"
            );
        }
        other => panic!("{other:?}"),
    }
    let checked = check(holed.path());
    assert!(matches!(checked, Err(StoreError::Damaged { .. })), "{checked:?}");
    let without = crashed(directory.path());
    store.close();
    drop(store);
    // After a clean end nothing in the log matters.
    fs::remove_file(directory.path().join("log-0.wal")).unwrap();
    assert_eq!(
        objects(&RedbStore::open(directory.path(), lazy()).unwrap()).await.len(),
        20
    );
    fs::write(without.path().join("store.redb"), b"something else").unwrap();
    assert!(matches!(
        RedbStore::open(without.path(), lazy()),
        Err(StoreError::Damaged { .. })
    ));
}

#[tokio::test]
async fn flipped_bits_are_told_and_never_served() {
    let (directory, store) = filled(60).await;
    for name in 0..30 {
        let found = objects(&store)
            .await
            .into_iter()
            .find(|it| it.key == txn(name, Durability::Durable).key)
            .unwrap();
        let change = Txn {
            expect: Expect::At(found.modified),
            ..txn(name, Durability::Relaxed)
        };
        store.commit(change).await.unwrap();
    }
    let truth = objects(&store).await;
    store.close();
    drop(store);
    let whole = fs::read(directory.path().join("store.redb")).unwrap();
    let seed = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let mut told = 0;
    for round in 0..40 {
        let context = format!("seed {seed}, round {round}");
        let mut bytes = whole.clone();
        for _ in 0..random.random_range(1..20) {
            let at = random.random_range(0..bytes.len());
            bytes[at] ^= 1 << random.random_range(0..8);
        }
        // Each in its own place: redb may be left in a state in which it holds on to a file.
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("copy.redb");
        fs::write(&path, &bytes).unwrap();
        match check(&path) {
            Err(StoreError::Damaged { .. }) => told += 1,
            Err(StoreError::Io { source, what }) => panic!("{context}: {what}: {source}"),
            Err(other) => panic!("{context}: {other}"),
            Ok(report) => assert_eq!(report.objects, truth.len() as u64, "{context}"),
        }
        fs::create_dir(place.path().join("store")).unwrap();
        fs::write(place.path().join("store/store.redb"), &bytes).unwrap();
        if let Ok(store) = RedbStore::open(&place.path().join("store"), lazy())
            && let Ok(range) = store.range(RangeQuery::default()).await
        {
            assert_eq!(range.records, truth, "{context}");
        }
    }
    assert!(told > 0);
}

#[tokio::test]
async fn history_is_swept_and_what_lives_stays() {
    let (directory, store) = filled(40).await;
    let mut last = 0;
    for round in 0..40u64 {
        for name in 0..40 {
            let key = txn(name, Durability::Durable).key;
            let range = RangeQuery {
                prefix: Some("core/pods".into()),
                ..RangeQuery::default()
            };
            let found = store
                .range(range)
                .await
                .unwrap()
                .records
                .into_iter()
                .find(|it| it.key == key);
            let expect = found.map_or(Expect::Absent, |it| Expect::At(it.modified));
            let mut change = Txn {
                expect,
                ..txn(name, Durability::Relaxed)
            };
            if expect != Expect::Absent && (round + name) % 9 == 0 {
                change.operation = Operation::Delete;
            }
            last = store.commit(change).await.unwrap().revision;
        }
    }
    let truth = objects(&store).await;
    store.compact(last).await.unwrap();
    assert_eq!(objects(&store).await, truth);
    store.close();
    let report = check(directory.path()).unwrap();
    assert_eq!(
        (report.writes, report.objects),
        (truth.len() as u64, truth.len() as u64),
        "nothing but what lives"
    );
    assert_eq!(report.oldest, last);
}

#[tokio::test]
async fn history_is_kept_only_so_long() {
    let (directory, store) = filled(5).await;
    store.close();
    let store = RedbStore::open(
        directory.path(),
        Options {
            keep: Some(Duration::ZERO),
            ..lazy()
        },
    )
    .unwrap();
    // Returns when the background thread has come to it; until then everything is told.
    while store.watch(None, 0).next().await.unwrap().is_ok() {
        tokio::task::yield_now().await;
    }
    assert_eq!(objects(&store).await.len(), 5);
}
