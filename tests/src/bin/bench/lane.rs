//! A lane: client, node and backend of their own, and one way from the first to the last.

use crate::{
    rules,
    services::{self, Format, PORT, Service, TARGET_PORT},
};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use harness::{
    Actor, Agent, AgentOptions, Forwarding, Topology,
    addr::{self, Family},
    measure::{Absorb, Measure, Measured, Work, rate},
    proto::{Operation, Serving},
};
use serde::Serialize;
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path as FilePath,
    time::{Duration, Instant},
};

/// Endpoints of each service. Those of the measured one are two addresses of the same pod, so that choosing costs what
/// it costs, and the backend is the same as without a service.
const ENDPOINTS: usize = 2;
/// Second address of the backend, number in the node's pod subnet.
const SECOND: u8 = 3;
/// Services per manifest file.
const PER_FILE: usize = 100;
/// A backend without a route, for what is measured before the first packet.
pub(crate) const NOWHERE: Ipv4Addr = Ipv4Addr::new(10, 3, 0, 1);

/// How packets come from the client to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Path {
    /// To the pod's own address: no translation, no connection tracking.
    Direct,
    /// Fairlead as it comes: TCP translated at connect, UDP packet by packet through the stack.
    Sockets,
    /// Fairlead without socket programs, `--forwarding direct`.
    PacketsDirect,
    /// Fairlead without socket programs, `--forwarding stack`.
    PacketsStack,
    /// Rules as kube-proxy's nftables mode makes them.
    Nftables,
    /// Rules as kube-proxy's iptables mode makes them, by the legacy tool.
    IptablesLegacy,
    /// The same, by the tool that turns them into nftables.
    IptablesNft,
}

impl Path {
    /// For tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct routing",
            Self::Sockets => "Fairlead, sockets",
            Self::PacketsDirect => "Fairlead, packets, direct",
            Self::PacketsStack => "Fairlead, packets, stack",
            Self::Nftables => "nftables",
            Self::IptablesLegacy => "iptables (legacy)",
            Self::IptablesNft => "iptables (nft)",
        }
    }

    fn agent(self) -> Option<AgentOptions> {
        let (socket_lb, forwarding) = match self {
            Self::Sockets => (true, Forwarding::Stack),
            Self::PacketsDirect => (false, Forwarding::Direct),
            Self::PacketsStack => (false, Forwarding::Stack),
            _ => return None,
        };
        Some(AgentOptions {
            socket_lb,
            forwarding,
            flags: Vec::new(),
        })
    }

    /// The program that loads its rules, and its arguments.
    fn tool(self) -> Option<(&'static str, &'static [&'static str])> {
        match self {
            Self::Nftables => Some(("nft", &["-f", "-"])),
            Self::IptablesLegacy => Some(("iptables-legacy-restore", &[])),
            Self::IptablesNft => Some(("iptables-nft-restore", &[])),
            _ => None,
        }
    }

    /// The program that this path needs and this machine lacks.
    pub(crate) fn missing(self) -> Option<&'static str> {
        let (name, _) = self.tool()?;
        program(name).is_none().then_some(name)
    }
}

/// A program of the system's, also where /usr/sbin is not in the path.
fn program(name: &str) -> Option<String> {
    ["/usr/sbin", "/sbin", "/usr/bin"]
        .iter()
        .map(|dir| FilePath::new(dir).join(name))
        .find(|path| path.is_file())
        .map(|path| path.to_string_lossy().into_owned())
}

/// Client, node and backend.
///
/// # Errors
/// If this is not root or the kernel refuses.
pub(crate) fn topology() -> Result<Topology> {
    let topology = Topology::builder()
        .node("node-a")
        .pod("client", 1)
        .pod("backend", 2)
        .build()?;
    let (backend, client) = (topology.pod("backend"), topology.pod("client"));
    let second = addr::pod(Family::V4, 1, SECOND);
    backend.actor.ip(&format!("addr add {second}/32 dev eth0\n"))?;
    let node = topology.node("node-a");
    node.actor.ip(&format!(
        "route add {second}/32 dev {} src {}\n",
        backend.link(),
        node.ip(Family::V4)
    ))?;
    // So many that none comes again while conntrack remembers its last use.
    let ports = ("net/ipv4/ip_local_port_range".to_string(), "1024 65000".to_string());
    client.actor.call::<()>(Operation::Sysctl {
        settings: vec![ports],
        optional: false,
    })?;
    client.actor.ip(&format!("route add unreachable {NOWHERE}/32\n"))?;
    Ok(topology)
}

/// One way from a client to a backend, ready to be measured.
pub(crate) struct Lane<'t> {
    pub(crate) path: Path,
    /// Services in the way; 0 for direct routing.
    pub(crate) services: usize,
    /// Until the rules were in the kernel.
    pub(crate) setup: Duration,
    topology: &'t Topology,
    target: SocketAddr,
    /// VIP of a service whose endpoint is [`NOWHERE`]; only where sockets are translated.
    pub(crate) hook: Option<SocketAddr>,
    _agent: Option<Agent<'t>>,
}

impl<'t> Lane<'t> {
    /// Puts `count` services into the kernel; the measured one comes last.
    ///
    /// # Errors
    /// If a tool or the agent fails.
    pub(crate) fn prepare(topology: &'t Topology, path: Path, count: usize) -> Result<Self> {
        let backend = topology.pod("backend");
        let pods = [backend.number, SECOND].map(|n| addr::pod(Family::V4, 1, n));
        let mut lane = Self {
            path,
            services: count,
            setup: Duration::ZERO,
            topology,
            target: SocketAddr::new(pods[0], TARGET_PORT),
            hook: None,
            _agent: None,
        };
        if path == Path::Direct {
            return Ok(lane);
        }
        let mut all: Vec<Service> = (0..count).map(|n| Service::numbered(n, ENDPOINTS)).collect();
        let target = all.last_mut().context("no services: there is nothing to measure")?;
        target.udp = true;
        target.endpoints = pods.iter().filter_map(only_v4).collect();
        lane.target = SocketAddr::new(target.vip.into(), PORT);
        let node = topology.node("node-a");
        if let Some(options) = path.agent() {
            if options.socket_lb {
                let mut nowhere = Service::numbered(count, 0);
                nowhere.endpoints = vec![NOWHERE];
                lane.hook = Some(SocketAddr::new(nowhere.vip.into(), PORT));
                all.push(nowhere);
            }
            let files = services::files(&all, PER_FILE, Format::Json)?;
            let files: Vec<(&str, String)> = files.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
            let begun = Instant::now();
            lane._agent = Some(Agent::start(node, &options, &files)?);
            lane.setup = begun.elapsed();
        } else if let Some((name, args)) = path.tool() {
            let program = program(name).with_context(|| format!("{name} is missing: cargo xtask setup"))?;
            let text = if path == Path::Nftables {
                rules::nftables(&all)
            } else {
                rules::iptables(&all)
            };
            let begun = Instant::now();
            let output = node.actor.run(&program, args, &text)?;
            lane.setup = begun.elapsed();
            if output.code != Some(0) {
                bail!("{name}: {}", output.stderr.trim());
            }
        }
        Ok(lane)
    }

    /// Runs a loop over this lane, both ends on processor `cpu`; what it has seen, and its rate per second.
    ///
    /// # Errors
    /// If nothing comes through.
    pub(crate) fn measure(&self, work: Work, time: Duration, cpu: usize) -> Result<(Measured, f64)> {
        let (client, backend) = (&self.topology.pod("client").actor, &self.topology.pod("backend").actor);
        let absorb = Absorb {
            work,
            listen: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), TARGET_PORT),
            cpu: Some(cpu),
        };
        let serving: Serving = backend.call(Operation::Absorb(absorb))?;
        let seen = loop_on(client, work, self.target, time, cpu);
        // Also after an error, or the next loop finds the port taken.
        let arrived: u64 = backend.call(Operation::AbsorbStop(serving.id))?;
        let seen = seen?;
        // What was sent and lost is no throughput.
        let counted = if work == Work::Datagrams {
            arrived.min(seen.count)
        } else {
            seen.count
        };
        if counted == 0 {
            bail!("nothing came through: {}", seen.error.as_deref().unwrap_or("no error"));
        }
        let per_second = rate(counted, seen.elapsed_ns);
        Ok((seen, per_second))
    }

    /// Times `connect` from the client to `dst`, which must have no route in the end.
    ///
    /// # Errors
    /// If a call ends in another way than for want of a route.
    pub(crate) fn time_connect(&self, dst: SocketAddr, time: Duration, cpu: usize) -> Result<Measured> {
        let seen = loop_on(&self.topology.pod("client").actor, Work::ConnectCalls, dst, time, cpu)?;
        if let Some(error) = &seen.error {
            bail!("connect to {dst}: {error}");
        }
        Ok(seen)
    }
}

fn loop_on(actor: &Actor, work: Work, dst: SocketAddr, time: Duration, cpu: usize) -> Result<Measured> {
    actor.call(Operation::Measure(Measure {
        work,
        dst,
        duration_ms: time.as_millis() as u64,
        cpu: Some(cpu),
    }))
}

fn only_v4(ip: &IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    }
}
