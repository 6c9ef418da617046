//! One suite for every backend: conditions, order, replay from any revision, compaction, and nothing lost over a restart.

use bytes::Bytes;
use fairlead_store::{
    Backend, Cache, Change, Durability, Expect, Key, Limits, Operation, RangeQuery, Revision, StoreError, Txn,
    WatchEnd, encode,
    redb_store::{Options, RedbStore},
    testing::{EtcdDouble, MetadataIndexer},
};
use futures::StreamExt;
use proptest::prelude::*;
use serde_json::json;
use std::{collections::BTreeMap, future::Future, sync::Arc};
use tempfile::TempDir;

const PREFIXES: [&str; 3] = ["core/pods", "core/podtemplates", "apps/deployments"];

/// A backend under test, with what it needs to come back.
enum Subject {
    Double(EtcdDouble),
    Redb(TempDir, Option<Arc<RedbStore>>),
}

impl Subject {
    fn all() -> [Self; 2] {
        [Self::Double(EtcdDouble::new()), Self::redb()]
    }

    fn redb() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(RedbStore::open(directory.path(), small()).unwrap());
        Self::Redb(directory, Some(store))
    }

    fn backend(&self) -> Arc<dyn Backend> {
        match self {
            Self::Double(double) => Arc::new(double.clone()),
            Self::Redb(_, store) => store.clone().unwrap(),
        }
    }

    /// As after a restart of the process.
    fn reopen(&mut self) {
        if let Self::Redb(directory, store) = self {
            store.take().unwrap().close();
            *store = Some(Arc::new(RedbStore::open(directory.path(), small()).unwrap()));
        }
    }
}

/// Small files and frequent checkpoints, so that tests cross their borders.
fn small() -> Options {
    Options {
        log_bytes: 256 << 10,
        checkpoint_bytes: 20_000,
        keep: None,
        ..Options::default()
    }
}

fn key(prefix: usize, name: u8) -> Key {
    let namespace = ["", "a", "a-b"][usize::from(name) % 3];
    Key {
        prefix: PREFIXES[prefix].into(),
        namespace: namespace.into(),
        name: format!("n{name}").into(),
    }
}

fn value(number: u64) -> Bytes {
    encode(
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}, "data": number, "more": "x".repeat(number as usize % 900)}),
    )
}

fn put(key: &Key, expect: Expect, number: u64) -> Txn {
    Txn {
        key: key.clone(),
        expect,
        operation: Operation::Put(value(number)),
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

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

type State = BTreeMap<Key, (Revision, Revision, Bytes)>;

fn apply(state: &mut State, change: &Change) {
    let before = match &change.now {
        Some(now) => {
            assert_eq!((&now.key, now.modified), (&change.key, change.revision));
            state.insert(now.key.clone(), (now.created, now.modified, now.value.clone()))
        }
        None => state.remove(&change.key),
    };
    let told = change
        .before
        .as_ref()
        .map(|it| (it.created, it.modified, it.value.clone()));
    assert_eq!(before, told, "revision {} knows what was there before", change.revision);
}

/// Everything there is at a revision, read in pages.
async fn list(backend: &dyn Backend, prefix: Option<&str>, at: Option<Revision>, limit: usize) -> (State, Revision) {
    let mut state = State::new();
    let mut query = RangeQuery {
        prefix: prefix.map(Into::into),
        after: None,
        limit,
        at,
    };
    loop {
        let range = backend.range(query.clone()).await.unwrap();
        assert!(limit == 0 || range.records.len() <= limit);
        assert!(range.records.is_sorted_by(|a, b| a.key < b.key));
        let last = range.records.last().map(|it| it.key.clone());
        assert!(last.is_some() || !range.more);
        for record in range.records {
            assert!(
                state
                    .insert(record.key, (record.created, record.modified, record.value))
                    .is_none()
            );
        }
        query.at = Some(range.revision);
        query.after = last;
        if !range.more {
            return (state, range.revision);
        }
    }
}

/// The changes from a revision up to another, as a watch yields them.
async fn replay(backend: &dyn Backend, prefix: Option<&str>, from: Revision, until: Revision) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut stream = backend.watch(prefix.map(Into::into), from);
    while changes.last().map_or(from, |it: &Change| it.revision) < until {
        changes.extend(stream.next().await.unwrap().unwrap());
    }
    changes
}

#[tokio::test]
async fn conditions_hold_or_nothing_is_written() {
    for subject in Subject::all() {
        let backend = subject.backend();
        let (a, b) = (key(0, 1), key(1, 1));
        let start = backend.revision();
        let made = backend.commit(put(&a, Expect::Absent, 1)).await.unwrap();
        assert_eq!(
            (made.revision, backend.revision(), made.before),
            (start + 1, start + 1, None)
        );
        for wrong in [
            put(&a, Expect::Absent, 2),
            put(&a, Expect::At(start), 2),
            delete(&a, start + 7),
        ] {
            match backend.commit(wrong).await {
                Err(StoreError::Conflict {
                    key,
                    found: Some(found),
                    ..
                }) => {
                    assert_eq!((key, found.modified, found.value), (a.clone(), start + 1, value(1)));
                }
                other => panic!("{other:?}"),
            }
        }
        let nothing = backend.commit(delete(&b, 1)).await;
        assert!(matches!(nothing, Err(StoreError::Conflict { found: None, .. })));
        let absent = Txn {
            expect: Expect::Absent,
            ..delete(&b, 1)
        };
        assert!(backend.commit(absent).await.is_err(), "deleting nothing is no write");
        assert_eq!(backend.revision(), start + 1);
        let changed = backend.commit(put(&a, Expect::At(start + 1), 2)).await.unwrap();
        assert_eq!(
            changed.now.map(|it| (it.created, it.modified)),
            Some((start + 1, start + 2))
        );
        let gone = backend.commit(delete(&a, start + 2)).await.unwrap();
        assert_eq!((gone.now, gone.before.map(|it| it.value)), (None, Some(value(2))));
        let again = backend.commit(put(&a, Expect::Absent, 3)).await.unwrap();
        assert_eq!(again.now.map(|it| it.created), Some(start + 4));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_many_writers_wins_each_round() {
    for subject in Subject::all() {
        let backend = subject.backend();
        let pod = key(0, 1);
        let first = backend.commit(put(&pod, Expect::Absent, 0)).await.unwrap().revision;
        let mut at = first;
        for round in 0..20 {
            let rivals = (0..16).map(|_| backend.commit(put(&pod, Expect::At(at), round)));
            let results = futures::future::join_all(rivals).await;
            let won: Vec<_> = results.into_iter().filter_map(Result::ok).collect();
            assert_eq!(won.len(), 1);
            assert_eq!(won[0].revision, at + 1, "losers take no revision");
            at = won[0].revision;
        }
        let history = replay(&*backend, None, first, at).await;
        assert!(history.iter().map(|it| it.revision).eq(first + 1..=at));
    }
}

#[tokio::test]
async fn watches_of_what_is_not_kept_end_at_once() {
    for subject in Subject::all() {
        let backend = subject.backend();
        let pod = key(0, 1);
        let mut at = backend.commit(put(&pod, Expect::Absent, 0)).await.unwrap().revision;
        let first = at;
        for number in 1..10 {
            at = backend
                .commit(put(&pod, Expect::At(at), number))
                .await
                .unwrap()
                .revision;
        }
        let mut early = backend.watch(None, first);
        assert!(early.next().await.unwrap().is_ok());
        backend.compact(at - 3).await.unwrap();
        backend.compact(first).await.unwrap();
        let mut old = backend.watch(None, at - 4);
        match old.next().await {
            Some(Err(StoreError::Compacted { asked, oldest })) => assert_eq!((asked, oldest), (at - 4, at - 3)),
            other => panic!("{other:?}"),
        }
        assert!(old.next().await.is_none());
        assert_eq!(replay(&*backend, None, at - 3, at).await.len(), 3);
        let mut future = backend.watch(None, at + 1);
        assert!(matches!(future.next().await, Some(Err(StoreError::Future { .. }))));
        assert!(matches!(backend.compact(at + 1).await, Err(StoreError::Future { .. })));
        let past = backend
            .range(RangeQuery {
                at: Some(at - 4),
                ..RangeQuery::default()
            })
            .await;
        assert!(matches!(past, Err(StoreError::Compacted { .. })));
        let future = backend
            .range(RangeQuery {
                at: Some(at + 1),
                ..RangeQuery::default()
            })
            .await;
        assert!(matches!(future, Err(StoreError::Future { .. })));
        assert_eq!(list(&*backend, None, Some(at - 3), 0).await.0[&pod].1, at - 3);
    }
}

#[tokio::test]
async fn strange_keys_and_values_hurt_only_themselves() {
    let subject = Subject::redb();
    let backend = subject.backend();
    let odd = |prefix: &str, namespace: &str, name: &str| Key {
        prefix: prefix.into(),
        namespace: namespace.into(),
        name: name.into(),
    };
    for key in [
        odd("", "", "a"),
        odd("core/pods", "a", ""),
        odd("core/pods", "a\0b", "c"),
        odd("p", "", &"x".repeat(9_000)),
    ] {
        assert!(matches!(
            backend.commit(put(&key, Expect::Absent, 1)).await,
            Err(StoreError::Io { .. })
        ));
    }
    let pod = key(0, 1);
    let huge = Operation::Put(Bytes::from(vec![b'x'; 200 << 10]));
    let huge = Txn {
        operation: huge,
        ..put(&pod, Expect::Absent, 1)
    };
    assert!(matches!(backend.commit(huge).await, Err(StoreError::Io { .. })));
    let large = Operation::Put(Bytes::from(vec![b'x'; 120 << 10]));
    let large = Txn {
        operation: large,
        ..put(&pod, Expect::Absent, 1)
    };
    backend.commit(large).await.unwrap();
    assert_eq!(list(&*backend, None, None, 0).await.0[&pod].2.len(), 120 << 10);
}

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    /// Writes or deletes, with the right expectation or a wrong one.
    Write {
        prefix: usize,
        name: u8,
        delete: bool,
        wrong: bool,
        relaxed: bool,
    },
    /// Forgets this part of what is kept, in percent.
    Compact(u64),
    Restart,
}

fn steps(length: usize) -> impl Strategy<Value = Vec<Step>> {
    let write = (
        0..3usize,
        0..24u8,
        prop::bool::weighted(0.3),
        prop::bool::weighted(0.1),
        any::<bool>(),
    );
    let write = write.prop_map(|(prefix, name, delete, wrong, relaxed)| Step::Write {
        prefix,
        name,
        delete,
        wrong,
        relaxed,
    });
    let step = prop_oneof![200 => write, 3 => (0..100u64).prop_map(Step::Compact), 1 => Just(Step::Restart)];
    prop::collection::vec(step, 1..length)
}

/// Runs a history against a backend and a model, then compares every revision that is kept.
async fn run(subject: &mut Subject, steps: &[Step]) {
    let mut backend = subject.backend();
    let mut oldest = backend.revision();
    let mut states = BTreeMap::from([(oldest, State::new())]);
    let mut now = State::new();
    for (number, step) in steps.iter().enumerate() {
        match step {
            Step::Write {
                prefix,
                name,
                delete: deletes,
                wrong,
                relaxed,
            } => {
                let key = key(*prefix, *name);
                let expect = now
                    .get(&key)
                    .map_or(Expect::Absent, |it| Expect::At(it.1 + u64::from(*wrong)));
                let mut txn = put(&key, expect, number as u64);
                if *deletes {
                    txn.operation = Operation::Delete;
                }
                if *relaxed {
                    txn.durability = Durability::Relaxed;
                }
                let fails = matches!(expect, Expect::Absent if *deletes) || (*wrong && expect != Expect::Absent);
                match backend.commit(txn).await {
                    Ok(change) => {
                        assert!(!fails);
                        apply(&mut now, &change);
                        assert!(states.last_key_value().unwrap().0 < &change.revision);
                        states.insert(change.revision, now.clone());
                    }
                    Err(StoreError::Conflict { found, .. }) => {
                        assert!(fails);
                        assert_eq!(found.map(|it| it.modified), now.get(&key).map(|it| it.1));
                    }
                    Err(other) => panic!("{other:?}"),
                }
            }
            Step::Compact(percent) => {
                oldest += (backend.revision() - oldest) * percent / 100;
                backend.compact(oldest).await.unwrap();
            }
            Step::Restart => {
                let before = backend.revision();
                drop(backend);
                subject.reopen();
                backend = subject.backend();
                assert_eq!(
                    (backend.revision(), backend.lost()),
                    (before, Vec::new()),
                    "closed, not crashed"
                );
            }
        }
    }
    let newest = backend.revision();
    let truth = |at: Revision| {
        states
            .range(..=at)
            .next_back()
            .map(|it| it.1.clone())
            .unwrap_or_default()
    };
    for at in oldest..=newest {
        assert_eq!(
            list(&*backend, None, Some(at), [0, 1, 7][at as usize % 3]).await,
            (truth(at), at)
        );
    }
    for prefix in [None, Some(PREFIXES[0]), Some(PREFIXES[1])] {
        let of_prefix = |state: State| -> State {
            state
                .into_iter()
                .filter(|(key, _)| prefix.is_none_or(|it| *key.prefix == *it))
                .collect()
        };
        for from in (oldest..=newest).step_by(7) {
            let (mut state, at) = list(&*backend, prefix, Some(from), 5).await;
            assert_eq!(state, of_prefix(truth(at)));
            let last = states.range(..=newest).rev().find(|(at, state)| {
                let before = states
                    .range(..*at)
                    .next_back()
                    .map(|it| it.1.clone())
                    .unwrap_or_default();
                of_prefix((*state).clone()) != of_prefix(before)
            });
            let last = last.map_or(0, |it| *it.0);
            let mut seen = from;
            for change in replay(&*backend, prefix, from, last).await {
                assert!(change.revision > seen, "in order, and once");
                assert_eq!(of_prefix(truth(change.revision - 1)), state, "none left out");
                apply(&mut state, &change);
                seen = change.revision;
                assert_eq!(state, of_prefix(truth(seen)));
            }
            assert_eq!(state, of_prefix(truth(newest)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 200, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn any_history_can_be_read_back_from_the_double(steps in steps(150)) {
        block_on(run(&mut Subject::all()[0], &steps));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 50, ..ProptestConfig::with_cases(10) })]

    #[test]
    fn any_history_can_be_read_back_from_redb(steps in steps(150)) {
        block_on(run(&mut Subject::redb(), &steps));
    }
}

#[test]
fn a_long_history_goes_round_the_log_files() {
    let mut subject = Subject::redb();
    let steps: Vec<_> = (0..3_000u64)
        .map(|at| match at {
            1_000 | 2_900 => Step::Restart,
            1_500 => Step::Compact(90),
            2_999 => Step::Compact(97),
            _ => Step::Write {
                prefix: at as usize % 3,
                name: (at * 7 % 24) as u8,
                delete: at % 5 == 0,
                wrong: false,
                relaxed: at % 20 != 0,
            },
        })
        .collect();
    block_on(run(&mut subject, &steps));
}

#[tokio::test]
async fn a_watch_goes_on_over_a_restart() {
    for mut subject in Subject::all() {
        let backend = subject.backend();
        let first = backend
            .commit(put(&key(0, 1), Expect::Absent, 1))
            .await
            .unwrap()
            .revision;
        for number in 0..2_500 {
            let other = Key {
                name: format!("m{number}").into(),
                ..key(1, 1)
            };
            backend
                .commit(Txn {
                    durability: Durability::Relaxed,
                    ..put(&other, Expect::Absent, 5)
                })
                .await
                .unwrap();
        }
        let second = backend
            .commit(put(&key(0, 1), Expect::At(first), 2))
            .await
            .unwrap()
            .revision;
        let third = backend.commit(delete(&key(0, 1), second)).await.unwrap().revision;
        let fourth = backend
            .commit(put(&key(0, 2), Expect::Absent, 3))
            .await
            .unwrap()
            .revision;
        drop(backend);
        subject.reopen();
        let indexer = Arc::new(MetadataIndexer);
        let cache = Cache::open(subject.backend(), indexer.clone()).await.unwrap();
        let events = cache.watch(PREFIXES[0], first).unwrap().next().await.unwrap();
        assert_eq!(
            events.iter().map(|it| it.revision).collect::<Vec<_>>(),
            [second, third, fourth]
        );
        assert_eq!(events[0].before.as_ref().unwrap().revision, first);
        assert!(Arc::ptr_eq(
            events[1].before.as_ref().unwrap(),
            events[0].now.as_ref().unwrap()
        ));
        assert_eq!(events[1].deleted.as_ref().unwrap().revision, third);
        assert!(Arc::ptr_eq(
            events[2].now.as_ref().unwrap(),
            &cache.get(&key(0, 2)).unwrap()
        ));
        assert_eq!(
            cache
                .snapshot_at(PREFIXES[0], second)
                .unwrap()
                .get("a", "n1")
                .unwrap()
                .revision,
            second
        );
        assert_eq!(cache.snapshot_at(PREFIXES[1], first + 10).unwrap().len(), 10);

        let limits = Limits {
            max_events: 100,
            ..Limits::default()
        };
        let small = Cache::open_with(subject.backend(), indexer.clone(), limits)
            .await
            .unwrap();
        assert!(small.watch(PREFIXES[0], fourth - 100).is_ok());
        assert!(matches!(
            small.watch(PREFIXES[0], fourth - 101),
            Err(StoreError::Compacted { .. })
        ));
        drop((cache, small));

        let backend = subject.backend();
        backend.compact(second).await.unwrap();
        let cache = Cache::open(backend, indexer).await.unwrap();
        assert!(
            matches!(cache.watch(PREFIXES[0], first), Err(StoreError::Compacted { oldest, .. }) if oldest == second)
        );
        assert_eq!(cache.watch(PREFIXES[0], second).unwrap().next().await.unwrap().len(), 2);
    }
}

/// Writers, listers and watchers of a cache at once, some too slow for its ring, with compactions below.
#[test]
fn lists_and_watches_of_the_cache_fit_together() {
    const WRITES: u64 = 300;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    for subject in Subject::all() {
        runtime.block_on(async {
            let limits = Limits {
                min_events: 10,
                max_events: 40,
                ..Limits::default()
            };
            let cache = Cache::open_with(subject.backend(), Arc::new(MetadataIndexer), limits)
                .await
                .unwrap();
            let start = cache.revision();
            let end = start + 4 * WRITES;
            let mut tasks = Vec::new();
            for writer in 0..4usize {
                let cache = Arc::clone(&cache);
                tasks.push(tokio::spawn(async move {
                    for step in 0..WRITES {
                        let key = key(step as usize % 2, writer as u8 * 10 + (step % 7) as u8);
                        let mut txn = match cache.get(&key) {
                            Some(entry) if step % 5 == 0 => delete(&key, entry.revision),
                            Some(entry) => put(&key, Expect::At(entry.revision), step),
                            None => put(&key, Expect::Absent, step),
                        };
                        txn.durability = [Durability::Relaxed, Durability::Durable][writer % 2];
                        let made = cache.commit(txn).await.unwrap();
                        assert_eq!(cache.get(&key).map(|it| it.revision), made.now.map(|it| it.revision));
                    }
                }));
            }
            for reader in 0..4usize {
                let cache = Arc::clone(&cache);
                tasks.push(tokio::spawn(follow(cache, PREFIXES[reader % 2], end, reader > 1)));
            }
            let compacting = Arc::clone(&cache);
            tasks.push(tokio::spawn(async move {
                while compacting.revision() < end {
                    compacting
                        .backend()
                        .compact(compacting.revision().saturating_sub(20))
                        .await
                        .unwrap();
                    tokio::task::yield_now().await;
                }
            }));
            for task in tasks {
                task.await.unwrap();
            }
            assert_eq!(cache.revision(), end);
            let (listed, _) = list(&**cache.backend(), Some(PREFIXES[0]), None, 0).await;
            let cached: Vec<_> = cache
                .snapshot(PREFIXES[0])
                .entries(None, None)
                .map(|it| (it.key.clone(), it.revision))
                .collect();
            assert_eq!(
                cached,
                listed.into_iter().map(|(key, it)| (key, it.1)).collect::<Vec<_>>()
            );
        });
    }
}

/// Lists, watches from there, and lists again where it was too slow; every list must meet what was replayed up to it.
async fn follow(cache: Arc<Cache>, prefix: &str, end: Revision, slow: bool) {
    let listed = |snapshot: &fairlead_store::Snapshot| -> BTreeMap<Key, Revision> {
        snapshot
            .entries(None, None)
            .map(|it| (it.key.clone(), it.revision))
            .collect()
    };
    'list: loop {
        let first = cache.snapshot(prefix);
        let mut model = listed(&first);
        let Ok(mut watcher) = cache.watch(prefix, first.revision()) else {
            continue;
        };
        loop {
            if slow {
                let _ = cache
                    .wait_for(watcher.progress() + 60, std::time::Duration::from_millis(20))
                    .await;
            }
            let events = match watcher.try_next() {
                Ok(events) => events,
                Err(WatchEnd::Expired) => continue 'list,
                Err(WatchEnd::Closed) => panic!("nobody closes it"),
            };
            let mut seen = 0;
            for event in events {
                assert!(
                    event.revision > seen && event.revision > first.revision(),
                    "in order, and once"
                );
                seen = event.revision;
                let previous = match &event.now {
                    Some(now) => model.insert(now.key.clone(), now.revision),
                    None => model.remove(&event.before.as_ref().unwrap().key),
                };
                assert_eq!(previous, event.before.map(|it| it.revision), "none left out");
            }
            let at = watcher.progress();
            if seen == 0
                && let Ok(snapshot) = cache.snapshot_at(prefix, at)
            {
                assert_eq!(model, listed(&snapshot), "everything up to {at} was handed out");
            }
            if at >= end {
                return;
            }
            tokio::task::yield_now().await;
        }
    }
}
