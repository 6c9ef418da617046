//! [`Hierarchy`]: one tree of cgroups, and how directories are made in it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// One tree of cgroups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Its top.
    pub(super) mount: PathBuf,
    /// Of version 2, of which there is one.
    pub(super) two: bool,
    /// Its controllers, as `cpu`; or its name, as `name=systemd`.
    pub(super) controllers: Vec<String>,
}

/// All that are mounted here.
///
/// # Errors
/// `/proc` cannot be read.
pub(super) fn mounted() -> io::Result<Vec<Hierarchy>> {
    let mut out: Vec<Hierarchy> = Vec::new();
    for (mount, options) in read_mounts(&fs::read_to_string("/proc/self/mountinfo")?) {
        let hierarchy = match options {
            None => Hierarchy::two(mount)?,
            Some(controllers) => Hierarchy {
                mount,
                two: false,
                controllers,
            },
        };
        // What is mounted twice is the same tree; the first is where everybody looks.
        if !out
            .iter()
            .any(|it| it.two == hierarchy.two && (it.two || it.controllers == hierarchy.controllers))
        {
            out.push(hierarchy);
        }
    }
    Ok(out)
}

/// Mount points; with the controllers for version 1. Source: proc(5): mountinfo.
fn read_mounts(mountinfo: &str) -> Vec<(PathBuf, Option<Vec<String>>)> {
    let one = |line: &str| {
        let (first, second) = line.split_once(" - ")?;
        let mount = PathBuf::from(first.split(' ').nth(4)?);
        let mut fields = second.split(' ');
        let kind = fields.next()?;
        let options = fields.nth(1)?;
        match kind {
            "cgroup2" => Some((mount, None)),
            "cgroup" => {
                let general = ["rw", "ro", "xattr", "noprefix", "clone_children"];
                let controllers = options
                    .split(',')
                    .filter(|it| !general.contains(it) && !it.contains("agent="));
                Some((mount, Some(controllers.map(str::to_owned).collect())))
            }
            _ => None,
        }
    };
    mountinfo.lines().filter_map(one).collect()
}

impl Hierarchy {
    /// That of version 2, whose top says which controllers it has: none, where version 1 has them.
    pub(super) fn two(mount: PathBuf) -> io::Result<Self> {
        let controllers = fs::read_to_string(mount.join("cgroup.controllers"))?;
        let controllers = controllers.split_whitespace().map(str::to_owned).collect();
        Ok(Self {
            mount,
            two: true,
            controllers,
        })
    }

    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|it| it == controller)
    }

    /// Whether the runtime puts containers there: not into a tree of version 2 beside those of version 1.
    pub(super) fn takes_containers(&self) -> bool {
        !self.two || self.has("memory")
    }

    /// Swap is not accounted in every kernel; the file is nowhere but in a cgroup below the top.
    pub(super) fn accounts_swap(&self) -> bool {
        let entries = fs::read_dir(&self.mount).into_iter().flatten().flatten();
        entries.into_iter().any(|it| it.path().join("memory.swap.max").exists())
    }

    /// Makes a directory and those above it, so that cgroups can be made below it.
    pub(super) fn make(&self, below: &Path) -> io::Result<PathBuf> {
        let mut at = self.mount.clone();
        if self.two {
            self.delegate(&at);
        }
        for part in below.components() {
            let parent = at.clone();
            at.push(part);
            match fs::create_dir(&at) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(named(&at, &error)),
                Ok(()) => {}
            }
            if self.two {
                self.delegate(&at);
            } else if self.has("cpuset") {
                // Empty in a new cgroup, which then can hold no process.
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    if read(&at.join(file))?.is_empty() {
                        set(&at.join(file), &read(&parent.join(file))?)?;
                    }
                }
            }
        }
        Ok(at)
    }

    /// Hands all controllers down. One that cannot be (the CPU's, with processes in real time) leaves the others; what is
    /// then missing is told when its limit is written.
    fn delegate(&self, dir: &Path) {
        for controller in ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"] {
            if self.has(controller) {
                let written = set(&dir.join("cgroup.subtree_control"), &format!("+{controller}"));
                if let Err(error) = written {
                    tracing::debug!(%error, controller, "controller not handed down");
                }
            }
        }
    }
}

fn read(file: &Path) -> io::Result<String> {
    let text = fs::read_to_string(file).map_err(|error| named(file, &error))?;
    Ok(text.trim().to_owned())
}

/// Writes a value unless it is there already: what children have may forbid even the same again.
pub(super) fn set(file: &Path, value: &str) -> io::Result<()> {
    if fs::read_to_string(file).is_ok_and(|it| it.trim() == value) {
        return Ok(());
    }
    fs::write(file, value).map_err(|error| {
        let why = if file.exists() {
            error.to_string()
        } else {
            "this kernel has no such file".to_owned()
        };
        io::Error::new(error.kind(), format!("{value} to {}: {why}", file.display()))
    })
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_all_kinds_are_found() {
        let text = "\
            24 1 0:20 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            25 24 0:21 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:5 - cgroup cgroup rw,cpu,cpuacct\n\
            26 24 0:22 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd\n\
            27 24 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            28 24 0:24 / /proc rw - proc proc rw\nbroken\n";
        let found = read_mounts(text);
        let words = |all: &[&str]| Some(all.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>());
        assert_eq!(
            found,
            [
                ("/sys/fs/cgroup/cpu,cpuacct".into(), words(&["cpu", "cpuacct"])),
                ("/sys/fs/cgroup/systemd".into(), words(&["name=systemd"])),
                ("/sys/fs/cgroup/unified".into(), None),
            ]
        );
    }

    #[test]
    fn a_tree_beside_those_of_version_one_takes_no_containers() {
        let dir = tempfile::tempdir().unwrap();
        let at = |text: &str| {
            fs::write(dir.path().join("cgroup.controllers"), text).unwrap();
            Hierarchy::two(dir.path().to_owned()).unwrap()
        };
        assert!(!at("").takes_containers());
        assert!(at("cpu memory\n").takes_containers());
        assert!(!at("cpu memory\n").accounts_swap());
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/memory.swap.max"), "max").unwrap();
        assert!(at("cpu memory\n").accounts_swap());
    }

    #[test]
    fn cpus_come_from_above() {
        let dir = tempfile::tempdir().unwrap();
        for (file, value) in [("cpuset.cpus", "0-1\n"), ("cpuset.mems", "0\n")] {
            for below in ["", "a", "a/b"] {
                fs::create_dir_all(dir.path().join(below)).unwrap();
                let value = if below.is_empty() { value } else { "\n" };
                fs::write(dir.path().join(below).join(file), value).unwrap();
            }
        }
        let it = Hierarchy {
            mount: dir.path().to_owned(),
            two: false,
            controllers: vec!["cpuset".into()],
        };
        let made = it.make(Path::new("a/b")).unwrap();
        assert_eq!(
            (
                read(&made.join("cpuset.cpus")).unwrap(),
                read(&made.join("cpuset.mems")).unwrap()
            ),
            ("0-1".into(), "0".into())
        );
    }
}
