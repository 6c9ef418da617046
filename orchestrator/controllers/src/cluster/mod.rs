//! Controllers that are about the cluster rather than about workloads.

mod accounts;
mod balancers;
mod certificates;
mod collect;
mod config;
mod discovery;
mod disruption;
mod endpoints;
mod namespaces;
mod nodes;
mod podgarbage;
mod podview;
mod quota;
mod tokens;

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
        disruption::controller::controller,
        podgarbage::controller,
        tokens::controller,
        quota::controller::controller,
        balancers::controller::controller,
        certificates::controller::controller,
        namespaces::controller,
        collect::collector::controller,
        nodes::lifecycle::controller,
        nodes::evictions::controller,
        nodes::cidrs::controller,
    ]
}
