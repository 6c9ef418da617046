//! The verbs: who is asked, and what the runtime is told.

use crate::{
    journal::Lock,
    ledger::Key,
    offline, pod,
    spec::{Code, Config, Environment, Failure, VERSIONS, result},
    wire::{self, Add, Answer, Attachment, NoAnswer, Request, SOCKET},
};
use serde_json::{Value, json};
use std::{
    fs::File,
    io,
    os::{fd::AsFd as _, linux::fs::MetadataExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// How long DEL, CHECK and GC wait while an agent starts or stops: it has the journal then and does not answer yet.
const HANDOVER: Duration = Duration::from_secs(10);

/// What a verb says on standard output: the JSON of its result or of its failure, and whether it succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The answer; `None` where the specification wants none.
    pub output: Option<Value>,
    /// The exit status.
    pub success: bool,
}

/// Runs a verb of the interface plugin, or with `loopback` of the plugin of that name, which older runtimes start for
/// every sandbox.
#[must_use]
pub fn run(command: &str, environment: &Environment, input: &[u8], loopback: bool) -> Outcome {
    let config = Config::read(input);
    let version = config.as_ref().ok().and_then(|config| config.version().ok());
    let done = config.and_then(|config| {
        if command == "VERSION" {
            let version = config.cni_version.clone().unwrap_or_else(|| "1.1.0".into());
            return Ok(Some(json!({ "cniVersion": version, "supportedVersions": VERSIONS })));
        }
        let version = config.version()?;
        config.check_name()?;
        let verb = Verb {
            config: &config,
            environment,
            version,
        };
        match (command, loopback) {
            ("ADD", false) => verb.add().map(Some),
            ("DEL", false) => verb.del().map(|()| None),
            ("CHECK", false) => verb.check().map(|()| None),
            ("GC", false) => verb.gc().map(|()| None),
            ("STATUS", false) => verb.status().map(|()| None),
            ("ADD", true) => verb.loopback_add().map(Some),
            ("CHECK", true) => verb.loopback_check().map(|()| None),
            ("DEL" | "GC" | "STATUS", true) => Ok(None),
            _ => Err(Failure::new(
                Code::InvalidEnvironment,
                format!("CNI_COMMAND {command:?} is unknown"),
                "it is one of ADD, DEL, CHECK, GC, STATUS, VERSION",
            )),
        }
    });
    match done {
        Ok(output) => Outcome { output, success: true },
        Err(failure) => Outcome {
            output: Some(failure.to_json(version.unwrap_or("1.1.0"))),
            success: false,
        },
    }
}

struct Verb<'a> {
    config: &'a Config,
    environment: &'a Environment,
    version: &'static str,
}

impl Verb<'_> {
    fn add(&self) -> Result<Value, Failure> {
        let key = self.environment.key()?;
        let path = self.environment.netns()?;
        let netns = self.netns(path)?;
        let request = Request::Add(Add {
            key: key.clone(),
            network: self.config.name.clone(),
            pod: self.environment.pod(),
            ranges: self.config.ranges()?,
            mtu: self.config.mtu,
        });
        let made = match wire::call(&self.socket(), &request, Some(netns.as_fd())) {
            Ok(answer) => attached(answer)?,
            Err(no_answer) => return Err(self.no_agent(&no_answer)),
        };
        Ok(result(
            self.version,
            &made,
            &key.ifname,
            path,
            self.config.prev_result.as_ref(),
        ))
    }

    fn del(&self) -> Result<(), Failure> {
        let key = self.environment.key()?;
        let request = Request::Del { key: key.clone() };
        match self.ask(&request)? {
            Asked::Agent(answer) => done(answer),
            Asked::Journal(lock) => offline::del(self.config.run_dir(), &lock, &key),
            Asked::Nobody => Ok(()),
        }
    }

    fn check(&self) -> Result<(), Failure> {
        let key = self.environment.key()?;
        let path = self.environment.netns()?;
        let netns = self.netns(path)?;
        let prev = self.config.prev_result.as_ref().ok_or_else(|| {
            Failure::new(
                Code::InvalidConfig,
                "prevResult is missing",
                "CHECK compares with the result of ADD",
            )
        })?;
        let request = Request::Check { key: key.clone() };
        let wanted = match self.ask(&request)? {
            Asked::Agent(answer) => attached(answer)?,
            Asked::Journal(_) => offline::check(self.config.run_dir(), &key)?,
            Asked::Nobody => return Err(offline::unknown(&key)),
        };
        pod::enter(&netns, path)?;
        // Against what was reserved, then against what the runtime was told: later plugins may have changed that.
        let ours = result(self.version, &wanted, &key.ifname, path, None);
        pod::check(&ours, &key.ifname)?;
        pod::check(prev, &key.ifname)
    }

    fn gc(&self) -> Result<(), Failure> {
        let valid = self.config.valid.as_ref().or(self.config.attachments.as_ref());
        let valid = valid.ok_or_else(|| {
            Failure::new(
                Code::InvalidConfig,
                "cni.dev/valid-attachments is missing",
                "GC removes what is not in that list; an empty list removes everything",
            )
        })?;
        let key = |it: &crate::spec::ValidAttachment| Key {
            container: it.container.clone(),
            ifname: it.ifname.clone(),
        };
        let valid: Vec<Key> = valid.iter().map(key).collect();
        let request = Request::Gc {
            network: self.config.name.clone(),
            valid,
        };
        match self.ask(&request)? {
            Asked::Agent(answer) => done(answer),
            Asked::Journal(lock) => {
                let Request::Gc { network, valid } = &request else {
                    return Ok(());
                };
                offline::gc(self.config.run_dir(), &lock, network, valid)
            }
            Asked::Nobody => Ok(()),
        }
    }

    fn status(&self) -> Result<(), Failure> {
        let request = Request::Status {
            ranges: self.config.ranges()?,
        };
        match wire::call(&self.socket(), &request, None) {
            Ok(answer) => done(answer),
            Err(no_answer) => Err(Failure {
                code: Code::NotAvailable as u32,
                ..self.no_agent(&no_answer)
            }),
        }
    }

    fn loopback_add(&self) -> Result<Value, Failure> {
        let path = self.environment.netns()?;
        pod::enter(&pod::open(path)?, path)?;
        pod::loopback_up()?;
        let own = || pod::loopback_result(self.version, path);
        Ok(self.config.prev_result.clone().unwrap_or_else(own))
    }

    fn loopback_check(&self) -> Result<(), Failure> {
        let path = self.environment.netns()?;
        pod::enter(&pod::open(path)?, path)?;
        pod::loopback_check()
    }

    /// Opens the pod's namespace, which must not be ours: the host's links would be moved about.
    fn netns(&self, path: &Path) -> Result<File, Failure> {
        let netns = pod::open(path)?;
        let place = |meta: &std::fs::Metadata| (meta.st_dev(), meta.st_ino());
        let own = std::fs::metadata("/proc/thread-self/ns/net").ok();
        let same = own
            .zip(netns.metadata().ok())
            .is_some_and(|(own, pod)| place(&own) == place(&pod));
        if same && !self.environment.own_netns {
            return Err(Failure::new(
                Code::InvalidNamespace,
                format!("{} is the plugin's own network namespace", path.display()),
                "CNI_NETNS names the pod's; CNI_NETNS_OVERRIDE allows it anyway",
            ));
        }
        Ok(netns)
    }

    fn socket(&self) -> PathBuf {
        let usual = || self.config.run_dir().join(SOCKET);
        self.config.socket.clone().unwrap_or_else(usual)
    }

    /// The agent, or if none runs, the right to write its journal. An agent that starts or stops has that right before
    /// and after it answers, so both are tried until one is there.
    fn ask(&self, request: &Request) -> Result<Asked, Failure> {
        let dir = self.config.run_dir();
        let deadline = Instant::now() + HANDOVER;
        loop {
            let no_answer = match wire::call(&self.socket(), request, None) {
                Ok(answer) => return Ok(Asked::Agent(answer)),
                Err(no_answer @ NoAnswer::Broken(_)) => return Err(self.no_agent(&no_answer)),
                Err(no_answer) => no_answer,
            };
            match Lock::try_take(dir) {
                Ok(Some(lock)) => return Ok(Asked::Journal(lock)),
                // No agent ever ran here, so there is nothing to undo.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Asked::Nobody),
                Err(error) => {
                    let msg = format!("the journal in {} cannot be locked", dir.display());
                    return Err(Failure::new(Code::Io, msg, error.to_string()));
                }
                Ok(None) if Instant::now() >= deadline => return Err(self.no_agent(&no_answer)),
                // A back-off between attempts: nothing announces that another process gave up a lock or bound a socket.
                Ok(None) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn no_agent(&self, no_answer: &NoAnswer) -> Failure {
        let socket = self.socket();
        let socket = socket.display();
        let (msg, cause) = match no_answer {
            NoAnswer::Down(error) => (format!("no node agent answers at {socket}"), error),
            NoAnswer::Broken(error) => (format!("the node agent at {socket} gave no proper answer"), error),
        };
        let details = format!("{cause}; start `fairlead` on this node, or see its log, then it is tried again");
        Failure::new(Code::TryAgainLater, msg, details)
    }
}

enum Asked {
    Agent(Answer),
    Journal(Lock),
    Nobody,
}

fn attached(answer: Answer) -> Result<Attachment, Failure> {
    match answer {
        Answer::Attached(attachment) => Ok(attachment),
        Answer::Failed(failure) => Err(failure),
        Answer::Done => Err(Failure::new(
            Code::Io,
            "the node agent answered without a result",
            "plugin and agent are of different versions; restart the agent, which installs its own plugin",
        )),
    }
}

fn done(answer: Answer) -> Result<(), Failure> {
    match answer {
        Answer::Failed(failure) => Err(failure),
        _ => Ok(()),
    }
}
