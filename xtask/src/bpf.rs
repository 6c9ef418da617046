//! How the BPF object is built: the pinned linker, the flags and the environment, written once.
//!
//! `proxy/build.rs` includes this file by path, so it uses nothing but std; so does `cni/build.rs`, for [`leaks`].

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Command,
};

/// Version of `bpf-linker` that is installed and used. Its default features load the LLVM of the rustc in use.
pub(crate) const LINKER_VERSION: &str = "0.10.4";
/// The binary of the package of [`cargo`]; also the name of the object.
pub(crate) const OBJECT: &str = "fairlead-bpf";
/// Little-endian BPF without an operating system.
pub(crate) const TARGET: &str = "bpfel-unknown-none";
/// Overrides which linker is used: a path.
pub(crate) const LINKER_VARIABLE: &str = "FAIRLEAD_BPF_LINKER";

/// Variables of the outer cargo or of the user that the inner build keeps. The rest of `CARGO*` and `RUST*` would
/// leak flags, wrappers (clippy) and target directories of a host build into the kernel's.
const KEPT: [&str; 11] = [
    "CARGO",
    "CARGO_HOME",
    "CARGO_HTTP_*",
    "CARGO_MAKEFLAGS",
    "CARGO_NET_*",
    "CARGO_REGISTR*",
    "CARGO_SOURCE_*",
    "CARGO_TERM_*",
    "RUSTC",
    "RUSTUP_*",
    "RUST_BACKTRACE",
];

/// Where installed tools live: `$FAIRLEAD_TOOLS` (absolute), else `$XDG_CACHE_HOME/fairlead/tools`, else `~/.cache/fairlead/tools`.
/// `None` when no variable says where.
pub(crate) fn tools_dir() -> Option<PathBuf> {
    if let Some(dir) = variable("FAIRLEAD_TOOLS") {
        return Some(dir.into());
    }
    let cache = variable("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache")))?;
    Some(cache.join("fairlead/tools"))
}

/// The linker to use: `$FAIRLEAD_BPF_LINKER`, the pinned one in [`tools_dir`], `bpf-linker` on `PATH`; in this order.
///
/// # Errors
/// Where it was looked for.
pub(crate) fn find_linker() -> Result<PathBuf, String> {
    if let Some(path) = variable(LINKER_VARIABLE) {
        let path = PathBuf::from(path);
        return if path.is_absolute() && path.is_file() {
            Ok(path)
        } else {
            Err(format!(
                "{LINKER_VARIABLE} names {}, which is not the absolute path of a file",
                path.display()
            ))
        };
    }
    let pinned = tools_dir().map(|tools| pinned_linker(&tools));
    if let Some(linker) = pinned.as_ref().filter(|path| path.is_file()) {
        return Ok(linker.clone());
    }
    let path = variable("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|dir| dir.join("bpf-linker"))
        .find(|path| path.is_file())
        .ok_or_else(|| match pinned {
            Some(pinned) => format!("bpf-linker is neither at {} nor on PATH", pinned.display()),
            None => "bpf-linker is not on PATH, and no tools directory is known: HOME is unset".to_owned(),
        })
}

/// Where the pinned linker is in a tools directory.
pub(crate) fn pinned_linker(tools: &Path) -> PathBuf {
    tools.join(format!("bpf-linker-{LINKER_VERSION}/bin/bpf-linker"))
}

/// The sysroot of the rustc in use (`$RUSTC`, else `rustc` on `PATH`).
///
/// # Errors
/// What could not be run.
pub(crate) fn sysroot() -> Result<PathBuf, String> {
    let rustc = variable("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(&rustc)
        .args(["--print", "sysroot"])
        .output()
        .map_err(|error| format!("{}: {error}", rustc.display()))?;
    if !output.status.success() {
        return Err(format!("{} --print sysroot: {}", rustc.display(), output.status));
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Where a sysroot keeps the sources of the standard library.
pub(crate) fn library_dir(sysroot: &Path) -> PathBuf {
    sysroot.join("lib/rustlib/src/rust/library")
}

/// Whether the sources that `-Z build-std` compiles are there; its resolver wants the lock file too.
pub(crate) fn has_library(sysroot: &Path) -> bool {
    let library = library_dir(sysroot);
    library.join("core/src/lib.rs").is_file() && library.join("Cargo.lock").is_file()
}

/// `cargo <subcommand>` for the BPF programs: package, target, flags and a clean environment. Whoever links says with
/// what in `CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER`.
///
/// `arch` is the architecture of the kernel that will load the object, as in `CARGO_CFG_TARGET_ARCH`; it selects the
/// layout of `pt_regs` in aya-ebpf.
pub(crate) fn cargo(subcommand: &str, workspace: &Path, target_dir: &Path, sysroot: &Path, arch: &str) -> Command {
    let mut command = Command::new(variable("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        if leaks(&name) {
            command.env_remove(name);
        }
    }
    let arch = if arch.starts_with("riscv64") { "riscv64" } else { arch };
    let flags = [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        // BTF is made from debug information; it gives maps and programs their types in bpftool and verifier logs.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // 32-bit arithmetic and jumps; every kernel from 5.1 on knows them, and the lowest that we serve is 5.10.
        "-Ctarget-cpu=v3".to_owned(),
    ];
    // The linker loads rustc's LLVM and looks here first; without rustup nobody else says where it is.
    let libraries = env::join_paths(
        std::iter::once(sysroot.join("lib")).chain(env::split_paths(&variable("LD_LIBRARY_PATH").unwrap_or_default())),
    );
    command
        .current_dir(workspace)
        .arg(subcommand)
        .args(["--package", "fairlead-proxy-ebpf", "--bin", OBJECT, "--release", "--target", TARGET])
        .args(["-Z", "build-std=core", "--target-dir"])
        .arg(target_dir)
        .env("RUSTC_BOOTSTRAP", "1") // build-std on a stable compiler
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // The linker optimises the whole program itself, from bitcode that rustc must not have digested before.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_STRIP", "none");
    if let Ok(libraries) = libraries {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    command
}

/// A variable, unless it is unset or empty.
fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// Whether an inner build must not see a variable of the outer one.
pub(crate) fn leaks(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    // What cargo sets for build scripts only, beside CARGO*: aya's own build script must get its own.
    let of_build_script = name.starts_with("DEP_")
        || ["DEBUG", "HOST", "NUM_JOBS", "OPT_LEVEL", "OUT_DIR", "PROFILE", "TARGET"].contains(&name);
    let kept = KEPT.iter().any(|kept| {
        kept.strip_suffix('*')
            .map_or(name == *kept, |prefix| name.starts_with(prefix))
    });
    of_build_script || ((name.starts_with("CARGO") || name.starts_with("RUST")) && !kept)
}
