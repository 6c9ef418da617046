//! Transcripts: commands for bash, each followed by what it printed.
//!
//! ```text
//! # a remark
//! $ kubectl apply -f - <<EOF
//! > kind: ConfigMap
//! > EOF
//! configmap/a created
//! $ false
//! [exit 1]
//! ```
#![allow(unreachable_pub, reason = "nothing else sees it")]

use crate::{normal::normalise, programs, support::TestServer};
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::process::Command;

/// How long one command may take before it counts as hung. Far more than any takes.
const HUNG: Duration = Duration::from_secs(120);

/// Runs a transcript with each kubectl, and compares.
pub async fn check(name: &str) {
    let [newest, oldest] = programs::KUBECTLS;
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kubectl/golden");
    let common = directory.join(format!("{name}.txt"));
    let own = directory.join(format!("{name}.{oldest}.txt"));
    let script = fs::read_to_string(&common).unwrap();
    let (new, old) = tokio::join!(run(&script, newest), run(&script, oldest));
    let expected_of_old = fs::read_to_string(&own).unwrap_or_else(|_| script.clone());
    if (&new, &old) == (&script, &expected_of_old) {
        return;
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&common, &new).unwrap();
        if old != new {
            fs::write(&own, &old).unwrap();
        } else if own.exists() {
            fs::remove_file(&own).unwrap();
        }
        return;
    }
    panic!(
        "transcript {name} differs; UPDATE_GOLDEN=1 rewrites it\nkubectl {newest}:\n{}\nkubectl {oldest}:\n{}",
        difference(&script, &new),
        difference(&expected_of_old, &old)
    );
}

/// The transcript as a kubectl makes it, against a new server.
async fn run(script: &str, minor: &str) -> String {
    let server = TestServer::start().await;
    let kubelet = crate::kubelet::start(&server.running).await;
    let session = Session::new(&server, minor, kubelet);
    let mut found = String::new();
    for part in parts(script) {
        match part {
            Part::Text(text) => found.push_str(&text),
            Part::Command(shown, command) => {
                found.push_str(&shown);
                found.push_str(&normalise(&session.run(&command).await, session.home()));
            }
        }
    }
    found
}

enum Part {
    Text(String),
    /// As it stands in the file, and as bash gets it.
    Command(String, String),
}

/// Remarks, empty lines and commands; what commands printed is left out.
fn parts(script: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut lines = script.lines().peekable();
    while let Some(line) = lines.next() {
        if line.is_empty() || line.starts_with("# ") {
            // A remark stands before a command, an empty line before a remark; any other was printed.
            let before = if line.is_empty() { "# " } else { "$ " };
            if lines.peek().is_some_and(|next| next.starts_with(before)) {
                parts.push(Part::Text(format!("{line}\n")));
            }
        } else if let Some(first) = line.strip_prefix("$ ") {
            let (mut shown, mut command) = (format!("{line}\n"), format!("{first}\n"));
            while let Some(more) = lines.next_if(|it| it.starts_with("> ") || *it == ">") {
                let _ = writeln!(shown, "{more}");
                let _ = writeln!(command, "{}", more.strip_prefix("> ").unwrap_or_default());
            }
            parts.push(Part::Command(shown, command));
        }
    }
    parts
}

/// A user's shell: a home of its own, and the kubectl under test first on `PATH`.
struct Session {
    home: tempfile::TempDir,
    kubeconfig: PathBuf,
    kubectl: PathBuf,
    /// Where a stand-in for a kubelet listens.
    kubelet: u16,
}

impl Session {
    fn new(server: &TestServer, minor: &str, kubelet: u16) -> Self {
        Self {
            home: tempfile::tempdir().unwrap(),
            kubeconfig: server.kubeconfig(),
            kubectl: programs::kubectl(minor),
            kubelet,
        }
    }

    fn home(&self) -> &Path {
        self.home.path()
    }

    /// What a command printed, both streams in order, and how it ended.
    async fn run(&self, command: &str) -> String {
        let path = std::env::var("PATH").unwrap_or_default();
        let bin = self.kubectl.parent().unwrap().display();
        let child = Command::new("bash")
            .arg("-c")
            .arg(format!("exec 2>&1\n{command}"))
            .env_clear()
            .env("PATH", format!("{bin}:{path}"))
            .env("HOME", self.home())
            .env("TMPDIR", self.home())
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBELET_PORT", self.kubelet.to_string())
            .env("TZ", "UTC")
            .env("LC_ALL", "C.UTF-8")
            .current_dir(self.home())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let Ok(output) = tokio::time::timeout(HUNG, child).await else {
            return format!("[no end within {} s]\n", HUNG.as_secs());
        };
        let output = output.unwrap();
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push_str("[no newline]\n");
        }
        if !output.status.success() {
            let _ = writeln!(text, "[exit {}]", output.status.code().unwrap_or(-1));
        }
        text
    }
}

/// The lines that differ, by a longest common subsequence, each run of them after its command.
fn difference(expected: &str, found: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    let mut common = vec![vec![0_usize; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = if old[i] == new[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut text, mut i, mut j) = (String::new(), 0, 0);
    let mut command = None;
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            if old[i].starts_with("$ ") {
                command = Some(old[i]);
            }
            (i, j) = (i + 1, j + 1);
            continue;
        }
        if let Some(command) = command.take() {
            let _ = writeln!(text, "  {command}");
        }
        if j == new.len() || i < old.len() && common[i + 1][j] >= common[i][j + 1] {
            let _ = writeln!(text, "- {}", old[i]);
            i += 1;
        } else {
            let _ = writeln!(text, "+ {}", new[j]);
            j += 1;
        }
    }
    text
}
