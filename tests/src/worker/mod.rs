//! The process inside a namespace (`fairlead-actor`): reads [`Request`]s, runs each in a thread of its own, answers.

mod absorb;
mod ask;
mod child;
mod load;
mod measure;
mod namespace;
mod serve;

use crate::proto::{HttpReply, Operation, Output, Request, Response};
use serde::Serialize;
use serde_json::Value;
use std::{
    io::{self, BufRead, Write},
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Locks even if a thread panicked while holding the lock: an actor's tables stay usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everything an actor holds between requests.
struct Worker {
    servers: serve::Servers,
    kept: ask::Kept,
    loads: load::Loads,
    absorbers: absorb::Absorbers,
    children: child::Children,
    /// What to run in the end.
    at_end: Mutex<Vec<(String, Vec<String>)>>,
}

/// `fairlead-actor serve --cgroup PATH|- --mounts DIR|-` or `fairlead-actor reap`.
pub fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["reap"] => {
            crate::guard::reap(io::stdin().lock());
            ExitCode::SUCCESS
        }
        ["serve", "--cgroup", cgroup, "--mounts", mounts] => {
            let path = |text: &&str| (*text != "-").then(|| text.to_string());
            let ready = namespace::enter(path(cgroup).as_deref(), path(mounts).as_deref());
            let result = ready.map(|()| Value::from(std::process::id()));
            let failed = result.is_err();
            respond(0, result);
            if failed { ExitCode::FAILURE } else { run() }
        }
        _ => {
            eprintln!("fairlead-actor is started by the test harness: serve --cgroup PATH|- --mounts DIR|-, or reap");
            ExitCode::from(2)
        }
    }
}

fn run() -> ExitCode {
    let worker = Arc::new(Worker {
        servers: serve::Servers::default(),
        kept: ask::Kept::default(),
        loads: load::Loads::default(),
        absorbers: absorb::Absorbers::default(),
        children: child::Children::start(),
        at_end: Mutex::default(),
    });
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let Request { id, op } = match serde_json::from_str(&line) {
            Ok(request) => request,
            Err(error) => {
                eprintln!("fairlead-actor: not a request: {error}: {line}");
                return ExitCode::FAILURE;
            }
        };
        let worker = Arc::clone(&worker);
        // A thread each, so that a load or a long poll holds nobody up.
        std::thread::spawn(move || respond(id, worker.perform(op)));
    }
    for (program, args) in lock(&worker.at_end).iter() {
        match run_program(program, args, "") {
            Ok(output) if output.code == Some(0) => {}
            Ok(output) => eprintln!(
                "fairlead-actor: {program} {}: {}{}",
                args.join(" "),
                output.stdout,
                output.stderr
            ),
            Err(error) => eprintln!("fairlead-actor: {error}"),
        }
    }
    // The end of the input is the end of the test: threads, sockets and children (by PDEATHSIG) go with the process.
    ExitCode::SUCCESS
}

fn respond(id: u64, result: Result<Value, String>) {
    let mut line = match serde_json::to_vec(&Response { id, result }) {
        Ok(line) => line,
        Err(error) => format!("{{\"id\":{id},\"result\":{{\"Err\":\"unserialisable answer: {error}\"}}}}").into_bytes(),
    };
    line.push(b'\n');
    let mut out = io::stdout().lock();
    // A closed pipe means that the test process is gone; the end of the input says so too.
    let _ = out.write_all(&line).and_then(|()| out.flush());
}

fn json<T: Serialize>(value: T) -> Result<Value, String> {
    serde_json::to_value(value).map_err(|error| error.to_string())
}

impl Worker {
    fn perform(&self, op: Operation) -> Result<Value, String> {
        match op {
            Operation::Serve {
                transport,
                listen,
                name,
            } => {
                let serving = self.servers.start(transport, listen, name);
                json(serving.map_err(|error| format!("serve {transport} on {listen}: {error}"))?)
            }
            Operation::StopServing(id) => json(self.servers.stop(id)?),
            Operation::Ask(ask) => json(ask::ask(&ask)),
            Operation::AskMany {
                ask,
                count,
                concurrency,
            } => json(load::ask_many(&ask, count, concurrency)),
            Operation::Open(ask) => json(self.kept.open(&ask)),
            Operation::Exchange {
                conn,
                send_bytes,
                reply_bytes,
            } => json(self.kept.exchange(conn, send_bytes, reply_bytes)?),
            Operation::Close(conn) => json(self.kept.close(conn)?),
            Operation::LoadStart(load) => json(self.loads.start(&load)),
            Operation::LoadPeek(id) => json(self.loads.peek(id)?),
            Operation::LoadStop(id) => json(self.loads.stop(id)?),
            Operation::Measure(measure) => {
                let measured = measure::run(&measure);
                json(measured.map_err(|error| format!("measure {} to {}: {error}", measure.work, measure.dst))?)
            }
            Operation::Absorb(absorb) => {
                let serving = self.absorbers.start(&absorb);
                json(serving.map_err(|error| format!("take {} on {}: {error}", absorb.work, absorb.listen))?)
            }
            Operation::AbsorbStop(id) => json(self.absorbers.stop(id)?),
            Operation::Run { program, args, stdin } => json(run_program(&program, &args, &stdin)?),
            Operation::Spawn {
                program,
                args,
                env,
                log,
            } => json(self.children.spawn(&program, args, env, &log)?),
            Operation::AtEnd { program, args } => {
                lock(&self.at_end).push((program, args));
                json(())
            }
            Operation::Kill { pid, signal, grace_ms } => json(self.children.kill(pid, signal, grace_ms)?),
            Operation::Exited(pid) => json(self.children.exited(pid)?),
            Operation::HttpGet { addr, path, timeout_ms } => {
                let reply: Result<HttpReply, _> = ask::http_get(addr, &path, timeout_ms);
                json(reply.map_err(|error| format!("GET http://{addr}{path}: {error}"))?)
            }
            Operation::Sysctl { settings, optional } => json(sysctl(&settings, optional)?),
        }
    }
}

fn run_program(program: &str, args: &[String], stdin: &str) -> Result<Output, String> {
    use std::process::{Command, Stdio};
    let failed = |error: io::Error| format!("run {program}: {error}");
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut pipe) = child.stdin.take() {
        // A program need not read its input.
        let _ = pipe.write_all(stdin.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    Ok(Output {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn sysctl(settings: &[(String, String)], optional: bool) -> Result<(), String> {
    for (path, value) in settings {
        match std::fs::write(format!("/proc/sys/{path}"), value) {
            Err(error) if optional && error.kind() == io::ErrorKind::NotFound => {}
            outcome => outcome.map_err(|error| format!("set {path} to {value}: {error}"))?,
        }
    }
    Ok(())
}
