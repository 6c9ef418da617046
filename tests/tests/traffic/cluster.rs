//! Two nodes with agents, and the modes in which they run.

use harness::{
    Actor, Agent, AgentOptions, Answer, Ask, AskError, Forwarding, Topology, Transport,
    addr::{self, Family},
    manifest::{self, Service, Slices},
};
use std::net::SocketAddr;

/// Target port of every server.
pub(crate) const TARGET: u16 = 8080;

/// How the agents run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mode {
    pub(crate) socket_lb: bool,
    pub(crate) forwarding: Forwarding,
    /// More flags of the agents.
    pub(crate) flags: &'static [&'static str],
}

/// Makes one `#[test]` per mode out of each `fn name(mode: Mode)`.
macro_rules! in_every_mode {
    ($($name:ident)+) => {
        crate::cluster::in_every_mode!(@ packets_stack false Stack; $($name)+);
        crate::cluster::in_every_mode!(@ packets_direct false Direct; $($name)+);
        crate::cluster::in_every_mode!(@ sockets_stack true Stack; $($name)+);
        crate::cluster::in_every_mode!(@ sockets_direct true Direct; $($name)+);
    };
    (@ $mode:ident $socket_lb:literal $forwarding:ident; $($name:ident)+) => {
        mod $mode {
            $(#[test]
            fn $name() {
                super::$name(crate::cluster::Mode { socket_lb: $socket_lb, forwarding: harness::Forwarding::$forwarding, flags: &[] });
            })+
        }
    };
}
pub(crate) use in_every_mode;

/// Filters instead of links: how the programs are attached to kernels before 6.6, and everywhere on request.
pub(crate) const CLSACT: Mode = Mode {
    socket_lb: false,
    forwarding: Forwarding::Direct,
    flags: &["--tc-attach=clsact"],
};

/// A running cluster.
pub(crate) struct Cluster<'t> {
    pub(crate) topology: &'t Topology,
    pub(crate) mode: Mode,
    pub(crate) agents: Vec<Agent<'t>>,
}

/// Builds two nodes with three pods each, every pod serving on [`TARGET`], starts agents with the services that
/// `manifests` writes (one file each), and runs the test.
pub(crate) fn with_cluster(
    mode: Mode,
    manifests: impl Fn(&Topology) -> Vec<(Service, Slices<'_>)>,
    test: impl FnOnce(&Cluster<'_>),
) {
    let topology = Topology::standard(2, 3).unwrap();
    for pod in topology.pods() {
        for family in addr::FAMILIES {
            for transport in [Transport::Tcp, Transport::Udp] {
                pod.actor.serve(transport, SocketAddr::new(pod.ip(family), TARGET));
            }
        }
    }
    let options = AgentOptions {
        socket_lb: mode.socket_lb,
        forwarding: mode.forwarding,
        flags: mode.flags.iter().map(ToString::to_string).collect(),
    };
    let objects = manifests(&topology);
    let names: Vec<String> = objects
        .iter()
        .map(|(_, slices)| format!("{}.yaml", slices.service))
        .collect();
    let files: Vec<(&str, String)> = names
        .iter()
        .zip(&objects)
        .map(|(name, (service, slices))| (name.as_str(), manifest::service_file(service, slices)))
        .collect();
    let agents = topology
        .nodes()
        .iter()
        .map(|node| Agent::start(node, &options, &files).unwrap())
        .collect();
    test(&Cluster {
        topology: &topology,
        mode,
        agents,
    });
}

impl Cluster<'_> {
    /// A pod of node-a that no test uses as a backend, unless it says so.
    pub(crate) fn client(&self) -> &Actor {
        &self.topology.pod("a1").actor
    }

    pub(crate) fn host(&self) -> &Actor {
        &self.topology.node("node-a").actor
    }

    pub(crate) fn outside(&self) -> &Actor {
        self.topology.outside()
    }

    /// Replaces a service on all nodes; all of them serve it when this returns.
    pub(crate) fn apply(&self, service: &Service, slices: &Slices<'_>) {
        let text = manifest::service_file(service, slices);
        for agent in &self.agents {
            agent.apply(&format!("{}.yaml", slices.service), &text).unwrap();
        }
    }
}

/// All failed expectations of one test, so that one run tells them all.
#[derive(Default)]
pub(crate) struct Findings {
    checked: usize,
    wrong: Vec<String>,
}

impl Findings {
    pub(crate) fn check(&mut self, what: &str, holds: bool, found: impl std::fmt::Debug) {
        self.checked += 1;
        if !holds {
            self.wrong.push(format!("{what}: {found:?}"));
        }
    }

    pub(crate) fn answered_by(&mut self, what: &str, answer: &Result<Answer, AskError>, server: &str) {
        self.checked += 1;
        match answer {
            Ok(answer) if answer.served_by == server => {}
            Ok(answer) => self
                .wrong
                .push(format!("{what}: answered by {}, not {server}", answer.served_by)),
            Err(error) => self.wrong.push(format!("{what}: {error}")),
        }
    }

    /// The end of a test.
    pub(crate) fn none(self) {
        let Self { checked, wrong } = self;
        assert!(checked > 0, "nothing was checked");
        assert!(
            wrong.is_empty(),
            "{} of {checked} wrong:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
    }
}

/// A frontend's kinds of questions: TCP, UDP by `connect`, UDP by `sendto`.
pub(crate) fn questions(dst: SocketAddr) -> [(&'static str, Ask); 3] {
    let timeout = std::time::Duration::from_millis(700);
    [
        ("TCP", Ask::tcp(dst)),
        ("UDP", Ask::udp(dst)),
        ("UDP by sendto", Ask::udp(dst).unconnected()),
    ]
    .map(|(name, ask)| (name, ask.timeout(timeout)))
}

/// Port 80 of cluster IP number `n`.
pub(crate) fn cluster_ip(family: Family, n: u8) -> SocketAddr {
    SocketAddr::new(addr::cluster_ip(family, n), 80)
}

/// Port 80 of LB address number `n`.
pub(crate) fn load_balancer(family: Family, n: u8) -> SocketAddr {
    SocketAddr::new(addr::load_balancer(family, n), 80)
}

/// A service with every kind of frontend: cluster, LB and external IP number `n` with port 80, node port 30000+n.
pub(crate) fn every_frontend(name: &str, n: u8) -> Service {
    Service::numbered(name, n)
        .port(80)
        .node_port(30_000 + u16::from(n))
        .load_balancer(n)
        .external(n)
}
