//! The node network on the real kernel: namespaces as hosts and pods, the installed plugin as a runtime starts it.
//! Needs root.

mod api;
mod containerd;
mod life;
mod rig;
mod spec;
mod traffic;
