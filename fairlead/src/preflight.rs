//! What the process may do, checked before anything is changed so that the error names the cause.

use anyhow::{Context, bail};

/// Capabilities that the agent needs, by bit number (linux/capability.h), and what for.
const NEEDED: [(u32, &str, &str); 3] = [
    (12, "CAP_NET_ADMIN", "attaching programs to links"),
    (38, "CAP_PERFMON", "loading programs"),
    (39, "CAP_BPF", "creating maps and loading programs"),
];
/// Includes the last two on every kernel.
const SYS_ADMIN: u32 = 21;

/// Checks this process's effective capabilities.
///
/// # Errors
/// One is missing: which, what for, and how to give it.
pub(crate) fn check_capabilities() -> anyhow::Result<()> {
    let path = "/proc/self/status";
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}; mount /proc"))?;
    let set = effective(&text).with_context(|| format!("{path} has no CapEff line"))?;
    if let Some((name, purpose)) = missing(set) {
        bail!(
            "{name} is missing, needed for {purpose}; run as root, or in a pod with securityContext.privileged or \
             capabilities.add: [BPF, PERFMON, NET_ADMIN, SYS_ADMIN]"
        );
    }
    Ok(())
}

fn effective(status: &str) -> Option<u64> {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

fn missing(set: u64) -> Option<(&'static str, &'static str)> {
    let has = |bit: u32| set & (1 << bit) != 0;
    let lacking = NEEDED
        .iter()
        .find(|(bit, ..)| !(has(*bit) || *bit >= 38 && has(SYS_ADMIN)));
    lacking.map(|(_, name, purpose)| (*name, *purpose))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_first_missing_capability() {
        let name = |set| missing(set).map(|(name, _)| name);
        assert_eq!(name(0), Some("CAP_NET_ADMIN"));
        assert_eq!(name(1 << 12), Some("CAP_PERFMON"));
        assert_eq!(name(1 << 12 | 1 << 38), Some("CAP_BPF"));
        assert_eq!(name(1 << 12 | 1 << 38 | 1 << 39), None);
        assert_eq!(
            name(1 << 12 | 1 << SYS_ADMIN),
            None,
            "before 5.8 there was only CAP_SYS_ADMIN"
        );
        assert_eq!(
            effective("Name:\tx\nCapEff:\t000001ffffffffff\n"),
            Some(0x1ff_ffff_ffff)
        );
    }
}
