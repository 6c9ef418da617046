//! `status` of ResourceQuotas: what a namespace has of what it may have.

mod amount;
pub(crate) mod controller;
mod cost;
mod counters;

#[cfg(test)]
mod tests;
