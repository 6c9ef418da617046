//! One layer: a tar archive, the same bytes for the same files.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
};
use tar::{Builder, EntryType, Header};

/// Files of an image, in the order in which they were added. Owned by root, dated 1970, so that equal files make an equal
/// image.
pub struct Layer {
    tar: Builder<Vec<u8>>,
}

impl Default for Layer {
    fn default() -> Self {
        Self {
            tar: Builder::new(Vec::new()),
        }
    }
}

impl Layer {
    /// Adds a file. `path` is relative to the image's root; `mode` is the permission bits.
    ///
    /// # Errors
    /// A path that tar cannot hold.
    pub fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        let mut header = header(EntryType::Regular, mode);
        header.set_size(bytes.len() as u64);
        self.tar.append_data(&mut header, path, bytes)
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// As [`Layer::file`].
    pub fn directory(&mut self, path: &str, mode: u32) -> io::Result<()> {
        let path = format!("{}/", path.trim_end_matches('/'));
        self.tar
            .append_data(&mut header(EntryType::Directory, mode), path, io::empty())
    }

    /// Adds a symbolic link to `target`.
    ///
    /// # Errors
    /// As [`Layer::file`].
    pub fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.tar
            .append_link(&mut header(EntryType::Symlink, 0o777), path, target)
    }

    /// Adds what is below a directory of this machine, sorted by name. Devices, sockets and pipes are left out.
    ///
    /// # Errors
    /// What cannot be read, by its path.
    pub fn tree(&mut self, root: &Path) -> io::Result<()> {
        self.branch(root, "")
    }

    fn branch(&mut self, directory: &Path, below: &str) -> io::Result<()> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", directory.display()));
        let mut entries = fs::read_dir(directory)
            .map_err(named)?
            .collect::<io::Result<Vec<_>>>()
            .map_err(named)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                return Err(io::Error::other(format!(
                    "{}: its name is no UTF-8",
                    entry.path().display()
                )));
            };
            let path = if below.is_empty() {
                name.to_owned()
            } else {
                format!("{below}/{name}")
            };
            let meta = entry.metadata().map_err(named)?;
            let mode = meta.permissions().mode() & 0o7777;
            if meta.is_dir() {
                self.directory(&path, mode)?;
                self.branch(&entry.path(), &path)?;
            } else if meta.is_symlink() {
                let target = fs::read_link(entry.path()).map_err(named)?;
                self.link(&path, &target.to_string_lossy())?;
            } else if meta.is_file() {
                let mut header = header(EntryType::Regular, mode);
                header.set_size(meta.size());
                self.tar
                    .append_data(&mut header, &path, fs::File::open(entry.path()).map_err(named)?)?;
            }
        }
        Ok(())
    }

    /// The archive.
    pub(crate) fn finish(mut self) -> io::Result<Vec<u8>> {
        self.tar.finish()?;
        self.tar.into_inner()
    }
}

fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header
}
