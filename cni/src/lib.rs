//! The node network: addresses, links and routes of pods, and the plugin that asks for them.
//!
//! ```text
//! runtime ─▶ fairlead-cni ─ socket ─▶ server ─▶ attach ─▶ store (addresses, journal)
//!                                                 └─────▶ netlink (links, routes of pods)
//! Nodes ─▶ agent ─▶ peers ─▶ host ─▶ netlink (routes to nodes, masquerading, forwarding)
//! ```

mod agent;
mod attach;
mod config;
mod host;
mod install;
mod netlink;
mod peers;
mod server;
mod store;

pub use agent::{collect_garbage, run, uninstall};
pub use config::Config;
pub use fairlead_cni_plugin::{ledger::Key, spec::Failure};
pub use install::{CONFLIST, InstallError, NETWORK, PLUGIN, PLUGIN_NAME, install, remove_conflist, write_conflist};
