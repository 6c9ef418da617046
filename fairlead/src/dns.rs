//! `fairlead dns`: flags → configuration → cluster DNS until a signal.
#![allow(
    clippy::doc_markdown,
    reason = "doc comments here are help texts, printed as they are"
)]

use crate::{flags::LogFormat, logging};
use anyhow::Context as _;
use clap::Args;
use fairlead_dns::{Config, Http, Source, corefile::Corefile};
use std::{net::SocketAddr, path::PathBuf, time::Duration};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long questions that wait for an upstream may take to end at exit.
const GRACE: Duration = Duration::from_secs(1);

/// `fairlead dns`.
#[derive(Debug, Args)]
pub(crate) struct DnsArgs {
    /// The Corefile [default: the one that kubeadm writes, for --cluster-domain].
    ///
    /// CoreDNS's configuration, unchanged. A plugin or option that is not supported is refused at the start, with its
    /// line and what to do instead; nothing is ignored without a word.
    #[arg(long, short, value_name = "FILE")]
    conf: Option<PathBuf>,

    /// Read the Corefile, say what is wrong with it, and exit.
    #[arg(long)]
    check: bool,

    /// How to reach the API server [default: `kubeconfig` of the Corefile, else the credentials of the pod, else
    /// $KUBECONFIG or ~/.kube/config].
    ///
    /// Needs list and watch of services, endpointslices and namespaces; of pods only with `pods verified`.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Addresses to serve on instead of every address at the Corefile's port, as in 10.96.0.10:53.
    #[arg(long, value_name = "ADDR:PORT,...", value_delimiter = ',', help_heading = "Serving")]
    listen: Vec<SocketAddr>,

    /// Domain of the cluster in the default Corefile.
    #[arg(
        long,
        value_name = "DOMAIN",
        default_value = "cluster.local",
        help_heading = "Serving"
    )]
    cluster_domain: String,

    /// UDP sockets, and threads, per address; 0 means one per core.
    #[arg(long, value_name = "SOCKETS", default_value_t = 0, help_heading = "Serving")]
    sockets: usize,

    /// Where /health is, instead of where the Corefile says; or none.
    #[arg(long, value_name = "ADDR:PORT|none", value_parser = http, help_heading = "Serving")]
    health_bind_address: Option<Http>,

    /// Where /ready is, instead of where the Corefile says; or none.
    #[arg(long, value_name = "ADDR:PORT|none", value_parser = http, help_heading = "Serving")]
    ready_bind_address: Option<Http>,

    /// Where /metrics is, instead of where the Corefile says; or none.
    #[arg(long, value_name = "ADDR:PORT|none", value_parser = http, help_heading = "Serving")]
    metrics_bind_address: Option<Http>,

    /// Log lines for people or for machines.
    #[arg(long, value_name = "FORMAT", default_value = "text", help_heading = "Logging")]
    log_format: LogFormat,

    /// error, warn, info, debug, trace, or by module as in info,fairlead_dns=debug.
    #[arg(
        long,
        value_name = "LEVEL",
        env = "FAIRLEAD_LOG",
        default_value = "info",
        help_heading = "Logging"
    )]
    log_level: String,
}

fn http(text: &str) -> Result<Http, String> {
    match text {
        "none" => Ok(Http::Off),
        address => address
            .parse()
            .map(Http::At)
            .map_err(|_| "write it as in 127.0.0.1:8080, or none".to_owned()),
    }
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps the server from starting: object, cause, remedy.
pub(crate) fn main(args: &DnsArgs) -> anyhow::Result<()> {
    logging::start(args.log_format, &args.log_level)?;
    let corefile = args.conf.as_ref().map(|path| Corefile::read(path)).transpose()?;
    if args.check {
        for note in corefile.iter().flat_map(|corefile| &corefile.notes) {
            println!("{note}");
        }
        println!("the Corefile can be served");
        return Ok(());
    }
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let result = runtime.block_on(run(args, corefile.as_ref()));
    runtime.shutdown_timeout(GRACE);
    result
}

async fn run(args: &DnsArgs, corefile: Option<&Corefile>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let client = client(args, corefile).await?;
    let config = Config {
        corefile: args.conf.clone().map_or(Source::Default, Source::Path),
        cluster_domain: args.cluster_domain.clone(),
        listen: args.listen.clone(),
        health: args.health_bind_address.unwrap_or_default(),
        ready: args.ready_bind_address.unwrap_or_default(),
        metrics: args.metrics_bind_address.unwrap_or_default(),
        sockets: args.sockets,
        ..Config::default()
    };
    let stop = CancellationToken::new();
    let server = fairlead_dns::run(config, client, stop.clone());
    tokio::pin!(server);
    tokio::select! {
        result = &mut server => return result,
        _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
        _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
    }
    stop.cancel();
    tokio::select! {
        result = &mut server => result,
        // Asked twice: not even the lame duck is waited for.
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

async fn client(args: &DnsArgs, corefile: Option<&Corefile>) -> anyhow::Result<kube::Client> {
    let mut blocks = corefile.iter().flat_map(|corefile| &corefile.blocks);
    let in_file = blocks.find_map(|block| block.kubernetes.as_ref()?.kubeconfig.clone());
    let file = args.kubeconfig.clone().map(|file| (file, None)).or(in_file);
    let config = match file {
        Some((file, context)) => {
            let shown = file.display().to_string();
            let kubeconfig = kube::config::Kubeconfig::read_from(&file)
                .with_context(|| format!("--kubeconfig {shown} cannot be read; name a file that kubectl takes"))?;
            let options = kube::config::KubeConfigOptions {
                context,
                ..Default::default()
            };
            let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
            config.with_context(|| format!("--kubeconfig {shown} does not say how to reach an API server"))?
        }
        None => {
            let config = kube::Config::infer().await;
            config.context("no API server is known; name a --kubeconfig, or run in a pod with a service account")?
        }
    };
    kube::Client::try_from(config).context("the API server cannot be reached as its configuration says")
}
