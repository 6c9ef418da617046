//! What happens to volumes while their pods run: [`Entry`] is one pod, [`run`] the task that all changes go through.

use super::{
    Mounted, SetUpFailed, Volumes, atomic, disk,
    payload::{self, Sources, TokenKey},
};
use crate::{
    objects::ObjectRef,
    pod,
    podspec::{Cause, Facts},
};
use k8s_openapi::api::core::v1::{Pod, Volume};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::broadcast::error::RecvError,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// How long replaced files stay for readers that are on their way to them.
const LINGER: Duration = Duration::from_secs(10);
/// When a token that could not be renewed is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// A token is renewed after so much of its life, and after a day at the latest. Source: KEP-1205.
const RENEW_AT: f64 = 0.8;
const RENEW_AFTER: Duration = Duration::from_secs(24 * 3600);

/// One pod that has volumes here.
pub(super) struct Entry {
    refs: Mutex<BTreeSet<ObjectRef>>,
    /// When there is something to do without a change.
    due: Mutex<Option<Instant>>,
    /// Whether a refresh is asked for and has not begun.
    asked: AtomicBool,
    /// What is there by now.
    mounted: Mutex<Mounted>,
    /// Held while files are made: one at a time, in order.
    state: tokio::sync::Mutex<State>,
}

struct State {
    pod: Arc<Pod>,
    closed: bool,
    tokens: HashMap<TokenKey, Token>,
    /// Directories with old files, and when they go.
    sweeps: BTreeMap<PathBuf, Instant>,
}

struct Token {
    text: String,
    renew_at: Instant,
}

impl Entry {
    pub(super) fn new(pod: Arc<Pod>) -> Self {
        let state = State {
            pod,
            closed: false,
            tokens: HashMap::new(),
            sweeps: BTreeMap::new(),
        };
        Self {
            refs: Mutex::default(),
            due: Mutex::default(),
            asked: AtomicBool::new(false),
            mounted: Mutex::default(),
            state: tokio::sync::Mutex::new(state),
        }
    }

    /// Which objects it follows; whether that is news.
    pub(super) fn refer(&self, refs: BTreeSet<ObjectRef>) -> bool {
        let mut own = self.refs.lock().unwrap_or_else(PoisonError::into_inner);
        let news = *own != refs;
        *own = refs;
        news
    }

    fn refers(&self, object: &ObjectRef) -> bool {
        self.refs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(object)
    }

    fn due(&self) -> MutexGuard<'_, Option<Instant>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Without waiting for what is being made.
    pub(super) fn mounted(&self) -> MutexGuard<'_, Mounted> {
        self.mounted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its files would be others if they were made from this pod.
    pub(super) async fn differs(&self, pod: &Pod) -> bool {
        let own = &self.state.lock().await.pod;
        let shown = |it: &Pod| (it.metadata.labels.clone(), it.metadata.annotations.clone());
        shown(own) != shown(pod) || own.spec != pod.spec
    }

    pub(super) async fn close(&self) {
        self.state.lock().await.closed = true;
    }
}

impl Volumes {
    /// Makes the volumes of this pod; `pod` is from now on what they are made from.
    pub(super) async fn fill(&self, entry: &Entry, pod: Arc<Pod>) -> Result<Mounted, SetUpFailed> {
        let mut state = entry.state.lock().await;
        state.pod = pod;
        self.fill_locked(entry, &mut state).await
    }

    async fn fill_locked(&self, entry: &Entry, state: &mut State) -> Result<Mounted, SetUpFailed> {
        let pod = state.pod.clone();
        let failed = |volumes| SetUpFailed {
            pod: pod::full_name(&pod),
            volumes,
        };
        if state.closed {
            let cause = Cause::Unavailable("the pod's volumes are being taken away".to_owned());
            return Err(failed([(String::new(), cause)].into()));
        }
        let volumes: Vec<Volume> = pod
            .spec
            .iter()
            .flat_map(|it| it.volumes.iter().flatten())
            .cloned()
            .collect();
        if volumes.is_empty() {
            return Ok(Mounted::default());
        }
        let sources = self.sources(&pod, &volumes, state).await;
        let made = tokio::task::spawn_blocking({
            let (layout, facts, pod) = (self.0.layout.clone(), self.0.facts.clone(), pod.clone());
            move || make_all(&layout, &pod, &volumes, &facts, &sources)
        });
        let made = match made.await {
            Ok(made) => made,
            Err(error) => return Err(failed([(String::new(), Cause::Io(error.to_string()))].into())),
        };
        let mut failures = BTreeMap::new();
        for (volume, made) in made {
            match made {
                Ok(made) => {
                    if made.replaced {
                        state.sweeps.insert(made.path.clone(), Instant::now() + LINGER);
                    }
                    entry.mounted().volumes.insert(volume, made);
                }
                Err(cause) => {
                    failures.insert(volume, cause);
                }
            }
        }
        self.plan(entry, state);
        if failures.is_empty() {
            Ok(entry.mounted().clone())
        } else {
            Err(failed(failures))
        }
    }

    /// When this pod is due next.
    fn plan(&self, entry: &Entry, state: &State) {
        let tokens = state.tokens.values().map(|it| it.renew_at);
        *entry.due() = tokens.chain(state.sweeps.values().copied()).min();
        self.0.wake.notify_one();
    }

    async fn sources(&self, pod: &Pod, volumes: &[Volume], state: &mut State) -> Sources {
        let namespace = pod::namespace(pod);
        let objects = &self.0.objects;
        let mut out = Sources::default();
        let refs: BTreeSet<_> = volumes
            .iter()
            .flat_map(|it| ObjectRef::of_volume(namespace, it))
            .collect();
        let all = refs.into_iter().map(|it| async move {
            match it {
                ObjectRef::ConfigMap { namespace, name } => {
                    let found = objects.config_map(&namespace, &name).await.map_err(|it| it.to_string());
                    (name, Some(found), None)
                }
                ObjectRef::Secret { namespace, name } => {
                    let found = objects.secret(&namespace, &name).await.map_err(|it| it.to_string());
                    (name, None, Some(found))
                }
            }
        });
        let wanted: BTreeSet<TokenKey> = volumes.iter().flat_map(payload::tokens).collect();
        state.tokens.retain(|it, _| wanted.contains(it));
        let now = Instant::now();
        let stale = wanted
            .iter()
            .filter(|it| state.tokens.get(it).is_none_or(|it| it.renew_at <= now));
        let tokens = stale.map(|key| async move {
            let request = payload::token_request(pod, key);
            let asked = objects.token(namespace, payload::account(pod), &request).await;
            (key.clone(), asked)
        });
        let (all, tokens) =
            futures::future::join(futures::future::join_all(all), futures::future::join_all(tokens)).await;
        for (name, config_map, secret) in all {
            out.secrets.extend(secret.map(|it| (name.clone(), it)));
            out.config_maps.extend(config_map.map(|it| (name, it)));
        }
        for (key, asked) in tokens {
            let now = Instant::now();
            let parts = asked.map(|it| {
                (
                    it.spec.and_then(|it| it.expiration_seconds),
                    it.status.and_then(|it| it.token),
                )
            });
            let failure = match parts {
                Ok((seconds, Some(text))) => {
                    // The server may give less than was asked, or more.
                    let seconds = u64::try_from(seconds.unwrap_or(key.seconds)).unwrap_or(0);
                    let life = Duration::from_secs(seconds)
                        .mul_f64(RENEW_AT)
                        .min(RENEW_AFTER)
                        .max(RETRY);
                    state.tokens.insert(
                        key,
                        Token {
                            text,
                            renew_at: now + life,
                        },
                    );
                    continue;
                }
                Ok((_, None)) => "the API server gave no token".to_owned(),
                Err(error) => error.to_string(),
            };
            match state.tokens.get_mut(&key) {
                // The old one is good for some time yet.
                Some(old) => {
                    tracing::warn!(
                        pod = pod::full_name(pod),
                        error = failure,
                        "token not renewed; tried again"
                    );
                    old.renew_at = now + RETRY;
                }
                None => {
                    out.tokens.insert(key, Err(failure));
                }
            }
        }
        out.tokens
            .extend(state.tokens.iter().map(|(key, it)| (key.clone(), Ok(it.text.clone()))));
        out
    }

    async fn refresh(&self, entry: &Entry) {
        let mut state = entry.state.lock().await;
        // What is asked for from now on needs another look.
        entry.asked.store(false, Ordering::SeqCst);
        if state.closed {
            return;
        }
        let now = Instant::now();
        let swept: Vec<PathBuf> = state
            .sweeps
            .iter()
            .filter(|it| *it.1 <= now)
            .map(|it| it.0.clone())
            .collect();
        state.sweeps.retain(|_, at| *at > now);
        if !swept.is_empty() {
            // What stays is swept by the next writing.
            let _ = tokio::task::spawn_blocking(move || swept.iter().for_each(|it| drop(atomic::sweep(it)))).await;
        }
        if let Err(error) = self.fill_locked(entry, &mut state).await {
            tracing::warn!(pod = error.pod, %error, "volumes stay as they were");
        }
    }
}

fn make_all(
    layout: &super::Layout,
    pod: &Pod,
    volumes: &[Volume],
    facts: &Facts,
    sources: &Sources,
) -> Vec<(String, Result<disk::Made, Cause>)> {
    let make = |it: &Volume| (it.name.clone(), disk::make(layout, pod, it, facts, sources));
    volumes.iter().map(make).collect()
}

pub(super) async fn run(volumes: &Volumes, stop: CancellationToken) {
    let mut changes = volumes.0.objects.changes();
    let mut listening = true;
    let mut work = JoinSet::new();
    // What changed before we listened.
    ask(volumes, &mut work, |_| true);
    loop {
        let due = volumes.pods().values().filter_map(|it| *it.due()).min();
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            change = changes.recv(), if listening => match change {
                Ok(object) => ask(volumes, &mut work, |it| it.refers(&object)),
                Err(RecvError::Lagged(_)) => ask(volumes, &mut work, |_| true),
                // Nobody can tell us any more; tokens are renewed all the same.
                Err(RecvError::Closed) => listening = false,
            },
            Some(done) = work.join_next(), if !work.is_empty() => {
                if let Err(error) = done {
                    tracing::error!(%error, "refreshing the volumes of a pod failed");
                }
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                let now = Instant::now();
                let is_due = |it: &Entry| it.due().take_if(|it| *it <= now).is_some();
                ask(volumes, &mut work, is_due);
            }
            () = volumes.0.wake.notified() => {}
        }
    }
}

/// Starts a refresh of these pods, one at a time each.
fn ask(volumes: &Volumes, work: &mut JoinSet<()>, which: impl Fn(&Entry) -> bool) {
    let chosen: Vec<_> = volumes.pods().values().filter(|it| which(it)).cloned().collect();
    for entry in chosen {
        if !entry.asked.swap(true, Ordering::SeqCst) {
            let volumes = volumes.clone();
            work.spawn(async move { volumes.refresh(&entry).await });
        }
    }
}
