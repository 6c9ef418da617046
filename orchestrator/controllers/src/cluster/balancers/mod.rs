//! Addresses for Services of type LoadBalancer.

pub(crate) mod controller;
pub(crate) mod pool;

#[cfg(test)]
mod tests;
