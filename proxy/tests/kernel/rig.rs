//! One node in a network namespace of its own: devices and routes, the programs, and packets run through them.
//!
//! ```text
//!   pods 10.1.0.0/24, fd00:10:1::/64 ── pod0 │ node 192.168.0.1, fd00:192:168::1 │ net0 ── everything else
//! ```
//!
//! Nothing is attached: `BPF_PROG_TEST_RUN` runs a program on a packet as if it were at a hook, with the real maps and
//! the namespace's real routes.

use crate::{memory, packet::Packet};
use aya::{maps::Map, programs::TestRunOptions};
use nix::sched::{CloneFlags, unshare};
use proxy::{
    dataplane::{
        Changed, Reconciler, SyncReport,
        ebpf::{EbpfDataplane, Options, Sizes, image::Image},
    },
    model::{Change, EndpointSlice, Event, NodeView, Service, ServiceMap},
    plan::{Plan, compile::compile, trace::Origin},
    testing,
};
use proxy_common::{
    abi::{Node, device_flags, node_flags},
    verdict::Verdict,
};
use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::IpAddr,
    process::{Command, Stdio},
};

/// TC's actions, as the programs use them.
pub(crate) const NEXT: i32 = -1;
pub(crate) const SHOT: i32 = 2;
pub(crate) const REDIRECT: i32 = 7;

/// The node's masquerade addresses and ports.
pub(crate) const SNAT_V4: [u8; 4] = [192, 168, 0, 1];
pub(crate) const SNAT_V6: [u8; 16] = [0xfd, 0, 0x01, 0x92, 0x01, 0x68, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
pub(crate) const SNAT_PORTS: std::ops::RangeInclusive<u16> = 20_000..=29_999;

/// The hardware address of every neighbour.
pub(crate) const MAC: &str = "02:00:00:00:00:99";

/// A place where a packet meets a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// Ingress of `pod0`.
    FromPod,
    /// Egress of `pod0`, forwarded.
    ToPod,
    /// Ingress of `net0`.
    FromNet,
    /// Egress of `net0`, forwarded.
    ToNet,
    /// Egress of `net0`, sent by the node itself.
    OutOfNode,
    /// Egress of `lo`.
    Loopback,
}

/// Every place.
pub(crate) const HOOKS: [At; 6] = [
    At::FromPod,
    At::ToPod,
    At::FromNet,
    At::ToNet,
    At::OutOfNode,
    At::Loopback,
];

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Pod,
    Net,
    Node,
}

/// What a program did with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) action: i32,
    pub(crate) verdict: Verdict,
    pub(crate) frame: Vec<u8>,
}

/// The node.
pub(crate) struct Rig {
    pub(crate) reconciler: Reconciler<EbpfDataplane>,
    pub(crate) view: NodeView,
    pub(crate) plan: Plan,
    node: Node,
    counted: Vec<(Verdict, u64)>,
    /// What the programs remember, by map.
    pub(crate) memory: BTreeMap<String, Map>,
    pub(crate) pod: u32,
    pub(crate) net: u32,
}

/// Runs `test` on a fresh node, in a thread of its own because that is what a network namespace belongs to. Without root
/// or with `FAIRLEAD_NO_KERNEL=1` it says so and is done.
pub(crate) fn on_node(name: &str, test: impl FnOnce(Rig) + Send) {
    in_namespace(name, || test(Rig::open(testing::node(), sizes())));
}

/// As [`on_node`], without loading anything.
pub(crate) fn in_namespace(name: &str, test: impl FnOnce() + Send) {
    if testing::skip_without_kernel(name) {
        return;
    }
    let result = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of its own; this test needs root");
            test();
        });
        thread.join()
    });
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// Room for some flows.
pub(crate) fn sizes() -> Sizes {
    Sizes {
        frontends: 1024,
        backends: 1024,
        slots: 4096,
        flows: 16_384,
        affinities: 4096,
        source_ranges: 1024,
        sockets: 64,
        fragments: 4096,
    }
}

/// Room for all flows of the packet table.
pub(crate) fn large() -> Sizes {
    Sizes {
        flows: 131_072,
        ..sizes()
    }
}

/// Devices, addresses and routes, in the namespace of this thread.
fn wire() {
    for (path, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/disable_ipv6", "0"),
        ("ipv6/conf/default/disable_ipv6", "0"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv6/conf/default/forwarding", "1"),
    ] {
        fs::write(format!("/proc/sys/net/{path}"), value).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    let batch = "
        link set lo up
        link add pod0 type veth peer name pod0p
        link set pod0p up
        link set pod0 up
        link add net0 type veth peer name net0p
        link set net0p up
        link set net0 up
        addr add 192.168.0.1/24 dev net0
        addr add 192.168.1.1/32 dev net0
        addr add fd00:192:168::1/64 dev net0 nodad
        route add 10.1.0.0/24 dev pod0
        route add fd00:10:1::/64 dev pod0
        route add default via 192.168.0.254 dev net0
        route add ::/0 via fd00:192:168::fe dev net0
    ";
    // Every neighbour is known: otherwise the first packet of a flow would go up the stack to find it.
    let neighbours: String = (1..=254)
        .flat_map(|n| {
            [
                (format!("10.1.0.{n}"), "pod0"),
                (format!("fd00:10:1::{n}"), "pod0"),
                (format!("192.168.0.{n}"), "net0"),
                (format!("fd00:192:168::{n:x}"), "net0"),
            ]
        })
        .map(|(addr, link)| format!("neigh replace {addr} lladdr {MAC} dev {link} nud permanent\n"))
        .collect();
    ip(&format!("{batch}\n{neighbours}"));
}

/// Runs lines of `ip` commands.
pub(crate) fn ip(batch: &str) {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("the `ip` program (package iproute2)");
    child.stdin.take().unwrap().write_all(batch.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "ip -batch");
}

impl Rig {
    /// Wires this thread's namespace and loads the programs.
    pub(crate) fn open(view: NodeView, sizes: Sizes) -> Self {
        wire();
        Self::load(view, sizes)
    }

    /// Loads the programs a second time, for another node view.
    pub(crate) fn load(view: NodeView, sizes: Sizes) -> Self {
        let index = |name: &str| nix::net::if_::if_nametoindex(name).unwrap();
        let node = Node {
            snat_v4: SNAT_V4,
            snat_v6: SNAT_V6,
            snat_port_first: *SNAT_PORTS.start(),
            snat_port_last: *SNAT_PORTS.end(),
            seed: 7,
            lo_ifindex: index("lo"),
            ..Node::default()
        };
        let mut dataplane = EbpfDataplane::open(&Options {
            sizes,
            bpffs: None,
            cgroup: None,
            node,
            tcx: None,
            masquerade_all: view.masquerade_all,
            log_level: 0,
        })
        .unwrap_or_else(|error| panic!("{error}\n{:?}", std::error::Error::source(&error)));
        let (pod, net) = (index("pod0"), index("net0"));
        dataplane.maps().set_device(pod, Some(device_flags::PEER)).unwrap();
        let counted = dataplane.counters().unwrap();
        let memory = memory::open(&mut dataplane);
        Self {
            memory,
            reconciler: Reconciler::new(dataplane),
            view,
            plan: Plan::default(),
            node,
            counted,
            pod,
            net,
        }
    }

    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    /// Changes what the programs know of the node.
    pub(crate) fn change_node(&mut self, change: impl FnOnce(&mut Node)) {
        change(&mut self.node);
        self.reconciler.dataplane_mut().set_node(self.node).unwrap();
    }

    /// Direct forwarding on or off.
    pub(crate) fn set_direct(&mut self, on: bool) {
        self.change_node(|node| node.flags = if on { node_flags::DIRECT } else { 0 });
    }

    pub(crate) fn direct(&self) -> bool {
        self.node.flags & node_flags::DIRECT != 0
    }

    /// Makes the maps follow these services.
    pub(crate) fn serve(&mut self, services: &[Service], slices: &[EndpointSlice]) -> SyncReport {
        let mut map = ServiceMap::default();
        for service in services {
            map.apply(Event::Service(Change::Apply(service.clone())));
        }
        for slice in slices {
            map.apply(Event::Slice(Change::Apply(slice.clone())));
        }
        map.apply(Event::InitDone);
        self.follow(compile(&map, &self.view))
    }

    /// Makes the maps follow a plan.
    pub(crate) fn follow(&mut self, plan: Plan) -> SyncReport {
        let report = self.reconciler.sync(&plan, &Changed::All).unwrap();
        assert!(report.deferred.is_empty(), "{:?}", report.deferred);
        self.plan = plan;
        report
    }

    pub(crate) fn image(&self) -> Image {
        self.reconciler.have().unwrap()
    }

    /// Runs a program on a frame.
    pub(crate) fn run(&mut self, at: At, frame: &[u8]) -> Outcome {
        self.try_run(at, frame, 0)
            .unwrap_or_else(|error| panic!("{error} at {at:?}: {}", crate::packet::hex(frame)))
    }

    /// As [`Rig::run`]; an error is the kernel's refusal to make a packet of the frame. `gso_size` is that of the packet,
    /// or 0.
    pub(crate) fn try_run(&mut self, at: At, frame: &[u8], gso_size: u32) -> Result<Outcome, String> {
        let (program, ifindex, ingress) = match at {
            At::FromPod => ("from_pod", self.pod, self.pod),
            At::ToPod => ("to_pod", self.pod, self.net),
            At::FromNet => ("from_net", self.net, self.net),
            At::ToNet => ("to_net", self.net, self.pod),
            At::OutOfNode => ("to_net", self.net, 0),
            At::Loopback => ("to_net", self.node.lo_ifindex, 0),
        };
        // `struct __sk_buff`: all zero but for ingress_ifindex, ifindex, gso_segs and gso_size.
        let mut context = [0u8; 192];
        context[36..40].copy_from_slice(&ingress.to_ne_bytes());
        context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
        if gso_size != 0 {
            let segments = (frame.len() as u32).div_ceil(gso_size);
            context[164..168].copy_from_slice(&segments.to_ne_bytes());
            context[176..180].copy_from_slice(&gso_size.to_ne_bytes());
        }
        let mut out = vec![0u8; 4096];
        let dataplane = self.reconciler.dataplane();
        let result = dataplane
            .test_run(
                program,
                TestRunOptions {
                    data_in: Some(frame),
                    data_out: Some(&mut out),
                    ctx_in: Some(&context),
                    ..TestRunOptions::new()
                },
            )
            .map_err(|error| error.to_string())?;
        out.truncate(result.data_size_out as usize);
        let counted = dataplane.counters().unwrap();
        let moved: Vec<(Verdict, u64)> = counted
            .iter()
            .zip(&self.counted)
            .map(|((verdict, now), (_, before))| (*verdict, now - before))
            .filter(|(_, more)| *more > 0)
            .collect();
        self.counted = counted;
        assert!(matches!(moved[..], [(_, 1)]), "a packet counts once: {moved:?}");
        Ok(Outcome {
            action: result.return_value as i32,
            verdict: moved[0].0,
            frame: out,
        })
    }

    /// Runs a program on a packet that it must leave as it is, counted as one of `verdicts`.
    pub(crate) fn passes(&mut self, at: At, packet: &Packet, verdicts: &[Verdict]) -> Result<(), String> {
        let frame = packet.encode();
        let got = self.run(at, &frame);
        let verdict = *verdicts
            .iter()
            .find(|verdict| **verdict == got.verdict)
            .unwrap_or(&verdicts[0]);
        let want = Outcome {
            action: NEXT,
            verdict,
            frame,
        };
        same(&want, &got).map_err(|error| format!("not left alone at {at:?}: {error}"))
    }

    /// Runs a client's packet that finds no port to be masqueraded with.
    pub(crate) fn refuses(&mut self, packet: &Packet) {
        let got = self.run(At::FromNet, &packet.encode());
        assert_eq!(
            (got.verdict, got.action),
            (Verdict::DropSnatPortsExhausted, SHOT),
            "{packet:?}"
        );
    }

    /// Where the namespace's routes lead.
    pub(crate) fn way(&self, addr: IpAddr) -> Way {
        let net: [ipnet::IpNet; 2] = ["10.1.0.0/24".parse().unwrap(), "fd00:10:1::/64".parse().unwrap()];
        match addr {
            _ if self.view.addresses.contains(&addr) => Way::Node,
            _ if net.iter().any(|net| net.contains(&addr)) => Way::Pod,
            _ => Way::Net,
        }
    }

    /// Where a client's packet enters.
    pub(crate) fn entry(&self, origin: Origin, destination: IpAddr) -> At {
        match origin {
            Origin::Pod => At::FromPod,
            Origin::Outside => At::FromNet,
            Origin::Host if destination.is_loopback() || self.way(destination) == Way::Node => At::Loopback,
            Origin::Host => At::OutOfNode,
        }
    }
}

/// Compares outcomes, and shows what differs.
pub(crate) fn same(want: &Outcome, got: &Outcome) -> Result<(), String> {
    if want == got {
        return Ok(());
    }
    let line = |outcome: &Outcome| {
        let frame = crate::packet::hex(&outcome.frame);
        format!("{:?} action {:2} {frame}", outcome.verdict, outcome.action)
    };
    Err(format!("\n  want {}\n  got  {}", line(want), line(got)))
}
