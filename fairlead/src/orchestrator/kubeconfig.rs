//! `fairlead kubeconfig`: a certificate for a user, and the file to use it with.

use super::flags::KubeconfigArgs;
use anyhow::{Context as _, Result, bail};
use fairlead_apiserver::pki::{Authority, Identity, Profile, kubeconfig::kubeconfig};
use std::{
    fs,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

/// Prints a kubeconfig, or writes it to a file.
///
/// # Errors
/// There is no authority yet, or the file cannot be written.
pub(crate) fn main(args: &KubeconfigArgs) -> Result<()> {
    let directory = args.data_dir.join("pki");
    if !directory.is_dir() {
        bail!(
            "{} holds no certificate authority: start `fairlead apiserver --data-dir {}` once, or name its data directory",
            directory.display(),
            args.data_dir.display()
        );
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock is before 1970")?;
    let now = i64::try_from(now.as_secs())?;
    let authority = Authority::open(&directory, now)?;
    let profile = match (args.user.as_str(), args.group.as_deref()) {
        ("admin", None) => Profile::admin(),
        (user, group) => Profile::user(user, group),
    };
    let identity = Identity::issue(&authority, &profile, now)?;
    let text = kubeconfig("fairlead", &args.user, &args.server, &authority, &identity);
    match &args.output {
        Some(file) => write(file, &text),
        None => Ok(std::io::stdout().write_all(text.as_bytes())?),
    }
}

/// Writes a file that its owner alone may read.
pub(super) fn write(file: &Path, text: &str) -> Result<()> {
    let shown = file.display();
    let temporary = file.with_extension("new");
    let written = (|| {
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(&temporary)?.write_all(text.as_bytes())?;
        fs::rename(&temporary, file)
    })();
    written.with_context(|| format!("{shown} cannot be written"))
}

/// Makes a directory that its owner alone may enter.
pub(super) fn make_directory(path: &Path) -> Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
        .create(path)
        .with_context(|| format!("--data-dir {} cannot be made", path.display()))
}
