//! One task per pod: looks at what the runtime has, decides, does, and looks again.

mod act;
pub mod backoff;
pub mod decide;
pub(crate) mod dispatch;
mod ending;
pub mod observe;
pub mod observed;
pub mod plan;
pub(crate) mod pleg;
pub mod restart;
mod run;

pub use decide::decide;
pub use run::{Begin, Message, spawn};

#[cfg(test)]
mod tests;
