//! [`Layout`]: where the files of pods are, below the kubelet's directory. The names are upstream's.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Paths below the kubelet's directory.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
}

/// How a volume came to be; the directory that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plugin {
    EmptyDir,
    ConfigMap,
    Secret,
    Projected,
    DownwardApi,
}

impl Plugin {
    fn directory(self) -> &'static str {
        match self {
            Self::EmptyDir => "kubernetes.io~empty-dir",
            Self::ConfigMap => "kubernetes.io~configmap",
            Self::Secret => "kubernetes.io~secret",
            Self::Projected => "kubernetes.io~projected",
            Self::DownwardApi => "kubernetes.io~downward-api",
        }
    }
}

impl Layout {
    /// `root` must be absolute and without links, so that it can be compared with what the kernel says of mounts.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The directory of all pods.
    pub(crate) fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// All that one pod has on disk.
    ///
    /// # Errors
    /// A uid that is no name of a directory.
    pub(crate) fn pod(&self, uid: &str) -> io::Result<PathBuf> {
        Ok(self.pods().join(name(uid)?))
    }

    /// The directory of one volume.
    pub(crate) fn volume(&self, uid: &str, plugin: Plugin, volume: &str) -> io::Result<PathBuf> {
        Ok(self
            .pod(uid)?
            .join("volumes")
            .join(plugin.directory())
            .join(name(volume)?))
    }

    /// Where a `subPath` of a volume is bound for a container; `index` is that of the mount.
    pub(crate) fn sub_path(&self, uid: &str, volume: &str, container: &str, index: usize) -> io::Result<PathBuf> {
        let below = self.pod(uid)?.join("volume-subpaths");
        Ok(below.join(name(volume)?).join(name(container)?).join(index.to_string()))
    }

    /// The pod's `/etc/hosts`.
    pub(crate) fn hosts(&self, uid: &str) -> io::Result<PathBuf> {
        Ok(self.pod(uid)?.join("etc-hosts"))
    }

    /// Where the last words of all starts of a container are.
    pub(crate) fn messages(&self, uid: &str, container: &str) -> io::Result<PathBuf> {
        Ok(self.pod(uid)?.join("containers").join(name(container)?))
    }
}

/// Names come from the API server, which lets none of these pass; but they become paths that are deleted.
fn name(text: &str) -> io::Result<&str> {
    if text.is_empty() || text == "." || text == ".." || text.contains(['/', '\0']) {
        return Err(io::Error::other(format!("{text:?} cannot be the name of a directory")));
    }
    Ok(text)
}

/// Whether `path` is below `root`, and not `root` itself.
pub(crate) fn is_below(path: &Path, root: &Path) -> bool {
    path.starts_with(root) && path != root
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let layout = Layout::new("/root".into());
        assert_eq!(layout.pod("u-1").unwrap(), Path::new("/root/pods/u-1"));
        for bad in ["", ".", "..", "a/b", "../x", "/etc"] {
            assert!(layout.pod(bad).is_err(), "{bad}");
            assert!(layout.volume("u", Plugin::Secret, bad).is_err(), "{bad}");
            assert!(layout.sub_path("u", "v", bad, 0).is_err(), "{bad}");
            assert!(layout.messages("u", bad).is_err(), "{bad}");
        }
        assert_eq!(
            layout.volume("u", Plugin::EmptyDir, "data").unwrap(),
            Path::new("/root/pods/u/volumes/kubernetes.io~empty-dir/data")
        );
        assert!(is_below(Path::new("/a/b"), Path::new("/a")));
        assert!(!is_below(Path::new("/a"), Path::new("/a")));
        assert!(!is_below(Path::new("/ab"), Path::new("/a")));
    }
}
