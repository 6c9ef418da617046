//! [`ServiceMap`]: the newest version of every object, and which services an event touches.

/// The newest version of every Service and EndpointSlice.
#[derive(Debug, Default)]
pub struct ServiceMap {}
