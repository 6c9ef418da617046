//! `fairlead up`, `server`, `agent`, `down`: the whole in one process, or its parts on several machines.

mod cluster;
mod containerd;
mod dns_endpoints;
mod down;
mod image;
mod join;
mod layout;
mod lock;
mod node;
mod parts;
mod progress;
mod token;

pub(crate) use down::main as down;
pub(crate) use image::main as image;
pub(crate) use join::main as agent;
pub(crate) use token::main as token;

use super::flags::{ServerArgs, UpArgs};
use crate::{logging, preflight};
use anyhow::{Context as _, Result};
use cluster::Cluster;
use fairlead_apiserver::{
    authn::User,
    pki::{Identity, Profile},
};
use layout::Layout;
use lock::Lock;
use node::{ClusterFacts, Node, Settings};
use progress::Progress;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{SignalKind, signal};

/// How long connections may take to close at exit.
const GRACE: Duration = Duration::from_secs(1);

/// `fairlead up`: everything, until Ctrl-C.
///
/// # Errors
/// What keeps it from starting, or from going on: object, cause, remedy.
pub(crate) fn up(args: &UpArgs) -> Result<()> {
    let api = &args.cluster.api;
    let layout = Layout::make(&api.data_dir, args.node.run_dir.as_deref())?;
    logging::start_to_file(&layout.log().join("fairlead.log"), api.log_format, &api.log_level)?;
    preflight::check_capabilities()?;
    let _lock = Lock::take(&layout)?;
    let facts = ClusterFacts {
        pods: args.cluster.cluster_cidr.clone(),
        services: api.service_cluster_ip_range.clone(),
        domain: api.cluster_domain.clone(),
    };
    let settings = Settings::resolve(&args.node, layout, facts)?;
    block_on(run_up(args, &settings))
}

async fn run_up(args: &UpArgs, settings: &Settings) -> Result<()> {
    let mut end = Ends::new()?;
    let progress = Progress::new();
    progress.line(format_args!("Starting a cluster in {}", settings.layout.data.display()));
    let starting = async {
        let (runtime, cluster) = tokio::join!(
            node::runtime(settings, progress),
            Cluster::start(&args.cluster, progress)
        );
        let (cluster, containers) = match (cluster, runtime) {
            (Ok(cluster), Ok(containers)) => (cluster, containers),
            (Ok(cluster), Err(error)) => {
                cluster.stop().await?;
                return Err(error);
            }
            (Err(error), _) => return Err(error),
        };
        token::make(cluster.server()).await?;
        let identity = identity(&cluster, settings)?;
        match Node::start(settings, identity, &containers, progress).await {
            Ok(node) => Ok((cluster, node, containers.images)),
            Err(error) => {
                cluster.stop().await?;
                Err(error)
            }
        }
    };
    let (mut cluster, mut node, images) = tokio::select! {
        started = starting => started?,
        () = end.asked() => return Ok(()),
    };
    progress.total("The cluster is ready");
    let kubeconfig = settings.layout.kubeconfig();
    let place = if settings.layout.instance.is_empty() {
        String::new()
    } else {
        format!(" --data-dir {}", settings.layout.data.display())
    };
    let image = images.first().map_or("IMAGE", String::as_str);
    progress.line(format_args!(
        "\nTry:\n  export KUBECONFIG={}\n  kubectl create deployment hello --image={image} --replicas=2\n  kubectl expose \
         deployment hello --port=80 --target-port=8080\n  kubectl get nodes,pods,services -o wide\n\nCtrl-C stops the \
         control of the cluster; pods keep running and are found again by the next start.\n`fairlead down{place}` ends them, \
         `fairlead down --all{place}` removes everything.\nMore \
         nodes: {} --token \"$(fairlead token --data-dir {})\"",
        kubeconfig.display(),
        joining(&args.cluster, &cluster.server().url),
        settings.layout.data.display()
    ));
    let result = tokio::select! {
        () = end.asked() => Ok(()),
        error = node.ended() => Err(error),
        error = cluster.ended() => Err(error),
    };
    progress.line("\nStopping");
    node.stop().await;
    cluster.stop().await?;
    result
}

/// `fairlead server`: what exists once in a cluster, until Ctrl-C.
///
/// # Errors
/// As [`up`].
pub(crate) fn server(args: &ServerArgs) -> Result<()> {
    let api = &args.cluster.api;
    logging::start(api.log_format, &api.log_level)?;
    let layout = Layout::make(&api.data_dir, None)?;
    let _lock = Lock::take(&layout)?;
    block_on(async {
        let mut end = Ends::new()?;
        let progress = Progress::new();
        let mut cluster = Cluster::start(&args.cluster, progress).await?;
        let token = token::make(cluster.server()).await?;
        progress.total("The control plane is ready");
        progress.line(format_args!(
            "\nOn each node:\n  {} --token {token}\n",
            joining(&args.cluster, &cluster.server().url)
        ));
        let result = tokio::select! {
            () = end.asked() => Ok(()),
            error = cluster.ended() => Err(error),
        };
        cluster.stop().await?;
        result
    })
}

/// The command with which other machines join, but for the token: with what they cannot guess of this cluster.
fn joining(args: &super::flags::ClusterArgs, url: &str) -> String {
    let ranges = |all: &[ipnet::IpNet]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    format!(
        "fairlead agent --server {url} --cluster-cidr {} --service-cluster-ip-range {} --cluster-domain {}",
        ranges(&args.cluster_cidr),
        ranges(&args.api.service_cluster_ip_range),
        args.api.cluster_domain
    )
}

/// Runs until done; what lingers gets [`GRACE`].
fn block_on(future: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let result = runtime.block_on(future);
    runtime.shutdown_timeout(GRACE);
    result
}

/// SIGTERM and Ctrl-C.
struct Ends {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Ends {
    fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = self.interrupt.recv() => tracing::info!("SIGINT: stopping"),
        }
    }
}

/// The node of this process: it needs no certificate towards the API server, and its kubelet gets one from the CA itself.
fn identity(cluster: &Cluster, settings: &Settings) -> Result<node::Identity> {
    let authority = &cluster.server().running.pki.authority;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock is before 1970")?;
    let profile = Profile::kubelet_serving(&settings.name, None, settings.addresses.iter().copied());
    let path = settings.layout.data.join("pki/kubelet");
    let identity = Identity::open(&path, authority, &profile, i64::try_from(now.as_secs())?)?;
    let user = User::authenticated(format!("system:node:{}", settings.name), ["system:nodes"]);
    Ok(node::Identity {
        client: cluster.client(user),
        tls: fairlead_kubelet::ServingTls {
            certificates: identity.certificate.clone().into_bytes(),
            key: identity.key.clone().into_bytes(),
            client_ca: authority.pem().as_bytes().to_vec(),
        },
    })
}
