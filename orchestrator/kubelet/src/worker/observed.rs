//! What the runtime has of one pod, in the words of this crate.

use jiff::Timestamp;
use std::net::IpAddr;

/// Sandboxes and containers of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Newest first.
    pub sandboxes: Vec<Sandbox>,
    /// Newest first.
    pub containers: Vec<Container>,
}

/// A sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Its id in the runtime.
    pub id: String,
    /// How many sandboxes the pod had before.
    pub attempt: u32,
    /// Whether containers can be made in it.
    pub ready: bool,
    /// When it was made.
    pub created: Timestamp,
    /// Its addresses; none with the host's network.
    pub ips: Vec<IpAddr>,
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its id in the runtime.
    pub id: String,
    /// Its name in the pod.
    pub name: String,
    /// The sandbox that it is in.
    pub sandbox_id: String,
    /// How often a container of this name was started before.
    pub restart_count: u32,
    /// What the container was made from: [`crate::podspec::names::hash`] of then.
    pub hash: String,
    /// When it was made.
    pub created: Timestamp,
    /// Where it is in its life.
    pub state: State,
    /// The image's name, as the runtime tells it.
    pub image: String,
    /// The image's content.
    pub image_ref: String,
}

/// Where a container is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, not started.
    Created,
    /// Runs.
    Running {
        /// Since when.
        started: Timestamp,
    },
    /// Has ended.
    Exited(Exit),
    /// The runtime does not know.
    Unknown,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// When it was started; `None`: it never ran.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub finished: Timestamp,
    /// 128 + signal for those that a signal ended.
    pub code: i32,
    /// The runtime's word, as `OOMKilled`, `Completed`, `Error`.
    pub reason: String,
    /// The runtime's or the container's last words.
    pub message: String,
}

impl Container {
    /// How it ended, if it has.
    pub fn exit(&self) -> Option<&Exit> {
        match &self.state {
            State::Exited(exit) => Some(exit),
            _ => None,
        }
    }

    /// Whether its process may be there.
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }
}

impl Observed {
    /// The newest sandbox, if it is ready.
    pub fn sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first().filter(|it| it.ready)
    }

    /// The newest container of this name.
    pub fn newest(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|it| it.name == name)
    }

    /// The newest container of this name in this sandbox.
    pub fn newest_in(&self, sandbox_id: &str, name: &str) -> Option<&Container> {
        let mut all = self.containers.iter();
        all.find(|it| it.name == name && it.sandbox_id == sandbox_id)
    }

    /// The one before the newest of this name.
    pub fn previous(&self, name: &str) -> Option<&Container> {
        self.containers.iter().filter(|it| it.name == name).nth(1)
    }

    /// Brings both lists into their order.
    pub fn sort(&mut self) {
        self.sandboxes
            .sort_by_key(|it| std::cmp::Reverse((it.attempt, it.created)));
        self.containers
            .sort_by_key(|it| std::cmp::Reverse((it.restart_count, it.created)));
    }
}
