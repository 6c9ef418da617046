//! Hosts and pods as network namespaces without names: they go with the test, whatever becomes of it.

use fairlead_cni::Config;
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// How long anything may take before a test fails. Nothing is timed by it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Whether tests may make namespaces here; says so where they are skipped. Agents log to the test's output.
pub(crate) fn may_run(test: &str) -> bool {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new("fairlead_cni=info"))
        .with_writer(std::io::stderr)
        .try_init();
    let reason = if std::env::var_os("FAIRLEAD_NO_KERNEL").is_some_and(|value| value == "1") {
        "kernel tests are off"
    } else if !nix::unistd::geteuid().is_root() {
        "needs root"
    } else {
        return true;
    };
    skip(test, reason);
    false
}

/// Says that a test did not run.
pub(crate) fn skip(test: &str, reason: &str) {
    eprintln!("skipped: {test}: {reason}");
    if let Some(path) = std::env::var_os("FAIRLEAD_SKIPS") {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        writeln!(file, "{test}: {reason}").unwrap();
    }
}

/// A network namespace.
#[derive(Clone, Debug)]
pub(crate) struct Netns(Arc<File>);

impl Netns {
    /// A new one, with its loopback link up.
    pub(crate) fn new() -> Self {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            run("ip", &["link", "set", "lo", "up"]);
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self(Arc::new(made.join().unwrap()))
    }

    /// A path that any process of this machine can open while the test lives.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    /// Runs something there.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&*self.0, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// As [`Netns::run`], on a thread that may live on.
    pub(crate) fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let netns = self.clone();
        thread::spawn(move || {
            setns(&*netns.0, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    /// Runs something there on this very thread, which comes back.
    pub(crate) fn enter_and<T>(&self, work: impl FnOnce() -> T) -> T {
        let home = File::open("/proc/thread-self/ns/net").unwrap();
        setns(&*self.0, CloneFlags::CLONE_NEWNET).unwrap();
        let done = work();
        setns(home, CloneFlags::CLONE_NEWNET).unwrap();
        done
    }

    /// Runs `ip` there.
    pub(crate) fn ip(&self, args: &str) -> String {
        self.run(|| run("ip", &args.split(' ').collect::<Vec<_>>()))
    }

    /// Joins two namespaces by a pair of links of this name, each with addresses.
    pub(crate) fn join(&self, name: &str, here: &[&str], other: &Self, other_name: &str, there: &[&str]) {
        let path = other.path();
        self.ip(&format!(
            "link add {name} type veth peer name {other_name} netns {}",
            path.display()
        ));
        for (netns, name, addrs) in [(self, name, here), (other, other_name, there)] {
            for addr in addrs {
                let nodad = if addr.contains(':') { " nodad" } else { "" };
                netns.ip(&format!("addr add {addr} dev {name}{nodad}"));
            }
            netns.ip(&format!("link set {name} up"));
        }
    }

    /// Serves one TCP connection and one UDP packet at a time, telling each client its own address, until the end.
    pub(crate) fn serve(&self, addr: &str) -> SocketAddr {
        let addr: IpAddr = addr.parse().unwrap();
        let (sender, receiver) = mpsc::channel();
        self.spawn(move || {
            let tcp = TcpListener::bind((addr, 0)).unwrap();
            let at = tcp.local_addr().unwrap();
            let udp = UdpSocket::bind(at).unwrap();
            thread::spawn(move || {
                let mut packet = [0; 64];
                while let Ok((_, from)) = udp.recv_from(&mut packet) {
                    let _ = udp.send_to(from.ip().to_string().as_bytes(), from);
                }
            });
            sender.send(at).unwrap();
            while let Ok((mut stream, from)) = tcp.accept() {
                let _ = stream.write_all(from.ip().to_string().as_bytes());
            }
        });
        receiver.recv().unwrap()
    }

    /// What a server says who we are, by TCP and then by UDP; both agree.
    pub(crate) fn ask(&self, server: SocketAddr) -> Result<String, String> {
        self.run(|| {
            let mut stream = TcpStream::connect_timeout(&server, PATIENCE).map_err(|error| error.to_string())?;
            let mut tcp = String::new();
            stream.read_to_string(&mut tcp).map_err(|error| error.to_string())?;
            let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
                .send_to(b"who am I?", server)
                .map_err(|error| error.to_string())?;
            let mut answer = [0; 64];
            let length = socket.recv(&mut answer).map_err(|error| error.to_string())?;
            assert_eq!(tcp.as_bytes(), &answer[..length]);
            Ok(tcp)
        })
    }
}

/// Runs a program and gives its output.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}{text}");
    text
}

/// Waits until something holds. A failure to hold fails the test; nothing else depends on the time.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        // Leaves the processor to those who are waited for.
        thread::park_timeout(Duration::from_millis(2));
    }
}

/// A host: a namespace, directories, and the agent when it runs.
pub(crate) struct Host {
    pub(crate) netns: Netns,
    pub(crate) config: Config,
    pub(crate) directory: TempDir,
    agent: Option<Agent>,
}

enum Agent {
    /// On threads of the test.
    Inside(CancellationToken, JoinHandle<anyhow::Result<()>>),
    /// A process of its own, which can be killed.
    Process(Child),
}

/// Makes a client on the agent's runtime.
pub(crate) type MakeClient = Box<dyn FnOnce() -> kube::Client + Send>;

impl Host {
    /// One with fixed pod networks, not yet running.
    pub(crate) fn new(cidrs: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path();
        let config = Config {
            run_dir: dir.join("run"),
            cni_bin_dir: dir.join("bin"),
            cni_conf_dir: dir.join("net.d"),
            pod_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            ..Config::new("node")
        };
        Self {
            netns: Netns::new(),
            config,
            directory,
            agent: None,
        }
    }

    /// One that runs, ready for pods.
    pub(crate) fn running(cidrs: &[&str]) -> Self {
        let mut host = Self::new(cidrs);
        host.start();
        host.ready();
        host
    }

    /// Starts the agent without an API server.
    pub(crate) fn start(&mut self) {
        self.start_with(Box::new(|| {
            let nobody = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
            kube::Client::try_from(nobody).unwrap()
        }));
    }

    pub(crate) fn start_with(&mut self, client: MakeClient) {
        assert!(self.agent.is_none());
        let stop = CancellationToken::new();
        let (config, stopped) = (self.config.clone(), stop.clone());
        let thread = self.netns.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async { fairlead_cni::run(config, client(), stopped).await })
        });
        self.agent = Some(Agent::Inside(stop, thread));
    }

    /// Starts the agent as a process of its own; returns when it is ready.
    pub(crate) fn start_process(&mut self) {
        assert!(self.agent.is_none());
        let program = std::env::current_exe().unwrap();
        let program = program.ancestors().nth(2).unwrap().join("examples/agent");
        let mut command = Command::new(program);
        command
            .arg(self.directory.path())
            .args(self.config.pod_cidrs.iter().map(ToString::to_string));
        let mut child = self.netns.run(|| command.stdout(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        self.agent = Some(Agent::Process(child));
    }

    /// Waits until the agent serves.
    pub(crate) fn ready(&self) {
        eventually("the agent serves", || self.status().is_ok());
    }

    /// Stops the agent in order, or kills its process.
    pub(crate) fn stop(&mut self) {
        match self.agent.take() {
            Some(Agent::Inside(stop, thread)) => {
                stop.cancel();
                thread.join().unwrap().unwrap();
            }
            Some(Agent::Process(mut child)) => {
                child.kill().unwrap();
                child.wait().unwrap();
            }
            None => {}
        }
    }

    /// The network's configuration for the plugin, in a version.
    pub(crate) fn network(&self, version: &str) -> Value {
        json!({ "cniVersion": version, "name": "fairlead", "type": "fairlead-cni", "runDir": self.config.run_dir })
    }

    /// Starts the installed plugin; its answer, and whether it succeeded.
    pub(crate) fn plugin(&self, verb: &str, variables: &[(&str, &str)], input: &str) -> (Value, bool) {
        self.plugin_as("fairlead-cni", verb, variables, input)
    }

    pub(crate) fn plugin_as(&self, name: &str, verb: &str, variables: &[(&str, &str)], input: &str) -> (Value, bool) {
        let program = self.config.cni_bin_dir.join(name);
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("CNI_COMMAND", verb)
            .envs(variables.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = self.netns.run(|| {
            loop {
                match command.spawn() {
                    // Another test of this process forked while this program was being written: until its child has
                    // become its own program, that child holds the file open for writing (execve(2), ETXTBSY).
                    Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => thread::yield_now(),
                    started => return started.unwrap(),
                }
            }
        });
        // A plugin that refuses its environment may end before it reads.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let answer = if output.stdout.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&output.stdout).unwrap()
        };
        (answer, output.status.success())
    }

    /// A verb about a container's `eth0`.
    pub(crate) fn call(&self, verb: &str, container: &str, netns: &Path, network: &Value) -> Result<Value, Value> {
        let netns = netns.to_str().unwrap();
        let variables = [
            ("CNI_CONTAINERID", container),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", netns),
        ];
        let (answer, success) = self.plugin(verb, &variables, &network.to_string());
        if success { Ok(answer) } else { Err(answer) }
    }

    pub(crate) fn status(&self) -> Result<Value, Value> {
        let (answer, success) = self.plugin_try("STATUS");
        if success { Ok(answer) } else { Err(answer) }
    }

    /// As [`Host::plugin`], where the plugin may not be installed yet.
    fn plugin_try(&self, verb: &str) -> (Value, bool) {
        if self.config.cni_bin_dir.join("fairlead-cni").exists() {
            self.plugin(verb, &[], &self.network("1.1.0").to_string())
        } else {
            (Value::Null, false)
        }
    }

    /// A new pod, attached.
    pub(crate) fn pod(&self) -> Pod {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let container = format!("pod-{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let netns = Netns::new();
        let result = self
            .call("ADD", &container, &netns.path(), &self.network("1.1.0"))
            .unwrap();
        Pod {
            container,
            netns,
            result,
        }
    }

    pub(crate) fn del(&self, pod: &Pod) {
        let mut network = self.network("1.1.0");
        network["prevResult"] = pod.result.clone();
        self.call("DEL", &pod.container, &pod.netns.path(), &network).unwrap();
    }

    pub(crate) fn check(&self, pod: &Pod) -> Result<Value, Value> {
        let mut network = self.network("1.1.0");
        network["prevResult"] = pod.result.clone();
        self.call("CHECK", &pod.container, &pod.netns.path(), &network)
    }

    /// Names of the host's links to pods.
    pub(crate) fn pod_links(&self) -> Vec<String> {
        let links = self.netns.ip("-o link show");
        let names = links
            .lines()
            .filter_map(|line| line.split(": ").nth(1)?.split('@').next());
        names.filter(|name| name.starts_with("fl")).map(str::to_owned).collect()
    }

    /// The lines of the journal, without checksums.
    pub(crate) fn journal(&self) -> Vec<Value> {
        let bytes = fs::read(self.config.run_dir.join("journal")).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let lines = text.trim_end_matches('\0').lines();
        lines
            .map(|line| serde_json::from_str(line.split_once(' ').unwrap().1).unwrap())
            .collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if thread::panicking() {
            if let Some(Agent::Process(child)) = &mut self.agent {
                let _ = child.kill();
                let _ = child.wait();
            }
        } else {
            self.stop();
        }
    }
}

/// A pod.
pub(crate) struct Pod {
    pub(crate) container: String,
    pub(crate) netns: Netns,
    pub(crate) result: Value,
}

impl Pod {
    /// Its addresses, IPv4 first.
    pub(crate) fn ips(&self) -> Vec<String> {
        let ips = self.result["ips"].as_array().unwrap().iter();
        ips.map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned())
            .collect()
    }
}
