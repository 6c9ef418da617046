//! One task per pod: looks at what the runtime has, decides, does, and looks again.

pub mod backoff;
pub mod decide;
mod ending;
pub mod observed;
pub mod plan;
pub mod restart;

pub use decide::{decide, spec_hash};
