//! What the controller decides: synchronous, with the clock as a parameter.

use super::{Attached, Changed, Kernel, Planning, SyncReport, summary::Summary};
use crate::{
    clock::Now,
    config::LinkFilter,
    error::{ApplyError, Skipped},
    health::{CheckState, ProxyHealth},
    hostview::{HostFacts, Link, LinkEvent, NodeSettings, diff_links},
    metrics::Metrics,
    model::{Change, Event, Family, Node, NodeView},
    status::{Interface, LastSync, StatusHolder},
};
use jiff::{SignedDuration, Timestamp};
use std::{
    collections::BTreeMap,
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// First pause after a failure; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest pause between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// How often memory is distrusted: the kernel is read and everything compared.
const AUDIT: Duration = Duration::from_secs(30 * 60);

/// Most latencies that are kept while the kernel refuses: enough for the histograms, and memory has an end.
const SAMPLES: usize = 65_536;

/// What arrived since the last step.
#[derive(Debug, Default)]
pub struct Input {
    /// Batches in order, each with the time of its arrival.
    pub batches: Vec<(Vec<Event>, Instant)>,
    /// Newest host facts, if they may have changed.
    pub facts: Option<HostFacts>,
}

/// Where results go.
#[derive(Clone, Debug)]
pub struct Outputs {
    /// `/status`.
    pub status: StatusHolder,
    /// `/metrics`.
    pub metrics: Arc<Metrics>,
    /// `/healthz`.
    pub health: Arc<ProxyHealth>,
    /// `healthCheckNodePort`s.
    pub checks: watch::Sender<CheckState>,
}

/// When something that failed may be tried again.
#[derive(Clone, Copy, Debug)]
struct Backoff {
    pause: Duration,
    until: Instant,
}

impl Backoff {
    /// After one more failure.
    fn after(previous: Option<Self>, now: Instant) -> Self {
        let pause = previous.map_or(BACKOFF_MIN, |backoff| (backoff.pause * 2).min(BACKOFF_MAX));
        Self {
            pause,
            until: now + pause,
        }
    }
}

/// Changes that are not in the kernel yet.
#[derive(Debug, Default)]
struct Pending {
    /// Source batches.
    batches: u64,
    /// Arrival of the first [`SAMPLES`] of them.
    arrivals: Vec<Instant>,
    /// Hash of the last of them.
    digest: String,
    /// Trigger times of the first [`SAMPLES`] EndpointSlices that have one, milliseconds since the epoch.
    triggers: Vec<(Family, i64)>,
    services: i64,
    endpoints: i64,
}

/// The controller without its loop.
pub struct Core<P, K> {
    planner: P,
    kernel: K,
    settings: NodeSettings,
    devices: LinkFilter,
    pod_devices: LinkFilter,
    out: Outputs,
    clock: Box<dyn Fn() -> Now + Send>,
    started: Now,

    node: Option<Node>,
    /// What the Node object last said. A node whose object is gone was on its way out: it does not come back for that.
    eligible: bool,
    facts: HostFacts,
    /// What the kernel and the planner know of this node; `None` = must be written (again).
    view: Option<NodeView>,
    /// Everything has been read once; until then nothing may be programmed.
    read: bool,
    /// What the planner has to look at.
    touched: Changed,
    /// What the kernel has to look at.
    unsynced: Changed,
    pending: Pending,
    failed: Option<Backoff>,
    next_audit: Instant,
    /// The kernel was told to forget since the last good sync.
    full: bool,

    links: BTreeMap<u32, Link>,
    attached: BTreeMap<u32, Result<Attached, String>>,
    attach_failed: Option<Backoff>,

    summary: Summary,
}

impl<P: fmt::Debug, K: fmt::Debug> fmt::Debug for Core<P, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("planner", &self.planner)
            .field("kernel", &self.kernel)
            .finish_non_exhaustive()
    }
}

impl<P: Planning, K: Kernel> Core<P, K> {
    /// Knows nothing yet. `clock` is read at each step.
    pub fn new(
        planner: P,
        kernel: K,
        settings: NodeSettings,
        (devices, pod_devices): (LinkFilter, LinkFilter),
        out: Outputs,
        clock: impl Fn() -> Now + Send + 'static,
    ) -> Self {
        let started = clock();
        Self {
            planner,
            kernel,
            settings,
            devices,
            pod_devices,
            out,
            clock: Box::new(clock),
            started,
            node: None,
            eligible: true,
            facts: HostFacts::default(),
            view: None,
            read: false,
            touched: Changed::All,
            unsynced: Changed::All,
            pending: Pending::default(),
            failed: None,
            next_audit: started.mono + AUDIT,
            full: true,
            links: BTreeMap::new(),
            attached: BTreeMap::new(),
            attach_failed: None,
            summary: Summary::default(),
        }
    }

    /// The kernel, for cleaning up at the end.
    pub fn kernel_mut(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// When the next [`Core::step`] is due even if nothing arrives.
    pub fn deadline(&self) -> Instant {
        let retries = [self.failed, self.attach_failed]
            .into_iter()
            .flatten()
            .map(|backoff| backoff.until);
        retries.chain([self.next_audit]).min().unwrap_or(self.next_audit)
    }

    /// Takes `input` in and does what is due. Returns whether everything was compared with the kernel, of which little is
    /// needed any more.
    pub fn step(&mut self, input: Input) -> bool {
        let was_full = self.full;
        let now = (self.clock)();
        let facts_came = input.facts.is_some();
        if let Some(facts) = input.facts {
            self.facts = facts;
        }
        for (batch, arrived) in input.batches {
            self.take(batch, arrived, now);
        }
        if facts_came || self.attach_failed.is_some_and(|backoff| backoff.until <= now.mono) {
            self.sync_links(now);
        }
        if now.mono >= self.next_audit {
            self.next_audit = now.mono + AUDIT;
            self.forget();
        }
        if self.read {
            self.sync(now);
        }
        self.out.metrics.service_changes_pending.set(self.pending.services);
        self.out.metrics.endpoint_changes_pending.set(self.pending.endpoints);
        was_full && !self.full
    }

    fn take(&mut self, batch: Vec<Event>, arrived: Instant, now: Now) {
        self.pending.batches += 1;
        if self.pending.arrivals.len() < SAMPLES {
            self.pending.arrivals.push(arrived);
        }
        self.pending.digest = digest(&batch);
        let metrics = self.out.metrics.clone();
        for event in batch {
            match &event {
                Event::Init => self.read = false,
                Event::InitDone => self.read = true,
                Event::Node(Change::Apply(node)) => {
                    self.eligible = node.eligible;
                    self.node = Some(node.clone());
                }
                Event::Node(Change::Delete(name)) => {
                    self.node.take_if(|node| node.name == *name);
                }
                Event::Skipped(skipped) => {
                    self.count_skipped(skipped, "left out");
                    self.summary.source_skipped(skipped.clone());
                }
                Event::Reviewed { subject } => self.summary.source_reviewed(subject),
                Event::Service(_) | Event::Slice(_) => {}
            }
            let is_service = matches!(event, Event::Service(_));
            let trigger = match &event {
                Event::Slice(Change::Apply(slice)) => slice.triggered_ms.map(|ms| (slice.family, ms)),
                _ => None,
            };
            let touched = self.planner.apply(event);
            if touched.is_empty() {
                continue;
            }
            if is_service {
                metrics.service_changes.inc();
                self.pending.services += 1;
            } else {
                metrics.endpoint_changes.inc();
                self.pending.endpoints += 1;
            }
            // A change from before we started says how long we were away, not how fast we are.
            let trigger = trigger.filter(|(_, ms)| *ms >= self.started.wall.as_millisecond());
            if self.pending.triggers.len() < SAMPLES {
                self.pending.triggers.extend(trigger);
            }
            self.touched.extend(touched);
            metrics.last_queued.set(unix_seconds(now.wall));
        }
        // Eligibility does not wait for the kernel: the node must drain even if syncs fail.
        self.out.health.set_node_eligible(self.eligible);
    }

    fn count_skipped(&self, skipped: &Skipped, what: &str) {
        let kind = match skipped.object.split_once(' ') {
            Some((kind @ ("Service" | "EndpointSlice" | "Node"), _)) => kind,
            _ => "Manifest",
        };
        tracing::warn!(
            object = skipped.object,
            field = skipped.field,
            reason = skipped.reason,
            "{what}"
        );
        self.out
            .metrics
            .skipped
            .get_or_create(&[("kind", kind.to_owned())])
            .inc();
    }

    /// Distrusts all memory of the kernel.
    fn forget(&mut self) {
        self.kernel.forget();
        self.unsynced = Changed::All;
        self.view = None;
        self.full = true;
    }

    /// Plans and programs, unless nothing changed or a failure was too short ago.
    fn sync(&mut self, now: Now) {
        let view = self.facts.node_view(&self.settings, self.node.as_ref());
        let view_differs = self.view.as_ref() != Some(&view);
        if !view_differs && self.touched.is_nothing() && self.unsynced.is_nothing() {
            self.applied(now, None);
            return;
        }
        self.out.health.queued(now);
        if self.failed.is_some_and(|backoff| backoff.until > now.mono) {
            return;
        }
        if view_differs && let Err(error) = self.kernel.set_node(&view) {
            self.sync_failed(&error, now);
            return;
        }
        let touched = if view_differs {
            Changed::All
        } else {
            self.touched.clone()
        };
        let changed = self.planner.update(&view, &touched);
        self.touched = Changed::nothing();
        self.view = Some(view);
        let new = self.summary.update(self.planner.plan(), &changed);
        for skipped in &new {
            self.count_skipped(skipped, "not served");
        }
        self.unsynced.extend(changed);
        match self.kernel.sync(self.planner.plan(), &self.unsynced) {
            Ok(report) => {
                let done = (self.clock)();
                let changed = std::mem::replace(&mut self.unsynced, Changed::nothing());
                self.synced(&report, &changed, now, done);
                self.applied(done, Some(&report));
            }
            Err(error) => self.sync_failed(&error, now),
        }
    }

    fn sync_failed(&mut self, error: &ApplyError, now: Now) {
        self.forget();
        let backoff = Backoff::after(self.failed, now.mono);
        self.failed = Some(backoff);
        tracing::error!(%error, retry_in_ms = backoff.pause.as_millis() as u64, "the plan did not reach the kernel");
        let metrics = &self.out.metrics;
        let reason = match error {
            ApplyError::Full { map, .. } => {
                metrics.map_full.get_or_create(&[("map", (*map).to_owned())]).inc();
                "full"
            }
            ApplyError::Kernel { .. } => "kernel",
            ApplyError::Unsupported { .. } => "unsupported",
        };
        metrics
            .sync_failures
            .get_or_create(&[("reason", reason.to_owned())])
            .inc();
        let retry = now
            .wall
            .saturating_add(SignedDuration::try_from(backoff.pause).unwrap_or_default());
        self.out.status.update(|status| {
            status.error = Some(error.to_string());
            status.retry_at = retry.ok().map(|at| at.to_string());
        });
    }

    /// Bookkeeping after a good sync that began at `from`.
    fn synced(&mut self, report: &SyncReport, changed: &Changed, from: Now, to: Now) {
        self.failed = None;
        let full = std::mem::take(&mut self.full);
        let seconds = to.mono.saturating_duration_since(from.mono).as_secs_f64();
        let metrics = &self.out.metrics;
        metrics.sync_duration.observe(seconds);
        if full {
            &metrics.sync_full_duration
        } else {
            &metrics.sync_partial_duration
        }
        .observe(seconds);
        metrics.last_sync.set(unix_seconds(to.wall));
        metrics.sync_ops.inc_by(report.ops as u64);
        metrics.deferred_services.set(report.deferred.len() as i64);
        for (_, error) in &report.deferred {
            if let ApplyError::Full { map, .. } = error {
                metrics.map_full.get_or_create(&[("map", (*map).to_owned())]).inc();
            }
        }
        self.summary.dataplane_said(changed, report);
        for (traffic_policy, services) in [
            ("internal", self.summary.counts().no_local_internal),
            ("external", self.summary.counts().no_local_external),
        ] {
            let labels = [("traffic_policy", traffic_policy.to_owned())];
            metrics.no_local_endpoints.get_or_create(&labels).set(services as i64);
        }
        if full || report.ops > 0 {
            tracing::info!(
                services = report.services,
                ops = report.ops,
                full,
                seconds,
                "plan applied"
            );
        }
        let error = deferred_text(report);
        if let Some(error) = &error
            && self.out.status.get().error.as_ref() != Some(error)
        {
            tracing::error!(error, "some services are not served");
        }
        let last_sync = LastSync {
            at: to.wall.to_string(),
            seconds,
            ops: report.ops,
            services: report.services,
            full,
        };
        self.out.status.update(|status| {
            status.error = error;
            status.retry_at = None;
            status.last_sync = Some(last_sync);
        });
        let state = CheckState {
            checks: self.summary.checks().clone(),
            addresses: self
                .view
                .as_ref()
                .map(|view| view.node_port_addresses.clone())
                .unwrap_or_default(),
        };
        self.out.checks.send_if_modified(|held| {
            let differs = *held != state;
            *held = state;
            differs
        });
    }

    /// Everything that was pending is in the kernel: tells those who wait. `None` = there was nothing to do.
    fn applied(&mut self, now: Now, report: Option<&SyncReport>) {
        if report.is_none() && self.pending.batches == 0 {
            return;
        }
        let pending = std::mem::take(&mut self.pending);
        let metrics = &self.out.metrics;
        if report.is_some() {
            for arrived in &pending.arrivals {
                metrics
                    .change_to_kernel
                    .observe(now.mono.saturating_duration_since(*arrived).as_secs_f64());
            }
            for (family, ms) in &pending.triggers {
                let family = match family {
                    Family::V4 => "IPv4",
                    Family::V6 => "IPv6",
                };
                let seconds = (now.wall.as_millisecond() - ms).max(0) as f64 / 1000.0;
                metrics
                    .network_programming
                    .get_or_create(&[("ip_family", family.to_owned())])
                    .observe(seconds);
            }
        }
        let batches = pending.batches;
        metrics.applied_batches.inc_by(batches);
        self.out.health.updated(now);
        let (counts, skipped) = (self.summary.counts(), self.summary.skipped());
        let ports = self
            .view
            .as_ref()
            .map(|view| view.node_port_addresses.clone())
            .unwrap_or_default();
        self.out.status.update(|status| {
            status.ready = true;
            status.applied_events += batches;
            if batches > 0 {
                status.last_batch_digest = pending.digest;
            }
            status.plan = counts;
            status.skipped = skipped;
            status.node_port_addresses = ports;
        });
    }

    /// Attaches to links that came, detaches from links that went. One link's failure leaves the others alone.
    fn sync_links(&mut self, now: Now) {
        let want = self.facts.wanted_links(&self.devices, &self.pod_devices);
        for event in diff_links(&self.links, &want) {
            if let LinkEvent::Detach(link) = event {
                if let Err(error) = self.kernel.detach(&link) {
                    tracing::warn!(%error, link = link.name, "cannot detach");
                }
                self.attached.remove(&link.ifindex);
            }
        }
        self.links = want;
        let mut failed = false;
        for link in self.links.values() {
            let before = self.attached.get(&link.ifindex);
            if matches!(before, Some(Ok(_))) {
                continue;
            }
            let result = self.kernel.attach(link).map_err(|error| error.to_string());
            match &result {
                Ok(attached) => {
                    tracing::info!(link = link.name, role = %link.role, mode = attached.mode, "attached");
                }
                Err(error) => {
                    failed = true;
                    let labels = [("role", link.role.to_string())];
                    self.out.metrics.attach_failures.get_or_create(&labels).inc();
                    if before != Some(&result) {
                        tracing::error!(error, link = link.name, role = %link.role, "cannot attach; trying again");
                    }
                }
            }
            self.attached.insert(link.ifindex, result);
        }
        self.attach_failed = failed.then(|| Backoff::after(self.attach_failed, now.mono));
        let interfaces = self.links.values().map(|link| {
            let (mode, detail) = match self.attached.get(&link.ifindex) {
                Some(Ok(attached)) => (attached.mode.clone(), attached.detail.clone()),
                Some(Err(error)) => (String::new(), error.clone()),
                None => Default::default(),
            };
            Interface {
                name: link.name.clone(),
                ifindex: link.ifindex,
                role: link.role.to_string(),
                mode,
                detail,
            }
        });
        let interfaces: Vec<_> = interfaces.collect();
        self.out.status.update(|status| status.interfaces = interfaces);
    }
}

/// One line for all services that did not fit.
fn deferred_text(report: &SyncReport) -> Option<String> {
    let (name, error) = report.deferred.first()?;
    let others = match report.deferred.len() {
        1 => String::new(),
        count => format!(" and {} other services", count - 1),
    };
    Some(format!("{name}{others} cannot be served: {error}"))
}

fn unix_seconds(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1000.0
}

/// A hash of what the events say, the same for the same events in every agent of one build.
fn digest(batch: &[Event]) -> String {
    let mut hasher = DefaultHasher::new();
    batch.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
