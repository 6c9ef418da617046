//! A folder of YAML and JSON files as a source, followed with inotify.
//!
//! Read are `*.yaml`, `*.yml` and `*.json` directly in the folder, not hidden ones, with any number of documents or
//! Lists each: Services, EndpointSlices, and the Node of our own name. Other kinds are ignored. Edits in place, atomic
//! renames, ConfigMap volumes and the replacement of the whole folder are followed; a symlink to a file elsewhere is
//! read again only when the link itself changes.

mod folder;
mod json;
mod reader;
mod reports;
mod watch;

pub use self::folder::{FileState, Folder};

use self::watch::{Look, Watch};
use super::{BACKLOG, Events, SourceError};
use crate::{error::Skipped, model::Event};
use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::mpsc;

/// Largest file that is read, bytes: some 100 000 services. A larger one is a mistake, not a manifest.
const MAX_FILE: u64 = 512 * 1024 * 1024;

/// Reads a folder and follows it; needs a tokio runtime. The first batch is complete, from [`Event::Init`] to
/// [`Event::InitDone`]; each further one is all that changed together.
///
/// `node_name` picks our own Node among those in the folder; without one there is simply none.
///
/// # Errors
/// If the folder cannot be read or inotify is out of resources. Later trouble is reported as [`Event::Skipped`], and
/// what was read before stays.
pub fn follow(dir: PathBuf, node_name: Arc<str>) -> Result<Events, SourceError> {
    let fail = |doing, dir: &Path, source: io::Error| SourceError::Folder {
        dir: dir.to_owned(),
        doing,
        remedy: remedy(&source),
        source,
    };
    // First watch, then read: whatever changes in between is read again.
    let watch = Watch::new(&dir).map_err(|source| fail("follow", &dir, source))?;
    fs::read_dir(&dir).map_err(|source| fail("read", &dir, source))?;
    let (events, receiver) = mpsc::channel(BACKLOG);
    tokio::spawn(run(dir, Folder::new(node_name), watch, events));
    Ok(receiver)
}

fn remedy(err: &io::Error) -> &'static str {
    match err.raw_os_error() {
        Some(libc::ENOENT) => "; create it, or name another one with --manifests",
        Some(libc::EMFILE) => "; raise the sysctl fs.inotify.max_user_instances",
        Some(libc::ENOSPC) => "; raise the sysctl fs.inotify.max_user_watches",
        _ => "",
    }
}

async fn run(dir: PathBuf, mut folder: Folder, mut watch: Watch, events: mpsc::Sender<Vec<Event>>) {
    let mut look = Look {
        all: true,
        names: BTreeSet::new(),
    };
    let mut first = true;
    loop {
        let reading = {
            let dir = dir.clone();
            tokio::task::spawn_blocking(move || {
                let batch = load(&dir, &look, &mut folder);
                (folder, batch)
            })
        };
        let mut batch;
        (folder, batch) = match reading.await {
            Ok(done) => done,
            Err(err) => return tracing::error!(dir = %dir.display(), %err, "manifest folder is no longer followed"),
        };
        if std::mem::take(&mut first) {
            batch.insert(0, Event::Init);
            batch.push(Event::InitDone);
        }
        if !batch.is_empty() && events.send(batch).await.is_err() {
            return;
        }
        look = tokio::select! {
            biased;
            () = events.closed() => return,
            changed = watch.changed() => match changed {
                Ok(look) => look,
                Err(err) => {
                    return tracing::error!(dir = %dir.display(), %err, "manifest folder is no longer followed");
                }
            },
        };
    }
}

/// Reads what may have changed, and returns the differences. Blocks on the file system.
fn load(dir: &Path, look: &Look, folder: &mut Folder) -> Vec<Event> {
    let mut names: BTreeSet<Arc<str>> = BTreeSet::new();
    // Names that are not UTF-8 are nobody's manifests.
    names.extend(look.names.iter().filter_map(|name| name.to_str()).map(Arc::from));
    let mut events = Vec::new();
    if look.all {
        let list = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        match list {
            Ok(entries) => {
                events = folder.trouble(None);
                names.extend(
                    entries
                        .iter()
                        .filter_map(|entry| entry.file_name().to_str().map(Arc::from)),
                );
                names.extend(folder.files().cloned());
            }
            Err(err) => {
                // Losing the folder is no reason to stop serving what it said.
                let object = format!("manifest folder {}", dir.display());
                let reason = format!("{err}; what it held stays until it can be read again");
                events = folder.trouble(Some(Skipped {
                    object,
                    field: String::new(),
                    reason,
                }));
                names.clear();
            }
        }
    }
    let files = names.into_iter().filter(|name| Folder::reads(name)).map(|name| {
        let state = read(&dir.join(&*name));
        (name, state)
    });
    events.extend(folder.update_sorted(files));
    events
}

fn read(path: &Path) -> FileState {
    let read = || -> io::Result<FileState> {
        let meta = fs::metadata(path)?;
        if !meta.is_file() {
            return Ok(FileState::Gone);
        }
        // Non-blocking, in case a pipe has taken the file's place since.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        // With one byte to spare, reading finds the end without growing.
        let mut bytes = Vec::with_capacity(meta.len().min(MAX_FILE) as usize + 1);
        file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        Ok(if bytes.len() as u64 > MAX_FILE {
            FileState::Unreadable(format!("larger than {} MiB; split it", MAX_FILE >> 20))
        } else {
            FileState::Content(bytes)
        })
    };
    match read() {
        Ok(state) => state,
        Err(err) if err.kind() == io::ErrorKind::NotFound => FileState::Gone,
        Err(err) => FileState::Unreadable(format!("cannot be read: {err}; what it held before stays")),
    }
}

#[cfg(test)]
#[path = "manifests/follow_tests.rs"]
mod tests;
