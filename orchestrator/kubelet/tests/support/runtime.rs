//! containerd with directories of its own, and the images of the tests in it.

use super::{network, programs};
use fairlead_images::{Image, Layer, PAUSE_IMAGE, pause};
use fairlead_kubelet::cri::Runtime;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// An image with a shell and the usual programs.
pub const TOOLS: &str = "fairlead.test/tools:1";

/// Programs that the tests use.
const APPLETS: [&str; 25] = [
    "sh", "sleep", "cat", "echo", "true", "false", "kill", "ls", "httpd", "nc", "mkdir", "touch", "test", "dd", "head",
    "tail", "sed", "env", "grep", "rm", "id", "ps", "date", "stat", "wc",
];

pub struct Containerd {
    directory: PathBuf,
    child: Child,
}

impl Containerd {
    pub async fn start(directory: &Path) -> Self {
        let at = |name: &str| directory.join(name);
        network::write(&at("cni/bin"), &at("cni/conf"));
        let configuration = format!(
            r#"version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
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
            root = at("containerd").display(),
            state = at("state").display(),
            socket = at("c.sock").display(),
            bin = at("cni/bin").display(),
            conf = at("cni/conf").display(),
        );
        fs::write(at("config.toml"), configuration).unwrap();
        let log = File::create(at("containerd.log")).unwrap();
        let child = Command::new("containerd")
            .arg("--config")
            .arg(at("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("containerd is not installed");
        let this = Self {
            directory: directory.to_owned(),
            child,
        };
        this.wait_until_ready().await;
        this.import(pause().unwrap());
        this.import(tools(TOOLS));
        this
    }

    async fn wait_until_ready(&self) {
        let runtime = self.client();
        while runtime.status().await.is_err() {
            // Its socket comes when it comes; there is nothing to wait on.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.join("c.sock")
    }

    pub fn client(&self) -> Runtime {
        Runtime::new(&self.socket()).unwrap()
    }

    pub fn import(&self, image: Image) {
        let archive = self.directory.join("image.tar");
        image.write(File::create(&archive).unwrap()).unwrap();
        self.ctr(&["images", "import", archive.to_str().unwrap()]);
        fs::remove_file(archive).unwrap();
    }

    pub fn ctr(&self, arguments: &[&str]) {
        let output = Command::new("ctr")
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", "k8s.io"])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "ctr {arguments:?}: {output:?}");
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("containerd.log")).unwrap_or_default()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // The namespace of processes ends what containerd left running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The tools under a name.
pub fn tools(name: &str) -> Image {
    let mut layer = Layer::default();
    let busybox = fs::read(programs::unpacked("busybox-static")).unwrap();
    layer.file("bin/busybox", 0o755, &busybox).unwrap();
    for applet in APPLETS {
        layer.link(&format!("bin/{applet}"), "busybox").unwrap();
    }
    layer.directory("tmp", 0o1777).unwrap();
    layer.directory("dev", 0o755).unwrap();
    layer.directory("proc", 0o555).unwrap();
    layer.directory("sys", 0o555).unwrap();
    layer
        .file(
            "etc/passwd",
            0o644,
            b"root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n",
        )
        .unwrap();
    Image::new(name, vec![layer])
        .environment(["PATH=/bin"])
        .command(["/bin/sh"])
}
