//! The clients that tests run against the API server: the distribution's kubectl in two versions, unpacked and never
//! installed, and the Python client in a virtual environment.

use crate::{
    apt::{PrivateApt, Scratch},
    bpf, kubectl,
    progress::Progress,
    tools,
};
use anyhow::{Context as _, Result, bail};
use std::{fs, path::Path, process::Command};

/// Fetches what is missing.
///
/// # Errors
/// What could not be fetched, why, and what to do instead.
pub(crate) fn run(progress: &Progress) -> Result<()> {
    let tools_dir = bpf::tools_dir().context("no directory for tools: set FAIRLEAD_TOOLS, or HOME")?;
    for minor in kubectl::KUBECTLS {
        let program = kubectl::kubectl(&tools_dir, minor);
        if program.is_file() {
            progress.there(format_args!("kubectl {minor} ({})", program.display()));
            continue;
        }
        let step = progress.begin(format_args!(
            "fetching the distribution's kubectl {minor}, to unpack it into {}",
            kubectl::kubectl_root(&tools_dir, minor).display()
        ));
        let result = unpack_kubectl(&tools_dir, minor);
        match &result {
            Ok(()) => step.done(),
            Err(_) => step.failed(),
        }
        result.with_context(|| {
            format!(
                "kubectl {minor} could not be fetched: check the network, or put any kubectl {minor} at {}",
                program.display()
            )
        })?;
    }
    for (package, file) in kubectl::UNPACKED {
        if kubectl::unpacked(&tools_dir, package, file).is_file() {
            progress.there(format_args!(
                "{package} ({})",
                kubectl::unpacked_root(&tools_dir, package).display()
            ));
            continue;
        }
        let step = progress.begin(format_args!(
            "fetching {package}, to unpack it into {}",
            tools_dir.display()
        ));
        let result = unpack(&tools_dir, package);
        match &result {
            Ok(()) => step.done(),
            Err(_) => step.failed(),
        }
        result.with_context(|| format!("{package} could not be fetched: check the network"))?;
    }
    python(progress, &tools_dir)
}

fn unpack(tools_dir: &Path, package: &str) -> Result<()> {
    let apt = PrivateApt::new()?;
    let file = apt.fetch(package, "of any version", |_| true)?;
    let unpacking = beside(tools_dir, package)?;
    tools::quietly(Command::new("dpkg-deb").arg("-x").arg(&file).arg(unpacking.path()))?;
    let root = kubectl::unpacked_root(tools_dir, package);
    fs::rename(unpacking.path(), &root).with_context(|| root.display().to_string())
}

fn unpack_kubectl(tools_dir: &Path, minor: &str) -> Result<()> {
    let apt = PrivateApt::new()?;
    let package = apt.fetch("kubectl", minor, |found| is_of(found, minor))?;
    let unpacking = beside(tools_dir, "kubectl")?;
    tools::quietly(Command::new("dpkg-deb").arg("-x").arg(&package).arg(unpacking.path()))?;
    let program = unpacking.path().join("usr/bin/kubectl");
    let version = tools::quietly(Command::new(&program).args(["version", "--client"]))?;
    if !version.contains(&format!("v{minor}.")) {
        bail!("the package's kubectl says it is {version}");
    }
    let root = kubectl::kubectl_root(tools_dir, minor);
    fs::rename(unpacking.path(), &root).with_context(|| root.display().to_string())
}

/// Whether a package's version is of this minor version.
fn is_of(package: &str, minor: &str) -> bool {
    package.strip_prefix(minor).is_some_and(|rest| rest.starts_with('.'))
}

/// A directory to be renamed when complete, so that an interrupted run leaves nothing that looks complete.
fn beside(tools_dir: &Path, what: &str) -> Result<Scratch> {
    fs::create_dir_all(tools_dir).with_context(|| tools_dir.display().to_string())?;
    Scratch::new(&tools_dir.join(format!(".unpacking-{what}-{}", std::process::id())))
}

fn python(progress: &Progress, tools_dir: &Path) -> Result<()> {
    let (version, root) = (kubectl::PYTHON_CLIENT, kubectl::python_root(tools_dir));
    // Written last.
    let complete = root.join("complete");
    if complete.is_file() {
        progress.there(format_args!("Python client {version} ({})", root.display()));
        return Ok(());
    }
    let step = progress.begin(format_args!(
        "installing the Python client {version} into {}",
        root.display()
    ));
    let result = install_python(&root, &kubectl::python(tools_dir), &complete);
    match &result {
        Ok(()) => step.done(),
        Err(_) => step.failed(),
    }
    result.with_context(|| {
        format!(
            "the Python package kubernetes {version} could not be installed: check the network, and that python3 has \
             its module venv (Debian: apt-get install python3-venv)"
        )
    })
}

/// In place, since a virtual environment knows its own path.
fn install_python(root: &Path, python: &Path, complete: &Path) -> Result<()> {
    if root.symlink_metadata().is_ok() {
        fs::remove_dir_all(root).with_context(|| format!("the incomplete {}", root.display()))?;
    }
    tools::quietly(Command::new("python3").args(["-m", "venv"]).arg(root))?;
    let package = format!("kubernetes=={}", kubectl::PYTHON_CLIENT);
    let arguments = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    tools::quietly(Command::new(python).args(arguments).arg(package))?;
    fs::write(complete, "").with_context(|| complete.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minor_versions() {
        assert!(is_of("1.36.4-1", "1.36"));
        assert!(is_of("1.32.3+ds-2", "1.32"));
        assert!(!is_of("1.3.6-1", "1.36"));
        assert!(!is_of("1.360.1-1", "1.36"));
    }
}
