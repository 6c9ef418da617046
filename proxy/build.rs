//! Builds the BPF object for the kernel, so that the agent carries it.
//!
//! One target directory serves every profile of the agent (`<target>/bpf`): the object is the same in all of them.

#[path = "../xtask/src/bpf.rs"]
mod bpf;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Puts the object at `$OUT_DIR/fairlead-bpf`.
fn build() -> Result<(), String> {
    let workspace = required("CARGO_MANIFEST_DIR")?.join("..");
    let out_dir = required("OUT_DIR")?;
    let object = out_dir.join(bpf::OBJECT);
    for input in [
        "proxy-ebpf",
        "proxy-common",
        "Cargo.toml",
        "Cargo.lock",
        "proxy/build.rs",
        "xtask/src/bpf.rs",
    ] {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    for variable in [
        bpf::LINKER_VARIABLE,
        "FAIRLEAD_SKIP_BPF",
        "FAIRLEAD_TOOLS",
        "XDG_CACHE_HOME",
        "HOME",
    ] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if env::var_os("FAIRLEAD_SKIP_BPF").is_some_and(|value| value == "1") {
        println!(
            "cargo::warning=FAIRLEAD_SKIP_BPF=1: built without BPF programs; the ebpf dataplane will refuse to start"
        );
        return fs::write(&object, []).map_err(|error| format!("{}: {error}", object.display()));
    }
    if env::var_os("CARGO_CFG_TARGET_ENDIAN").is_some_and(|endian| endian != "little") {
        return Err("the map ABI is little-endian, the target is not; build for a little-endian target".into());
    }

    let remedy =
        "run `cargo xtask setup` once; for checks that never run the agent, FAIRLEAD_SKIP_BPF=1 leaves the object out";
    let linker = bpf::find_linker().map_err(|cause| format!("the BPF object cannot be linked: {cause}; {remedy}"))?;
    println!("cargo::rerun-if-changed={}", linker.display());
    let sysroot = bpf::sysroot().map_err(|cause| format!("the BPF object cannot be built: {cause}"))?;
    if !bpf::has_library(&sysroot) {
        let library = bpf::library_dir(&sysroot);
        let library = library.display();
        return Err(format!(
            "the BPF object needs the sources of `core`, and {library} lacks them; {remedy}"
        ));
    }

    // <target>/<profile>/build/<package>/out
    let target_dir = out_dir.ancestors().nth(4).unwrap_or(&out_dir).join("bpf");
    let arch =
        env::var("CARGO_CFG_TARGET_ARCH").map_err(|_| "CARGO_CFG_TARGET_ARCH: cargo runs this script".to_owned())?;
    compile(&workspace, &target_dir, &sysroot, &linker, &arch)?;
    let built = target_dir.join(bpf::TARGET).join("release").join(bpf::OBJECT);
    fs::copy(&built, &object).map_err(|error| format!("{} to {}: {error}", built.display(), object.display()))?;
    Ok(())
}

fn compile(workspace: &Path, target_dir: &Path, sysroot: &Path, linker: &Path, arch: &str) -> Result<(), String> {
    let mut cargo = bpf::cargo("build", workspace, target_dir, sysroot, arch);
    cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker);
    let output = cargo.output().map_err(|error| format!("cargo: {error}"))?;
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "the BPF object did not build ({}); the compiler's words are above",
        output.status
    ))
}

/// A path that cargo gives to every build script.
fn required(name: &str) -> Result<PathBuf, String> {
    env::var_os(name)
        .map(PathBuf::from)
        .ok_or_else(|| format!("{name} is unset: cargo runs this script"))
}
