//! Reads what the runtime has of one pod. What cannot change any more is read once.

use super::observed::{Container, Exit, Observed, Sandbox, State};
use crate::{
    cri::{
        Runtime, RuntimeError,
        v1::{
            ContainerFilter, ContainerState, ContainerStatus, PodSandbox, PodSandboxFilter, PodSandboxState,
            PodSandboxStatus,
        },
    },
    logs,
    pod::{ContainerKind, ContainerRef},
    podspec::names::Made,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use std::{
    collections::{BTreeMap, HashMap},
    io::{Read as _, Seek as _, SeekFrom},
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// Label of the uid of the pod that something was made for.
pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";

/// How much later than the end of a container its want of memory may be told.
const WORD_OF_OOM: Duration = Duration::from_millis(100);

/// Most bytes of last words that are told. Source: `Container.terminationMessagePath`.
const LAST_WORDS: u64 = 4096;

/// Most bytes and lines of a log that are told as last words. Source: `Container.terminationMessagePolicy`.
const LAST_LOG: (u64, u64) = (2048, 80);

/// Reads one pod, again and again.
#[derive(Debug)]
pub struct Observer {
    runtime: Runtime,
    uid: String,
    ended: HashMap<String, Container>,
    addresses: HashMap<String, Vec<IpAddr>>,
}

impl Observer {
    /// Of the pod with this uid.
    pub fn new(runtime: Runtime, uid: &str) -> Self {
        Self {
            runtime,
            uid: uid.to_owned(),
            ended: HashMap::new(),
            addresses: HashMap::new(),
        }
    }

    /// What the runtime has now. `pod` tells which containers may have left last words, `ending` whether they are being
    /// killed anyway.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn observe(&mut self, pod: &Pod, ending: bool) -> Result<Observed, RuntimeError> {
        let labels = BTreeMap::from([(POD_UID.to_owned(), self.uid.clone())]);
        let sandbox_filter = PodSandboxFilter {
            label_selector: labels.clone(),
            ..PodSandboxFilter::default()
        };
        let container_filter = ContainerFilter {
            label_selector: labels,
            ..ContainerFilter::default()
        };
        let (sandboxes, containers) = tokio::try_join!(
            self.runtime.sandboxes(Some(sandbox_filter)),
            self.runtime.containers(Some(container_filter))
        )?;
        let mut seen = Observed::default();
        self.addresses.retain(|id, _| sandboxes.iter().any(|it| it.id == *id));
        self.ended.retain(|id, _| containers.iter().any(|it| it.id == *id));
        for sandbox in sandboxes {
            let ips = self.addresses(&sandbox).await?;
            seen.sandboxes.push(from_sandbox(&sandbox, ips));
        }
        for container in containers {
            if let Some(ended) = self.ended.get(&container.id) {
                seen.containers.push(ended.clone());
                continue;
            }
            let status = match self.runtime.container_status(&container.id).await {
                Ok(status) => status,
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error),
            };
            let status = if killed(&status) && !ending {
                // Whether it was for want of memory is told apart from the end, and may be told a little later.
                tokio::time::sleep(WORD_OF_OOM).await;
                self.runtime.container_status(&container.id).await.unwrap_or(status)
            } else {
                status
            };
            let mut read = from_status(&status, &container.pod_sandbox_id);
            if let State::Exited(exit) = &mut read.state {
                if exit.message.is_empty() {
                    let path = PathBuf::from(&status.log_path);
                    exit.message = last_words(pod, &status, &read.name, exit.code, &path).await;
                }
                self.ended.insert(read.id.clone(), read.clone());
            }
            seen.containers.push(read);
        }
        seen.sort();
        Ok(seen)
    }

    async fn addresses(&mut self, sandbox: &PodSandbox) -> Result<Vec<IpAddr>, RuntimeError> {
        if let Some(known) = self.addresses.get(&sandbox.id) {
            return Ok(known.clone());
        }
        if sandbox.state() != PodSandboxState::SandboxReady {
            return Ok(Vec::new());
        }
        let ips = match self.runtime.sandbox_status(&sandbox.id).await {
            Ok(status) => addresses(&status),
            Err(error) if error.is_not_found() => Vec::new(),
            Err(error) => return Err(error),
        };
        if !ips.is_empty() {
            self.addresses.insert(sandbox.id.clone(), ips.clone());
        }
        Ok(ips)
    }
}

/// Whether it was ended by a signal that nobody can refuse, for a reason that is not told.
fn killed(status: &ContainerStatus) -> bool {
    status.state() == ContainerState::ContainerExited && status.exit_code == 137 && status.reason != "OOMKilled"
}

/// All addresses that a sandbox has.
pub fn addresses(status: &PodSandboxStatus) -> Vec<IpAddr> {
    let Some(network) = &status.network else {
        return Vec::new();
    };
    let more = network.additional_ips.iter().map(|it| &it.ip);
    std::iter::once(&network.ip)
        .chain(more)
        .filter_map(|it| it.parse().ok())
        .collect()
}

fn from_sandbox(sandbox: &PodSandbox, ips: Vec<IpAddr>) -> Sandbox {
    Sandbox {
        id: sandbox.id.clone(),
        attempt: sandbox.metadata.as_ref().map_or(0, |it| it.attempt),
        ready: sandbox.state() == PodSandboxState::SandboxReady,
        created: time(sandbox.created_at).unwrap_or_default(),
        ips,
    }
}

fn from_status(status: &ContainerStatus, sandbox_id: &str) -> Container {
    let made = Made::from_annotations(&status.annotations);
    let metadata = status.metadata.clone().unwrap_or_default();
    Container {
        id: status.id.clone(),
        name: metadata.name,
        sandbox_id: sandbox_id.to_owned(),
        restart_count: made.restart_count.max(metadata.attempt),
        hash: made.hash,
        created: time(status.created_at).unwrap_or_default(),
        state: match status.state() {
            ContainerState::ContainerCreated => State::Created,
            ContainerState::ContainerRunning => State::Running {
                started: time(status.started_at).unwrap_or_default(),
            },
            ContainerState::ContainerExited => State::Exited(Exit {
                started: time(status.started_at),
                finished: time(status.finished_at).unwrap_or_default(),
                code: status.exit_code,
                reason: status.reason.clone(),
                message: status.message.clone(),
            }),
            ContainerState::ContainerUnknown => State::Unknown,
        },
        image: status.image.as_ref().map(|it| it.image.clone()).unwrap_or_default(),
        image_ref: status.image_ref.clone(),
    }
}

/// CRI's times are nanoseconds, 0 for never.
fn time(nanoseconds: i64) -> Option<Timestamp> {
    Timestamp::from_nanosecond(i128::from(nanoseconds))
        .ok()
        .filter(|_| nanoseconds > 0)
}

/// What a container wrote for those who ask why it ended: its message file, else the end of its log.
async fn last_words(pod: &Pod, status: &ContainerStatus, name: &str, code: i32, log: &Path) -> String {
    let Some(it) = ContainerRef::named(pod, name) else {
        return String::new();
    };
    let made = Made::from_annotations(&status.annotations);
    let mount = status.mounts.iter();
    let file = mount
        .filter(|mount| mount.container_path == made.termination_message_path)
        .map(|mount| PathBuf::from(&mount.host_path))
        .next();
    let from_log = made.termination_message_policy == "FallbackToLogsOnError" && code != 0;
    let log = (from_log && it.kind != ContainerKind::Ephemeral).then(|| log.to_owned());
    let read = tokio::task::spawn_blocking(move || {
        let words = file.map(|path| beginning(&path)).unwrap_or_default();
        if words.is_empty() {
            log.map(|path| end_of_log(&path)).unwrap_or_default()
        } else {
            words
        }
    });
    read.await.unwrap_or_default()
}

fn beginning(path: &Path) -> String {
    // The container chose what is there: a pipe or a device must not be opened.
    if !path.symlink_metadata().is_ok_and(|it| it.is_file()) {
        return String::new();
    }
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        // What could be read is told.
        let _ = file.take(LAST_WORDS).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn end_of_log(path: &Path) -> String {
    let Ok(mut file) = std::fs::File::open(path) else {
        return String::new();
    };
    let mut bytes = Vec::new();
    let start = logs::start_of_last(&mut file, LAST_LOG.1).unwrap_or(0);
    if file.seek(SeekFrom::Start(start)).is_ok() {
        // What could be read is told. The lines carry their time and stream before the text.
        let _ = file.take(64 * LAST_LOG.0).read_to_end(&mut bytes);
    }
    let mut text = String::new();
    for line in String::from_utf8_lossy(&bytes).lines() {
        let mut parts = line.splitn(4, ' ');
        if let (Some(_), Some(_), Some(tag), Some(words)) = (parts.next(), parts.next(), parts.next(), parts.next()) {
            text.push_str(words);
            if tag == "F" {
                text.push('\n');
            }
        }
    }
    let surplus = text
        .len()
        .saturating_sub(usize::try_from(LAST_LOG.0).unwrap_or(usize::MAX));
    let start = (surplus..=text.len())
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0);
    text[start..].to_owned()
}
