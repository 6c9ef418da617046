//! The cluster's own certificates: one CA in the data directory, everything else issued by it and renewed in time.

pub mod authority;
pub mod csr;
pub mod files;
pub mod identity;
pub mod kubeconfig;
pub mod tls;

#[cfg(test)]
mod tests;

pub use authority::Authority;
pub use files::PkiError;
pub use identity::{Identity, Profile};
