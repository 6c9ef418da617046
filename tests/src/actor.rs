//! The test's end of an actor: one process in one namespace, asked over a pipe.

use crate::proto::{
    Answer, Ask, AskError, Histogram, HttpReply, Load, Operation, Output, Request, Response, Serving, Tally, Transport,
};
use anyhow::{Context, Result, anyhow, bail};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitCode, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
};

/// Who waits for which answer; `None` once no answer can come any more.
type Waiting = Arc<Mutex<Option<HashMap<u64, mpsc::Sender<Result<Value, String>>>>>>;

/// Whether this program's `main` began with [`run_as_actor_if_asked`].
static SELF_IS_ACTOR: AtomicBool = AtomicBool::new(false);
const AS_ACTOR: &str = "FAIRLEAD_RUN_AS_ACTOR";

/// First line of a program that is its own actor binary: if the harness started it as an actor, acts and returns how to
/// exit; else returns `None`, and [`program`] will use this very executable.
pub fn run_as_actor_if_asked() -> Option<ExitCode> {
    SELF_IS_ACTOR.store(true, Ordering::SeqCst);
    std::env::var_os(AS_ACTOR).map(|_| crate::worker::main())
}

/// The command that starts an actor: `FAIRLEAD_ACTOR_BIN`, this executable if it can act, or `fairlead-actor` beside it.
///
/// # Errors
/// If there is none.
pub fn program() -> Result<Command> {
    if let Some(path) = std::env::var_os("FAIRLEAD_ACTOR_BIN") {
        return Ok(Command::new(path));
    }
    let me = std::env::current_exe().context("find this executable")?;
    if SELF_IS_ACTOR.load(Ordering::SeqCst) {
        let mut command = Command::new(me);
        command.env(AS_ACTOR, "1");
        return Ok(command);
    }
    beside(&me, "fairlead-actor").map(Command::new).context(
        "fairlead-actor is not built: cargo build -p fairlead-tests --bins, or set FAIRLEAD_ACTOR_BIN to its path",
    )
}

/// `name` in the directory of `me` or the one above (test executables live in `deps/`).
pub(crate) fn beside(me: &Path, name: &str) -> Option<PathBuf> {
    me.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

/// A process in a network namespace of its own. It ends when this is dropped or its owner dies, and the namespace with
/// it.
#[derive(Debug)]
pub struct Actor {
    name: String,
    pid: u32,
    child: Child,
    stdin: Mutex<Option<ChildStdin>>,
    waiting: Waiting,
    next: AtomicU64,
}

/// An actor that has been started but has not said yet that it is ready.
#[derive(Debug)]
pub struct Starting(Actor, mpsc::Receiver<Result<Value, String>>);

impl Starting {
    /// Waits until the namespaces exist.
    ///
    /// # Errors
    /// What kept the actor from making them.
    pub fn ready(self) -> Result<Actor> {
        let Self(actor, ready) = self;
        let outcome = ready
            .recv()
            .map_err(|_| anyhow!("{} ended before it was ready", actor.name))?;
        outcome.map_err(|error| anyhow!("{}: {error}", actor.name))?;
        Ok(actor)
    }
}

impl Actor {
    /// Starts an actor in a new network namespace, in `cgroup` if given; with `mounts` (an empty directory) also in a
    /// mount namespace with its own /sys and bpffs.
    ///
    /// # Errors
    /// If the actor binary is missing.
    pub fn start(name: &str, cgroup: Option<&Path>, mounts: Option<&Path>) -> Result<Starting> {
        let or_dash = |path: Option<&Path>| path.unwrap_or(Path::new("-")).to_path_buf();
        let mut child = program()?
            .arg("serve")
            .arg("--cgroup")
            .arg(or_dash(cgroup))
            .arg("--mounts")
            .arg(or_dash(mounts))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start the actor of {name}"))?;
        let stdin = child.stdin.take().context("no standard input")?;
        let stdout = child.stdout.take().context("no standard output")?;
        let (sender, ready) = mpsc::channel();
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::from([(0, sender)]))));
        let answers = Arc::clone(&waiting);
        std::thread::spawn(move || deliver(BufReader::new(stdout), &answers));
        let actor = Self {
            name: name.to_string(),
            pid: child.id(),
            child,
            stdin: Mutex::new(Some(stdin)),
            waiting,
            next: AtomicU64::new(1),
        };
        Ok(Starting(actor, ready))
    }

    /// Name of the host it plays.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process id: its namespaces are /proc/PID/ns/*.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends an operation; the answer comes by [`Pending::wait`].
    ///
    /// # Errors
    /// If the actor is gone.
    pub fn begin(&self, op: Operation) -> Result<Pending> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut line = serde_json::to_vec(&Request { id, op })?;
        line.push(b'\n');
        let (sender, receiver) = mpsc::channel();
        lock(&self.waiting)
            .as_mut()
            .with_context(|| format!("the actor of {} is gone", self.name))?
            .insert(id, sender);
        let mut stdin = lock(&self.stdin);
        let pipe = stdin
            .as_mut()
            .with_context(|| format!("the actor of {} was stopped", self.name))?;
        pipe.write_all(&line)
            .with_context(|| format!("the actor of {} is gone", self.name))?;
        Ok(Pending {
            actor: self.name.clone(),
            receiver,
        })
    }

    /// Sends an operation and waits for its answer.
    ///
    /// # Errors
    /// If the actor is gone or could not do it.
    pub fn call<T: DeserializeOwned>(&self, op: Operation) -> Result<T> {
        self.begin(op)?.wait()
    }

    fn must<T: DeserializeOwned>(&self, op: Operation) -> T {
        self.call(op).unwrap_or_else(|error| panic!("{}: {error:#}", self.name))
    }

    /// Serves on `addr` under this actor's name.
    ///
    /// # Panics
    /// If the actor cannot listen there; so do all methods below when the actor is gone.
    pub fn serve(&self, transport: Transport, addr: SocketAddr) -> Serving {
        self.serve_as(transport, addr, &self.name)
    }

    /// Serves on `addr` under another name.
    pub fn serve_as(&self, transport: Transport, addr: SocketAddr, name: &str) -> Serving {
        self.must(Operation::Serve {
            transport,
            listen: addr,
            name: name.to_string(),
        })
    }

    /// Stops a server and cuts its connections.
    pub fn stop_serving(&self, serving: Serving) {
        self.must::<()>(Operation::StopServing(serving.id));
    }

    /// Asks once.
    ///
    /// # Errors
    /// Whatever kept the answer from coming.
    pub fn ask(&self, ask: &Ask) -> Result<Answer, AskError> {
        self.must(Operation::Ask(ask.clone()))
    }

    /// Asks `count` times from new sockets, `concurrency` at once.
    pub fn ask_many(&self, ask: &Ask, count: usize, concurrency: usize) -> Histogram {
        self.must(Operation::AskMany {
            ask: ask.clone(),
            count,
            concurrency,
        })
    }

    /// Opens a connection (or UDP socket), asks once, and keeps it.
    ///
    /// # Errors
    /// Whatever kept the first answer from coming.
    pub fn open(&self, ask: &Ask) -> Result<(Conn<'_>, Answer), AskError> {
        let opened: Result<(u64, Answer), AskError> = self.must(Operation::Open(ask.clone()));
        opened.map(|(id, answer)| (Conn { actor: self, id }, answer))
    }

    /// Begins a load.
    pub fn load(&self, load: Load) -> RunningLoad<'_> {
        RunningLoad {
            actor: self,
            id: self.must(Operation::LoadStart(load)),
        }
    }

    /// Runs a program in this namespace and returns its output, whatever its exit code.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn run(&self, program: &str, args: &[&str], stdin: &str) -> Result<Output> {
        let args = args.iter().map(ToString::to_string).collect();
        self.call(Operation::Run {
            program: program.to_string(),
            args,
            stdin: stdin.to_string(),
        })
    }

    /// Runs lines of `ip -batch` in this namespace.
    ///
    /// # Errors
    /// The line that failed, with what `ip` said.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.begin_ip(lines)?
            .wait()
            .and_then(|output| ip_outcome(&self.name, lines, &output))
    }

    pub(crate) fn begin_ip(&self, lines: &str) -> Result<Pending> {
        let program = ip_program().to_string();
        self.begin(Operation::Run {
            program,
            args: vec!["-batch".into(), "-".into()],
            stdin: lines.to_string(),
        })
    }

    /// `GET http://addr/path` from this namespace.
    ///
    /// # Errors
    /// If no answer comes within `timeout_ms` milliseconds.
    pub fn http_get(&self, addr: SocketAddr, path: &str, timeout_ms: u64) -> Result<HttpReply> {
        self.call(Operation::HttpGet {
            addr,
            path: path.to_string(),
            timeout_ms,
        })
    }
}

/// Hands answers to who waits for them until the actor ends or says what is no answer: then nobody may wait any more.
fn deliver(answers: impl BufRead, waiting: &Waiting) {
    for line in answers.lines().map_while(Result::ok) {
        let Ok(Response { id, result }) = serde_json::from_str(&line) else {
            eprintln!("actor said {line:?}, which is no answer");
            break;
        };
        if let Some(asker) = lock(waiting).as_mut().and_then(|waiting| waiting.remove(&id)) {
            // An asker that went away needs no answer.
            let _ = asker.send(result);
        }
    }
    // Dropping the senders wakes whoever still waits.
    *lock(waiting) = None;
}

impl Drop for Actor {
    fn drop(&mut self) {
        drop(lock(&self.stdin).take());
        // It ends at the end of its input; if it hangs, nothing else would end it.
        let ended = wait_for_exit(&mut self.child);
        if !ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Waits up to a minute on a pidfd, since an actor may have things to take down, and reaps.
fn wait_for_exit(child: &mut Child) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::{FromRawFd, OwnedFd};
    // SAFETY: pidfd_open takes a pid and flags and touches no memory; the child is not reaped, so the pid is its own.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id() as libc::pid_t, 0) };
    if fd < 0 {
        return false;
    }
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&fd), PollFlags::POLLIN)];
    let readable = poll(&mut fds, PollTimeout::from(60_000u16)).is_ok_and(|ready| ready > 0);
    readable && child.wait().is_ok()
}

/// Answer on its way.
#[derive(Debug)]
pub struct Pending {
    actor: String,
    receiver: mpsc::Receiver<Result<Value, String>>,
}

impl Pending {
    /// Waits for it.
    ///
    /// # Errors
    /// If the actor is gone, could not do what it was asked, or answered with another type.
    pub fn wait<T: DeserializeOwned>(self) -> Result<T> {
        let answer = self
            .receiver
            .recv()
            .map_err(|_| anyhow!("the actor of {} is gone", self.actor))?;
        let value = answer.map_err(|error| anyhow!("{}: {error}", self.actor))?;
        serde_json::from_value(value).with_context(|| format!("answer of {}", self.actor))
    }
}

/// A connection or UDP socket that stays open until dropped.
#[derive(Debug)]
pub struct Conn<'a> {
    actor: &'a Actor,
    id: u64,
}

impl Conn<'_> {
    /// Asks on it once more.
    ///
    /// # Errors
    /// Whatever kept the answer from coming.
    pub fn exchange(&self, send_bytes: usize, reply_bytes: usize) -> Result<Answer, AskError> {
        self.actor.must(Operation::Exchange {
            conn: self.id,
            send_bytes,
            reply_bytes,
        })
    }
}

impl Drop for Conn<'_> {
    fn drop(&mut self) {
        // An actor that is gone has closed it.
        let _ = self.actor.call::<()>(Operation::Close(self.id));
    }
}

/// A load that runs until stopped.
#[derive(Debug)]
pub struct RunningLoad<'a> {
    actor: &'a Actor,
    id: u64,
}

impl RunningLoad<'_> {
    /// What it has seen so far.
    pub fn peek(&self) -> Tally {
        self.actor.must(Operation::LoadPeek(self.id))
    }

    /// Lets running questions finish and returns what it has seen.
    pub fn stop(self) -> Tally {
        self.actor.must(Operation::LoadStop(self.id))
    }
}

/// `ip`, also where /usr/sbin is not in the path.
pub(crate) fn ip_program() -> &'static str {
    let known = ["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"];
    known.into_iter().find(|path| Path::new(path).exists()).unwrap_or("ip")
}

pub(crate) fn ip_outcome(host: &str, lines: &str, output: &Output) -> Result<()> {
    if output.code == Some(0) {
        return Ok(());
    }
    let number = output
        .stderr
        .rsplit(':')
        .next()
        .and_then(|number| number.trim().parse::<usize>().ok());
    let line = number
        .and_then(|number| lines.lines().nth(number.saturating_sub(1)))
        .unwrap_or("?");
    bail!("ip on {host}: {}: {line}", output.stderr.trim())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_broken_line_nobody_waits() {
        let (sender, receiver) = mpsc::channel();
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::from([(7, sender)]))));
        deliver(&b"no answer\n"[..], &waiting);
        assert!(receiver.recv().is_err(), "who waits is woken");
        assert!(lock(&waiting).is_none(), "who comes later is refused");
    }
}
