//! Where this repository and its build results are, and what it depends on, as cargo tells it.

use crate::tools;
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// This repository.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// Its root.
    pub(crate) root: PathBuf,
    /// `target`, or where the user's settings put it.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// Asks cargo.
    ///
    /// # Errors
    /// Cargo could not read the manifests.
    pub(crate) fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("..")
            .canonicalize()
            .context("the repository has moved")?;
        let metadata = metadata(&root, &["--no-deps"])?;
        let target = metadata["target_directory"]
            .as_str()
            .context("cargo metadata names no target directory")?
            .into();
        Ok(Self { root, target })
    }

    /// `cargo metadata` with all dependencies for this machine. Also proves that `Cargo.lock` is up to date.
    ///
    /// # Errors
    /// Cargo could not resolve them.
    pub(crate) fn dependencies(&self) -> Result<Value> {
        let triple = tools::quietly(std::process::Command::new("rustc").args(["--print", "host-tuple"]))?;
        metadata(&self.root, &["--locked", "--filter-platform", triple.trim()])
    }

    /// A program that cargo built.
    pub(crate) fn binary(&self, profile: &str, name: &str) -> PathBuf {
        self.target.join(profile).join(name)
    }
}

fn metadata(root: &Path, arguments: &[&str]) -> Result<Value> {
    let text = tools::quietly(
        tools::cargo()
            .current_dir(root)
            .args(["metadata", "--format-version=1"])
            .args(arguments),
    )?;
    serde_json::from_str(&text).context("cargo metadata is not JSON")
}
