//! Controllers that are about the cluster rather than about workloads.

mod accounts;
mod config;
mod endpoints;
mod podview;

pub use config::{AddressPool, AuthorityPem, Config};

use crate::frame::Constructor;

/// Every controller of this folder.
#[must_use]
pub fn all() -> Vec<Constructor> {
    vec![
        endpoints::slices::controller,
        endpoints::objects::controller,
        endpoints::mirroring::controller,
        accounts::service_account,
        accounts::root_ca,
    ]
}
