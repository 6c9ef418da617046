//! What the host needs around its pods: forwarding, routes, masquerading. One thread makes the kernel follow, again
//! after every change that anybody makes.

use crate::{
    attach::Node,
    netlink::{
        ChangeError, Netlink, nft,
        pair::{self, Link},
        routes::{self, Reach, Route, Way},
    },
    peers::Towards,
};
use fairlead_cni_plugin::link;
use ipnet::IpNet;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rtnetlink::{
    MulticastGroup,
    sys::{
        Socket, SocketAddr,
        protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};
use tokio::sync::watch;

/// Quiet time in milliseconds after which a burst of notifications counts as over.
const QUIET_MS: u16 = 20;
/// How many such times are waited for at most: a host where routes change all the time is looked at all the same.
const BURST: usize = 10;
/// Milliseconds after which everything is looked at without a reason.
const AUDIT_MS: u16 = 60_000;
/// Milliseconds after which what failed is tried again.
const RETRY_MS: u16 = 1_000;
/// MTU where no uplink says another one: Ethernet's.
const ETHERNET_MTU: u32 = 1500;

/// What the host should be like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Pod networks of this node.
    pub(crate) own: Vec<IpNet>,
    /// Routes to other nodes; `None` while nobody knows them: then those that are there stay.
    pub(crate) peers: Option<Vec<Towards>>,
    /// Networks that see pods' own addresses.
    pub(crate) inside: Vec<IpNet>,
    /// Whether the rest sees the node's.
    pub(crate) masquerade: bool,
    /// MTU of pod links, if the uplink's is not wanted.
    pub(crate) mtu: Option<u32>,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Nodes that no direct route leads to, with the reason.
    pub(crate) unreachable: BTreeMap<String, String>,
    /// What could not be done.
    pub(crate) trouble: Vec<String>,
    /// How often something was changed.
    pub(crate) changes: u64,
    /// Which wish this is about: what [`Host::want`] gave.
    pub(crate) wish: u64,
}

/// The thread that keeps the host so.
pub(crate) struct Host {
    wanted: Arc<Mutex<(u64, Wanted)>>,
    wake: UnixStream,
    reports: watch::Receiver<Report>,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    /// Starts in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel gives no sockets.
    pub(crate) fn start(node: Arc<Node>, mark: u32, table: String) -> io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        let wanted = Arc::new(Mutex::new((0, Wanted::default())));
        let (sender, reports) = watch::channel(Report::default());
        let follow = Follower {
            route: listen(
                NETLINK_ROUTE,
                &[
                    MulticastGroup::Link as u32,
                    MulticastGroup::Ipv4Ifaddr as u32,
                    MulticastGroup::Ipv6Ifaddr as u32,
                    MulticastGroup::Ipv4Route as u32,
                    MulticastGroup::Ipv6Route as u32,
                ],
            )?,
            nft: listen(NETLINK_NETFILTER, &[nft::GROUP])?,
            netlink: Netlink::route()?,
            woken,
            node,
            mark,
            table,
            wanted: Arc::clone(&wanted),
            sender,
        };
        let thread = thread::Builder::new()
            .name("cni-host".into())
            .spawn(move || follow.run())?;
        Ok(Self {
            wanted,
            wake,
            reports,
            thread: Some(thread),
        })
    }

    /// Changes what is wanted; the number that reports about it carry.
    pub(crate) fn want(&self, wanted: Wanted) -> u64 {
        let mut held = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if held.0 == 0 || held.1 != wanted {
            *held = (held.0 + 1, wanted);
            // A full pipe wakes as well.
            let _ = (&self.wake).write(&[1]);
        }
        held.0
    }

    /// What came of it, newest.
    pub(crate) fn reports(&self) -> watch::Receiver<Report> {
        self.reports.clone()
    }
}

impl Drop for Host {
    /// Stops; what was made stays.
    fn drop(&mut self) {
        let _ = self.wake.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed by it.
            let _ = thread.join();
        }
    }
}

/// A socket that hears of changes.
fn listen(protocol: isize, groups: &[u32]) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    for group in groups {
        socket.add_membership(*group)?;
    }
    socket.set_non_blocking(true)?;
    Ok(socket)
}

struct Follower {
    route: Socket,
    nft: Socket,
    netlink: Netlink,
    woken: UnixStream,
    node: Arc<Node>,
    mark: u32,
    table: String,
    wanted: Arc<Mutex<(u64, Wanted)>>,
    sender: watch::Sender<Report>,
}

impl Follower {
    fn run(mut self) {
        let mut report = Report::default();
        loop {
            let (wish, wanted) = self.wanted.lock().unwrap_or_else(PoisonError::into_inner).clone();
            report.wish = wish;
            if wish == 0 {
                // Nothing is known yet, and what an earlier agent made may be right.
                match self.wait(AUDIT_MS) {
                    true => continue,
                    false => return,
                }
            }
            let before = report.trouble.clone();
            self.round(&wanted, &mut report);
            if report.trouble != before {
                for trouble in &report.trouble {
                    tracing::error!(trouble, "the node's network is not as it should be; trying again");
                }
            }
            self.sender.send_replace(report.clone());
            let patience = if report.trouble.is_empty() { AUDIT_MS } else { RETRY_MS };
            if !self.wait(patience) {
                return;
            }
            for _ in 0..BURST {
                self.drain();
                match self.poll(QUIET_MS) {
                    Heard::Stop => return,
                    Heard::Nothing => break,
                    Heard::Something => {}
                }
            }
            self.drain();
        }
    }

    /// Waits for a reason to look again; `false` to stop.
    fn wait(&mut self, patience_ms: u16) -> bool {
        self.poll(patience_ms) != Heard::Stop
    }

    fn poll(&mut self, patience_ms: u16) -> Heard {
        // SAFETY: both sockets live as long as `self`, which is borrowed for longer than these.
        let (route, nft) = unsafe {
            (
                BorrowedFd::borrow_raw(self.route.as_raw_fd()),
                BorrowedFd::borrow_raw(self.nft.as_raw_fd()),
            )
        };
        let mut fds = [
            PollFd::new(self.woken.as_fd(), PollFlags::POLLIN),
            PollFd::new(route, PollFlags::POLLIN),
            PollFd::new(nft, PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::from(patience_ms)) {
            Ok(0) => return Heard::Nothing,
            Err(nix::errno::Errno::EINTR) | Ok(_) => {}
            Err(_) => return Heard::Stop,
        }
        let mut bytes = [0; 64];
        loop {
            match self.woken.read(&mut bytes) {
                Ok(0) => return Heard::Stop,
                Ok(_) => {}
                Err(_) => return Heard::Something,
            }
        }
    }

    /// Throws notifications away: what they say is read from the kernel, also when some were lost.
    fn drain(&self) {
        let mut bytes = vec![0_u8; 64 << 10];
        for socket in [&self.route, &self.nft] {
            loop {
                let mut room = bytes.as_mut_slice();
                match socket.recv(&mut room, 0) {
                    Ok(_) => {}
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                    Err(_) => break,
                }
            }
        }
    }

    /// Looks at everything once and mends it.
    fn round(&mut self, wanted: &Wanted, report: &mut Report) {
        report.trouble.clear();
        let before = report.changes;
        match self.node.collect(&mut self.netlink) {
            Ok(collected) if collected.freed + collected.removed > 0 => {
                tracing::info!(
                    addresses_of = collected.freed,
                    links = collected.removed,
                    "freed what no pod uses any more"
                );
                report.changes += 1;
            }
            Ok(_) => {}
            Err(error) => report.trouble.push(error.to_string()),
        }
        if let Err(error) = self.routes(wanted, report) {
            report.trouble.push(error.to_string());
        }
        for (setting, error) in forwarding(wanted) {
            report.trouble.push(format!(
                "{setting}: {error}; pods reach nothing outside their node without it"
            ));
        }
        match nft::apply(&self.table, &masquerade(wanted)) {
            Ok(changed) => report.changes += u64::from(changed),
            Err(error) => report.trouble.push(format!("nftables table {}: {error}", self.table)),
        }
        if report.changes != before {
            tracing::debug!(
                changes = report.changes - before,
                "the node's network was brought up to date"
            );
        }
        self.node.settings().trouble = (!report.trouble.is_empty()).then(|| report.trouble.join("; "));
    }

    fn routes(&mut self, wanted: &Wanted, report: &mut Report) -> Result<(), ChangeError> {
        let read = |source| ChangeError {
            what: "read links and routes",
            source,
        };
        // In this order: an attachment that is settled before the links are read has its link, if it still has one.
        let settled = self.node.settled();
        let links = pair::links(&mut self.netlink).map_err(read)?;
        let known = routes::read(&mut self.netlink, self.mark).map_err(read)?;
        self.node.settings().mtu = wanted.mtu.unwrap_or_else(|| uplink_mtu(&known.uplinks, &links));

        let mut want: BTreeSet<Route> = wanted
            .own
            .iter()
            .map(|to| Route {
                to: *to,
                way: Way::Blackhole,
            })
            .collect();
        if let Some(peers) = &wanted.peers {
            report.unreachable.clear();
            for towards in peers {
                match routes::reach(&mut self.netlink, towards.by).map_err(read)? {
                    Reach::OnLink(index) => {
                        want.insert(Route {
                            to: towards.to,
                            way: Way::Node(towards.by, index),
                        });
                    }
                    other => {
                        report
                            .unreachable
                            .insert(towards.node.clone(), unreachable(towards, other));
                    }
                }
            }
        }
        let index: BTreeMap<&str, u32> = links.iter().map(|(index, link)| (link.name.as_str(), *index)).collect();
        for (key, ips) in &settled {
            if let Some(index) = index.get(link::host_name(key).as_str()) {
                want.extend(ips.iter().map(|ip| Route::pod(*ip, *index)));
            }
        }
        // Routes of pods that came since go with their links.
        let stays = |route: &Route| match route.way {
            Way::Link(_) => true,
            Way::Node(..) => wanted.peers.is_none(),
            Way::Blackhole => false,
        };
        for route in known.ours.difference(&want).filter(|route| !stays(route)) {
            match self.netlink.change(vec![route.remove(self.mark)]) {
                Err(error) if !error.is(libc::ESRCH) => return Err(error),
                _ => report.changes += 1,
            }
        }
        for route in want.difference(&known.ours) {
            match (self.netlink.change(vec![route.add(self.mark)]), route.way) {
                (Ok(()), _) => report.changes += 1,
                // The pod went away meanwhile.
                (Err(error), Way::Link(_)) if error.is(libc::ENODEV) || error.is(libc::ENETDOWN) => {}
                (Err(error), _) => report.trouble.push(format!("route to {}: {error}", route.to)),
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Something,
    Nothing,
    Stop,
}

/// The smallest MTU of the links that default routes lead to.
fn uplink_mtu(uplinks: &BTreeSet<u32>, links: &BTreeMap<u32, Link>) -> u32 {
    let mtus = uplinks.iter().filter_map(|index| links.get(index)).map(|link| link.mtu);
    mtus.filter(|mtu| *mtu > 0).min().unwrap_or(ETHERNET_MTU).min(65_535)
}

fn unreachable(towards: &Towards, reach: Reach) -> String {
    let Towards { to, by, .. } = towards;
    match reach {
        Reach::By(router) => {
            format!("{by} is behind the router {router}, not on a link of this node: no route to its pods {to}")
        }
        Reach::Here => format!("{by} is an address of this node itself: no route to its pods {to}"),
        _ => format!("no route leads to {by}: none to its pods {to}"),
    }
}

/// IPv6 pods get the node's address only where theirs is unique local (RFC 4193).
fn masquerade(wanted: &Wanted) -> nft::Masquerade {
    if !wanted.masquerade {
        return nft::Masquerade::default();
    }
    let local = |net: &&IpNet| match net {
        IpNet::V4(_) => true,
        IpNet::V6(v6) => v6.network().is_unique_local(),
    };
    nft::Masquerade {
        from: wanted.own.iter().filter(local).copied().collect(),
        inside: wanted.inside.clone(),
    }
}

/// Turns forwarding on for the families that pods have; what failed.
fn forwarding(wanted: &Wanted) -> Vec<(String, io::Error)> {
    let mut failed = Vec::new();
    let mut set = |path: &str| {
        // Written only where it differs: writing IPv4's resets other settings of all links.
        if fs::read_to_string(path).is_ok_and(|value| value.trim() == "1") {
            return;
        }
        if let Err(error) = fs::write(path, "1") {
            failed.push((path.to_owned(), error));
        }
    };
    if wanted.own.iter().any(|net| net.network().is_ipv4()) {
        set("/proc/sys/net/ipv4/ip_forward");
    }
    if wanted.own.iter().any(|net| net.network().is_ipv6()) {
        keep_advertisements(Path::new("/proc/sys/net/ipv6/conf"));
        set("/proc/sys/net/ipv6/conf/all/forwarding");
    }
    failed
}

/// A router ignores router advertisements unless told not to (`accept_ra` 2), so links that live by them keep them.
fn keep_advertisements(conf: &Path) {
    let forwards = fs::read_to_string(conf.join("all/forwarding")).is_ok_and(|value| value.trim() == "1");
    if forwards {
        return;
    }
    for entry in fs::read_dir(conf).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let setting = entry.path().join("accept_ra");
        let ours = name.as_encoded_bytes().starts_with(link::PREFIX.as_bytes());
        let general = name == "all" || name == "default" || name == "lo";
        if !ours && !general && fs::read_to_string(&setting).is_ok_and(|value| value.trim() == "1") {
            // Where it fails, the link loses its default route after a while, as on any router.
            let _ = fs::write(&setting, "2");
        }
    }
}
