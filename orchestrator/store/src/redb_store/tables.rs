//! The tables in redb's file, and how it is opened: history by revision, current revision by key, and a few numbers.

use super::{
    BLOCK, DATABASE, DATABASE_CACHE,
    row::{Row, decode_key, encode_key},
    wal::Recovered,
};
use crate::{Change, Record, Revision, StoreError};
use redb::{
    Database, DatabaseError, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, Table, TableDefinition,
    WriteTransaction,
};
use std::{
    fs::{self, File, TryLockError},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

/// Every write that is kept: revision → [`Row`].
pub(super) const LOG: TableDefinition<'_, Revision, &[u8]> = TableDefinition::new("log");
/// What is there now: key → revision of its last write.
pub(super) const CURRENT: TableDefinition<'_, &[u8], Revision> = TableDefinition::new("current");
/// Numbers by name, see [`Meta`].
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// Version of all of this and of the write-ahead log.
const FORMAT: u64 = 1;

/// The numbers in the table `meta`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Meta {
    /// Newest revision that redb holds.
    pub(super) revision: Revision,
    /// Revisions up to here may have been given out.
    pub(super) reserved: Revision,
    /// The oldest revision that can be read.
    pub(super) oldest: Revision,
    /// Up to here the history was searched for what is no longer needed.
    pub(super) swept: Revision,
    /// Generation of the write-ahead log's first file in this life.
    pub(super) generation: u64,
    /// Revisions lost in crashes, first and last.
    pub(super) lost: Vec<(Revision, Revision)>,
}

const NUMBERS: [&str; 5] = ["revision", "reserved", "oldest", "swept", "generation"];

impl Meta {
    fn numbers(&mut self) -> [&mut u64; 5] {
        [
            &mut self.revision,
            &mut self.reserved,
            &mut self.oldest,
            &mut self.swept,
            &mut self.generation,
        ]
    }

    pub(super) fn read(table: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<Self, Fault> {
        let number = |name: &str| -> Result<Option<u64>, Fault> {
            let Some(found) = table.get(name)? else { return Ok(None) };
            let bytes = found
                .value()
                .try_into()
                .map_err(|_| Fault::Damaged(format!("meta {name} is no number")))?;
            Ok(Some(u64::from_le_bytes(bytes)))
        };
        match number("format")? {
            Some(FORMAT) => {}
            Some(other) => {
                return Err(Fault::Damaged(format!(
                    "it has format {other}; this program reads format {FORMAT}"
                )));
            }
            None => {
                return Err(Fault::Damaged(
                    "it has no format number: it was not written by this program".into(),
                ));
            }
        }
        let mut meta = Self::default();
        for (name, place) in NUMBERS.into_iter().zip(meta.numbers()) {
            *place = number(name)?.ok_or_else(|| Fault::Damaged(format!("meta {name} is missing")))?;
        }
        if let Some(found) = table.get("lost")? {
            let (pairs, rest) = found.value().as_chunks::<16>();
            if !rest.is_empty() {
                return Err(Fault::Damaged("meta lost has half a number".into()));
            }
            let half = |pair: &[u8; 16], at: usize| {
                pair[at..at + 8]
                    .iter()
                    .rev()
                    .fold(0, |number, byte| number << 8 | u64::from(*byte))
            };
            meta.lost = pairs.iter().map(|pair| (half(pair, 0), half(pair, 8))).collect();
        }
        Ok(meta)
    }

    pub(super) fn write(&self, transaction: &WriteTransaction) -> Result<(), Fault> {
        let mut table = transaction.open_table(META)?;
        table.insert("format", &FORMAT.to_le_bytes()[..])?;
        let mut numbers = self.clone();
        for (name, number) in NUMBERS.into_iter().zip(numbers.numbers()) {
            table.insert(name, &number.to_le_bytes()[..])?;
        }
        let lost: Vec<u8> = self
            .lost
            .iter()
            .flat_map(|(first, last)| [first.to_le_bytes(), last.to_le_bytes()])
            .flatten()
            .collect();
        table.insert("lost", &lost[..])?;
        Ok(())
    }
}

/// Why redb's file could not be read or written; becomes a [`StoreError`] once the path is known.
#[derive(Debug)]
pub(super) enum Fault {
    Damaged(String),
    Failed(io::Error),
}

impl Fault {
    pub(super) fn at(self, path: &Path) -> StoreError {
        match self {
            Self::Damaged(reason) => StoreError::Damaged {
                path: path.display().to_string(),
                reason,
            },
            Self::Failed(source) => StoreError::Io {
                what: format!("reading or writing {}", path.display()),
                source,
            },
        }
    }
}

macro_rules! faults {
    ($($error:ty),*) => {$(
        impl From<$error> for Fault {
            fn from(error: $error) -> Self {
                match redb::Error::from(error) {
                    // How redb says that a file is no database, or shorter than it should be.
                    redb::Error::Io(source)
                        if matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
                    {
                        Self::Damaged(source.to_string())
                    }
                    redb::Error::Io(source) => Self::Failed(source),
                    error @ redb::Error::PreviousIo => Self::Failed(io::Error::other(error)),
                    error => Self::Damaged(error.to_string()),
                }
            }
        }
    )*};
}
faults!(
    redb::StorageError,
    redb::TableError,
    redb::TransactionError,
    redb::CommitError
);

/// Runs what reads a file that may hold anything: what redb does not expect there may be a panic.
pub(super) fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("it cannot be read");
        Err(Fault::Damaged(text.to_owned()).at(path))
    })
}

/// redb's file while it is open. redb may panic in a damaged file, and after that also when it is closed.
pub(super) struct OpenFile {
    database: Option<Database>,
    /// Keeps other processes out of the store's directory; released after redb's file.
    _lock: Option<File>,
}

impl OpenFile {
    pub(super) fn get(&self) -> &Database {
        // Only `drop` takes it out.
        self.database.as_ref().expect("redb's file is open")
    }

    pub(super) fn get_mut(&mut self) -> &mut Database {
        self.database.as_mut().expect("redb's file is open")
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        let database = self.database.take();
        if catch_unwind(AssertUnwindSafe(|| drop(database))).is_err() {
            tracing::error!("redb's file could not be closed in order; it may be damaged");
        }
    }
}

/// Opens the store's file in a directory, for this process alone, or makes an empty one.
pub(super) fn open_store(directory: &Path) -> Result<(OpenFile, Meta), StoreError> {
    let path = directory.join(DATABASE);
    let at = |what: &str| {
        let what = format!("{what} {}", directory.display());
        move |source| StoreError::Io { what, source }
    };
    let lock = directory.join("lock");
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(lock)
        .map_err(at("locking the store"))?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => in_use(directory),
        TryLockError::Error(source) => at("locking the store")(source),
    })?;
    if !path.exists() {
        // Under another name until it is whole: a crash leaves no half of a file where a store should be.
        let part = directory.join("store.redb.new");
        let made = match fs::remove_file(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        made.map_err(at("making the store"))?;
        guarded(&part, || {
            let database = open_redb(&part)?;
            begin(database.get()).map_err(|it| it.at(&part))
        })?;
        let sync = || {
            fs::rename(&part, &path)?;
            File::open(directory)?.sync_all()
        };
        sync().map_err(at("making the store"))?;
    }
    let (mut database, meta) = open(&path)?;
    database._lock = Some(lock);
    Ok((database, meta))
}

fn in_use(path: &Path) -> StoreError {
    let what = format!(
        "the store {} is in use by another process; stop that first",
        path.display()
    );
    StoreError::Io {
        what,
        source: io::ErrorKind::WouldBlock.into(),
    }
}

/// Opens redb's file, which must be that of a store.
pub(super) fn open(path: &Path) -> Result<(OpenFile, Meta), StoreError> {
    guarded(path, || {
        let database = open_redb(path)?;
        let read = || Meta::read(&database.get().begin_read()?.open_table(META)?);
        let meta = read().map_err(|it: Fault| it.at(path))?;
        Ok((database, meta))
    })
}

fn open_redb(path: &Path) -> Result<OpenFile, StoreError> {
    let opened = Database::builder().set_cache_size(DATABASE_CACHE).create(path);
    let opened = opened.map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => in_use(path),
        DatabaseError::Storage(error) => Fault::from(error).at(path),
        error => Fault::Damaged(error.to_string()).at(path),
    })?;
    Ok(OpenFile {
        database: Some(opened),
        _lock: None,
    })
}

/// Reads all of redb's file and compares its checksums.
pub(super) fn verify(file: &mut OpenFile, path: &Path) -> Result<(), StoreError> {
    guarded(path, || match file.get_mut().check_integrity() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Fault::Damaged("redb's own check had to repair it".into()).at(path)),
        Err(DatabaseError::Storage(error)) => Err(Fault::from(error).at(path)),
        Err(error) => Err(Fault::Damaged(error.to_string()).at(path)),
    })
}

fn begin(database: &Database) -> Result<(), Fault> {
    let transaction = begin_write(database)?;
    Meta::default().write(&transaction)?;
    transaction.open_table(LOG)?;
    transaction.open_table(CURRENT)?;
    Ok(transaction.commit()?)
}

/// Begins a transaction that is whole after any crash, and lets redb open at once after it.
pub(super) fn begin_write(database: &Database) -> Result<WriteTransaction, Fault> {
    let mut transaction = database.begin_write()?;
    // Brings two-phase commit with it: 1 ms more, but nobody waits for it.
    transaction.set_quick_repair(true);
    Ok(transaction)
}

/// What the write-ahead log's payloads say. Layout: kind (1 byte), revision (8), then a [`Row`], or the last revision (8).
pub(super) enum Payload {
    Write(Revision, Row),
    /// Revisions up to the second may be given out. The first is that of the next write: once redb holds that one, it holds
    /// this too.
    Reserve(Revision, Revision),
}

const WRITE: u8 = 1;
const RESERVE: u8 = 2;

impl Payload {
    pub(super) fn encode(&self) -> Vec<u8> {
        let (Self::Write(revision, _) | Self::Reserve(revision, _)) = self;
        let mut out = vec![if matches!(self, Self::Write(..)) {
            WRITE
        } else {
            RESERVE
        }];
        out.extend_from_slice(&revision.to_le_bytes());
        match self {
            Self::Write(revision, row) => row.encode(*revision, &mut out),
            Self::Reserve(_, until) => out.extend_from_slice(&until.to_le_bytes()),
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let (&[kind], rest) = bytes.split_first_chunk::<1>().ok_or("cut short")?;
        let (revision, rest) = rest.split_first_chunk::<8>().ok_or("cut short")?;
        let revision = u64::from_le_bytes(*revision);
        match kind {
            WRITE => Ok(Self::Write(revision, Row::decode(revision, rest)?)),
            RESERVE => {
                let until = rest.try_into().map_err(|_| "a reservation of wrong length")?;
                Ok(Self::Reserve(revision, u64::from_le_bytes(until)))
            }
            other => Err(format!("unknown kind {other}")),
        }
    }
}

/// Puts what the log holds into redb, and begins a new life of the store: with a fresh block of revisions, and with those
/// that may have been lost marked as such.
pub(super) fn replay(
    database: &Database,
    path: &Path,
    mut meta: Meta,
    recovered: &Recovered,
) -> Result<Meta, StoreError> {
    let damaged = |reason: String| Fault::Damaged(reason).at(path);
    let mut rows = Vec::new();
    for payload in &recovered.payloads {
        match Payload::decode(payload).map_err(|it| damaged(format!("the write-ahead log has a record with {it}")))? {
            Payload::Reserve(next, until) if next > meta.revision => meta.reserved = meta.reserved.max(until),
            Payload::Write(revision, row) if revision > meta.revision => rows.push((revision, row)),
            Payload::Write(..) | Payload::Reserve(..) => {}
        }
    }
    rows.sort_by_key(|(revision, _)| *revision);
    for (revision, _) in &rows {
        if *revision != meta.revision + 1 {
            return Err(damaged(format!(
                "write {} is missing from the write-ahead log",
                meta.revision + 1
            )));
        }
        meta.revision = *revision;
    }
    if recovered.durable > meta.revision {
        let (from, until) = (meta.revision + 1, recovered.durable);
        return Err(damaged(format!(
            "the writes {from} to {until} were acknowledged and are not readable"
        )));
    }
    if meta.reserved > meta.revision {
        tracing::info!(
            replayed = rows.len(),
            revision = meta.revision,
            "the store was not closed; its log was replayed"
        );
        meta.lost.push((meta.revision + 1, meta.reserved));
        meta.revision = meta.reserved + 1;
    }
    meta.reserved = meta.revision + BLOCK;
    meta.generation += 1 << 32;
    guarded(path, || {
        let work = || {
            let transaction = begin_write(database)?;
            {
                let mut tables = Writable::open(&transaction)?;
                for (revision, row) in &rows {
                    tables.put(*revision, row)?;
                }
            }
            meta.write(&transaction)?;
            transaction.commit()?;
            Ok(())
        };
        work().map_err(|fault: Fault| fault.at(path))
    })?;
    Ok(meta)
}

/// The tables of history and objects while they are written.
pub(super) struct Writable<'a> {
    pub(super) log: Table<'a, Revision, &'static [u8]>,
    current: Table<'a, &'static [u8], Revision>,
    buffer: Vec<u8>,
}

impl<'a> Writable<'a> {
    pub(super) fn open(transaction: &'a WriteTransaction) -> Result<Self, Fault> {
        let (log, current) = (transaction.open_table(LOG)?, transaction.open_table(CURRENT)?);
        Ok(Self {
            log,
            current,
            buffer: Vec::new(),
        })
    }

    pub(super) fn put(&mut self, revision: Revision, row: &Row) -> Result<(), Fault> {
        self.buffer.clear();
        row.encode(revision, &mut self.buffer);
        self.log.insert(revision, &self.buffer[..])?;
        let key = encode_key(&row.key);
        match row.value {
            Some(_) => drop(self.current.insert(&key[..], revision)?),
            None => drop(self.current.remove(&key[..])?),
        }
        Ok(())
    }
}

/// The tables at one moment.
pub(super) struct Readable {
    pub(super) log: ReadOnlyTable<Revision, &'static [u8]>,
    pub(super) current: ReadOnlyTable<&'static [u8], Revision>,
    pub(super) meta: Meta,
}

impl Readable {
    pub(super) fn open(database: &Database) -> Result<Self, Fault> {
        Self::of(&database.begin_read()?)
    }

    pub(super) fn of(transaction: &ReadTransaction) -> Result<Self, Fault> {
        let meta = Meta::read(&transaction.open_table(META)?)?;
        Ok(Self {
            log: transaction.open_table(LOG)?,
            current: transaction.open_table(CURRENT)?,
            meta,
        })
    }

    /// One write of the history; an error if it is not there.
    pub(super) fn row(&self, revision: Revision) -> Result<Row, Fault> {
        let found = self.log.get(revision)?;
        let found = found.ok_or_else(|| Fault::Damaged(format!("write {revision} is missing")))?;
        Row::decode(revision, found.value()).map_err(|it| Fault::Damaged(format!("write {revision}: {it}")))
    }

    /// The object that a write left behind.
    pub(super) fn record(&self, revision: Revision) -> Result<Record, Fault> {
        let deletes = || Fault::Damaged(format!("write {revision} is a deletion, but an object refers to it"));
        self.row(revision)?.record(revision).ok_or_else(deletes)
    }

    /// The object at a key.
    pub(super) fn get(&self, key: &crate::Key) -> Result<Option<Record>, Fault> {
        let revision = self.current.get(&encode_key(key)[..])?.map(|it| it.value());
        revision.map(|it| self.record(it)).transpose()
    }

    /// A write with what was there before.
    pub(super) fn change(&self, revision: Revision, row: &Row) -> Result<Change, Fault> {
        let before = if row.previous == 0 {
            None
        } else {
            Some(self.record(row.previous)?)
        };
        Ok(Change {
            revision,
            now: row.record(revision),
            before,
            key: row.key.clone(),
        })
    }

    /// A key of the table of objects.
    pub(super) fn key(bytes: &[u8]) -> Result<crate::Key, Fault> {
        decode_key(bytes).map_err(|it| Fault::Damaged(format!("among the objects is {it}")))
    }
}
