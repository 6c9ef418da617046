//! Rules in CEL: `x-kubernetes-validations`.
//!
//! Parsing and the function library are kube-cel's. Evaluation is here, because a server must know what a rule costs while
//! it runs: every step and every byte that is copied or searched is charged to a budget, values are read in place instead
//! of being converted, and names are escaped and typed by the schema as upstream does.

pub(crate) mod check;
mod convert;
mod eval;
mod functions;
mod macros;
mod ops;
pub mod path;
mod program;
pub mod rules;
mod value;

pub use program::Program;
