//! Files that hold keys: readable by their owner alone, written whole or not at all.

use std::{
    fmt::Display,
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// What is wrong with keys or certificates on disk.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The disk would not.
    #[error("{what} {path}")]
    Io {
        /// As `reading`.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}: {reason}; restore it from a backup, or remove it to have a new one made")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate could not be made.
    #[error("making the certificate of {subject}: {reason}")]
    Issue {
        /// Whose.
        subject: String,
        /// Why.
        reason: String,
    },
}

impl PkiError {
    pub(crate) fn damaged(path: &Path, reason: impl Display) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn issue(subject: impl Into<String>, reason: impl Display) -> Self {
        Self::Issue {
            subject: subject.into(),
            reason: reason.to_string(),
        }
    }
}

fn io<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> PkiError + use<'a> {
    move |source| PkiError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

/// Makes a directory, with those above it, for its owner alone (0700).
pub(crate) fn make_directory(path: &Path) -> Result<(), PkiError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io("making directory", path))
}

/// The whole file; `None` if there is none.
pub(crate) fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io("reading", path)(error)),
    }
}

/// Writes a file that only its owner may read (0600): under another name, synced, then renamed.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<(), PkiError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!(".{name}.{}", uuid::Uuid::new_v4()));
    let written = (|| {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        // The rename itself must survive a power cut, or a token signed before it would be nobody's after.
        fs::File::open(directory)?.sync_all()
    })();
    written.map_err(|error| {
        // It may not exist; the first error is the one to tell.
        let _ = fs::remove_file(&temporary);
        io("writing", path)(error)
    })
}

/// Files of a directory with an extension, sorted.
pub(crate) fn list(directory: &Path, extension: &str) -> Result<Vec<PathBuf>, PkiError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(io("listing", directory))? {
        let path = entry.map_err(io("listing", directory))?.path();
        if path.extension().is_some_and(|it| it == extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
