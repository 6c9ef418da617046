//! The container runtime interface: messages and a client.

mod client;
mod containerd;
pub mod v1;

pub use client::{Runtime, RuntimeError};
pub use containerd::Envelope;
