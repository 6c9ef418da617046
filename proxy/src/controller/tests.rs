//! The controller against a planner and a kernel that only remember.

use super::*;
use crate::{
    clock::Now,
    config::{LinkFilter, NodePortAddresses},
    error::Skipped,
    health::{CheckState, ProxyHealth},
    hostview::{DefaultRoute, LinkFacts, NodeSettings},
    metrics::{Format, Metrics},
    model::{Change, EndpointSlice, Family, Node, Service, TrafficPolicy},
    plan::{Decision, Frontend, FrontendKind, HealthCheck, PortPlan, ServicePlan, SourceRanges},
    status::{Status, StatusHolder},
};
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

/// One frontend per service; a Node or a slice touches nothing, but a slice of a known service touches that.
#[derive(Debug, Default)]
struct FakePlanner {
    services: BTreeMap<ObjectName, ServicePlan>,
    plan: Plan,
}

impl Planning for FakePlanner {
    fn apply(&mut self, event: Event) -> BTreeSet<ObjectName> {
        match event {
            Event::Service(Change::Apply(service)) => {
                let frontend = Frontend {
                    addr: service.cluster_ips[0],
                    port: 80.try_into().unwrap(),
                    kind: FrontendKind::ClusterIP,
                    internal: Decision::Drop,
                    external: Decision::Reject,
                    sources: SourceRanges::Any,
                    node_address: false,
                };
                let port = PortPlan {
                    name: "".into(),
                    protocol: crate::model::Protocol::Tcp,
                    family: Family::V4,
                    affinity_s: None,
                    backends: Vec::new(),
                    frontends: vec![frontend],
                };
                let health_check = service.health_check_node_port.map(|port| HealthCheck {
                    port,
                    local_endpoints: 1,
                });
                let plan = ServicePlan {
                    ports: vec![port],
                    health_check,
                    skipped: Vec::new(),
                };
                self.services.insert(service.name.clone(), plan);
                [service.name].into()
            }
            Event::Service(Change::Delete(name)) => {
                self.services.remove(&name);
                [name].into()
            }
            Event::Slice(Change::Apply(slice)) => [slice.service].into(),
            _ => BTreeSet::new(),
        }
    }

    fn update(&mut self, _: &NodeView, changed: &Changed) -> BTreeSet<ObjectName> {
        let names = match changed {
            Changed::All => self.services.keys().chain(self.plan.services.keys()).cloned().collect(),
            Changed::Services(names) => names.clone(),
        };
        for name in &names {
            match self.services.get(name) {
                Some(service) => self.plan.services.insert(name.clone(), Arc::new(service.clone())),
                None => self.plan.services.remove(name),
            };
        }
        names
    }

    fn plan(&self) -> &Plan {
        &self.plan
    }
}

#[derive(Debug, Default)]
struct Log {
    /// Calls in order, as text.
    calls: Vec<String>,
    /// How many of the next syncs and attaches fail.
    fail: usize,
    /// Services that do not fit.
    too_many: BTreeSet<ObjectName>,
}

#[derive(Clone, Debug, Default)]
struct FakeKernel(Arc<Mutex<Log>>);

impl FakeKernel {
    fn call(&self, text: String, can_fail: bool) -> Result<(), ApplyError> {
        let mut log = self.0.lock().unwrap();
        let fails = can_fail && log.fail > 0;
        log.fail -= usize::from(fails);
        log.calls
            .push(if fails { format!("{text} fails") } else { text.clone() });
        match fails {
            true => Err(ApplyError::Kernel {
                op: text,
                source: io::Error::from_raw_os_error(libc::ENOMEM),
            }),
            false => Ok(()),
        }
    }

    /// What was called since the last time.
    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().calls)
    }
}

impl Kernel for FakeKernel {
    fn sync(&mut self, plan: &Plan, changed: &Changed) -> Result<SyncReport, ApplyError> {
        let names = match changed {
            Changed::All => format!("all {}", plan.services.len()),
            Changed::Services(names) => names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        };
        self.call(format!("sync {names}"), true)?;
        let full = || ApplyError::Full {
            map: "BACKENDS_V4",
            max_entries: 16,
            flag: "max-backends",
        };
        let too_many = self.0.lock().unwrap().too_many.clone();
        Ok(SyncReport {
            ops: 1,
            services: 1,
            deferred: too_many.into_iter().map(|name| (name, full())).collect(),
            skipped: Vec::new(),
        })
    }
    fn forget(&mut self) {
        self.call("forget".to_owned(), false).unwrap();
    }
    fn set_node(&mut self, node: &NodeView) -> Result<(), ApplyError> {
        self.call(format!("node {}", node.zone.as_deref().unwrap_or("-")), false)
    }
    fn attach(&mut self, link: &Link) -> Result<Attached, ApplyError> {
        self.call(format!("attach {}", link.name), true)?;
        Ok(Attached {
            mode: "tcx".to_owned(),
            detail: String::new(),
        })
    }
    fn detach(&mut self, link: &Link) -> Result<(), ApplyError> {
        self.call(format!("detach {}", link.name), false)
    }
}

fn service(name: &str) -> Service {
    Service {
        name: ObjectName::new("d", name),
        created_s: None,
        cluster_ips: vec!["10.96.0.10".parse().unwrap()],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        ports: Vec::new(),
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        source_ranges: Vec::new(),
        affinity_s: None,
        health_check_node_port: None,
    }
}

fn apply(name: &str) -> Event {
    Event::Service(Change::Apply(service(name)))
}

fn initial(names: &[&str]) -> Vec<Event> {
    [Event::Init]
        .into_iter()
        .chain(names.iter().map(|name| apply(name)))
        .chain([Event::InitDone])
        .collect()
}

struct Bench {
    core: Core<FakePlanner, FakeKernel>,
    kernel: FakeKernel,
    out: Outputs,
    checks: watch::Receiver<CheckState>,
    now: Arc<Mutex<Now>>,
}

impl Bench {
    fn new() -> Self {
        let now = Arc::new(Mutex::new(Now::read()));
        let clock = now.clone();
        Self::with_clock(now, move || *clock.lock().unwrap())
    }

    fn with_clock(now: Arc<Mutex<Now>>, clock: impl Fn() -> Now + Send + 'static) -> Self {
        let kernel = FakeKernel::default();
        let (sender, checks) = watch::channel(CheckState::default());
        let out = Outputs {
            status: StatusHolder::new(Status::default()),
            metrics: Arc::new(Metrics::new()),
            health: Arc::new(ProxyHealth::new(Duration::from_secs(60))),
            checks: sender,
        };
        let settings = NodeSettings {
            name: "a".into(),
            node_ip: None,
            node_ports: NodePortAddresses {
                primary: true,
                cidrs: Vec::new(),
            },
            masquerade_all: false,
        };
        let filters = (LinkFilter::Auto, LinkFilter::Auto);
        let core = Core::new(
            FakePlanner::default(),
            kernel.clone(),
            settings,
            filters,
            out.clone(),
            clock,
        );
        Self {
            core,
            kernel,
            out,
            checks,
            now,
        }
    }

    fn pass(&self, time: Duration) {
        let mut now = self.now.lock().unwrap();
        now.mono += time;
        now.wall += time;
    }

    /// One step with these batches; returns the kernel's calls.
    fn step(&mut self, batches: Vec<Vec<Event>>) -> Vec<String> {
        let arrived = self.now.lock().unwrap().mono;
        let batches = batches.into_iter().map(|batch| (batch, arrived)).collect();
        self.core.step(Input { batches, facts: None });
        self.kernel.calls()
    }

    fn status(&self) -> Status {
        self.out.status.get()
    }
}

#[test]
fn nothing_is_programmed_before_everything_has_been_read() {
    let mut bench = Bench::new();
    assert!(bench.step(vec![vec![Event::Init, apply("x")]]).is_empty());
    assert_eq!((bench.status().ready, bench.status().applied_events), (false, 0));
    assert_eq!(
        bench.step(vec![vec![apply("y"), Event::InitDone]]),
        ["node -", "sync all 2"]
    );
    let status = bench.status();
    assert_eq!(
        (status.ready, status.applied_events, status.plan.services),
        (true, 2, 2)
    );
    assert!(status.last_sync.unwrap().full);
}

#[test]
fn a_change_costs_what_it_changes() {
    let mut bench = Bench::new();
    bench.step(vec![initial(&["x", "y", "z"])]);
    assert_eq!(bench.step(vec![vec![apply("y")]]), ["sync d/y"]);
    let status = bench.status();
    assert_eq!(
        (status.applied_events, status.plan.services, status.plan.frontends),
        (2, 3, 3)
    );
    assert_eq!(status.plan.no_local_internal, 3);
    assert!(!status.last_sync.unwrap().full);
    let gone = Event::Service(Change::Delete(ObjectName::new("d", "x")));
    assert_eq!(bench.step(vec![vec![apply("z"), gone]]), ["sync d/x d/z"]);
    assert_eq!(bench.status().plan.services, 2);
    // Nothing that matters: no sync, but whoever waits for the batch is told.
    assert!(bench.step(vec![vec![]]).is_empty());
    assert_eq!(bench.status().applied_events, 4);
    let text = bench.out.metrics.encode(Format::Text);
    assert!(text.contains("kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"internal\"} 2\n"));
    assert!(
        text.contains("kubeproxy_sync_proxy_rules_service_changes_total 6\n"),
        "{text}"
    );
}

#[test]
fn a_failed_sync_is_repeated_with_growing_pauses_and_then_covers_everything() {
    let mut bench = Bench::new();
    bench.step(vec![initial(&["x", "y"])]);
    bench.kernel.0.lock().unwrap().fail = 10;
    assert_eq!(bench.step(vec![vec![apply("y")]]), ["sync d/y fails", "forget"]);
    let status = bench.status();
    assert_eq!(status.applied_events, 1, "not in the kernel");
    assert!(status.error.unwrap().contains("sync d/y"));
    assert!(status.retry_at.is_some());
    let mut pauses = Vec::new();
    loop {
        let start = bench.now.lock().unwrap().mono;
        let pause = bench.core.deadline() - start;
        pauses.push(pause.as_millis());
        assert!(bench.step(vec![vec![]]).is_empty(), "too early");
        bench.pass(pause);
        if bench.step(vec![]).last().unwrap() == "sync all 2" {
            break;
        }
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000]);
    let status = bench.status();
    assert_eq!((status.error, status.retry_at), (None, None));
    assert_eq!(status.applied_events, 2 + pauses.len() as u64);
    assert_eq!(bench.step(vec![vec![apply("x")]]), ["sync d/x"], "incremental again");
    let text = bench.out.metrics.encode(Format::Text);
    assert!(text.contains("fairlead_sync_failures_total{reason=\"kernel\"} 10\n"));
}

#[test]
fn a_change_that_cannot_be_programmed_makes_healthz_fail() {
    let mut bench = Bench::new();
    let keeps_up = |bench: &Bench| bench.out.health.check(*bench.now.lock().unwrap()).keeps_up;
    bench.step(vec![vec![Event::Init, apply("x")]]);
    bench.pass(Duration::from_secs(1000));
    assert!(keeps_up(&bench), "a slow API server is not our failure");
    bench.kernel.0.lock().unwrap().fail = usize::MAX;
    bench.step(vec![vec![Event::InitDone]]);
    bench.pass(Duration::from_secs(59));
    bench.step(vec![]);
    assert!(keeps_up(&bench));
    bench.pass(Duration::from_secs(1));
    assert!(!keeps_up(&bench));
    bench.kernel.0.lock().unwrap().fail = 0;
    bench.pass(Duration::from_secs(30));
    bench.step(vec![]);
    assert!(keeps_up(&bench));
}

#[test]
fn a_full_map_is_told_with_its_flag() {
    let mut bench = Bench::new();
    bench.kernel.0.lock().unwrap().too_many = [ObjectName::new("d", "y")].into();
    bench.step(vec![initial(&["x", "y"])]);
    let status = bench.status();
    assert_eq!(status.applied_events, 1, "the others are served");
    assert!(status.error.unwrap().contains("raise --max-backends"));
    assert_eq!(status.skipped[0].object, "Service d/y");
    let text = bench.out.metrics.encode(Format::Text);
    assert!(text.contains("fairlead_map_full_total{map=\"BACKENDS_V4\"} 1\n"));
    assert!(text.contains("fairlead_deferred_services 1\n"));
    bench.kernel.0.lock().unwrap().too_many.clear();
    bench.step(vec![vec![apply("x")]]);
    assert_eq!((bench.status().error, bench.status().skipped.len()), (None, 0));
}

#[test]
fn what_the_source_skips_is_shown_until_it_says_otherwise() {
    let mut bench = Bench::new();
    let skipped = |object: &str| {
        Event::Skipped(Skipped {
            object: object.to_owned(),
            field: "spec".to_owned(),
            reason: "bad".to_owned(),
        })
    };
    let batch = [
        initial(&["x"]),
        vec![skipped("Service d/x"), skipped("shop.yaml, document 3")],
    ]
    .concat();
    bench.step(vec![batch]);
    assert_eq!(bench.status().skipped.len(), 2);
    let reviewed = |subject: &str| Event::Reviewed {
        subject: subject.to_owned(),
    };
    bench.step(vec![vec![apply("x")]]);
    assert_eq!(
        bench.status().skipped.len(),
        2,
        "only the source knows whether it is over"
    );
    bench.step(vec![vec![reviewed("Service d/x"), apply("x")]]);
    assert_eq!(bench.status().skipped.len(), 1);
    let batch = vec![reviewed("shop.yaml, document 3"), skipped("shop.yaml, document 3")];
    bench.step(vec![batch]);
    assert_eq!(bench.status().skipped[0].object, "shop.yaml, document 3", "still wrong");
    bench.step(vec![vec![reviewed("shop.yaml, document 3")]]);
    assert_eq!(bench.status().skipped, []);
    let text = bench.out.metrics.encode(Format::Text);
    assert!(text.contains("fairlead_skipped_objects_total{kind=\"Service\"} 1\n"));
    assert!(text.contains("fairlead_skipped_objects_total{kind=\"Manifest\"} 2\n"));
}

#[test]
fn the_node_object_reaches_the_plan_and_healthz() {
    let mut bench = Bench::new();
    bench.step(vec![initial(&["x"])]);
    let node = |eligible| {
        let node = Node {
            name: "a".into(),
            zone: Some("z1".into()),
            internal_ips: Vec::new(),
            eligible,
        };
        Event::Node(Change::Apply(node))
    };
    assert_eq!(bench.step(vec![vec![node(true)]]), ["node z1", "sync d/x"]);
    assert!(
        bench.step(vec![vec![node(false)]]).is_empty(),
        "eligibility is not in the plan"
    );
    let eligible = |bench: &Bench| bench.out.health.check(*bench.now.lock().unwrap()).node_eligible;
    assert!(!eligible(&bench));
    bench.step(vec![vec![node(true)]]);
    assert!(eligible(&bench));
    assert_eq!(
        bench.step(vec![vec![Event::Node(Change::Delete("a".into()))]]),
        ["node -", "sync d/x"]
    );
    assert!(eligible(&bench));
}

#[test]
fn a_node_that_drained_stays_out_when_its_object_goes() {
    let mut bench = Bench::new();
    let node = Node {
        name: "a".into(),
        eligible: false,
        ..Node::default()
    };
    bench.step(vec![initial(&["x"]), vec![Event::Node(Change::Apply(node))]]);
    bench.step(vec![vec![Event::Node(Change::Delete("a".into()))]]);
    assert!(!bench.out.health.check(*bench.now.lock().unwrap()).node_eligible);
}

#[test]
fn what_waits_for_a_kernel_that_refuses_is_counted_not_hoarded() {
    const SAMPLES: u64 = 65_536;
    let mut bench = Bench::new();
    bench.kernel.0.lock().unwrap().fail = 1;
    bench.step(vec![initial(&["x"])]);
    bench.step(vec![Vec::new(); SAMPLES as usize + 10]);
    bench.pass(Duration::from_secs(1));
    bench.step(vec![]);
    assert_eq!(bench.status().applied_events, SAMPLES + 11);
    let text = bench.out.metrics.encode(Format::Text);
    let line = text
        .lines()
        .find(|line| line.starts_with("fairlead_change_to_kernel_duration_seconds_count"));
    assert_eq!(line.and_then(|line| line.split(' ').nth(1)), Some("65536"), "{text}");
}

fn facts(links: &[(u32, &str)]) -> HostFacts {
    let link = |name: &str| LinkFacts {
        name: name.to_owned(),
        ..LinkFacts::default()
    };
    HostFacts {
        links: links.iter().map(|(ifindex, name)| (*ifindex, link(name))).collect(),
        addresses: Vec::new(),
        default_routes: links
            .iter()
            .map(|(ifindex, _)| DefaultRoute {
                priority: 0,
                family: Family::V4,
                ifindex: *ifindex,
            })
            .collect(),
    }
}

#[test]
fn links_are_attached_as_they_come_and_again_after_a_failure() {
    let mut bench = Bench::new();
    let see = |bench: &mut Bench, links: &[(u32, &str)]| {
        bench.core.step(Input {
            batches: Vec::new(),
            facts: Some(facts(links)),
        });
        bench.kernel.calls()
    };
    bench.kernel.0.lock().unwrap().fail = 1;
    assert_eq!(
        see(&mut bench, &[(2, "eth0"), (3, "eth1")]),
        ["attach eth0 fails", "attach eth1"]
    );
    let status = bench.status();
    assert_eq!(
        (status.interfaces[0].mode.as_str(), status.interfaces[1].mode.as_str()),
        ("", "tcx")
    );
    assert!(status.interfaces[0].detail.contains("attach eth0"));
    bench.pass(Duration::from_millis(99));
    assert!(bench.step(vec![]).is_empty());
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.step(vec![]), ["attach eth0"]);
    assert_eq!(bench.status().interfaces[0].mode, "tcx");
    assert_eq!(
        see(&mut bench, &[(2, "eth9")]),
        ["detach eth0", "detach eth1", "attach eth9"]
    );
    assert_eq!(bench.status().interfaces.len(), 1);
}

#[test]
fn programming_latency_counts_from_the_trigger_time() {
    let mut bench = Bench::new();
    bench.step(vec![initial(&["x"])]);
    let started = bench.now.lock().unwrap().wall.as_millisecond();
    let slice = |triggered_ms| {
        Event::Slice(Change::Apply(EndpointSlice {
            name: ObjectName::new("d", "x-1"),
            service: ObjectName::new("d", "x"),
            family: Family::V6,
            ports: Vec::new(),
            endpoints: Vec::new(),
            triggered_ms: Some(triggered_ms),
        }))
    };
    bench.pass(Duration::from_millis(300));
    bench.step(vec![vec![slice(started + 100), slice(started - 5000)]]);
    let text = bench.out.metrics.encode(Format::Text);
    let count = "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv6\"} 1\n";
    assert!(
        text.contains(count),
        "a trigger from before the start is not ours: {text}"
    );
    assert!(text.contains("kubeproxy_network_programming_duration_seconds_sum{ip_family=\"IPv6\"} 0.2\n"));
    assert!(text.contains("kubeproxy_sync_proxy_rules_endpoint_changes_total 2\n"));
}

#[test]
fn health_checks_follow_the_plan() {
    let mut bench = Bench::new();
    let checked = Service {
        health_check_node_port: 30_999.try_into().ok(),
        ..service("x")
    };
    bench.step(vec![initial(&["y"]), vec![Event::Service(Change::Apply(checked))]]);
    assert_eq!(bench.checks.borrow_and_update().checks.len(), 1);
    bench.step(vec![vec![apply("x")]]);
    assert!(bench.checks.borrow_and_update().checks.is_empty());
}

#[test]
fn the_digest_tells_batches_apart() {
    let mut bench = Bench::new();
    bench.step(vec![initial(&["x"])]);
    let mut digest = |name: &str| {
        bench.step(vec![vec![apply(name)]]);
        bench.status().last_batch_digest
    };
    let (x, y, again) = (digest("x"), digest("y"), digest("x"));
    assert_eq!((x.len(), &x), (16, &again));
    assert_ne!(x, y);
}

mod running {
    use super::*;
    use std::future::{pending, ready};

    fn live() -> Bench {
        Bench::with_clock(Arc::new(Mutex::new(Now::read())), Now::read)
    }

    #[tokio::test]
    async fn a_burst_is_one_sync() {
        let bench = live();
        let (sender, events) = mpsc::channel(16);
        let (_host, host) = watch::channel(HostFacts::default());
        for batch in [initial(&["x"]), vec![apply("y")], vec![apply("z")]] {
            sender.send(batch).await.unwrap();
        }
        let task = tokio::spawn(run(bench.core, events, host, pending()));
        bench.out.status.applied_at_least(3).await;
        assert_eq!(bench.kernel.calls(), ["node -", "sync all 3"]);
        sender.send(vec![apply("y")]).await.unwrap();
        bench.out.status.applied_at_least(4).await;
        assert_eq!(bench.kernel.calls(), ["sync d/y"]);
        drop(sender);
        assert_eq!(task.await.unwrap().1, Exit::SourceEnded);
    }

    #[tokio::test]
    async fn a_host_that_is_not_followed_any_more_ends_it() {
        let bench = live();
        let (_sender, events) = mpsc::channel(16);
        let (host_sender, host) = watch::channel(HostFacts::default());
        drop(host_sender);
        assert_eq!(run(bench.core, events, host, pending()).await.1, Exit::HostEnded);
    }

    #[tokio::test]
    async fn stopping_goes_first() {
        let bench = live();
        let (sender, events) = mpsc::channel(16);
        let (_host, host) = watch::channel(HostFacts::default());
        sender.send(initial(&["x"])).await.unwrap();
        let (core, exit) = run(bench.core, events, host, ready(())).await;
        assert_eq!(exit, Exit::Stopped);
        core.unwrap().kernel_mut().forget();
        assert_eq!(bench.kernel.calls(), ["forget"], "nothing was synced");
    }

    #[tokio::test]
    async fn facts_arrive_on_their_own() {
        let bench = live();
        let (_sender, events) = mpsc::channel(16);
        let (host_sender, host) = watch::channel(facts(&[(2, "eth0")]));
        let status = bench.out.status.clone();
        let task = tokio::spawn(run(bench.core, events, host, pending()));
        let interfaces = async |count: usize| {
            while status.get().interfaces.len() != count {
                tokio::task::yield_now().await;
            }
        };
        interfaces(1).await;
        host_sender.send(facts(&[(2, "eth0"), (3, "eth1")])).unwrap();
        interfaces(2).await;
        task.abort();
    }

    /// Virtual time: half an hour passes at once.
    #[tokio::test(start_paused = true)]
    async fn memory_is_distrusted_every_half_hour() {
        let bench = live();
        let (sender, events) = mpsc::channel(16);
        let (_host, host) = watch::channel(HostFacts::default());
        sender.send(initial(&["x"])).await.unwrap();
        let kernel = bench.kernel.clone();
        let start = Instant::now();
        let stop = async {
            // Ready with the first audit: the third sync-like call after "node" and "sync".
            while kernel.0.lock().unwrap().calls.len() < 5 {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        run(bench.core, events, host, stop).await;
        assert!(start.elapsed() >= Duration::from_secs(1800));
        assert_eq!(
            bench.kernel.calls(),
            ["node -", "sync all 1", "forget", "node -", "sync all 1"]
        );
    }
}
