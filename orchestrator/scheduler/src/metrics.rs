//! Counters and histograms of the scheduler, named as upstream's where they mean the same.

use crate::queue::Lengths;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabel {
    queue: &'static str,
}

/// What a scheduler counts. Clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    attempts: Family<ResultLabel, Counter>,
    attempt_s: Histogram,
    waited_s: Histogram,
    bind_s: Histogram,
    pending: Family<QueueLabel, Gauge>,
    malformed: Counter,
    victims: Counter,
    lost_events: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        // 0.1 ms to 3.3 s, and 1 ms to 17 min.
        let short = || Histogram::new(exponential_buckets(0.0001, 2.0, 16));
        Self {
            attempts: Family::default(),
            attempt_s: short(),
            waited_s: Histogram::new(exponential_buckets(0.001, 2.0, 21)),
            bind_s: short(),
            pending: Family::default(),
            malformed: Counter::default(),
            victims: Counter::default(),
            lost_events: Counter::default(),
        }
    }
}

impl Metrics {
    /// Puts everything into a registry.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("scheduler");
        registry.register(
            "schedule_attempts",
            "Attempts to find a node for a pod, by result: scheduled, unschedulable, error",
            self.attempts.clone(),
        );
        registry.register(
            "scheduling_attempt_duration_seconds",
            "Time that a decision took, without binding",
            self.attempt_s.clone(),
        );
        registry.register(
            "pod_scheduling_sli_duration_seconds",
            "Time from the moment at which a pod could first be tried until it was bound",
            self.waited_s.clone(),
        );
        registry.register(
            "binding_duration_seconds",
            "Time that the API server took for a binding",
            self.bind_s.clone(),
        );
        registry.register(
            "pending_pods",
            "Pods without a node, by queue: active, backoff, unschedulable, gated",
            self.pending.clone(),
        );
        registry.register(
            "malformed_objects",
            "Objects that could not be read, or not wholly",
            self.malformed.clone(),
        );
        registry.register(
            "preemption_victims",
            "Pods that were deleted to make way for more important ones",
            self.victims.clone(),
        );
        registry.register(
            "lost_events",
            "Events that were not written: too many at one time, or the API server refused them",
            self.lost_events.clone(),
        );
    }

    fn attempts(&self, result: &'static str) -> u64 {
        self.attempts.get_or_create(&ResultLabel { result }).get()
    }

    /// Pods that were given a node.
    pub fn scheduled(&self) -> u64 {
        self.attempts("scheduled")
    }

    /// Attempts that found none.
    pub fn unschedulable(&self) -> u64 {
        self.attempts("unschedulable")
    }

    /// Objects that could not be read.
    pub fn malformed(&self) -> u64 {
        self.malformed.get()
    }

    pub(crate) fn attempt(&self, result: &'static str) {
        self.attempts.get_or_create(&ResultLabel { result }).inc();
    }

    pub(crate) fn decided(&self, took: Duration) {
        self.attempt_s.observe(took.as_secs_f64());
    }

    pub(crate) fn bound(&self, waited: Duration, took: Duration) {
        self.attempt("scheduled");
        self.waited_s.observe(waited.as_secs_f64());
        self.bind_s.observe(took.as_secs_f64());
    }

    pub(crate) fn pending(&self, lengths: Lengths) {
        for (queue, length) in [
            ("active", lengths.active),
            ("backoff", lengths.pausing),
            ("unschedulable", lengths.waiting),
            ("gated", lengths.gated),
        ] {
            let gauge = self.pending.get_or_create(&QueueLabel { queue });
            gauge.set(i64::try_from(length).unwrap_or(i64::MAX));
        }
    }

    pub(crate) fn found_malformed(&self) {
        self.malformed.inc();
    }

    pub(crate) fn victim(&self) {
        self.victims.inc();
    }

    pub(crate) fn lost_event(&self) {
        self.lost_events.inc();
    }
}
