//! `fairlead up` on a node, driven by the real kubectl, as long as a guard lives.

use crate::{
    agent::binary,
    proto::{Operation, Output},
    topology::{Node, Topology, addr},
};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The test image.
pub const IMAGE: &str = "fairlead.dev/testbox:1";
/// How long a cluster may take to start, or anything in it to happen, before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// kubectl's version in most tests; the API server's tests have older ones too.
const KUBECTL: &str = "kubectl-1.36/usr/bin/kubectl";

/// A cluster of one process on one node of a topology.
#[derive(Debug)]
pub struct Cluster<'t> {
    /// The node it runs on.
    pub node: &'t Node,
    binary: PathBuf,
    data: PathBuf,
    run: PathBuf,
    flags: Vec<String>,
    /// Cgroup of its pods, in every hierarchy.
    cgroup: String,
    log: PathBuf,
    pid: Cell<Option<i32>>,
}

impl<'t> Cluster<'t> {
    /// Starts a cluster with the test image on `node`, with more flags, and waits until its node is ready. It is taken down
    /// with the topology.
    ///
    /// # Errors
    /// If it does not start, with its output.
    pub fn start(topology: &'t Topology, node: &'t Node, flags: &[&str]) -> Result<Self> {
        let data = node.dir.join("cluster");
        // Sockets have short paths.
        let run = PathBuf::from(format!("/run/{}-{}", name_of(topology), node.number));
        let cluster = Self {
            node,
            binary: binary()?,
            log: node.dir.join("up.log"),
            flags: flags.iter().map(ToString::to_string).collect(),
            pid: Cell::new(None),
            cgroup: format!("{}-{}", name_of(topology), node.number),
            data,
            run,
        };
        topology.scratch().wait_for(node.actor.pid())?;
        let [data, run] = [&cluster.data, &cluster.run].map(|it| it.to_string_lossy().into_owned());
        node.actor.call::<()>(Operation::AtEnd {
            program: cluster.binary.to_string_lossy().into_owned(),
            args: ["down", "--all", "--data-dir", &data, "--run-dir", &run]
                .map(str::to_owned)
                .to_vec(),
        })?;
        cluster.launch()?;
        Ok(cluster)
    }

    /// Starts the process (again), and waits until it says that the cluster is ready.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn launch(&self) -> Result<()> {
        // What an earlier process said is not what this one says.
        let _ = fs::remove_file(&self.log);
        let [data, run, sockets] =
            [&self.data, &self.run, &self.node.cgroup].map(|it| it.to_string_lossy().into_owned());
        let address = self.node.ip(addr::Family::V4).to_string();
        let mut args: Vec<String> = [
            ("--data-dir", data.as_str()),
            ("--run-dir", &run),
            ("--node-name", &self.node.name),
            ("--node-ip", &address),
            ("--advertise-address", &address),
            ("--devices", "eth0"),
            ("--socket-cgroup-root", &sockets),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value.to_owned()])
        .collect();
        args.insert(0, "up".to_owned());
        args.extend(["--pod-cgroup-root".to_owned(), format!("/{}", self.cgroup)]);
        args.extend(["--image".to_owned(), image()?.to_string_lossy().into_owned()]);
        args.extend(self.flags.iter().cloned());
        let pid = self.node.actor.call(Operation::Spawn {
            program: self.binary.to_string_lossy().into_owned(),
            args,
            env: Vec::new(),
            log: self.log.to_string_lossy().into_owned(),
        })?;
        self.pid.set(Some(pid));
        self.until("the cluster is ready", || {
            if let Some(code) = self.node.actor.call::<Option<Option<i32>>>(Operation::Exited(pid))? {
                bail!("fairlead up ended with {code:?}:\n{}", self.said());
            }
            let said = fs::read_to_string(&self.log).unwrap_or_default();
            Ok(said.contains("The cluster is ready").then_some(()))
        })
    }

    /// What nodes join with.
    ///
    /// # Panics
    /// If the server has none.
    pub fn token(&self) -> String {
        let data = self.data.to_string_lossy();
        let program = self.binary.to_string_lossy();
        let output = self.node.actor.run(&program, &["token", "--data-dir", &data], "");
        let output = output.unwrap_or_else(|error| panic!("{error:#}"));
        assert_eq!(output.code, Some(0), "{output:?}");
        output.stdout.trim().to_owned()
    }

    /// Makes another host a node of this cluster, and waits until it is ready. It is taken down with the topology.
    ///
    /// # Errors
    /// It does not join, with its output.
    pub fn try_join(&self, topology: &Topology, node: &Node, token: &str) -> Result<()> {
        let data = node.dir.join("agent").to_string_lossy().into_owned();
        let run = format!("/run/{}-{}", name_of(topology), node.number);
        let places = ["--data-dir", data.as_str(), "--run-dir", &run];
        let program = self.binary.to_string_lossy().into_owned();
        topology.scratch().wait_for(node.actor.pid())?;
        node.actor.call::<()>(Operation::AtEnd {
            program: program.clone(),
            args: ["down", "--all"]
                .iter()
                .chain(&places)
                .map(ToString::to_string)
                .collect(),
        })?;
        let server = format!("https://{}:6443", self.node.ip(addr::Family::V4));
        let (address, sockets) = (
            node.ip(addr::Family::V4).to_string(),
            node.cgroup.to_string_lossy().into_owned(),
        );
        let image = image()?.to_string_lossy().into_owned();
        let mut args = vec!["agent", "--server", &server, "--token", token, "--image", &image];
        args.extend(places);
        args.extend(["--node-name", &node.name, "--node-ip", &address, "--devices", "eth0"]);
        let cgroup = format!("/{}-{}", name_of(topology), node.number);
        args.extend(["--socket-cgroup-root", &sockets, "--pod-cgroup-root", &cgroup]);
        let log = node.dir.join("agent.log");
        let _ = fs::remove_file(&log);
        let pid: i32 = node.actor.call(Operation::Spawn {
            program,
            args: args.iter().map(ToString::to_string).collect(),
            env: Vec::new(),
            log: log.to_string_lossy().into_owned(),
        })?;
        self.until("the node is ready", || {
            let said = fs::read_to_string(&log).unwrap_or_default();
            if let Some(code) = node.actor.call::<Option<Option<i32>>>(Operation::Exited(pid))? {
                bail!("fairlead agent ended with {code:?}:\n{said}");
            }
            Ok(said.contains("The node is ready").then_some(()))
        })
    }

    /// Ends the process with a signal; pods go on. Its exit code.
    ///
    /// # Errors
    /// If it is not running.
    pub fn stop(&self, signal: i32) -> Result<Option<i32>> {
        let pid = self.pid.take().context("the cluster does not run")?;
        self.node.actor.call(Operation::Kill {
            pid,
            signal,
            grace_ms: 30_000,
        })
    }

    /// The process id of `fairlead up`, while it runs.
    pub fn pid(&self) -> Option<i32> {
        self.pid.get()
    }

    /// What the process printed, and the end of its log.
    pub fn said(&self) -> String {
        let log = fs::read_to_string(self.data.join("log/fairlead.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        format!("{}\n{tail}", fs::read_to_string(&self.log).unwrap_or_default())
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The run directory.
    pub fn run_dir(&self) -> &Path {
        &self.run
    }

    /// Runs kubectl on the node, as the administrator.
    ///
    /// # Errors
    /// If kubectl cannot be run; its own failure is in the output.
    pub fn try_kubectl(&self, args: &[&str], stdin: &str) -> Result<Output> {
        let config = self.data.join("admin.kubeconfig").to_string_lossy().into_owned();
        let mut all = vec!["--kubeconfig", &config, "--cache-dir"];
        let cache = self.node.dir.join("kubectl-cache").to_string_lossy().into_owned();
        all.push(&cache);
        all.extend(args);
        let program = kubectl()?;
        self.node.actor.run(&program.to_string_lossy(), &all, stdin)
    }

    /// Runs kubectl, which must succeed; what it printed.
    ///
    /// # Panics
    /// If it fails: command, output and the cluster's log.
    pub fn kubectl(&self, args: &[&str]) -> String {
        self.kubectl_with(args, "")
    }

    /// As [`Cluster::kubectl`] with a standard input.
    ///
    /// # Panics
    /// As [`Cluster::kubectl`].
    pub fn kubectl_with(&self, args: &[&str], stdin: &str) -> String {
        let output = self
            .try_kubectl(args, stdin)
            .unwrap_or_else(|error| panic!("{error:#}"));
        assert_eq!(
            output.code,
            Some(0),
            "kubectl {}\n{}{}\n{}",
            args.join(" "),
            output.stdout,
            output.stderr,
            self.said()
        );
        output.stdout.trim_end().to_owned()
    }

    /// An object, or a list, as JSON.
    ///
    /// # Panics
    /// As [`Cluster::kubectl`].
    pub fn get(&self, what: &str) -> Value {
        let words: Vec<&str> = what.split(' ').collect();
        let text = self.kubectl(&[&["get", "-o", "json"], words.as_slice()].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{what}: {error}: {text}"))
    }

    /// Waits until `look` finds something. Others' work is followed by looking: kubectl's own `wait` cannot see it all.
    ///
    /// # Errors
    /// What `look` failed with, or [`PATIENCE`] is over, with the cluster's log.
    pub fn until<T>(&self, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let begun = Instant::now();
        loop {
            if let Some(found) = look()? {
                return Ok(found);
            }
            if begun.elapsed() > PATIENCE {
                bail!("{what}: not within {} s\n{}", PATIENCE.as_secs(), self.said());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a pod is ready.
    ///
    /// # Panics
    /// If it is not within [`PATIENCE`].
    pub fn wait_ready(&self, what: &str) {
        let patience = format!("--timeout={}s", PATIENCE.as_secs());
        self.kubectl(&["wait", "--for=condition=Ready", &patience, what]);
    }
}

/// A name of the topology that no other one has.
fn name_of(topology: &Topology) -> String {
    let name = topology.scratch().dir.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn tools() -> Result<PathBuf> {
    if let Some(tools) = std::env::var_os("FAIRLEAD_TOOLS").filter(|it| !it.is_empty()) {
        return Ok(tools.into());
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .filter(|it| !it.is_empty())
        .map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|it| Path::new(&it).join(".cache"));
    let cache = cache
        .or(home)
        .context("no directory for tools: set FAIRLEAD_TOOLS, or HOME")?;
    Ok(cache.join("fairlead/tools"))
}

/// The distribution's kubectl.
///
/// # Errors
/// Set-up has not fetched it.
pub fn kubectl() -> Result<PathBuf> {
    let path = tools()?.join(KUBECTL);
    if !path.is_file() {
        bail!("{} is not there: cargo xtask setup", path.display());
    }
    Ok(path)
}

/// The test image's archive, beside cargo's profiles, or what `FAIRLEAD_TEST_IMAGE` says.
fn image() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("FAIRLEAD_TEST_IMAGE") {
        return Ok(path.into());
    }
    let me = std::env::current_exe().context("find this executable")?;
    let found = me
        .ancestors()
        .map(|it| it.join("images/test.tar"))
        .find(|it| it.is_file());
    found.context("the test image is not there: cargo xtask image test")
}
