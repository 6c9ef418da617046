//! The agent as a whole: starts its threads, follows Nodes, tells what is wrong.

use crate::{
    Config,
    attach::Node as Attachments,
    host::{Host, Report, Wanted},
    install,
    netlink::{Netlink, nft, pair, routes},
    peers::{self, Peer},
    server::Server,
    store::Store,
};
use anyhow::{Context as _, Result, bail};
use fairlead_cni_plugin::{
    journal::{self, Lock},
    ledger::Key,
    spec::{Code, Failure},
    wire::{self, Answer, Request, SOCKET},
};
use futures::StreamExt as _;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        events::{Event, EventType, Recorder, Reporter},
        watcher,
    },
};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// How long a start waits for plugins that work on the journal.
const HANDOVER: Duration = Duration::from_secs(30);
/// How long writing an Event may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs the node network until `stop`: serves the plugin, follows Nodes, keeps routes and masquerading. Pods keep their
/// network afterwards.
///
/// Works in the network namespace of the calling thread. Installs the plugin at once, and the network's configuration
/// when the node's pod networks are known.
///
/// # Errors
/// What keeps it from starting: object, cause, remedy.
pub async fn run(config: Config, client: Client, stop: CancellationToken) -> Result<()> {
    let lock = lock(&config.run_dir, &stop).await?;
    let Some(lock) = lock else { return Ok(()) };
    let mut agent = Agent::start(config, lock)?;
    agent.follow(client, &stop).await;
    // Threads end here; requests that run are ended first.
    tokio::task::spawn_blocking(move || drop(agent))
        .await
        .context("the node network did not stop in order")
}

/// The threads of an agent.
struct Agent {
    config: Config,
    // In the order in which they stop: no requests, nothing to keep, no journal.
    _server: Server,
    host: Host,
    node: Arc<Attachments>,
    /// The newest wish: nothing is served before it came true once.
    wish: u64,
}

/// Makes the run directory and takes the journal's lock; `None` if `stop` came before.
async fn lock(dir: &Path, stop: &CancellationToken) -> Result<Option<Lock>> {
    let shown = dir.display();
    fs::create_dir_all(dir).with_context(|| format!("cannot make the run directory {shown}"))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("cannot protect the run directory {shown}"))?;
    let deadline = Instant::now() + HANDOVER;
    loop {
        if let Some(lock) = Lock::try_take(dir).with_context(|| format!("cannot lock the journal in {shown}"))? {
            return Ok(Some(lock));
        }
        if UnixStream::connect(dir.join(SOCKET)).is_ok() {
            bail!("another node agent runs with {shown}; stop it, or give this one a run directory of its own");
        }
        if Instant::now() >= deadline {
            bail!(
                "another process has had the journal in {shown} locked for {} s; end it",
                HANDOVER.as_secs()
            );
        }
        // A back-off between attempts: nothing announces that another process gave up a lock.
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
    }
}

impl Agent {
    fn start(config: Config, lock: Lock) -> Result<Self> {
        let dir = &config.run_dir;
        let boot = journal::boot_id().context("cannot tell one boot from another")?;
        let store = Store::open(dir, &boot, lock)
            .with_context(|| format!("cannot open the journal of addresses in {}", dir.display()))?;
        let mark = config.mark();
        let node = Arc::new(Attachments::new(store, mark, journal::now_ms));
        let needs = "cannot look after links and routes; this needs CAP_NET_ADMIN";
        // What a crash left is gone before the first request.
        let mut netlink = Netlink::route().context(needs)?;
        let collected = node.collect(&mut netlink).context(needs)?;
        if collected.freed + collected.removed > 0 {
            tracing::info!(
                addresses_of = collected.freed,
                links = collected.removed,
                "freed what an earlier run left"
            );
        }
        let host = Host::start(Arc::clone(&node), mark, table(&config)).context(needs)?;
        install(&config.cni_bin_dir)?;
        let mut agent = Self {
            _server: Server::start(dir, Arc::clone(&node))
                .with_context(|| format!("cannot listen in {}", dir.display()))?,
            host,
            node,
            config,
            wish: 0,
        };
        // Known from an earlier run: pods start also while the API server is away.
        let known = if agent.config.pod_cidrs.is_empty() {
            agent.node.store().read(|ledger| ledger.cidrs().to_vec())
        } else {
            agent.config.pod_cidrs.clone()
        };
        agent.take_over(&known, None);
        Ok(agent)
    }

    /// Takes over this node's pod networks, and what is known of the others.
    fn take_over(&mut self, own: &[IpNet], nodes: Option<&BTreeMap<String, Peer>>) -> BTreeMap<String, Vec<String>> {
        let config = &self.config;
        if !own.is_empty() {
            self.node.store().set_cidrs(own);
        }
        let found = nodes.map(|nodes| peers::routes(nodes, &config.node_name, own));
        let (routes, faults) = found.unzip();
        let mut inside = config.cluster_cidrs.clone();
        if inside.is_empty() {
            inside.extend(own);
            let others = routes.iter().flatten().map(|towards: &peers::Towards| towards.to);
            inside.extend(others);
        }
        self.wish = self.host.want(Wanted {
            own: own.to_vec(),
            peers: routes,
            inside,
            masquerade: config.masquerade,
            mtu: config.mtu,
        });
        faults.unwrap_or_default()
    }

    /// Follows Nodes and the host until `stop`.
    async fn follow(&mut self, client: Client, stop: &CancellationToken) {
        let reporter = Reporter {
            controller: "fairlead-cni".into(),
            instance: Some(self.config.node_name.clone()),
        };
        let mut told = Told {
            recorder: Recorder::new(client.clone(), reporter),
            nodes: BTreeMap::new(),
            last: BTreeMap::new(),
        };
        let nodes = watcher(Api::<Node>::all(client), watcher::Config::default()).default_backoff();
        let mut nodes = std::pin::pin!(nodes);
        let mut reports = self.host.reports();
        let mut known: BTreeMap<String, Peer> = BTreeMap::new();
        let mut listed: BTreeMap<String, Node> = BTreeMap::new();
        let mut synced = false;
        let mut faults = BTreeMap::new();
        let mut ready = false;
        let mut broken = false;
        loop {
            let changed = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                event = nodes.next() => match event {
                    Some(Ok(watcher::Event::Init)) => {
                        listed.clear();
                        false
                    }
                    Some(Ok(watcher::Event::InitApply(node))) => {
                        listed.insert(node.name_any(), node);
                        false
                    }
                    Some(Ok(watcher::Event::InitDone)) => {
                        told.nodes = std::mem::take(&mut listed);
                        synced = true;
                        broken = false;
                        true
                    }
                    Some(Ok(watcher::Event::Apply(node))) => {
                        told.nodes.insert(node.name_any(), node);
                        true
                    }
                    Some(Ok(watcher::Event::Delete(node))) => told.nodes.remove(&node.name_any()).is_some(),
                    Some(Err(error)) => {
                        if !broken {
                            tracing::warn!(%error, "nodes cannot be watched; routes stay as they are until they can");
                        }
                        broken = true;
                        false
                    }
                    // Watches do not end.
                    None => return,
                },
                changed = reports.changed() => {
                    if changed.is_err() {
                        tracing::error!("the thread that looks after routes ended; restart the agent");
                        stop.cancelled().await;
                        return;
                    }
                    false
                }
            };
            if changed && synced {
                let now: BTreeMap<String, Peer> = told
                    .nodes
                    .iter()
                    .map(|(name, node)| (name.clone(), Peer::read(node)))
                    .collect();
                if now != known {
                    known = now;
                    let own = self.own(&known);
                    faults = self.take_over(&own, Some(&known));
                }
            }
            let report = reports.borrow_and_update().clone();
            // Forwarding, masquerading and the MTU are there before the first pod.
            if self.wish > 0 && report.wish >= self.wish {
                ready = self.make_ready(ready);
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = told.tell(&report, &faults) => {}
            }
        }
    }

    /// This node's pod networks: configured, else those of its Node, else those that it had.
    fn own(&self, nodes: &BTreeMap<String, Peer>) -> Vec<IpNet> {
        if !self.config.pod_cidrs.is_empty() {
            return self.config.pod_cidrs.clone();
        }
        let own = nodes.get(&self.config.node_name).map(|peer| peer.cidrs.clone());
        let before = || self.node.store().read(|ledger| ledger.cidrs().to_vec());
        own.filter(|own| !own.is_empty()).unwrap_or_else(before)
    }

    /// Lets ADD be served once the pod networks are known, and then tells the runtime of the network.
    fn make_ready(&self, ready: bool) -> bool {
        let own = self.node.store().read(|ledger| ledger.cidrs().to_vec());
        if own.is_empty() {
            return false;
        }
        self.node.settings().cidrs.clone_from(&own);
        if ready {
            return true;
        }
        match install::write_conflist(&self.config.cni_conf_dir, &self.config) {
            Ok(()) => {
                tracing::info!(?own, dir = %self.config.cni_conf_dir.display(), "the node network is ready");
                true
            }
            Err(error) => {
                tracing::error!(%error, "the container runtime cannot be told of the network; trying again");
                false
            }
        }
    }
}

/// What was told of which node.
struct Told {
    recorder: Recorder,
    nodes: BTreeMap<String, Node>,
    last: BTreeMap<String, String>,
}

impl Told {
    /// Writes an Event on every Node about which there is something new to say.
    async fn tell(&mut self, report: &Report, faults: &BTreeMap<String, Vec<String>>) {
        let mut notes: BTreeMap<String, Vec<String>> = faults.clone();
        for (node, reason) in &report.unreachable {
            notes.entry(node.clone()).or_default().push(reason.clone());
        }
        self.last.retain(|node, _| notes.contains_key(node));
        for (name, notes) in notes {
            let note = notes.join("; ");
            if self.last.get(&name) == Some(&note) {
                continue;
            }
            tracing::warn!(node = name, note, "pods of a node cannot be reached from here");
            if let Some(node) = self.nodes.get(&name) {
                let event = Event {
                    type_: EventType::Warning,
                    reason: "NoPodRoute".into(),
                    // The API server's limit for `note`.
                    note: Some(note.chars().take(1000).collect()),
                    action: "Route".into(),
                    secondary: None,
                };
                let node = node.object_ref(&());
                // An API server that does not answer must not keep routes waiting; the log has said it.
                match tokio::time::timeout(PATIENCE, self.recorder.publish(&event, &node)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "the event could not be written"),
                    Err(_) => tracing::debug!("the event could not be written in time"),
                }
            }
            self.last.insert(name, note);
        }
    }
}

/// Name of the agent's nftables table.
fn table(config: &Config) -> String {
    format!("fairlead-cni-{:08x}", config.mark())
}

/// Removes all that an agent with these settings made: the network's configuration, the plugin, links of pods, routes,
/// rules, files. The agent must have stopped. Works in the network namespace of the calling thread.
///
/// # Errors
/// An agent runs; or the first thing that could not be removed, when all was tried.
pub fn uninstall(config: &Config) -> Result<()> {
    let dir = &config.run_dir;
    let _lock = if dir.exists() {
        let lock = Lock::try_take(dir).with_context(|| format!("cannot lock the journal in {}", dir.display()))?;
        Some(lock.with_context(|| format!("a node agent runs with {}; stop it first", dir.display()))?)
    } else {
        None
    };
    let mut first: Result<()> = Ok(());
    let mut note = |done: Result<()>| {
        if let Err(error) = done {
            if first.is_ok() {
                first = Err(error);
            } else {
                tracing::error!(%error, "could not be removed");
            }
        }
    };
    note(install::remove_conflist(&config.cni_conf_dir).map_err(Into::into));
    note(install::remove_plugin(&config.cni_bin_dir).map_err(Into::into));
    note(remove_from_kernel(config));
    for file in [SOCKET, journal::FILE, "journal.new", "journal.lock"] {
        note(install::remove(&dir.join(file)).map_err(Into::into));
    }
    // Others may keep files there; then it stays.
    let _ = fs::remove_dir(dir);
    first
}

fn remove_from_kernel(config: &Config) -> Result<()> {
    let mark = config.mark();
    let mut netlink = Netlink::route().context("the kernel gives no netlink socket")?;
    match netlink.change(vec![pair::delete_group(mark)]) {
        Err(error) if !error.is(libc::ENODEV) => return Err(error.into()),
        _ => {}
    }
    let known = routes::read(&mut netlink, mark).context("read the routes")?;
    for route in known.ours {
        match netlink.change(vec![route.remove(mark)]) {
            Err(error) if !error.is(libc::ESRCH) => return Err(error.into()),
            _ => {}
        }
    }
    nft::remove(&table(config)).context("remove the nftables table")
}

/// Removes all attachments of our network that are not `valid`, as CNI's GC does: for a kubelet that knows which
/// sandboxes there are, since most runtimes never call GC. Blocks; an agent must run.
///
/// # Errors
/// No agent answers, or something could not be removed.
pub fn collect_garbage(run_dir: &Path, valid: Vec<Key>) -> Result<(), Failure> {
    let request = Request::Gc {
        network: install::NETWORK.into(),
        valid,
    };
    match wire::call(&run_dir.join(SOCKET), &request, None) {
        Ok(Answer::Failed(failure)) => Err(failure),
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::new(
            Code::TryAgainLater,
            "the node agent does not answer",
            format!("{error:?}"),
        )),
    }
}
