//! The unmodified clients that tests drive the API server with, and where set-up puts them.
//!
//! The API server's tests include this file by path, so it uses nothing but std.

use std::path::{Path, PathBuf};

/// Minor versions of kubectl: that of the served API, and the oldest that is supported.
pub(crate) const KUBECTLS: [&str; 2] = ["1.36", "1.32"];

/// Version of the Python client.
pub(crate) const PYTHON_CLIENT: &str = "36.0.2";

/// The root of an unpacked package of kubectl in a tools directory.
pub(crate) fn kubectl_root(tools: &Path, minor: &str) -> PathBuf {
    tools.join(format!("kubectl-{minor}"))
}

/// The program of a minor version in a tools directory.
pub(crate) fn kubectl(tools: &Path, minor: &str) -> PathBuf {
    kubectl_root(tools, minor).join("usr/bin/kubectl")
}

/// The virtual environment of the Python client in a tools directory.
pub(crate) fn python_root(tools: &Path) -> PathBuf {
    tools.join(format!("python-kubernetes-{PYTHON_CLIENT}"))
}

/// A file of a package that was unpacked for tests: of `busybox-static`, a shell in one file; of `docker-registry`, a registry.
pub(crate) fn unpacked(tools: &Path, package: &str, file: &str) -> PathBuf {
    unpacked_root(tools, package).join(file)
}

/// Where such a package was unpacked.
pub(crate) fn unpacked_root(tools: &Path, package: &str) -> PathBuf {
    tools.join(format!("package-{package}"))
}

/// Packages that are unpacked for tests, and what each is needed for.
pub(crate) const UNPACKED: [(&str, &str); 2] = [
    ("busybox-static", "bin/busybox"),
    ("docker-registry", "usr/bin/docker-registry"),
];

/// The Python that has the client.
pub(crate) fn python(tools: &Path) -> PathBuf {
    python_root(tools).join("bin/python")
}
