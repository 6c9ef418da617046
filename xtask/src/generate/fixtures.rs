//! Upstream's wire fixtures: one object per kind as protobuf and as JSON, to test our decoder against.

use super::resolve::Types;
use crate::tools;
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The folder of fixtures below one of the Go roots.
const FOLDER: &str = "k8s.io/api/testdata/HEAD";

/// One line per fixture of a known kind: `{"name", "protobuf" (hexadecimal), "json"}`, in the order of names.
///
/// # Errors
/// A fixture is not readable, or there are none.
pub(super) fn collect(roots: &[PathBuf], types: &Types) -> Result<String> {
    let dir = roots.iter().map(|root| root.join(FOLDER)).find(|dir| dir.is_dir());
    let dir = dir.with_context(|| format!("no package has {FOLDER}"))?;
    let known: BTreeSet<String> = types.values().flat_map(super::resolve::Type::api_versions).collect();
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".pb").map(str::to_owned));
    }
    let mut lines = String::new();
    for name in &names {
        let file = |suffix: &str| dir.join(format!("{name}.{suffix}"));
        let text = fs::read_to_string(file("json")).with_context(|| name.clone())?;
        let object: Value = serde_json::from_str(&text).with_context(|| name.clone())?;
        let kind = |key: &str| object[key].as_str().unwrap_or_default();
        if !known.contains(&format!("{} {}", kind("apiVersion"), kind("kind"))) {
            continue;
        }
        let bytes = fs::read(file("pb")).with_context(|| name.clone())?;
        let hexadecimal = bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        let line = json!({"name": name, "protobuf": hexadecimal, "json": object});
        let _ = writeln!(lines, "{line}");
    }
    if lines.is_empty() {
        bail!("{} has no fixture of a known kind", dir.display());
    }
    Ok(lines)
}

/// What a compressed file holds; nothing where there is none.
///
/// # Errors
/// It is not gzip.
pub(super) fn read(path: &Path) -> Result<String> {
    if !path.is_file() {
        return Ok(String::new());
    }
    tools::quietly(Command::new("gzip").arg("-dc").arg(path))
}

/// Writes a compressed file.
///
/// # Errors
/// The folder is not writable, or `gzip` failed.
pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    let dir = path.parent().context("no parent")?;
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let plain = path.with_extension("part");
    fs::write(&plain, text).with_context(|| plain.display().to_string())?;
    let file = fs::File::create(path).with_context(|| path.display().to_string())?;
    // Without the name and time of the input, equal input gives equal output.
    let done = Command::new("gzip")
        .args(["-9", "-n", "-c"])
        .arg(&plain)
        .stdin(Stdio::null())
        .stdout(file)
        .status();
    fs::remove_file(&plain).with_context(|| plain.display().to_string())?;
    match done.context("gzip could not start")? {
        status if status.success() => Ok(()),
        status => bail!("gzip: {status}"),
    }
}
