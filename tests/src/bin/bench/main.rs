//! Measures the service proxy against kube-proxy's ways of doing the same, and against doing nothing.

mod cluster;
mod lane;
mod rules;
mod sample;
mod scale;
mod services;
mod traffic;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use harness::actor;
use std::process::ExitCode;

/// Measures packet forwarding on this kernel: Fairlead, rules as kube-proxy's modes make them, and direct routing.
///
/// Client, node and backend are network namespaces; all three work on one processor, so that one divided by a rate is
/// the processor time of everything that a packet meets. Every path has a topology of its own and is measured in every
/// round. Takes about eight minutes, needs root, and removes all that it made.
#[derive(Parser)]
#[command(
    name = "bench",
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  cargo xtask bench                                    tables on stdout, progress on stderr
  cargo xtask bench --quick                            all of it in a minute or two, with little to conclude from
  cargo xtask bench --output json | jq .rows           the same for scripts
  cargo xtask bench --only sockets,nftables --services 1,1000
  cargo xtask bench scale                              10 000 services: time to the kernel, memory
  cargo xtask bench cluster                            starts, pods, memory of a whole cluster

Exit code: 0 if everything was measured, 1 if something was not, 2 if nothing could be."
)]
struct Arguments {
    /// What to print on stdout
    #[arg(long, value_enum, default_value = "table", global = true)]
    output: Output,
    #[command(flatten)]
    traffic: traffic::Options,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Subcommand)]
enum Part {
    /// Measure the agent with many services: time to the kernel, memory
    Scale(scale::Options),
    /// Measure a whole cluster of one node: starts, pods, memory, and the CNI and DNS benchmarks
    Cluster(cluster::Options),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
}

fn main() -> ExitCode {
    if let Some(code) = actor::run_as_actor_if_asked() {
        return code;
    }
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    if !nix::unistd::geteuid().is_root() {
        bail!("making network namespaces and loading programs into the kernel needs root: run this with sudo");
    }
    harness::agent::binary()?;
    match &arguments.part {
        None => traffic::run(&arguments.traffic, arguments.output),
        Some(Part::Scale(options)) => scale::run(options, arguments.output),
        Some(Part::Cluster(options)) => cluster::run(options, arguments.output),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn parts_have_options_of_their_own() {
        assert!(Arguments::try_parse_from(["bench", "scale", "--output", "json"]).is_ok());
        assert!(Arguments::try_parse_from(["bench", "--quick", "--services", "1,5"]).is_ok());
        assert!(Arguments::try_parse_from(["bench", "cluster", "--quick", "--output", "json"]).is_ok());
        assert!(Arguments::try_parse_from(["bench", "--services", "0"]).is_err());
        assert!(Arguments::try_parse_from(["bench", "cluster", "--pods", "0"]).is_err());
        assert!(Arguments::try_parse_from(["bench", "--seconds", "nan"]).is_err());
    }
}
