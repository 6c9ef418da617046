//! A containerd of its own for each test: own directories, own mounts, own processes. When it is dropped, or the test
//! process dies, the kernel ends everything in it.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "each test program uses a part; nothing else sees it"
)]

mod image;

use fairlead_kubelet::cri::{Runtime, v1};
use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};
use tempfile::TempDir;

/// Name of the image that all test containers are made of: a shell and some programs of this host.
pub const IMAGE: &str = "fairlead.test/shell:1";

/// A running containerd.
pub struct Containerd {
    pub directory: TempDir,
    pub runtime: Runtime,
    /// Below which all its containers are, in each hierarchy.
    pub cgroup: String,
    child: Child,
}

/// Whether this host can run containers. A test that skips says so.
pub fn possible() -> bool {
    let missing: Vec<_> = ["containerd", "runc", "ctr", "unshare", "setpriv"]
        .into_iter()
        .filter(|it| !in_path(it))
        .collect();
    let root = nix::unistd::geteuid().is_root();
    if !root || !missing.is_empty() {
        eprintln!("SKIPPED: needs root and {missing:?}");
    }
    root && missing.is_empty()
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|it| it.join(program).is_file())
}

fn config(directory: &Path) -> String {
    let at = |name: &str| directory.join(name).display().to_string();
    let (root, state, socket, opt, cni) = (at("root"), at("state"), at("containerd.sock"), at("opt"), at("cni"));
    format!(
        r#"
version = 2
root = "{root}"
state = "{state}"
disabled_plugins = [
    "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]
[grpc]
address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{opt}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
restrict_oom_score_adj = true
disable_apparmor = true
stream_server_address = "127.0.0.1"
stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni}"
conf_dir = "{cni}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"#
    )
}

impl Containerd {
    /// Starts one and gives it the image.
    pub fn start() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let directory = tempfile::tempdir().unwrap();
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("/fairlead-kubelet-test-{}-{n}", std::process::id());
        let file = directory.path().join("config.toml");
        std::fs::write(&file, config(directory.path())).unwrap();
        // Shims have sockets below /run, wherever the state is: so they get a /run of their own. Whoever is killed, the
        // first process of the process namespace goes, and takes all others with it.
        let mut child = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "--",
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
            ])
            .args([
                "sh",
                "-c",
                "mount -t tmpfs none /run && exec containerd --config \"$0\"",
            ])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let runtime = Runtime::new(&directory.path().join("containerd.sock")).unwrap();
        let started = Self {
            directory,
            runtime,
            cgroup,
            child,
        };
        let mut said = String::new();
        while !said.contains("containerd successfully booted") {
            let more = log.read_line(&mut said).unwrap();
            assert!(more > 0, "containerd ended:\n{said}");
        }
        // It must not stall on a full pipe.
        std::thread::spawn(move || {
            let mut line = String::new();
            while log.read_line(&mut line).is_ok_and(|it| it > 0) {
                if std::env::var_os("CONTAINERD_LOG").is_some() {
                    eprint!("{line}");
                }
                line.clear();
            }
        });
        let archive = started.directory.path().join("image.tar");
        image::write(&archive, IMAGE);
        let import = Command::new("ctr")
            .arg("--address")
            .arg(started.directory.path().join("containerd.sock"))
            .args(["--namespace", "k8s.io", "images", "import"])
            .arg(&archive)
            .output()
            .unwrap();
        assert!(import.status.success(), "{}", String::from_utf8_lossy(&import.stderr));
        started
    }

    /// Where a pod's logs are.
    pub fn log_directory(&self, pod: &str) -> PathBuf {
        let logs = self.directory.path().join("logs");
        fairlead_kubelet::logs::pod_directory(&logs, "default", pod, pod)
    }

    /// The settings of a sandbox in this host's network.
    pub fn sandbox(&self, pod: &str) -> v1::PodSandboxConfig {
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: pod.to_owned(),
                namespace: "default".to_owned(),
                uid: pod.to_owned(),
                attempt: 0,
            }),
            log_directory: self.log_directory(pod).display().to_string(),
            linux: Some(v1::LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup.clone(),
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(host_network()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Makes and starts a container that runs this script; its id.
    pub async fn container(&self, sandbox_id: &str, pod: &str, name: &str, attempt: u32, script: &str) -> String {
        let label = |name: &str, value: &str| (format!("io.kubernetes.{name}"), value.to_owned());
        let labels = [
            label("pod.name", pod),
            label("pod.namespace", "default"),
            label("pod.uid", pod),
            label("container.name", name),
        ];
        let config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata {
                name: name.to_owned(),
                attempt,
            }),
            image: Some(v1::ImageSpec {
                image: IMAGE.to_owned(),
                ..Default::default()
            }),
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            labels: labels.into(),
            log_path: fairlead_kubelet::logs::container_file(name, attempt)
                .display()
                .to_string(),
            stdin: name == "talk",
            stdin_once: name == "talk",
            linux: Some(v1::LinuxContainerConfig {
                security_context: Some(v1::LinuxContainerSecurityContext {
                    namespace_options: Some(host_network()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        std::fs::create_dir_all(self.log_directory(pod).join(name)).unwrap();
        let id = self
            .runtime
            .create_container(sandbox_id, config, self.sandbox(pod))
            .await
            .unwrap();
        self.runtime.start_container(&id).await.unwrap();
        id
    }
}

fn host_network() -> v1::NamespaceOption {
    v1::NamespaceOption {
        network: v1::NamespaceMode::Node.into(),
        pid: v1::NamespaceMode::Container.into(),
        ..Default::default()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let pid = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        for first in children.split_whitespace().filter_map(|it| it.parse().ok()) {
            // Gone already is as good.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(first), nix::sys::signal::Signal::SIGKILL);
        }
        // `unshare` waits for it, and it for all others.
        let _ = self.child.wait();
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        for hierarchy in hierarchies.map(|it| it.path()).chain(["/sys/fs/cgroup".into()]) {
            remove_cgroup(&hierarchy.join(self.cgroup.trim_start_matches('/')));
        }
    }
}

/// Groups are removed from the leaves on; their files go with them.
fn remove_cgroup(path: &Path) {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|it| it.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(path);
}
