//! The container runtime interface: messages and a client.

mod client;
mod containerd;
pub mod v1;

pub use containerd::Envelope;
pub use client::{Runtime, RuntimeError};
