//! [`EtcdDouble`]: a backend in memory with etcd's semantics, for tests.

use crate::{Backend, Change, Operation, Range, RangeQuery, Record, Revision, StoreError, Txn, backend::condition};
use futures::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

/// Most changes that a watch yields at once.
const BATCH: usize = 1_000;

/// A backend in memory with etcd's semantics: one revision per write, history until it is compacted, watches from any
/// revision that is kept. Nothing is durable. Clones share the same store.
#[derive(Clone, Debug)]
pub struct EtcdDouble {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Newest revision; `Revision::MAX` once closed.
    announced: watch::Sender<Revision>,
}

#[derive(Debug, Default)]
struct State {
    revision: Revision,
    /// The oldest revision that can be read.
    oldest: Revision,
    objects: BTreeMap<crate::Key, Record>,
    /// Every change after `oldest`.
    log: Vec<Change>,
    closed: bool,
}

impl Default for EtcdDouble {
    fn default() -> Self {
        Self::new()
    }
}

impl EtcdDouble {
    /// An empty store, before its first write.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                announced: watch::Sender::new(0),
            }),
        }
    }

    /// Ends every watch and refuses every write from now on.
    pub fn close(&self) {
        self.state().closed = true;
        self.shared.announced.send_replace(Revision::MAX);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn commit(&mut self, txn: Txn) -> Result<Change, StoreError> {
        if self.closed {
            return Err(StoreError::Closed("it was told to".into()));
        }
        let before = self.objects.get(&txn.key);
        condition(&txn, before)?;
        let revision = self.revision + 1;
        let before = before.cloned();
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
        match &now {
            Some(record) => drop(self.objects.insert(txn.key.clone(), record.clone())),
            None => drop(self.objects.remove(&txn.key)),
        }
        self.revision = revision;
        let change = Change {
            revision,
            now,
            before,
            key: txn.key,
        };
        self.log.push(change.clone());
        Ok(change)
    }

    fn check(&self, asked: Revision) -> Result<(), StoreError> {
        if asked < self.oldest {
            return Err(StoreError::Compacted {
                asked,
                oldest: self.oldest,
            });
        }
        if asked > self.revision {
            return Err(StoreError::Future {
                asked,
                newest: self.revision,
            });
        }
        Ok(())
    }

    fn range(&self, query: &RangeQuery) -> Result<Range, StoreError> {
        let revision = query.at.unwrap_or(self.revision);
        self.check(revision)?;
        let mut past = None;
        if revision < self.revision {
            let mut objects = self.objects.clone();
            for change in self.log.iter().rev().take_while(|it| it.revision > revision) {
                match &change.before {
                    Some(record) => drop(objects.insert(change.key.clone(), record.clone())),
                    None => drop(objects.remove(&change.key)),
                }
            }
            past = Some(objects);
        }
        let wanted = |key: &crate::Key| {
            query.prefix.as_ref().is_none_or(|prefix| **prefix == *key.prefix)
                && query.after.as_ref().is_none_or(|after| key > after)
        };
        let limit = if query.limit == 0 { usize::MAX } else { query.limit };
        let mut found = past
            .as_ref()
            .unwrap_or(&self.objects)
            .values()
            .filter(|it| wanted(&it.key));
        let records = found.by_ref().take(limit).cloned().collect();
        Ok(Range {
            records,
            revision,
            more: found.next().is_some(),
        })
    }

    fn changes(&self, prefix: Option<&str>, after: Revision) -> Result<(Vec<Change>, Revision), StoreError> {
        self.check(after)?;
        let behind = self.log.partition_point(|it| it.revision <= after);
        let batch: Vec<_> = self.log[behind..].iter().take(BATCH).collect();
        let reached = batch.last().map_or(after, |it| it.revision);
        let wanted = batch
            .into_iter()
            .filter(|it| prefix.is_none_or(|prefix| *it.key.prefix == *prefix));
        Ok((wanted.cloned().collect(), reached))
    }
}

impl Backend for EtcdDouble {
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Change, StoreError>> {
        async move {
            let change = self.state().commit(txn)?;
            // Not `send_replace`: another writer may have announced more already.
            self.shared.announced.send_if_modified(|it| {
                let newer = change.revision > *it;
                *it = change.revision.max(*it);
                newer
            });
            Ok(change)
        }
        .boxed()
    }

    fn range(&self, query: RangeQuery) -> BoxFuture<'_, Result<Range, StoreError>> {
        async move { self.state().range(&query) }.boxed()
    }

    fn watch(&self, prefix: Option<String>, from: Revision) -> BoxStream<'static, Result<Vec<Change>, StoreError>> {
        let announced = self.shared.announced.subscribe();
        let start = Some((self.clone(), announced, prefix, from));
        stream::unfold(start, |at| async move {
            let (store, mut announced, prefix, mut after) = at?;
            loop {
                announced.borrow_and_update();
                let found = {
                    let state = store.state();
                    state
                        .changes(prefix.as_deref(), after)
                        .map(|found| (found, state.closed))
                };
                match found {
                    Err(error) => return Some((Err(error), None)),
                    Ok(((changes, reached), _)) if reached > after => {
                        after = reached;
                        if !changes.is_empty() {
                            return Some((Ok(changes), Some((store, announced, prefix, after))));
                        }
                    }
                    Ok((_, true)) => return Some((Err(StoreError::Closed("it was told to".into())), None)),
                    // The sender is in the store, which this stream holds.
                    Ok(_) => announced.changed().await.ok()?,
                }
            }
        })
        .boxed()
    }

    fn history(&self, from: Revision) -> BoxFuture<'_, Result<(Vec<Change>, Revision), StoreError>> {
        async move { self.state().changes(None, from) }.boxed()
    }

    fn compact(&self, before: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let mut state = self.state();
            if before > state.revision {
                return Err(StoreError::Future {
                    asked: before,
                    newest: state.revision,
                });
            }
            if before > state.oldest {
                state.oldest = before;
                state.log.retain(|it| it.revision > before);
            }
            Ok(())
        }
        .boxed()
    }

    fn revision(&self) -> Revision {
        self.state().revision
    }

    /// Writes the objects as lines of `key value`, for people to look at.
    fn snapshot<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<Revision, StoreError>> {
        async move {
            let (records, revision) = {
                let state = self.state();
                (state.objects.values().cloned().collect::<Vec<_>>(), state.revision)
            };
            let write = || -> io::Result<()> {
                let mut file = std::fs::File::create_new(path)?;
                for record in records {
                    writeln!(file, "{} {}", record.key, String::from_utf8_lossy(&record.value))?;
                }
                file.sync_all()
            };
            write().map_err(|source| StoreError::Io {
                what: format!("writing the copy {}", path.display()),
                source,
            })?;
            Ok(revision)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Durability, Expect, Key};
    use bytes::Bytes;

    #[test]
    fn history_before_a_compaction_is_gone() {
        let mut state = State::default();
        let key = Key {
            prefix: "core/pods".into(),
            namespace: "a".into(),
            name: "b".into(),
        };
        for revision in 0..3 {
            let expect = if revision == 0 {
                Expect::Absent
            } else {
                Expect::At(revision)
            };
            let operation = Operation::Put(Bytes::from_static(b"{}"));
            state
                .commit(Txn {
                    key: key.clone(),
                    expect,
                    operation,
                    durability: Durability::Durable,
                })
                .unwrap();
        }
        state.oldest = 2;
        assert!(matches!(
            state.changes(None, 1),
            Err(StoreError::Compacted { asked: 1, oldest: 2 })
        ));
        assert!(matches!(
            state.changes(None, 4),
            Err(StoreError::Future { asked: 4, newest: 3 })
        ));
        assert_eq!(state.changes(None, 2).unwrap().0.len(), 1);
    }
}
