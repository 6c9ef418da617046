//! Removing every trace of the eBPF dataplane, whoever left it.

use super::load::pin_root;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Pinned links: programs on interfaces and cgroups.
    pub links: usize,
    /// clsact filters on interfaces of this network namespace.
    pub filters: usize,
    /// Pinned maps.
    pub maps: usize,
}

/// Unpins all links and maps of every layout under `bpffs`; the kernel then detaches the programs and frees the maps.
/// Nothing there is no error. A failure is collected and the rest goes on.
pub fn cleanup(bpffs: &Path) -> (Removed, Vec<(PathBuf, io::Error)>) {
    let mut removed = Removed::default();
    let mut errors = Vec::new();
    let root = bpffs.join("fairlead");
    let layouts = match fs::read_dir(&root) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => Vec::new(),
    };
    for layout in layouts {
        // Links first: no program may run on maps that another agent has begun to replace.
        removed.links += remove_files(&layout.join("links"), &mut errors);
        removed.maps += remove_files(&layout.join("maps"), &mut errors);
        remove_dir(&layout, &mut errors);
    }
    remove_dir(&root, &mut errors);
    match super::attach::remove_filters() {
        Ok(filters) => removed.filters = filters,
        Err(error) => errors.push(("clsact filters".into(), error)),
    }
    if removed != Removed::default()
        && let Err(error) = super::mount::restore_loopback()
    {
        errors.push(("lo".into(), error));
    }
    (removed, errors)
}

/// Whether an agent of this layout has left state under `bpffs`.
pub fn state_exists(bpffs: &Path) -> bool {
    pin_root(bpffs).join("maps").exists()
}

fn remove_files(dir: &Path, errors: &mut Vec<(PathBuf, io::Error)>) -> usize {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let mut count = 0;
    for entry in entries.flatten() {
        match fs::remove_file(entry.path()) {
            Ok(()) => count += 1,
            Err(error) => errors.push((entry.path(), error)),
        }
    }
    remove_dir(dir, errors);
    count
}

fn remove_dir(dir: &Path, errors: &mut Vec<(PathBuf, io::Error)>) {
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => errors.push((dir.to_owned(), error)),
        _ => {}
    }
}
