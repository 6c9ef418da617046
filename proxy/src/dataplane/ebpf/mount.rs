//! What the host must offer before anything is loaded: a BPF file system to pin in, and a loopback that takes packets
//! between the node's own addresses.

use super::load::kernel;
use crate::error::ApplyError;
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use std::{fs, io, path::Path};

/// Lets `lo` deliver packets whose source is one of the node's own addresses: what an answer to the node's own socket
/// looks like once the frontend's address, also the node's, is back in it.
const ACCEPT_LOCAL: &str = "/proc/sys/net/ipv4/conf/lo/accept_local";

/// Mounts a BPF file system at `path` unless one is there.
///
/// # Errors
/// The directory cannot be made or the mount is refused.
pub fn ensure_bpffs(path: &Path) -> Result<(), ApplyError> {
    fs::create_dir_all(path).map_err(kernel(format!("create {}", path.display())))?;
    let found = statfs(path).map_err(|error| kernel(format!("look at {}", path.display()))(error.into()))?;
    if found.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), None::<&str>)
        .map_err(|error| kernel(format!("mount a BPF file system at {} (--bpffs)", path.display()))(error.into()))
}

/// Index of `lo`, made ready to deliver packets between this node's own addresses.
///
/// # Errors
/// There is no `lo`.
pub fn loopback() -> Result<u32, ApplyError> {
    let index = nix::net::if_::if_nametoindex("lo").map_err(|error| kernel("find interface lo")(error.into()))?;
    if let Err(error) = fs::write(ACCEPT_LOCAL, "1") {
        tracing::warn!(%error, "{ACCEPT_LOCAL} cannot be set: this node reaches its own NodePorts only through socket load balancing");
    }
    Ok(index)
}

/// Undoes [`loopback`]'s change. A host without the file has nothing to undo.
pub(super) fn restore_loopback() -> io::Result<()> {
    match fs::write(ACCEPT_LOCAL, "0") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
