//! The sources of the standard library of the rustc in use, which `-Z build-std` compiles for BPF.
//!
//! First choice is rustup. Where it has none to give, the distribution's `rust-src` package of exactly this version is
//! fetched with a private apt configuration and its `library` folder put into the sysroot. The host's own apt
//! configuration is read, never changed, and nothing is installed.

use crate::{
    apt::{PrivateApt, Scratch},
    bpf,
    progress::Progress,
    tools,
};
use anyhow::{Context as _, Result, anyhow, bail};
use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
};

/// Makes sure that they are there.
pub(crate) fn run(progress: &Progress) -> Result<()> {
    let sysroot = bpf::sysroot().map_err(|cause| anyhow!("{cause}; install Rust, see rust-version in Cargo.toml"))?;
    if bpf::has_library(&sysroot) {
        progress.there(format_args!("rust-src ({})", bpf::library_dir(&sysroot).display()));
        return Ok(());
    }
    let version = rustc_version()?;
    let step = progress.begin(format_args!("installing rust-src {version} with rustup"));
    let rustup = match from_rustup(&sysroot) {
        Ok(()) => {
            step.done();
            return Ok(());
        }
        Err(error) => error,
    };
    step.failed();
    progress.say(format_args!("{rustup:#}"));
    let step = progress.begin(format_args!(
        "fetching the distribution's rust-src {version}, to unpack it into {}",
        sysroot.display()
    ));
    match from_distribution(&sysroot, &version) {
        Ok(()) => {
            step.done();
            Ok(())
        }
        Err(distribution) => {
            step.failed();
            bail!(
                "the standard library's sources for rustc {version} are missing and could not be fetched\n\
                 rustup: {rustup:#}\n\
                 distribution: {distribution:#}\n\
                 remedy: give one of the two network access and run again, or put the folder `library` of the \
                 rust-src component {version} at {}",
                bpf::library_dir(&sysroot).display()
            )
        }
    }
}

/// As in `1.95.0`, or `1.97.0-nightly`, which no distribution has.
fn rustc_version() -> Result<String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let text = tools::quietly(Command::new(rustc).arg("--version"))?;
    Ok(text
        .split_whitespace()
        .nth(1)
        .context("rustc --version names no version")?
        .to_owned())
}

fn from_rustup(sysroot: &Path) -> Result<()> {
    let rustup = tools::find("rustup").context("not on PATH")?;
    let toolchains = sysroot.parent().filter(|parent| parent.ends_with("toolchains"));
    let name = toolchains.and(sysroot.file_name());
    let name = name.with_context(|| format!("rustc's sysroot {} is not one of its toolchains", sysroot.display()))?;
    tools::quietly(
        Command::new(rustup)
            .args(["component", "add", "rust-src", "--toolchain"])
            .arg(name),
    )?;
    if !bpf::has_library(sysroot) {
        let name = name.display();
        bail!(
            "it takes rust-src for installed, yet the files are gone; `rustup component remove rust-src --toolchain {name}`"
        );
    }
    Ok(())
}

fn from_distribution(sysroot: &Path, version: &str) -> Result<()> {
    if sysroot == Path::new("/usr") {
        bail!("this rustc is the distribution's own: install its package rust-src of the same version");
    }
    tools::find("tar").context("tar is not on this machine")?;
    let target = bpf::library_dir(sysroot);
    let parent = target.parent().context("the sysroot has no parent")?;
    fs::create_dir_all(parent)
        .with_context(|| format!("{} is not writable for this user: run as its owner", parent.display()))?;

    let apt = PrivateApt::new()?;
    let package = apt.fetch("rust-src", version, |found| matching(found, version))?;
    unpack(&package, version, parent, &target)
}

/// Unpacks beside the target and renames, so that an interrupted run leaves nothing that looks complete.
fn unpack(package: &Path, version: &str, parent: &Path, target: &Path) -> Result<()> {
    let unpacking = Scratch::new(&parent.join(format!(".unpacking-{}", std::process::id())))?;
    let folder = format!("usr/src/rustc-{version}/library");
    let mut archive = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("dpkg-deb could not start")?;
    let stream = archive.stdout.take().context("dpkg-deb has no stdout")?;
    let status = Command::new("tar")
        .args(["--extract", "--no-same-owner", "--file", "-", "--directory"])
        .arg(unpacking.path())
        .arg(format!("./{folder}"))
        .stdin(stream)
        .status()
        .context("tar could not start")?;
    let archive = archive.wait()?;
    if !status.success() || !archive.success() {
        bail!(
            "{} could not be unpacked (dpkg-deb: {archive}, tar: {status})",
            package.display()
        );
    }
    if target.symlink_metadata().is_ok() {
        fs::remove_dir_all(target).with_context(|| format!("the incomplete {}", target.display()))?;
    }
    fs::rename(unpacking.path().join(&folder), target).with_context(|| target.display().to_string())?;
    let sysroot = parent.ancestors().nth(4).context("the sysroot has no parent")?;
    if !bpf::has_library(sysroot) {
        bail!("{} holds no complete standard library", package.display());
    }
    Ok(())
}

/// Whether a package's version is of this upstream version.
fn matching(package: &str, version: &str) -> bool {
    package
        .strip_prefix(version)
        .is_some_and(|rest| rest.starts_with("+dfsg"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exactly_this_version_matches() {
        assert!(matching("1.95.0+dfsg1-2~bpo13+1", "1.95.0"));
        assert!(!matching("1.96.1+dfsg1-2~bpo13+1", "1.95.0"));
        assert!(!matching("1.95.0+dfsg1-2~bpo13+1", "1.95"));
        assert!(!matching("1.95.0+dfsg1-2~bpo13+1", "1.95.0-nightly"));
    }
}
