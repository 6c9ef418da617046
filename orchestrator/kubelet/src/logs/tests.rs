//! Reading and rotating real files.

use super::*;
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

fn alive(flag: &Arc<AtomicBool>) -> Alive {
    let flag = Arc::clone(flag);
    Arc::new(move || {
        let flag = Arc::clone(&flag);
        async move { flag.load(Ordering::SeqCst) }.boxed()
    })
}

fn record(text: &str) -> String {
    format!("2026-11-20T10:00:00Z stdout F {text}\n")
}

fn follow() -> Options {
    Options {
        follow: true,
        ..Options::default()
    }
}

/// What a follower has seen so far.
struct Follower {
    stream: std::pin::Pin<Box<dyn futures::Stream<Item = Result<Bytes, LogError>> + Send>>,
    seen: Vec<u8>,
}

impl Follower {
    async fn start(path: &Path, options: Options, running: &Arc<AtomicBool>) -> Self {
        let stream = open(path, options, alive(running)).await.unwrap();
        Self {
            stream: Box::pin(stream),
            seen: Vec::new(),
        }
    }

    /// Reads on until this was seen at the end.
    async fn until(&mut self, end: &str) {
        while !self.seen.ends_with(end.as_bytes()) {
            let next = self.stream.next().await.unwrap().unwrap();
            self.seen.extend_from_slice(&next);
        }
    }

    async fn all(mut self) -> String {
        while let Some(next) = self.stream.next().await {
            self.seen.extend_from_slice(&next.unwrap());
        }
        String::from_utf8(self.seen).unwrap()
    }
}

#[tokio::test]
async fn without_follow_what_is_there_is_all() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("0.log");
    let lines: String = (0..20_000).map(|n| record(&format!("line {n}"))).collect();
    std::fs::write(&path, lines).unwrap();
    let running = Arc::new(AtomicBool::new(true));
    let all = Follower::start(&path, Options::default(), &running).await.all().await;
    assert_eq!(all, (0..20_000).map(|n| format!("line {n}\n")).collect::<String>());
    let tail = Options {
        tail_lines: Some(2),
        timestamps: true,
        ..Options::default()
    };
    let tail = Follower::start(&path, tail, &running).await.all().await;
    assert_eq!(
        tail,
        "2026-11-20T10:00:00Z line 19998\n2026-11-20T10:00:00Z line 19999\n"
    );
    let missing = open(&directory.path().join("9.log"), Options::default(), alive(&running)).await;
    assert!(missing.err().unwrap().to_string().contains("9.log"));
}

#[tokio::test]
async fn a_follower_sees_what_comes_through_rotations_until_the_container_ends() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("0.log");
    let mut file = File::create(&path).unwrap();
    file.write_all(record("one").as_bytes()).unwrap();
    let running = Arc::new(AtomicBool::new(true));
    let mut follower = Follower::start(&path, follow(), &running).await;
    follower.until("one\n").await;
    file.write_all(b"2026-11-20T10:00:00Z stdout F tw").unwrap();
    file.write_all(b"o\n").unwrap();
    follower.until("two\n").await;
    // Renamed, still written, replaced, still written, closed.
    for round in 0..3 {
        let time = jiff::Timestamp::from_second(1_800_000_000 + round).unwrap();
        std::fs::rename(&path, rotated_name(&path, time)).unwrap();
        file.write_all(record(&format!("old {round}")).as_bytes()).unwrap();
        let mut next = File::create(&path).unwrap();
        next.write_all(record(&format!("new {round}")).as_bytes()).unwrap();
        file.write_all(record(&format!("late {round}")).as_bytes()).unwrap();
        file = next;
    }
    follower.until("new 2\n").await;
    file.write_all(record("last").as_bytes()).unwrap();
    running.store(false, Ordering::SeqCst);
    drop(file);
    let middle: String = (0..3).map(|n| format!("old {n}\nlate {n}\nnew {n}\n")).collect();
    // Of each file: what was written to it before the rotation, after it, and after its successor was there.
    let expected = format!("one\ntwo\n{middle}last\n");
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let all = follower.all().await;
    assert_eq!(sorted(&all), sorted(&expected));
    let at = |line: &str| all.lines().position(|it| it == line).unwrap();
    for round in 0..3 {
        assert!(at(&format!("late {round}")) < at(&format!("new {round}")), "{all}");
    }
}

#[tokio::test]
async fn a_followed_log_of_a_container_that_has_ended_ends() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("0.log");
    std::fs::write(&path, record("over")).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let dead: Alive = Arc::new(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        async { false }.boxed()
    });
    tokio::time::pause();
    let stream = open(&path, follow(), dead).await.unwrap();
    let all: Vec<_> = stream.map(Result::unwrap).collect().await;
    assert_eq!(all, ["over\n"]);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

/// A stand-in for the runtime: opens the file anew, as `ReopenContainerLog` does, or refuses.
fn runtime(path: &Path, works: bool) -> (Reopen, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (path, log) = (path.to_owned(), Arc::clone(&asked));
    let reopen: Reopen = Arc::new(move |id| {
        log.lock().unwrap().push(id);
        let path = path.clone();
        async move {
            anyhow::ensure!(works, "no");
            File::create(&path)?;
            Ok(())
        }
        .boxed()
    });
    (reopen, asked)
}

#[tokio::test]
async fn files_that_are_too_large_are_rotated_and_the_oldest_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("0.log");
    let (reopen, asked) = runtime(&path, true);
    let (one, limits) = (
        path.clone(),
        Limits {
            max_bytes: 100,
            max_files: 3,
        },
    );
    let active: Active = Arc::new(move || {
        vec![
            ("id".to_owned(), one.clone()),
            ("gone".to_owned(), "/nowhere/0.log".into()),
        ]
    });
    let rotator = Rotator::new(limits, active, reopen);
    for round in 0..6 {
        let now = jiff::Timestamp::from_second(1_800_000_000 + round).unwrap();
        std::fs::write(&path, "x".repeat(99)).unwrap();
        rotator.round(now).await;
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 99);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        write!(file, "{round}").unwrap();
        rotator.round(now).await;
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    }
    let kept: Vec<_> = rotated(&path)
        .unwrap()
        .iter()
        .map(|it| std::fs::read(it).unwrap()[99])
        .collect();
    assert_eq!(kept, b"45");
    assert_eq!(asked.lock().unwrap().len(), 6);
}

#[tokio::test]
async fn a_runtime_that_refuses_keeps_its_file_under_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("0.log");
    std::fs::write(&path, "x".repeat(200)).unwrap();
    let (reopen, _) = runtime(&path, false);
    let (one, limits) = (
        path.clone(),
        Limits {
            max_bytes: 100,
            max_files: 3,
        },
    );
    let rotator = Rotator::new(limits, Arc::new(move || vec![("id".to_owned(), one.clone())]), reopen);
    rotator.round(jiff::Timestamp::now()).await;
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 200);
    assert!(rotated(&path).unwrap().is_empty());
}
