//! Tells a reader at the end of a log file when to look again.

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    path::Path,
};
use tokio::io::{Interest, unix::AsyncFd};

/// What happened to the file that is read, or beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Who wrote the file has closed it: the container ended, or the runtime took a new file.
    pub(super) closed: bool,
}

/// What tokio can wait for; nix's type only lends its descriptor.
struct Events(Inotify);

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Watches one file, by its inode, and names that come and go in its directory.
pub(super) struct Watcher {
    inotify: AsyncFd<Events>,
    file: Option<WatchDescriptor>,
}

impl Watcher {
    /// Watches the directory of `path`.
    ///
    /// # Errors
    /// As the system says: too many watches, no such directory.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let names = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_MOVED_FROM;
        inotify.add_watch(path.parent().unwrap_or(Path::new("/")), names)?;
        // SAFETY: `Events` owns its descriptor, always gives the same one, and closes it when it is dropped.
        let inotify = unsafe { AsyncFd::register_with_interest(Events(inotify), Interest::READABLE) };
        Ok(Self {
            inotify: inotify.map_err(|error| io::Error::other(error.to_string()))?,
            file: None,
        })
    }

    /// Watches this file instead of the one before, wherever its name goes.
    ///
    /// # Errors
    /// As the system says.
    pub(super) fn file(&mut self, file: &File) -> io::Result<()> {
        if let Some(old) = self.file.take() {
            // The watch of a file that was deleted is gone already.
            let _ = self.inotify.get_ref().0.rm_watch(old);
        }
        let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        let changes = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE;
        self.file = Some(self.inotify.get_ref().0.add_watch(path.as_str(), changes)?);
        Ok(())
    }

    /// Waits until something happened; several things at once are told together.
    ///
    /// # Errors
    /// As the system says.
    pub(super) async fn wait(&mut self) -> io::Result<Seen> {
        loop {
            let mut ready = self.inotify.readable().await?;
            let events = match ready.try_io(|it| it.get_ref().0.read_events().map_err(io::Error::from)) {
                Ok(events) => events?,
                Err(_would_block) => continue,
            };
            let closed = events
                .iter()
                .any(|it| Some(it.wd) == self.file && it.mask.contains(AddWatchFlags::IN_CLOSE_WRITE));
            return Ok(Seen { closed });
        }
    }
}
