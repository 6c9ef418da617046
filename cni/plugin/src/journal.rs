//! The journal on disk: one line per record with a checksum, synced before anybody is told.
//!
//! The file is longer than what is written: it ends in zeros, because syncing bytes that overwrite costs a fraction of
//! syncing a file that grows. A new boot frees all addresses, since no network namespace survives one.

use crate::ledger::{Ledger, Record};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

/// The journal's name in the run directory.
pub const FILE: &str = "journal";
/// A compacted journal before it takes the place of the old one.
const NEW: &str = "journal.new";
/// Who holds the lock of this file may write the journal.
const LOCK: &str = "journal.lock";
/// Bytes that the file grows by.
const STEP: usize = 64 << 10;
/// A journal with fewer bytes of records is not worth compacting.
const SMALL: u64 = 256 << 10;

/// The right to write the journal of a run directory, until dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock; `None` if another process has it.
    ///
    /// # Errors
    /// The lock's file cannot be opened or locked.
    pub fn try_take(dir: &Path) -> io::Result<Option<Self>> {
        let file = Self::open(dir)?;
        // SAFETY: flock takes no pointers, and the descriptor is open.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(Some(Self { _file: file }));
        }
        match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            error => Err(error),
        }
    }

    /// Takes the lock, and waits for processes that have it.
    ///
    /// # Errors
    /// As [`Lock::try_take`].
    pub fn take(dir: &Path) -> io::Result<Self> {
        let file = Self::open(dir)?;
        loop {
            // SAFETY: flock takes no pointers, and the descriptor is open.
            if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } == 0 {
                return Ok(Self { _file: file });
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    fn open(dir: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        options.open(dir.join(LOCK))
    }
}

/// What was found when a journal was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Attachments of an earlier boot, all of them freed.
    pub freed: usize,
    /// Lines that were damaged or contradicted others, the torn last one excepted.
    pub bad: usize,
    /// Whether the last line was torn: it was never acknowledged.
    pub torn: bool,
}

/// An open journal. Whoever has it has the [`Lock`].
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    boot: String,
    file: File,
    /// Bytes of records.
    end: u64,
    /// Bytes of the file.
    room: u64,
    /// Bytes of records when it was compacted last.
    base: u64,
    /// A write failed: what the file holds past `end` is unknown.
    damaged: bool,
}

impl Journal {
    /// Opens or makes the journal of a run directory, and replays it. `boot` is [`boot_id`].
    ///
    /// # Errors
    /// The file cannot be read or written. Damaged content is no error.
    pub fn open(dir: &Path, boot: &str) -> io::Result<(Self, Ledger, Found)> {
        let bytes = match fs::read(dir.join(FILE)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let (ledger, found, end) = replay(&bytes, boot);
        // What is left of a compaction that did not end.
        match fs::remove_file(dir.join(NEW)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let fresh = bytes.is_empty() || found.freed > 0 || found.bad > 0 || found.torn || end == 0;
        if fresh {
            let records = ledger.snapshot();
            let journal = Self::write_new(dir, boot, &records)?;
            return Ok((journal, ledger, found));
        }
        let file = OpenOptions::new().write(true).open(dir.join(FILE))?;
        let journal = Self {
            dir: dir.to_owned(),
            boot: boot.to_owned(),
            file,
            end,
            room: bytes.len() as u64,
            base: 0,
            damaged: false,
        };
        Ok((journal, ledger, found))
    }

    /// Writes records behind the others and syncs: when this returns, they survive a power cut.
    ///
    /// # Errors
    /// The disk is full or broken. None of the records counts then, and the journal wants to be rewritten.
    pub fn append(&mut self, records: &[Record]) -> io::Result<()> {
        if self.damaged {
            return Err(io::Error::other(
                "an earlier write failed, and the journal was not rewritten since",
            ));
        }
        let lines = encode(records)?;
        let result = self.write(&lines);
        self.damaged = result.is_err();
        result
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let after = self.end + lines.len() as u64;
        if after >= self.room {
            // One byte more than the lines need at least: a zero ends them.
            let step = STEP as u64;
            let room = (after + step) / step * step;
            let zeros = vec![0; usize::try_from(room - self.room).unwrap_or(STEP)];
            self.file.write_all_at(&zeros, self.room)?;
            self.room = room;
        }
        self.file.write_all_at(lines, self.end)?;
        self.file.sync_data()?;
        self.end = after;
        Ok(())
    }

    /// Whether [`Journal::rewrite`] is due: after a failed write, and when most of the file is history.
    #[must_use]
    pub fn wants_rewrite(&self) -> bool {
        self.damaged || self.end > SMALL.max(self.base * 2)
    }

    /// Replaces the file by one with these records ([`Ledger::snapshot`]), atomically: a crash leaves the old or the new.
    ///
    /// # Errors
    /// The new file cannot be written; the old one is as it was.
    pub fn rewrite(&mut self, records: &[Record]) -> io::Result<()> {
        *self = Self::write_new(&self.dir, &self.boot, records)?;
        Ok(())
    }

    fn write_new(dir: &Path, boot: &str, records: &[Record]) -> io::Result<Self> {
        let new = dir.join(NEW);
        let mut options = OpenOptions::new();
        options.create(true).truncate(true).write(true).mode(0o600);
        let mut file = options.open(&new)?;
        let mut lines = encode(&[Record::Boot { id: boot.to_owned() }])?;
        lines.extend(encode(records)?);
        let end = lines.len();
        lines.resize((end / STEP + 1) * STEP, 0);
        file.write_all(&lines)?;
        file.sync_all()?;
        fs::rename(&new, dir.join(FILE))?;
        File::open(dir)?.sync_all()?;
        Ok(Self {
            dir: dir.to_owned(),
            boot: boot.to_owned(),
            file,
            end: end as u64,
            room: lines.len() as u64,
            base: end as u64,
            damaged: false,
        })
    }
}

/// Reads a journal without writing anything; for those who only look.
///
/// # Errors
/// The file cannot be read; [`io::ErrorKind::NotFound`] if there is none.
pub fn read(dir: &Path, boot: &str) -> io::Result<Ledger> {
    Ok(replay(&fs::read(dir.join(FILE))?, boot).0)
}

/// The state that the bytes of a journal add up to, what was odd, and where the records end.
fn replay(bytes: &[u8], boot: &str) -> (Ledger, Found, u64) {
    let mut ledger = Ledger::default();
    let mut found = Found::default();
    let mut other_boot = false;
    let mut end = 0;
    while let Some(rest) = bytes.get(end..).filter(|rest| !matches!(rest.first(), None | Some(0))) {
        let Some(length) = rest.iter().position(|byte| *byte == b'\n') else {
            found.torn = true;
            break;
        };
        end += length + 1;
        match rest.get(..length).and_then(decode) {
            Some(Record::Boot { id }) => other_boot |= id != boot,
            Some(record) => found.bad += usize::from(!ledger.apply(&record)),
            None => found.bad += 1,
        }
    }
    // A write may have lost its beginning and kept its end.
    found.torn |= bytes.get(end..).is_some_and(|rest| rest.iter().any(|byte| *byte != 0));
    if other_boot {
        let kept = ledger.cidrs().to_vec();
        found.freed = ledger.len();
        ledger = Ledger::default();
        ledger.set_cidrs(&kept);
        // The file is of no use, whatever it holds.
        end = 0;
    }
    (ledger, found, end as u64)
}

fn encode(records: &[Record]) -> io::Result<Vec<u8>> {
    let mut lines = Vec::new();
    for record in records {
        let json = serde_json::to_vec(record)?;
        write!(lines, "{:08x} ", crc32fast::hash(&json))?;
        lines.extend(json);
        lines.push(b'\n');
    }
    Ok(lines)
}

fn decode(line: &[u8]) -> Option<Record> {
    let (sum, json) = line.split_at_checked(9)?;
    let sum = str::from_utf8(sum).ok()?.strip_suffix(' ')?;
    let sum = u32::from_str_radix(sum, 16).ok()?;
    (sum == crc32fast::hash(json))
        .then(|| serde_json::from_slice(json).ok())
        .flatten()
}

/// The boot that this process runs in.
///
/// # Errors
/// `/proc` is not mounted.
pub fn boot_id() -> io::Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let id = fs::read_to_string(path).map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
    Ok(id.trim().to_owned())
}

/// Milliseconds since boot, suspended time included: the clock of quarantines. Nobody sets it, and all processes of one
/// boot share it.
#[must_use]
pub fn now_ms() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the duration of the call.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    u64::try_from(time.tv_sec).unwrap_or(0) * 1000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000
}
