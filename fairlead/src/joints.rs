//! Where the agent meets the source and the dataplane: the only file that names their types.

use ::proxy::{
    config::{BpfLogLevel, Config, Forwarding, PortRange, Source, TcAttach},
    controller::{Attached, Changed, Kernel, Planning, SyncReport},
    dataplane::{
        Reconciler,
        ebpf::{EbpfDataplane, Maps, Options, Role, Sizes, Usage, cleanup as remove, mount},
    },
    error::ApplyError,
    hostview::{self, Link},
    metrics::{CounterSource, Metrics},
    model::{Event, NodeView, ObjectName, ServiceMap},
    plan::{Plan, compile},
    source::{kubernetes, manifests},
    status::{MapFill, Probe},
};
use proxy_common::{
    abi::{Node, node_flags},
    verdict::Verdict,
};
use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    path::Path,
    sync::Arc,
};
use tokio::sync::{mpsc, watch};

/// A dataplane, ready for its first sync.
pub(crate) struct Parts {
    /// Service map and planner.
    pub(crate) planner: Box<dyn Planning>,
    /// Reconciler and programs.
    pub(crate) kernel: Box<dyn Kernel>,
    /// Counters, readable from any thread.
    pub(crate) counters: Arc<dyn CounterSource>,
    /// What the kernel was asked.
    pub(crate) probes: Vec<Probe>,
}

/// Service map and planner.
#[derive(Default)]
struct Planner {
    services: ServiceMap,
    planner: compile::Planner,
}

impl Planning for Planner {
    fn apply(&mut self, event: Event) -> BTreeSet<ObjectName> {
        self.services.apply(event)
    }

    fn update(&mut self, node: &NodeView, changed: &Changed) -> BTreeSet<ObjectName> {
        let changed = match changed {
            Changed::All => compile::Changed::All,
            Changed::Services(names) => compile::Changed::Services(names),
        };
        self.planner.update(&self.services, node, changed)
    }

    fn plan(&self) -> &Plan {
        self.planner.plan()
    }
}

/// Reconciler and programs.
struct EbpfKernel {
    reconciler: Reconciler<EbpfDataplane>,
    /// Map entries by service, so that the sum follows a change at the price of the change.
    usage: HashMap<ObjectName, Usage>,
    total: Usage,
    /// The maps hold a plan: sockets may be translated.
    serving: bool,
    /// Interfaces on which our programs should be but are not.
    unattached: BTreeSet<u32>,
    tcx: bool,
}

impl EbpfKernel {
    fn note_usage(&mut self, changed: &Changed, plan: &Plan) {
        let names: Vec<ObjectName> = match changed {
            Changed::All => self
                .usage
                .keys()
                .chain(plan.services.keys())
                .cloned()
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
            Changed::Services(names) => names.iter().cloned().collect(),
        };
        for name in names {
            let now = self.reconciler.image(&name).map(Usage::of);
            let before = match now {
                Some(now) => self.usage.insert(name, now),
                None => self.usage.remove(&name),
            };
            self.total = self.total.changed(before.unwrap_or_default(), now.unwrap_or_default());
        }
        self.reconciler.dataplane().maps().note_usage(self.total);
    }
}

impl Kernel for EbpfKernel {
    fn sync(&mut self, plan: &Plan, changed: &Changed) -> Result<SyncReport, ApplyError> {
        let report = self.reconciler.sync(plan, changed)?;
        self.note_usage(changed, plan);
        if !self.serving {
            self.serving = true;
            let dataplane = self.reconciler.dataplane_mut();
            // Only an accelerator: packets are translated without it.
            if let Err(error) = dataplane.attach_sockets() {
                tracing::error!(%error, "no socket load balancing until the next start; services work, at TC's price");
            }
            dataplane.prune(&self.unattached);
        }
        Ok(report)
    }

    fn forget(&mut self) {
        self.reconciler.forget();
    }

    fn set_node(&mut self, view: &NodeView) -> Result<(), ApplyError> {
        let (mut v4, mut v6) = ([0; 4], [0; 16]);
        // The last one found stays: the primary address of the family, else any.
        for addr in view.addresses.iter().rev().chain(view.primary.iter().flatten()) {
            match addr {
                IpAddr::V4(addr) => v4 = addr.octets(),
                IpAddr::V6(addr) => v6 = addr.octets(),
            }
        }
        self.reconciler.dataplane_mut().set_addresses(v4, v6)
    }

    fn attach(&mut self, link: &Link) -> Result<Attached, ApplyError> {
        let (role, peer) = match link.role {
            hostview::Role::Pod => (Role::Pod, link.kind == "veth" && link.peer_netnsid.is_some()),
            hostview::Role::Device => (Role::Net, false),
        };
        self.unattached.insert(link.ifindex);
        self.reconciler
            .dataplane_mut()
            .attach(link.ifindex, &link.name, role, peer)?;
        self.unattached.remove(&link.ifindex);
        let (mode, detail) = if self.tcx {
            ("tcx", "the kernel has links on tcx")
        } else {
            ("clsact", "the kernel has no tcx, or --tc-attach clsact")
        };
        Ok(Attached {
            mode: mode.into(),
            detail: detail.into(),
        })
    }

    fn detach(&mut self, link: &Link) -> Result<(), ApplyError> {
        self.unattached.remove(&link.ifindex);
        self.reconciler.dataplane_mut().detach(link.ifindex)
    }
}

/// The programs' counters.
struct Counters(Arc<Maps>);

impl CounterSource for Counters {
    fn packets(&self) -> Vec<(Verdict, u64)> {
        self.0.counters().unwrap_or_else(|error| {
            tracing::warn!(%error, "packet counters are missing from this scrape");
            Vec::new()
        })
    }

    fn maps(&self) -> Vec<MapFill> {
        self.0.fill()
    }
}

/// Probes the kernel, loads programs, adopts what an earlier agent left.
///
/// # Errors
/// The kernel lacks something, or refuses.
pub(crate) fn open_dataplane(config: &Config) -> Result<Parts, ApplyError> {
    mount::ensure_bpffs(&config.bpffs)?;
    let maps = &config.maps;
    let lo_ifindex = mount::loopback()?;
    let PortRange { first, last } = config.snat_ports;
    let direct = if config.forwarding == Forwarding::Direct {
        node_flags::DIRECT
    } else {
        0
    };
    let node = Node {
        snat_port_first: first,
        snat_port_last: last,
        // The hasher is seeded from the system's randomness.
        seed: RandomState::new().hash_one(&config.node_name) as u32,
        flags: direct,
        lo_ifindex,
        ..Node::default()
    };
    let options = Options {
        sizes: Sizes {
            frontends: maps.frontends,
            backends: maps.backends,
            slots: maps.slots,
            flows: maps.flows,
            affinities: maps.affinities,
            source_ranges: maps.source_ranges,
            sockets: maps.sockets,
            fragments: maps.fragments,
        },
        bpffs: Some(config.bpffs.clone()),
        cgroup: config.cgroup_root.clone(),
        node,
        masquerade_all: config.masquerade_all,
        tcx: match config.tc_attach {
            TcAttach::Auto => None,
            TcAttach::Tcx => Some(true),
            TcAttach::Clsact => Some(false),
        },
        log_level: match config.bpf_log_level {
            BpfLogLevel::Off => 0,
            BpfLogLevel::Error => 1,
            BpfLogLevel::Warn => 2,
            BpfLogLevel::Info => 3,
            BpfLogLevel::Debug => 4,
            BpfLogLevel::Trace => 5,
        },
    };
    let mut dataplane = EbpfDataplane::open(&options)?;
    dataplane.attach(lo_ifindex, "lo", Role::Loopback, false)?;
    let probes = dataplane.probes().to_vec();
    let tcx = dataplane.tcx();
    let counters = Arc::new(Counters(dataplane.maps()));
    let kernel = EbpfKernel {
        reconciler: Reconciler::new(dataplane),
        usage: HashMap::new(),
        total: Usage::default(),
        serving: false,
        unattached: BTreeSet::new(),
        tcx,
    };
    Ok(Parts {
        planner: Box::<Planner>::default(),
        kernel: Box::new(kernel),
        counters,
        probes,
    })
}

/// Starts reading the source: through `client` where there is one. It stops when the receiver is dropped.
///
/// # Errors
/// The source cannot be read at all: a bad kubeconfig, a folder that does not exist.
pub(crate) async fn open_source(
    config: &Config,
    client: Option<kube::Client>,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<mpsc::Receiver<Vec<Event>>> {
    let client = match (client, &config.source) {
        (Some(client), _) => client,
        (None, Source::Kubernetes { kubeconfig }) => kubernetes::client(kubeconfig.as_deref()).await?,
        (None, Source::Manifests(dir)) => {
            return Ok(manifests::follow(dir.clone(), config.node_name.as_str().into())?);
        }
    };
    let (events, health) = kubernetes::follow(&client, &config.node_name);
    tokio::spawn(count_errors(health, metrics.clone()));
    Ok(events)
}

/// Counts errors of the watches: each time a kind's error appears or becomes another one.
async fn count_errors(mut health: watch::Receiver<kubernetes::SourceHealth>, metrics: Arc<Metrics>) {
    let mut last: [Option<String>; 3] = Default::default();
    while health.changed().await.is_ok() {
        let now = {
            let health = health.borrow_and_update();
            [
                health.services.error.clone(),
                health.slices.error.clone(),
                health.node.error.clone(),
            ]
        };
        for (kind, (before, now)) in ["services", "endpointslices", "node"]
            .into_iter()
            .zip(last.iter().zip(&now))
        {
            if now.is_some() && before != now {
                metrics
                    .source_errors
                    .get_or_create(&[("source", kind.to_owned())])
                    .inc();
            }
        }
        last = now;
    }
}

/// Removes every trace of an agent from the kernel. Idempotent; goes on after an error and reports all of them. Returns
/// what was removed, one line each.
///
/// # Errors
/// Something could not be removed.
pub(crate) fn cleanup(bpffs: &Path, _cgroup_root: Option<&Path>) -> anyhow::Result<Vec<String>> {
    let (removed, errors) = remove::cleanup(bpffs);
    if !errors.is_empty() {
        let list: Vec<String> = errors
            .iter()
            .map(|(path, error)| format!("{}: {error}", path.display()))
            .collect();
        anyhow::bail!(
            "not everything could be removed (run again as root): {}",
            list.join("; ")
        );
    }
    let mut lines = Vec::new();
    if removed.links > 0 {
        lines.push(format!("{} links of programs to interfaces and cgroups", removed.links));
    }
    if removed.filters > 0 {
        lines.push(format!("{} filters on interfaces", removed.filters));
    }
    if removed.maps > 0 {
        lines.push(format!("{} maps", removed.maps));
    }
    Ok(lines)
}
