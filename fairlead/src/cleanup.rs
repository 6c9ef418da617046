//! `fairlead cleanup`.

use crate::{flags::CleanupArgs, joints};
use ::proxy::config::Host;
use std::path::PathBuf;

/// Removes everything and says what it was.
///
/// # Errors
/// Something could not be removed; the rest has been.
pub(crate) fn main(args: &CleanupArgs) -> anyhow::Result<()> {
    let cgroup_root = match args.cgroup_root.as_deref() {
        Some("none") => None,
        Some(path) => Some(PathBuf::from(path)),
        None => Host::read()?.cgroup2,
    };
    let removed = joints::cleanup(&args.bpffs, cgroup_root.as_deref())?;
    for what in &removed {
        println!("removed {what}");
    }
    if removed.is_empty() {
        println!("nothing to remove");
    }
    Ok(())
}
