//! Mounts: memory as a directory, one directory at the place of another, and what is mounted below a directory.

use super::layout::is_below;
use rustix::{
    fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx},
    io::Errno,
    mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount},
};
use std::{
    ffi::{CString, OsString},
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
};

/// Whether something is mounted exactly there. The kernel says so since 5.8.
pub(crate) fn is_mount(path: &Path) -> io::Result<bool> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let stat = statx(CWD, path, flags, StatxFlags::BASIC_STATS)?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// How a directory in memory is to be.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Permissions of the directory itself.
    pub(crate) mode: u32,
    /// Its group.
    pub(crate) gid: Option<u32>,
    /// Most that it may hold, in bytes; `None` is half of the node's memory.
    pub(crate) size: Option<i64>,
    /// Whether it holds what must never be on disk, and no devices or programs of other users.
    pub(crate) secret: bool,
}

/// Mounts memory on a directory, unless it is already.
pub(crate) fn mount_memory(dir: &Path, memory: Memory) -> io::Result<()> {
    if is_mount(dir)? {
        return Ok(());
    }
    let mut options = format!("mode={:04o}", memory.mode);
    if let Some(gid) = memory.gid {
        options += &format!(",gid={gid}");
    }
    if let Some(size) = memory.size {
        options += &format!(",size={}", size.max(1));
    }
    let flags = if memory.secret {
        MountFlags::NOSUID | MountFlags::NODEV
    } else {
        MountFlags::empty()
    };
    let attempt = |options: String| {
        let options = CString::new(options)?;
        io::Result::Ok(mount("tmpfs", dir, "tmpfs", flags, Some(options.as_c_str()))?)
    };
    // Kernels before 6.4 do not know the option.
    match memory.secret.then(|| attempt(format!("{options},noswap"))) {
        Some(Ok(())) => Ok(()),
        _ => attempt(options),
    }
}

/// Shows an opened file or directory at another place too.
pub(crate) fn bind(source: &OwnedFd, target: &Path) -> io::Result<()> {
    // The file itself, whatever its name leads to by now.
    let source = format!("/proc/self/fd/{}", source.as_raw_fd());
    Ok(mount_bind(source, target)?)
}

/// Unmounts what is mounted exactly there.
pub(crate) fn unmount_one(target: &Path) -> io::Result<()> {
    Ok(unmount(target, UnmountFlags::NOFOLLOW)?)
}

/// Unmounts all that is mounted on or below `dir`, which must itself be below `root`, the youngest first.
///
/// # Errors
/// What cannot be unmounted, by path; the rest is unmounted all the same.
pub(crate) fn unmount_below(dir: &Path, root: &Path) -> io::Result<()> {
    if !is_below(dir, root) {
        return Err(io::Error::other(format!(
            "{} is not below {}",
            dir.display(),
            root.display()
        )));
    }
    // A mount on top of another shows only the younger one's place to the next look.
    let mut failed = Vec::new();
    for path in mounts_on_or_below(dir, &fs::read("/proc/self/mountinfo")?) {
        match unmount(&path, UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
            Err(error) => failed.push(format!("{}: {error}", path.display())),
        }
    }
    let left = mounts_on_or_below(dir, &fs::read("/proc/self/mountinfo")?);
    if failed.is_empty() && left.is_empty() {
        return Ok(());
    }
    failed.extend(left.iter().map(|it| format!("{} is mounted still", it.display())));
    Err(io::Error::other(format!("cannot unmount {}", failed.join(", "))))
}

/// Places in the text of a mountinfo, the youngest first. Source: proc(5), the fifth field.
fn mounts_on_or_below(dir: &Path, mountinfo: &[u8]) -> Vec<PathBuf> {
    let places = mountinfo.split(|it| *it == b'\n').filter_map(|line| {
        let place = line.split(|it| *it == b' ').nth(4)?;
        Some(PathBuf::from(OsString::from_vec(unescaped(place))))
    });
    let mut out: Vec<_> = places.filter(|it| it.starts_with(dir)).collect();
    out.reverse();
    out
}

/// Blanks and the like are octal numbers.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let digits = rest
            .get(1..4)
            .filter(|it| it.iter().all(|it| (b'0'..=b'7').contains(it)));
        match digits {
            Some(digits) if *first == b'\\' => {
                out.push(
                    digits
                        .iter()
                        .fold(0u8, |sum, it| sum.wrapping_mul(8).wrapping_add(it - b'0')),
                );
                rest = &rest[4..];
            }
            _ => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A directory that is unmounted and removed at the end, for those who may mount.
    pub(crate) struct Scratch(pub(crate) tempfile::TempDir);

    impl Scratch {
        /// `None`, and said so, without the right to mount.
        pub(crate) fn new() -> Option<Self> {
            let it = Self(tempfile::tempdir().unwrap());
            let probe = it.path().join("probe");
            fs::create_dir(&probe).unwrap();
            if let Err(error) = mount_memory(&probe, Memory::default()) {
                eprintln!("SKIPPED: cannot mount: {error}");
                return None;
            }
            unmount_one(&probe).unwrap();
            fs::remove_dir(&probe).unwrap();
            Some(it)
        }

        pub(crate) fn path(&self) -> PathBuf {
            fs::canonicalize(self.0.path()).unwrap()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let info = fs::read("/proc/self/mountinfo").unwrap_or_default();
            for path in mounts_on_or_below(&self.path(), &info) {
                let _ = unmount_one(&path);
            }
        }
    }

    #[test]
    fn places_of_mounts_are_read() {
        let info = b"1 0 8:1 / / rw - ext4 /dev/sda rw\n\
            2 1 0:3 / /k/pods/a rw shared:1 - tmpfs tmpfs rw\n\
            3 1 0:3 / /k/pods/a/my\\040dir\\134x rw - tmpfs tmpfs rw\n\
            4 1 0:3 / /k/pods/ab rw - tmpfs tmpfs rw\nbroken\n";
        let places = mounts_on_or_below(Path::new("/k/pods/a"), info);
        assert_eq!(places, [Path::new("/k/pods/a/my dir\\x"), Path::new("/k/pods/a")]);
        assert_eq!(unescaped(b"a\\04"), b"a\\04");
    }

    #[test]
    fn memory_is_mounted_once_and_only_what_is_below_is_unmounted() {
        let Some(scratch) = Scratch::new() else { return };
        let root = scratch.path();
        let (ours, other) = (root.join("pods/a"), root.join("other"));
        for dir in [&ours, &other] {
            fs::create_dir_all(dir).unwrap();
            let memory = Memory {
                mode: 0o2775,
                gid: Some(77),
                size: Some(1 << 20),
                secret: true,
            };
            mount_memory(dir, memory).unwrap();
            mount_memory(dir, memory).unwrap();
        }
        let info = fs::read("/proc/self/mountinfo").unwrap();
        assert_eq!(mounts_on_or_below(&ours, &info).len(), 1);
        fs::write(ours.join("file"), "x").unwrap();
        fs::create_dir(ours.join("dir")).unwrap();
        mount_memory(&ours.join("dir"), Memory::default()).unwrap();
        assert!(
            fs::write(ours.join("big"), vec![0; 2 << 20]).is_err(),
            "it holds no more than its size"
        );
        assert!(unmount_below(&other, &root.join("pods")).is_err());
        assert!(unmount_below(&root.join("pods"), &root.join("pods")).is_err());
        unmount_below(&ours, &root.join("pods")).unwrap();
        assert!(!is_mount(&ours).unwrap());
        assert!(is_mount(&other).unwrap());
        unmount_below(&ours, &root.join("pods")).unwrap();
    }

    #[test]
    fn what_is_in_use_is_told_and_stays() {
        let Some(scratch) = Scratch::new() else { return };
        let dir = scratch.path().join("a");
        fs::create_dir(&dir).unwrap();
        mount_memory(&dir, Memory::default()).unwrap();
        let open = fs::File::create(dir.join("file")).unwrap();
        let error = unmount_below(&dir, &scratch.path()).unwrap_err();
        assert!(error.to_string().contains("busy"), "{error}");
        drop(open);
        unmount_below(&dir, &scratch.path()).unwrap();
    }
}
