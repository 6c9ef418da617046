//! Logs of containers: where they lie, how they are read, how they are kept small.
//!
//! The runtime writes them, one record per line ([`parse`]). They lie at
//! `<log dir>/<namespace>_<name>_<uid>/<container>/<restart count>.log`, as upstream's kubelet has it, so that collectors of
//! logs find them.

mod follow;
pub mod parse;
mod read;
#[cfg(test)]
#[path = "tests.rs"]
mod reading;
mod rotate;
mod select;
mod tail;

pub use parse::Stream;
pub use read::{Alive, LogError, open};
pub use rotate::{Active, Limits, Reopen, Rotator};
pub use select::{Options, Selector};
pub use tail::start_of_last;

use std::path::{Path, PathBuf};

/// Directory of a pod's logs: CRI's `PodSandboxConfig.log_directory`.
#[must_use]
pub fn pod_directory(log_dir: &Path, namespace: &str, name: &str, uid: &str) -> PathBuf {
    log_dir.join(format!("{namespace}_{name}_{uid}"))
}

/// A container's log file below its pod's directory: CRI's `ContainerConfig.log_path`. `restarts` is the count of restarts
/// before this run.
#[must_use]
pub fn container_file(container: &str, restarts: u32) -> PathBuf {
    Path::new(container).join(format!("{restarts}.log"))
}

/// The file that was `path` before a rotation at this time.
fn rotated_name(path: &Path, time: jiff::Timestamp) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(time.strftime(".%Y%m%d-%H%M%S.%6f").to_string());
    PathBuf::from(name)
}

/// What a rotation made of `path`, the oldest first: times in names sort as text.
///
/// # Errors
/// As the system says.
fn rotated(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let other = entry.file_name();
        let rest = other.as_encoded_bytes().strip_prefix(name.as_encoded_bytes());
        if rest.is_some_and(|rest| rest.starts_with(b".")) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout() {
        let directory = pod_directory(Path::new("/var/log/pods"), "default", "web", "u-1");
        let file = directory.join(container_file("nginx", 2));
        assert_eq!(file, Path::new("/var/log/pods/default_web_u-1/nginx/2.log"));
        let time = "2026-11-20T10:00:00.5Z".parse().unwrap();
        assert_eq!(
            rotated_name(&file, time),
            Path::new("/var/log/pods/default_web_u-1/nginx/2.log.20261120-100000.500000")
        );
    }

    #[test]
    fn rotated_files_are_found_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let names = [
            "0.log.20261120-100001.000000",
            "0.log.20261120-100000.500000",
            "0.log",
            "1.log",
            "0.logs",
        ];
        for name in names {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        let found = rotated(&directory.path().join("0.log")).unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|it| it.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(found, ["0.log.20261120-100000.500000", "0.log.20261120-100001.000000"]);
    }
}
