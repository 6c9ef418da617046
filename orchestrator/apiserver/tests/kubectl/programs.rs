//! The clients that `cargo xtask setup` put into the tools directory.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program uses a part; nothing else sees it"
)]

#[allow(dead_code, reason = "the parts for BPF")]
#[path = "../../../../xtask/src/bpf.rs"]
mod bpf;
#[path = "../../../../xtask/src/kubectl.rs"]
mod pinned;

use std::path::PathBuf;

/// Minor versions of kubectl, newest first.
pub const KUBECTLS: [&str; 2] = pinned::KUBECTLS;

/// The kubectl of a minor version.
pub fn kubectl(minor: &str) -> PathBuf {
    there(pinned::kubectl(&tools(), minor))
}

/// The program of a package that set-up unpacked: `busybox-static` or `docker-registry`.
pub fn unpacked(package: &str) -> PathBuf {
    let known = pinned::UNPACKED.iter().find(|it| it.0 == package);
    let (_, file) = known.expect("a package that set-up unpacks");
    there(pinned::unpacked(&tools(), package, file))
}

/// The Python that has the Kubernetes client.
pub fn python() -> PathBuf {
    there(pinned::python(&tools()))
}

fn tools() -> PathBuf {
    bpf::tools_dir().expect("set FAIRLEAD_TOOLS, or HOME, to where `cargo xtask setup` puts tools")
}

fn there(program: PathBuf) -> PathBuf {
    assert!(
        program.is_file(),
        "{} is not there; run `cargo xtask setup`",
        program.display()
    );
    program
}
