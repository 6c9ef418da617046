//! End-to-end harness: namespaces as hosts, real clients and servers.
//!
//! ```text
//! Topology ─ builds ─▶ namespaces, links, cgroups     Actor ─ JSON lines ─▶ fairlead-actor (one process per namespace)
//! Agent ─ runs ─▶ `fairlead proxy` on a node          manifest ─ writes ─▶ what the agent reads
//! ```
//!
//! Nothing here has a name on the host: a namespace lives as long as its actor, an actor as long as the pipe to the
//! test process, and directories and cgroups are removed by a small reaper process that holds a pipe too. So the host
//! stays as it was whether a test passes, panics or is killed.

pub mod actor;
pub mod agent;
pub mod cluster;

pub mod guard;
pub mod manifest;
pub mod measure;

pub mod proto;
pub mod report;

pub mod topology;
pub mod worker;

pub use actor::Actor;
pub use cluster::Cluster;

pub use agent::{Agent, AgentOptions, Forwarding};

pub use proto::{Answer, Ask, AskError, Failure, Histogram, Load, Tally, Transport};
pub use topology::{Topology, addr};
