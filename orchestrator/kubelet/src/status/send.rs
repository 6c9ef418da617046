//! Sends the status of one pod, the newest only, and again until it was taken.

use super::conditions::OWNED;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::Status,
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// First wait after a failure.
const FIRST: Duration = Duration::from_millis(200);

/// Longest wait after a failure: how soon the API server learns of everything once it is back.
const LONGEST: Duration = Duration::from_secs(10);

/// Where a status goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`, which the object must still have; a static pod's is that of its mirror.
    pub uid: String,
}

/// Whether a write was refused because the name belongs to another object by now, or to one of another node, which this one
/// may not even read.
pub(crate) async fn is_another(refusal: &Status, api: &Api<Pod>, name: &str, uid: &str) -> bool {
    if refusal.code != 409 {
        return false;
    }
    match api.get_opt(name).await {
        Ok(found) => found.and_then(|it| it.metadata.uid).as_deref() != Some(uid),
        Err(kube::Error::Api(error)) => error.code == 403,
        Err(_) => false,
    }
}

/// A status on its way.
#[derive(Clone, Debug, PartialEq)]
struct Wanted {
    number: u64,
    target: Option<Target>,
    status: PodStatus,
}

/// How far sending is.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The number of the last status that was taken, or that nobody wants any more because the object is gone.
    pub sent: u64,
    /// The object does not exist, or is another one of the same name.
    pub gone: bool,
    /// The object as the API server answered.
    pub answer: Option<Box<Pod>>,
}

/// Sends the status of one pod from a task of its own.
#[derive(Debug)]
pub struct Sender {
    wanted: watch::Sender<Wanted>,
    progress: watch::Receiver<Progress>,
    number: u64,
}

impl Sender {
    /// Starts the task. It ends with `stop`, or when this is dropped.
    pub fn new(client: Client, known: PodStatus, stop: CancellationToken) -> Self {
        let (wanted, mut inbox) = watch::channel(Wanted {
            number: 0,
            target: None,
            status: known,
        });
        inbox.mark_unchanged();
        let (outbox, progress) = watch::channel(Progress::default());
        tokio::spawn(async move {
            let work = run(client, inbox, outbox);
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = work => {}
            }
        });
        Self {
            wanted,
            progress,
            number: 0,
        }
    }

    /// Has this status sent, unless it is the last one that was asked for. Its number.
    pub fn send(&mut self, target: Option<Target>, status: &PodStatus) -> u64 {
        let same = {
            let last = self.wanted.borrow();
            last.status == *status && last.target == target
        };
        if !same {
            self.number += 1;
            self.wanted.send_replace(Wanted {
                number: self.number,
                target,
                status: status.clone(),
            });
        }
        self.number
    }

    /// The last status that was asked for, or that was known at the start.
    pub fn last(&self) -> PodStatus {
        self.wanted.borrow().status.clone()
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Waits for progress.
    pub async fn changed(&mut self) {
        if self.progress.changed().await.is_err() {
            // The task has ended because all of this ends.
            std::future::pending::<()>().await;
        }
    }
}

async fn run(client: Client, mut inbox: watch::Receiver<Wanted>, outbox: watch::Sender<Progress>) {
    let mut wait = FIRST;
    loop {
        if inbox.changed().await.is_err() {
            return;
        }
        loop {
            let wanted = inbox.borrow_and_update().clone();
            let Some(target) = &wanted.target else {
                // A static pod without a mirror: nobody to tell.
                outbox.send_replace(Progress {
                    sent: wanted.number,
                    ..Progress::default()
                });
                break;
            };
            let api: Api<Pod> = Api::namespaced(client.clone(), &target.namespace);
            let body = patch_body(&target.uid, &wanted.status);
            let sent = api
                .patch_status(&target.name, &PatchParams::default(), &Patch::Strategic(body))
                .await;
            match sent {
                Ok(answer) => {
                    wait = FIRST;
                    outbox.send_replace(Progress {
                        sent: wanted.number,
                        gone: false,
                        answer: Some(Box::new(answer)),
                    });
                    break;
                }
                Err(kube::Error::Api(error))
                    if error.code == 404 || is_another(&error, &api, &target.name, &target.uid).await =>
                {
                    outbox.send_replace(Progress {
                        sent: wanted.number,
                        gone: true,
                        answer: None,
                    });
                    break;
                }
                Err(error) => {
                    tracing::warn!(pod = %format!("{}/{}", target.namespace, target.name), error = %error, "the status could not be sent; it will be tried again");
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        changed = inbox.changed() => {
                            if changed.is_err() {
                                return;
                            }
                            inbox.mark_changed();
                            tokio::time::sleep(FIRST).await;
                        }
                    }
                    wait = (wait * 2).min(LONGEST);
                }
            }
        }
    }
}

/// The strategic merge patch for a status: all that the kubelet owns, `null` for what is not set, foreign conditions
/// left alone.
pub fn patch_body(uid: &str, status: &PodStatus) -> Value {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    let Some(fields) = value.as_object_mut() else {
        return value;
    };
    for name in ["reason", "message", "podIP", "podIPs"] {
        fields.entry(name).or_insert(Value::Null);
    }
    fields.remove("nominatedNodeName");
    fields.remove("resize");
    if let Some(list) = fields.get_mut("conditions").and_then(Value::as_array_mut) {
        list.retain(|it| it["type"].as_str().is_some_and(|it| OWNED.contains(&it)));
        for condition in list {
            let Some(condition) = condition.as_object_mut() else {
                continue;
            };
            for name in ["reason", "message"] {
                condition.entry(name).or_insert(Value::Null);
            }
        }
    }
    // Lists that merge by address would keep addresses that are gone.
    for name in ["podIPs", "hostIPs"] {
        if let Some(list) = fields.get_mut(name).and_then(Value::as_array_mut) {
            list.insert(0, json!({"$patch": "replace"}));
        }
    }
    json!({"metadata": {"uid": uid}, "status": value})
}
