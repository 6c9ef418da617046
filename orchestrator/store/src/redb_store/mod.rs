//! [`RedbStore`]: the backend on the local disk. Writes are acknowledged from a write-ahead log (`wal.rs`) and reach redb in
//! the background; history and objects are read from redb and from the changes that it does not hold yet.
//!
//! One thread writes the log (`writer.rs`), one moves its changes into redb and forgets old history (`background.rs`).

mod background;
mod copy;
mod read;
mod row;
mod tables;
mod wal;
mod writer;

pub use copy::{Report, check, restore};

use crate::{Backend, Change, Range, RangeQuery, Revision, StoreError, Txn};
use futures::{FutureExt, future::BoxFuture, stream::BoxStream};
use std::{
    collections::VecDeque,
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use tables::{Meta, OpenFile};
use tokio::sync::{oneshot, watch};

/// Revisions that are set aside at once, so that none is given out twice after a crash.
const BLOCK: Revision = 10_000;
/// Name of redb's file in the store's directory.
const DATABASE: &str = "store.redb";
/// Bytes of redb's own cache: the objects are in memory already, in [`crate::Cache`].
const DATABASE_CACHE: usize = 16 << 20;

/// How a [`RedbStore`] behaves.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes of each of the two files of the write-ahead log. Writes wait when redb falls behind by both. A batch, and so
    /// the largest object, has room in half of one.
    pub log_bytes: u64,
    /// Writes reach redb after this time at the latest, when nothing urges them.
    pub checkpoint_after: Duration,
    /// Writes reach redb when their values take so many bytes.
    pub checkpoint_bytes: usize,
    /// How long history is kept; `None`: until [`Backend::compact`] is called.
    pub keep: Option<Duration>,
}

impl Default for Options {
    /// 16 MiB, 5 s, 4 MiB, 5 minutes.
    fn default() -> Self {
        Self {
            log_bytes: 16 << 20,
            checkpoint_after: Duration::from_secs(5),
            checkpoint_bytes: 4 << 20,
            keep: Some(Duration::from_secs(300)),
        }
    }
}

/// The backend on the local disk: a directory with redb's file and the two files of the write-ahead log. One process at a time
/// may hold it. Dropping or closing it waits for its threads.
pub struct RedbStore {
    inner: Arc<Inner>,
    commands: mpsc::Sender<writer::Command>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the threads and the readers share.
struct Inner {
    directory: PathBuf,
    options: Options,
    /// Taken out when the store closes, so that it can be opened again while someone still holds a watch.
    database: RwLock<Option<Arc<OpenFile>>>,
    state: Mutex<State>,
    /// The state changed: a checkpoint is wanted or done, a compaction is asked for, the store closes.
    changed: Condvar,
    /// Newest revision; `Revision::MAX` once closed.
    announced: watch::Sender<Revision>,
    /// Newest revision that redb holds.
    in_redb: AtomicU64,
}

struct State {
    /// Newest revision that was acknowledged.
    published: Revision,
    /// Revisions up to here may be given out.
    reserved: Revision,
    /// The oldest revision that can be read.
    oldest: Revision,
    /// See [`Backend::lost`].
    lost: Vec<(Revision, Revision)>,
    /// Acknowledged changes that redb does not hold yet.
    tail: VecDeque<Change>,
    tail_bytes: usize,
    /// Someone waits for redb to hold this revision.
    wanted: Revision,
    /// Asked for, and not done: forget history before this.
    compactions: VecDeque<(Revision, oneshot::Sender<Result<(), StoreError>>)>,
    /// The writer has ended; what is in the tail is all there will be.
    writer_ended: bool,
    /// Why the store is closed.
    closed: Option<String>,
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, at_most: Duration) -> MutexGuard<'a, State> {
        self.changed
            .wait_timeout(state, at_most)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    /// Refuses everything from now on.
    fn close(&self, reason: &str) {
        let mut state = self.state();
        if state.closed.is_none() {
            state.closed = Some(reason.into());
        }
        drop(state);
        self.changed.notify_all();
        self.announced.send_replace(Revision::MAX);
    }

    fn database(&self) -> Result<Arc<OpenFile>, StoreError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        database
            .clone()
            .ok_or_else(|| StoreError::Closed("it has shut down".into()))
    }

    /// Newest revision that redb holds.
    fn in_redb(&self) -> Revision {
        self.in_redb.load(Ordering::Acquire)
    }
}

impl State {
    /// Whether everything after this revision is kept.
    fn check(&self, asked: Revision) -> Result<(), StoreError> {
        if asked < self.oldest {
            return Err(StoreError::Compacted {
                asked,
                oldest: self.oldest,
            });
        }
        if asked > self.published {
            return Err(StoreError::Future {
                asked,
                newest: self.published,
            });
        }
        match self.lost.iter().find(|(first, last)| (*first..=*last).contains(&asked)) {
            Some((_, last)) => Err(StoreError::Compacted {
                asked,
                oldest: last + 1,
            }),
            None => Ok(()),
        }
    }

    fn closed(&self) -> Option<StoreError> {
        self.closed.as_ref().map(|reason| StoreError::Closed(reason.clone()))
    }
}

impl RedbStore {
    /// Opens the store in a directory, made if it is not there, and repeats what the log holds from before a crash.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when acknowledged writes are missing or redb's file does not hold together;
    /// [`StoreError::Io`] when another process has it, or the disk fails.
    pub fn open(directory: &Path, options: Options) -> Result<Self, StoreError> {
        std::fs::create_dir_all(directory).map_err(|source| StoreError::Io {
            what: format!("making the store's directory {}", directory.display()),
            source,
        })?;
        let (mut database, meta) = tables::open_store(directory)?;
        if meta.reserved > meta.revision {
            // It was not closed. Every row's own checksum is read anyway; this is about what lies between them.
            tables::verify(&mut database, &directory.join(DATABASE))?;
        }
        let recovered = wal::recover(directory)?;
        let meta = tables::replay(database.get(), &directory.join(DATABASE), meta, &recovered)?;
        let wal = wal::Wal::create(directory, options.log_bytes, meta.generation, meta.revision)?;
        Self::start(directory, options, database, &meta, wal)
    }

    fn start(
        directory: &Path,
        options: Options,
        database: OpenFile,
        meta: &Meta,
        wal: wal::Wal,
    ) -> Result<Self, StoreError> {
        let inner = Arc::new(Inner {
            directory: directory.to_owned(),
            options,
            database: RwLock::new(Some(Arc::new(database))),
            state: Mutex::new(State {
                published: meta.revision,
                reserved: meta.reserved,
                oldest: meta.oldest,
                lost: meta.lost.clone(),
                tail: VecDeque::new(),
                tail_bytes: 0,
                wanted: 0,
                compactions: VecDeque::new(),
                writer_ended: false,
                closed: None,
            }),
            changed: Condvar::new(),
            announced: watch::Sender::new(meta.revision),
            in_redb: AtomicU64::new(meta.revision),
        });
        let (commands, received) = mpsc::channel();
        let writer = writer::Writer::new(Arc::clone(&inner), received, wal, meta);
        let background = background::Background::new(Arc::clone(&inner), meta);
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let what = || format!("starting the thread {name} of the store");
            thread::Builder::new()
                .name(name.into())
                .spawn(work)
                .map_err(|source| StoreError::Io { what: what(), source })
        };
        // If the second cannot be started, the first ends with the channel of commands.
        let threads = vec![
            spawn("store-writer", Box::new(|| writer.run()))?,
            spawn("store-redb", Box::new(|| background.run()))?,
        ];
        Ok(Self {
            inner,
            commands,
            threads: Mutex::new(threads),
        })
    }

    /// Makes everything durable and ends. Every call from now on says [`StoreError::Closed`].
    pub fn close(&self) {
        // An error: the writer has ended already.
        let _ = self.commands.send(writer::Command::Close);
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A panicked thread has closed the store on its way out.
            let _ = thread.join();
        }
        drop(
            self.inner
                .database
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
    }

    /// The directory it is in.
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbStore")
            .field("directory", &self.inner.directory)
            .finish_non_exhaustive()
    }
}

impl Backend for RedbStore {
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Change, StoreError>> {
        async move {
            let closed = || {
                let reason = self.inner.state().closed();
                reason.unwrap_or_else(|| StoreError::Closed("it is shutting down".into()))
            };
            let (reply, answer) = oneshot::channel();
            self.commands
                .send(writer::Command::Commit(Box::new(txn), reply))
                .map_err(|_| closed())?;
            answer.await.map_err(|_| closed())?
        }
        .boxed()
    }

    fn range(&self, query: RangeQuery) -> BoxFuture<'_, Result<Range, StoreError>> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.range(&query))
    }

    fn watch(&self, prefix: Option<String>, from: Revision) -> BoxStream<'static, Result<Vec<Change>, StoreError>> {
        read::watch(Arc::clone(&self.inner), prefix, from)
    }

    fn history(&self, from: Revision) -> BoxFuture<'_, Result<(Vec<Change>, Revision), StoreError>> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.history(from, None))
    }

    fn compact(&self, before: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let (reply, answer) = oneshot::channel();
            {
                let mut state = self.inner.state();
                if before > state.published {
                    return Err(StoreError::Future {
                        asked: before,
                        newest: state.published,
                    });
                }
                if let Some(closed) = state.closed() {
                    return Err(closed);
                }
                state.compactions.push_back((before, reply));
            }
            self.inner.changed.notify_all();
            let closed = |_| StoreError::Closed("it shut down during the compaction".into());
            answer.await.map_err(closed)?
        }
        .boxed()
    }

    fn revision(&self) -> Revision {
        self.inner.state().published
    }

    fn lost(&self) -> Vec<(Revision, Revision)> {
        self.inner.state().lost.clone()
    }

    fn snapshot<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<Revision, StoreError>> {
        let (inner, path) = (Arc::clone(&self.inner), path.to_owned());
        blocking(move || inner.copy_to(&path))
    }
}

/// Runs what waits for the disk where it may.
fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> BoxFuture<'static, Result<T, StoreError>> {
    async move {
        let died = |error| StoreError::Closed(format!("a read did not end: {error}"));
        tokio::task::spawn_blocking(work).await.map_err(died)?
    }
    .boxed()
}
