//! The distribution's containerd starts the plugin for sandboxes, as a kubelet has it.

use crate::{
    rig::{Host, eventually, may_run},
    spec::held,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};
use tonic::{
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};

const IMAGE: &str = "fairlead.test/pause:1";

/// The few messages of the CRI (`runtime/v1/api.proto`) that this needs.
mod cri {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct RunPodSandboxRequest {
        #[prost(message, optional, tag = "1")]
        pub(super) config: Option<PodSandboxConfig>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct PodSandboxConfig {
        #[prost(message, optional, tag = "1")]
        pub(super) metadata: Option<PodSandboxMetadata>,
        #[prost(message, optional, tag = "8")]
        pub(super) linux: Option<LinuxPodSandboxConfig>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct PodSandboxMetadata {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(string, tag = "2")]
        pub(super) uid: String,
        #[prost(string, tag = "3")]
        pub(super) namespace: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct LinuxPodSandboxConfig {
        #[prost(string, tag = "1")]
        pub(super) cgroup_parent: String,
    }

    /// Of several requests and of one answer.
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct SandboxId {
        #[prost(string, tag = "1")]
        pub(super) id: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct PodSandboxStatusResponse {
        #[prost(message, optional, tag = "1")]
        pub(super) status: Option<PodSandboxStatus>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct PodSandboxStatus {
        #[prost(message, optional, tag = "5")]
        pub(super) network: Option<PodSandboxNetworkStatus>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct PodSandboxNetworkStatus {
        #[prost(string, tag = "1")]
        pub(super) ip: String,
        #[prost(message, repeated, tag = "2")]
        pub(super) more: Vec<PodIp>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct PodIp {
        #[prost(string, tag = "1")]
        pub(super) ip: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Nothing {}
}

/// A containerd with directories, mounts and processes of its own. When it is dropped, or the test process dies, the
/// kernel ends everything in it.
struct Containerd {
    child: Child,
    cgroup: String,
    client: Grpc<Channel>,
}

impl Containerd {
    fn start(host: &Host) -> Self {
        let dir = host.directory.path().join("containerd");
        fs::create_dir(&dir).unwrap();
        let at = |name: &str| dir.join(name).display().to_string();
        let (bin, conf) = (host.config.cni_bin_dir.display(), host.config.cni_conf_dir.display());
        let config = format!(
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
bin_dir = "{bin}"
conf_dir = "{conf}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"#,
            root = at("root"),
            state = at("state"),
            socket = at("containerd.sock"),
            opt = at("opt"),
        );
        let file = dir.join("config.toml");
        fs::write(&file, config).unwrap();
        // Shims keep sockets below /run wherever the state is, so they get a /run of their own.
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            "--",
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]);
        command
            .args([
                "sh",
                "-c",
                "mount -t tmpfs none /run && exec containerd --config \"$0\"",
            ])
            .arg(&file);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // The kernel kills it with the thread that started it, so that one has to stay: this one.
        let mut child = host.netns.enter_and(|| command.spawn().unwrap());
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("containerd successfully booted") {
            assert!(log.read_line(&mut said).unwrap() > 0, "containerd ended:\n{said}");
        }
        // It must not stall on a full pipe.
        thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        let archive = dir.join("image.tar");
        write_image(&archive);
        let mut import = Command::new("ctr");
        import
            .args([
                "--address",
                &at("containerd.sock"),
                "--namespace",
                "k8s.io",
                "images",
                "import",
            ])
            .arg(&archive);
        let output = import.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let channel = Endpoint::from_shared(format!("unix:{}", at("containerd.sock")))
            .unwrap()
            .connect_lazy();
        Self {
            child,
            cgroup: format!("/fairlead-cni-test-{}", std::process::id()),
            client: Grpc::new(channel),
        }
    }

    async fn call<Q, A>(&mut self, method: &'static str, request: Q) -> Result<A, tonic::Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        self.client.ready().await.unwrap();
        let path = PathAndQuery::try_from(format!("/runtime.v1.RuntimeService/{method}")).unwrap();
        let codec = tonic_prost::ProstCodec::<Q, A>::default();
        let answer = self.client.unary(tonic::Request::new(request), path, codec).await?;
        Ok(answer.into_inner())
    }

    async fn run(&mut self, pod: &str) -> Result<String, tonic::Status> {
        let config = cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: pod.into(),
                uid: pod.into(),
                namespace: "default".into(),
            }),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup.clone(),
            }),
        };
        let request = cri::RunPodSandboxRequest { config: Some(config) };
        let sandbox: cri::SandboxId = self.call("RunPodSandbox", request).await?;
        Ok(sandbox.id)
    }

    async fn ips(&mut self, id: &str) -> Vec<String> {
        let request = cri::SandboxId { id: id.into() };
        let answer: cri::PodSandboxStatusResponse = self.call("PodSandboxStatus", request).await.unwrap();
        let network = answer.status.unwrap().network.unwrap();
        let more = network.more.into_iter().map(|ip| ip.ip);
        std::iter::once(network.ip).chain(more).collect()
    }

    async fn remove(&mut self, id: &str) {
        for method in ["StopPodSandbox", "RemovePodSandbox"] {
            let _: cri::Nothing = self.call(method, cri::SandboxId { id: id.into() }).await.unwrap();
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        for first in children.split_whitespace().filter_map(|it| it.parse().ok()) {
            // Gone already is as good.
            let _ = kill(Pid::from_raw(first), Signal::SIGKILL);
        }
        // `unshare` waits for it, and it for all others.
        let _ = self.child.wait();
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        for hierarchy in hierarchies.map(|it| it.path()).chain(["/sys/fs/cgroup".into()]) {
            remove_cgroup(&hierarchy.join(self.cgroup.trim_start_matches('/')));
        }
    }
}

/// Groups are removed from the leaves on; their files go with them.
fn remove_cgroup(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|it| it.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}

/// An image of this host's `sleep`, as an OCI archive.
fn write_image(archive: &Path) {
    let mut layer = tar::Builder::new(Vec::new());
    for file in needed(Path::new("/bin/sleep")) {
        let inside = file.strip_prefix("/").unwrap().to_owned();
        append(&mut layer, &inside, &fs::read(&file).unwrap());
    }
    let layer = layer.into_inner().unwrap();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Cmd": ["/bin/sleep", "infinity"] },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    });
    let config = config.to_string().into_bytes();
    let descriptor = |kind: &str, bytes: &[u8]| {
        let kind = format!("application/vnd.oci.image.{kind}");
        json!({ "mediaType": kind, "digest": digest(bytes), "size": bytes.len() })
    };
    let manifest = json!({
        "schemaVersion": 2,
        "config": descriptor("config.v1+json", &config),
        "layers": [descriptor("layer.v1.tar", &layer)],
    });
    let manifest = manifest.to_string().into_bytes();
    let mut listed = descriptor("manifest.v1+json", &manifest);
    listed["annotations"] = json!({ "io.containerd.image.name": IMAGE });
    let index = json!({ "schemaVersion": 2, "manifests": [listed] }).to_string();
    let mut out = tar::Builder::new(fs::File::create(archive).unwrap());
    for blob in [&layer, &config, &manifest] {
        append(&mut out, &Path::new("blobs").join(digest(blob).replace(':', "/")), blob);
    }
    append(&mut out, Path::new("index.json"), index.as_bytes());
    append(&mut out, Path::new("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#);
    out.into_inner().unwrap().flush().unwrap();
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|it| format!("{it:02x}")).collect();
    format!("sha256:{hex}")
}

fn append(out: &mut tar::Builder<impl std::io::Write>, path: &Path, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o755);
    out.append_data(&mut header, path, bytes).unwrap();
}

/// A program with its loader and libraries, as `ldd` prints them.
fn needed(program: &Path) -> BTreeSet<PathBuf> {
    let said = crate::rig::run("ldd", &[program.to_str().unwrap()]);
    let paths = said.split_whitespace().filter(|word| word.starts_with('/'));
    paths.map(PathBuf::from).chain([program.to_owned()]).collect()
}

#[test]
fn containerd_gives_sandboxes_our_network() {
    let test = "containerd_gives_sandboxes_our_network";
    if !may_run(test) {
        return;
    }
    let there = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
    };
    if let Some(missing) = ["containerd", "runc", "ctr", "setpriv", "unshare"]
        .into_iter()
        .find(|it| !there(it))
    {
        crate::rig::skip(test, &format!("{missing} is not installed"));
        return;
    }
    let host = Host::running(&["10.1.0.0/24", "fd00:10:1::/64"]);
    eventually("the network is announced", || {
        host.config.cni_conf_dir.join(fairlead_cni::CONFLIST).exists()
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut containerd = Containerd::start(&host);
        let (a, b) = (containerd.run("a").await.unwrap(), containerd.run("b").await.unwrap());
        assert_eq!(containerd.ips(&a).await, ["10.1.0.1", "fd00:10:1::1"]);
        assert_eq!(containerd.ips(&b).await, ["10.1.0.2", "fd00:10:1::2"]);
        assert_eq!(held(&host), BTreeSet::from([a.clone(), b.clone()]));
        let pods: Vec<_> = host
            .journal()
            .iter()
            .filter_map(|line| line["pod"].as_str().map(str::to_owned))
            .collect();
        assert_eq!(pods, ["default/a", "default/b"]);
        host.netns.ip("link add eth0 type bridge");
        host.netns.ip("addr add 192.168.0.1/24 dev eth0");
        host.netns.ip("addr add fd00:192:168::1/64 dev eth0 nodad");
        host.netns.ip("link set eth0 up");
        for ip in ["10.1.0.1", "fd00:10:1::2"] {
            // Nobody listens there: the pod itself says so.
            let refused = host.netns.run(|| std::net::TcpStream::connect((ip, 9)).unwrap_err());
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{ip}: {refused}");
        }
        containerd.remove(&a).await;
        assert_eq!(held(&host), BTreeSet::from([b.clone()]));
        assert_eq!(host.pod_links().len(), 1);
        containerd.remove(&b).await;
        assert!(held(&host).is_empty() && host.pod_links().is_empty());
    });
}
