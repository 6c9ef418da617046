//! The orchestrator's subcommands, as one types them: a server, a kubeconfig, the real kubectl, a snapshot, a restore.

#[path = "../../orchestrator/apiserver/tests/kubectl/programs.rs"]
mod programs;

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

const FAIRLEAD: &str = env!("CARGO_BIN_EXE_fairlead");
/// Time until a server must have started or ended.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server in a directory. Ended by SIGTERM, or killed with the test.
struct Server {
    child: Child,
    kubeconfig: PathBuf,
}

impl Server {
    fn start(data_dir: &Path) -> Self {
        let kubeconfig = data_dir.join("admin.kubeconfig");
        // Written when the server serves.
        let _ = std::fs::remove_file(&kubeconfig);
        let child = Command::new(FAIRLEAD)
            .args([
                "apiserver",
                "--bind-address",
                "127.0.0.1",
                "--secure-port",
                "0",
                "--data-dir",
            ])
            .arg(data_dir)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut server = Self { child, kubeconfig };
        let begun = Instant::now();
        while !server.kubeconfig.exists() {
            assert!(server.child.try_wait().unwrap().is_none(), "the server ended by itself");
            assert!(begun.elapsed() < PATIENCE, "the server does not start");
            // A file that another process will make: there is nothing to wait on but time.
            std::thread::yield_now();
        }
        server
    }

    fn kubectl(&self, home: &Path, arguments: &[&str]) -> Output {
        Command::new(programs::kubectl("1.36"))
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(arguments)
            .env("HOME", home)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn stop(mut self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        assert!(self.child.wait().unwrap().success(), "SIGTERM is a clean end");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Gone already after `stop`.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn fairlead(arguments: &[&str]) -> Output {
    Command::new(FAIRLEAD)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn what_was_written_survives_a_restart_and_a_restore() {
    let directory = TempDir::new().unwrap();
    let (data, home) = (directory.path().join("data"), directory.path());
    let shown = data.to_str().unwrap();
    let server = Server::start(&data);
    let made = server.kubectl(home, &["create", "configmap", "kept", "--from-literal=a=b"]);
    assert!(made.status.success(), "{}", text(&made));
    // While it runs, nobody else may have the store.
    let check = fairlead(&["store", "check", "--data-dir", shown]);
    assert!(!check.status.success(), "{}", text(&check));
    server.stop();

    let check = fairlead(&["store", "check", "--data-dir", shown]);
    assert!(
        check.status.success() && text(&check).starts_with("sound: "),
        "{}",
        text(&check)
    );
    let snapshot = directory.path().join("snapshot");
    let copied = fairlead(&["store", "snapshot", snapshot.to_str().unwrap(), "--data-dir", shown]);
    assert!(copied.status.success(), "{}", text(&copied));

    let server = Server::start(&data);
    let kept = server.kubectl(home, &["get", "configmap", "kept", "-o", "jsonpath={.data.a}"]);
    assert_eq!(text(&kept), "b");
    assert!(server.kubectl(home, &["delete", "configmap", "kept"]).status.success());
    server.stop();

    // Never over something that is there.
    let over = fairlead(&["store", "restore", snapshot.to_str().unwrap(), "--data-dir", shown]);
    assert!(!over.status.success(), "{}", text(&over));
    std::fs::rename(data.join("store"), data.join("old")).unwrap();
    let restored = fairlead(&["store", "restore", snapshot.to_str().unwrap(), "--data-dir", shown]);
    assert!(restored.status.success(), "{}", text(&restored));
    let server = Server::start(&data);
    let kept = server.kubectl(home, &["get", "configmap", "kept", "-o", "jsonpath={.data.a}"]);
    assert_eq!(text(&kept), "b");
    server.stop();
}

#[test]
fn users_get_kubeconfigs_of_their_own() {
    let directory = TempDir::new().unwrap();
    let data = directory.path().join("data");
    let early = fairlead(&["kubeconfig", "--data-dir", data.to_str().unwrap()]);
    assert!(!early.status.success());
    assert!(text(&early).contains("start `fairlead apiserver"), "{}", text(&early));
    let mut server = Server::start(&data);
    let admin = std::fs::read_to_string(&server.kubeconfig).unwrap();
    let url = admin
        .lines()
        .find_map(|line| line.trim().strip_prefix("server: "))
        .unwrap()
        .trim_matches('"')
        .to_owned();
    let file = directory.path().join("jane");
    let path = file.to_str().unwrap();
    let arguments = [
        "kubeconfig",
        "--data-dir",
        data.to_str().unwrap(),
        "--server",
        &url,
        "--user",
        "jane",
        "--group",
        "dev",
        "-o",
        path,
    ];
    let made = fairlead(&arguments);
    assert!(made.status.success(), "{}", text(&made));
    server.kubeconfig = file;
    let who = server.kubectl(
        directory.path(),
        &[
            "auth",
            "whoami",
            "-o",
            "jsonpath={.status.userInfo.username} {.status.userInfo.groups}",
        ],
    );
    assert_eq!(text(&who), "jane [\"dev\",\"system:authenticated\"]");
    let refused = server.kubectl(directory.path(), &["get", "secrets"]);
    assert!(
        text(&refused).contains("User \"jane\" cannot list resource \"secrets\""),
        "{}",
        text(&refused)
    );
    server.stop();
}

#[test]
fn a_taken_port_and_a_wrong_range_are_named() {
    let directory = TempDir::new().unwrap();
    let data = directory.path().to_str().unwrap();
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let refused = fairlead(&[
        "apiserver",
        "--data-dir",
        data,
        "--bind-address",
        "127.0.0.1",
        "--secure-port",
        &port,
    ]);
    assert!(
        text(&refused).contains("--secure-port") && text(&refused).contains(&port),
        "{}",
        text(&refused)
    );
    let refused = fairlead(&[
        "apiserver",
        "--data-dir",
        data,
        "--secure-port",
        "0",
        "--service-node-port-range",
        "9-1",
    ]);
    assert!(
        text(&refused).contains("--service-node-port-range"),
        "{}",
        text(&refused)
    );
}
