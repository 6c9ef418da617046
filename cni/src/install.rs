//! The plugin's binary and the network configuration, where the container runtime looks for them.

use crate::Config;
use serde_json::json;
use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

/// The CNI plugin: a static binary for this machine.
pub const PLUGIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/fairlead-cni"));
/// Its name, which is also its `type` in conflists.
pub const PLUGIN_NAME: &str = "fairlead-cni";
/// The plugin of this name is started by containerd before 2.0 for every sandbox. Ours does its work too, where there is
/// no other.
const LOOPBACK: &str = "loopback";
/// The network's file. Runtimes take the first one by name.
pub const CONFLIST: &str = "10-fairlead.conflist";
/// Name of the network.
pub const NETWORK: &str = "fairlead";

/// A file that cannot be put in place or removed.
#[derive(Debug, thiserror::Error)]
#[error("{what} {path}: {source}", path = path.display())]
pub struct InstallError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Puts the plugin into a directory, atomically: a runtime starts the old one or the new one.
///
/// # Errors
/// The directory cannot be made or written.
pub fn install(dir: &Path) -> Result<(), InstallError> {
    make(dir)?;
    let plugin = dir.join(PLUGIN_NAME);
    if fs::read(&plugin).ok().as_deref() != Some(PLUGIN) {
        write(&plugin, PLUGIN, 0o755)?;
    }
    let loopback = dir.join(LOOPBACK);
    match symlink(PLUGIN_NAME, &loopback) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(InstallError {
            what: "cannot make",
            path: loopback,
            source,
        }),
        _ => Ok(()),
    }
}

/// Writes the network's configuration, atomically. It comes last: with it the runtime takes the network for ready.
///
/// # Errors
/// The directory cannot be made or written.
pub fn write_conflist(dir: &Path, config: &Config) -> Result<(), InstallError> {
    make(dir)?;
    // Libraries from CNI 1.1 on choose from `cniVersions`; older ones, as in containerd 1.6, know 1.0.0 at most.
    let conflist = json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": NETWORK,
        "plugins": [{ "type": PLUGIN_NAME, "runDir": config.run_dir }],
    });
    let path = dir.join(CONFLIST);
    let text = format!("{conflist:#}\n");
    if fs::read(&path).ok().as_deref() != Some(text.as_bytes()) {
        write(&path, text.as_bytes(), 0o644)?;
    }
    for other in before(dir, CONFLIST) {
        let other = other.display();
        tracing::warn!(file = %other, "the container runtime uses this network instead of ours, its name comes first; remove it");
    }
    Ok(())
}

/// Removes the network's configuration.
///
/// # Errors
/// It is there and cannot be removed.
pub fn remove_conflist(dir: &Path) -> Result<(), InstallError> {
    remove(&dir.join(CONFLIST))
}

/// Removes the plugin; a loopback plugin only if it is ours.
///
/// # Errors
/// A file is there and cannot be removed.
pub(crate) fn remove_plugin(dir: &Path) -> Result<(), InstallError> {
    let loopback = dir.join(LOOPBACK);
    if fs::read_link(&loopback).is_ok_and(|target| target == Path::new(PLUGIN_NAME)) {
        remove(&loopback)?;
    }
    remove(&dir.join(PLUGIN_NAME))
}

/// Networks that a runtime would take before this one.
fn before(dir: &Path, name: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let network = |path: &Path| {
        path.extension()
            .is_some_and(|it| it == "conflist" || it == "conf" || it == "json")
    };
    let mut found: Vec<_> = entries
        .filter(|entry| entry.file_name().as_encoded_bytes() < name.as_bytes())
        .map(|entry| entry.path())
        .filter(|path| network(path))
        .collect();
    found.sort();
    found
}

fn make(dir: &Path) -> Result<(), InstallError> {
    fs::create_dir_all(dir).map_err(|source| InstallError {
        what: "cannot make",
        path: dir.to_owned(),
        source,
    })
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), InstallError> {
    let mut new = path.as_os_str().to_owned();
    // Not a name that a runtime would read.
    new.push(format!(".new-{}", std::process::id()));
    let new = PathBuf::from(new);
    let put = || {
        let mut file = File::create(&new)?;
        file.write_all(content)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        drop(file);
        fs::rename(&new, path)
    };
    put().map_err(|source| {
        // Perhaps it was not even made.
        let _ = fs::remove_file(&new);
        InstallError {
            what: "cannot write",
            path: path.to_owned(),
            source,
        }
    })
}

/// Removes a file, if it is there.
pub(crate) fn remove(path: &Path) -> Result<(), InstallError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(InstallError {
            what: "cannot remove",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}
