//! The store is killed while it writes: nothing acknowledged is lost, and no revision is given out twice.
//!
//! The test binary runs itself as a child that opens the store, writes as fast as it can and prints each acknowledgement;
//! the parent kills it at some point, opens the store and compares. `STORE_KILLS=500` runs as many rounds; without it as many
//! as fit into a few seconds.

use fairlead_store::{
    Backend, Durability, Expect, Key, Operation, RangeQuery, Revision, StoreError, Txn, encode,
    redb_store::{Options, RedbStore, check},
};
use futures::StreamExt;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;
use std::{
    collections::BTreeMap,
    env,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

const CHILD: &str = "STORE_CRASH_CHILD";
const WRITERS: usize = 6;

fn options() -> Options {
    // Small files: a round of a few hundred writes goes round them, and through several checkpoints.
    Options {
        log_bytes: 256 << 10,
        checkpoint_bytes: 60_000,
        keep: None,
        ..Options::default()
    }
}

/// Writes until it is killed. Prints `revision key durable|relaxed value|-` after each acknowledgement.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Some(directory) = env::var_os(CHILD) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = Arc::new(RedbStore::open(Path::new(&directory), options()).unwrap());
        let out = Arc::new(Mutex::new(std::io::stdout()));
        writeln!(out.lock().unwrap(), "open {}", store.revision()).unwrap();
        let writers = (0..WRITERS).map(|writer| {
            let (store, out) = (Arc::clone(&store), Arc::clone(&out));
            tokio::spawn(async move {
                let mut random = StdRng::seed_from_u64(store.revision() * 31 + writer as u64);
                let prefix = format!("core/r{writer}");
                let query = RangeQuery {
                    prefix: Some(prefix.clone()),
                    ..RangeQuery::default()
                };
                let there = store.range(query).await.unwrap();
                let mut at: BTreeMap<String, Revision> = there
                    .records
                    .into_iter()
                    .map(|it| (it.key.name.to_string(), it.modified))
                    .collect();
                loop {
                    let name = format!("n{}", random.random_range(0..12));
                    let expect = at.get(&name).map_or(Expect::Absent, |it| Expect::At(*it));
                    let deletes = expect != Expect::Absent && random.random_bool(0.3);
                    let number: u64 = random.random();
                    let filling = "x".repeat(random.random_range(0..3_000));
                    let value = encode(&json!({"metadata": {}, "number": number, "filling": filling}));
                    let operation = if deletes {
                        Operation::Delete
                    } else {
                        Operation::Put(value)
                    };
                    let relaxed = random.random_bool(0.3);
                    let durability = if relaxed {
                        Durability::Relaxed
                    } else {
                        Durability::Durable
                    };
                    let key = Key {
                        prefix: prefix.as_str().into(),
                        namespace: "".into(),
                        name: name.as_str().into(),
                    };
                    let change = store
                        .commit(Txn {
                            key,
                            expect,
                            operation,
                            durability,
                        })
                        .await
                        .unwrap();
                    if deletes {
                        at.remove(&name)
                    } else {
                        at.insert(name.clone(), change.revision)
                    };
                    let kind = if relaxed { "relaxed" } else { "durable" };
                    let value = if deletes { "-".to_owned() } else { number.to_string() };
                    let line = format!("{} {prefix}/{name} {kind} {value}\n", change.revision);
                    out.lock().unwrap().write_all(line.as_bytes()).unwrap();
                    if random.random_range(0..400) == 0 {
                        store.compact(change.revision.saturating_sub(2_000)).await.unwrap();
                    }
                }
            })
        });
        futures::future::join_all(writers).await;
    });
}

/// What a child said before it died.
#[derive(Debug)]
struct Said {
    revision: Revision,
    key: String,
    durable: bool,
    value: Option<u64>,
}

/// A child that does not outlive the test, also when that fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(directory: &Path) -> Killed {
    let child = Command::new(env::current_exe().unwrap())
        .args([
            "--exact",
            "child_that_writes_until_it_is_killed",
            "--nocapture",
            "--quiet",
        ])
        .env(CHILD, directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    Killed(child)
}

/// Lets the child go on for so long, so that it is killed anywhere.
fn spin(time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// Starts a child and kills it after it has said so many lines and a little later. Returns what it said.
fn one_life(directory: &Path, lines: usize, later: Duration) -> (Revision, Vec<Said>) {
    let Killed(child) = &mut start(directory);
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut said = Vec::new();
    let mut opened = None;
    let mut killed = false;
    let mut line = String::new();
    // Reads to the end of the pipe: what the child wrote before it died counts as acknowledged.
    while output.read_line(&mut line).unwrap() > 0 {
        let words: Vec<_> = line.split_whitespace().collect();
        match *words {
            ["open", revision] => opened = Some(revision.parse().unwrap()),
            [revision, key, kind, value] if line.ends_with('\n') && opened.is_some() => said.push(Said {
                revision: revision.parse().unwrap(),
                key: key.into(),
                durable: kind == "durable",
                value: (value != "-").then(|| value.parse().unwrap()),
            }),
            _ => {}
        }
        line.clear();
        if !killed && opened.is_some() && said.len() >= lines {
            // Not at a line's end: anywhere in the next writes.
            spin(later);
            child.kill().unwrap();
            killed = true;
        }
    }
    assert!(killed, "the child ended by itself; its output tells why");
    child.wait().unwrap();
    (opened.expect("the child opened the store"), said)
}

#[test]
fn nothing_acknowledged_is_lost_when_it_is_killed() {
    if env::var_os(CHILD).is_some() {
        return;
    }
    let rounds: Option<usize> = env::var("STORE_KILLS").ok().map(|it| it.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let started = Instant::now();
    let seed = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let (mut round, mut writes) = (0, 0);
    // The state, and the revisions seen, over all lives.
    let mut newest = 0;
    while rounds.map_or(round == 0 || started.elapsed() < Duration::from_secs(8), |rounds| {
        round < rounds
    }) {
        let lines = if random.random_bool(0.2) {
            0
        } else {
            random.random_range(1..600)
        };
        let later = Duration::from_micros(random.random_range(0..8_000));
        let context = format!("seed {seed}, round {round}, {lines} lines and {later:?}");
        let (opened, said) = one_life(directory.path(), lines, later);
        assert!(
            opened >= newest,
            "{context}: opened at {opened} after {newest} was given out"
        );
        newest = newest.max(opened);
        let store = RedbStore::open(directory.path(), options()).unwrap_or_else(|it| panic!("{context}: {it}"));
        runtime.block_on(verify(&store, &said, opened, &context));
        newest = said.iter().map(|it| it.revision).fold(newest, Revision::max);
        assert!(
            store.revision() > newest,
            "{context}: at {} after {newest} was given out",
            store.revision()
        );
        newest = store.revision();
        drop(store);
        if round % 10 == 0 {
            check(directory.path()).unwrap_or_else(|it| panic!("{context}: {it}"));
        }
        writes += said.len();
        round += 1;
    }
    println!(
        "killed {round} times in {:?}, {writes} acknowledged writes",
        started.elapsed()
    );
    if rounds.is_none() {
        assert!(round > 0 && writes > 0);
    }
}

#[test]
fn a_store_killed_while_it_is_made_or_opened_opens_again() {
    if env::var_os(CHILD).is_some() {
        return;
    }
    let rounds = env::var("STORE_KILLS").map_or(10, |it| it.parse().unwrap());
    let mut random = StdRng::from_rng(&mut rand::rng());
    let mut directory = tempfile::tempdir().unwrap();
    let mut newest = 0;
    for round in 0..rounds {
        let later = Duration::from_micros(random.random_range(0..60_000));
        drop({
            let child = start(directory.path());
            spin(later);
            child
        });
        let report = check(directory.path());
        // Killed so early that there is nothing yet.
        if directory.path().join("store.redb").exists() {
            let revision = report
                .unwrap_or_else(|it| panic!("round {round}, {later:?}: {it}"))
                .revision;
            assert!(revision >= newest, "round {round}, {later:?}");
            newest = revision;
        }
        if random.random_bool(0.5) {
            directory = tempfile::tempdir().unwrap();
            newest = 0;
        }
    }
}

/// Compares what the child said with what is there.
async fn verify(store: &RedbStore, said: &[Said], opened: Revision, context: &str) {
    let mut revisions: Vec<_> = said.iter().map(|it| it.revision).collect();
    revisions.sort_unstable();
    assert!(
        revisions.windows(2).all(|it| it[0] != it[1]),
        "{context}: a revision was given out twice"
    );
    assert!(
        revisions.first().is_none_or(|it| *it > opened),
        "{context}: a revision went back"
    );

    // What a durable write acknowledged stands, and everything before it does too.
    let durable = said
        .iter()
        .filter(|it| it.durable)
        .map(|it| it.revision)
        .max()
        .unwrap_or(0);
    let lost = store.lost();
    let gone = |revision: Revision| lost.iter().any(|(first, last)| (*first..=*last).contains(&revision));
    assert!(
        !gone(durable),
        "{context}: the durable write {durable} is lost, {lost:?}"
    );
    let there = store.range(RangeQuery::default()).await.unwrap();
    let mut last: BTreeMap<&str, &Said> = BTreeMap::new();
    for it in said.iter().filter(|it| !gone(it.revision)) {
        let newest = last.entry(&it.key).or_insert(it);
        if newest.revision < it.revision {
            *newest = it;
        }
    }
    let found: BTreeMap<String, (Revision, u64)> = there
        .records
        .iter()
        .map(|it| {
            let value: serde_json::Value = serde_json::from_slice(&it.value).unwrap();
            (
                format!("{}/{}", it.key.prefix, it.key.name),
                (it.modified, value["number"].as_u64().unwrap()),
            )
        })
        .collect();
    for (key, said) in last {
        match (found.get(key), said.value) {
            // A write that was not yet acknowledged may stand too.
            (Some((revision, _)), _) if *revision > said.revision => assert!(!gone(*revision)),
            (Some(found), Some(value)) => assert_eq!(*found, (said.revision, value), "{context}: {key}"),
            (None, Some(_)) => {
                // Only a deletion that was not yet acknowledged explains it; it is in the history.
                let change = store.watch(None, said.revision).next().await.unwrap().unwrap();
                let later = change
                    .iter()
                    .any(|it| format!("{}/{}", it.key.prefix, it.key.name) == key && it.now.is_none());
                assert!(later, "{context}: {key} of revision {} is lost", said.revision);
            }
            (None, None) => {}
            (Some(found), None) => panic!("{context}: {key} was deleted at {}, found {found:?}", said.revision),
        }
    }
    for (first, last) in lost {
        let inside = store.watch(None, first + (last - first) / 2).next().await;
        assert!(
            matches!(inside, Some(Err(StoreError::Compacted { .. }))),
            "{context}: who has seen a lost revision lists again"
        );
    }
}
