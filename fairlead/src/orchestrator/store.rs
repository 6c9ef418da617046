//! `fairlead store`: snapshot, restore, check. The server must not run meanwhile: the store is locked.

use super::{
    flags::{StoreArgs, StoreCommand},
    store_directory,
};
use anyhow::{Context as _, Result};
use fairlead_store::{
    Backend as _, RedbStore,
    redb_store::{self, Options},
};
use tokio::runtime::{Builder, Runtime};

/// Does it, and says what was done.
///
/// # Errors
/// The store cannot be read or written, or is damaged: by its path.
pub(crate) fn main(args: &StoreArgs) -> Result<()> {
    let directory = store_directory(&args.data_dir);
    match &args.command {
        StoreCommand::Snapshot { file: to } => {
            let store = RedbStore::open(&directory, Options::default())?;
            let revision = runtime()?.block_on(store.snapshot(to))?;
            store.close();
            println!("snapshot of revision {revision} in {}", to.display());
        }
        StoreCommand::Restore { file: from } => {
            let restored = redb_store::restore(from, &directory)?;
            println!("restored revision {restored} from {}", from.display());
        }
        StoreCommand::Check => {
            let report = redb_store::check(&directory)?;
            println!(
                "sound: {} objects at revision {}, history of {} writes from revision {}",
                report.objects, report.revision, report.writes, report.oldest
            );
        }
    }
    Ok(())
}

fn runtime() -> Result<Runtime> {
    Builder::new_current_thread()
        .build()
        .context("cannot start the runtime")
}
