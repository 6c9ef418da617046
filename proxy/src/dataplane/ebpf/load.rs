//! Loading the BPF object: map sizes, pins, globals, kernel features.

use super::{object, probe::Features};
use crate::error::ApplyError;
use aya::{Ebpf, EbpfLoader};
use proxy_common::{abi::ABI_VERSION, verdict};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Sizes of the maps, entries. Those per family apply to each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// `FRONTENDS_*`; `--max-frontends`.
    pub frontends: u32,
    /// `BACKENDS_*`; `--max-backends`.
    pub backends: u32,
    /// `SLOTS`; `--max-slots`.
    pub slots: u32,
    /// `FLOWS_*`, two entries per flow; `--max-flows`.
    pub flows: u32,
    /// `AFFINITY_*`; `--max-affinities`.
    pub affinities: u32,
    /// `SOURCE_RANGES_*`; `--max-source-ranges`.
    pub source_ranges: u32,
    /// `SOCKETS_*` and `SOCKET_PEERS_*`, for unconnected datagram sockets; `--max-sockets`.
    pub sockets: u32,
    /// `FRAGMENTS_*`; `--max-fragments`.
    pub fragments: u32,
}

impl Default for Sizes {
    /// Room for 10 000 services with 10 endpoints each.
    fn default() -> Self {
        Self {
            frontends: 131_072,
            backends: 262_144,
            slots: 524_288,
            flows: 262_144,
            affinities: 65_536,
            source_ranges: 65_536,
            sockets: 65_536,
            fragments: 8_192,
        }
    }
}

impl Sizes {
    /// Every sized map with its size.
    fn by_map(&self) -> [(&'static str, u32); 17] {
        [
            ("FRONTENDS_V4", self.frontends),
            ("FRONTENDS_V6", self.frontends),
            ("SLOTS", self.slots),
            ("BACKENDS_V4", self.backends),
            ("BACKENDS_V6", self.backends),
            ("SOURCE_RANGES_V4", self.source_ranges),
            ("SOURCE_RANGES_V6", self.source_ranges),
            ("FLOWS_V4", self.flows),
            ("FLOWS_V6", self.flows),
            ("AFFINITY_V4", self.affinities),
            ("AFFINITY_V6", self.affinities),
            ("FRAGMENTS_V4", self.fragments),
            ("FRAGMENTS_V6", self.fragments),
            ("SOCKETS_V4", self.sockets),
            ("SOCKETS_V6", self.sockets),
            ("SOCKET_PEERS_V4", self.sockets),
            ("SOCKET_PEERS_V6", self.sockets),
        ]
    }
}

/// Maps of one fixed size, or none, that are kept over restarts too.
const FIXED: [&str; 5] = ["NODE", "DEVICES", "COUNTERS", "STREAMS_V4", "STREAMS_V6"];

/// Where everything of this layout is pinned.
pub fn pin_root(bpffs: &Path) -> PathBuf {
    bpffs.join("fairlead").join(format!("v{ABI_VERSION}"))
}

pub(super) fn kernel(op: impl Into<String>) -> impl FnOnce(io::Error) -> ApplyError {
    let op = op.into();
    move |source| ApplyError::Kernel { op, source }
}

/// An error with all its causes in one line: the loader's own text stops at the first.
pub(super) fn whole(error: &dyn std::error::Error) -> io::Error {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    io::Error::other(text)
}

/// A loaded object.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) bpf: Ebpf,
    /// Whether the maps were already there and may hold a former plan.
    pub(super) adopted: bool,
}

/// Loads the object. With `pins` the maps are kept there; maps of another size than asked for are given up, with the
/// flows in them, because a size cannot be changed in place.
pub(super) fn load(
    sizes: &Sizes,
    pins: Option<&Path>,
    features: &Features,
    log_level: u8,
) -> Result<Loaded, ApplyError> {
    let object = object::object()?;
    let mut loader = EbpfLoader::new();
    let coarse_clock = u8::from(features.coarse_clock);
    loader.override_global("COARSE_CLOCK", &coarse_clock, true);
    loader.override_global("AYA_LOG_LEVEL", &log_level, false);
    for (name, size) in sizes.by_map() {
        loader.map_max_entries(name, size);
    }
    let mut adopted = false;
    let paths: Vec<(&'static str, PathBuf)> = match pins {
        Some(root) => {
            let dir = root.join("maps");
            fs::create_dir_all(&dir).map_err(kernel(format!("create {}", dir.display())))?;
            adopted = keep_fitting(sizes, &dir)?;
            let names = sizes.by_map().into_iter().map(|(name, _)| name).chain(FIXED);
            names.map(|name| (name, dir.join(name))).collect()
        }
        None => Vec::new(),
    };
    for (name, path) in &paths {
        loader.map_pin_path(name, path.as_path());
    }
    let bpf = loader.load(object).map_err(|error| ApplyError::Kernel {
        op: "load the BPF object".into(),
        source: whole(&error),
    })?;
    Ok(Loaded { bpf, adopted })
}

/// Removes pinned maps that do not have the size asked for. Whether any with a plan in it remain.
fn keep_fitting(sizes: &Sizes, dir: &Path) -> Result<bool, ApplyError> {
    let mut fits = true;
    let mut found = false;
    for (name, size) in sizes.by_map() {
        let path = dir.join(name);
        if !path.exists() {
            continue;
        }
        found = true;
        let info = aya::maps::MapInfo::from_pin(&path).map(|info| info.max_entries());
        fits &= info.is_ok_and(|max_entries| max_entries == size);
    }
    // A newer agent may count more verdicts; old sums are of no use to it.
    let counters = dir.join("COUNTERS");
    if aya::maps::MapInfo::from_pin(&counters).is_ok_and(|info| info.max_entries() != verdict::COUNT) {
        fs::remove_file(&counters).map_err(kernel(format!("remove {}", counters.display())))?;
    }
    if fits {
        return Ok(found);
    }
    tracing::warn!(dir = %dir.display(), "map sizes changed: starting with empty maps, flows are forgotten");
    for (name, _) in sizes.by_map() {
        match fs::remove_file(dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(kernel(format!("remove {}/{name}", dir.display()))(error));
            }
            _ => {}
        }
    }
    Ok(false)
}
