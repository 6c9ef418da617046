//! `fairlead proxy` on a node, as long as a guard lives.

use crate::{actor::beside, proto::Operation, topology::Node};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    cell::Cell,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Where `/status` is, on each node: the default of `--metrics-bind-address`.
pub const STATUS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10_249);
/// How long an agent may take to start, or to bring a change into the kernel, before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where each node's own bpffs is mounted.
const BPFFS: &str = "/sys/fs/bpf";

/// `--forwarding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// Up the kernel's stack.
    Stack,
    /// From link to link.
    Direct,
}

impl Forwarding {
    /// As the flag spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stack => "stack",
            Self::Direct => "direct",
        }
    }
}

/// How to run the agent.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// Whether sockets are translated at connect (`--cgroup-root` of the node's own cgroup) or not (`none`).
    pub socket_lb: bool,
    /// `--forwarding`.
    pub forwarding: Forwarding,
    /// More flags.
    pub flags: Vec<String>,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            socket_lb: true,
            forwarding: Forwarding::Stack,
            flags: Vec::new(),
        }
    }
}

/// A running agent. Dropped: told to stop, everything it made removed, its log printed if the test is failing.
#[derive(Debug)]
pub struct Agent<'t> {
    node: &'t Node,
    binary: PathBuf,
    flags: Vec<String>,
    manifests: PathBuf,
    staging: PathBuf,
    log: PathBuf,
    pid: Cell<Option<i32>>,
    batches: Cell<u64>,
}

/// The agent's binary: `FAIRLEAD_BIN`, or `fairlead` beside this executable.
///
/// # Errors
/// If there is none.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("FAIRLEAD_BIN") {
        let path = PathBuf::from(path);
        // The agent runs in another working directory.
        return path
            .canonicalize()
            .with_context(|| format!("FAIRLEAD_BIN={}", path.display()));
    }
    let me = std::env::current_exe().context("find this executable")?;
    beside(&me, "fairlead").context("the agent is not built: cargo xtask build, or set FAIRLEAD_BIN to its path")
}

impl<'t> Agent<'t> {
    /// Starts an agent on `node` with these manifest files (name, text), and waits until they are in the kernel.
    ///
    /// # Errors
    /// If it cannot be started or ends, with its log.
    pub fn start(node: &'t Node, options: &AgentOptions, files: &[(&str, String)]) -> Result<Self> {
        let directory = |name: &str| -> Result<PathBuf> {
            let path = node.dir.join(name);
            fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
            Ok(path)
        };
        let cgroup = if options.socket_lb {
            node.cgroup.to_string_lossy().into_owned()
        } else {
            "none".to_string()
        };
        let mut agent = Self {
            node,
            binary: binary()?,
            flags: Vec::new(),
            manifests: directory("manifests")?,
            staging: directory("staging")?,
            log: node.dir.join("agent.log"),
            pid: Cell::new(None),
            batches: Cell::new(0),
        };
        let manifests = agent.manifests.to_string_lossy().into_owned();
        let status = STATUS.to_string();
        let flags: [(&str, &str); 9] = [
            ("--manifests", &manifests),
            ("--node-name", &node.name),
            ("--devices", "eth0"),
            ("--pod-devices", "veth-*"),
            ("--cgroup-root", &cgroup),
            ("--bpffs", BPFFS),
            ("--forwarding", options.forwarding.name()),
            ("--metrics-bind-address", &status),
            ("--healthz-bind-address", "0.0.0.0:10256"),
        ];
        agent.flags = flags
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_string(), value.to_string()])
            .collect();
        agent.flags.extend(options.flags.iter().cloned());
        for (name, text) in files {
            agent.write(name, text)?;
        }
        agent.launch()?;
        Ok(agent)
    }

    /// Starts the process (again), and waits until it serves what its manifests say.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn launch(&self) -> Result<()> {
        let op = Operation::Spawn {
            program: self.binary.to_string_lossy().into_owned(),
            args: std::iter::once("proxy".to_string())
                .chain(self.flags.iter().cloned())
                .collect(),
            env: Vec::new(),
            log: self.log.to_string_lossy().into_owned(),
        };
        self.pid.set(Some(self.node.actor.call(op)?));
        self.wait_applied(1)
    }

    /// Ends the process with a signal, SIGKILL 10 s later; what it put into the kernel stays. Its exit code.
    ///
    /// # Errors
    /// If it is not running.
    pub fn stop(&self, signal: i32) -> Result<Option<i32>> {
        let pid = self
            .pid
            .take()
            .with_context(|| format!("no agent runs on {}", self.node.name))?;
        self.node.actor.call(Operation::Kill {
            pid,
            signal,
            grace_ms: 10_000,
        })
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<i32> {
        self.pid.get()
    }

    /// The node it runs on.
    pub fn node(&self) -> &'t Node {
        self.node
    }

    /// Writes or replaces one manifest file and waits until the kernel follows it.
    ///
    /// # Errors
    /// If the agent ends or does not follow.
    pub fn apply(&self, name: &str, text: &str) -> Result<()> {
        self.write(name, text)?;
        self.wait_applied(self.batches.get() + 1)
    }

    /// Removes one manifest file and waits until the kernel follows.
    ///
    /// # Errors
    /// As [`Agent::apply`].
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.manifests.join(name);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        self.wait_applied(self.batches.get() + 1)
    }

    /// Written elsewhere and renamed: the agent sees one change, and never half a file.
    fn write(&self, name: &str, text: &str) -> Result<()> {
        let (from, to) = (self.staging.join(name), self.manifests.join(name));
        fs::write(&from, text).with_context(|| format!("write {}", from.display()))?;
        fs::rename(&from, &to).with_context(|| format!("rename to {}", to.display()))
    }

    /// What `/status` says now.
    ///
    /// # Errors
    /// If the agent does not answer with JSON.
    pub fn status(&self) -> Result<Value> {
        self.get_status("/status")
    }

    fn get_status(&self, path: &str) -> Result<Value> {
        let reply = self.node.actor.http_get(STATUS, path, PATIENCE.as_millis() as u64)?;
        if reply.status != 200 {
            bail!("GET {path}: {} {}", reply.status, reply.body);
        }
        serde_json::from_str(&reply.body).with_context(|| format!("GET {path}: {}", reply.body))
    }

    /// Waits until `least` batches are in the kernel, and the first reading of all files is among them.
    fn wait_applied(&self, least: u64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.get_status(&format!("/status?applied_at_least={least}"));
            if let Ok(status) = &answer {
                let applied = status["applied_events"]
                    .as_u64()
                    .with_context(|| format!("/status has no number in the field applied_events: {status}"))?;
                if applied >= least && status["ready"] != false {
                    self.batches.set(applied);
                    return Ok(());
                }
            }
            if let Some(pid) = self.pid.get()
                && let Some(code) = self.node.actor.call::<Option<Option<i32>>>(Operation::Exited(pid))?
            {
                bail!(
                    "the agent on {} has ended with {code:?}:\n{}",
                    self.node.name,
                    self.log()
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "the agent on {} has not applied batch {least}: {answer:?}\n{}",
                    self.node.name,
                    self.log()
                );
            }
            // Not listening yet, or not ready: nothing tells when, and the processor is the agent's to use.
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Runs `fairlead` with these arguments on the node; its standard output.
    ///
    /// # Errors
    /// If it fails, with what it said.
    pub fn command(&self, args: &[&str]) -> Result<String> {
        run(self.node, &self.binary, args)
    }

    fn end(&self) -> Result<()> {
        let stopped = if self.pid.get().is_some() {
            self.stop(libc::SIGTERM).map(drop)
        } else {
            Ok(())
        };
        let cgroup = self.node.cgroup.to_string_lossy();
        let cleaned = self
            .command(&["cleanup", "--bpffs", BPFFS, "--cgroup-root", &cgroup])
            .map(drop);
        stopped.and(cleaned)
    }
}

fn run(node: &Node, binary: &Path, args: &[&str]) -> Result<String> {
    let output = node.actor.run(&binary.to_string_lossy(), args, "")?;
    if output.code != Some(0) {
        bail!(
            "fairlead {} on {}: exit code {:?}: {}",
            args.join(" "),
            node.name,
            output.code,
            output.stderr.trim()
        );
    }
    Ok(output.stdout)
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        let outcome = self.end();
        if std::thread::panicking() {
            eprintln!("--- log of the agent on {} ---\n{}---", self.node.name, self.log());
        }
        if let Err(error) = outcome {
            // The namespaces and the bpffs go with the topology, so nothing is left; but somebody should know.
            eprintln!("ending the agent on {}: {error:#}", self.node.name);
        }
    }
}
