//! `fairlead proxy`: configuration → servers, source, dataplane, controller → wait.

use crate::{
    flags::{LogFormat, ProxyArgs},
    joints, logging, preflight,
};
use ::proxy::{
    clock::Now,
    config::{Config, Host},
    controller::{self, Core, Exit, Outputs},
    health::{CheckState, ProxyHealth, ServiceChecks, health_router},
    hostview::{HostFacts, HostWatcher, NodeSettings},
    http::{Shared, bind, metrics_router},
    metrics::Metrics,
    status::{Status, StatusHolder},
};
use anyhow::{Context, bail};
use axum::Router;
use std::{fs, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// How long connections may take to close at exit.
const GRACE: Duration = Duration::from_secs(1);
/// Pause before a server address that could not be bound is tried again.
const BIND_RETRY: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps the agent from starting, or from going on: object, cause, remedy.
pub(crate) fn main(args: &ProxyArgs) -> anyhow::Result<()> {
    ::proxy::heap::keep_little();
    let config = read_config(args)?;
    let format = match (args.log_format, config.log_json) {
        (Some(format), _) => format,
        (None, true) => LogFormat::Json,
        (None, false) => LogFormat::Text,
    };
    let level = logging::level_of_verbosity(config.log_verbosity);
    logging::start(format, args.log_level.as_deref().unwrap_or(level))?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    preflight::check_capabilities()?;
    if let Some(score) = config.oom_score_adj
        && let Err(error) = fs::write("/proc/self/oom_score_adj", score.to_string())
    {
        tracing::warn!(score, %error, "oomScoreAdj has no effect");
    }
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        // Signals first: one that comes while we start must not leave half of something behind.
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
                _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
            }
        };
        run(config, None, StatusHolder::new(Status::default()), stop).await
    });
    runtime.shutdown_timeout(GRACE);
    result
}

fn read_config(args: &ProxyArgs) -> anyhow::Result<Config> {
    let file = args.config.as_ref().map(|path| {
        let shown = path.display().to_string();
        let text = fs::read_to_string(path)
            .with_context(|| format!("--config {shown} cannot be read; name kube-proxy's configuration file"))?;
        anyhow::Ok((shown, text))
    });
    let file = file.transpose()?;
    let file = file.as_ref().map(|(path, text)| (path.as_str(), text.as_str()));
    Ok(Config::resolve(&args.overrides(), file, &Host::read()?)?)
}

/// Serves Services until `stop`, reading them through `client` where one is given, else from where the configuration says.
/// `status` tells how it fares.
///
/// # Errors
/// What keeps the agent from starting, or from going on: object, cause, remedy.
pub(crate) async fn run(
    config: Config,
    client: Option<kube::Client>,
    status: StatusHolder,
    stop: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::new());
    let health = Arc::new(ProxyHealth::new(config.sync_period * 2));
    status.update(|status| {
        *status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: config.node_name.clone(),
            mode: config.mode.to_string(),
            mode_reason: config.mode_reason.clone(),
            started: Now::read().wall.to_string(),
            ..Status::default()
        };
    });
    let hard_fail = config.bind_address_hard_fail;
    if let Some(address) = config.healthz_bind_address {
        let router = health_router(health.clone(), metrics.clone());
        serve(address, "--healthz-bind-address", router, hard_fail).await?;
    }
    if let Some(address) = config.metrics_bind_address {
        let effective = Arc::new(config.effective.clone());
        let shared = Shared {
            status: status.clone(),
            metrics: metrics.clone(),
            config: effective,
        };
        serve(address, "--metrics-bind-address", metrics_router(shared), hard_fail).await?;
    }

    let watcher = HostWatcher::start().await?;
    let (facts_sender, facts) = watch::channel(HostFacts::clone(watcher.facts()));
    tokio::spawn(watcher.run(facts_sender));
    let (checks, checks_receiver) = watch::channel(CheckState::default());
    tokio::spawn(ServiceChecks::new(checks_receiver, health.clone(), metrics.clone()).run());

    // Loading takes hundreds of milliseconds of system calls; the source is read and the servers answer meanwhile.
    let config = Arc::new(config);
    let events = joints::open_source(&config, client, &metrics).await?;
    let for_dataplane = config.clone();
    let parts = tokio::task::spawn_blocking(move || joints::open_dataplane(&for_dataplane))
        .await
        .context("loading the dataplane panicked")??;
    metrics.set_counters(parts.counters);
    status.update(|status| status.probes = parts.probes);
    tracing::info!(node = config.node_name, mode = %config.mode, source = ?config.source, "started");

    let settings = NodeSettings::from(&*config);
    let filters = (config.devices.clone(), config.pod_devices.clone());
    let out = Outputs {
        status,
        metrics,
        health,
        checks,
    };
    let core = Core::new(parts.planner, parts.kernel, settings, filters, out, Now::read);
    let (core, exit) = controller::run(core, events, facts, stop).await;
    // Closes the maps' and links' descriptors; what is pinned stays in service.
    drop(core);
    match exit {
        // After a failure the last plan stays in service, whatever --cleanup-on-exit says.
        Exit::Stopped if config.cleanup_on_exit => {
            let removed = joints::cleanup(&config.bpffs, config.cgroup_root.as_deref());
            for what in removed.context("--cleanup-on-exit; finish with `fairlead cleanup`")? {
                tracing::info!(what, "removed");
            }
            Ok(())
        }
        Exit::Stopped => Ok(()),
        Exit::SourceEnded => {
            bail!("the source ended, which it never should; see the log above, then restart the agent")
        }
        Exit::HostEnded => bail!(
            "the host's links and addresses are no longer followed, because the rtnetlink socket closed; see the log \
             above, then restart the agent"
        ),
        Exit::Panicked => bail!("a sync panicked; the kernel goes on with the last plan; restart the agent"),
    }
}

/// Serves in the background. An address that cannot be bound is an error if `hard_fail`, else it is tried again.
async fn serve(address: SocketAddr, flag: &'static str, router: Router, hard_fail: bool) -> anyhow::Result<()> {
    let listener = match bind(address, flag).await {
        Ok(listener) => Some(listener),
        Err(error) if hard_fail => return Err(error.into()),
        Err(error) => {
            tracing::error!(%error, "trying again (set bindAddressHardFail to stop instead)");
            None
        }
    };
    tokio::spawn(async move {
        let listener = match listener {
            Some(listener) => listener,
            None => bind_later(address, flag).await,
        };
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%address, %error, "a server ended");
        }
    });
    Ok(())
}

/// Tries until it works.
async fn bind_later(address: SocketAddr, flag: &str) -> TcpListener {
    loop {
        tokio::time::sleep(BIND_RETRY).await;
        if let Ok(listener) = bind(address, flag).await {
            tracing::info!(%address, "serving now");
            return listener;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_stops_only_who_wants_that() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = serve(address, "--healthz-bind-address", Router::new(), true)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&address.to_string()) && error.contains("--healthz-bind-address"),
            "{error}"
        );
        serve(address, "--healthz-bind-address", Router::new(), false)
            .await
            .unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_becomes_free_is_taken() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        serve(address, "--x", Router::new(), false).await.unwrap();
        drop(taken);
        while tokio::net::TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(BIND_RETRY).await;
        }
    }
}
