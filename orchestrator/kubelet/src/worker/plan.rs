//! The words that [`super::decide()`] speaks in: what a worker remembers, and what it may do next.

use super::backoff::Backoff;
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// What a worker remembers of its pod besides what the runtime tells.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// What is being done, with what must be known about it.
    pub busy: BTreeMap<Task, Busy>,
    /// Waits between restarts, by container name.
    pub backoff: BTreeMap<String, Backoff>,
    /// Results of probes and hooks, by container id.
    pub health: BTreeMap<String, Health>,
    /// Images of containers that are about to start, by container name.
    pub images: BTreeMap<String, Image>,
    /// Whether volumes, cgroup and directories are there.
    pub set_up: bool,
    /// Errors of things that will be tried again.
    pub failed: BTreeMap<Task, Failed>,
    /// Set once the pod shall end; never taken back.
    pub ending: Option<Ending>,
    /// Everything outside the runtime was taken away.
    pub torn_down: bool,
    /// The last status is known to the API server; only then may the object go.
    pub status_sent: bool,
    /// The object is gone, or was a static pod's whose manifest is.
    pub object_gone: bool,
}

/// One thing that can be under way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// Volumes, cgroup, directories.
    SetUp,
    /// A new sandbox.
    MakeSandbox,
    /// Ends the sandbox with this id.
    StopSandbox(String),
    /// Removes the sandbox with this id.
    RemoveSandbox(String),
    /// Brings the image of the container with this name.
    Image(String),
    /// Makes and starts the container with this name.
    Start(String),
    /// Ends the container with this id.
    Stop(String),
    /// Removes the container with this id.
    Remove(String),
    /// Undoes `SetUp`.
    TearDown,
    /// Deletes the object.
    Delete,
}

/// What is known about something under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Busy {
    /// For [`Task::Stop`]: when the container is killed at last.
    pub deadline: Option<Timestamp>,
}

/// Results of probes and hooks of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Readiness; `None`: no result yet.
    pub ready: Option<bool>,
    /// Startup; `None`: no result yet.
    pub started: Option<bool>,
    /// Why it must be restarted: a liveness or startup probe, or a hook, failed. In the words of the event.
    pub unhealthy: Option<Unhealthy>,
}

/// Why a container that runs must end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unhealthy {
    /// As `Container web failed liveness probe`.
    pub message: String,
    /// The grace of the probe, seconds, where it has one of its own.
    pub grace_s: Option<i64>,
}

/// An image that a container is about to be made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image {
    /// It is here: the reference that stands for exactly this content.
    Ready(String),
    /// It could not be had.
    Failed {
        /// As `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName`.
        reason: String,
        /// The registry's or the runtime's words.
        message: String,
        /// When that was found.
        since: Timestamp,
        /// When to try again.
        retry: Timestamp,
        /// The wait in force.
        backoff: Option<Backoff>,
    },
}

/// Something that failed and is tried again later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// As `CreateContainerError`.
    pub reason: String,
    /// The error.
    pub message: String,
    /// When to try again.
    pub retry: Timestamp,
    /// How often in a row.
    pub times: u32,
}

/// How and since when a pod ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Why.
    pub kind: EndingKind,
    /// When it began.
    pub since: Timestamp,
    /// Seconds until containers are killed; may only become less.
    pub grace_s: i64,
}

/// Why a pod ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndingKind {
    /// Its object is being deleted, or is gone.
    Deleted,
    /// All its containers have done their work, or will not be started again.
    Finished,
    /// This node gave it up: phase Failed with this reason and message.
    Failed {
        /// As `DeadlineExceeded`.
        reason: String,
        /// For people.
        message: String,
    },
}

impl Ending {
    /// When containers are killed at last.
    pub fn deadline(&self) -> Timestamp {
        let grace = SignedDuration::from_secs(self.grace_s.max(0));
        self.since.saturating_add(grace).unwrap_or(Timestamp::MAX)
    }
}

/// One thing to do next. Those of one decision may be done at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make volumes, cgroup and directories.
    SetUp,
    /// Make the sandbox with this number.
    MakeSandbox {
        /// How many there were before.
        attempt: u32,
    },
    /// End everything in a sandbox and free its network.
    StopSandbox {
        /// Its id.
        id: String,
    },
    /// Remove a sandbox that does not run, with what is in it.
    RemoveSandbox {
        /// Its id.
        id: String,
    },
    /// Make sure that a container's image is here.
    EnsureImage {
        /// Name of the container.
        name: String,
    },
    /// Make and start a container.
    Start {
        /// Its name.
        name: String,
        /// The sandbox to put it in.
        sandbox_id: String,
        /// How often it was started before.
        restart_count: u32,
        /// Content of its image.
        image_ref: String,
    },
    /// Run the preStop hook of a container and end it.
    Stop {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
        /// When it is killed at last.
        deadline: Timestamp,
        /// The words of the event.
        message: String,
    },
    /// Remove a container that does not run.
    RemoveContainer {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
    },
    /// Give up what is under way.
    Cancel(Task),
    /// Begin to end the pod.
    End {
        /// Why.
        kind: EndingKind,
        /// Seconds until containers are killed.
        grace_s: i64,
    },
    /// Undo `SetUp`.
    TearDown,
    /// Delete the object with grace 0.
    Delete,
    /// Nothing is left to do for this pod, ever.
    Done,
}

impl Action {
    /// What is under way once this was begun; `None` for what only changes the memory.
    pub fn task(&self) -> Option<Task> {
        Some(match self {
            Self::SetUp => Task::SetUp,
            Self::MakeSandbox { .. } => Task::MakeSandbox,
            Self::StopSandbox { id } => Task::StopSandbox(id.clone()),
            Self::RemoveSandbox { id } => Task::RemoveSandbox(id.clone()),
            Self::EnsureImage { name } => Task::Image(name.clone()),
            Self::Start { name, .. } => Task::Start(name.clone()),
            Self::Stop { id, .. } => Task::Stop(id.clone()),
            Self::RemoveContainer { id, .. } => Task::Remove(id.clone()),
            Self::TearDown => Task::TearDown,
            Self::Delete => Task::Delete,
            Self::Cancel(_) | Self::End { .. } | Self::Done => return None,
        })
    }
}

/// Why a container is not running, in the words of `state.waiting`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// As `CrashLoopBackOff`.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// What to do next, and what to tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// To be done now; the same decision again would not repeat them while they are under way.
    pub actions: Vec<Action>,
    /// When to decide again at the latest.
    pub wake: Option<Timestamp>,
    /// Containers that wait, by name.
    pub waiting: BTreeMap<String, Waiting>,
    /// All init containers have done their work, or what comes after them was started.
    pub initialized: bool,
    /// Names of containers in the sandbox in use that were told apart as wanted; the rest is pruned.
    pub wanted: BTreeSet<String>,
}

impl Decision {
    /// Decide again at this time, or before.
    pub(super) fn wake_at(&mut self, time: Timestamp) {
        self.wake = Some(self.wake.map_or(time, |it| it.min(time)));
    }

    /// Begins an action unless it is under way, or failed a short while ago.
    pub(super) fn begin(&mut self, memory: &Memory, now: Timestamp, action: Action) {
        if let Some(task) = action.task() {
            if memory.busy.contains_key(&task) {
                return;
            }
            if let Some(failed) = memory.failed.get(&task).filter(|it| it.retry > now) {
                self.wake_at(failed.retry);
                return;
            }
        }
        if !self.actions.contains(&action) {
            self.actions.push(action);
        }
    }
}
