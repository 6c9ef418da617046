//! Builds the agent and the programs that show and measure it, and becomes one of them.

use crate::{progress::Progress, setup, tools, workspace::Workspace};
use anyhow::{Context as _, Result, bail};
use std::{
    ffi::OsString,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode, Stdio},
};

/// The variable that tells the demo, the benchmark and the tests which agent to run: a path.
pub(crate) const AGENT_VARIABLE: &str = "FAIRLEAD_BIN";

/// Builds the agent.
pub(crate) fn build_agent(workspace: &Workspace, progress: &Progress, debug: bool) -> Result<()> {
    setup::run(progress)?;
    let profile = if debug { "debug" } else { "release" };
    let mut cargo = tools::cargo();
    cargo.args(["build", "--package", "fairlead"]);
    if !debug {
        cargo.arg("--release");
    }
    build(workspace, progress, &mut cargo)?;
    progress.say(workspace.binary(profile, "fairlead").display());
    Ok(())
}

/// Builds the agent and a program of `tests/src/bin`, and becomes that program; `Ok` is never returned.
///
/// # Errors
/// Not root, or something could not be built or started.
pub(crate) fn exec(
    workspace: &Workspace,
    progress: &Progress,
    program: &str,
    arguments: &[OsString],
) -> Result<ExitCode> {
    // Minutes of building must not end in a refusal.
    let help = arguments
        .iter()
        .any(|argument| argument == "--help" || argument == "-h");
    if !help && !tools::is_root() {
        bail!("the {program} needs root: it makes network namespaces and loads BPF programs; run it as root");
    }
    setup::run(progress)?;
    let mut cargo = tools::cargo();
    cargo.args([
        "build",
        "--release",
        "--package",
        "fairlead",
        "--package",
        "fairlead-tests",
    ]);
    cargo.args(["--bin", "fairlead", "--bin", program]);
    build(workspace, progress, &mut cargo)?;
    let path = workspace.binary("release", program);
    let error = Command::new(&path)
        .args(arguments)
        .env(AGENT_VARIABLE, workspace.binary("release", "fairlead"))
        .exec();
    Err(error).with_context(|| path.display().to_string())
}

/// Builds the agent and the test image, and becomes `fairlead up`; `Ok` is never returned.
///
/// # Errors
/// Not root, or something could not be built or started.
pub(crate) fn up(workspace: &Workspace, progress: &Progress, arguments: &[OsString]) -> Result<ExitCode> {
    let help = arguments.iter().any(|it| it == "--help" || it == "-h");
    if !help && !tools::is_root() {
        bail!("a cluster needs root: it makes containers, network namespaces and BPF programs; run it as root");
    }
    build_agent(workspace, progress, false)?;
    let image = crate::image::test(workspace, progress, &workspace.target.join("images"))?;
    let path = workspace.binary("release", "fairlead");
    let error = Command::new(&path)
        .args(["up", "--image"])
        .arg(image)
        .args(arguments)
        .exec();
    Err(error).with_context(|| path.display().to_string())
}

/// Builds the agent and the test image, and makes a cluster of that many nodes; `Ok` is never returned.
///
/// # Errors
/// As [`up`].
pub(crate) fn nodes(workspace: &Workspace, progress: &Progress, nodes: u8) -> Result<ExitCode> {
    crate::image::test(workspace, progress, &workspace.target.join("images"))?;
    exec(
        workspace,
        progress,
        "nodes",
        &["--nodes".into(), nodes.to_string().into()],
    )
}

/// The benchmark of the API server, an example of its crate: it needs no root and no namespaces.
const API_BENCH: &str = "api_bench";

/// Builds the agent and the benchmark of the API server, and becomes that.
///
/// # Errors
/// Something could not be built or started.
pub(crate) fn bench_api(workspace: &Workspace, progress: &Progress, arguments: &[OsString]) -> Result<ExitCode> {
    setup::run(progress)?;
    let mut cargo = tools::cargo();
    cargo.args(["build", "--release", "--package", "fairlead"]);
    build(workspace, progress, &mut cargo)?;
    let mut cargo = tools::cargo();
    cargo.args([
        "build",
        "--release",
        "--package",
        "fairlead-apiserver",
        "--example",
        API_BENCH,
    ]);
    build(workspace, progress, &mut cargo)?;
    let path = workspace.binary("release", &format!("examples/{API_BENCH}"));
    let error = Command::new(&path)
        .arg("--server")
        .arg(workspace.binary("release", "fairlead"))
        .args(arguments)
        .exec();
    Err(error).with_context(|| path.display().to_string())
}

/// Benchmarks that are examples of their crates, which that of a cluster runs too: crate, example, and the variable that
/// tells where it is.
const PART_BENCHES: [(&str, &str, &str); 2] = [
    ("fairlead-cni", "cni_bench", "FAIRLEAD_CNI_BENCH"),
    ("fairlead-dns", "dns_bench", "FAIRLEAD_DNS_BENCH"),
];

/// Builds the agent, the test image and the benchmarks of a cluster and its parts, and becomes the first of these; `Ok` is
/// never returned. `arguments` begin with the benchmark's own `cluster`.
///
/// # Errors
/// Not root, or something could not be built or started.
pub(crate) fn bench_cluster(workspace: &Workspace, progress: &Progress, arguments: &[OsString]) -> Result<ExitCode> {
    let help = arguments.iter().any(|it| it == "--help" || it == "-h");
    if !help && !tools::is_root() {
        bail!("a cluster needs root: it makes containers, network namespaces and BPF programs; run it as root");
    }
    setup::run(progress)?;
    let mut bench = Command::new(workspace.binary("release", "bench"));
    for (package, example, variable) in PART_BENCHES {
        let mut cargo = tools::cargo();
        cargo.args(["build", "--release", "--package", package, "--example", example]);
        build(workspace, progress, &mut cargo)?;
        bench.env(variable, workspace.binary("release", &format!("examples/{example}")));
    }
    let mut cargo = tools::cargo();
    cargo.args([
        "build",
        "--release",
        "--package",
        "fairlead",
        "--package",
        "fairlead-tests",
    ]);
    cargo.args(["--bin", "fairlead", "--bin", "bench"]);
    build(workspace, progress, &mut cargo)?;
    if !help {
        let image = crate::image::test(workspace, progress, &workspace.target.join("images"))?;
        bench.env("FAIRLEAD_TEST_IMAGE", image);
    }
    let error = bench
        .args(arguments)
        .env(AGENT_VARIABLE, workspace.binary("release", "fairlead"))
        .exec();
    Err(error).with_context(|| bench.get_program().to_string_lossy().into_owned())
}

fn build(workspace: &Workspace, progress: &Progress, cargo: &mut Command) -> Result<()> {
    let step = progress.begin(tools::typed(cargo));
    // Cargo's own words go to stderr; stdout may belong to the program that runs next.
    let status = cargo
        .current_dir(&workspace.root)
        .stdin(Stdio::null())
        .status()
        .context("cargo could not start")?;
    if !status.success() {
        step.failed();
        bail!("the build failed; the compiler's words are above");
    }
    step.done();
    Ok(())
}
