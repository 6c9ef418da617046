//! What the node has to give.

use std::{collections::BTreeMap, path::Path};

/// Amounts of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Cores.
    pub cpus: u64,
    /// Of `/proc/meminfo`.
    pub memory_bytes: u64,
    /// Size of the file system of the kubelet's directory.
    pub storage_bytes: u64,
    /// Most pods.
    pub pods: u32,
}

impl Capacity {
    /// As `Node.status.capacity` has them.
    pub fn amounts(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("cpu".to_owned(), self.cpus.to_string()),
            ("memory".to_owned(), format!("{}Ki", self.memory_bytes / 1024)),
            (
                "ephemeral-storage".to_owned(),
                format!("{}Ki", self.storage_bytes / 1024),
            ),
            ("pods".to_owned(), self.pods.to_string()),
        ])
    }
}

/// Reads them; what cannot be read is 0 and told in the log.
pub fn read(max_pods: u32, root_dir: &Path) -> Capacity {
    let cpus = std::thread::available_parallelism().map_or(1, |it| it.get() as u64);
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory_bytes = total_memory(&meminfo).unwrap_or_else(|| {
        tracing::error!("/proc/meminfo has no MemTotal: no pod that asks for memory fits");
        0
    });
    let existing = root_dir.ancestors().find(|it| it.exists()).unwrap_or(Path::new("/"));
    let storage_bytes = match nix::sys::statvfs::statvfs(existing) {
        Ok(it) => it.blocks() * it.fragment_size(),
        Err(error) => {
            tracing::error!(path = %existing.display(), error = %error, "the size of the file system is unknown");
            0
        }
    };
    Capacity {
        cpus,
        memory_bytes,
        storage_bytes,
        pods: max_pods,
    }
}

fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|it| it.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_meminfo() {
        assert_eq!(
            total_memory("MemTotal:       24576 kB\nMemFree: 1 kB\n"),
            Some(24576 * 1024)
        );
        assert_eq!(total_memory("MemFree: 1 kB\n"), None);
        assert_eq!(total_memory("MemTotal: many kB\n"), None);
    }
}
