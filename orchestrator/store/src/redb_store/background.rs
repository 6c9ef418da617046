//! The second thread: moves changes from the log into redb, and forgets old history in small steps.

use super::{
    Inner,
    row::Row,
    tables::{Fault, Meta, Readable, Writable, begin_write},
    writer::{bytes_of, chain},
};
use crate::{Change, Revision, StoreError};
use redb::Database;
use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// Most changes in one transaction of redb.
const CHANGES: usize = 4_096;
/// Most rows that one step of a compaction removes: it must not keep checkpoints waiting.
const ROWS: usize = 500;
/// How often the revision is noted, to know later which one is as old as history may be.
const NOTE_EVERY: Duration = Duration::from_secs(10);

pub(super) struct Background {
    inner: Arc<Inner>,
    meta: Meta,
    /// When which revision was the newest.
    notes: VecDeque<(Instant, Revision)>,
    /// When a change was first seen that redb does not hold.
    waiting_since: Option<Instant>,
    /// Forget history before this.
    target: Revision,
    askers: Vec<(Revision, oneshot::Sender<Result<(), StoreError>>)>,
}

/// What there is to do.
#[derive(Default)]
struct Work {
    changes: Vec<Change>,
    reserved: Revision,
    /// Nothing more will come.
    last: bool,
}

impl Background {
    pub(super) fn new(inner: Arc<Inner>, meta: &Meta) -> Self {
        let notes = VecDeque::from([(Instant::now(), meta.revision)]);
        Self {
            inner,
            meta: meta.clone(),
            notes,
            waiting_since: None,
            target: meta.oldest,
            askers: Vec::new(),
        }
    }

    /// Until the writer has ended and redb holds everything.
    pub(super) fn run(mut self) {
        let ended = catch_unwind(AssertUnwindSafe(|| self.serve()));
        let reason = match ended {
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                tracing::error!(error = %chain(&error), "the store can no longer move its log into redb");
                chain(&error)
            }
            // redb panics where its file holds what it does not expect.
            Err(_) => "redb's file could not be written and may be damaged; see `fairlead store check`".to_owned(),
        };
        self.inner.close(&reason);
    }

    fn serve(&mut self) -> Result<(), StoreError> {
        let fault = |inner: &Inner, fault: Fault| fault.at(&inner.directory.join(super::DATABASE));
        let database = self.inner.database()?;
        loop {
            let work = self.next();
            if !work.changes.is_empty() || work.last {
                self.checkpoint(database.get(), &work)
                    .map_err(|it| fault(&self.inner, it))?;
            }
            if work.last {
                return Ok(());
            }
            if self.meta.swept < self.target {
                self.sweep(database.get()).map_err(|it| fault(&self.inner, it))?;
            }
            let swept = self.meta.swept;
            for (_, asker) in self.askers.extract_if(.., |(before, _)| *before <= swept) {
                // Whoever asked may have gone.
                let _ = asker.send(Ok(()));
            }
        }
    }

    /// Waits for something to do.
    fn next(&mut self) -> Work {
        let inner = Arc::clone(&self.inner);
        let mut state = inner.state();
        loop {
            let now = Instant::now();
            if self
                .notes
                .back()
                .is_none_or(|(at, _)| now.duration_since(*at) >= NOTE_EVERY)
            {
                self.notes.push_back((now, state.published));
            }
            if let Some(keep) = inner.options.keep {
                while let Some((at, revision)) = self.notes.front()
                    && now.duration_since(*at) >= keep
                {
                    self.target = self.target.max(*revision);
                    self.notes.pop_front();
                }
            }
            for (before, asker) in state.compactions.drain(..) {
                self.target = self.target.max(before);
                self.askers.push((before, asker));
            }
            if self.askers.iter().any(|(before, _)| *before <= self.meta.swept) {
                return Work::default();
            }
            // From here on reads of it are refused, though it takes a while to remove.
            state.oldest = self.target;
            let target = self.target;
            state.lost.retain(|(_, last)| *last >= target);

            self.waiting_since = if state.tail.is_empty() {
                None
            } else {
                self.waiting_since.or(Some(now))
            };
            let waited = self
                .waiting_since
                .map_or(Duration::ZERO, |since| now.duration_since(since));
            let checkpoint = state.writer_ended
                || state.tail_bytes > inner.options.checkpoint_bytes
                || waited >= inner.options.checkpoint_after
                || state.wanted > inner.in_redb()
                // Only what redb holds can be removed from it.
                || self.target > inner.in_redb();
            if checkpoint && (!state.tail.is_empty() || state.writer_ended) {
                let changes: Vec<_> = state.tail.iter().take(CHANGES).cloned().collect();
                let last = state.writer_ended && changes.len() == state.tail.len();
                self.meta.lost.clone_from(&state.lost);
                return Work {
                    changes,
                    reserved: state.reserved,
                    last,
                };
            }
            if self.meta.swept < self.target {
                self.meta.lost.clone_from(&state.lost);
                return Work {
                    reserved: state.reserved,
                    ..Work::default()
                };
            }
            let pause = match self.waiting_since {
                Some(_) => inner.options.checkpoint_after.saturating_sub(waited),
                None => NOTE_EVERY,
            };
            state = inner.wait(state, pause.clamp(Duration::from_millis(1), NOTE_EVERY));
        }
    }

    fn checkpoint(&mut self, database: &Database, work: &Work) -> Result<(), Fault> {
        self.meta.revision = work.changes.last().map_or(self.meta.revision, |it| it.revision);
        // After the last one nothing is out that could be lost: the next life goes on with the next revision.
        self.meta.reserved = if work.last { self.meta.revision } else { work.reserved };
        let transaction = begin_write(database)?;
        {
            let mut tables = Writable::open(&transaction)?;
            for change in &work.changes {
                tables.put(change.revision, &Row::of(change))?;
            }
        }
        self.meta.write(&transaction)?;
        transaction.commit()?;
        let mut state = self.inner.state();
        for change in state.tail.drain(..work.changes.len()).collect::<Vec<_>>() {
            state.tail_bytes -= bytes_of(&change);
        }
        self.inner.in_redb.store(self.meta.revision, Ordering::Release);
        drop(state);
        self.waiting_since = None;
        self.inner.changed.notify_all();
        Ok(())
    }

    /// One step: goes through the oldest history not yet gone through, and removes what each write there replaced. What
    /// remains of it are the objects as they were at the target, from which later changes start.
    fn sweep(&mut self, database: &Database) -> Result<(), Fault> {
        let target = self.target.min(self.meta.revision);
        let mut rows = Vec::new();
        let mut swept = target;
        {
            let tables = Readable::open(database)?;
            for found in tables.log.range(self.meta.swept + 1..=target)? {
                let (revision, bytes) = found?;
                let revision = revision.value();
                let row = Row::decode(revision, bytes.value())
                    .map_err(|it| Fault::Damaged(format!("write {revision}: {it}")))?;
                if row.previous != 0 {
                    rows.push(row.previous);
                }
                if row.value.is_none() {
                    rows.push(revision);
                }
                if rows.len() >= ROWS - 1 {
                    swept = revision;
                    break;
                }
            }
        }
        self.meta.swept = swept;
        self.meta.oldest = self.meta.oldest.max(self.target);
        let transaction = begin_write(database)?;
        {
            let mut tables = Writable::open(&transaction)?;
            for revision in rows {
                tables.log.remove(revision)?;
            }
        }
        self.meta.write(&transaction)?;
        transaction.commit()?;
        Ok(())
    }
}
