//! Errors, split by what the caller does next.

use std::{fmt, io};

/// One object (or part of one) that was left out: bad input hurts only itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Skipped {
    /// Which object, as a user names it: `Service default/web`, `EndpointSlice default/web-x7k2p`,
    /// `shop.yaml, document 3`.
    pub object: String,
    /// Path of the field, as in `spec.ports[1].nodePort`; empty for the whole object.
    pub field: String,
    /// What is wrong and, where there is one, the remedy.
    pub reason: String,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.object)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.reason)
    }
}

/// Why a plan did not reach the kernel.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Wait for a human.
    #[error("map {map} is full at {max_entries} entries; raise --{flag}")]
    Full {
        /// Map name.
        map: &'static str,
        /// Its size.
        max_entries: u32,
        /// The flag that raises it, without dashes.
        flag: &'static str,
    },
    /// Observe and retry.
    #[error("{op}: {source}")]
    Kernel {
        /// What was tried.
        op: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Fall back, at start only.
    #[error("{dataplane} needs {feature}")]
    Unsupported {
        /// [`crate::dataplane::Dataplane::NAME`].
        dataplane: &'static str,
        /// The missing kernel feature and the remedy.
        feature: String,
    },
}
