//! The mounts of one start of a container, and the files that only it sees.

use super::{Mounted, layout::Layout, subpath};
use crate::{
    cri::v1::{Mount, MountPropagation},
    pod::{self, ContainerRef},
    podspec::{Cause, Environment, Facts, Invalid, expand, hosts_file, hosts_file_of_node, names},
};
use k8s_openapi::api::core::v1::{Pod, VolumeMount};
use std::{
    fs, io,
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

const HOSTS: &str = "/etc/hosts";

/// All that is needed, so that a thread of its own can do it.
pub(super) struct Work {
    pub(super) pod: Pod,
    pub(super) container: ContainerRef,
    pub(super) mounted: Mounted,
    pub(super) env: Environment,
    pub(super) attempt: u32,
    pub(super) pod_ips: Vec<IpAddr>,
    pub(super) layout: Layout,
    pub(super) facts: Arc<Facts>,
    pub(super) hosts_file: PathBuf,
}

impl Work {
    pub(super) fn mounts(&self) -> Result<Vec<Mount>, Invalid> {
        let invalid = |field: String, cause: Cause| Invalid::new(&self.pod, Some(&self.container.name), field, cause);
        let Some(spec) = self.container.spec(&self.pod) else {
            return Err(invalid(
                "name".into(),
                Cause::Malformed("the pod has no such container".into()),
            ));
        };
        let mut out = Vec::new();
        for (index, mount) in spec.volume_mounts.iter().flatten().enumerate() {
            let at = |cause: Cause| invalid(format!("volumeMounts[{index}]"), cause);
            out.push(self.volume(index, mount).map_err(at)?);
        }
        let io = |field: &'static str| move |error: io::Error| invalid(field.into(), Cause::Io(error.to_string()));
        let own_hosts = out.iter().any(|it| it.container_path == HOSTS);
        if !own_hosts && (pod::host_network(&self.pod) || !self.pod_ips.is_empty()) {
            let file = self.hosts().map_err(io("hostAliases"))?;
            out.push(plain(HOSTS, &file));
        }
        let file = self.message().map_err(io("terminationMessagePath"))?;
        out.push(plain(names::termination_message_path(&spec), &file));
        Ok(out)
    }

    fn volume(&self, index: usize, mount: &VolumeMount) -> Result<Mount, Cause> {
        let Some(made) = self.mounted.volumes.get(&mount.name) else {
            return Err(Cause::Unavailable(format!(
                "volume \"{}\" is not mounted yet",
                mount.name
            )));
        };
        let read_only = made.read_only || mount.read_only == Some(true);
        let some = |it: &Option<String>| it.clone().filter(|it| !it.is_empty());
        let sub_path = match (some(&mount.sub_path), some(&mount.sub_path_expr)) {
            (None, Some(text)) => {
                let found = expand(&text, |name| self.env.get(name));
                if let Some(name) = found.missing.first() {
                    return Err(Cause::Malformed(format!("missing value for \"{name}\"")));
                }
                Some(found.text)
            }
            (sub_path, _) => sub_path,
        };
        let host_path = match sub_path {
            None => made.path.clone(),
            Some(sub_path) => {
                let target = self
                    .layout
                    .sub_path(pod::uid(&self.pod), &mount.name, &self.container.name, index);
                let mounted = target.and_then(|it| subpath::mount(&made.path, &sub_path, &it));
                mounted.map_err(|error| {
                    Cause::Io(format!(
                        "failed to prepare subPath for volumeMount \"{}\": {error}",
                        mount.name
                    ))
                })?
            }
        };
        let propagation = match mount.mount_propagation.as_deref() {
            None | Some("" | "None") => MountPropagation::PropagationPrivate,
            Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => MountPropagation::PropagationBidirectional,
            Some(other) => return Err(Cause::Malformed(format!("unknown mountPropagation {other}"))),
        };
        let recursive_read_only = match mount.recursive_read_only.as_deref() {
            None | Some("" | "Disabled") => false,
            Some("IfPossible") => {
                read_only && self.facts.recursive_read_only && propagation == MountPropagation::PropagationPrivate
            }
            Some(_) if self.facts.recursive_read_only => true,
            Some(other) => {
                let text = format!("recursiveReadOnly {other} is not supported by the container runtime of this node");
                return Err(Cause::Unsupported(text));
            }
        };
        let target = Path::new("/").join(&mount.mount_path);
        Ok(Mount {
            container_path: target.display().to_string(),
            host_path: host_path.display().to_string(),
            readonly: read_only,
            propagation: propagation.into(),
            recursive_read_only,
            ..Mount::default()
        })
    }

    /// Writes the pod's hosts file. Containers that run keep what they have: they may have added names themselves.
    fn hosts(&self) -> io::Result<PathBuf> {
        let text = if pod::host_network(&self.pod) {
            hosts_file_of_node(&self.pod, &read_if_there(&self.hosts_file)?)
        } else {
            let (hostname, domain) = names::hostname_and_domain(&self.pod, &self.facts);
            hosts_file(&self.pod, &self.pod_ips, &hostname, &domain)
        };
        let file = self.layout.hosts(pod::uid(&self.pod))?;
        if fs::read_to_string(&file).is_ok_and(|it| it == text) {
            return Ok(file);
        }
        let parent = file.parent().unwrap_or(&file);
        directory(parent)?;
        let new = parent.join("etc-hosts.new");
        fs::write(&new, text)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o644))?;
        fs::rename(&new, &file)?;
        Ok(file)
    }

    /// An empty file that anybody in the container may write its last words to; the words of its last start stay.
    fn message(&self) -> io::Result<PathBuf> {
        let dir = self.layout.messages(pod::uid(&self.pod), &self.container.name)?;
        directory(&dir)?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let number = entry.file_name().to_str().and_then(|it| it.parse::<u32>().ok());
            if number.is_none_or(|it| it.saturating_add(1) < self.attempt) {
                // It is no harm if it stays.
                let _ = fs::remove_file(entry.path());
            }
        }
        let file = dir.join(self.attempt.to_string());
        fs::write(&file, "")?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666))?;
        Ok(file)
    }
}

/// A node need not have a hosts file.
fn read_if_there(file: &Path) -> io::Result<String> {
    match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        text => text,
    }
}

fn directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o750).create(path)
}

fn plain(container_path: &str, file: &Path) -> Mount {
    Mount {
        container_path: container_path.to_owned(),
        host_path: file.display().to_string(),
        ..Mount::default()
    }
}
