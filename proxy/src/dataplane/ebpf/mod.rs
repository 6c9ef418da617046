//! The eBPF dataplane: TC programs decide, cgroup programs short-cut.
//!
//! `lower.rs`, `diff.rs`, `ids.rs` and `image.rs` are pure; `load.rs`, `attach.rs`, `maps.rs`, `table.rs` and
//! `cleanup.rs` are the only ones that touch the kernel.

mod attach;
pub mod cleanup;
pub mod diff;
mod ids;
pub mod image;
pub mod judge;
mod load;
mod logs;
pub mod lower;
mod maps;
pub mod mount;
pub mod object;
mod pool;
pub mod probe;
mod sweep;
mod table;

pub use self::{
    attach::Role,
    load::{Sizes, pin_root},
    lower::{Capacity, Lowerer},
    maps::{Maps, Usage},
};

use self::{
    attach::Attachments,
    image::{Image, Op},
    sweep::Sweeper,
};
use super::{Dataplane, Lowered};
use crate::status::Probe;
use crate::{error::ApplyError, model::ObjectName, plan::ServicePlan};
use aya::{
    Ebpf,
    programs::{SchedClassifier, TestRun as _, TestRunOptions, TestRunResult},
};
use proxy_common::{
    abi::{Node, V4, V6, device_flags},
    verdict::Verdict,
};
use std::{collections::BTreeSet, fmt, path::PathBuf, sync::Arc};

/// How to start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Map sizes.
    pub sizes: Sizes,
    /// BPF file system to pin maps and links in; `None` = nothing outlives this value (tests, benchmarks).
    pub bpffs: Option<PathBuf>,
    /// cgroup v2 directory for socket load balancing; `None` = off.
    pub cgroup: Option<PathBuf>,
    /// What the programs need to know of this node.
    pub node: Node,
    /// Masquerade pods' ClusterIP traffic too.
    pub masquerade_all: bool,
    /// Attach by tcx links or not; `None` = as the kernel can.
    pub tcx: Option<bool>,
    /// Level of the programs' own log, 0 = off.
    pub log_level: u8,
}

/// The eBPF dataplane of one node.
pub struct EbpfDataplane {
    bpf: Ebpf,
    maps: Arc<Maps>,
    attachments: Attachments,
    lowerer: Lowerer,
    probes: Vec<Probe>,
    cgroup: Option<PathBuf>,
    node: Node,
    _sweeper: Sweeper,
    /// Nothing is in the maps yet: reading them would find nothing, slowly.
    empty: bool,
}

impl fmt::Debug for EbpfDataplane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EbpfDataplane")
            .field("attachments", &self.attachments)
            .finish_non_exhaustive()
    }
}

impl EbpfDataplane {
    /// Probes the kernel and loads maps and programs; nothing is attached yet.
    ///
    /// # Errors
    /// [`ApplyError::Unsupported`] without usable eBPF, with the remedy; [`ApplyError::Kernel`] otherwise.
    pub fn open(options: &Options) -> Result<Self, ApplyError> {
        let bpffs = options.bpffs.clone().unwrap_or_else(|| PathBuf::from("/sys/fs/bpf"));
        let (features, probes) = probe::run(&bpffs, options.cgroup.as_deref());
        if let Some(bpf) = probes.iter().find(|probe| probe.name == "bpf" && !probe.available) {
            return Err(ApplyError::Unsupported {
                dataplane: Self::NAME,
                feature: bpf.detail.clone(),
            });
        }
        let pins = options.bpffs.as_deref().map(pin_root);
        let mut loaded = load::load(&options.sizes, pins.as_deref(), &features, options.log_level)?;
        Attachments::load(&mut loaded.bpf, options.cgroup.is_some())?;
        if options.log_level > 0 {
            logs::follow(&mut loaded.bpf)?;
        }
        let flows = maps::open_flows(&mut loaded.bpf)?;
        let sweeper = Sweeper::start(flows).map_err(load::kernel("start a thread that sweeps flows"))?;
        let maps = Maps::open(&mut loaded.bpf)?;
        let mut node = options.node;
        if let Some(former) = maps.node()?.filter(|_| loaded.adopted) {
            // Flows go on: the same hash, and masquerading before the addresses are read anew.
            node.seed = former.seed;
            (node.snat_v4, node.snat_v6) = (former.snat_v4, former.snat_v6);
        }
        maps.set_node(&node)?;
        let sizes = &options.sizes;
        let capacity = Capacity {
            frontends: sizes.frontends,
            backends: sizes.backends,
            slots: sizes.slots,
            ranges: sizes.source_ranges,
        };
        Ok(Self {
            maps: Arc::new(maps),
            attachments: Attachments::new(pins, options.tcx.unwrap_or(features.tcx))?,
            lowerer: Lowerer::new(capacity).masquerade_all(options.masquerade_all),
            probes,
            cgroup: options.cgroup.clone(),
            node,
            _sweeper: sweeper,
            empty: !loaded.adopted,
            bpf: loaded.bpf,
        })
    }

    /// What the kernel was asked and what it answered.
    pub fn probes(&self) -> &[Probe] {
        &self.probes
    }

    /// Tells the programs about this node anew, whatever they knew.
    pub fn set_node(&mut self, node: Node) -> Result<(), ApplyError> {
        self.node = node;
        self.maps.set_node(&self.node)
    }

    /// Tells the programs which addresses masqueraded packets get, zero = none.
    pub fn set_addresses(&mut self, v4: V4, v6: V6) -> Result<(), ApplyError> {
        (self.node.snat_v4, self.node.snat_v6) = (v4, v6);
        self.maps.set_node(&self.node)
    }

    /// Puts our programs on an interface, or does nothing if they are there. `peer` allows redirects to the other end
    /// of a veth.
    pub fn attach(&mut self, ifindex: u32, name: &str, role: Role, peer: bool) -> Result<(), ApplyError> {
        self.maps.set_device(ifindex, peer.then_some(device_flags::PEER))?;
        self.attachments.attach(&mut self.bpf, ifindex, name, role)
    }

    /// Forgets an interface that is gone or no longer ours.
    pub fn detach(&mut self, ifindex: u32) -> Result<(), ApplyError> {
        self.attachments.detach(ifindex);
        self.maps.set_device(ifindex, None)
    }

    /// Interfaces that carry our programs: index, name, role.
    pub fn interfaces(&self) -> Vec<(u32, String, Role)> {
        self.attachments
            .interfaces()
            .map(|(ifindex, name, role)| (ifindex, name.to_owned(), role))
            .collect()
    }

    /// Turns socket load balancing on, if it was asked for.
    pub fn attach_sockets(&mut self) -> Result<(), ApplyError> {
        match &self.cgroup {
            Some(cgroup) if !self.attachments.sockets() => self.attachments.attach_sockets(&mut self.bpf, cgroup),
            _ => Ok(()),
        }
    }

    /// Whether interfaces are attached by tcx links.
    pub fn tcx(&self) -> bool {
        self.attachments.tcx()
    }

    /// Whether socket load balancing is on.
    pub fn sockets(&self) -> bool {
        self.attachments.sockets()
    }

    /// Removes what a former agent left on interfaces that nobody attached anew, but for those in `spare`.
    pub fn prune(&self, spare: &BTreeSet<u32>) {
        self.attachments.prune(spare);
    }

    /// The maps, for those who count and measure beside us.
    pub fn maps(&self) -> Arc<Maps> {
        self.maps.clone()
    }

    /// Packets and calls by verdict since the maps were made.
    pub fn counters(&self) -> Result<Vec<(Verdict, u64)>, ApplyError> {
        self.maps.counters()
    }

    /// The object, for the programs' own log.
    pub fn bpf(&mut self) -> &mut Ebpf {
        &mut self.bpf
    }

    /// Runs one TC program on a packet in memory (`BPF_PROG_TEST_RUN`), on the live maps.
    pub fn test_run(&self, program: &str, options: TestRunOptions<'_>) -> Result<TestRunResult, ApplyError> {
        let failed = |error: std::io::Error| ApplyError::Kernel {
            op: format!("test run of {program}"),
            source: error,
        };
        let program: &SchedClassifier = self
            .bpf
            .program(program)
            .ok_or_else(|| failed(std::io::Error::other("no such program")))?
            .try_into()
            .map_err(|error| failed(std::io::Error::other(error)))?;
        program
            .test_run(options)
            .map_err(|error| failed(std::io::Error::other(error)))
    }
}

impl Dataplane for EbpfDataplane {
    type Image = Image;
    type Op = Op;
    const NAME: &'static str = "ebpf";

    fn lower(
        &mut self,
        service: &ObjectName,
        plan: Option<&ServicePlan>,
        have: &Image,
    ) -> Result<Lowered<Image>, ApplyError> {
        self.lowerer.lower(service, plan, have)
    }

    fn merge(image: &mut Image, other: &Image) {
        image.merge(other);
    }

    fn cede(image: &mut Image, claimant: &Image) {
        image.cede(claimant);
    }

    fn diff(have: &Image, want: &Image) -> Vec<Op> {
        diff::diff(have, want)
    }

    fn observe(&mut self) -> Result<Image, ApplyError> {
        if self.empty {
            return Ok(Image::default());
        }
        let observed = self.maps.observe()?;
        self.lowerer.adopt(&observed);
        Ok(observed.image)
    }

    fn execute(&mut self, ops: &[Op]) -> Result<(), ApplyError> {
        self.empty &= ops.is_empty();
        self.maps.execute(ops)?;
        self.lowerer.executed(ops);
        Ok(())
    }
}
