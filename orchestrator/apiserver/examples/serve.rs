//! The smallest server: in memory, on a loopback port. `cargo run -p fairlead-apiserver --example serve -- DIRECTORY [PORT]`
//! keeps its keys in the directory, writes `kubeconfig` there, and serves until interrupted.

use anyhow::{Context as _, Result};
use fairlead_apiserver::{
    Settings,
    open::{Running, Start},
};
use std::{env, fs, path::PathBuf, sync::Arc};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let data_dir = PathBuf::from(arguments.next().context("name a directory")?);
    let port = arguments
        .next()
        .map_or(Ok(0), |port| port.parse())
        .context("the port is no number")?;
    fs::create_dir_all(&data_dir)?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let start = Start::new(data_dir.clone(), listener.local_addr()?.port());
    let running = Running::start(
        Arc::new(fairlead_store::testing::EtcdDouble::new()),
        Settings::default(),
        &start,
        listener,
    )
    .await?;
    let kubeconfig = data_dir.join("kubeconfig");
    fs::write(
        &kubeconfig,
        running.admin_kubeconfig(&format!("https://{}", running.address))?,
    )?;
    println!("export KUBECONFIG={}", kubeconfig.display());
    tokio::signal::ctrl_c().await?;
    running.stop().await;
    Ok(())
}
