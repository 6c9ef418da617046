//! HTTP around objects: bodies, what a client accepts, parameters.

pub mod body;
pub mod negotiate;
pub mod options;

pub use body::{Body, Payload};
pub use negotiate::{Accept, Form};
