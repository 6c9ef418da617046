//! Tells workers that something changed in the runtime: at once by its events, and at the latest by looking through all
//! of it again and again.

use super::observe::POD_UID;
use crate::cri::{
    Runtime, RuntimeError,
    v1::{ContainerState, PodSandboxState},
};
use futures::StreamExt as _;
use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

/// How often all is looked through where events tell of changes.
const RELIST: Duration = Duration::from_secs(10);

/// How often all is looked through without events: upstream's.
const RELIST_WITHOUT_EVENTS: Duration = Duration::from_secs(1);

/// When to look after an event whose effect cannot be seen yet: the runtime tells of the end of a process before its
/// own lists show it. The last one is repeated.
const AFTER_EVENT_MS: [u64; 6] = [5, 20, 60, 200, 500, 1000];

/// How often to look for what an event told of: on a machine that is too busy, the lists are far behind.
const LOOKS: usize = 60;

/// When to ask for events again after the connection broke.
const RECONNECT: Duration = Duration::from_secs(1);

/// State of everything, by id: the pod, and what is known of it.
type Snapshot = HashMap<String, (String, u8)>;

const NOT_READY: u8 = 0;
const READY: u8 = 1;
const CREATED: u8 = 2;
const RUNNING: u8 = 3;
const EXITED: u8 = 4;
const UNKNOWN: u8 = 5;

/// What has not ended: after an event that tells of an end, the lists are behind.
const LIVES: [u8; 3] = [READY, CREATED, RUNNING];

/// Runs until `stop`; uids of pods that changed go to `changed`.
pub(crate) async fn run(runtime: Runtime, changed: mpsc::UnboundedSender<String>, stop: CancellationToken) {
    let (ids, mut inbox) = mpsc::unbounded_channel();
    let follow = follow_events(runtime.clone(), ids, stop.clone());
    tokio::spawn(follow);
    let mut known = Snapshot::new();
    let mut with_events = false;
    let mut open: HashMap<String, usize> = HashMap::new();
    let mut next = Instant::now();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            told = inbox.recv() => match told {
                Some(Told::Connected(connected)) => {
                    with_events = connected;
                    continue;
                }
                Some(Told::Id(id)) => {
                    open.insert(id, 0);
                    next = next.min(Instant::now() + Duration::from_millis(AFTER_EVENT_MS[0]));
                    continue;
                }
                None => return,
            },
            () = tokio::time::sleep_until(next) => {}
        }
        match look(&runtime).await {
            Ok(now) => {
                let mut told = differences(&known, &now);
                // What is known of an end may change after it: that it was for want of memory.
                let first = open.iter().filter(|(_, tries)| **tries == 0);
                told.extend(first.filter_map(|(id, _)| now.get(id)).map(|(uid, _)| uid.clone()));
                for uid in told {
                    if changed.send(uid).is_err() {
                        return;
                    }
                }
                open.retain(|id, tries| {
                    *tries += 1;
                    let lives = now.get(id).is_some_and(|(_, state)| LIVES.contains(state));
                    lives && *tries < LOOKS
                });
                known = now;
            }
            Err(error) => tracing::warn!(error = %error, "the runtime could not be looked through"),
        }
        let usual = if with_events { RELIST } else { RELIST_WITHOUT_EVENTS };
        let soon = open
            .values()
            .min()
            .map(|it| Duration::from_millis(AFTER_EVENT_MS[(*it).min(AFTER_EVENT_MS.len() - 1)]));
        next = Instant::now() + soon.unwrap_or(usual);
    }
}

async fn look(runtime: &Runtime) -> Result<Snapshot, RuntimeError> {
    let (sandboxes, containers) = tokio::try_join!(runtime.sandboxes(None), runtime.containers(None))?;
    let mut now = Snapshot::new();
    for sandbox in sandboxes {
        if let Some(uid) = sandbox.labels.get(POD_UID) {
            let ready = sandbox.state() == PodSandboxState::SandboxReady;
            let state = if ready { READY } else { NOT_READY };
            now.insert(sandbox.id.clone(), (uid.clone(), state));
        }
    }
    for container in containers {
        if let Some(uid) = container.labels.get(POD_UID) {
            let state = match container.state() {
                ContainerState::ContainerCreated => CREATED,
                ContainerState::ContainerRunning => RUNNING,
                ContainerState::ContainerExited => EXITED,
                ContainerState::ContainerUnknown => UNKNOWN,
            };
            now.insert(container.id.clone(), (uid.clone(), state));
        }
    }
    Ok(now)
}

/// Uids of pods of which something came, went or changed.
fn differences(before: &Snapshot, now: &Snapshot) -> BTreeSet<String> {
    let changed = now.iter().filter(|(id, it)| before.get(*id) != Some(*it));
    let gone = before.iter().filter(|(id, _)| !now.contains_key(*id));
    changed.chain(gone).map(|(_, (uid, _))| uid.clone()).collect()
}

enum Told {
    Connected(bool),
    Id(String),
}

/// Follows the events that the runtime has: CRI's, else containerd's own, else none.
async fn follow_events(runtime: Runtime, told: mpsc::UnboundedSender<Told>, stop: CancellationToken) {
    let work = async {
        loop {
            let implemented = follow_once(&runtime, &told).await;
            if told.send(Told::Connected(false)).is_err() || !implemented {
                break;
            }
            tokio::time::sleep(RECONNECT).await;
        }
        // The other end goes on without events.
        told.closed().await;
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = work => {}
    }
}

/// Until the connection breaks. Whether it makes sense to try again.
async fn follow_once(runtime: &Runtime, told: &mpsc::UnboundedSender<Told>) -> bool {
    match runtime.events().await {
        Ok(mut events) => {
            let mut connected = false;
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => {
                        let _ = told.send(Told::Id(event.container_id));
                        if !connected {
                            connected = true;
                            let _ = told.send(Told::Connected(true));
                        }
                    }
                    Err(status) if status.code() == tonic::Code::Unimplemented => {
                        return follow_containerd(runtime, told).await;
                    }
                    Err(_) => break,
                }
            }
            true
        }
        Err(error) if error.is_unimplemented() => follow_containerd(runtime, told).await,
        Err(_) => true,
    }
}

async fn follow_containerd(runtime: &Runtime, told: &mpsc::UnboundedSender<Told>) -> bool {
    let mut events = match runtime.containerd_exits().await {
        Ok(events) => events,
        Err(error) => return !error.is_unimplemented(),
    };
    let _ = told.send(Told::Connected(true));
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if let Some(id) = event.container_id() {
                    let _ = told.send(Told::Id(id));
                }
            }
            Err(status) => return status.code() != tonic::Code::Unimplemented,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_that_changed_are_told_apart() {
        let of = |all: &[(&str, &str, u8)]| -> Snapshot {
            all.iter()
                .map(|(id, uid, state)| ((*id).to_owned(), ((*uid).to_owned(), *state)))
                .collect()
        };
        let before = of(&[("a", "p1", 11), ("b", "p2", 11), ("c", "p3", 11)]);
        let now = of(&[("a", "p1", 11), ("b", "p2", 12), ("d", "p4", 10)]);
        let told: Vec<_> = differences(&before, &now).into_iter().collect();
        assert_eq!(told, ["p2", "p3", "p4"]);
        assert!(differences(&now, &now).is_empty());
    }
}
