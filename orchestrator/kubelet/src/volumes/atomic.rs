//! [`write()`]: replaces all files of a directory at once, as readers see them.
//!
//! The files are in a directory of their own, named by the time; `..data` is a link to it; what readers open are links
//! through `..data`. Replacing that one link replaces all files. The layout is upstream's, which programs that watch
//! their configuration know. The old files stay until [`sweep`] or the next writing, for readers that have gone through
//! the link already.

use rustix::fs::{Gid, Mode, Uid, fchmod, fchown};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt, symlink},
    path::{Component, Path, PathBuf},
};

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";
const NEW_LINK: &str = "..link_tmp";

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) data: Vec<u8>,
    /// Permissions, as `0o644`.
    pub(crate) mode: u32,
    /// Whom it belongs to; `None` is us.
    pub(crate) uid: Option<u32>,
}

/// All files of a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Payload {
    /// By path below the directory.
    pub(crate) files: BTreeMap<PathBuf, File>,
    /// The group of files and directories: `fsGroup`.
    pub(crate) gid: Option<u32>,
}

/// What writing is about to do; tests stop there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Sweep,
    MakeDirectory,
    WriteFile,
    Link,
    NewData,
    Swap,
    Unlink,
}

/// Makes these the files of `dir`, which exists. Whether anything had to change.
///
/// # Errors
/// A path that leads out of the directory, before anything is changed; or the disk's. Readers have the old files then, or
/// already the new ones; writing again continues.
pub(crate) fn write(dir: &Path, payload: &Payload) -> io::Result<bool> {
    write_by_steps(dir, payload, &mut |_| Ok(()))
}

pub(crate) fn write_by_steps(
    dir: &Path,
    payload: &Payload,
    step: &mut dyn FnMut(Step) -> io::Result<()>,
) -> io::Result<bool> {
    payload.files.keys().try_for_each(|it| check(it))?;
    step(Step::Sweep)?;
    sweep(dir)?;
    let names: BTreeSet<OsString> = payload.files.keys().filter_map(|it| first(it)).collect();
    let current = current(dir)?;
    if let Some(current) = &current
        && holds(&dir.join(current), payload)?
        && links(dir)? == names
    {
        return Ok(false);
    }
    step(Step::MakeDirectory)?;
    let new = make_directory(dir, payload.gid)?;
    for (path, file) in &payload.files {
        step(Step::WriteFile)?;
        write_file(&dir.join(&new), path, file, payload.gid)?;
    }
    // Before the swap: a name without a file is what the old files say too, a file without a name would be neither.
    for name in &names {
        let target = Path::new(DATA).join(name);
        if fs::read_link(dir.join(name)).is_ok_and(|it| it == target) {
            continue;
        }
        step(Step::Link)?;
        replace_link(dir, &target, NEW_LINK, Path::new(name))?;
    }
    step(Step::NewData)?;
    remove(&dir.join(NEW_DATA))?;
    symlink(&new, dir.join(NEW_DATA))?;
    step(Step::Swap)?;
    fs::rename(dir.join(NEW_DATA), dir.join(DATA))?;
    for name in links(dir)?.difference(&names) {
        step(Step::Unlink)?;
        remove(&dir.join(name))?;
    }
    Ok(true)
}

/// Removes all files that are no longer, or never became, those of `dir`.
pub(crate) fn sweep(dir: &Path) -> io::Result<()> {
    let current = current(dir)?;
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let ours = name.as_encoded_bytes().starts_with(b"..");
        if ours && name != DATA && Some(&name) != current.as_ref() {
            remove(&dir.join(&name))?;
        }
    }
    Ok(())
}

/// The directory that holds the files now.
fn current(dir: &Path) -> io::Result<Option<OsString>> {
    match fs::read_link(dir.join(DATA)) {
        Ok(target) => Ok(Some(target.into_os_string())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The names that readers open. A directory is not ours: it is there because a `subPath` named what does not exist.
fn links(dir: &Path) -> io::Result<BTreeSet<OsString>> {
    let mut out = BTreeSet::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.as_encoded_bytes().starts_with(b"..") && !entry.file_type()?.is_dir() {
            out.insert(name);
        }
    }
    Ok(out)
}

/// Whether exactly these files are there with exactly these contents.
fn holds(dir: &Path, payload: &Payload) -> io::Result<bool> {
    let mut found = 0;
    let mut directories = vec![dir.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
                continue;
            }
            let path = entry.path();
            let Some(want) = path.strip_prefix(dir).ok().and_then(|it| payload.files.get(it)) else {
                return Ok(false);
            };
            if fs::read(&path)? != want.data {
                return Ok(false);
            }
            found += 1;
        }
    }
    Ok(found == payload.files.len())
}

fn make_directory(dir: &Path, gid: Option<u32>) -> io::Result<OsString> {
    let now = jiff::Timestamp::now();
    let name: OsString = format!(
        "..{}.{:09}",
        now.strftime("%Y_%m_%d_%H_%M_%S"),
        rand::random_range(0..1_000_000_000u32)
    )
    .into();
    make_one(&dir.join(&name), gid)?;
    Ok(name)
}

fn make_one(path: &Path, gid: Option<u32>) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path)?;
    own_directory(path, gid)
}

/// Open to all; with a group, open to it with whatever is made in it.
pub(crate) fn own_directory(path: &Path, gid: Option<u32>) -> io::Result<()> {
    let handle = fs::File::open(path)?;
    if let Some(gid) = gid {
        fchown(&handle, None, Some(Gid::from_raw(gid)))?;
    }
    // After the owner, whose change clears such bits.
    fchmod(&handle, Mode::from_raw_mode(if gid.is_some() { 0o2755 } else { 0o755 }))?;
    Ok(())
}

fn write_file(dir: &Path, path: &Path, file: &File, gid: Option<u32>) -> io::Result<()> {
    let mut at = dir.to_owned();
    for part in path.parent().into_iter().flat_map(Path::components) {
        at.push(part);
        match make_one(&at, gid) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            done => done?,
        }
    }
    let mut out = fs::File::create_new(dir.join(path))?;
    out.write_all(&file.data)?;
    if file.uid.is_some() || gid.is_some() {
        fchown(&out, file.uid.map(Uid::from_raw), gid.map(Gid::from_raw))?;
    }
    // The group reads what is made for it. Source: `fsGroup`.
    let mode = file.mode | if gid.is_some() { 0o440 } else { 0 };
    fchmod(&out, Mode::from_raw_mode(mode & 0o777))?;
    Ok(())
}

fn replace_link(dir: &Path, target: &Path, by: &str, name: &Path) -> io::Result<()> {
    remove(&dir.join(by))?;
    symlink(target, dir.join(by))?;
    match fs::rename(dir.join(by), dir.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            remove(&dir.join(name))?;
            fs::rename(dir.join(by), dir.join(name))
        }
        renamed => renamed,
    }
}

/// Whatever is there, nothing too.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(it) if it.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn first(path: &Path) -> Option<OsString> {
    path.components().next().map(|it| it.as_os_str().to_owned())
}

/// Paths stay below, and leave names with two dots to us.
fn check(path: &Path) -> io::Result<()> {
    let text = path.as_os_str().as_encoded_bytes();
    let normal = path.components().all(|it| matches!(it, Component::Normal(_)));
    if text.is_empty() || !normal || text.starts_with(b"..") || text.len() > 4096 || text.contains(&0) {
        return Err(io::Error::other(format!("{path:?} is no path below a volume")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{
        os::unix::fs::{MetadataExt, PermissionsExt},
        sync::Arc,
    };

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |data: &str| File {
            data: data.into(),
            mode: 0o644,
            uid: None,
        };
        Payload {
            files: files
                .iter()
                .map(|(path, data)| (PathBuf::from(path), file(data)))
                .collect(),
            gid: None,
        }
    }

    /// What a reader sees who goes through the names, and that names with files are all there are.
    fn seen(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut out = BTreeMap::new();
        for name in links(dir).unwrap() {
            let mut paths = vec![PathBuf::from(name)];
            while let Some(path) = paths.pop() {
                match fs::metadata(dir.join(&path)) {
                    Ok(it) if it.is_dir() => {
                        let entries = fs::read_dir(dir.join(&path)).unwrap();
                        paths.extend(entries.map(|it| path.join(it.unwrap().file_name())));
                    }
                    Ok(_) => {
                        out.insert(path.clone(), fs::read(dir.join(&path)).unwrap());
                    }
                    // A name that leads to nothing is as good as none.
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound),
                }
            }
        }
        out
    }

    fn contents(payload: &Payload) -> BTreeMap<PathBuf, Vec<u8>> {
        payload
            .files
            .iter()
            .map(|(path, file)| (path.clone(), file.data.clone()))
            .collect()
    }

    fn entries(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn files_are_written_with_their_modes() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = payload(&[("a", "1"), ("d/b", "2"), ("d/e/c", "3")]);
        first.files.get_mut(Path::new("a")).unwrap().mode = 0o400;
        assert!(write(dir.path(), &first).unwrap());
        assert_eq!(seen(dir.path()), contents(&first));
        assert_eq!(fs::read_link(dir.path().join("d")).unwrap(), Path::new("..data/d"));
        let mode = |path: &str| fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(
            (mode("a"), mode("d/b"), mode("d"), mode("..data")),
            (0o400, 0o644, 0o755, 0o755)
        );
        assert!(!write(dir.path(), &first).unwrap(), "nothing to do");
        let second = payload(&[("a", "1"), ("f", "4")]);
        assert!(write(dir.path(), &second).unwrap());
        assert_eq!(seen(dir.path()), contents(&second));
        assert_eq!(entries(dir.path()), 5, "two names, the link, the new files and the old");
        sweep(dir.path()).unwrap();
        assert_eq!(entries(dir.path()), 4);
        assert!(write(dir.path(), &Payload::default()).unwrap());
        assert!(seen(dir.path()).is_empty());
    }

    #[test]
    fn files_belong_to_the_group() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut it = payload(&[("a", "1"), ("d/b", "2")]);
        it.gid = Some(1234);
        it.files.get_mut(Path::new("a")).unwrap().mode = 0o600;
        it.files.get_mut(Path::new("a")).unwrap().uid = Some(77);
        write(dir.path(), &it).unwrap();
        let of = |path: &str| {
            let it = fs::metadata(dir.path().join(path)).unwrap();
            (it.uid(), it.gid(), it.permissions().mode() & 0o7777)
        };
        assert_eq!(of("a"), (77, 1234, 0o640));
        assert_eq!(of("d/b"), (0, 1234, 0o644));
        assert_eq!(of("d"), (0, 1234, 0o2755));
        assert_eq!(of("..data"), (0, 1234, 0o2755));
    }

    #[test]
    fn paths_that_lead_elsewhere_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["../a", "/etc/x", "a/../../b", "..data", "..x/y", ""] {
            assert!(
                write(dir.path(), &payload(&[("good", "1"), (bad, "2")])).is_err(),
                "{bad}"
            );
            assert_eq!(entries(dir.path()), 0, "{bad}");
        }
    }

    #[test]
    fn damage_is_mended() {
        let dir = tempfile::tempdir().unwrap();
        let it = payload(&[("a", "1"), ("b", "2")]);
        write(dir.path(), &it).unwrap();
        fs::write(dir.path().join("a"), "other").unwrap();
        assert!(write(dir.path(), &it).unwrap());
        fs::remove_file(dir.path().join("b")).unwrap();
        assert!(write(dir.path(), &it).unwrap());
        fs::write(dir.path().join("foreign"), "x").unwrap();
        assert!(write(dir.path(), &it).unwrap());
        let data = fs::read_link(dir.path().join("..data")).unwrap();
        fs::remove_dir_all(dir.path().join(data)).unwrap();
        assert!(write(dir.path(), &it).unwrap());
        assert_eq!(seen(dir.path()), contents(&it));
    }

    #[test]
    fn a_directory_that_a_sub_path_made_stays_until_its_name_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let it = payload(&[("a", "1")]);
        write(dir.path(), &it).unwrap();
        fs::create_dir_all(dir.path().join("b/c")).unwrap();
        assert!(!write(dir.path(), &it).unwrap());
        write(dir.path(), &payload(&[("a", "2")])).unwrap();
        assert!(dir.path().join("b/c").exists());
        let both = payload(&[("a", "2"), ("b", "3")]);
        write(dir.path(), &both).unwrap();
        assert_eq!(seen(dir.path()), contents(&both));
    }

    fn payloads() -> impl Strategy<Value = Payload> {
        let paths = ["a", "b", "d/x", "d/y", "e/f/z"];
        let one = prop::option::of(prop::sample::select(vec!["", "1", "2", "33"]));
        prop::collection::vec(one, paths.len()).prop_map(move |all| {
            let set: Vec<_> = paths
                .iter()
                .zip(all)
                .filter_map(|(path, data)| Some((*path, data?)))
                .collect();
            payload(&set)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        /// The process may die at each step; between any two, readers see all of the old or all of the new.
        #[test]
        fn readers_see_the_old_or_the_new(old in payloads(), new in payloads(), last in payloads()) {
            let mut die_at = 0;
            loop {
                let dir = tempfile::tempdir().unwrap();
                write(dir.path(), &old).unwrap();
                let mut taken = 0;
                let mut swapped = false;
                let done = write_by_steps(dir.path(), &new, &mut |_| {
                    let now = seen(dir.path());
                    swapped |= now != contents(&old);
                    assert_eq!(now, contents(if swapped { &new } else { &old }), "step {taken}");
                    taken += 1;
                    if taken > die_at { Err(io::Error::other("dies here")) } else { Ok(()) }
                });
                let after = seen(dir.path());
                if done.is_ok() {
                    prop_assert_eq!(after, contents(&new));
                    break;
                }
                prop_assert!(after == contents(&old) || after == contents(&new));
                // The next one finds what was left, and leaves nothing of it.
                write(dir.path(), &last).unwrap();
                sweep(dir.path()).unwrap();
                prop_assert_eq!(seen(dir.path()), contents(&last));
                prop_assert_eq!(entries(dir.path()), links(dir.path()).unwrap().len() + 2);
                die_at += 1;
            }
        }
    }

    /// A reader at work all the while. Between two writings it starts anew, so that the files it goes to are never two
    /// writings old.
    #[test]
    fn a_reader_meets_no_gap() {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let version = |it: usize| {
            let data = format!("{it}").repeat(4000);
            payload(&[("a", data.as_str()), ("d/b", data.as_str())])
        };
        write(dir.path(), &version(0)).unwrap();
        let (turn, turns) = std::sync::mpsc::sync_channel::<()>(0);
        let reader = std::thread::spawn({
            let dir = dir.clone();
            move || {
                let mut read = 0;
                while turns.recv().is_ok() {
                    for _ in 0..20 {
                        let data = fs::canonicalize(dir.path().join("..data")).unwrap();
                        let both = [fs::read(data.join("a")).unwrap(), fs::read(data.join("d/b")).unwrap()];
                        assert_eq!(both[0], both[1]);
                        assert!(!fs::read(dir.path().join("a")).unwrap().is_empty());
                        read += 1;
                    }
                }
                read
            }
        });
        for it in 1..200 {
            turn.send(()).unwrap();
            write(dir.path(), &version(it)).unwrap();
        }
        drop(turn);
        assert_eq!(reader.join().unwrap(), 199 * 20);
    }
}
