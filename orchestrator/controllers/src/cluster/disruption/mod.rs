//! How many pods of a PodDisruptionBudget may be evicted now.

pub(crate) mod controller;
pub(crate) mod plan;

#[cfg(test)]
mod tests;
