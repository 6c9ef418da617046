//! One task per pod: looks at what the runtime has, decides, does, and looks again.

mod act;
pub mod backoff;
pub mod decide;
mod ending;
pub mod observe;
pub mod observed;
pub mod plan;
pub mod restart;
mod run;

pub use decide::decide;
pub use run::{Begin, Message, spawn};
