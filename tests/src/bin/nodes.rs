//! `cargo xtask up --nodes N`: a cluster whose nodes are network namespaces of this machine, until Ctrl-C.

use anyhow::{Context as _, Result};
use clap::Parser;
use harness::{Cluster, Topology, actor, cluster::kubectl};
use nix::sys::signal::{SigSet, Signal};
use std::process::ExitCode;

/// A cluster whose nodes are network namespaces of this machine: the first runs the server and a node, the others join it by
/// token. Ctrl-C takes everything down.
#[derive(Parser)]
struct Arguments {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=26))]
    nodes: u8,
}

fn main() -> ExitCode {
    if let Some(code) = actor::run_as_actor_if_asked() {
        return code;
    }
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    // Blocked before any thread starts, so that the end is waited for and nothing is cut short.
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGINT);
    ends.add(Signal::SIGTERM);
    ends.thread_block().context("block signals")?;
    println!("Making {} hosts out of network namespaces", arguments.nodes);
    let topology = Topology::standard(arguments.nodes, 0)?;
    let [first, others @ ..] = topology.nodes() else {
        anyhow::bail!("no nodes");
    };
    let cluster = Cluster::start(&topology, first, &[])?;
    println!("  ✓ {} serves the API and is a node", first.name);
    let token = cluster.token();
    for node in others {
        cluster.try_join(&topology, node, &token)?;
        println!("  ✓ {} has joined", node.name);
    }
    println!(
        "\nThe cluster is ready. Its addresses are those of the namespaces, so enter one to use it:\n\n  nsenter \
         --net=/proc/{}/ns/net bash\n  export KUBECONFIG={}\n  {} get nodes -o wide\n  {} create deployment hello \
         --image={} --replicas=3\n\nCtrl-C takes everything down.",
        first.actor.pid(),
        cluster.data().join("admin.kubeconfig").display(),
        kubectl()?.display(),
        kubectl()?.display(),
        harness::cluster::IMAGE
    );
    ends.wait().context("wait for a signal")?;
    println!("\nTaking it down");
    Ok(())
}
