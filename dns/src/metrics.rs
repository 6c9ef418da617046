//! Counters under CoreDNS's names. What every question touches is counted per worker, without a lock.

use crate::wire::{RCODES, TYPES};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, MetricEncoder},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
        info::Info,
    },
    registry::Registry,
};
use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Plugins that answer, as label values.
pub const PLUGINS: [&str; 7] = ["", "kubernetes", "forward", "cache", "hosts", "any", "loop"];

/// Who answered: a place in [`PLUGINS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugin {
    /// The server itself.
    Server,
    /// `kubernetes`
    Kubernetes,
    /// `forward`
    Forward,
    /// `cache`
    Cache,
    /// `hosts`
    Hosts,
    /// `any`
    Any,
    /// `loop`
    Loop,
}

/// Upper bounds of durations, seconds; CoreDNS's.
const TIMES: [f64; 16] = [
    0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192,
];
/// Upper bounds of sizes, bytes; CoreDNS's.
const SIZES: [f64; 14] = [
    0.0, 100.0, 200.0, 300.0, 400.0, 511.0, 1023.0, 2047.0, 4095.0, 8291.0, 16e3, 32e3, 48e3, 64e3,
];

/// A question that was answered.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// By TCP.
    pub tcp: bool,
    /// By IPv6.
    pub ipv6: bool,
    /// Type.
    pub qtype: u16,
    /// Code of the answer.
    pub rcode: u8,
    /// Who answered.
    pub plugin: Plugin,
    /// Bytes of the question.
    pub asked: usize,
    /// Bytes of the answer.
    pub answered: usize,
    /// Time it took.
    pub time: Duration,
}

/// A histogram that one thread writes and another reads.
#[derive(Debug)]
struct Buckets<const N: usize> {
    counts: [AtomicU64; N],
    beyond: AtomicU64,
    /// In the bounds' unit, times a million where that is a second.
    sum: AtomicU64,
}

impl<const N: usize> Default for Buckets<N> {
    fn default() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; N],
            beyond: AtomicU64::new(0),
            sum: AtomicU64::new(0),
        }
    }
}

impl<const N: usize> Buckets<N> {
    fn observe(&self, bounds: &[f64; N], value: f64, sum: u64) {
        let place = bounds.iter().position(|bound| value <= *bound);
        place
            .map_or(&self.beyond, |place| &self.counts[place])
            .fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(sum, Ordering::Relaxed);
    }
}

/// Counts of one worker for one block.
#[derive(Debug)]
pub struct Slot {
    /// By transport and family, then by type; the last is every other type.
    requests: [[AtomicU64; TYPES.len() + 1]; 4],
    /// By plugin, then by code; the last is every other code.
    responses: [[AtomicU64; RCODES.len() + 1]; PLUGINS.len()],
    time: Buckets<16>,
    asked: [Buckets<14>; 2],
    answered: [Buckets<14>; 2],
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            requests: [const { [const { AtomicU64::new(0) }; TYPES.len() + 1] }; 4],
            responses: [const { [const { AtomicU64::new(0) }; RCODES.len() + 1] }; PLUGINS.len()],
            time: Buckets::default(),
            asked: Default::default(),
            answered: Default::default(),
        }
    }
}

impl Slot {
    /// Counts a question.
    pub fn count(&self, sample: &Sample) {
        let way = usize::from(sample.tcp) * 2 + usize::from(sample.ipv6);
        let kind = TYPES
            .iter()
            .position(|(number, _)| *number == sample.qtype)
            .unwrap_or(TYPES.len());
        self.requests[way][kind].fetch_add(1, Ordering::Relaxed);
        let code = usize::from(sample.rcode).min(RCODES.len());
        self.responses[sample.plugin as usize][code].fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(sample.time.as_nanos()).unwrap_or(u64::MAX);
        self.time.observe(&TIMES, sample.time.as_secs_f64(), nanoseconds);
        let way = usize::from(sample.tcp);
        // Sizes are far below 2^52.
        self.asked[way].observe(&SIZES, sample.asked as f64, sample.asked as u64);
        self.answered[way].observe(&SIZES, sample.answered as f64, sample.answered as u64);
    }
}

/// Counts of one block: a slot per worker.
#[derive(Debug)]
pub struct BlockStats {
    server: String,
    zone: String,
    slots: Box<[Slot]>,
    cache: Mutex<Option<Arc<crate::cache::Cache>>>,
}

impl BlockStats {
    /// For a block of this port and zone, with `workers` slots.
    pub fn new(port: u16, zone: &str, workers: usize) -> Self {
        Self {
            server: format!("dns://:{port}"),
            zone: zone.to_owned(),
            slots: (0..workers).map(|_| Slot::default()).collect(),
            cache: Mutex::default(),
        }
    }

    /// The slot of a worker.
    pub fn slot(&self, worker: usize) -> &Slot {
        &self.slots[worker % self.slots.len()]
    }

    /// The cache whose counters are shown.
    pub fn show_cache(&self, cache: Option<Arc<crate::cache::Cache>>) {
        *self.cache.lock().unwrap_or_else(PoisonError::into_inner) = cache;
    }
}

/// Labels of what upstreams did.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct To {
    proxy_name: &'static str,
    to: String,
    rcode: &'static str,
}

/// Labels of an upstream's health.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Checked {
    proxy_name: &'static str,
    to: String,
}

/// Labels of a watch.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Watched {
    resource: &'static str,
}

/// Counters of `forward`.
#[derive(Debug)]
pub struct ForwardMetrics {
    times: Family<To, Histogram>,
    failures: Family<Checked, Counter>,
    /// Questions while no upstream was well.
    pub broken: Counter,
    /// Questions beyond `max_concurrent`.
    pub rejected: Counter,
    /// Upstreams that lead back here.
    pub loops: Counter,
}

impl ForwardMetrics {
    /// An upstream answered.
    pub fn answered(&self, to: SocketAddr, rcode: &'static str, time: Duration) {
        let labels = To {
            proxy_name: "forward",
            to: to.to_string(),
            rcode,
        };
        self.times.get_or_create(&labels).observe(time.as_secs_f64());
    }

    /// An upstream failed a check.
    pub fn unhealthy(&self, to: SocketAddr) {
        let labels = Checked {
            proxy_name: "forward",
            to: to.to_string(),
        };
        self.failures.get_or_create(&labels).inc();
    }
}

/// All metrics of a server.
pub struct Metrics {
    registry: Registry,
    blocks: Arc<Mutex<Vec<Arc<BlockStats>>>>,
    /// Of `forward`.
    pub forward: Arc<ForwardMetrics>,
    /// Questions that ended in a panic.
    pub panics: Counter,
    /// Corefiles that were refused while running.
    pub reload_failed: Counter,
    /// Questions dropped because too many were waiting.
    pub overload: Counter,
    /// Objects that could not be used, or not whole.
    pub skipped: Counter,
    /// Names in memory: Services with names.
    pub objects: Arc<[Gauge; 4]>,
    ages: Family<Watched, Gauge>,
    relists: Family<Watched, Counter>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Metrics")
    }
}

fn times() -> Histogram {
    Histogram::new(TIMES)
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// With every metric registered.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let forward = Arc::new(ForwardMetrics {
            times: Family::new_with_constructor(times),
            failures: Family::default(),
            broken: Counter::default(),
            rejected: Counter::default(),
            loops: Counter::default(),
        });
        let blocks = Arc::new(Mutex::new(Vec::new()));
        let metrics = Self {
            blocks: Arc::clone(&blocks),
            forward: Arc::clone(&forward),
            panics: Counter::default(),
            reload_failed: Counter::default(),
            overload: Counter::default(),
            skipped: Counter::default(),
            objects: Arc::default(),
            ages: Family::default(),
            relists: Family::default(),
            registry: Registry::default(),
        };
        let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION")), ("server", "fairlead")]);
        registry.register("coredns_build", "Which program this is", version);
        registry.register("coredns_panics", "Panics while answering", metrics.panics.clone());
        registry.register(
            "coredns_reload_failed",
            "Corefiles refused while running",
            metrics.reload_failed.clone(),
        );
        registry.register(
            "coredns_proxy_request_duration_seconds",
            "Time upstreams took",
            forward.times.clone(),
        );
        registry.register(
            "coredns_proxy_healthcheck_failures",
            "Failed checks of upstreams",
            forward.failures.clone(),
        );
        registry.register(
            "coredns_forward_healthcheck_broken",
            "Questions while no upstream was well",
            forward.broken.clone(),
        );
        registry.register(
            "coredns_forward_max_concurrent_rejects",
            "Questions beyond max_concurrent",
            forward.rejected.clone(),
        );
        registry.register(
            "fairlead_dns_loops",
            "Upstreams left out because they lead back here",
            forward.loops.clone(),
        );
        registry.register(
            "fairlead_dns_overload",
            "Questions dropped because too many were waiting",
            metrics.overload.clone(),
        );
        registry.register(
            "fairlead_dns_skipped_objects",
            "Objects that were not used, or not whole",
            metrics.skipped.clone(),
        );
        registry.register(
            "fairlead_dns_watch_age_seconds",
            "Time since the API server last said anything",
            metrics.ages.clone(),
        );
        registry.register(
            "fairlead_dns_relists",
            "Lists of a whole resource",
            metrics.relists.clone(),
        );
        for (gauge, name) in metrics
            .objects
            .iter()
            .zip(["services", "endpointslices", "namespaces", "pods"])
        {
            registry.register(format!("fairlead_dns_{name}"), "Objects held", gauge.clone());
        }
        registry.register_collector(Box::new(Blocks(blocks)));
        Self { registry, ..metrics }
    }

    /// Which blocks are counted from now on. Those of the same zone and port keep their counts.
    pub fn stats(&self, port: u16, zone: &str, workers: usize) -> Arc<BlockStats> {
        let fresh = BlockStats::new(port, zone, workers);
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = blocks
            .iter()
            .find(|it| (&it.server, &it.zone) == (&fresh.server, &fresh.zone))
        {
            return Arc::clone(known);
        }
        let fresh = Arc::new(fresh);
        blocks.push(Arc::clone(&fresh));
        fresh
    }

    /// Sets how long a watch has been silent.
    pub fn watch_age(&self, resource: &'static str, age: Duration) {
        let seconds = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
        self.ages.get_or_create(&Watched { resource }).set(seconds);
    }

    /// Counts a list.
    pub fn relisted(&self, resource: &'static str) {
        self.relists.get_or_create(&Watched { resource }).inc();
    }

    /// The text of /metrics.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if prometheus_client::encoding::text::encode(&mut text, &self.registry).is_err() {
            text.clear();
        }
        text
    }
}

/// Shows what workers counted.
#[derive(Debug)]
struct Blocks(Arc<Mutex<Vec<Arc<BlockStats>>>>);

type Labels<'a> = Vec<(&'a str, &'a str)>;

impl Collector for Blocks {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let blocks = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let base = |block: &'_ Arc<BlockStats>| {
            [
                ("server", block.server.clone()),
                ("zone", block.zone.clone()),
                ("view", String::new()),
            ]
        };
        let mut metric = encoder.encode_descriptor("coredns_dns_requests", "Questions", None, MetricType::Counter)?;
        for block in &blocks {
            let base = base(block);
            for way in 0..4 {
                for kind in 0..=TYPES.len() {
                    let count = block.sum(|slot| &slot.requests[way][kind]);
                    let name = TYPES.get(kind).map_or("other", |(_, name)| name);
                    let (proto, family) = (["udp", "tcp"][way / 2], ["1", "2"][way % 2]);
                    let more = [("proto", proto), ("family", family), ("type", name)];
                    counter(&mut metric, &base, &more, count)?;
                }
            }
        }
        let mut metric = encoder.encode_descriptor("coredns_dns_responses", "Answers", None, MetricType::Counter)?;
        for block in &blocks {
            let base = base(block);
            for (place, plugin) in PLUGINS.iter().enumerate() {
                for code in 0..=RCODES.len() {
                    let count = block.sum(|slot| &slot.responses[place][code]);
                    let name = RCODES.get(code).copied().unwrap_or("OTHER");
                    counter(&mut metric, &base, &[("rcode", name), ("plugin", plugin)], count)?;
                }
            }
        }
        let mut metric = encoder.encode_descriptor(
            "coredns_dns_request_duration_seconds",
            "Time of answers",
            None,
            MetricType::Histogram,
        )?;
        for block in &blocks {
            histogram(
                &mut metric,
                &base(block),
                &[],
                &TIMES,
                1e-9,
                block.slots.iter().map(|slot| &slot.time),
            )?;
        }
        let mut metric = encoder.encode_descriptor(
            "coredns_dns_request_size_bytes",
            "Sizes of questions",
            None,
            MetricType::Histogram,
        )?;
        for block in &blocks {
            for (way, proto) in ["udp", "tcp"].into_iter().enumerate() {
                histogram(
                    &mut metric,
                    &base(block),
                    &[("proto", proto)],
                    &SIZES,
                    1.0,
                    block.slots.iter().map(|slot| &slot.asked[way]),
                )?;
            }
        }
        let mut metric = encoder.encode_descriptor(
            "coredns_dns_response_size_bytes",
            "Sizes of answers",
            None,
            MetricType::Histogram,
        )?;
        for block in &blocks {
            for (way, proto) in ["udp", "tcp"].into_iter().enumerate() {
                histogram(
                    &mut metric,
                    &base(block),
                    &[("proto", proto)],
                    &SIZES,
                    1.0,
                    block.slots.iter().map(|slot| &slot.answered[way]),
                )?;
            }
        }
        encode_caches(&blocks, &mut encoder)
    }
}

fn encode_caches(blocks: &[Arc<BlockStats>], encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
    let caches: Vec<(&Arc<BlockStats>, Arc<crate::cache::Cache>)> = blocks
        .iter()
        .filter_map(|block| {
            Some((
                block,
                block.cache.lock().unwrap_or_else(PoisonError::into_inner).clone()?,
            ))
        })
        .collect();
    let base = |block: &Arc<BlockStats>| {
        [
            ("server", block.server.clone()),
            ("zones", block.zone.clone()),
            ("view", String::new()),
        ]
    };
    let mut metric = encoder.encode_descriptor("coredns_cache_entries", "Answers kept", None, MetricType::Gauge)?;
    for (block, cache) in &caches {
        for (kind, entries) in ["success", "denial"].into_iter().zip(cache.len()) {
            let base = base(block);
            let mut labels: Labels<'_> = base.iter().map(|(key, value)| (*key, value.as_str())).collect();
            labels.push(("type", kind));
            let gauge = ConstGauge::new(i64::try_from(entries).unwrap_or(i64::MAX));
            gauge.encode(metric.encode_family(&labels.as_slice())?)?;
        }
    }
    let mut metric = encoder.encode_descriptor(
        "coredns_cache_hits",
        "Answers from the cache",
        None,
        MetricType::Counter,
    )?;
    for (block, cache) in &caches {
        for (kind, hits) in ["success", "denial"].into_iter().zip(&cache.counters.hits) {
            counter(
                &mut metric,
                &base(block),
                &[("type", kind)],
                hits.load(Ordering::Relaxed),
            )?;
        }
    }
    type Read = fn(&crate::cache::Counters) -> &AtomicU64;
    let others: [(&str, &str, Read); 4] = [
        (
            "coredns_cache_misses",
            "Questions that the cache could not answer",
            |it| &it.misses,
        ),
        ("coredns_cache_prefetch", "Answers fetched before they ended", |it| {
            &it.prefetches
        }),
        ("coredns_cache_served_stale", "Answers given after they ended", |it| {
            &it.stale
        }),
        ("coredns_cache_evictions", "Answers dropped for others", |it| {
            &it.evictions
        }),
    ];
    for (name, help, read) in others {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (block, cache) in &caches {
            counter(
                &mut metric,
                &base(block),
                &[],
                read(&cache.counters).load(Ordering::Relaxed),
            )?;
        }
    }
    Ok(())
}

impl BlockStats {
    fn sum(&self, read: impl Fn(&Slot) -> &AtomicU64) -> u64 {
        self.slots.iter().map(|slot| read(slot).load(Ordering::Relaxed)).sum()
    }
}

/// One counter; zeros are left out, as a label's combinations are many.
fn counter(metric: &mut MetricEncoder<'_>, base: &[(&str, String)], more: &[(&str, &str)], count: u64) -> fmt::Result {
    if count == 0 && more.len() > 1 {
        return Ok(());
    }
    let mut labels: Labels<'_> = base.iter().map(|(key, value)| (*key, value.as_str())).collect();
    labels.extend_from_slice(more);
    ConstCounter::new(count).encode(metric.encode_family(&labels.as_slice())?)
}

fn histogram<'a, const N: usize>(
    metric: &mut MetricEncoder<'_>,
    base: &[(&str, String)],
    more: &[(&str, &str)],
    bounds: &[f64; N],
    unit: f64,
    slots: impl Iterator<Item = &'a Buckets<N>>,
) -> fmt::Result {
    let mut buckets: Vec<(f64, u64)> = bounds.iter().map(|bound| (*bound, 0)).collect();
    buckets.push((f64::MAX, 0));
    let mut sum = 0;
    for slot in slots {
        for (bucket, count) in buckets.iter_mut().zip(slot.counts.iter().chain([&slot.beyond])) {
            bucket.1 += count.load(Ordering::Relaxed);
        }
        sum += slot.sum.load(Ordering::Relaxed);
    }
    let count = buckets.iter().map(|(_, count)| count).sum();
    let mut labels: Labels<'_> = base.iter().map(|(key, value)| (*key, value.as_str())).collect();
    labels.extend_from_slice(more);
    metric
        .encode_family(&labels.as_slice())?
        .encode_histogram::<[(&str, &str); 0]>(sum as f64 * unit, count, &buckets, None)
}
