//! Controllers that are about the cluster rather than about workloads.

mod accounts;
mod collect;
mod config;
mod discovery;
mod endpoints;
mod namespaces;
mod nodes;
mod podview;

pub use config::Config;

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
        namespaces::controller,
        collect::collector::controller,
        nodes::lifecycle::controller,
        nodes::evictions::controller,
        nodes::cidrs::controller,
    ]
}
