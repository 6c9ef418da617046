//! Real packets through real agents: every kind of frontend, client, family, transport and backend, in every mode.
//!
//! Two nodes with three pods each and a client outside; LB and external IPs lead to node-a. Needs root and the agent
//! (`FAIRLEAD_BIN`, or `fairlead` beside this executable).

mod churn;
mod cluster;
mod flows;
mod matrix;
mod path_mtu;
mod policy;
