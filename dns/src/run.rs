//! A server from start to stop: Corefile → blocks → sockets, and again when the Corefile changes.

use crate::{
    cache::Cache,
    corefile::{Block, Corefile, KubernetesConfig, ReloadConfig, default_corefile},
    engine::{Engine, Served},
    forward::Forward,
    hosts::Hosts,
    metrics::Metrics,
    name::Zone as Origin,
    server::{HttpServer, Listener, Page, Told},
    watch::{self, Watches},
    wire::{flag, question, rtype},
    zone::{Zone, answer::View, store::Options},
};
use anyhow::{Context as _, ensure};
use arc_swap::ArcSwap;
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

/// How long a new Corefile may take to read the cluster before it is given up.
const SYNC: Duration = Duration::from_secs(60);
/// How long a probe for a loop may take, how often one is sent, and the pause between two.
const PROBE: (Duration, usize, Duration) = (Duration::from_secs(2), 3, Duration::from_secs(5));

/// Where the Corefile is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// The one that kubeadm writes, for [`Config::cluster_domain`].
    #[default]
    Default,
    /// This text.
    Text(String),
    /// This file, which is read again when `reload` says so.
    Path(PathBuf),
}

/// Where an HTTP page is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Http {
    /// Where the Corefile says, if it does.
    #[default]
    Corefile,
    /// Here instead, if the Corefile has the plugin; port 0 takes a free one.
    At(SocketAddr),
    /// Nowhere.
    Off,
}

/// What a server needs.
#[derive(Debug, Default)]
pub struct Config {
    /// The Corefile.
    pub corefile: Source,
    /// Domain of the default Corefile; empty means `cluster.local`.
    pub cluster_domain: String,
    /// Addresses to serve DNS on, instead of every address at the Corefile's port; port 0 takes a free one. They are
    /// opened in the network namespace of the thread that first polls [`run`].
    pub listen: Vec<SocketAddr>,
    /// `/health`
    pub health: Http,
    /// `/ready`
    pub ready: Http,
    /// `/metrics`
    pub metrics: Http,
    /// UDP sockets, and threads, per address; 0 means one per core.
    pub sockets: usize,
    /// Is told the addresses once they are served.
    pub bound: Option<oneshot::Sender<Bound>>,
    /// Lets the Corefile be looked at now, besides what `reload` says.
    pub reload: Option<Arc<Notify>>,
}

/// Addresses that are served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// DNS, by UDP and TCP.
    pub dns: Vec<SocketAddr>,
    /// `/health`
    pub health: Option<SocketAddr>,
    /// `/ready`
    pub ready: Option<SocketAddr>,
    /// `/metrics`
    pub metrics: Option<SocketAddr>,
}

/// Serves until `stop`.
///
/// # Errors
/// The Corefile is refused, or an address cannot be used: before anything is served.
pub async fn run(mut config: Config, client: kube::Client, stop: CancellationToken) -> anyhow::Result<()> {
    if config.cluster_domain.is_empty() {
        "cluster.local".clone_into(&mut config.cluster_domain);
    }
    if config.sockets == 0 {
        config.sockets = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    }
    let bound = config.bound.take();
    let text = config.text()?;
    let corefile = config.parse(&text)?;
    let metrics = Arc::new(Metrics::new());
    let told = Told {
        lameduck: Arc::default(),
        metrics: Arc::clone(&metrics),
        watches: Arc::default(),
    };
    let mut server = Server {
        engine: Arc::new(ArcSwap::from_pointee(Engine::new(Vec::new(), Arc::clone(&metrics)))),
        config,
        client,
        metrics,
        told,
        listeners: Vec::new(),
        pages: Vec::new(),
        clusters: Vec::new(),
        tasks: CancellationToken::new(),
        next_thread: 0,
    };
    let _ended = server.tasks.clone().drop_guard();
    server.adopt(&corefile, false).await?;
    if let Some(bound) = bound {
        // Nobody waits for it: fine.
        let _ = bound.send(server.bound());
    }
    tracing::info!(addresses = ?server.bound().dns, "serving DNS");
    server.follow(corefile, text, &stop).await;
    server.close().await;
    Ok(())
}

impl Config {
    fn text(&self) -> anyhow::Result<String> {
        match &self.corefile {
            Source::Default => Ok(default_corefile(&self.cluster_domain)),
            Source::Text(text) => Ok(text.clone()),
            Source::Path(path) => std::fs::read_to_string(path).with_context(|| {
                let path = path.display();
                format!("the Corefile {path} cannot be read; name one with --conf, or leave it out for the default")
            }),
        }
    }

    fn parse(&self, text: &str) -> anyhow::Result<Corefile> {
        let name = match &self.corefile {
            Source::Path(path) => path.display().to_string(),
            Source::Default | Source::Text(_) => "Corefile".to_owned(),
        };
        let corefile = Corefile::parse(&name, text)?;
        for note in &corefile.notes {
            tracing::warn!("{note}");
        }
        let mut ports: Vec<u16> = corefile.blocks.iter().map(|block| block.port).collect();
        ports.sort_unstable();
        ports.dedup();
        ensure!(
            self.listen.is_empty() || ports.len() == 1,
            "{name}: blocks on the ports {ports:?}, but the addresses to listen on are given; use one port in the file"
        );
        Ok(corefile)
    }

    /// Addresses and their ports of the Corefile.
    fn addresses(&self, corefile: &Corefile) -> Vec<(SocketAddr, u16)> {
        let mut ports: Vec<u16> = corefile.blocks.iter().map(|block| block.port).collect();
        ports.sort_unstable();
        ports.dedup();
        match self.listen.as_slice() {
            [] => ports
                .into_iter()
                .map(|port| (SocketAddr::new(IpAddr::from([0_u16; 8]), port), port))
                .collect(),
            listen => {
                let port = ports.first().copied().unwrap_or(53);
                listen.iter().map(|address| (*address, port)).collect()
            }
        }
    }

    /// HTTP pages and their addresses.
    fn pages(&self, corefile: &Corefile) -> Vec<(Page, SocketAddr)> {
        let mut pages = Vec::new();
        for block in &corefile.blocks {
            let wanted = [
                (Page::Health, self.health, block.health.as_ref().map(|it| &it.address)),
                (Page::Ready, self.ready, block.ready.as_ref().map(|it| &it.address)),
                (Page::Metrics, self.metrics, block.prometheus.as_ref()),
            ];
            for (page, place, address) in wanted {
                let Some(address) = address else { continue };
                let address = match place {
                    Http::Corefile => address.parse().ok(),
                    Http::At(address) => Some(address),
                    Http::Off => None,
                };
                if let Some(page) = address
                    .map(|address| (page, address))
                    .filter(|page| !pages.contains(page))
                {
                    pages.push(page);
                }
            }
        }
        pages
    }
}

/// Names of one set of options, which blocks share.
#[derive(Debug)]
struct Cluster {
    options: Options,
    zone: Arc<Zone>,
    watches: Arc<Watches>,
    stop: CancellationToken,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Server {
    config: Config,
    client: kube::Client,
    metrics: Arc<Metrics>,
    engine: Arc<ArcSwap<Engine>>,
    told: Told,
    listeners: Vec<Listener>,
    pages: Vec<HttpServer>,
    clusters: Vec<Arc<Cluster>>,
    /// Ends the tasks of the blocks that are served now.
    tasks: CancellationToken,
    /// Numbers threads.
    next_thread: usize,
}

impl Server {
    fn bound(&self) -> Bound {
        let page = |page| self.pages.iter().find(|it| it.page == page).map(|it| it.bound);
        Bound {
            dns: self.listeners.iter().map(|listener| listener.bound).collect(),
            health: page(Page::Health),
            ready: page(Page::Ready),
            metrics: page(Page::Metrics),
        }
    }

    /// Puts a Corefile into service: everything new is opened first, so that an error leaves what is served as it is.
    /// `sync`: names of the cluster that were not read before are read first.
    async fn adopt(&mut self, corefile: &Corefile, sync: bool) -> anyhow::Result<()> {
        let clusters = self.clusters_of(corefile);
        if sync {
            for cluster in &clusters {
                let synced = tokio::time::timeout(SYNC, cluster.watches.synced()).await;
                ensure!(
                    synced == Ok(true),
                    "the cluster's names could not be read in {} s; see the log",
                    SYNC.as_secs()
                );
            }
        }
        let tasks = CancellationToken::new();
        let blocks = self.blocks(corefile, &clusters, &tasks);
        let guard = tasks.clone().drop_guard();
        let mut listeners = Vec::new();
        for (wanted, port) in self.config.addresses(corefile) {
            if !self.listeners.iter().any(|it| (it.wanted, it.port) == (wanted, port)) {
                let first = self.next_thread;
                self.next_thread += self.config.sockets + 1;
                listeners.push(Listener::open(wanted, port, self.config.sockets, first, &self.engine).await?);
            }
        }
        let mut pages = Vec::new();
        for (page, wanted) in self.config.pages(corefile) {
            if !self.pages.iter().any(|it| (it.page, it.wanted) == (page, wanted)) {
                pages.push(HttpServer::open(page, wanted, &self.told).await?);
            }
        }
        // From here on nothing fails.
        guard.disarm();
        self.engine
            .store(Arc::new(Engine::new(blocks.clone(), Arc::clone(&self.metrics))));
        self.told
            .watches
            .store(Arc::new(clusters.iter().map(|it| Arc::clone(&it.watches)).collect()));
        self.clusters = clusters;
        std::mem::replace(&mut self.tasks, tasks.clone()).cancel();
        let wanted = self.config.addresses(corefile);
        self.listeners.retain(|it| wanted.contains(&(it.wanted, it.port)));
        self.listeners.extend(listeners);
        let wanted = self.config.pages(corefile);
        self.pages.retain(|it| wanted.contains(&(it.page, it.wanted)));
        self.pages.extend(pages);
        start_tasks(&blocks, &tasks);
        Ok(())
    }

    fn clusters_of(&self, corefile: &Corefile) -> Vec<Arc<Cluster>> {
        let mut clusters: Vec<Arc<Cluster>> = Vec::new();
        for kubernetes in corefile.blocks.iter().filter_map(|block| block.kubernetes.as_ref()) {
            let options = &kubernetes.options;
            if clusters.iter().any(|it| it.options == *options) {
                continue;
            }
            let known = self.clusters.iter().find(|it| it.options == *options).map(Arc::clone);
            clusters.push(known.unwrap_or_else(|| {
                let stop = CancellationToken::new();
                let (zone, watches) = watch::start(&self.client, options, &self.metrics, &stop);
                Arc::new(Cluster {
                    options: options.clone(),
                    zone,
                    watches,
                    stop,
                })
            }));
        }
        clusters
    }

    fn blocks(&self, corefile: &Corefile, clusters: &[Arc<Cluster>], tasks: &CancellationToken) -> Vec<Arc<Served>> {
        let threads = (self.config.sockets + 1) * (self.config.addresses(corefile).len() + self.listeners.len());
        let block = |block: &Block| Arc::new(self.block(block, clusters, threads, tasks));
        corefile.blocks.iter().map(block).collect()
    }

    fn block(&self, block: &Block, clusters: &[Arc<Cluster>], threads: usize, tasks: &CancellationToken) -> Served {
        let zone = block.zones.first().map(ToString::to_string).unwrap_or_default();
        let stats = self.metrics.stats(block.port, &zone, threads);
        let forwards = block
            .forward
            .iter()
            .map(|config| Forward::new(config.clone(), Arc::clone(&self.metrics.forward)));
        let forwards: Vec<Arc<Forward>> = forwards.map(Arc::new).collect();
        let cache = block.cache.clone().map(Cache::new).map(Arc::new);
        stats.show_cache(cache.clone());
        let cluster = block.kubernetes.as_ref().and_then(|kubernetes| {
            let cluster = clusters.iter().find(|it| it.options == kubernetes.options)?;
            Some((Arc::clone(&cluster.zone), self.view(kubernetes, block)))
        });
        let hosts = block.hosts.clone().map(Hosts::new).map(Arc::new);
        let upstreams = forwards
            .iter()
            .flat_map(|forward| &forward.upstreams)
            .filter(|_| block.detect_loops && !tasks.is_cancelled());
        let base = block.zones.first();
        let probes = upstreams.filter_map(|upstream| {
            let suffix = base
                .map(ToString::to_string)
                .filter(|zone| zone != ".")
                .unwrap_or_default();
            let name = format!("{:016x}.{:016x}.{suffix}", rand::random::<u64>(), rand::random::<u64>());
            Some((Origin::parse(&name).ok()?, Arc::clone(upstream)))
        });
        let probes = probes.collect();
        Served {
            config: block.clone(),
            cluster,
            hosts,
            cache,
            forwards,
            stats,
            probes,
        }
    }

    fn view(&self, kubernetes: &KubernetesConfig, block: &Block) -> View {
        let given = self.config.listen.iter().map(SocketAddr::ip);
        View {
            origins: kubernetes.zones.clone(),
            ttl: kubernetes.ttl,
            pods: kubernetes.options.pods,
            fallthrough: kubernetes.fallthrough.clone(),
            nameservers: given.filter(|address| !address.is_unspecified()).collect(),
            shuffle: block.shuffle,
        }
    }

    /// Looks at the Corefile every now and then until `stop`.
    async fn follow(&mut self, mut corefile: Corefile, mut text: String, stop: &CancellationToken) {
        let asked = self.config.reload.clone().unwrap_or_default();
        loop {
            let pause = corefile.blocks.iter().find_map(|block| block.reload);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = asked.notified() => {}
                () = wait(pause) => {}
            }
            let now = match self.config.text() {
                Ok(now) => now,
                Err(error) => {
                    self.metrics.reload_failed.inc();
                    tracing::error!("{error:#}; serving the one before");
                    continue;
                }
            };
            // Files that it imports may have changed although it has not.
            if now == text && !now.contains("import") {
                continue;
            }
            let adopted = match self.config.parse(&now) {
                Ok(next) if now == text && format!("{:?}", next.blocks) == format!("{:?}", corefile.blocks) => continue,
                Ok(next) => self.adopt(&next, true).await.map(|()| next),
                Err(error) => Err(error),
            };
            match adopted {
                Ok(next) => {
                    tracing::info!("the Corefile changed and is in service");
                    corefile = next;
                }
                Err(error) => {
                    self.metrics.reload_failed.inc();
                    tracing::error!("the Corefile changed and is refused, serving the one before: {error:#}");
                }
            }
            text = now;
        }
        let lameduck = corefile
            .blocks
            .iter()
            .filter_map(|block| block.health.as_ref())
            .map(|health| health.lameduck)
            .max();
        if let Some(time) = lameduck.filter(|time| !time.is_zero() && self.config.health != Http::Off) {
            // Clients are sent elsewhere while this server still answers.
            self.told.lameduck.store(true, Ordering::Release);
            tokio::time::sleep(time).await;
        }
    }

    async fn close(&mut self) {
        self.tasks.cancel();
        self.pages.clear();
        for listener in self.listeners.drain(..) {
            listener.close().await;
        }
        self.clusters.clear();
    }
}

async fn wait(reload: Option<ReloadConfig>) {
    match reload {
        Some(reload) => {
            let jitter = reload.jitter.mul_f64(rand::random::<f64>() * 2.0);
            tokio::time::sleep(reload.interval - reload.jitter + jitter).await;
        }
        None => std::future::pending().await,
    }
}

/// Files of `hosts` are followed, and upstreams are asked whether they lead back here.
fn start_tasks(blocks: &[Arc<Served>], tasks: &CancellationToken) {
    for block in blocks {
        if let Some(hosts) = block.hosts.clone() {
            let tasks = tasks.clone();
            tokio::spawn(async move { tasks.run_until_cancelled(hosts.follow()).await });
        }
        for (name, upstream) in block.probes.clone() {
            let tasks = tasks.clone();
            tokio::spawn(async move {
                let probing = async {
                    let packet = question(0, flag::RD, name.wire(), rtype::HINFO, None);
                    for _ in 0..PROBE.1 {
                        let asked = tokio::time::timeout(PROBE.0, upstream.ask(&packet, false)).await;
                        if matches!(asked, Ok(Ok(_))) || upstream.is_looping() {
                            return;
                        }
                        tokio::time::sleep(PROBE.2).await;
                    }
                };
                tasks.run_until_cancelled(probing).await;
            });
        }
    }
}
