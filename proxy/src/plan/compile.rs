//! ServiceMap + NodeView → Plan, whole or for the services that changed.

/// Keeps a [`super::Plan`] in step with a service map.
#[derive(Debug, Default)]
pub struct Planner {}
