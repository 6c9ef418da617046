//! The host is as it was: after a drop, a panic, and a SIGKILL of the test process.

use harness::{Topology, guard};
use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Environment that makes this executable the process to be killed.
const VICTIM: &str = "FAIRLEAD_TEST_VICTIM";

/// What of the process `pid`'s topologies exists: processes, directories, cgroups. Other tests run at the same time, so
/// only names with the pid count; namespaces and links live exactly as long as these processes.
fn traces(pid: u32) -> BTreeSet<String> {
    let mark = format!("{}{pid}-", guard::PREFIX);
    let mut found = BTreeSet::new();
    for place in [std::env::temp_dir(), guard::cgroup2_mount().unwrap()] {
        for entry in fs::read_dir(place).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&mark) {
                found.insert(entry.path().display().to_string());
            }
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(mounts.lines().filter(|line| line.contains(&mark)).map(str::to_string));
    found
}

fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie holds no namespace.
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}

/// Waits for a state of the system that no event tells, with a deadline far beyond what it takes.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

fn namespaces(topology: &Topology) -> BTreeSet<String> {
    let of = |pid: u32| {
        fs::read_link(format!("/proc/{pid}/ns/net"))
            .unwrap()
            .display()
            .to_string()
    };
    topology.actors().map(|actor| of(actor.pid())).collect()
}

/// Network namespaces that any process is in or holds open.
fn all_namespaces() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for process in fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
    {
        let link = |path: &Path| fs::read_link(path).ok().map(|target| target.display().to_string());
        found.extend(link(&process.path().join("ns/net")));
        let Ok(open) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        found.extend(
            open.flatten()
                .filter_map(|fd| link(&fd.path()))
                .filter(|target| target.starts_with("net:")),
        );
    }
    found
}

fn links() -> String {
    fs::read_dir("/sys/class/net")
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .fold(String::new(), |mut all, name| {
            // Other tests' links never show here either.
            all += &name;
            all
        })
}

#[test]
fn nothing_is_left_after_a_drop() {
    let (before, mounts) = (links(), fs::read_to_string("/proc/self/mountinfo").unwrap());
    let topology = Topology::standard(2, 2).unwrap();
    assert_eq!(links(), before, "links are born in their namespaces");
    let made = namespaces(&topology);
    assert_eq!(made.len(), 8, "outside, router, two nodes, four pods");
    assert!(made.is_subset(&all_namespaces()));
    let pids: Vec<u32> = topology.actors().map(harness::Actor::pid).collect();
    let places = [topology.scratch().dir.clone(), topology.scratch().cgroup.clone()];
    assert!(places.iter().all(|place| place.exists()));
    drop(topology);
    assert!(pids.into_iter().all(|pid| !alive(pid)));
    assert!(places.iter().all(|place| !place.exists()));
    assert!(made.is_disjoint(&all_namespaces()));
    assert_eq!(
        (links(), fs::read_to_string("/proc/self/mountinfo").unwrap()),
        (before, mounts)
    );
}

#[test]
fn nothing_is_left_after_a_panic() {
    let outcome = std::panic::catch_unwind(|| {
        let topology = Topology::standard(1, 1).unwrap();
        std::panic::panic_any((
            topology.scratch().dir.clone(),
            topology.scratch().cgroup.clone(),
            topology.outside().pid(),
        ));
    });
    let (dir, cgroup, pid) = *outcome
        .unwrap_err()
        .downcast::<(std::path::PathBuf, std::path::PathBuf, u32)>()
        .unwrap();
    assert!(!dir.exists() && !cgroup.exists() && !alive(pid));
}

#[test]
fn nothing_is_left_after_a_kill() {
    if std::env::var_os(VICTIM).is_some() {
        be_the_victim();
    }
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "nothing_left::nothing_is_left_after_a_kill", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(victim.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let line = lines.find(|line| line.contains("built ")).unwrap();
    let (_, made) = line.split_once("built ").unwrap();
    let made: BTreeSet<String> = made.split(' ').map(str::to_string).collect();
    assert!(made.is_subset(&all_namespaces()));
    assert_eq!(traces(victim.id()).len(), 2, "a directory and a cgroup");
    victim.kill().unwrap();
    victim.wait().unwrap();
    eventually("the actors end with their pipes", || {
        made.is_disjoint(&all_namespaces())
    });
    eventually("the reaper removes directories and cgroups", || {
        traces(victim.id()).is_empty()
    });
}

fn be_the_victim() -> ! {
    let topology = Topology::standard(1, 1).unwrap();
    let spawn = harness::proto::Operation::Spawn {
        program: "/bin/sleep".into(),
        args: vec!["1000".into()],
        env: Vec::new(),
        log: "/dev/null".into(),
    };
    topology.node("node-a").actor.call::<i32>(spawn).unwrap();
    println!("built {}", Vec::from_iter(namespaces(&topology)).join(" "));
    loop {
        std::thread::park();
    }
}
