//! Programs that run beside the actor in its namespaces, and never outlive it.

use super::lock;
use nix::{
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, kill},
    },
    unistd::{Pid, getpid, getppid},
};
use std::{
    collections::HashMap,
    fs::OpenOptions,
    io,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError, mpsc},
    time::Duration,
};

/// `None` while it runs, then its exit code (`None` after a signal).
type Exit = Arc<(Mutex<Option<Option<i32>>>, Condvar)>;

struct Job {
    command: Command,
    reply: mpsc::Sender<io::Result<std::process::Child>>,
}

/// Programs by pid.
pub(super) struct Children {
    spawner: mpsc::Sender<Job>,
    running: Mutex<HashMap<i32, Exit>>,
}

impl Children {
    /// The parent-death signal is sent at the end of the *thread* that forked, so one thread that never ends forks all.
    pub(super) fn start() -> Self {
        let (spawner, jobs) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for mut job in jobs {
                // The requester waits for the answer; if it is gone there is nobody to tell.
                let _ = job.reply.send(job.command.spawn());
            }
        });
        Self {
            spawner,
            running: Mutex::default(),
        }
    }

    pub(super) fn spawn(
        &self,
        program: &str,
        args: Vec<String>,
        env: Vec<(String, String)>,
        log: &str,
    ) -> Result<i32, String> {
        let open = || OpenOptions::new().create(true).append(true).open(log);
        let failed = |error: io::Error| format!("log to {log}: {error}");
        let out = open().map_err(failed)?;
        let err = out.try_clone().map_err(failed)?;
        let mut command = Command::new(program);
        command
            .args(args)
            .envs(env)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err);
        let parent = getpid();
        // SAFETY: only async-signal-safe system calls (prctl, getppid) between fork and exec.
        unsafe {
            command.pre_exec(move || {
                set_pdeathsig(Signal::SIGKILL)?;
                // The actor may have ended between fork and prctl.
                if getppid() == parent {
                    Ok(())
                } else {
                    Err(io::Error::from_raw_os_error(libc::ESRCH))
                }
            });
        }
        let (reply, answer) = mpsc::channel();
        let gone = "the spawning thread has ended".to_string();
        self.spawner.send(Job { command, reply }).map_err(|_| gone.clone())?;
        let mut child = answer
            .recv()
            .map_err(|_| gone)?
            .map_err(|error| format!("start {program}: {error}"))?;
        let pid = child.id() as i32;
        let exit = Exit::default();
        lock(&self.running).insert(pid, Arc::clone(&exit));
        std::thread::spawn(move || {
            let code = child.wait().ok().and_then(|status| status.code());
            *lock(&exit.0) = Some(code);
            exit.1.notify_all();
        });
        Ok(pid)
    }

    fn get(&self, pid: i32) -> Result<Exit, String> {
        lock(&self.running)
            .get(&pid)
            .cloned()
            .ok_or_else(|| format!("no program with pid {pid} was started here"))
    }

    pub(super) fn exited(&self, pid: i32) -> Result<Option<Option<i32>>, String> {
        Ok(*lock(&self.get(pid)?.0))
    }

    pub(super) fn kill(&self, pid: i32, signal: i32, grace_ms: u64) -> Result<Option<i32>, String> {
        let exit = self.get(pid)?;
        let first = Signal::try_from(signal).map_err(|error| format!("signal {signal}: {error}"))?;
        for (signal, patience) in [(first, grace_ms), (Signal::SIGKILL, 10_000)] {
            let state = lock(&exit.0);
            if state.is_none() {
                // Not reaped yet, so the pid is still its own; gone already is fine.
                let _ = kill(Pid::from_raw(pid), signal);
            }
            let (state, _) = exit
                .1
                .wait_timeout_while(state, Duration::from_millis(patience), |code| code.is_none())
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(code) = *state {
                return Ok(code);
            }
        }
        Err(format!("pid {pid} survived SIGKILL for 10 s"))
    }
}
