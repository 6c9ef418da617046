//! `fairlead store`: snapshot, restore, check. The server must not run meanwhile: the store is locked.

use super::{
    flags::{StoreArgs, StoreCommand},
    store_file,
};
use anyhow::Result;
use fairlead_store::RedbStore;

/// Does it, and says what was done.
///
/// # Errors
/// The store cannot be read or written, or is damaged: by its path.
pub(crate) fn main(args: &StoreArgs) -> Result<()> {
    let file = store_file(&args.data_dir);
    match &args.command {
        StoreCommand::Snapshot { file: to } => {
            let revision = RedbStore::copy(&file, to)?;
            println!("snapshot of revision {revision} in {}", to.display());
        }
        StoreCommand::Restore { file: from } => {
            let restored = RedbStore::restore(from, &file)?;
            println!("restored revision {restored} from {}", from.display());
        }
        StoreCommand::Check => {
            let report = RedbStore::check(&file)?;
            println!("{report}");
        }
    }
    Ok(())
}
