//! Every counter and histogram, registered once. Where kube-proxy has a metric of the same meaning, it has kube-proxy's
//! name, so that dashboards and SLO tests go on working; the rest is `fairlead_*`.

use crate::status::MapFill;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use proxy_common::verdict::{Kind, Verdict};
use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, OnceLock, atomic::AtomicU64},
};

/// One label.
pub type Label = [(&'static str, String); 1];
/// A gauge of seconds.
type Seconds = Gauge<f64, AtomicU64>;
/// Histograms by one label.
type Histograms = Family<Label, Histogram, fn() -> Histogram>;

/// What the kernel counts, read at scrape time and for `/status`.
pub trait CounterSource: Send + Sync {
    /// Packets by verdict, summed over CPUs; a verdict that is missing counts as 0.
    fn packets(&self) -> Vec<(Verdict, u64)>;
    /// How full each map is.
    fn maps(&self) -> Vec<MapFill>;
}

/// The text formats that Prometheus reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus text 0.0.4, for those who do not ask for OpenMetrics.
    Text,
}

impl Format {
    /// What a scraper accepts, by its `Accept` header.
    pub fn negotiate(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Self::OpenMetrics,
            _ => Self::Text,
        }
    }

    /// Value of `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// All metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    kernel: Arc<Kernel>,
    /// `kubeproxy_network_programming_duration_seconds{ip_family}`: from the EndpointSlice's trigger time to the kernel.
    pub network_programming: Histograms,
    /// `kubeproxy_sync_proxy_rules_duration_seconds`: one sync; both families in one, so without upstream's `ip_family`.
    pub sync_duration: Histogram,
    /// `kubeproxy_sync_full_proxy_rules_duration_seconds`: syncs that compared everything.
    pub sync_full_duration: Histogram,
    /// `kubeproxy_sync_partial_proxy_rules_duration_seconds`: syncs of changed services.
    pub sync_partial_duration: Histogram,
    /// `kubeproxy_sync_proxy_rules_last_timestamp_seconds`: end of the last good sync, Unix time.
    pub last_sync: Seconds,
    /// `kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds`: when a change was last queued, Unix time.
    pub last_queued: Seconds,
    /// `kubeproxy_sync_proxy_rules_endpoint_changes_pending`.
    pub endpoint_changes_pending: Gauge,
    /// `kubeproxy_sync_proxy_rules_endpoint_changes_total`.
    pub endpoint_changes: Counter,
    /// `kubeproxy_sync_proxy_rules_service_changes_pending`.
    pub service_changes_pending: Gauge,
    /// `kubeproxy_sync_proxy_rules_service_changes_total`.
    pub service_changes: Counter,
    /// `kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy}`: a gauge in spite of its name, as upstream.
    pub no_local_endpoints: Family<Label, Gauge>,
    /// `kubeproxy_proxy_healthz_total{code}`.
    pub healthz: Family<Label, Counter>,
    /// `kubeproxy_proxy_livez_total{code}`.
    pub livez: Family<Label, Counter>,
    /// `fairlead_change_to_kernel_duration_seconds`: from an event's arrival at the agent to the kernel, per batch.
    pub change_to_kernel: Histogram,
    /// `fairlead_sync_ops_total`: mutations of the kernel.
    pub sync_ops: Counter,
    /// `fairlead_sync_failures_total{reason}`: `full`, `kernel` or `unsupported`.
    pub sync_failures: Family<Label, Counter>,
    /// `fairlead_deferred_services`: services that did not fit into a map.
    pub deferred_services: Gauge,
    /// `fairlead_map_full_total{map}`: how often a map had no room.
    pub map_full: Family<Label, Counter>,
    /// `fairlead_applied_batches_total`: source batches fully in the kernel.
    pub applied_batches: Counter,
    /// `fairlead_skipped_objects_total{kind}`: objects, or parts of one, found unusable.
    pub skipped: Family<Label, Counter>,
    /// `fairlead_source_errors_total{source}`: reads of the source that failed and were tried again.
    pub source_errors: Family<Label, Counter>,
    /// `fairlead_attach_failures_total{role}`: links that programs could not be attached to.
    pub attach_failures: Family<Label, Counter>,
    /// `fairlead_health_check_bind_failures_total`: `healthCheckNodePort`s that could not be opened.
    pub health_check_bind_failures: Counter,
}

/// Upstream's buckets of sync durations: 1 ms doubling 15 times. Ours begin lower: an eBPF sync takes microseconds.
fn sync_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.000_031_25, 2.0, 20))
}

/// Upstream's buckets of programming latency: 0.25, 0.5, each second to 59, each five to 115, each thirty to 300.
fn programming_buckets() -> Histogram {
    let steps = |from: u32, step: u32, count: u32| (0..count).map(move |n| f64::from(from + n * step));
    let sub_second = [0.01, 0.05, 0.25, 0.5];
    Histogram::new(
        sub_second
            .into_iter()
            .chain(steps(1, 1, 59))
            .chain(steps(60, 5, 12))
            .chain(steps(120, 30, 7)),
    )
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers everything; the kernel's counters come later, with [`Metrics::set_counters`].
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let kernel = Arc::new(Kernel::default());
        registry.register_collector(Box::new(kernel.clone()));
        let mut new = Self {
            registry,
            kernel,
            network_programming: Family::new_with_constructor(programming_buckets),
            sync_duration: sync_buckets(),
            sync_full_duration: sync_buckets(),
            sync_partial_duration: sync_buckets(),
            last_sync: Seconds::default(),
            last_queued: Seconds::default(),
            endpoint_changes_pending: Gauge::default(),
            endpoint_changes: Counter::default(),
            service_changes_pending: Gauge::default(),
            service_changes: Counter::default(),
            no_local_endpoints: Family::default(),
            healthz: Family::default(),
            livez: Family::default(),
            change_to_kernel: sync_buckets(),
            sync_ops: Counter::default(),
            sync_failures: Family::default(),
            deferred_services: Gauge::default(),
            map_full: Family::default(),
            applied_batches: Counter::default(),
            skipped: Family::default(),
            source_errors: Family::default(),
            attach_failures: Family::default(),
            health_check_bind_failures: Counter::default(),
        };
        new.register();
        new
    }

    /// The encoder appends `_total` to counters and `.` to the help texts.
    fn register(&mut self) {
        let r = self.registry.sub_registry_with_prefix("kubeproxy");
        let name = "network_programming_duration_seconds";
        r.register(
            name,
            "From the change of a service or pod to the kernel",
            self.network_programming.clone(),
        );
        r.register(
            "sync_proxy_rules_duration_seconds",
            "One sync",
            self.sync_duration.clone(),
        );
        let name = "sync_full_proxy_rules_duration_seconds";
        r.register(
            name,
            "One sync that compared everything",
            self.sync_full_duration.clone(),
        );
        let name = "sync_partial_proxy_rules_duration_seconds";
        r.register(name, "One sync of changed services", self.sync_partial_duration.clone());
        let name = "sync_proxy_rules_last_timestamp_seconds";
        r.register(
            name,
            "End of the last successful sync, Unix time",
            self.last_sync.clone(),
        );
        let name = "sync_proxy_rules_last_queued_timestamp_seconds";
        r.register(
            name,
            "When a change was last queued, Unix time",
            self.last_queued.clone(),
        );
        let name = "sync_proxy_rules_endpoint_changes_pending";
        r.register(
            name,
            "EndpointSlice changes not yet in the kernel",
            self.endpoint_changes_pending.clone(),
        );
        r.register(
            "sync_proxy_rules_endpoint_changes",
            "EndpointSlice changes seen",
            self.endpoint_changes.clone(),
        );
        let name = "sync_proxy_rules_service_changes_pending";
        r.register(
            name,
            "Service changes not yet in the kernel",
            self.service_changes_pending.clone(),
        );
        r.register(
            "sync_proxy_rules_service_changes",
            "Service changes seen",
            self.service_changes.clone(),
        );
        let name = "sync_proxy_rules_no_local_endpoints_total";
        r.register(
            name,
            "Services with a Local policy and no endpoint here",
            self.no_local_endpoints.clone(),
        );
        r.register("proxy_healthz", "Answers of /healthz by code", self.healthz.clone());
        r.register("proxy_livez", "Answers of /livez by code", self.livez.clone());

        let r = self.registry.sub_registry_with_prefix("fairlead");
        let name = "change_to_kernel_duration_seconds";
        r.register(
            name,
            "From an event's arrival at the agent to the kernel",
            self.change_to_kernel.clone(),
        );
        r.register("sync_ops", "Mutations of the kernel", self.sync_ops.clone());
        r.register(
            "sync_failures",
            "Syncs that failed, by reason",
            self.sync_failures.clone(),
        );
        let name = "deferred_services";
        r.register(
            name,
            "Services that do not fit into a map",
            self.deferred_services.clone(),
        );
        r.register("map_full", "How often a map had no room", self.map_full.clone());
        r.register(
            "applied_batches",
            "Source batches fully in the kernel",
            self.applied_batches.clone(),
        );
        r.register(
            "skipped_objects",
            "Objects or fields found unusable, by kind",
            self.skipped.clone(),
        );
        r.register(
            "source_errors",
            "Reads of the source that failed and were tried again",
            self.source_errors.clone(),
        );
        r.register(
            "attach_failures",
            "Links that could not be attached to, by role",
            self.attach_failures.clone(),
        );
        let name = "health_check_bind_failures";
        r.register(
            name,
            "healthCheckNodePorts that could not be opened",
            self.health_check_bind_failures.clone(),
        );

        for policy in ["internal", "external"] {
            drop(
                self.no_local_endpoints
                    .get_or_create(&[("traffic_policy", policy.to_owned())]),
            );
        }
        for reason in ["full", "kernel", "unsupported"] {
            drop(self.sync_failures.get_or_create(&[("reason", reason.to_owned())]));
        }
    }

    /// From now on scrapes read the kernel's counters through `source`; only the first call counts.
    pub fn set_counters(&self, source: Arc<dyn CounterSource>) {
        // A second source would be a second dataplane in one process, which does not exist.
        let _ = self.kernel.0.set(source);
    }

    /// How full the maps are; empty before [`Metrics::set_counters`].
    pub fn maps(&self) -> Vec<MapFill> {
        self.kernel.0.get().map(|source| source.maps()).unwrap_or_default()
    }

    /// The body of a scrape.
    pub fn encode(&self, format: Format) -> String {
        let mut body = String::new();
        // Writing to a String does not fail.
        let _ = text::encode(&mut body, &self.registry);
        match format {
            Format::OpenMetrics => body,
            Format::Text => as_prometheus_text(&body),
        }
    }
}

/// OpenMetrics → Prometheus text: the two differ in the name of a counter's family, and in two comments.
fn as_prometheus_text(open_metrics: &str) -> String {
    let words = |line: &'_ str| {
        let mut words = line.strip_prefix("# ")?.splitn(3, ' ').map(str::to_owned);
        Some((words.next()?, words.next()?, words.next().unwrap_or_default()))
    };
    let counters: BTreeSet<String> = open_metrics
        .lines()
        .filter_map(words)
        .filter(|(keyword, _, rest)| keyword == "TYPE" && rest == "counter")
        .map(|(_, name, _)| name)
        .collect();
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        match words(line) {
            Some((keyword, name, rest)) if counters.contains(&name) => {
                text.push_str(&format!("# {keyword} {name}_total {rest}"));
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

/// The kernel's counters, once there are any.
#[derive(Default)]
struct Kernel(OnceLock<Arc<dyn CounterSource>>);

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kernel").field(&self.0.get().is_some()).finish()
    }
}

/// Label of [`Verdict::kind`].
const fn kind_label(kind: Kind) -> &'static str {
    match kind {
        Kind::Passed => "passed",
        Kind::Forwarded => "forwarded",
        Kind::Answered => "answered",
        Kind::Dropped => "dropped",
    }
}

impl Collector for Kernel {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (packets, maps) = self
            .0
            .get()
            .map(|source| (source.packets(), source.maps()))
            .unwrap_or_default();
        let counter = |value| ConstCounter::new(value);
        let help = "Packets and socket calls by outcome";
        let mut family = encoder.encode_descriptor("fairlead_packets", help, None, counter(0u64).metric_type())?;
        for verdict in Verdict::ALL {
            let value = packets
                .iter()
                .filter(|(seen, _)| seen == verdict)
                .map(|(_, count)| *count)
                .sum::<u64>();
            let labels = [("verdict", verdict.label()), ("kind", kind_label(verdict.kind()))];
            counter(value).encode(family.encode_family(&labels)?)?;
        }
        for (name, help, value) in [
            (
                "fairlead_map_entries",
                "Entries in use",
                (|map| map.entries) as fn(&MapFill) -> u64,
            ),
            ("fairlead_map_max_entries", "Size of the map, entries", |map| {
                map.max_entries
            }),
        ] {
            let gauge = |map| ConstGauge::new(i64::try_from(value(map)).unwrap_or(i64::MAX));
            let kind = ConstGauge::new(0i64).metric_type();
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for map in &maps {
                gauge(map).encode(family.encode_family(&[("map", map.name.as_str())])?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake;

    impl CounterSource for Fake {
        fn packets(&self) -> Vec<(Verdict, u64)> {
            vec![(Verdict::Forward, 7)]
        }
        fn maps(&self) -> Vec<MapFill> {
            vec![MapFill {
                name: "FRONTENDS_V4".to_owned(),
                entries: 3,
                max_entries: 8,
                flag: String::new(),
            }]
        }
    }

    fn sample() -> Metrics {
        let metrics = Metrics::new();
        metrics.service_changes.inc();
        metrics.healthz.get_or_create(&[("code", "200".to_owned())]).inc();
        metrics.livez.get_or_create(&[("code", "200".to_owned())]).inc();
        metrics
            .network_programming
            .get_or_create(&[("ip_family", "IPv4".to_owned())])
            .observe(0.3);
        metrics
    }

    /// The names that dashboards and upstream's own tests read.
    #[test]
    fn kube_proxy_names_come_out_exactly() {
        for format in [Format::OpenMetrics, Format::Text] {
            let body = sample().encode(format);
            for line in [
                "kubeproxy_network_programming_duration_seconds_bucket{le=\"0.5\",ip_family=\"IPv4\"} 1",
                "kubeproxy_sync_proxy_rules_duration_seconds_count 0",
                "kubeproxy_sync_full_proxy_rules_duration_seconds_count 0",
                "kubeproxy_sync_partial_proxy_rules_duration_seconds_count 0",
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds 0.0",
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds 0.0",
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
                "kubeproxy_sync_proxy_rules_endpoint_changes_total 0",
                "kubeproxy_sync_proxy_rules_service_changes_pending 0",
                "kubeproxy_sync_proxy_rules_service_changes_total 1",
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"internal\"} 0",
                "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
                "kubeproxy_proxy_livez_total{code=\"200\"} 1",
                "fairlead_sync_failures_total{reason=\"full\"} 0",
            ] {
                assert!(
                    body.lines().any(|found| found == line),
                    "{format:?}: {line} is missing in\n{body}"
                );
            }
        }
    }

    #[test]
    fn every_verdict_is_listed_even_before_the_kernel_counts() {
        let metrics = sample();
        let lines = |metrics: &Metrics| {
            let body = metrics.encode(Format::Text);
            body.lines()
                .filter(|line| line.starts_with("fairlead_packets_total{"))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(lines(&metrics).len(), Verdict::ALL.len());
        metrics.set_counters(Arc::new(Fake));
        let found = lines(&metrics);
        assert_eq!(found.len(), Verdict::ALL.len());
        assert!(found.contains(&"fairlead_packets_total{verdict=\"forward\",kind=\"forwarded\"} 7".to_owned()));
        let body = metrics.encode(Format::Text);
        assert!(body.contains("fairlead_map_entries{map=\"FRONTENDS_V4\"} 3\n"));
        assert!(body.contains("fairlead_map_max_entries{map=\"FRONTENDS_V4\"} 8\n"));
    }

    #[test]
    fn plain_text_names_counters_as_their_samples() {
        let text = sample().encode(Format::Text);
        assert!(text.contains("# TYPE fairlead_packets_total counter\n"), "{text}");
        assert!(text.contains("# TYPE kubeproxy_sync_proxy_rules_no_local_endpoints_total gauge\n"));
        assert!(!text.contains("# EOF"));
        // Every sample belongs to the family announced last, or to none: what a strict parser checks.
        let mut family = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                family = rest.split(' ').next().unwrap().to_owned();
            } else if !line.starts_with('#') {
                assert!(line.starts_with(&family), "{line} after {family}");
            }
        }
        assert!(sample().encode(Format::OpenMetrics).ends_with("# EOF\n"));
    }

    #[test]
    fn the_scraper_chooses_the_format() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3";
        assert_eq!(Format::negotiate(Some(prometheus)), Format::OpenMetrics);
        assert_eq!(Format::negotiate(Some("*/*")), Format::Text);
        assert_eq!(Format::negotiate(None), Format::Text);
    }
}
