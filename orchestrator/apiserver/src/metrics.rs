//! Metrics under upstream's principal names.

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use std::{sync::Arc, time::Duration};

/// Labels of a finished request.
#[derive(Clone, Debug, Default, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RequestLabels {
    /// As authorization sees it.
    pub verb: String,
    /// API group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural.
    pub resource: String,
    /// Subresource.
    pub subresource: String,
    /// HTTP code.
    pub code: u16,
}

/// Labels of a request's duration: without the code, or series would multiply.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct DurationLabels {
    /// As authorization sees it.
    pub verb: String,
    /// API group.
    pub group: String,
    /// Plural.
    pub resource: String,
}

/// Whether a request changes anything.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct KindLabels {
    /// `mutating` or `readOnly`.
    pub request_kind: &'static str,
}

/// All metrics of the server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<DurationLabels, Histogram>,
    rejected: Family<KindLabels, Counter>,
    inflight: Family<KindLabels, Gauge>,
    watches: Arc<Gauge>,
    faults: Counter,
}

fn histogram() -> Histogram {
    Histogram::new([
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
    ])
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        registry.register(
            "apiserver_request",
            "Requests by verb, resource and code",
            requests.clone(),
        );
        let durations = Family::new_with_constructor(histogram as fn() -> Histogram);
        registry.register(
            "apiserver_request_duration_seconds",
            "Time until the answer began, watches and streams left out",
            durations.clone(),
        );
        let rejected = Family::default();
        registry.register(
            "apiserver_dropped_requests",
            "Requests answered with 429",
            rejected.clone(),
        );
        let inflight = Family::default();
        registry.register(
            "apiserver_current_inflight_requests",
            "Requests being answered",
            inflight.clone(),
        );
        let watches: Gauge = Gauge::default();
        registry.register("apiserver_longrunning_requests", "Open watches", watches.clone());
        let faults = Counter::default();
        registry.register(
            "apiserver_request_faults",
            "Requests that failed by a fault of this server; its log names it",
            faults.clone(),
        );
        Self {
            registry,
            faults,
            requests,
            durations,
            rejected,
            inflight,
            watches: Arc::new(watches),
        }
    }
}

impl Metrics {
    /// Counts a finished request.
    pub fn finished(&self, labels: &RequestLabels, took: Duration) {
        if labels.verb != "watch" && labels.verb != "connect" {
            let labels = &DurationLabels {
                verb: labels.verb.clone(),
                group: labels.group.clone(),
                resource: labels.resource.clone(),
            };
            self.durations.get_or_create(labels).observe(took.as_secs_f64());
        }
        self.requests.get_or_create(labels).inc();
    }

    /// Counts a request that was turned away.
    pub fn rejected(&self, request_kind: &'static str) {
        self.rejected.get_or_create(&KindLabels { request_kind }).inc();
    }

    /// Counts a request that failed by a fault of ours.
    pub fn fault(&self) {
        self.faults.inc();
    }

    /// Requests that failed by a fault of ours so far. Always 0, one hopes.
    pub fn faults(&self) -> u64 {
        self.faults.get()
    }

    /// Notes a request that is being answered.
    pub fn inflight(&self, request_kind: &'static str, change: i64) {
        self.inflight.get_or_create(&KindLabels { request_kind }).inc_by(change);
    }

    /// Notes a watch for as long as the result lives.
    pub fn open_watch(&self) -> OpenWatch {
        self.watches.inc();
        OpenWatch(Arc::clone(&self.watches))
    }

    /// In the OpenMetrics text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// One open watch.
#[derive(Debug)]
pub struct OpenWatch(Arc<Gauge>);

impl Drop for OpenWatch {
    fn drop(&mut self) {
        self.0.dec();
    }
}
