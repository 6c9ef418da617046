//! A client of the API server on the node: it sends, watches, and reads its own clock.

use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use std::{
    collections::HashMap,
    fs::File,
    path::Path,
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// How long anything may take before the run gives up.
const PATIENCE: Duration = Duration::from_secs(90);
/// Requests at once where many are sent.
const AT_ONCE: usize = 8;

/// Moves this thread, and what it starts, to the network namespace of a process.
///
/// # Errors
/// There is no such process, or the kernel refuses.
pub(crate) fn enter(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/ns/net");
    let namespace = File::open(&path).with_context(|| path.clone())?;
    nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {path}"))
}

/// When this client saw what of a pod.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// The create request was about to be sent, by two clocks.
    pub(crate) sent: Instant,
    pub(crate) sent_wall: SystemTime,
    /// It was answered.
    pub(crate) answered: Option<Instant>,
    /// The pod had a node.
    pub(crate) scheduled: Option<Instant>,
    /// Its phase was Running.
    pub(crate) running: Option<Instant>,
}

impl Times {
    pub(crate) fn begin() -> Self {
        Self {
            sent: Instant::now(),
            sent_wall: SystemTime::now(),
            answered: None,
            scheduled: None,
            running: None,
        }
    }
}

/// A change that a watch told.
struct Seen {
    name: String,
    at: Instant,
    scheduled: bool,
    running: bool,
    ended: bool,
    gone: bool,
}

impl Seen {
    fn of(pod: &Pod, gone: bool) -> Self {
        let phase = pod.status.as_ref().and_then(|it| it.phase.as_deref());
        Self {
            name: pod.metadata.name.clone().unwrap_or_default(),
            at: Instant::now(),
            scheduled: pod.spec.as_ref().is_some_and(|it| it.node_name.is_some()),
            running: phase == Some("Running"),
            ended: matches!(phase, Some("Failed" | "Succeeded")),
            gone,
        }
    }
}

/// The pods of the namespace `default`, followed by one watch.
pub(crate) struct Pods {
    api: Api<Pod>,
    changes: UnboundedReceiver<Seen>,
    /// Of all that were created here, by name.
    pub(crate) times: HashMap<String, Times>,
}

impl Pods {
    /// Begins to watch.
    ///
    /// # Errors
    /// The kubeconfig cannot be read, or the API server refuses.
    pub(crate) async fn new(kubeconfig: &Path) -> Result<Self> {
        let text = Kubeconfig::read_from(kubeconfig)?;
        let config = Config::from_custom_kubeconfig(text, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        // Pods are refused until their namespace has its service account.
        let accounts = Api::<k8s_openapi::api::core::v1::ServiceAccount>::default_namespaced(client.clone());
        let there = kube::runtime::wait::await_condition(accounts, "default", |it: Option<&_>| it.is_some());
        tokio::time::timeout(PATIENCE, there)
            .await
            .context("the namespace has no service account")??;
        let api = Api::<Pod>::default_namespaced(client);
        let changes = watch(&api).await?;
        Ok(Self {
            api,
            changes,
            times: HashMap::new(),
        })
    }

    /// Watches anew: a watch ends after some minutes, and no part of the run takes as long.
    ///
    /// # Errors
    /// The API server refuses.
    pub(crate) async fn watch_again(&mut self) -> Result<()> {
        self.changes = watch(&self.api).await?;
        Ok(())
    }

    /// Creates pods, some requests at once.
    ///
    /// # Errors
    /// One is refused.
    pub(crate) async fn create(&mut self, pods: Vec<Pod>) -> Result<()> {
        let api = &self.api;
        let sending = pods.into_iter().map(|pod| async move {
            let mut times = Times::begin();
            let made = api.create(&PostParams::default(), &pod).await?;
            times.answered = Some(Instant::now());
            anyhow::Ok((made.metadata.name.unwrap_or_default(), times))
        });
        let made: Vec<_> = futures::stream::iter(sending)
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        self.times.extend(made);
        Ok(())
    }

    /// Waits until all of these run.
    ///
    /// # Errors
    /// One ends instead, or [`PATIENCE`] is over.
    pub(crate) async fn running(&mut self, names: &[String]) -> Result<()> {
        self.follow("run", names, |seen, times| {
            times.scheduled = times.scheduled.or(seen.scheduled.then_some(seen.at));
            times.running = times.running.or(seen.running.then_some(seen.at));
            if seen.ended || seen.gone {
                bail!("pod {} ended", seen.name);
            }
            Ok(times.running.is_some())
        })
        .await
    }

    /// Deletes these, some requests at once, and waits until all are gone; how long that took.
    ///
    /// # Errors
    /// One is refused, or [`PATIENCE`] is over.
    pub(crate) async fn delete(&mut self, names: &[String]) -> Result<Duration> {
        let begun = Instant::now();
        let api = &self.api;
        let sending = names.iter().map(|name| async move {
            let deleted = api.delete(name, &DeleteParams::default()).await;
            deleted.map(drop).with_context(|| format!("delete pod {name}"))
        });
        let sent: Result<Vec<()>> = futures::stream::iter(sending)
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await;
        sent?;
        let mut last = begun;
        self.follow("go", names, |seen, _| {
            last = seen.at;
            Ok(seen.gone)
        })
        .await?;
        Ok(last - begun)
    }

    /// Reads changes until each of these pods is done.
    async fn follow(
        &mut self,
        what: &str,
        names: &[String],
        mut done: impl FnMut(&Seen, &mut Times) -> Result<bool>,
    ) -> Result<()> {
        let mut open: Vec<&String> = names.iter().collect();
        let all = async {
            while !open.is_empty() {
                let seen = self.changes.recv().await.context("the watch of pods ended")?;
                let Some(times) = self.times.get_mut(&seen.name) else {
                    continue;
                };
                if done(&seen, times)? {
                    open.retain(|name| **name != seen.name);
                }
            }
            Ok(())
        };
        match tokio::time::timeout(PATIENCE, all).await {
            Ok(result) => result,
            Err(_) => bail!("after {} s these pods do not {what}: {open:?}", PATIENCE.as_secs()),
        }
    }
}

/// What happens from now on. When this returns, the server has begun to tell.
async fn watch(api: &Api<Pod>) -> Result<UnboundedReceiver<Seen>> {
    let now = api.list(&ListParams::default()).await?.metadata.resource_version;
    let events = api.watch(&WatchParams::default(), &now.unwrap_or_default()).await?;
    let (sender, receiver) = unbounded_channel();
    tokio::spawn(async move {
        let mut events = std::pin::pin!(events);
        while let Some(Ok(event)) = events.next().await {
            let seen = match event {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => Seen::of(&pod, false),
                WatchEvent::Deleted(pod) => Seen::of(&pod, true),
                WatchEvent::Bookmark(_) => continue,
                // Told by the end of the channel.
                WatchEvent::Error(_) => return,
            };
            if sender.send(seen).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}
