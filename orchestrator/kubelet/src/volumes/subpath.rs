//! `subPath`: one file or directory of a volume, found without following a link out of the volume.
//!
//! Containers write to volumes; a link that one of them puts there must not show another one a file of the node. So the
//! path is opened by the kernel with links kept below the volume, and what was opened, not its name, is mounted.

use super::kernel;
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, open, openat2},
    io::Errno,
};
use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Component, Path, PathBuf},
};

/// Mounts `sub_path` of the volume at `volume` on `target`, and returns the target. What does not exist becomes a
/// directory. A target that shows the same already stays; one that shows something else, as before an update, is replaced.
///
/// # Errors
/// A path that leads out of the volume; the disk's errors.
pub(crate) fn mount(volume: &Path, sub_path: &str, target: &Path) -> io::Result<PathBuf> {
    let source = open_below(volume, sub_path)?;
    let stat = fstat(&source)?;
    if let Ok(there) = fs::symlink_metadata(target) {
        let mounted = kernel::is_mount(target)?;
        if mounted && (there.dev(), there.ino()) == (stat.st_dev, stat.st_ino) {
            return Ok(target.to_owned());
        }
        if mounted {
            kernel::unmount_one(target)?;
        }
        // What is left is ours, and empty.
        if fs::symlink_metadata(target)?.is_dir() {
            fs::remove_dir(target)?;
        } else {
            fs::remove_file(target)?;
        }
    }
    let parent = target.parent().unwrap_or(target);
    fs::DirBuilder::new().recursive(true).mode(0o750).create(parent)?;
    if FileType::from_raw_mode(stat.st_mode).is_dir() {
        fs::DirBuilder::new().mode(0o750).create(target)?;
    } else {
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o640)
            .open(target)?;
    }
    kernel::bind(&source, target)?;
    Ok(target.to_owned())
}

fn open_below(volume: &Path, sub_path: &str) -> io::Result<OwnedFd> {
    let escapes = || io::Error::other(format!("subPath {sub_path:?} leads out of the volume"));
    let parts: Vec<_> = Path::new(sub_path)
        .components()
        .filter(|it| *it != Component::CurDir)
        .collect();
    if parts.iter().any(|it| !matches!(it, Component::Normal(_))) {
        return Err(escapes());
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = open(volume, flags, Mode::empty())?;
    let mode = Mode::from_raw_mode(fstat(&root)?.st_mode & 0o7777);
    let below = |path: &Path| {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        openat2(&root, path, flags, Mode::empty(), resolve)
    };
    let mut path = PathBuf::new();
    let mut at: Option<OwnedFd> = None;
    for part in parts {
        path.push(part);
        let mut found = below(&path);
        if found.as_ref().is_err_and(|it| *it == Errno::NOENT) {
            let parent = at.as_ref().map_or(root.as_fd(), AsFd::as_fd);
            match mkdirat(parent, part.as_os_str(), Mode::from_raw_mode(0o755)) {
                // A link that leads to nothing is there too; the next look says so.
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            found = below(&path);
            if let Ok(made) = &found {
                // As open as the volume, whatever our umask is.
                let made = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(made));
                rustix::fs::chmodat(CWD, made, mode, rustix::fs::AtFlags::empty())?;
            }
        }
        at = Some(match found {
            Err(Errno::XDEV | Errno::LOOP) => return Err(escapes()),
            found => found?,
        });
    }
    match at {
        Some(at) => Ok(at),
        None => Ok(below(Path::new("."))?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::kernel::tests::Scratch;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn volume() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("d/e")).unwrap();
        fs::write(dir.path().join("d/e/file"), "inside").unwrap();
        symlink("d/e", dir.path().join("short")).unwrap();
        symlink("../..", dir.path().join("d/up")).unwrap();
        symlink("/etc", dir.path().join("abs")).unwrap();
        symlink("/etc/passwd", dir.path().join("d/passwd")).unwrap();
        symlink("nowhere", dir.path().join("dangling")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        dir
    }

    fn read(fd: &OwnedFd) -> String {
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(fd));
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn paths_below_the_volume_are_found() {
        let dir = volume();
        for path in ["d/e/file", "short/file", "d/../d/e/file", "./d/e/./file"] {
            match open_below(dir.path(), path) {
                Ok(found) => assert_eq!(read(&found), "inside", "{path}"),
                Err(_) => assert!(path.contains(".."), "{path}"),
            }
        }
        assert!(open_below(dir.path(), "").is_ok());
    }

    #[test]
    fn no_link_leads_out() {
        let dir = volume();
        for path in [
            "abs",
            "abs/passwd",
            "d/passwd",
            "d/up/etc",
            "d/up",
            "../x",
            "/etc/passwd",
            "d/../../x",
            "loop",
            "loop/x",
        ] {
            let error = open_below(dir.path(), path).unwrap_err();
            assert!(error.to_string().contains("leads out of the volume"), "{path}: {error}");
        }
        assert!(open_below(dir.path(), "dangling").is_err());
        assert!(open_below(dir.path(), "d/e/file/below").is_err());
        assert!(!dir.path().join("nowhere").exists());
    }

    #[test]
    fn what_is_missing_becomes_a_directory_as_open_as_the_volume() {
        let dir = volume();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        open_below(dir.path(), "short/new/one").unwrap();
        let made = fs::metadata(dir.path().join("d/e/new/one")).unwrap();
        assert!(made.is_dir());
        assert_eq!(made.permissions().mode() & 0o7777, 0o777);
    }

    #[test]
    fn what_was_found_is_shown_at_the_target_until_it_changes() {
        let Some(scratch) = Scratch::new() else { return };
        let dir = volume();
        let target = scratch.path().join("sub/0");
        for _ in 0..2 {
            mount(dir.path(), "d/e/file", &target).unwrap();
            assert_eq!(fs::read_to_string(&target).unwrap(), "inside");
        }
        fs::write(dir.path().join("d/e/new"), "new").unwrap();
        fs::rename(dir.path().join("d/e/new"), dir.path().join("d/e/file")).unwrap();
        assert_eq!(
            fs::read_to_string(&target).unwrap(),
            "inside",
            "a subPath does not follow"
        );
        mount(dir.path(), "d/e/file", &target).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "new");
        mount(dir.path(), "d/e", &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "new");
        kernel::unmount_below(&target, &scratch.path()).unwrap();
        mount(dir.path(), "d/e", &target).unwrap();
        assert!(mount(dir.path(), "abs", &target).is_err());
    }
}
