//! ADD that ends in the middle, at every step, by an error and by a crash. Needs root.

use super::*;
use fairlead_cni_plugin::{
    journal::{self, Lock},
    ledger::Ledger,
};
use nix::sched::unshare;
use std::{
    fs::File,
    net::IpAddr,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

/// Runs on a thread in a network namespace of its own, if that may be made.
fn in_namespace(test: &str, work: impl FnOnce() + Send) {
    let off = std::env::var_os("FAIRLEAD_NO_KERNEL").is_some_and(|value| value == "1");
    let reason = if off { "kernel tests are off" } else { "needs root" };
    if off || !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: {test}: {reason}");
        if let Some(path) = std::env::var_os("FAIRLEAD_SKIPS") {
            use std::io::Write as _;
            let mut file = File::options().append(true).create(true).open(path).unwrap();
            writeln!(file, "{test}: {reason}").unwrap();
        }
        return;
    }
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            work();
        });
        if let Err(panic) = inside.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn namespace() -> OwnedFd {
    let made = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())
    });
    made.join().unwrap()
}

const MARK: u32 = 0x1234;

fn open(dir: &Path) -> Node {
    let lock = Lock::try_take(dir).unwrap().unwrap();
    let store = Store::open(dir, "boot", lock).unwrap();
    let node = Node::new(store, MARK, journal::now_ms);
    let mut settings = node.settings();
    settings.cidrs = vec!["10.1.0.0/30".parse().unwrap(), "fd00:10:1::/126".parse().unwrap()];
    settings.mtu = 1500;
    drop(settings);
    node
}

fn key(container: &str) -> Key {
    Key {
        container: container.into(),
        ifname: "eth0".into(),
    }
}

/// On a thread of its own, as the server does it: the thread ends up in the pod's namespace.
fn add(node: &Node, container: &str, netns: &OwnedFd) -> Answer {
    let request = Request::Add(Add {
        key: key(container),
        network: "net".into(),
        pod: None,
        ranges: Vec::new(),
        mtu: None,
    });
    let netns = netns.try_clone().unwrap();
    thread::scope(|scope| scope.spawn(|| node.answer(request, Some(netns))).join().unwrap())
}

fn ips(answer: Answer) -> Vec<IpAddr> {
    match answer {
        Answer::Attached(attachment) => attachment.ips,
        other => panic!("{other:?}"),
    }
}

/// Names of links in this namespace that lead to pods.
fn links() -> Vec<String> {
    let links = pair::links(&mut Netlink::route().unwrap()).unwrap();
    links
        .into_values()
        .filter(|link| link.group == MARK)
        .map(|link| link.name)
        .collect()
}

fn links_of(netns: &OwnedFd) -> usize {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            pair::links(&mut Netlink::route().unwrap()).unwrap().len()
        });
        inside.join().unwrap()
    })
}

macro_rules! stops {
    ($stop:expr) => {
        [
            |step| if step == Step::ALL[0] { Err($stop) } else { Ok(()) },
            |step| if step == Step::ALL[1] { Err($stop) } else { Ok(()) },
            |step| if step == Step::ALL[2] { Err($stop) } else { Ok(()) },
            |step| if step == Step::ALL[3] { Err($stop) } else { Ok(()) },
            |step| if step == Step::ALL[4] { Err($stop) } else { Ok(()) },
        ] as [fn(Step) -> Result<(), Stop>; 5]
    };
}

#[test]
fn an_add_that_fails_leaves_nothing() {
    in_namespace("an_add_that_fails_leaves_nothing", || {
        for (at, stop) in stops!(Stop::Fail).into_iter().enumerate() {
            let step = Step::ALL[at];
            let dir = tempfile::tempdir().unwrap();
            let mut node = open(dir.path());
            let netns = namespace();
            node.stop_after(Some(stop));
            assert!(matches!(add(&node, "a", &netns), Answer::Failed(_)), "{step:?}");
            assert!(links().is_empty(), "{step:?}");
            assert_eq!(links_of(&netns), 1, "{step:?}: only the loopback link");
            assert!(node.store.read(Ledger::is_empty), "{step:?}");
            assert!(node.busy().is_empty(), "{step:?}");
            node.stop_after(None);
            // Both other addresses are left, and the same container may come again.
            assert_eq!(
                ips(add(&node, "a", &netns)),
                ["10.1.0.2".parse::<IpAddr>().unwrap(), "fd00:10:1::2".parse().unwrap()]
            );
            drop(node);
            assert_eq!(journal::read(dir.path(), "boot").unwrap().len(), 1, "{step:?}");
            let _ = Netlink::route().unwrap().change(vec![pair::delete_group(MARK)]);
        }
    });
}

#[test]
fn an_add_cut_off_by_a_crash_is_undone_or_freed_by_the_next_start() {
    in_namespace("an_add_cut_off_by_a_crash_is_undone_or_freed_by_the_next_start", || {
        for (at, stop) in stops!(Stop::Crash).into_iter().enumerate() {
            let step = Step::ALL[at];
            let dir = tempfile::tempdir().unwrap();
            let mut node = open(dir.path());
            let kept = namespace();
            let kept_ips = ips(add(&node, "kept", &kept));
            let netns = namespace();
            node.stop_after(Some(stop));
            assert!(matches!(add(&node, "a", &netns), Answer::Failed(_)));
            assert_eq!(links().len(), if step == Step::Reserved { 1 } else { 2 }, "{step:?}");
            drop(node);

            let node = open(dir.path());
            let mut netlink = Netlink::route().unwrap();
            node.collect(&mut netlink).unwrap();
            // Links and reservations agree again: both there, or neither.
            let held = node.store.read(|ledger| ledger.get(&key("a")).is_some());
            assert_eq!(links().len(), 1 + usize::from(held), "{step:?}");
            assert!(links().contains(&link::host_name(&key("kept"))), "{step:?}");
            // The runtime heard of a failure, so it calls DEL and tries again.
            assert_eq!(node.answer(Request::Del { key: key("a") }, None), Answer::Done);
            assert_eq!(links().len(), 1);
            let other = namespace();
            let free = node
                .store
                .read(|ledger| ledger.free(&[Range::of("10.1.0.0/30".parse().unwrap())]));
            assert_eq!(free, 1, "{step:?}");
            // With the address at rest for the shortened quarantine, nobody else gets it, and never the one in use.
            if let Answer::Attached(attachment) = add(&node, "b", &other) {
                assert!(attachment.ips.iter().all(|ip| !kept_ips.contains(ip)), "{step:?}");
            }
            assert_eq!(
                node.collect(&mut netlink).unwrap(),
                Collected::default(),
                "{step:?}: once is enough"
            );
            let _ = netlink.change(vec![pair::delete_group(MARK)]);
        }
    });
}

#[test]
fn a_crash_after_the_address_was_lost_to_the_journal_frees_the_link() {
    in_namespace(
        "a_crash_after_the_address_was_lost_to_the_journal_frees_the_link",
        || {
            let dir = tempfile::tempdir().unwrap();
            let node = open(dir.path());
            let netns = namespace();
            ips(add(&node, "a", &netns));
            drop(node);
            // As if the machine had kept the link and the disk had lost the line.
            fs::remove_file(dir.path().join(journal::FILE)).unwrap();
            let node = open(dir.path());
            let collected = node.collect(&mut Netlink::route().unwrap()).unwrap();
            assert_eq!(collected, Collected { freed: 0, removed: 1 });
            assert!(links().is_empty());
            ips(add(&node, "b", &namespace()));
        },
    );
}

#[test]
fn one_works_on_an_attachment_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let key = key("a");
    let first = node.work_on(&key);
    assert!(first.is_some());
    assert!(node.work_on(&key).is_none());
    assert!(node.work_on(&key).is_none(), "a refusal gives nothing back");
    thread::scope(|scope| {
        let turn = scope.spawn(|| node.take_turn(&key).is_ok());
        drop(first);
        assert!(turn.join().unwrap(), "it comes when the first is done");
    });
    assert!(node.work_on(&key).is_some());
}

static NOW: AtomicU64 = AtomicU64::new(1_000_000);

#[test]
fn ten_thousand_pods_come_and_go() {
    // In memory where that can be: ten thousand syncs say nothing here.
    let dir = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let lock = Lock::try_take(dir.path()).unwrap().unwrap();
    let store = Store::open(dir.path(), "boot", lock).unwrap();
    let sets = [
        vec![Range::of("10.1.0.0/24".parse().unwrap())],
        vec![Range::of("fd00::/64".parse().unwrap())],
    ];
    let mut last_seen = std::collections::HashMap::new();
    // Always 100 pods; each second ten are replaced: no address is used again before it has rested.
    for n in 0..10_000_u64 {
        let now = NOW.fetch_add(100, Ordering::Relaxed);
        let (ips, ticket) = store.hold(&key(&format!("c{n}")), "net", None, &sets, now).unwrap();
        for ip in ips {
            let before = last_seen.insert(ip, n);
            assert!(before.is_none_or(|before| n - before > 150), "{ip}: {before:?}, {n}");
        }
        if n >= 100 {
            store.release(&key(&format!("c{}", n - 100)), now).wait().unwrap();
        } else {
            ticket.wait().unwrap();
        }
    }
    assert_eq!(store.read(Ledger::len), 100);
    drop(store);
    let size = fs::metadata(dir.path().join(journal::FILE)).unwrap().len();
    assert!(size < 8 << 20, "{size}: the journal is compacted");
    assert_eq!(journal::read(dir.path(), "boot").unwrap().len(), 100);
}
