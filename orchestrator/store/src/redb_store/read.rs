//! Reading: objects and history, out of redb and out of the changes that it does not hold yet.

use super::{
    Inner, blocking,
    row::{Row, encode_key},
    tables::{Fault, Readable, guarded},
};
use crate::{Change, Key, Range, RangeQuery, Record, Revision, StoreError};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use std::{collections::BTreeMap, ops::Bound, sync::Arc};

/// Most changes that a watch yields at once.
const BATCH: usize = 1_000;

impl Inner {
    fn fault(&self, fault: Fault) -> StoreError {
        fault.at(&self.directory.join(super::DATABASE))
    }

    pub(super) fn range(&self, query: &RangeQuery) -> Result<Range, StoreError> {
        let (tables, revision, changed) = {
            let state = self.state();
            if let Some(closed) = state.closed() {
                return Err(closed);
            }
            let revision = query.at.unwrap_or(state.published);
            state.check(revision)?;
            // Under the lock: what leaves the tail is in redb by then.
            let tables = Readable::open(self.database()?.get()).map_err(|it| self.fault(it))?;
            let later: Vec<Change> = state
                .tail
                .iter()
                .filter(|it| it.revision > tables.meta.revision)
                .cloned()
                .collect();
            (tables, revision, later)
        };
        let path = self.directory.join(super::DATABASE);
        guarded(&path, || {
            self.read(&tables, &changed, revision, query).map_err(|it| it.at(&path))
        })
    }

    fn read(&self, tables: &Readable, tail: &[Change], revision: Revision, query: &RangeQuery) -> Result<Range, Fault> {
        // What differs from redb's table of objects: later writes, and those to be undone.
        let mut differs: BTreeMap<Key, Option<Record>> = BTreeMap::new();
        let wanted = |key: &Key| {
            query.prefix.as_ref().is_none_or(|it| **it == *key.prefix) && query.after.as_ref().is_none_or(|it| key > it)
        };
        for change in tail.iter().filter(|it| it.revision <= revision && wanted(&it.key)) {
            differs.insert(change.key.clone(), change.now.clone());
        }
        if revision < tables.meta.revision {
            for found in tables.log.range(revision + 1..)? {
                let (at, bytes) = found?;
                let at = at.value();
                let row = Row::decode(at, bytes.value()).map_err(|it| Fault::Damaged(format!("write {at}: {it}")))?;
                // The first write after the revision knows what was there at it.
                if wanted(&row.key) && !differs.contains_key(&row.key) {
                    let before = if row.previous == 0 {
                        None
                    } else {
                        Some(tables.record(row.previous)?)
                    };
                    differs.insert(row.key, before);
                }
            }
        }
        let first = query.after.as_ref().map(encode_key);
        let first = match (&first, &query.prefix) {
            (Some(after), Some(prefix)) if after.as_slice() >= prefix.as_bytes() => Bound::Excluded(after.clone()),
            (_, Some(prefix)) => Bound::Included(prefix.as_bytes().to_vec()),
            (Some(after), None) => Bound::Excluded(after.clone()),
            (None, None) => Bound::Unbounded,
        };
        let first = first.as_ref().map(Vec::as_slice);
        let limit = if query.limit == 0 { usize::MAX } else { query.limit };
        let mut records = Vec::new();
        let mut differs = differs.into_iter().peekable();
        let mut stored = tables.current.range::<&[u8]>((first, Bound::Unbounded))?.peekable();
        loop {
            let next_stored = match stored.peek() {
                Some(Ok((key, _))) => Some(Readable::key(key.value())?),
                Some(Err(_)) => {
                    stored.next().transpose()?;
                    None
                }
                None => None,
            };
            // redb's keys are in order: behind the prefix there is nothing more of it.
            let next_stored =
                next_stored.filter(|key| query.prefix.as_ref().is_none_or(|prefix| **prefix == *key.prefix));
            let record = match (&next_stored, differs.peek()) {
                (None, None) => break,
                (Some(key), Some((other, _))) if key < other => self.stored(tables, stored.next())?,
                (Some(_), None) => self.stored(tables, stored.next())?,
                (at, Some((other, _))) => {
                    if at.as_ref() == Some(other) {
                        stored.next().transpose()?;
                    }
                    differs.next().and_then(|(_, record)| record)
                }
            };
            if let Some(record) = record {
                if records.len() == limit {
                    return Ok(Range {
                        records,
                        revision,
                        more: true,
                    });
                }
                records.push(record);
            }
        }
        Ok(Range {
            records,
            revision,
            more: false,
        })
    }

    fn stored(&self, tables: &Readable, found: Option<Found<'_>>) -> Result<Option<Record>, Fault> {
        let Some(found) = found else { return Ok(None) };
        tables.record(found?.1.value()).map(Some)
    }

    /// The first changes after a revision.
    pub(super) fn history(&self, after: Revision, prefix: Option<&str>) -> Result<Batch, StoreError> {
        match self.newest(after, prefix)? {
            Some(found) => Ok(found),
            None => self.older(after, prefix),
        }
    }

    /// Changes after a revision that the tail holds; `None`: they are in redb.
    fn newest(&self, after: Revision, prefix: Option<&str>) -> Result<Option<Batch>, StoreError> {
        let state = self.state();
        state.check(after)?;
        if after < self.in_redb() {
            return Ok(None);
        }
        let behind = state.tail.partition_point(|it| it.revision <= after);
        let batch: Vec<_> = state.tail.iter().skip(behind).take(BATCH).collect();
        let reached = batch.last().map_or(after, |it| it.revision);
        let wanted = batch
            .into_iter()
            .filter(|it| prefix.is_none_or(|prefix| *it.key.prefix == *prefix));
        if reached == after
            && let Some(closed) = state.closed()
        {
            return Err(closed);
        }
        Ok(Some((wanted.cloned().collect(), reached)))
    }

    /// Changes after a revision that redb holds.
    fn older(&self, after: Revision, prefix: Option<&str>) -> Result<Batch, StoreError> {
        let database = self.database()?;
        let read = || -> Result<Batch, Fault> {
            let tables = Readable::open(database.get())?;
            // Behind a gap that a crash left there is perhaps no write.
            let (mut changes, mut reached) = (Vec::new(), tables.meta.revision);
            for found in tables.log.range(after + 1..)? {
                let (revision, bytes) = found?;
                let revision = revision.value();
                if changes.len() == BATCH {
                    reached = revision - 1;
                    break;
                }
                let row = Row::decode(revision, bytes.value())
                    .map_err(|it| Fault::Damaged(format!("write {revision}: {it}")))?;
                if prefix.is_none_or(|prefix| *row.key.prefix == *prefix) {
                    changes.push(tables.change(revision, &row)?);
                }
            }
            Ok((changes, reached))
        };
        let path = self.directory.join(super::DATABASE);
        let found = guarded(&path, || read().map_err(|it| it.at(&path)));
        // Compacted meanwhile: what is missing then is no damage.
        self.state().check(after)?;
        found
    }
}

/// Changes, and the revision up to which they are all.
type Batch = (Vec<Change>, Revision);
/// An item of redb's table of objects.
type Found<'a> = Result<(redb::AccessGuard<'a, &'static [u8]>, redb::AccessGuard<'a, Revision>), redb::StorageError>;

/// See [`crate::Backend::watch`].
pub(super) fn watch(
    inner: Arc<Inner>,
    prefix: Option<String>,
    from: Revision,
) -> BoxStream<'static, Result<Vec<Change>, StoreError>> {
    let announced = inner.announced.subscribe();
    let start = Some((inner, announced, prefix, from));
    stream::unfold(start, |at| async move {
        let (inner, mut announced, prefix, mut after) = at?;
        loop {
            announced.borrow_and_update();
            let found = match inner.newest(after, prefix.as_deref()) {
                Ok(Some(found)) => Ok(found),
                Ok(None) => {
                    let (inner, prefix) = (Arc::clone(&inner), prefix.clone());
                    blocking(move || inner.older(after, prefix.as_deref())).await
                }
                Err(error) => Err(error),
            };
            match found {
                Err(error) => return Some((Err(error), None)),
                Ok((changes, reached)) if reached > after => {
                    after = reached;
                    if !changes.is_empty() {
                        return Some((Ok(changes), Some((inner, announced, prefix, after))));
                    }
                }
                // The sender is in the store, which this stream holds.
                Ok(_) => announced.changed().await.ok()?,
            }
        }
    })
    .boxed()
}
