//! The one binary.

mod cleanup;
mod client;
mod dns;
mod flags;
mod joints;
mod logging;
mod orchestrator;
mod preflight;
mod proxy;
mod status;

use clap::Parser;
use flags::{Cli, Command};
use std::process::ExitCode;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Up(args) => orchestrator::up::up(&args),
        Command::Down(args) => orchestrator::up::down(&args),
        Command::Server(args) => orchestrator::up::server(&args),
        Command::Agent(args) => orchestrator::up::agent(&args),
        Command::Token(args) => orchestrator::up::token(&args),
        Command::Image(args) => orchestrator::up::image(&args),
        Command::Proxy(args) => proxy::main(&args),
        Command::Status(args) => status::main(&args),
        Command::Cleanup(args) => cleanup::main(&args),
        Command::Apiserver(args) => orchestrator::apiserver::main(&args),
        Command::Kubeconfig(args) => orchestrator::kubeconfig::main(&args),
        Command::Dns(args) => dns::main(&args),
        Command::Store(args) => orchestrator::store::main(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fairlead: {error:#}");
            ExitCode::FAILURE
        }
    }
}
