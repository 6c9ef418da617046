//! Packs the descriptions of types and fields for `kubectl explain` into a compressed table.
//!
//! They are the doc comments of the crate `k8s-openapi`, which generates them from Kubernetes' own schema. Its sources
//! are read where cargo keeps them; compiling the crate would cost half a minute and give nothing more.

use flate2::{Compression, write::GzEncoder};
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

/// The module of the version that is served.
const MODULE: &str = "src/v1_36";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let manifest_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let lock = manifest_dir.join("../../Cargo.lock");
    println!("cargo::rerun-if-changed={}", lock.display());
    let sources = match sources(&manifest_dir) {
        Ok(sources) => sources,
        Err(cause) => {
            println!("cargo::error=the sources of k8s-openapi were not found: {cause}");
            return;
        }
    };
    let mut texts = Map::new();
    let mut folders = vec![sources.join(MODULE)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of k8s-openapi is readable") {
            let path = entry.expect("a folder of k8s-openapi is readable").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = fs::read_to_string(&path).expect("a source of k8s-openapi is text");
                texts.extend(describe(&text));
            }
        }
    }
    if texts.len() < 500 {
        println!(
            "cargo::error=k8s-openapi has descriptions of {} types only; build.rs must learn its new form",
            texts.len()
        );
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("docs.json.gz");
    let file = fs::File::create(&out).expect("OUT_DIR is writable");
    let mut packed = GzEncoder::new(file, Compression::best());
    packed
        .write_all(Value::Object(texts).to_string().as_bytes())
        .expect("OUT_DIR is writable");
    packed.finish().expect("OUT_DIR is writable");
}

/// Where cargo keeps the sources of k8s-openapi.
fn sources(manifest_dir: &Path) -> Result<PathBuf, String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut metadata = Command::new(cargo);
    metadata
        .current_dir(manifest_dir)
        .args(["metadata", "--format-version=1", "--locked"]);
    let output = metadata.output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
    let packages = metadata["packages"]
        .as_array()
        .ok_or("cargo metadata names no packages")?;
    let package = packages.iter().find(|package| package["name"] == "k8s-openapi");
    let manifest = package.and_then(|package| package["manifest_path"].as_str());
    let manifest = manifest.ok_or("it is no dependency of the workspace")?;
    Ok(Path::new(manifest)
        .parent()
        .ok_or("its manifest has no folder")?
        .to_owned())
}

/// The type that a source declares: its full name, and texts by JSON name of the field; its own by the empty name.
fn describe(source: &str) -> Option<(String, Value)> {
    let name = source.lines().next()?.strip_prefix("// Generated from definition ")?;
    let mut texts: BTreeMap<&str, String> = BTreeMap::new();
    let mut json_names: BTreeMap<&str, &str> = BTreeMap::new();
    let mut comment: Vec<&str> = Vec::new();
    let mut declared = false;
    for line in source.lines() {
        let line = line.trim();
        if let Some(text) = line.strip_prefix("///") {
            comment.push(text.strip_prefix(' ').unwrap_or(text));
            continue;
        }
        if line.starts_with("#[") {
            continue;
        }
        let text = comment.join("\n");
        if !declared && (line.starts_with("pub struct ") || line.starts_with("pub enum ")) {
            texts.insert("", text);
            declared = true;
        } else if let Some((field, _)) = line.strip_prefix("pub ").and_then(|rest| rest.split_once(": ")) {
            texts.insert(field, text);
        } else if let Some((json_name, field)) = line.trim_end_matches(',').split_once(" => Field::Key_") {
            json_names.insert(field, json_name.trim_matches('"'));
        }
        comment.clear();
    }
    let by_name = texts
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(field, text)| {
            let name = json_names.get(field).copied().unwrap_or(field);
            (name.to_owned(), text.into())
        });
    Some((name.to_owned(), Value::Object(by_name.collect())))
}
