//! Set-up, build, test, demo and benchmark of this repository: `cargo xtask help`.

mod apt;
mod bpf;
mod dependencies;
mod generate;
mod image;
mod kubectl;
mod kubectl_setup;
mod programs;
mod progress;
mod rust_src;
mod setup;
mod tests;
mod tools;
mod workspace;

use anyhow::Result;
use clap::{Parser, Subcommand};
use progress::Progress;
use std::{ffi::OsString, process::ExitCode};
use workspace::Workspace;

/// Everything that one does with this repository, on a fresh machine too.
///
/// Each command first installs what it needs and is missing, says so, and installs nothing twice.
#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    after_help = "Start with `cargo xtask demo`, or `cargo xtask test`. More: docs/development.md"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building, running and testing need: packages, `rust-src`, bpf-linker, kubectl
    ///
    /// Says in one line per step what is there and what it installs; the second run installs nothing. Distribution
    /// packages need root, and only when one is missing. The standard library's sources come from rustup, else from
    /// the distribution's package of exactly this rustc, which is unpacked and never installed. So is kubectl, in two versions; tests of the API server run it.
    Setup,
    /// Build the agent with its BPF programs: target/release/fairlead
    Build {
        /// Build without optimisation: target/debug/fairlead
        #[arg(long)]
        debug: bool,
    },
    /// Run every check and every test; the last line is `N passed, N failed`
    ///
    /// Format, lints (of the BPF programs too), dependency rules, docs, then unit, property and end-to-end tests.
    /// Tests of the kernel make their own network namespaces and need root. A failure does not stop the rest.
    #[command(after_help = "cargo xtask test -- --exact some::test   what follows `--` goes to the test programs")]
    Test {
        /// Leave out what needs root and a kernel
        #[arg(long)]
        no_kernel: bool,
        /// For the test programs, as after `cargo test --`
        #[arg(last = true, value_name = "ARGUMENT")]
        arguments: Vec<OsString>,
    },
    /// Show the proxy at work between network namespaces on this machine
    #[command(
        after_help = "cargo xtask demo --output json   one JSON document on stdout, progress on stderr
cargo xtask demo -- --help       the demo's own options"
    )]
    Demo {
        /// For the demo
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
        arguments: Vec<OsString>,
    },
    /// Run a whole cluster on this machine: builds the agent and a test image, then `fairlead up`
    #[command(
        after_help = "cargo xtask up --nodes 3       three nodes out of network namespaces of this machine
cargo xtask up -- --help       the cluster's own options
cargo xtask demo               the service proxy alone, between network namespaces"
    )]
    Up {
        /// Nodes out of network namespaces, joined by token, instead of this machine as a node
        #[arg(long, value_name = "N")]
        nodes: Option<u8>,
        /// For `fairlead up`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
        arguments: Vec<OsString>,
    },
    /// Make images as OCI archives, without docker: the agent, pause, and a box of servers and clients for tests
    #[command(after_help = "cargo xtask image test                 the test image alone
ctr -n k8s.io images import FILE       how containerd takes it; `fairlead image import FILE` for a running cluster")]
    Image {
        /// Which; all of them without
        #[arg(value_enum)]
        which: Vec<image::Which>,
        /// Where to [default: the folder `images` beside cargo's profiles]
        #[arg(long, short, value_name = "DIR")]
        output: Option<std::path::PathBuf>,
    },
    /// Write the facts about the API's types anew from upstream's published packages
    ///
    /// Downloads are pinned by checksum and kept in the user's cache. The result is checked in; a second run changes
    /// nothing.
    Gen {
        /// Write nothing; fail where the checked-in files differ
        #[arg(long)]
        check: bool,
    },
    /// Measure packet forwarding against kube-proxy's modes on this kernel, the API server, or a whole cluster
    #[command(after_help = "cargo xtask bench -- --help       the benchmark's own options
cargo xtask bench api               starts, creates, watches, lists and memory of the API server
cargo xtask bench api -- --help     its options
cargo xtask bench cluster           starts, pods and memory of a whole cluster; CNI and DNS
cargo xtask bench cluster -- --help its options")]
    Bench {
        /// For the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
        arguments: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    match command {
        Command::Setup => setup::run(&Progress::stdout()).map(|()| ExitCode::SUCCESS),
        Command::Build { debug } => {
            programs::build_agent(&workspace, &Progress::stdout(), debug).map(|()| ExitCode::SUCCESS)
        }
        Command::Test { no_kernel, arguments } => tests::run(&workspace, &Progress::stdout(), no_kernel, &arguments),
        Command::Demo { arguments } => programs::exec(&workspace, &Progress::stderr(), "demo", &arguments),
        Command::Up { nodes: Some(nodes), .. } => programs::nodes(&workspace, &Progress::stderr(), nodes),
        Command::Up { nodes: None, arguments } => programs::up(&workspace, &Progress::stderr(), &arguments),
        Command::Image { which, output } => {
            image::run(&workspace, &Progress::stdout(), &which, output).map(|()| ExitCode::SUCCESS)
        }
        Command::Gen { check } => generate::run(&workspace, &Progress::stdout(), check).map(|()| ExitCode::SUCCESS),
        Command::Bench { arguments } if arguments.first().is_some_and(|it| it == "api") => {
            programs::bench_api(&workspace, &Progress::stderr(), &arguments[1..])
        }
        Command::Bench { arguments } if arguments.first().is_some_and(|it| it == "cluster") => {
            programs::bench_cluster(&workspace, &Progress::stderr(), &arguments)
        }
        Command::Bench { arguments } => programs::exec(&workspace, &Progress::stderr(), "bench", &arguments),
    }
}
