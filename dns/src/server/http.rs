//! Health, readiness and metrics, at CoreDNS's paths.

use crate::{metrics::Metrics, watch::Watches};
use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    routing::get,
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// `/health`: well until the server is about to stop.
pub(super) fn health(lameduck: Arc<AtomicBool>) -> Router {
    let handler = move || {
        let lameduck = Arc::clone(&lameduck);
        async move {
            if lameduck.load(Ordering::Acquire) {
                (StatusCode::SERVICE_UNAVAILABLE, "lameduck")
            } else {
                (StatusCode::OK, "OK")
            }
        }
    };
    Router::new().route("/health", get(handler))
}

/// `/ready`: every watch has synced and is alive.
pub(super) fn ready(watches: impl Fn() -> Vec<Arc<Watches>> + Clone + Send + Sync + 'static) -> Router {
    let handler = move || {
        let complaints: Vec<String> = watches().iter().flat_map(|it| it.complaints()).collect();
        async move {
            if complaints.is_empty() {
                (StatusCode::OK, "OK".to_owned())
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, complaints.join("\n"))
            }
        }
    };
    Router::new().route("/ready", get(handler))
}

/// `/metrics`, in the OpenMetrics text format.
pub(super) fn metrics(
    metrics: Arc<Metrics>,
    watches: impl Fn() -> Vec<Arc<Watches>> + Clone + Send + Sync + 'static,
) -> Router {
    let handler = move || {
        for watches in watches() {
            watches.show(&metrics);
        }
        let text = metrics.text();
        async move {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(CONTENT_TYPE, kind)], text)
        }
    };
    Router::new().route("/metrics", get(handler))
}
