//! Reads a container's log: what is there, and with `follow` what comes, through rotations, until the container ends.

use super::{
    follow::Watcher,
    rotated,
    select::{Options, Selector},
    tail::start_of_last,
};
use bytes::{Bytes, BytesMut};
use futures::{
    Stream,
    future::{BoxFuture, FutureExt as _},
};
use std::{
    fs::File,
    io::{self, Seek as _, SeekFrom},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{io::AsyncReadExt as _, time::Instant};

/// Asked whenever a followed log has nothing new: does the container still run?
pub type Alive = Arc<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>;

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
#[error("log {}: {source}", path.display())]
pub struct LogError {
    /// The file.
    pub path: PathBuf,
    /// What the system says.
    #[source]
    pub source: io::Error,
}

/// Bytes that are read at once.
const CHUNK: usize = 64 * 1024;
/// The runtime closes a container's log a moment before it says that the container ended: so long it is asked often.
const LAST_MOMENTS: Duration = Duration::from_secs(3);
/// How often, then.
const OFTEN: Duration = Duration::from_millis(100);
/// How often it is asked otherwise, in case an event was missed.
const SELDOM: Duration = Duration::from_secs(5);
/// How long a file that has a successor may still get lines, if it is never seen to be closed.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Opens a log. The stream ends where the file ends, with [`Options::follow`] when the container has ended too; dropping it
/// ends the reading.
///
/// # Errors
/// A file that is not there, or cannot be read.
pub async fn open(
    path: &Path,
    options: Options,
    alive: Alive,
) -> Result<impl Stream<Item = Result<Bytes, LogError>> + Send + use<>, LogError> {
    let name = path.to_owned();
    let opened = tokio::task::spawn_blocking(move || Reader::open(name, options, alive)).await;
    let reader = opened.unwrap_or_else(|error| Err(io::Error::other(error)));
    let reader = reader.map_err(|source| failed(path, source))?;
    let path = path.to_owned();
    Ok(futures::stream::try_unfold(reader, move |mut reader| {
        let path = path.clone();
        async move {
            let next = reader.next().await.map_err(|source| failed(&path, source))?;
            Ok(next.map(|bytes| (bytes, reader)))
        }
    }))
}

fn failed(path: &Path, source: io::Error) -> LogError {
    LogError {
        path: path.to_owned(),
        source,
    }
}

struct Reader {
    path: PathBuf,
    selector: Selector,
    file: tokio::fs::File,
    inode: u64,
    buffer: BytesMut,
    follow: Option<Follow>,
    finished: bool,
}

/// What following needs.
struct Follow {
    watcher: Watcher,
    alive: Alive,
    /// This file's writer has closed it, at this time.
    closed: Option<Instant>,
    /// This file was seen to have a successor, at this time.
    replaced: Option<Instant>,
    /// The container has ended: what is in the files now is all.
    ended: bool,
}

impl Reader {
    /// Blocks for as long as it takes to find where the last lines begin.
    fn open(path: PathBuf, options: Options, alive: Alive) -> io::Result<Self> {
        // Before the file is opened, so that nothing is missed.
        let watcher = options.follow.then(|| Watcher::new(&path)).transpose()?;
        let mut file = File::open(&path)?;
        let mut follow = watcher.map(|watcher| Follow {
            watcher,
            alive,
            closed: None,
            replaced: None,
            ended: false,
        });
        if let Some(follow) = &mut follow {
            follow.watcher.file(&file)?;
        }
        if let Some(lines) = options.tail_lines {
            let start = start_of_last(&mut file, lines)?;
            file.seek(SeekFrom::Start(start))?;
        }
        Ok(Self {
            inode: file.metadata()?.ino(),
            path,
            selector: Selector::new(options),
            file: tokio::fs::File::from_std(file),
            buffer: BytesMut::new(),
            follow,
            finished: false,
        })
    }

    /// The next bytes that were asked for; none: that was all.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if self.selector.is_done() || self.finished {
                return Ok(None);
            }
            let out = if self.read().await? {
                self.selector.feed(&std::mem::take(&mut self.buffer))
            } else {
                match self.at_end().await? {
                    Next::Look => continue,
                    Next::File(file) => self.change(file).await?,
                    Next::Over => {
                        self.finished = true;
                        self.selector.end_of_file()
                    }
                }
            };
            if !out.is_empty() {
                return Ok(Some(out));
            }
        }
    }

    /// Fills the buffer; false: there is nothing now.
    async fn read(&mut self) -> io::Result<bool> {
        self.buffer.clear();
        self.buffer.reserve(CHUNK);
        Ok(self.file.read_buf(&mut self.buffer).await? > 0)
    }

    /// The file is at its end: waits for whatever comes next.
    async fn at_end(&mut self) -> io::Result<Next> {
        let Some(follow) = &mut self.follow else {
            return Ok(Next::Over);
        };
        let now = Instant::now();
        if follow.replaced.is_none() {
            let current = tokio::fs::metadata(&self.path).await;
            let other = current.is_ok_and(|it| it.ino() != self.inode);
            follow.replaced = other.then_some(now);
            if other {
                return Ok(Next::Look);
            }
        }
        if let Some(since) = follow.replaced {
            if follow.closed.is_none() && !follow.ended && now.duration_since(since) < LAST_LINES {
                return follow.wait(since + LAST_LINES - now).await;
            }
            // If it is gone again by now, the next look will find out.
            follow.replaced = None;
            return successor(self.path.clone(), self.inode).await;
        }
        if follow.ended {
            return Ok(Next::Over);
        }
        let ending = follow.closed.is_some_and(|it| now.duration_since(it) < LAST_MOMENTS);
        follow.wait(if ending { OFTEN } else { SELDOM }).await
    }

    async fn change(&mut self, file: File) -> io::Result<Bytes> {
        let out = self.selector.end_of_file();
        self.inode = file.metadata()?.ino();
        if let Some(follow) = &mut self.follow {
            follow.watcher.file(&file)?;
            (follow.closed, follow.replaced) = (None, None);
        }
        self.file = tokio::fs::File::from_std(file);
        Ok(out)
    }
}

/// What to do at the end of a file.
enum Next {
    /// Read on.
    Look,
    /// Read this one.
    File(File),
    /// Nothing more will come.
    Over,
}

impl Follow {
    /// Waits for an event; without one for so long, asks whether the container still runs.
    async fn wait(&mut self, patience: Duration) -> io::Result<Next> {
        match tokio::time::timeout(patience, self.watcher.wait()).await {
            Ok(seen) => {
                if seen?.closed {
                    self.closed = Some(Instant::now());
                }
            }
            // What it wrote last may have come since the file was read: it is read once more.
            Err(_elapsed) => self.ended = !(self.alive)().await,
        }
        Ok(Next::Look)
    }
}

/// The file that came after the one with this inode: rotations may have happened faster than it was read.
async fn successor(path: PathBuf, inode: u64) -> io::Result<Next> {
    let find = move || {
        let rotated = rotated(&path)?;
        let known = rotated
            .iter()
            .position(|it| std::fs::metadata(it).is_ok_and(|it| it.ino() == inode));
        // One that is gone already was older than all that are left.
        let next = rotated.get(known.map_or(0, |it| it + 1)).unwrap_or(&path);
        match File::open(next) {
            Ok(file) => Ok(Next::File(file)),
            // Renamed or removed this moment: look again.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Next::Look),
            Err(error) => Err(error),
        }
    };
    let found = tokio::task::spawn_blocking(find).map(|it| it.unwrap_or_else(|error| Err(io::Error::other(error))));
    found.await
}
