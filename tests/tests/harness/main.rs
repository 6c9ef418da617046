//! The harness itself: every host reaches the hosts it should, servers and clients tell the truth, nothing is left.

mod nothing_left;
mod reachability;
mod sockets;
