//! Services and the pods behind them: EndpointSlices, Endpoints, and slices that mirror hand-made Endpoints.

pub(crate) mod desired;
pub(crate) mod legacy;
pub(crate) mod mirror;
pub(crate) mod mirroring;
pub(crate) mod objects;
pub(crate) mod pack;
pub(crate) mod slices;
pub(crate) mod trigger;

#[cfg(test)]
mod tests;

/// Label of a slice: the Service that it is of.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of a slice: who writes it; others leave it alone.
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Label of what belongs to a Service without an address of its own.
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";
/// Annotation: when the newest of the changes happened that led to this write, RFC 3339.
pub(crate) const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Annotation of Endpoints that could not hold every address.
pub(crate) const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Value of [`MANAGED_BY`] on slices made from pods.
pub(crate) const FROM_PODS: &str = "endpointslice-controller.k8s.io";
/// Value of [`MANAGED_BY`] on slices made from Endpoints.
pub(crate) const FROM_ENDPOINTS: &str = "endpointslicemirroring-controller.k8s.io";
/// Most endpoints that we put into one slice. Source: upstream's `--max-endpoints-per-slice`.
pub(crate) const MAX_PER_SLICE: usize = 100;
/// Most addresses in one Endpoints object, and mirrored of one subset. Source: upstream's `maxCapacity`.
pub(crate) const MAX_ADDRESSES: usize = 1000;
