//! Copies of the store: made while it serves, put back, checked.

use super::{
    DATABASE, Inner,
    row::{Row, encode_key},
    tables::{self, CURRENT, Fault, LOG, Meta, Readable, begin_write},
};
use crate::{Revision, StoreError};
use redb::{Database, ReadableDatabase, ReadableTable};
use std::{
    fs::{self, File},
    io,
    path::Path,
};

/// Rows that go into a copy in one transaction.
const ROWS: usize = 10_000;
/// A restored store goes on so many revisions later: its clients may have seen revisions behind the copy's, and none of them
/// may mean something else now.
const SKIPPED: Revision = 1_000_000_000;

/// What [`check`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Newest revision.
    pub revision: Revision,
    /// The oldest revision that can be read.
    pub oldest: Revision,
    /// Objects that are there now.
    pub objects: u64,
    /// Writes in the history, the objects' last ones included.
    pub writes: u64,
}

impl Inner {
    /// See [`crate::Backend::snapshot`].
    pub(super) fn copy_to(&self, path: &Path) -> Result<Revision, StoreError> {
        let published = {
            let state = self.state();
            if let Some(closed) = state.closed() {
                return Err(closed);
            }
            state.published
        };
        self.wait_for_redb(published)?;
        if path.exists() {
            let what = format!("writing the copy {}: choose a name that is not taken", path.display());
            return Err(StoreError::Io {
                what,
                source: io::ErrorKind::AlreadyExists.into(),
            });
        }
        // Written under another name: what is at `path` is always whole.
        let part = path.with_added_extension("part");
        let copied = copy(self.database()?.get(), &part)
            .map_err(|it| it.at(&part))
            .and_then(|revision| {
                fs::rename(&part, path)
                    .and_then(|()| sync_directory(path))
                    .map_err(|it| failed("writing the copy", path, it))?;
                Ok(revision)
            });
        if copied.is_err() {
            // The first error is the one to tell.
            let _ = fs::remove_file(&part);
        }
        copied
    }
}

fn copy(from: &Database, path: &Path) -> Result<Revision, Fault> {
    let tables = Readable::open(from)?;
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map_err(Fault::Failed)?;
    let to = Database::builder()
        .set_cache_size(super::DATABASE_CACHE)
        .create_file(file);
    let to = to.map_err(|error| Fault::Failed(io::Error::other(error)))?;
    let mut rows = tables.log.iter()?.peekable();
    while rows.peek().is_some() {
        let transaction = begin_write(&to)?;
        {
            let mut log = transaction.open_table(LOG)?;
            for found in rows.by_ref().take(ROWS) {
                let (revision, row) = found?;
                log.insert(revision.value(), row.value())?;
            }
        }
        transaction.commit()?;
    }
    let transaction = begin_write(&to)?;
    {
        transaction.open_table(LOG)?;
        let mut current = transaction.open_table(CURRENT)?;
        for found in tables.current.iter()? {
            let (key, revision) = found?;
            current.insert(key.value(), revision.value())?;
        }
    }
    // Last: without the numbers it is no store. Nothing was given out that the copy does not hold.
    Meta {
        reserved: tables.meta.revision,
        ..tables.meta.clone()
    }
    .write(&transaction)?;
    transaction.commit()?;
    Ok(tables.meta.revision)
}

/// Makes a new store in a directory from a copy. Its revisions go on 1 000 000 000 later, and history before is not kept, so
/// that every client lists again. Returns the revision it goes on from.
///
/// # Errors
/// [`StoreError::Damaged`] when the copy does not hold together; [`StoreError::Io`] when there is a store in the directory
/// already, or the disk fails.
pub fn restore(snapshot: &Path, directory: &Path) -> Result<Revision, StoreError> {
    let target = directory.join(DATABASE);
    fs::create_dir_all(directory).map_err(|it| failed("making", directory, it))?;
    let occupied = fs::read_dir(directory)
        .map_err(|it| failed("reading", directory, it))?
        .next()
        .is_some();
    if occupied {
        let what = format!("restoring into {}: move away what is there first", directory.display());
        return Err(StoreError::Io {
            what,
            source: io::ErrorKind::AlreadyExists.into(),
        });
    }
    let part = directory.join("store.redb.part");
    fs::copy(snapshot, &part).map_err(|it| failed("copying", snapshot, it))?;
    let restored = (|| {
        check_file(&part, snapshot)?;
        let (database, mut meta) = tables::open(&part)?;
        let from = meta.revision + 1;
        meta.revision += SKIPPED;
        meta.reserved = meta.revision;
        meta.lost.push((from, meta.revision - 1));
        let write = || {
            let transaction = begin_write(database.get())?;
            meta.write(&transaction)?;
            Ok(transaction.commit()?)
        };
        write().map_err(|fault: Fault| fault.at(&part))?;
        drop(database);
        File::open(&part)
            .and_then(|it| it.sync_all())
            .map_err(|it| failed("making durable", &part, it))?;
        fs::rename(&part, &target)
            .and_then(|()| sync_directory(&target))
            .map_err(|it| failed("writing", &target, it))?;
        Ok(meta.revision)
    })();
    if restored.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&part);
    }
    restored
}

/// Reads all of a store that no process uses, or of a copy, and says whether it holds together: redb's own checksums, every
/// row's, and that objects and history refer to each other. A store that was not closed has its log replayed first.
///
/// # Errors
/// [`StoreError::Damaged`]; [`StoreError::Io`] when it is in use, not there, or the disk fails.
pub fn check(path: &Path) -> Result<Report, StoreError> {
    if !path.is_dir() {
        return check_file(path, path);
    }
    let file = path.join(DATABASE);
    fs::metadata(&file).map_err(|it| failed("reading", &file, it))?;
    // Before anything changes the file: a log that does not fit is told, and kept.
    check_file(&file, &file)?;
    let store = super::RedbStore::open(
        path,
        super::Options {
            keep: None,
            ..super::Options::default()
        },
    )?;
    store.close();
    drop(store);
    check_file(&file, &file)
}

fn check_file(file: &Path, named: &Path) -> Result<Report, StoreError> {
    fs::metadata(file).map_err(|it| failed("reading", named, it))?;
    let (mut database, _) = tables::open(file)?;
    tables::verify(&mut database, named)?;
    tables::guarded(named, || walk(database.get()).map_err(|it| it.at(named)))
}

fn walk(database: &Database) -> Result<Report, Fault> {
    let tables = Readable::of(&database.begin_read()?)?;
    let (mut objects, mut writes) = (0, 0);
    let Meta {
        revision: newest,
        oldest,
        swept,
        ..
    } = tables.meta;
    for found in tables.current.iter()? {
        let (key, revision) = found?;
        let (key, revision) = (Readable::key(key.value())?, revision.value());
        if tables.record(revision)?.key != key {
            return Err(Fault::Damaged(format!(
                "{key} refers to write {revision}, which is another object's"
            )));
        }
        objects += 1;
    }
    let mut live = 0;
    for found in tables.log.iter()? {
        let (revision, bytes) = found?;
        let revision = revision.value();
        let wrong = |reason: &str| Fault::Damaged(format!("write {revision}: {reason}"));
        let row = Row::decode(revision, bytes.value()).map_err(|it| wrong(&it))?;
        if revision > newest {
            return Err(wrong("it is newer than the store"));
        }
        if revision > swept && row.previous != 0 && tables.record(row.previous)?.key != row.key {
            return Err(wrong("what it replaced is another object"));
        }
        let current = tables.current.get(&encode_key(&row.key)[..])?.map(|it| it.value());
        live += u64::from(current == Some(revision));
        writes += 1;
    }
    if live != objects {
        return Err(Fault::Damaged(format!("{objects} objects refer to {live} writes")));
    }
    Ok(Report {
        revision: newest,
        oldest,
        objects,
        writes,
    })
}

fn sync_directory(file: &Path) -> io::Result<()> {
    let directory = file
        .parent()
        .filter(|it| !it.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

fn failed(what: &str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io {
        what: format!("{what} {}", path.display()),
        source,
    }
}
