//! Builds the CNI plugin as a static binary, so that the agent carries it and the node needs no library for it.
//!
//! One target directory serves every profile of the agent (`<target>/cni`): the plugin is the same in all of them.

#[path = "../xtask/src/bpf.rs"]
#[allow(dead_code, reason = "only the clean environment of inner builds is used")]
mod bpf;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

/// The plugin's binary.
const PLUGIN: &str = "fairlead-cni";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Puts the plugin at `$OUT_DIR/fairlead-cni`.
fn build() -> Result<(), String> {
    let workspace = required("CARGO_MANIFEST_DIR")?.join("..");
    let out_dir = required("OUT_DIR")?;
    for input in [
        "cni/plugin",
        "Cargo.toml",
        "Cargo.lock",
        "cni/build.rs",
        "xtask/src/bpf.rs",
    ] {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    let target = env::var("TARGET").map_err(|_| "TARGET is unset: cargo runs this script".to_owned())?;
    // <target>/<profile>/build/<package>/out
    let target_dir = out_dir.ancestors().nth(4).unwrap_or(&out_dir).join("cni");
    compile(&workspace, &target_dir, &target)?;
    let built = target_dir.join(&target).join("release").join(PLUGIN);
    let plugin = out_dir.join(PLUGIN);
    fs::copy(&built, &plugin).map_err(|error| format!("{} to {}: {error}", built.display(), plugin.display()))?;
    Ok(())
}

fn compile(workspace: &Path, target_dir: &Path, target: &str) -> Result<(), String> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        if bpf::leaks(&name) {
            cargo.env_remove(name);
        }
    }
    cargo
        .current_dir(workspace)
        .args(["build", "--package", "fairlead-cni-plugin", "--bin", PLUGIN, "--release"])
        // With a target, flags are for the plugin alone: build scripts and macros cannot be static.
        .args(["--target", target, "--target-dir"])
        .arg(target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\x1f-Crelocation-model=static")
        // Small, and quick to start: it is started for every sandbox.
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    let output = cargo.output().map_err(|error| format!("cargo: {error}"))?;
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "the CNI plugin did not build ({}); the compiler's words are above. It is linked statically: the C library's \
         archive (libc.a, in the same package as its headers) has to be there",
        output.status
    ))
}

/// A path that cargo gives to every build script.
fn required(name: &str) -> Result<PathBuf, String> {
    env::var_os(name)
        .map(PathBuf::from)
        .ok_or_else(|| format!("{name} is unset: cargo runs this script"))
}
