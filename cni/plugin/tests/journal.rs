//! The journal under random operations, cut off at every byte: nothing acknowledged is lost, no address is held twice,
//! none is lost for good.

use fairlead_cni_plugin::{
    address::Range,
    journal::{self, Journal, Lock},
    ledger::{Key, Ledger, QUARANTINE_MS, QUARANTINE_SHORTENED_MS},
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    net::IpAddr,
    path::Path,
};
use tempfile::TempDir;

const BOOT: &str = "this-boot";

/// In memory where that can be: thousands of syncs say nothing here.
fn tempdir() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

fn key(n: u8) -> Key {
    Key {
        container: format!("c{n}"),
        ifname: "eth0".into(),
    }
}

fn sets() -> Vec<Vec<Range>> {
    // Six IPv4 addresses in two ranges, seven of IPv6.
    let range = |net: &str| Range::of(net.parse().unwrap());
    vec![
        vec![range("10.1.0.0/30"), range("10.1.1.8/29")],
        vec![range("fd00::/125")],
    ]
}

fn state(ledger: &Ledger) -> BTreeMap<Key, Vec<IpAddr>> {
    ledger
        .iter()
        .map(|(key, held)| (key.clone(), held.ips.clone()))
        .collect()
}

/// What must hold of every ledger.
fn sound(ledger: &Ledger) {
    let mut seen = HashSet::new();
    for (_, held) in ledger.iter() {
        assert_eq!(held.ips.len(), 2);
        for (ip, set) in held.ips.iter().zip(sets()) {
            assert!(seen.insert(*ip), "{ip} is held twice");
            assert!(set.iter().any(|range| range.contains(*ip)), "{ip}");
        }
    }
    for set in sets() {
        let size: u32 = set.iter().map(Range::size).sum();
        assert_eq!(
            ledger.free(&set),
            u64::from(size) - ledger.len() as u64,
            "an address is lost"
        );
    }
}

/// After any crash, all addresses can be given away.
fn nothing_leaks(ledger: &Ledger) {
    let mut ledger = ledger.clone();
    let held: Vec<Key> = ledger.iter().map(|(key, _)| key.clone()).collect();
    for key in held {
        ledger.release(&key, 0);
    }
    let now = u64::from(u32::MAX);
    let mut seen = HashSet::new();
    for n in 100..107 {
        for ip in hold(&mut ledger, &key(n), now).unwrap() {
            assert!(seen.insert(ip));
        }
    }
    assert_eq!(seen.len(), 14);
    hold(&mut ledger, &key(200), now).unwrap_err();
}

fn hold(ledger: &mut Ledger, key: &Key, now: u64) -> Result<Vec<IpAddr>, String> {
    ledger
        .hold(key, "net", Some("default/pod"), &sets(), now)
        .map_err(|error| error.to_string())?;
    Ok(ledger.get(key).unwrap().ips.clone())
}

#[derive(Clone, Debug)]
enum Op {
    Hold(u8),
    Release(u8),
    Wait(u16),
    Compact,
    Reopen,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (0_u8..10).prop_map(Op::Hold),
        4 => (0_u8..10).prop_map(Op::Release),
        2 => (0_u16..40_000).prop_map(Op::Wait),
        1 => Just(Op::Compact),
        1 => Just(Op::Reopen),
    ];
    prop::collection::vec(op, 1..40)
}

/// Opens what a crash left in a directory of its own.
fn after_crash(bytes: &[u8], unfinished: Option<&[u8]>) -> Ledger {
    let dir = tempdir();
    fs::write(dir.path().join(journal::FILE), bytes).unwrap();
    if let Some(unfinished) = unfinished {
        fs::write(dir.path().join("journal.new"), unfinished).unwrap();
    }
    let (mut journal, mut ledger, found) = Journal::open(dir.path(), BOOT).unwrap();
    assert_eq!((found.bad, found.freed), (0, 0));
    assert_eq!(state(&journal::read(dir.path(), BOOT).unwrap()), state(&ledger));
    sound(&ledger);
    // It can be written as if nothing had been.
    let before = state(&ledger);
    if let Ok(record) = ledger.hold(&key(99), "net", None, &sets(), u64::from(u32::MAX)) {
        journal.append(&[record]).unwrap();
        let again = journal::read(dir.path(), BOOT).unwrap();
        assert_eq!(state(&again), state(&ledger));
        ledger.release(&key(99), 0);
    }
    assert_eq!(state(&ledger), before);
    ledger
}

fn bytes(dir: &Path) -> Vec<u8> {
    fs::read(dir.join(journal::FILE)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_crash_at_any_byte_loses_nothing_acknowledged(ops in ops()) {
        let dir = tempdir();
        let (mut journal, mut ledger, _) = Journal::open(dir.path(), BOOT).unwrap();
        let mut now = 0;
        for op in ops {
            let (before, was) = (bytes(dir.path()), state(&ledger));
            let record = match op {
                Op::Hold(n) if ledger.get(&key(n)).is_none() => {
                    ledger.hold(&key(n), "net", None, &sets(), now).ok()
                }
                Op::Hold(_) => None,
                Op::Release(n) => ledger.release(&key(n), now),
                Op::Wait(ms) => {
                    now += u64::from(ms);
                    None
                }
                Op::Compact => {
                    journal.rewrite(&ledger.snapshot()).unwrap();
                    let after = bytes(dir.path());
                    for cut in [0, 1, after.len() / 2, after.len()] {
                        prop_assert_eq!(state(&after_crash(&before, Some(&after[..cut]))), was.clone());
                    }
                    None
                }
                Op::Reopen => {
                    drop(journal);
                    let (again, found, _) = Journal::open(dir.path(), BOOT).unwrap();
                    prop_assert_eq!(state(&found), state(&ledger));
                    journal = again;
                    ledger = found;
                    None
                }
            };
            sound(&ledger);
            let Some(record) = record else { continue };
            journal.append(&[record]).unwrap();
            let after = bytes(dir.path());
            let end = after.iter().rposition(|byte| *byte != 0).unwrap() + 1;
            let start = before.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
            // Cut off at a byte, and with the beginning lost and the end kept, as disks may.
            for cut in [start, start + 1, start.midpoint(end), end - 1] {
                let mut torn = before.clone();
                torn.resize(after.len(), 0);
                torn[start..cut].copy_from_slice(&after[start..cut]);
                prop_assert_eq!(state(&after_crash(&torn, None)), was.clone());
                let mut late = before.clone();
                late.resize(after.len(), 0);
                if cut > start {
                    late[cut..end].copy_from_slice(&after[cut..end]);
                    prop_assert_eq!(state(&after_crash(&late, None)), was.clone());
                }
            }
            let whole = after_crash(&after, None);
            prop_assert_eq!(state(&whole), state(&ledger));
            nothing_leaks(&whole);
        }
    }

    #[test]
    fn any_bytes_can_be_opened(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let dir = tempdir();
        fs::write(dir.path().join(journal::FILE), &bytes).unwrap();
        let (_, ledger, _) = Journal::open(dir.path(), BOOT).unwrap();
        sound(&ledger);
        let (_, _, found) = Journal::open(dir.path(), BOOT).unwrap();
        prop_assert_eq!(found, journal::Found::default(), "opening mends");
    }

    #[test]
    fn one_damaged_byte_costs_one_line_at_most(at in any::<prop::sample::Index>(), flip in 1_u8..) {
        let dir = tempdir();
        let (mut journal, mut ledger, _) = Journal::open(dir.path(), BOOT).unwrap();
        let records: Vec<_> = (0..6).map(|n| ledger.hold(&key(n), "net", None, &sets(), 0).unwrap()).collect();
        journal.append(&records).unwrap();
        let mut bytes = bytes(dir.path());
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let first = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        let at = first + at.index(end - first);
        bytes[at] ^= flip;
        fs::write(dir.path().join(journal::FILE), &bytes).unwrap();
        let (_, found, _) = Journal::open(dir.path(), BOOT).unwrap();
        sound(&found);
        let whole = state(&ledger);
        // A line feed that is damaged joins two lines; a zero at a line's beginning ends the journal.
        let lost = whole.len() - found.len();
        let zero = bytes[at] == 0;
        prop_assert!(lost <= 2 || zero, "{}", lost);
        prop_assert!(found.iter().all(|(key, held)| whole[key] == held.ips));
    }
}

#[test]
fn a_just_released_address_waits_for_the_shortened_quarantine() {
    let set = vec![vec![Range::of("10.1.0.0/31".parse().unwrap())]];
    let mut ledger = Ledger::default();
    let hold = |ledger: &mut Ledger, n: u8, now: u64| {
        ledger
            .hold(&key(n), "net", None, &set, now)
            .map(|_| ledger.get(&key(n)).unwrap().ips[0].to_string())
    };
    assert_eq!(hold(&mut ledger, 0, 0).unwrap(), "10.1.0.0");
    assert_eq!(hold(&mut ledger, 1, 0).unwrap(), "10.1.0.1");
    let refused = hold(&mut ledger, 2, 0).unwrap_err();
    assert_eq!((refused.size, refused.ready_in_ms), (2, None));
    ledger.release(&key(1), 10_000);
    ledger.release(&key(0), 10_400);
    let refused = hold(&mut ledger, 2, 10_400).unwrap_err();
    assert_eq!(refused.ready_in_ms, Some(QUARANTINE_SHORTENED_MS - 400));
    assert_eq!(
        hold(&mut ledger, 2, 10_000 + QUARANTINE_SHORTENED_MS).unwrap(),
        "10.1.0.1",
        "rested longest"
    );
    assert_eq!(ledger.shortened(), 1);
    assert_eq!(hold(&mut ledger, 3, 10_400 + QUARANTINE_MS).unwrap(), "10.1.0.0");
    assert_eq!(ledger.shortened(), 1, "that was long enough");
}

#[test]
fn fresh_addresses_go_before_rested_ones() {
    let set = vec![vec![Range::of("10.1.0.0/24".parse().unwrap())]];
    let mut ledger = Ledger::default();
    let mut order = HashMap::new();
    for n in 0..254_u32 {
        let key = key(0);
        ledger.hold(&key, "net", None, &set, 0).unwrap();
        order.insert(ledger.get(&key).unwrap().ips[0], n);
        ledger.release(&key, u64::from(n));
    }
    assert_eq!(order.len(), 254, "each was used once");
    for n in 0..254 {
        ledger.hold(&key(0), "net", None, &set, 1_000_000).unwrap();
        assert_eq!(
            order[&ledger.get(&key(0)).unwrap().ips[0]],
            n,
            "in the order of their release"
        );
        ledger.release(&key(0), 1_000_000);
    }
}

#[test]
fn another_boot_frees_everything_but_remembers_the_networks() {
    let dir = tempdir();
    let (mut journal, mut ledger, _) = Journal::open(dir.path(), "one").unwrap();
    let cidrs = ["10.1.0.0/24".parse().unwrap()];
    let mut records = vec![ledger.set_cidrs(&cidrs).unwrap()];
    records.extend((0..3).map(|n| ledger.hold(&key(n), "net", None, &sets(), 0).unwrap()));
    journal.append(&records).unwrap();
    let (_, ledger, found) = Journal::open(dir.path(), "two").unwrap();
    assert_eq!((found.freed, found.bad, ledger.len()), (3, 0, 0));
    assert_eq!(ledger.cidrs(), cidrs);
    assert_eq!(
        hold(&mut ledger.clone(), &key(9), 0).unwrap()[0].to_string(),
        "10.1.0.1"
    );
    let (_, _, found) = Journal::open(dir.path(), "two").unwrap();
    assert_eq!(found.freed, 0, "once");
}

#[test]
fn the_lock_is_one_processs_or_one_holders() {
    let dir = tempdir();
    let lock = Lock::try_take(dir.path()).unwrap().unwrap();
    assert!(Lock::try_take(dir.path()).unwrap().is_none());
    drop(lock);
    Lock::take(dir.path()).unwrap();
    assert!(Lock::try_take(&dir.path().join("nowhere")).is_err());
}
