//! The writer: takes what is asked for in batches, checks conditions in order, writes the log, publishes, answers.

use super::{
    BLOCK, Inner,
    row::Row,
    tables::{Meta, Payload, Readable},
    wal::Wal,
};
use crate::{Change, Durability, Key, Operation, Record, Revision, StoreError, Txn, backend::condition};
use std::{
    collections::HashMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// Most writes in a batch.
const BATCH: usize = 256;
/// Bytes of a batch after which no more is taken, if the log's files are not small.
const BATCH_BYTES: usize = 1 << 20;
/// Bytes of a log record beside key and value, roundly.
const OVERHEAD: usize = 128;
/// A relaxed write is durable after this time: half of the second that is promised.
const RELAXED: Duration = Duration::from_millis(500);
/// Longest key, in bytes. Kubernetes' names have at most 253.
const LONGEST_KEY: usize = 4 << 10;

type Reply = oneshot::Sender<Result<Change, StoreError>>;

/// What the writer is told.
pub(super) enum Command {
    Commit(Box<Txn>, Reply),
    Close,
}

pub(super) struct Writer {
    inner: Arc<Inner>,
    commands: Receiver<Command>,
    wal: Wal,
    /// redb as it was at `reader.meta.revision`; what came later is in `newer`.
    reader: Option<Readable>,
    /// The objects that were written since, with the revision of their last write.
    newer: HashMap<Key, (Revision, Option<Record>)>,
    revision: Revision,
    reserved: Revision,
    /// When the oldest write that is not yet durable was acknowledged.
    relaxed_since: Option<Instant>,
}

/// What became of a batch.
#[derive(Default)]
struct Batch {
    replies: Vec<(Reply, Result<Change, StoreError>)>,
    changes: Vec<Change>,
    payloads: Vec<Vec<u8>>,
    durable: bool,
}

impl Writer {
    pub(super) fn new(inner: Arc<Inner>, commands: Receiver<Command>, wal: Wal, meta: &Meta) -> Self {
        let (revision, reserved) = (meta.revision, meta.reserved);
        Self {
            inner,
            commands,
            wal,
            reader: None,
            newer: HashMap::new(),
            revision,
            reserved,
            relaxed_since: None,
        }
    }

    /// Until the store closes.
    pub(super) fn run(mut self) {
        let ended = catch_unwind(AssertUnwindSafe(|| self.serve()));
        let reason = match ended {
            Ok(Ok(())) => "it was told to".to_owned(),
            Ok(Err(error)) => {
                tracing::error!(error = %chain(&error), "the store can no longer write");
                chain(&error)
            }
            // redb panics where its file holds what it does not expect.
            Err(_) => "redb's file could not be read and may be damaged; see `fairlead store check`".to_owned(),
        };
        self.inner.state().writer_ended = true;
        self.inner.close(&reason);
    }

    fn serve(&mut self) -> Result<(), StoreError> {
        loop {
            let first = match self.relaxed_since {
                None => self.commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(since) => self.commands.recv_timeout(RELAXED.saturating_sub(since.elapsed())),
            };
            let mut next = match first {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => {
                    self.sync()?;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return self.sync(),
            };
            let mut batch = Batch::default();
            if let Some(closed) = self.inner.state().closed() {
                return Err(closed);
            }
            let (mut count, mut bytes) = (0, 0);
            let enough = BATCH_BYTES.min(self.wal.largest() / 2);
            let mut close = false;
            while let Some(command) = next.take() {
                match command {
                    Command::Close => {
                        close = true;
                        break;
                    }
                    Command::Commit(txn, reply) => {
                        bytes += if let Operation::Put(value) = &txn.operation {
                            value.len()
                        } else {
                            0
                        };
                        count += 1;
                        let result = self.take(*txn, &mut batch);
                        batch.replies.push((reply, result));
                    }
                }
                if count < BATCH && bytes < enough {
                    next = self.commands.try_recv().ok();
                }
            }
            self.write(batch)?;
            if close {
                return self.sync();
            }
        }
    }

    /// Checks one write and gives it its revision.
    fn take(&mut self, txn: Txn, batch: &mut Batch) -> Result<Change, StoreError> {
        check_key(&txn.key)?;
        let bytes = size_of_txn(&txn);
        if bytes > self.wal.largest() {
            let what = format!("{}: {bytes} bytes are more than the store's log has room for", txn.key);
            return Err(StoreError::Io {
                what,
                source: io::ErrorKind::FileTooLarge.into(),
            });
        }
        let before = self.current(&txn.key)?;
        condition(&txn, before.as_ref())?;
        self.revision += 1;
        let revision = self.revision;
        let now = match txn.operation {
            Operation::Put(value) => {
                let created = before.as_ref().map_or(revision, |it| it.created);
                Some(Record {
                    key: txn.key.clone(),
                    value,
                    created,
                    modified: revision,
                })
            }
            Operation::Delete => None,
        };
        self.newer.insert(txn.key.clone(), (revision, now.clone()));
        let change = Change {
            revision,
            now,
            before,
            key: txn.key,
        };
        batch.payloads.push(Payload::Write(revision, Row::of(&change)).encode());
        batch.changes.push(change.clone());
        batch.durable |= txn.durability == Durability::Durable;
        Ok(change)
    }

    /// The object at a key, this batch's writes included.
    fn current(&mut self, key: &Key) -> Result<Option<Record>, StoreError> {
        let in_redb = self.inner.in_redb();
        if self.reader.as_ref().is_none_or(|it| it.meta.revision < in_redb) {
            let reader = Readable::open(self.inner.database()?.get()).map_err(|it| it.at(&self.inner.directory))?;
            let known = reader.meta.revision;
            self.newer.retain(|_, (revision, _)| *revision > known);
            self.reader = Some(reader);
        }
        match (self.newer.get(key), &self.reader) {
            (Some((_, record)), _) => Ok(record.clone()),
            (None, Some(reader)) => reader.get(key).map_err(|it| it.at(&self.inner.directory)),
            (None, None) => Ok(None),
        }
    }

    /// Writes the log, publishes, answers.
    fn write(&mut self, mut batch: Batch) -> Result<(), StoreError> {
        if let Some(first) = batch.changes.first().map(|it| it.revision) {
            // Half a block before its end, so that a relaxed write need not wait for it.
            let mut must_sync = batch.durable;
            let mut reserved = self.reserved;
            if self.revision + BLOCK / 2 > self.reserved {
                reserved = self.revision + BLOCK;
                batch.payloads.insert(0, Payload::Reserve(first, reserved).encode());
                must_sync = true;
            }
            let inner = &self.inner;
            self.wal
                .append(&batch.payloads, self.revision, |until| inner.wait_for_redb(until))?;
            if must_sync {
                self.sync()?;
                self.reserved = reserved;
            } else {
                self.relaxed_since.get_or_insert_with(Instant::now);
            }
            self.publish(batch.changes);
        }
        for (reply, result) in batch.replies {
            // Whoever asked may have gone; the write stands.
            let _ = reply.send(result);
        }
        Ok(())
    }

    fn publish(&self, changes: Vec<Change>) {
        let mut state = self.inner.state();
        state.published = self.revision;
        state.reserved = self.reserved;
        state.tail_bytes += changes.iter().map(bytes_of).sum::<usize>();
        let first = state.tail.is_empty();
        state.tail.extend(changes);
        let urgent = state.tail_bytes > self.inner.options.checkpoint_bytes;
        // Under the lock: the store may not be closed in between, which announces more.
        self.inner.announced.send_replace(self.revision);
        drop(state);
        if first || urgent {
            self.inner.changed.notify_all();
        }
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.relaxed_since = None;
        self.wal.sync()
    }
}

impl Inner {
    /// Waits until redb holds a revision.
    pub(super) fn wait_for_redb(&self, until: Revision) -> Result<(), StoreError> {
        let mut state = self.state();
        while self.in_redb() < until {
            if let Some(closed) = state.closed() {
                return Err(closed);
            }
            state.wanted = state.wanted.max(until);
            self.changed.notify_all();
            state = self.wait(state, Duration::from_secs(1));
        }
        Ok(())
    }
}

/// Bytes that a write takes in the log, or a little less than this says.
fn size_of_txn(txn: &Txn) -> usize {
    let Key {
        prefix,
        namespace,
        name,
    } = &txn.key;
    let value = if let Operation::Put(value) = &txn.operation {
        value.len()
    } else {
        0
    };
    value + prefix.len() + namespace.len() + name.len() + OVERHEAD
}

/// Bytes that a change holds in memory until redb has it.
pub(super) fn bytes_of(change: &Change) -> usize {
    change.now.as_ref().map_or(0, |it| it.value.len()) + 256
}

fn check_key(key: &Key) -> Result<(), StoreError> {
    let parts = [&key.prefix, &key.namespace, &key.name];
    let wrong = if key.prefix.is_empty() || key.name.is_empty() {
        "a key needs a prefix and a name"
    } else if parts.iter().any(|it| it.contains('\0')) {
        "a key must not contain the character NUL"
    } else if parts.iter().map(|it| it.len()).sum::<usize>() > LONGEST_KEY {
        "the key is too long"
    } else {
        return Ok(());
    };
    Err(StoreError::Io {
        what: format!("{key}: {wrong}"),
        source: io::ErrorKind::InvalidInput.into(),
    })
}

/// The error and what caused it, for those who are told only that the store is closed.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
