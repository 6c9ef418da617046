//! Where a cluster keeps its things on this machine. Everything that lasts is below the data directory, everything that
//! ends with a reboot below the run directory; nothing else is written but what the kernel holds.

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};
use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

/// Longest path of a unix socket that Linux takes, without the final zero (unix(7)).
const SOCKET_PATH_MAX: usize = 107;
/// The longest name of a socket below the run directory; containerd adds its own below its state.
const LONGEST_SOCKET: &str = "containerd/containerd.sock.ttrpc";
/// Where one keeps things by default; only another place needs names of its own in the kernel.
pub(crate) const DATA_DIR: &str = "/var/lib/fairlead";

/// Paths and names of one cluster on this machine.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// `--data-dir`.
    pub(crate) data: PathBuf,
    /// `--run-dir`.
    pub(crate) run: PathBuf,
    /// Distinguishes this cluster's cgroups, links and tables from those of another data directory: empty for the
    /// default one.
    pub(crate) instance: String,
}

impl Layout {
    /// Makes the directories.
    ///
    /// # Errors
    /// A directory that cannot be made, or a path too long for sockets.
    pub(crate) fn make(data: &Path, run: Option<&Path>) -> Result<Self> {
        let layout = Self::of(data, run)?;
        for directory in [&layout.data, &layout.run, &layout.images(), &layout.log()] {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700);
            builder
                .create(directory)
                .with_context(|| format!("{} cannot be made", directory.display()))?;
        }
        Ok(layout)
    }

    /// The paths, without touching them.
    ///
    /// # Errors
    /// A path too long for sockets.
    pub(crate) fn of(data: &Path, run: Option<&Path>) -> Result<Self> {
        let data = std::path::absolute(data).context("--data-dir")?;
        let instance = if data == Path::new(DATA_DIR) {
            String::new()
        } else {
            let digest = Sha256::digest(data.as_os_str().as_encoded_bytes());
            digest[..4].iter().map(|byte| format!("{byte:02x}")).collect()
        };
        // Through symbolic links, as the kernel shows mounts.
        let data = fs::canonicalize(&data).unwrap_or(data);
        let said = Elsewhere::text(&data);
        let run = match run {
            Some(run) => std::path::absolute(run).context("--run-dir")?,
            None if said["runDir"].is_string() => PathBuf::from(said["runDir"].as_str().unwrap_or_default()),
            None if instance.is_empty() => PathBuf::from("/run/fairlead"),
            None => PathBuf::from(format!("/run/fairlead-{instance}")),
        };
        let run = fs::canonicalize(&run).unwrap_or(run);
        let layout = Self { data, run, instance };
        let longest = layout.run.join(LONGEST_SOCKET);
        if longest.as_os_str().len() > SOCKET_PATH_MAX {
            bail!(
                "--run-dir {}: sockets below it would have paths of more than {SOCKET_PATH_MAX} bytes; give a shorter one",
                layout.run.display()
            );
        }
        Ok(layout)
    }

    /// Whether a cluster or a node of ours was started in this data directory.
    pub(crate) fn is_clusters(&self) -> bool {
        [Elsewhere::FILE, "store", "containerd.toml"]
            .iter()
            .any(|it| self.data.join(it).exists())
    }

    /// A name of this cluster in the kernel.
    pub(crate) fn name(&self, base: &str) -> String {
        if self.instance.is_empty() {
            base.to_owned()
        } else {
            format!("{base}-{}", self.instance)
        }
    }

    /// Archives here are imported at every start.
    pub(crate) fn images(&self) -> PathBuf {
        self.data.join("images")
    }

    /// Log files of this process and of containerd.
    pub(crate) fn log(&self) -> PathBuf {
        self.data.join("log")
    }

    /// The process id of a running cluster, as text; locked while it runs.
    pub(crate) fn pid_file(&self) -> PathBuf {
        self.run.join("fairlead.pid")
    }

    /// The administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.data.join("admin.kubeconfig")
    }
}

/// Where a node put things outside of its directories; `down` reads it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Elsewhere {
    /// Below which pods have their cgroups, in every hierarchy.
    pub(crate) pod_cgroup: String,
    /// Where BPF objects are pinned.
    pub(crate) bpffs: PathBuf,
}

impl Elsewhere {
    const FILE: &str = "elsewhere.json";

    /// What the last start of the cluster in this data directory wrote; `Null` if nothing.
    fn text(data: &Path) -> serde_json::Value {
        let text = fs::read_to_string(data.join(Self::FILE)).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Keeps it in the data directory, before anything is put there.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(&self, layout: &Layout) -> Result<()> {
        let file = layout.data.join(Self::FILE);
        let text = serde_json::json!({ "podCgroup": self.pod_cgroup, "bpffs": self.bpffs, "runDir": layout.run });
        let text = text.to_string();
        fs::write(&file, text).with_context(|| format!("{} cannot be written", file.display()))
    }

    /// What the last start of this cluster said; the defaults if there was none.
    pub(crate) fn read(layout: &Layout) -> Self {
        let value = Self::text(&layout.data);
        let defaults = Self::defaults(layout);
        Self {
            pod_cgroup: value["podCgroup"].as_str().map_or(defaults.pod_cgroup, str::to_owned),
            bpffs: value["bpffs"].as_str().map_or(defaults.bpffs, PathBuf::from),
        }
    }

    /// Where things are by default: only another data directory has places of its own.
    pub(crate) fn defaults(layout: &Layout) -> Self {
        if layout.instance.is_empty() {
            return Self {
                // Never the root: what is below its `kubepods` may be another kubelet's.
                pod_cgroup: "/fairlead".to_owned(),
                bpffs: PathBuf::from("/sys/fs/bpf"),
            };
        }
        Self {
            pod_cgroup: format!("/{}", layout.name("fairlead")),
            bpffs: layout.run.join("bpf"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_data_directory_has_names_of_its_own() {
        let usual = Layout::of(Path::new(DATA_DIR), None).unwrap();
        assert_eq!(
            (usual.name("fairlead").as_str(), usual.run.as_path()),
            ("fairlead", Path::new("/run/fairlead"))
        );
        let other = Layout::of(Path::new("/tmp/a"), None).unwrap();
        let third = Layout::of(Path::new("/tmp/b"), None).unwrap();
        assert!(other.name("fairlead") != usual.name("fairlead") && other.name("fairlead") != third.name("fairlead"));
        assert!(other.run != third.run && other.run != usual.run);
        assert_eq!(
            other.name("x"),
            Layout::of(Path::new("/tmp/a"), None).unwrap().name("x")
        );
    }

    #[test]
    fn what_a_start_said_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::make(&dir.path().join("d"), Some(&dir.path().join("r"))).unwrap();
        assert_eq!(Elsewhere::read(&layout), Elsewhere::defaults(&layout));
        let said = Elsewhere {
            pod_cgroup: "/mine".to_owned(),
            bpffs: "/bpf".into(),
        };
        said.write(&layout).unwrap();
        assert_eq!(Elsewhere::read(&layout), said);
        let found = Layout::of(&dir.path().join("d"), None).unwrap();
        assert_eq!(found.run, layout.run, "down needs no --run-dir");
    }

    #[test]
    fn a_path_too_long_for_sockets_is_refused_by_name() {
        let long = format!("/tmp/{}", "x".repeat(90));
        let error = Layout::of(Path::new("/tmp/a"), Some(Path::new(&long)))
            .unwrap_err()
            .to_string();
        assert!(error.contains("--run-dir") && error.contains("shorter"), "{error}");
    }
}
