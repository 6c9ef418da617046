//! `fairlead image`: images of the running cluster, without a registry.

use super::{containerd, layout::Layout};
use crate::orchestrator::flags::{ImageArgs, ImageCommand};
use anyhow::{Context as _, Result};

/// Runs the command.
///
/// # Errors
/// The cluster does not run, or an archive cannot be imported.
pub(crate) fn main(args: &ImageArgs) -> Result<()> {
    let layout = Layout::of(&args.data_dir, args.run_dir.as_deref())?;
    let socket = containerd::socket_of_running(&layout).with_context(|| {
        format!(
            "no containerd of {} runs: start the cluster, or put the archives into {}, from where the start imports them",
            layout.data.display(),
            layout.images().display()
        )
    })?;
    let ImageCommand::Import { files } = &args.command;
    super::block_on(async {
        for file in files {
            print!("{}", containerd::import_archive(&socket, file).await?);
        }
        Ok(())
    })
}
