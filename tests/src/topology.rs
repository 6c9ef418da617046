//! Hosts and wires.
//!
//! ```text
//!  outside ──────── router ── br0 192.168.0.0/24, fd00:192:168::/64 ─┬─ eth0 node-a ── veth-a1 ─ eth0 a1
//!  203.0.113.10     │                                               │               └─ veth-a2 ─ eth0 a2
//!  2001:db8:113::10 └ routes LB and external IPs to node-a          └─ eth0 node-b ── veth-b1 ─ eth0 b1 …
//! ```
//!
//! Pods hang on point-to-point links with /32 and /128 routes, as from a `ptp` CNI plugin. Nodes route each other's pod
//! subnets by node address; the router knows no pod or service subnet, so what leaves a node must not come from one.

use crate::{
    actor::{Actor, Pending, Starting, ip_outcome, ip_program},
    guard::Scratch,
    proto::{Operation, Output},
};
use anyhow::{Context, Result, bail};
use std::{
    fmt::Write as _,
    io::Write as _,
    net::{IpAddr, Ipv6Addr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// The address plan. Nodes count from 1.
pub mod addr {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    /// Families in the order in which tables print them.
    pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
    pub use proxy::model::Family;

    fn v6(segments: [u16; 8]) -> IpAddr {
        Ipv6Addr::from(segments).into()
    }

    /// 10.1.NODE.N or `fd00:10:1:NODE::N` (NODE in decimal digits; N in hexadecimal for IPv6).
    pub fn pod(family: Family, node: u8, n: u8) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(10, 1, node, n).into(),
            Family::V6 => v6([0xfd00, 0x10, 1, node.into(), 0, 0, 0, n.into()]),
        }
    }

    /// 192.168.0.(10+NODE) or `fd00:192:168::(10+NODE)`, the last group written with the same digits.
    pub fn node(family: Family, node: u8) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(192, 168, 0, 10 + node).into(),
            Family::V6 => v6([0xfd00, 0x192, 0x168, 0, 0, 0, 0, 0x10 + u16::from(node)]),
        }
    }

    /// 203.0.113.(10+N) or `2001:db8:113::(10+N)`: the outside host has N = 0..=3.
    pub fn outside(family: Family, n: u8) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(203, 0, 113, 10 + n).into(),
            Family::V6 => v6([0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10 + u16::from(n)]),
        }
    }

    /// 10.96.0.N or `fd00:10:96::N`.
    pub fn cluster_ip(family: Family, n: u8) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(10, 96, 0, n).into(),
            Family::V6 => v6([0xfd00, 0x10, 0x96, 0, 0, 0, 0, n.into()]),
        }
    }

    /// 203.0.113.(128+N) or `2001:db8:113:1::N`; N < 127.
    pub fn load_balancer(family: Family, n: u8) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(203, 0, 113, 128 + n).into(),
            Family::V6 => v6([0x2001, 0xdb8, 0x113, 1, 0, 0, 0, n.into()]),
        }
    }

    /// 198.51.100.N or `2001:db8:51::N`.
    pub fn external(family: Family, n: u8) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(198, 51, 100, n).into(),
            Family::V6 => v6([0x2001, 0xdb8, 0x51, 0, 0, 0, 0, n.into()]),
        }
    }
}

use addr::{FAMILIES, Family};

/// Every host end of a pod link has this address, as nothing else is on the link.
const GATEWAY_MAC: &str = "ee:ee:ee:ee:ee:ee";

/// What to build.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    nodes: Vec<(String, Vec<(String, u8)>)>,
}

impl Builder {
    /// A node; the first is node 1, and receives LB and external IPs.
    pub fn node(mut self, name: &str) -> Self {
        self.nodes.push((name.to_string(), Vec::new()));
        self
    }

    /// A pod of the node named last, with its number in the node's subnet (1–254). At most 10 bytes of name.
    pub fn pod(mut self, name: &str, number: u8) -> Self {
        if let Some((_, pods)) = self.nodes.last_mut() {
            pods.push((name.to_string(), number));
        }
        self
    }

    /// Builds it: namespaces, links, addresses, routes.
    ///
    /// # Errors
    /// If this process is not root, `ip` is missing, or the kernel refuses.
    pub fn build(&self) -> Result<Topology> {
        Topology::build(self)
    }
}

/// Hosts and wires, as long as this lives.
#[derive(Debug)]
pub struct Topology {
    outside: Actor,
    router: Actor,
    nodes: Vec<Node>,
    // Last: the cgroup can go only once the actors have.
    scratch: Scratch,
}

/// A node of the cluster.
#[derive(Debug)]
pub struct Node {
    /// Name as in `endpoint.nodeName`.
    pub name: String,
    /// 1 for the first.
    pub number: u8,
    /// The process in its namespaces.
    pub actor: Actor,
    /// Its own cgroup v2 directory: what `--cgroup-root` takes. Its pods are in cgroups below.
    pub cgroup: PathBuf,
    /// A directory for its files, outside of anything shared.
    pub dir: PathBuf,
    /// Its pods.
    pub pods: Vec<Pod>,
}

/// A pod.
#[derive(Debug)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its node's number.
    pub node: u8,
    /// Its number in the node's subnet.
    pub number: u8,
    /// The process in its namespace.
    pub actor: Actor,
}

impl Node {
    /// Its address.
    pub fn ip(&self, family: Family) -> IpAddr {
        addr::node(family, self.number)
    }
}

impl Pod {
    /// Its address.
    pub fn ip(&self, family: Family) -> IpAddr {
        addr::pod(family, self.node, self.number)
    }

    /// The link on its node.
    pub fn link(&self) -> String {
        format!("veth-{}", self.name)
    }
}

impl Topology {
    /// Begins a description; see [`Topology::standard`] for the usual one.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// `nodes` nodes (node-a, node-b, …) with `pods` pods each (a1, a2, … with numbers from 1).
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub fn standard(nodes: u8, pods: u8) -> Result<Self> {
        let mut builder = Self::builder();
        for letter in ('a'..='z').take(nodes.into()) {
            builder = builder.node(&format!("node-{letter}"));
            for number in 1..=pods {
                builder = builder.pod(&format!("{letter}{number}"), number);
            }
        }
        builder.build()
    }

    /// The client outside of the cluster.
    pub fn outside(&self) -> &Actor {
        &self.outside
    }

    /// The router.
    pub fn router(&self) -> &Actor {
        &self.router
    }

    /// All nodes, in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of that name.
    ///
    /// # Panics
    /// If there is none.
    pub fn node(&self, name: &str) -> &Node {
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .unwrap_or_else(|| panic!("no node {name} was built"))
    }

    /// The pod of that name.
    ///
    /// # Panics
    /// If there is none.
    pub fn pod(&self, name: &str) -> &Pod {
        self.pods()
            .find(|pod| pod.name == name)
            .unwrap_or_else(|| panic!("no pod {name} was built"))
    }

    /// All pods of all nodes.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.nodes.iter().flat_map(|node| &node.pods)
    }

    /// Every host, whatever its role.
    pub fn actors(&self) -> impl Iterator<Item = &Actor> {
        let inside = self
            .nodes
            .iter()
            .flat_map(|node| std::iter::once(&node.actor).chain(node.pods.iter().map(|pod| &pod.actor)));
        [&self.outside, &self.router].into_iter().chain(inside)
    }

    /// The directory and cgroup behind it all.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Makes the router send LB and external IPs to this node.
    ///
    /// # Errors
    /// If `ip` refuses.
    pub fn route_vips_to(&self, node: &Node) -> Result<()> {
        self.router.ip(&vip_routes(node.number))
    }

    /// Gives the router's path to the outside an MTU of `mtu` bytes (at least 1280), without the ends knowing.
    ///
    /// # Errors
    /// If `ip` refuses.
    pub fn narrow_outside(&self, mtu: u32) -> Result<()> {
        let mut lines = String::new();
        for family in FAMILIES {
            let host = addr::outside(family, 0);
            writeln!(lines, "route replace {host} dev outside mtu {mtu}")?;
        }
        self.router.ip(&lines)
    }

    /// Gives the path from node `from` to the pods of node `to` an MTU of `mtu` bytes (at least 1280): a locked one, since
    /// the kernel does not tell programs of another.
    ///
    /// # Errors
    /// If `ip` refuses.
    pub fn narrow_between(&self, from: &Node, to: &Node, mtu: u32) -> Result<()> {
        from.actor.ip(&pod_routes(to.number, &format!(" mtu lock {mtu}")))
    }

    /// Gives the last link on the way to `pod` an MTU of `mtu` bytes (at least 1280): its node answers larger packets with
    /// ICMP errors, which come back to whoever sent them.
    ///
    /// # Errors
    /// If `ip` refuses.
    pub fn narrow_pod(&self, node: &Node, pod: &Pod, mtu: u32) -> Result<()> {
        node.actor.ip(&format!("link set veth-{} mtu {mtu}\n", pod.name))
    }

    fn build(plan: &Builder) -> Result<Self> {
        if plan.nodes.is_empty() || plan.nodes.len() > 200 {
            bail!("a topology has 1 to 200 nodes, not {}", plan.nodes.len());
        }
        if !nix::unistd::geteuid().is_root() {
            bail!("making network namespaces needs root: run this with sudo");
        }
        let scratch = Scratch::new()?;
        // All processes first, then wait: they make their namespaces at the same time.
        let outside = Actor::start("outside", None, None)?;
        let router = Actor::start("router", None, None)?;
        let nodes: Vec<StartingNode> = (1..)
            .zip(&plan.nodes)
            .map(|(number, (name, pods))| StartingNode::start(&scratch, name, number, pods))
            .collect::<Result<_>>()?;
        let topology = Self {
            outside: outside.ready()?,
            router: router.ready()?,
            nodes: nodes.into_iter().map(StartingNode::ready).collect::<Result<_>>()?,
            scratch,
        };
        topology.wire()?;
        topology.configure()?;
        Ok(topology)
    }

    /// Makes every link at once, from here: both ends are born in their namespaces, none ever shows on the host.
    fn wire(&self) -> Result<()> {
        let mut lines = String::new();
        let (router, outside) = (self.router.pid(), self.outside.pid());
        writeln!(
            lines,
            "link add outside netns {router} type veth peer name eth0 netns {outside}"
        )?;
        for Node { name, actor, pods, .. } in &self.nodes {
            let node = actor.pid();
            writeln!(
                lines,
                "link add {name} netns {router} type veth peer name eth0 netns {node}"
            )?;
            for pod in pods {
                let (link, pid) = (pod.link(), pod.actor.pid());
                writeln!(
                    lines,
                    "link add {link} address {GATEWAY_MAC} netns {node} type veth peer name eth0 netns {pid}"
                )?;
            }
        }
        let mut child = Command::new(ip_program())
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("run ip: install iproute2")?;
        child
            .stdin
            .take()
            .context("no standard input")?
            .write_all(lines.as_bytes())
            .context("write to ip")?;
        let output = child.wait_with_output()?;
        let output = Output {
            code: output.status.code(),
            stdout: String::new(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        ip_outcome("the host", &lines, &output)
    }

    /// Addresses and routes, in all namespaces at the same time.
    fn configure(&self) -> Result<()> {
        let mut work: Vec<(&Actor, String)> =
            vec![(&self.outside, outside_lines()), (&self.router, self.router_lines())];
        for node in &self.nodes {
            work.push((&node.actor, self.node_lines(node)));
            work.extend(node.pods.iter().map(|pod| (&pod.actor, pod_lines(pod))));
        }
        let routers = std::iter::once(&self.router).chain(self.nodes.iter().map(|node| &node.actor));
        let forwarding: Vec<Pending> = routers
            .map(|actor| {
                let on = |path: &str| (path.to_string(), "1".to_string());
                let settings = vec![on("net/ipv4/ip_forward"), on("net/ipv6/conf/all/forwarding")];
                actor.begin(Operation::Sysctl {
                    settings,
                    optional: false,
                })
            })
            .collect::<Result<_>>()?;
        // Forwarding first: turning it on drops IPv6 routes learnt from routers and resets some link settings.
        forwarding.into_iter().try_for_each(Pending::wait::<()>)?;
        let running: Vec<Pending> = work
            .iter()
            .map(|(actor, lines)| actor.begin_ip(lines))
            .collect::<Result<_>>()?;
        for (pending, (actor, lines)) in running.into_iter().zip(&work) {
            ip_outcome(actor.name(), lines, &pending.wait()?)?;
        }
        self.settle()
    }

    /// Waits until every link can send, and every address be found. The kernel's link watch gives a link its queue only
    /// some time after both ends are up, and its address work listens for neighbour solicitations only some time after
    /// an address is added. What comes before is lost: a solicitation costs a second, an ICMP error never comes.
    fn settle(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut unsettled = self.settled_states();
        while !unsettled.is_empty() {
            let asked: Vec<Pending> = unsettled
                .iter()
                .map(|state| state.actor.begin_ip(&state.question()))
                .collect::<Result<_>>()?;
            let mut left = Vec::new();
            for (pending, state) in asked.into_iter().zip(unsettled) {
                let output: Output = pending.wait()?;
                ip_outcome(state.actor.name(), &state.question(), &output)?;
                if !state.reached(&output.stdout) {
                    if Instant::now() > deadline {
                        bail!("links of {} do not come up:\n{}", state.actor.name(), output.stdout);
                    }
                    left.push(state);
                }
            }
            unsettled = left;
        }
        Ok(())
    }

    fn settled_states(&self) -> Vec<Settled<'_>> {
        let eth0 = || "eth0".to_string();
        let one = Ipv6Addr::from_bits(1);
        let outside = (0..4).map(|n| addr::outside(Family::V6, n));
        let ports = self.nodes.iter().map(|node| node.name.clone());
        let mut states = vec![
            Settled::new(&self.outside, vec![eth0()], outside),
            // Both its addresses end in 1.
            Settled::new(
                &self.router,
                ports.chain(["outside".into(), "br0".into()]).collect(),
                [one.into(), one.into()],
            ),
        ];
        for node in &self.nodes {
            let links = node.pods.iter().map(Pod::link).chain([eth0()]).collect();
            // fe80::1 on each link to a pod.
            let addresses = node.pods.iter().map(|_| one.into()).chain([node.ip(Family::V6)]);
            states.push(Settled::new(&node.actor, links, addresses));
            let pods = node
                .pods
                .iter()
                .map(|pod| Settled::new(&pod.actor, vec![eth0()], [pod.ip(Family::V6)]));
            states.extend(pods);
        }
        states
    }

    fn router_lines(&self) -> String {
        let mut lines = String::from(
            "link set lo up
             link add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0
             link set br0 up
             addr add 192.168.0.1/24 dev br0
             addr add fd00:192:168::1/64 dev br0 nodad
             link set outside up
             addr add 203.0.113.1/25 dev outside
             addr add 2001:db8:113::1/64 dev outside nodad\n",
        );
        for Node { name, .. } in &self.nodes {
            lines += &format!("link set {name} master br0 up\n");
        }
        lines + &vip_routes(1)
    }

    fn node_lines(&self, node: &Node) -> String {
        let (v4, v6) = (node.ip(Family::V4), node.ip(Family::V6));
        let mut lines = format!(
            "link set lo up
             link set eth0 up
             addr add {v4}/24 dev eth0
             addr add {v6}/64 dev eth0 nodad
             route add default via 192.168.0.1
             route add default via fd00:192:168::1\n"
        );
        for pod in &node.pods {
            let (link, v4, v6) = (pod.link(), pod.ip(Family::V4), pod.ip(Family::V6));
            lines += &format!(
                "link set {link} up
                 addr add fe80::1/64 dev {link} nodad
                 route add {v4}/32 dev {link} src {}
                 route add {v6}/128 dev {link} src {}\n",
                node.ip(Family::V4),
                node.ip(Family::V6)
            );
        }
        for other in self.nodes.iter().filter(|other| other.number != node.number) {
            lines += &pod_routes(other.number, "");
        }
        lines
    }
}

/// What a host must have reached before packets may be sent.
struct Settled<'a> {
    actor: &'a Actor,
    /// Links that must be up.
    links: Vec<String>,
    /// Solicited-node multicast groups (RFC 4291, 2.7.1) of its IPv6 addresses, as often as it must be in each.
    groups: Vec<String>,
}

impl<'a> Settled<'a> {
    fn new(actor: &'a Actor, links: Vec<String>, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let group = |ip| match ip {
            IpAddr::V6(ip) => {
                let [.., high, low] = Ipv6Addr::segments(&ip);
                Some(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (high & 0xff), low).to_string())
            }
            IpAddr::V4(_) => None,
        };
        Self {
            actor,
            links,
            groups: addresses.into_iter().filter_map(group).collect(),
        }
    }

    /// Asking for one link by name (not for all) makes newer kernels finish what they still have to do with it.
    fn question(&self) -> String {
        let links = self.links.iter().map(|link| format!("link show dev {link}\n"));
        links.chain(["maddr show\n".to_string()]).collect()
    }

    fn reached(&self, answer: &str) -> bool {
        let joined = |group: &str| answer.split_whitespace().filter(|word| *word == group).count();
        let wanted = |group: &str| self.groups.iter().filter(|wanted| *wanted == group).count();
        answer.matches("state UP").count() >= self.links.len()
            && !answer.contains("qdisc noop ")
            && self.groups.iter().all(|group| joined(group) >= wanted(group))
    }
}

fn outside_lines() -> String {
    let mut lines = String::from("link set lo up\nlink set eth0 up\n");
    for n in 0..4 {
        lines += &format!("addr add {}/25 dev eth0\n", addr::outside(Family::V4, n));
        lines += &format!("addr add {}/64 dev eth0 nodad\n", addr::outside(Family::V6, n));
    }
    let (v4, v6) = (addr::outside(Family::V4, 0), addr::outside(Family::V6, 0));
    lines += &format!("route add default via 203.0.113.1 src {v4}\nroute add default via 2001:db8:113::1 src {v6}\n");
    lines
}

fn pod_lines(pod: &Pod) -> String {
    let (v4, v6) = (pod.ip(Family::V4), pod.ip(Family::V6));
    format!(
        "link set lo up
         link set eth0 up
         addr add {v4}/32 dev eth0
         addr add {v6}/128 dev eth0 nodad
         neigh add 169.254.1.1 lladdr {GATEWAY_MAC} dev eth0 nud permanent
         route add 169.254.1.1 dev eth0 scope link
         route add default via 169.254.1.1 dev eth0 src {v4}
         route add default via fe80::1 dev eth0 src {v6}\n"
    )
}

fn vip_routes(node: u8) -> String {
    let (v4, v6) = (addr::node(Family::V4, node), addr::node(Family::V6, node));
    format!(
        "route replace 203.0.113.128/25 via {v4}
         route replace 198.51.100.0/24 via {v4}
         route replace 2001:db8:113:1::/64 via {v6}
         route replace 2001:db8:51::/64 via {v6}\n"
    )
}

fn pod_routes(node: u8, suffix: &str) -> String {
    let (v4, v6) = (addr::node(Family::V4, node), addr::node(Family::V6, node));
    let (net4, net6) = (addr::pod(Family::V4, node, 0), addr::pod(Family::V6, node, 0));
    format!("route replace {net4}/24 via {v4}{suffix}\nroute replace {net6}/64 via {v6}{suffix}\n")
}

struct StartingNode {
    name: String,
    number: u8,
    cgroup: PathBuf,
    dir: PathBuf,
    actor: Starting,
    pods: Vec<(String, u8, Starting)>,
}

impl StartingNode {
    fn start(scratch: &Scratch, name: &str, number: u8, pods: &[(String, u8)]) -> Result<Self> {
        let cgroup = scratch.cgroup.join(name);
        let dir = scratch.dir.join(name);
        let mounts = dir.join("mounts");
        make_dirs(&[&cgroup, &dir, &mounts])?;
        let actor = Actor::start(name, Some(&cgroup), Some(&mounts))?;
        let pods = pods.iter().map(|(pod, n)| {
            if pod.len() > 10 {
                bail!("the name of pod {pod} is longer than 10 bytes, too long for the name of its link");
            }
            let own = cgroup.join(pod);
            make_dirs(&[&own])?;
            Ok((pod.clone(), *n, Actor::start(pod, Some(&own), None)?))
        });
        let pods = pods.collect::<Result<_>>()?;
        Ok(Self {
            name: name.to_string(),
            number,
            cgroup,
            dir,
            actor,
            pods,
        })
    }

    fn ready(self) -> Result<Node> {
        let Self {
            name,
            number,
            cgroup,
            dir,
            actor,
            pods,
        } = self;
        let pods = pods.into_iter().map(|(name, pod, starting)| {
            Ok(Pod {
                name,
                node: number,
                number: pod,
                actor: starting.ready()?,
            })
        });
        let pods = pods.collect::<Result<_>>()?;
        Ok(Node {
            name,
            number,
            actor: actor.ready()?,
            cgroup,
            dir,
            pods,
        })
    }
}

fn make_dirs(paths: &[&Path]) -> Result<()> {
    paths
        .iter()
        .try_for_each(|path| std::fs::create_dir(path).with_context(|| format!("make {}", path.display())))
}
