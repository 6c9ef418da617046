//! inotify on a folder: which of its files may have changed.

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
};
use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs, io, mem,
    os::{
        fd::{AsFd, AsRawFd, RawFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};
use tokio::io::{Interest, unix::AsyncFd};

/// What to look at again.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// The whole folder: it was replaced, or a ConfigMap volume was swapped, or events were lost.
    pub(super) all: bool,
    /// These names.
    pub(super) names: BTreeSet<OsString>,
}

/// Follows a folder through edits, renames, symlink swaps and its own replacement.
#[derive(Debug)]
pub(super) struct Watch {
    inotify: AsyncFd<Fd>,
    dir: PathBuf,
    /// `None` while the folder is gone.
    inside: Option<WatchDescriptor>,
    /// The folder that holds ours, and our name there: how a replacement is noticed.
    above: Option<(WatchDescriptor, OsString)>,
}

#[derive(Debug)]
struct Fd(Inotify);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// `IN_MODIFY` is left out on purpose: a file is read when its writer closes it, not half written. `IN_ATTRIB` is in
/// because it may make a file readable.
fn inside_mask() -> AddWatchFlags {
    AddWatchFlags::IN_ONLYDIR
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
}

fn above_mask() -> AddWatchFlags {
    AddWatchFlags::IN_ONLYDIR | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVE
}

fn gone_mask() -> AddWatchFlags {
    AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_UNMOUNT | AddWatchFlags::IN_IGNORED
}

impl Watch {
    /// Begins to watch; changes from here on are seen. Needs a tokio runtime.
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        let dir = std::path::absolute(dir)?;
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let inside = Some(inotify.add_watch(&dir, inside_mask())?);
        let above = match (dir.parent(), dir.file_name()) {
            (Some(parent), Some(name)) => Some((inotify.add_watch(parent, above_mask())?, name.to_owned())),
            _ => None,
        };
        // SAFETY: the descriptor is owned by the value, which stays inside the `AsyncFd` and never changes it.
        let inotify = unsafe { AsyncFd::register_with_interest(Fd(inotify), Interest::READABLE) }?;
        Ok(Self {
            inotify,
            dir,
            inside,
            above,
        })
    }

    /// Waits for changes and returns all that are known by then. Safe to cancel.
    pub(super) async fn changed(&mut self) -> io::Result<Look> {
        loop {
            let mut ready = self.inotify.readable().await?;
            let mut events = Vec::new();
            loop {
                match ready.get_inner().0.read_events() {
                    Ok(more) => events.extend(more),
                    Err(Errno::EAGAIN) => break,
                    Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            ready.clear_ready();
            drop(ready);
            let mut look = Look::default();
            let mut lost = false;
            for event in events {
                lost |= self.judge(event, &mut look);
            }
            if lost {
                self.rearm();
                look.all = true;
            }
            if look != Look::default() {
                return Ok(look);
            }
        }
    }

    /// Takes one event in; whether the watch itself must be renewed.
    fn judge(&self, event: InotifyEvent, look: &mut Look) -> bool {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return true;
        }
        if let Some((above, name)) = &self.above
            && *above == event.wd
            && event.name.as_ref() == Some(name)
        {
            return true;
        }
        if self.inside != Some(event.wd) {
            return false;
        }
        if event.mask.intersects(gone_mask()) {
            return true;
        }
        let Some(name) = event.name else { return false };
        if name.as_encoded_bytes().starts_with(b"..") {
            // A ConfigMap volume: every file is a symlink through `..data`, which was just swapped.
            look.all = true;
        } else if !(event.mask.contains(AddWatchFlags::IN_CREATE) && self.being_written(&name)) {
            look.names.insert(name);
        }
        false
    }

    /// A new regular file has a writer, and closing it is an event of its own. A link has its content already.
    fn being_written(&self, name: &OsString) -> bool {
        fs::symlink_metadata(self.dir.join(name)).is_ok_and(|meta| meta.is_file() && meta.nlink() == 1)
    }

    fn rearm(&mut self) {
        let inotify = &self.inotify.get_ref().0;
        if let Some(old) = mem::take(&mut self.inside) {
            // An error means that the kernel has dropped the watch already.
            let _ = inotify.rm_watch(old);
        }
        match inotify.add_watch(&self.dir, inside_mask()) {
            Ok(watch) => self.inside = Some(watch),
            Err(errno) => tracing::warn!(dir = %self.dir.display(), %errno, "manifest folder cannot be followed"),
        }
    }
}
