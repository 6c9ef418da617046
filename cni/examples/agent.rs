//! The node network alone, without an API server: `agent DIRECTORY POD_CIDR...`, until SIGTERM or SIGINT.
//!
//! Everything is below the directory: `run`, `bin`, `net.d`. Says `ready` once the plugin is served.

use anyhow::{Context as _, Result};
use fairlead_cni::Config;
use std::{env, path::PathBuf};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut args = env::args().skip(1);
    let dir = PathBuf::from(args.next().context("usage: agent DIRECTORY POD_CIDR...")?);
    let cidrs: Result<Vec<_>, _> = args.map(|cidr| cidr.parse()).collect();
    let config = Config {
        run_dir: dir.join("run"),
        cni_bin_dir: dir.join("bin"),
        cni_conf_dir: dir.join("net.d"),
        pod_cidrs: cidrs.context("a pod network is no network")?,
        ..Config::new("node")
    };
    let conflist = config.cni_conf_dir.join(fairlead_cni::CONFLIST);
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stopper = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopper.cancel();
    });
    // Nobody listens there: the watch of Nodes tries again and again.
    let client = kube::Client::try_from(kube::Config::new("http://127.0.0.1:1".parse()?))?;
    let _ = std::fs::remove_file(&conflist);
    tokio::spawn(async move {
        while !conflist.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        println!("ready");
    });
    fairlead_cni::run(config, client, stop).await
}
