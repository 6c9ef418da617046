//! The container runtime interface: messages and a client.

mod client;
pub mod v1;

pub use client::{Runtime, RuntimeError};
