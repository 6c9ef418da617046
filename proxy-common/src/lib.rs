//! What the agent and the kernel programs must agree on: the map ABI and pure packet logic. No IO, no allocation.
#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod csum;
pub mod select;
pub mod verdict;
