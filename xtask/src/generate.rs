//! Generated facts about the API's types: `cargo xtask gen`. Downloads are pinned and kept in a cache outside the
//! repository; the result is checked in, so that building needs no network. Facts only, no prose of upstream.

mod compare;
mod fetch;
mod fixtures;
mod golang;
mod protobuf;
mod published;
mod resolve;

use crate::{progress::Progress, workspace::Workspace};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::{fs, path::Path};

/// The generated file, below the repository's root.
const TYPES: &str = "orchestrator/schema/data/1.36/types.json";

/// The fixtures of the tests, below the repository's root.
const FIXTURES: &str = "orchestrator/schema/tests/data/fixtures.jsonl.gz";

/// Upstream's OpenAPI documents for the tests, below the repository's root.
const PUBLISHED: &str = "orchestrator/schema/tests/data/openapi.jsonl.gz";

/// Writes the generated files; with `check`, says whether they are what would be written.
///
/// # Errors
/// A package could not be fetched or has another checksum, upstream's sources contradict each other, or, with `check`,
/// a file differs.
pub(crate) fn run(workspace: &Workspace, progress: &Progress, check: bool) -> Result<()> {
    let sources = fetch::sources(progress)?;
    let step = progress.begin("reading types");
    let schemas = definitions(&sources.schemas)?;
    let packages = golang::Packages::new(&sources.go);
    let types = resolve::run(packages, &schemas)?;
    compare::run(&types, &schemas)?;
    step.done();
    let path = workspace.root.join(TYPES);
    let old = fs::read_to_string(&path).unwrap_or_default();
    update(&path, &old, &render(&types), check, progress, |path, text| {
        let dir = path.parent().context("no parent")?;
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        fs::write(path, text).with_context(|| path.display().to_string())
    })?;
    let packed = [
        (FIXTURES, fixtures::collect(&sources.go, &types)?),
        (PUBLISHED, published::collect(&sources.go)?),
    ];
    for (path, new) in packed {
        let path = workspace.root.join(path);
        update(&path, &fixtures::read(&path)?, &new, check, progress, fixtures::write)?;
    }
    Ok(())
}

/// The definitions of the published JSON schema, by full name.
fn definitions(path: &Path) -> Result<serde_json::Map<String, Value>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let document: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    match document {
        Value::Object(mut document) => match document.remove("$defs") {
            Some(Value::Object(definitions)) => Ok(definitions),
            _ => bail!("{} has no $defs", path.display()),
        },
        _ => bail!("{} is no object", path.display()),
    }
}

/// One type per line, so that a change of upstream is readable as a diff.
fn render(types: &resolve::Types) -> String {
    let lines: Vec<String> = types.values().map(resolve::Type::to_json).collect();
    format!("[\n{}\n]\n", lines.join(",\n"))
}

fn update(
    path: &Path,
    old: &str,
    new: &str,
    check: bool,
    progress: &Progress,
    write: impl Fn(&Path, &str) -> Result<()>,
) -> Result<()> {
    if old == new {
        progress.there(path.display());
        return Ok(());
    }
    if check {
        let line = old.lines().zip(new.lines()).take_while(|(old, new)| old == new).count() + 1;
        bail!(
            "{} is not what upstream's sources give, from line {line} on: run `cargo xtask gen`",
            path.display()
        );
    }
    write(path, new)?;
    progress.say(format_args!("wrote {}", path.display()));
    Ok(())
}
