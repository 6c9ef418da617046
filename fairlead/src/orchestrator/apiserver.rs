//! `fairlead apiserver`: the API server alone.

use super::{flags::ApiserverArgs, kubeconfig, store_directory};
use crate::logging;
use anyhow::{Context as _, Result};
use fairlead_apiserver::open::{Running, Start};
use fairlead_store::{RedbStore, redb_store::Options};
use nix::ifaddrs::getifaddrs;
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::signal::unix::{SignalKind, signal};

/// How long connections may take to close at exit.
const GRACE: Duration = Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps the server from starting: object, cause, remedy.
pub(crate) fn main(args: &ApiserverArgs) -> Result<()> {
    logging::start(args.log_format, &args.log_level)?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let result = runtime.block_on(run(args));
    runtime.shutdown_timeout(GRACE);
    result
}

async fn run(args: &ApiserverArgs) -> Result<()> {
    let started = Instant::now();
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let server = Server::start(args).await?;
    tracing::info!(
        address = %server.running.address,
        kubeconfig = %server.kubeconfig.display(),
        milliseconds = started.elapsed().as_millis(),
        "serving the API"
    );
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
        _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
    }
    server.stop().await
}

/// An API server that serves, and its store.
pub(crate) struct Server {
    /// What serves.
    pub(crate) running: Running,
    /// Where others reach it.
    pub(crate) url: String,
    /// The administrator's kubeconfig.
    pub(crate) kubeconfig: PathBuf,
    store: Arc<RedbStore>,
}

impl Server {
    /// Opens the store, serves, writes the administrator's kubeconfig.
    ///
    /// # Errors
    /// What keeps the server from starting: object, cause, remedy.
    pub(crate) async fn start(args: &ApiserverArgs) -> Result<Self> {
        let settings = args.settings()?;
        let address = SocketAddr::new(args.bind_address, args.secure_port);
        let listener = fairlead_apiserver::listen::bind(address)
            .await
            .with_context(|| format!("--bind-address, --secure-port: {address} cannot be used"))?;
        let port = listener.local_addr().context("the listener has no address")?.port();
        let addresses = addresses(args.advertise_address);
        let names = args.tls_san.iter().filter(|it| it.parse::<IpAddr>().is_err());
        let more = args.tls_san.iter().filter_map(|it| it.parse().ok());
        let start = Start {
            data_dir: args.data_dir.clone(),
            hosts: names.cloned().chain(host_name()).collect(),
            addresses: addresses.iter().copied().chain(more).collect(),
            port,
            cluster_domain: args.cluster_domain.clone(),
        };
        kubeconfig::make_directory(&args.data_dir)?;
        let store = Arc::new(RedbStore::open(&store_directory(&args.data_dir), Options::default())?);
        let running = Running::start(Arc::clone(&store) as _, settings, &start, listener).await?;
        let fallback = if args.bind_address.is_unspecified() {
            IpAddr::from([127, 0, 0, 1])
        } else {
            args.bind_address
        };
        let host = args.advertise_address.or_else(|| {
            addresses
                .first()
                .copied()
                .filter(|_| args.bind_address.is_unspecified())
        });
        let url = format!("https://{}", SocketAddr::new(host.unwrap_or(fallback), port));
        let file = args.data_dir.join("admin.kubeconfig");
        kubeconfig::write(&file, &running.admin_kubeconfig(&url)?)?;
        Ok(Self {
            running,
            url,
            kubeconfig: file,
            store,
        })
    }

    /// Ends watches, lets open requests finish, closes the store.
    ///
    /// # Errors
    /// The store cannot be closed.
    pub(crate) async fn stop(self) -> Result<()> {
        self.running.stop().await;
        let store = self.store;
        tokio::task::spawn_blocking(move || store.close())
            .await
            .context("the store could not be closed")?;
        Ok(())
    }
}

/// The host's name.
pub(crate) fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned())
}

/// Addresses of this host that others may reach it at, the advertised one first, IPv4 before IPv6.
pub(crate) fn addresses(advertised: Option<IpAddr>) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = Vec::new();
    for interface in getifaddrs().into_iter().flatten() {
        let Some(address) = interface.address else { continue };
        let address = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(four), _) => IpAddr::from(four.ip()),
            (_, Some(six)) => IpAddr::from(six.ip()),
            _ => continue,
        };
        let local = matches!(address, IpAddr::V6(six) if six.is_unicast_link_local());
        if !(address.is_loopback() || local) {
            all.push(address);
        }
    }
    all.sort_by_key(IpAddr::is_ipv6);
    if let Some(advertised) = advertised {
        all.retain(|it| *it != advertised);
        all.insert(0, advertised);
    }
    all
}
