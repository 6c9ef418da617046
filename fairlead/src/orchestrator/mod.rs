//! The orchestrator's subcommands: `up` and its parts, `apiserver`, `kubeconfig`, `store`.

pub(crate) mod apiserver;
pub(crate) mod flags;
pub(crate) mod kubeconfig;
pub(crate) mod store;
pub(crate) mod up;

use std::path::{Path, PathBuf};

/// The store's directory in a data directory.
fn store_directory(data_dir: &Path) -> PathBuf {
    data_dir.join("store")
}
