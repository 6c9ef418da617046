//! Volumes on the disk: making each of a pod's volumes, and taking away all that a pod has.

use super::{
    atomic, host_path,
    kernel::{self, Memory},
    layout::{Layout, Plugin},
    payload::{self, Sources},
};
use crate::podspec::{Cause, Facts, fs_group, resources::Asks};
use fairlead_schema::quantity::Quantity;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod, Volume};
use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

/// A volume that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Made {
    /// Where on the node.
    pub(crate) path: PathBuf,
    /// Whether its files are ours alone to write.
    pub(crate) read_only: bool,
    /// Whether its files were replaced, and the old ones wait to be swept.
    pub(crate) replaced: bool,
}

/// Makes a volume what it must be; a second time changes nothing.
///
/// # Errors
/// Why it cannot be had, in the words of upstream.
pub(crate) fn make(
    layout: &Layout,
    pod: &Pod,
    volume: &Volume,
    facts: &Facts,
    sources: &Sources,
) -> Result<Made, Cause> {
    let io = |error: io::Error| Cause::Io(error.to_string());
    let uid = crate::pod::uid(pod);
    if let Some(source) = &volume.host_path {
        let path = host_path::prepare(source).map_err(Cause::Malformed)?;
        return Ok(Made {
            path,
            read_only: false,
            replaced: false,
        });
    }
    if let Some(source) = &volume.empty_dir {
        let path = layout.volume(uid, Plugin::EmptyDir, &volume.name).map_err(io)?;
        return empty_dir(&path, pod, source, facts).map(|()| Made {
            path,
            read_only: false,
            replaced: false,
        });
    }
    let (plugin, memory) = if volume.config_map.is_some() {
        (Plugin::ConfigMap, false)
    } else if volume.secret.is_some() {
        (Plugin::Secret, true)
    } else if volume.projected.is_some() {
        (Plugin::Projected, true)
    } else if volume.downward_api.is_some() {
        (Plugin::DownwardApi, true)
    } else {
        return Err(Cause::Unsupported(format!(
            "{} volumes are not supported by this kubelet",
            kind(volume)
        )));
    };
    let path = layout.volume(uid, plugin, &volume.name).map_err(io)?;
    // First, so that nothing is left of a volume that cannot be had.
    let Some(files) = payload::payload(pod, volume, facts, sources)? else {
        return Err(Cause::Unsupported(format!(
            "{} volumes are not supported by this kubelet",
            kind(volume)
        )));
    };
    let write = || {
        directory(&path)?;
        if memory {
            // Secrets are never on disk.
            let memory = Memory {
                mode: 0o755,
                gid: None,
                size: None,
                secret: true,
            };
            kernel::mount_memory(&path, memory)?;
        }
        atomic::own_directory(&path, files.gid)?;
        atomic::write(&path, &files)
    };
    let replaced = write().map_err(io)?;
    Ok(Made {
        path,
        read_only: true,
        replaced,
    })
}

/// All that is above may be seen by us alone.
fn directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o750).create(path)
}

fn empty_dir(path: &Path, pod: &Pod, source: &EmptyDirVolumeSource, facts: &Facts) -> Result<(), Cause> {
    let io = |error: io::Error| Cause::Io(error.to_string());
    let gid = fs_group(pod).and_then(|it| u32::try_from(it).ok());
    // The group owns what is made in it.
    let mode = if gid.is_some() { 0o2777 } else { 0o777 };
    let limit = source.size_limit.as_ref().map(|it| &it.0);
    let limit = limit.map(|it| Quantity::parse(it).ok_or_else(|| Cause::Malformed(format!("{it:?} is no size"))));
    let limit = limit.transpose()?.filter(|it| it.sign().is_gt()).map(Quantity::whole);
    match source.medium.as_deref().unwrap_or_default() {
        "" => fresh_directory(path, mode, gid).map_err(io),
        "Memory" => {
            directory(path).map_err(io)?;
            // What is in memory counts against the pod's limit anyway; a full disk is told earlier than an OOM kill.
            let whole = facts
                .allocatable
                .get("memory")
                .and_then(|it| Quantity::parse(it))
                .map(Quantity::whole);
            let size = [limit, Asks::of_pod(pod).limits.memory, whole]
                .into_iter()
                .flatten()
                .min();
            kernel::mount_memory(
                path,
                Memory {
                    mode,
                    gid,
                    size,
                    secret: false,
                },
            )
            .map_err(io)
        }
        other => Err(Cause::Unsupported(format!(
            "emptyDir with medium {other} is not supported by this kubelet"
        ))),
    }
}

/// Makes a directory with these rights at once, or leaves the one that is there as the pod has it by now.
fn fresh_directory(path: &Path, mode: u32, gid: Option<u32>) -> io::Result<()> {
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    let (parent, name) = (path.parent().unwrap_or(path), path.file_name().unwrap_or_default());
    directory(parent)?;
    // No volume is called so: names of volumes have no dots.
    let mut new = std::ffi::OsString::from("..new-");
    new.push(name);
    let new = parent.join(new);
    match fs::create_dir(&new) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    chown(&new, None, gid)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(mode))?;
    fs::rename(&new, path)
}

/// How people call the volume's source.
fn kind(volume: &Volume) -> String {
    let value = serde_json::to_value(volume).unwrap_or_default();
    let mut kinds = value
        .as_object()
        .into_iter()
        .flat_map(|it| it.keys())
        .filter(|it| *it != "name");
    kinds.next().map_or_else(|| "empty".to_owned(), String::clone)
}

/// Takes away all that a pod has on disk. Nothing is deleted while anything is mounted there.
///
/// # Errors
/// What cannot be unmounted or deleted; a second call continues.
pub(crate) fn remove(layout: &Layout, uid: &str) -> io::Result<()> {
    let dir = layout.pod(uid)?;
    if dir
        .symlink_metadata()
        .is_err_and(|it| it.kind() == io::ErrorKind::NotFound)
    {
        return Ok(());
    }
    kernel::unmount_below(&dir, &layout.pods())?;
    let explained = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", dir.display()));
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(explained),
    }
}

/// The uids of all pods that have anything on disk.
pub(crate) fn uids(layout: &Layout) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(layout.pods()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut out = Vec::new();
    for entry in entries {
        out.extend(entry?.file_name().into_string());
    }
    out.sort();
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{pod::tests::pod_of, volumes::kernel::tests::Scratch};
    use serde_json::{Value, json};
    use std::os::unix::fs::{MetadataExt, symlink};

    fn volume(source: Value) -> Volume {
        let mut source = source;
        source["name"] = json!("v");
        serde_json::from_value(source).unwrap()
    }

    #[test]
    fn empty_directories_are_open_to_all_and_to_the_group() {
        let Some(scratch) = Scratch::new() else { return };
        let layout = Layout::new(scratch.path());
        let facts = Facts {
            allocatable: [("memory".to_owned(), "1Gi".to_owned())].into(),
            ..Facts::default()
        };
        let pod = pod_of(json!({"containers": [], "securityContext": {"fsGroup": 77}}));
        for source in [json!({}), json!({"medium": "Memory", "sizeLimit": "64Ki"})] {
            let it = volume(json!({"emptyDir": source}));
            let made = make(&layout, &pod, &it, &facts, &Sources::default()).unwrap();
            let stat = fs::metadata(&made.path).unwrap();
            assert_eq!((stat.mode() & 0o7777, stat.gid(), made.read_only), (0o2777, 77, false));
            fs::write(made.path.join("kept"), "x").unwrap();
            fs::set_permissions(&made.path, fs::Permissions::from_mode(0o700)).unwrap();
            let again = make(&layout, &pod, &it, &facts, &Sources::default()).unwrap();
            assert!(again.path.join("kept").exists());
            assert_eq!(
                fs::metadata(&made.path).unwrap().mode() & 0o7777,
                0o700,
                "the pod's own rights stay"
            );
            let big = fs::write(made.path.join("big"), vec![0; 128 << 10]);
            assert_eq!(big.is_err(), it.empty_dir.unwrap().size_limit.is_some());
            remove(&layout, crate::pod::uid(&pod)).unwrap();
            assert!(!made.path.exists());
        }
        assert!(uids(&layout).unwrap().is_empty());
    }

    #[test]
    fn what_is_not_ours_to_make_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().to_owned());
        let pod = pod_of(json!({"containers": []}));
        for (source, want) in [
            (
                json!({"nfs": {"server": "a", "path": "/"}}),
                "nfs volumes are not supported by this kubelet",
            ),
            (
                json!({"persistentVolumeClaim": {"claimName": "a"}}),
                "persistentVolumeClaim volumes are not supported by this kubelet",
            ),
            (
                json!({"emptyDir": {"medium": "HugePages"}}),
                "emptyDir with medium HugePages is not supported by this kubelet",
            ),
            (
                json!({"emptyDir": {"medium": "Memory", "sizeLimit": "much"}}),
                "\"much\" is no size",
            ),
            (json!({"secret": {"secretName": "s"}}), "secret \"s\" not found"),
        ] {
            let error = make(&layout, &pod, &volume(source), &Facts::default(), &Sources::default()).unwrap_err();
            assert_eq!(error.to_string(), want);
        }
    }

    #[test]
    fn nothing_outside_is_deleted() {
        let Some(scratch) = Scratch::new() else { return };
        let root = scratch.path();
        let layout = Layout::new(root.join("kubelet"));
        let outside = root.join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("precious"), "x").unwrap();
        let pod = layout.pod("u").unwrap();
        fs::create_dir_all(pod.join("volumes/a/b")).unwrap();
        symlink(&outside, pod.join("volumes/a/link")).unwrap();
        // As a container with bidirectional propagation may do.
        let handle = fs::File::open(&outside).unwrap().into();
        kernel::bind(&handle, &pod.join("volumes/a/b")).unwrap();
        let busy = fs::File::open(pod.join("volumes/a/b/precious")).unwrap();
        assert!(remove(&layout, "u").is_err());
        assert!(pod.join("volumes/a/b/precious").exists());
        drop(busy);
        remove(&layout, "u").unwrap();
        assert!(!pod.exists() && outside.join("precious").exists());
        remove(&layout, "u").unwrap();
        assert!(remove(&layout, "..").is_err());
    }
}
