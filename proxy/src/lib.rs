//! The service proxy: `sources → ServiceMap → Plan → Image → ops → kernel`.
//!
//! Everything up to the ops is a pure function of its input; [`source`] is the only way in, [`dataplane`] the only
//! way out.

pub mod clock;
pub mod config;
pub mod controller;
pub mod dataplane;
pub mod error;
pub mod health;
pub mod heap;
pub mod hostview;
pub mod http;
pub mod metrics;
pub mod model;
pub mod plan;
pub mod source;
pub mod status;
#[doc(hidden)]
pub mod testing;
