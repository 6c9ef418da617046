//! DEL, CHECK and GC while no agent runs: on the journal itself, under its lock.

use crate::{
    journal::{self, Journal, Lock},
    ledger::Key,
    link,
    spec::{Code, Failure},
    wire::Attachment,
};
use std::{collections::HashSet, fmt::Display, io, path::Path};

/// Does what the agent would do for DEL.
///
/// # Errors
/// The journal cannot be written, or the link cannot be removed.
pub fn del(dir: &Path, _lock: &Lock, key: &Key) -> Result<(), Failure> {
    let boot = boot()?;
    let (mut journal, mut ledger, _) = Journal::open(dir, &boot).map_err(|error| broken(dir, error))?;
    release(dir, &mut journal, &mut ledger, key)
}

/// Does what the agent would do for GC: all of it, and then says what failed.
///
/// # Errors
/// As [`del`], for the first of those that failed.
pub fn gc(dir: &Path, _lock: &Lock, network: &str, valid: &[Key]) -> Result<(), Failure> {
    let boot = boot()?;
    let (mut journal, mut ledger, _) = Journal::open(dir, &boot).map_err(|error| broken(dir, error))?;
    let valid: HashSet<&Key> = valid.iter().collect();
    let stale = ledger
        .iter()
        .filter(|(key, held)| held.network == network && !valid.contains(key));
    let stale: Vec<Key> = stale.map(|(key, _)| key.clone()).collect();
    let mut result = Ok(());
    for key in stale {
        result = result.and(release(dir, &mut journal, &mut ledger, &key));
    }
    result
}

/// Does what the agent would do for CHECK: the reservation and the host's end of the pair.
///
/// # Errors
/// The first difference ([`Code::Differs`]); a journal that cannot be read.
pub fn check(dir: &Path, key: &Key) -> Result<Attachment, Failure> {
    let ledger = match journal::read(dir, &boot()?) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(broken(dir, error)),
        read => read.unwrap_or_default(),
    };
    let held = ledger.get(key).ok_or_else(|| unknown(key))?;
    let host_if = link::host_name(key);
    // Only links of this namespace are listed there, whatever is mounted on /sys.
    let links = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let listed = |line: &str| line.split_once(':').is_some_and(|(name, _)| name.trim() == host_if);
    if !links.lines().any(listed) {
        return Err(Failure::new(
            Code::Differs,
            format!("the host's link {host_if} of {key} is gone"),
            "delete the pod; its controller makes a new one",
        ));
    }
    let (host, pod) = link::macs(key);
    Ok(Attachment {
        host_if,
        host_mac: mac(host),
        pod_mac: mac(pod),
        mtu: 0,
        ips: held.ips.clone(),
    })
}

/// The answer about an attachment that nobody knows.
#[must_use]
pub fn unknown(key: &Key) -> Failure {
    Failure::new(
        Code::Differs,
        format!("no address is reserved for {key}"),
        "ADD did not succeed, or DEL came already; delete the pod, and its controller makes a new one",
    )
}

/// A MAC address as text.
#[must_use]
pub fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// First the link, then the address: nobody gets an address that a link still has.
fn release(dir: &Path, journal: &mut Journal, ledger: &mut crate::ledger::Ledger, key: &Key) -> Result<(), Failure> {
    let name = link::host_name(key);
    link::remove(&name).map_err(|error| {
        Failure::new(
            Code::Kernel,
            format!("the host's link {name} of {key} cannot be removed"),
            error.to_string(),
        )
    })?;
    let Some(record) = ledger.release(key, journal::now_ms()) else {
        return Ok(());
    };
    journal.append(&[record]).map_err(|error| broken(dir, error))
}

fn boot() -> Result<String, Failure> {
    journal::boot_id().map_err(|error| Failure::new(Code::Io, "the boot cannot be told", error.to_string()))
}

fn broken(dir: &Path, error: impl Display) -> Failure {
    Failure::new(
        Code::Io,
        format!("the journal of addresses in {} cannot be used", dir.display()),
        error.to_string(),
    )
}
