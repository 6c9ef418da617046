//! What a fresh machine needs: distribution packages, the standard library's sources, the BPF linker, kubectl.
//!
//! When everything is there this costs a few file checks and starts one process.

use crate::{bpf, kubectl_setup, progress::Progress, rust_src, tools};
use anyhow::{Context as _, Result, anyhow, bail};
use std::{env, fs, path::Path, process::Command};

/// What tests, demo and benchmark run, and the Debian and Ubuntu package of each.
const PROGRAMS: [(&str, &str); 11] = [
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("iptables", "iptables"),
    ("nft", "nftables"),
    ("conntrack", "conntrack"),
    ("sysctl", "procps"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("curl", "curl"),
    ("dig", "bind9-dnsutils"),
];

/// Installs what is missing.
///
/// # Errors
/// What could not be installed, why, and what to do instead.
pub(crate) fn run(progress: &Progress) -> Result<()> {
    packages(progress)?;
    rust_src::run(progress)?;
    linker(progress)?;
    kubectl_setup::run(progress)
}

/// The toolchain's components that only the checks need, as cargo's subcommands are called.
const COMPONENTS: [(&str, &str); 2] = [("fmt", "rustfmt"), ("clippy", "clippy")];

/// Installs what only `cargo xtask test` needs: rustfmt and clippy, which a minimal toolchain lacks.
///
/// # Errors
/// What is missing, and what to do about it.
pub(crate) fn components(progress: &Progress) -> Result<()> {
    let missing = missing_components();
    if missing.is_empty() {
        progress.there("rustfmt clippy");
        return Ok(());
    }
    let names = missing.join(" ");
    if tools::find("rustup").is_none() {
        bail!(
            "the checks need {names}, and there is no rustup to add them: install your distribution's packages of them \
             for this very rustc, or Rust by https://rustup.rs"
        );
    }
    let step = progress.begin(format_args!("rustup component add {names}"));
    // Under rustup's cargo RUSTUP_TOOLCHAIN is set, so this is the toolchain in use.
    if let Err(error) = tools::quietly(Command::new("rustup").args(["component", "add"]).args(&missing)) {
        step.failed();
        return Err(error.context(format!(
            "{names} could not be added: check the network, or run `rustup component add {names}` by hand"
        )));
    }
    let missing = missing_components();
    if !missing.is_empty() {
        step.failed();
        bail!(
            "rustup added {names}, yet this cargo finds no {}: it is not rustup's; put rustup's cargo first on PATH",
            missing.join(" ")
        );
    }
    step.done();
    Ok(())
}

fn missing_components() -> Vec<&'static str> {
    let missing = COMPONENTS
        .iter()
        .filter(|(command, _)| tools::quietly(tools::cargo().args([command, "--version"])).is_err());
    missing.map(|(_, component)| *component).collect()
}

/// Distribution packages. Looks for the programs, not for the packages: how they came here does not matter.
fn packages(progress: &Progress) -> Result<()> {
    let missing = missing_packages();
    if missing.is_empty() {
        let mut names: Vec<_> = PROGRAMS.map(|(_, package)| package).to_vec();
        names.dedup();
        progress.there(format_args!("packages {}", names.join(" ")));
        return Ok(());
    }
    let names = missing.join(" ");
    let by_hand = format!("install by hand: apt-get install {names} (or what your distribution calls them)");
    if tools::find("apt-get").is_none() {
        bail!("set-up must install {names}, and this machine has no apt-get; {by_hand}");
    }
    if !tools::is_root() {
        bail!("set-up must install {names}, which only root may; run as root, or {by_hand}");
    }
    let step = progress.begin(format_args!("installing packages {names}"));
    // Another apt (unattended upgrades on a new machine) may hold the lock for a while.
    let apt = || {
        let mut apt = Command::new("apt-get");
        apt.args(["-q", "-y", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3"]);
        apt.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8");
        apt
    };
    // A stale index of an unrelated source must not stop us; if ours is stale, the installation says so.
    let update = tools::quietly(apt().arg("update"));
    let installed = tools::quietly(apt().args(["install", "--no-install-recommends"]).args(&missing));
    if let Err(error) = installed {
        step.failed();
        let error = match update {
            Err(update) => anyhow!("{error:#}\nbefore it, {update:#}"),
            Ok(_) => error,
        };
        return Err(error.context(format!(
            "packages {names} could not be installed: check the network and /etc/apt, or {by_hand}"
        )));
    }
    let missing = missing_packages();
    if !missing.is_empty() {
        step.failed();
        bail!(
            "apt-get installed {names}, yet programs of {} are not on PATH; {by_hand}",
            missing.join(" ")
        );
    }
    step.done();
    Ok(())
}

fn missing_packages() -> Vec<&'static str> {
    let mut missing: Vec<_> = PROGRAMS
        .iter()
        .filter(|(program, _)| tools::find(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    missing.dedup();
    missing
}

/// `bpf-linker` at the pinned version, in a directory of its own: a new version is a new directory.
fn linker(progress: &Progress) -> Result<()> {
    let version = bpf::LINKER_VERSION;
    if env::var_os(bpf::LINKER_VARIABLE).is_some_and(|value| !value.is_empty()) {
        let path =
            bpf::find_linker().map_err(|cause| anyhow!("{cause}; correct it, or unset it to install {version}"))?;
        progress.there(format_args!("bpf-linker {} ({})", path.display(), bpf::LINKER_VARIABLE));
        return Ok(());
    }
    let tools_dir = bpf::tools_dir().context("no directory for tools: set FAIRLEAD_TOOLS, or HOME")?;
    if !tools_dir.is_absolute() {
        bail!(
            "the tools directory {} must be an absolute path: builds look for it from elsewhere",
            tools_dir.display()
        );
    }
    let linker = bpf::pinned_linker(&tools_dir);
    if linker.is_file() {
        progress.there(format_args!("bpf-linker {version} ({})", linker.display()));
        return Ok(());
    }
    let root = linker.ancestors().nth(2).context("the linker's path has no root")?;
    let step = progress.begin(format_args!(
        "building bpf-linker {version} into {}, about a minute",
        root.display()
    ));
    let result = install_linker(root);
    match result {
        Ok(()) => step.done(),
        Err(_) => step.failed(),
    }
    result.with_context(|| {
        format!(
            "bpf-linker {version} could not be built: check the network and that {} is writable (FAIRLEAD_TOOLS moves \
             it), or name one in {}",
            tools_dir.display(),
            bpf::LINKER_VARIABLE
        )
    })
}

fn install_linker(root: &Path) -> Result<()> {
    fs::create_dir_all(root).with_context(|| root.display().to_string())?;
    let mut cargo = tools::cargo();
    cargo
        .args([
            "install",
            "bpf-linker",
            "--version",
            bpf::LINKER_VERSION,
            "--locked",
            "--root",
        ])
        .arg(root);
    // Not this repository's cargo settings, nor flags and target directories meant for its builds. The directory
    // holds no `rust-toolchain`, and RUSTUP_TOOLCHAIN is set, so the toolchain stays the one in use.
    cargo.current_dir("/");
    for (name, _) in env::vars_os() {
        let leaks = name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_BUILD_")
                || name.starts_with("CARGO_PROFILE_")
                || [
                    "CARGO_ENCODED_RUSTFLAGS",
                    "CARGO_INSTALL_ROOT",
                    "CARGO_TARGET_DIR",
                    "RUSTFLAGS",
                ]
                .contains(&name)
        });
        if leaks {
            cargo.env_remove(name);
        }
    }
    // It spends its time in rustc's LLVM, which is optimised: what it saves here in building, it never loses in use.
    cargo
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false");
    tools::quietly(&mut cargo)?;
    Ok(())
}
