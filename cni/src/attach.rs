//! The verbs as the agent does them: reserve, make links, wait for the journal; or undo all of it.
//!
//! Each call runs on a thread of its own, which may enter the pod's namespace and ends afterwards.

use crate::{
    netlink::{
        ChangeError, Netlink,
        pair::{self, Pair},
        routes,
    },
    store::Store,
};
use fairlead_cni_plugin::{
    address::Range,
    ledger::Key,
    link,
    offline::{mac, unknown},
    spec::{Code, Failure},
    wire::{Add, Answer, Attachment, Request},
};
use ipnet::IpNet;
use nix::sched::{CloneFlags, setns};
use std::{
    collections::HashSet,
    fs,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Links smaller than this carry no IPv6 (RFC 8200 section 5).
const SMALLEST_MTU_V6: u32 = 1280;
/// Links smaller than this carry no IPv4 (`ETH_MIN_MTU`).
const SMALLEST_MTU_V4: u32 = 68;

/// How long an operation waits for another one on the same attachment.
const TURN: Duration = Duration::from_secs(10);

/// A step of ADD that is done; tests stop after one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Addresses are reserved in memory.
    Reserved,
    /// The pair of links is there, without anything on it.
    Linked,
    /// The host's end is up, with routes and neighbours.
    HostReady,
    /// The pod's end too.
    PodReady,
    /// The journal has the reservation.
    Written,
}

impl Step {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 5] = [
        Self::Reserved,
        Self::Linked,
        Self::HostReady,
        Self::PodReady,
        Self::Written,
    ];
}

/// What the agent knows that ADD and STATUS need.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    /// This node's pod networks; empty while unknown.
    pub(crate) cidrs: Vec<IpNet>,
    /// MTU of new links in bytes.
    pub(crate) mtu: u32,
    /// What keeps routes, forwarding or masquerading from being as they should.
    pub(crate) trouble: Option<String>,
}

/// The attachments of a node.
pub(crate) struct Node {
    store: Store,
    settings: Mutex<Settings>,
    /// Attachments that somebody is working on.
    busy: Mutex<HashSet<Key>>,
    /// Tells that one of them is done.
    turn: Condvar,
    /// Mark of what this agent makes.
    mark: u32,
    /// Milliseconds since boot.
    clock: fn() -> u64,
    /// Stops ADD after a step: `Err(undo)`.
    probe: Option<fn(Step) -> Result<(), Stop>>,
}

/// How a test ends ADD in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code, reason = "only tests stop ADD in the middle"))]
pub(crate) enum Stop {
    /// As after an error: what was done is undone.
    Fail,
    /// As after a crash: it stays.
    Crash,
}

/// The right to work on an attachment, until dropped.
struct Busy<'a> {
    node: &'a Node,
    key: &'a Key,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.node.busy().remove(self.key);
        self.node.turn.notify_all();
    }
}

impl Node {
    pub(crate) fn new(store: Store, mark: u32, clock: fn() -> u64) -> Self {
        Self {
            store,
            settings: Mutex::default(),
            busy: Mutex::default(),
            turn: Condvar::new(),
            mark,
            clock,
            probe: None,
        }
    }

    #[cfg(test)]
    pub(crate) fn stop_after(&mut self, probe: Option<fn(Step) -> Result<(), Stop>>) {
        self.probe = probe;
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn busy(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to work on an attachment, unless somebody else has it.
    fn work_on<'a>(&'a self, key: &'a Key) -> Option<Busy<'a>> {
        let free = self.busy().insert(key.clone());
        // Made only where the right was free: its end gives it back.
        free.then(|| Busy { node: self, key })
    }

    /// The right to work on an attachment, when it is free: runtimes do one thing after another, but we look for what
    /// they forgot, and an ADD that a runtime gave up may still run.
    fn take_turn<'a>(&'a self, key: &'a Key) -> Result<Busy<'a>, Failure> {
        let taken = |busy: &mut HashSet<Key>| busy.contains(key);
        let waited = self.turn.wait_timeout_while(self.busy(), TURN, taken);
        let (mut busy, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let free = busy.insert(key.clone());
        drop(busy);
        free.then(|| Busy { node: self, key }).ok_or_else(|| in_progress(key))
    }

    /// Does what a plugin asks for.
    pub(crate) fn answer(&self, request: Request, netns: Option<OwnedFd>) -> Answer {
        let done = match request {
            Request::Add(add) => match netns {
                Some(netns) => self.add(&add, netns).map(Answer::Attached),
                None => Err(Failure::new(Code::Io, "ADD came without a network namespace", "")),
            },
            Request::Del { key } => self.del(&key).map(|()| Answer::Done),
            Request::Check { key } => self.check(&key).map(Answer::Attached),
            Request::Gc { network, valid } => self.gc(&network, &valid).map(|()| Answer::Done),
            Request::Status { ranges } => self.status(&ranges).map(|()| Answer::Done),
        };
        done.unwrap_or_else(Answer::Failed)
    }

    fn add(&self, add: &Add, netns: OwnedFd) -> Result<Attachment, Failure> {
        let Add {
            key,
            network,
            pod,
            ranges,
            mtu,
        } = add;
        let _busy = self.take_turn(key)?;
        let host_if = link::host_name(key);
        let mut host = Netlink::route().map_err(|error| no_netlink(&error))?;
        if self.store.read(|ledger| ledger.get(key).is_some()) {
            // An ADD whose answer got lost, or whose DEL never came. While its link is there, its addresses are used.
            if pair::index(&mut host, &host_if).is_ok() {
                return Err(Failure::new(
                    Code::Exists,
                    format!("{key} is attached already"),
                    "the runtime calls DEL before it adds the same interface again",
                ));
            }
            self.store.release(key, (self.clock)()).wait().map_err(unwritten)?;
        }
        let settings = self.settings().clone();
        let sets = sets(ranges, &settings.cidrs)?;
        let mtu = mtu.unwrap_or(settings.mtu);
        check_mtu(mtu, &sets)?;
        let held = self.store.hold(key, network, pod.as_deref(), &sets, (self.clock)());
        let (ips, ticket) = held.map_err(|exhausted| {
            Failure::new(
                Code::TryAgainLater,
                "no address is free for the pod",
                exhausted.to_string(),
            )
        })?;
        let mut undo = Undo {
            node: self,
            key,
            link: None,
            armed: true,
        };
        self.reached(Step::Reserved, &mut undo)?;

        let (host_mac, pod_mac) = link::macs(key);
        let pair = Pair {
            host_if: &host_if,
            pod_if: &key.ifname,
            host_mac,
            pod_mac,
            mtu,
            mark: self.mark,
            ips: &ips,
        };
        self.make(&pair, key, &mut host, netns, &mut undo)?;
        ticket.wait().map_err(unwritten)?;
        self.reached(Step::Written, &mut undo)?;
        undo.armed = false;
        tracing::debug!(%key, pod = pod.as_deref().unwrap_or_default(), ?ips, link = host_if, "attached");
        Ok(Attachment {
            host_mac: mac(host_mac),
            pod_mac: mac(pod_mac),
            host_if,
            mtu,
            ips,
        })
    }

    /// Makes the links. Afterwards the thread is in the pod's namespace.
    fn make(
        &self,
        pair: &Pair<'_>,
        key: &Key,
        host: &mut Netlink,
        netns: OwnedFd,
        undo: &mut Undo<'_>,
    ) -> Result<(), Failure> {
        let refused = |error: ChangeError| refused(&error, key);
        match host.change(vec![pair.create(netns.as_fd())]) {
            Err(error) if error.is(libc::EEXIST) => {
                // Ours by its name, which follows from the key: what a crash left. Else the pod has such a link.
                let left = host.change(vec![pair::delete(pair.host_if)]).is_ok();
                if !left {
                    return Err(exists_in_pod(key));
                }
                host.change(vec![pair.create(netns.as_fd())]).map_err(|error| {
                    if error.is(libc::EEXIST) {
                        exists_in_pod(key)
                    } else {
                        refused(error)
                    }
                })?;
            }
            created => created.map_err(refused)?,
        }
        undo.link = Some(Netlink::route().map_err(|error| no_netlink(&error))?);
        self.reached(Step::Linked, undo)?;

        let found = |error| {
            refused(ChangeError {
                what: "find the new link",
                source: error,
            })
        };
        let index = pair::index(host, pair.host_if).map_err(found)?;
        host.change(pair.host(index)).map_err(refused)?;
        // The proxy gives replies of pods the service's address before they are routed, so their source says nothing.
        let _ = fs::write(format!("/proc/sys/net/ipv4/conf/{}/rp_filter", pair.host_if), "0");
        self.reached(Step::HostReady, undo)?;

        setns(netns, CloneFlags::CLONE_NEWNET).map_err(|errno| {
            let source = errno.into();
            refused(ChangeError {
                what: "enter the pod's network namespace",
                source,
            })
        })?;
        if pair.ips.iter().any(IpAddr::is_ipv6) {
            // Some runtimes make namespaces without IPv6; and nobody but us configures this link.
            for (setting, value) in [("disable_ipv6", "0"), ("accept_ra", "0")] {
                let path = format!("/proc/sys/net/ipv6/conf/{}/{setting}", pair.pod_if);
                if let (Err(error), "disable_ipv6") = (fs::write(&path, value), setting) {
                    let msg = format!("IPv6 cannot be turned on for {key}");
                    return Err(Failure::new(
                        Code::Kernel,
                        msg,
                        format!("{path}: {error}; give the node IPv4 networks only"),
                    ));
                }
            }
        }
        let mut pod = Netlink::route().map_err(|error| no_netlink(&error))?;
        let index = pair::index(&mut pod, pair.pod_if).map_err(found)?;
        pod.change(pair.pod(index)).map_err(refused)?;
        self.reached(Step::PodReady, undo)
    }

    fn reached(&self, step: Step, undo: &mut Undo<'_>) -> Result<(), Failure> {
        let Some(probe) = self.probe else { return Ok(()) };
        probe(step).map_err(|stop| {
            undo.armed = stop == Stop::Fail;
            Failure::new(Code::Kernel, format!("stopped after {step:?}"), "")
        })
    }

    /// First the link, then the address: nobody gets an address that a link still has.
    fn del(&self, key: &Key) -> Result<(), Failure> {
        let _busy = self.take_turn(key)?;
        let mut host = Netlink::route().map_err(|error| no_netlink(&error))?;
        match host.change(vec![pair::delete(&link::host_name(key))]) {
            Err(error) if !error.is(libc::ENODEV) => return Err(refused(&error, key)),
            _ => {}
        }
        self.store.release(key, (self.clock)()).wait().map_err(unwritten)?;
        tracing::debug!(%key, "detached");
        Ok(())
    }

    fn check(&self, key: &Key) -> Result<Attachment, Failure> {
        let ips = self.store.read(|ledger| ledger.get(key).map(|held| held.ips.clone()));
        let ips = ips.ok_or_else(|| unknown(key))?;
        let unread = |error| {
            Failure::new(
                Code::Io,
                "the host's links and routes cannot be read",
                format!("{error}"),
            )
        };
        let differs = |msg: String| Failure::new(Code::Differs, msg, "delete the pod; its controller makes a new one");
        let mut host = Netlink::route().map_err(|error| no_netlink(&error))?;
        let host_if = link::host_name(key);
        let links = pair::links(&mut host).map_err(unread)?;
        let found = links.iter().find(|(_, link)| link.name == host_if);
        let (index, found) = found.ok_or_else(|| differs(format!("the host's link {host_if} of {key} is gone")))?;
        let known = routes::read(&mut host, self.mark).map_err(unread)?;
        for ip in &ips {
            if !known.ours.contains(&routes::Route::pod(*ip, *index)) {
                return Err(differs(format!("the host has no route to {ip} by {host_if}")));
            }
        }
        let (host_mac, pod_mac) = link::macs(key);
        Ok(Attachment {
            mtu: found.mtu,
            host_if,
            host_mac: mac(host_mac),
            pod_mac: mac(pod_mac),
            ips,
        })
    }

    /// Removes all attachments of a network that are not listed; all of them, and then says what failed.
    fn gc(&self, network: &str, valid: &[Key]) -> Result<(), Failure> {
        let valid: HashSet<&Key> = valid.iter().collect();
        let stale: Vec<Key> = self.store.read(|ledger| {
            let stale = ledger
                .iter()
                .filter(|(key, held)| held.network == network && !valid.contains(key));
            stale.map(|(key, _)| key.clone()).collect()
        });
        let mut result = Ok(());
        for key in &stale {
            result = result.and(self.del(key));
        }
        if !stale.is_empty() {
            tracing::info!(
                attachments = stale.len(),
                network,
                "removed attachments that the runtime does not know"
            );
        }
        result
    }

    fn status(&self, ranges: &[Vec<Range>]) -> Result<(), Failure> {
        let settings = self.settings().clone();
        let unavailable = |msg: &str, details: String| Failure::new(Code::NotAvailable, msg, details);
        let sets = sets(ranges, &settings.cidrs).map_err(|failure| Failure {
            code: Code::NotAvailable as u32,
            ..failure
        })?;
        if let Some(error) = self.store.failing() {
            return Err(unavailable("the journal of addresses cannot be written", error));
        }
        for set in &sets {
            if self.store.read(|ledger| ledger.free(set)) == 0 {
                let names: Vec<_> = set
                    .iter()
                    .map(|range| format!("{}-{}", range.first, range.last))
                    .collect();
                let details = format!(
                    "pods hold all of {}; delete pods or give the node a larger range",
                    names.join(", ")
                );
                return Err(unavailable("all pod addresses of this node are in use", details));
            }
        }
        match settings.trouble {
            Some(trouble) => Err(Failure::new(
                Code::Limited,
                "the node's network is not as it should be",
                trouble,
            )),
            None => Ok(()),
        }
    }

    /// Brings kernel and journal together: attachments whose link is gone give their addresses back, since a link goes
    /// with its pod's namespace; links that nobody holds addresses for are removed, as a crash left them.
    ///
    /// # Errors
    /// The links cannot be read or removed.
    pub(crate) fn collect(&self, host: &mut Netlink) -> Result<Collected, ChangeError> {
        let read = |source| ChangeError {
            what: "read the links",
            source,
        };
        // In this order: what is settled before the links are read has its link, or has lost it.
        let settled = self.settled();
        let links = pair::links(host).map_err(read)?;
        let ours: HashSet<&str> = links
            .values()
            .filter(|it| it.group == self.mark)
            .map(|it| it.name.as_str())
            .collect();
        let mut collected = Collected::default();
        for (key, _) in &settled {
            if ours.contains(link::host_name(key).as_str()) {
                continue;
            }
            let Some(_busy) = self.work_on(key) else { continue };
            // It may have been removed and added again since.
            if pair::index(host, &link::host_name(key)).is_err() {
                collected.freed += 1;
                let _written_soon = self.store.release(key, (self.clock)());
            }
        }
        let wanted: HashSet<String> = self
            .store
            .read(|ledger| ledger.iter().map(|(key, _)| link::host_name(key)).collect());
        let busy: HashSet<String> = self.busy().iter().map(link::host_name).collect();
        for name in ours {
            if wanted.contains(name) || busy.contains(name) {
                continue;
            }
            match host.change(vec![pair::delete(name)]) {
                Err(error) if !error.is(libc::ENODEV) => return Err(error),
                _ => collected.removed += 1,
            }
        }
        Ok(collected)
    }

    /// Attachments that nobody is working on, with their addresses.
    pub(crate) fn settled(&self) -> Vec<(Key, Vec<IpAddr>)> {
        let busy = self.busy().clone();
        self.store.read(|ledger| {
            let settled = ledger.iter().filter(|(key, _)| !busy.contains(key));
            settled.map(|(key, held)| (key.clone(), held.ips.clone())).collect()
        })
    }
}

/// What [`Node::collect`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Collected {
    /// Attachments without a link.
    pub(crate) freed: usize,
    /// Links without an attachment.
    pub(crate) removed: usize,
}

/// Undoes a half-done ADD when dropped.
struct Undo<'a> {
    node: &'a Node,
    key: &'a Key,
    /// A socket in the host's namespace, once there is a link: the thread may be elsewhere by then.
    link: Option<Netlink>,
    armed: bool,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        if let Some(mut host) = self.link.take() {
            match host.change(vec![pair::delete(&link::host_name(self.key))]) {
                Err(error) if !error.is(libc::ENODEV) => {
                    // The address stays held: the link has it.
                    tracing::error!(key = %self.key, %error, "half of an attachment cannot be undone");
                    return;
                }
                _ => {}
            }
        }
        // If that cannot be written, then neither was the reservation, or it is written with the next change.
        let _ = self.node.store.release(self.key, (self.node.clock)()).wait();
    }
}

/// The sets of ranges to choose from: those of the configuration, else one per pod network of the node.
fn sets(configured: &[Vec<Range>], cidrs: &[IpNet]) -> Result<Vec<Vec<Range>>, Failure> {
    if !configured.is_empty() {
        return Ok(configured.to_vec());
    }
    if cidrs.is_empty() {
        return Err(Failure::new(
            Code::TryAgainLater,
            "this node has no pod network yet",
            "Node.spec.podCIDRs is empty: the controller manager fills it; or set `ranges` in the network configuration",
        ));
    }
    // Several networks of one family are one set: a pod gets one address per family.
    let families = [true, false].map(|v4| {
        let same = cidrs.iter().filter(|cidr| cidr.network().is_ipv4() == v4);
        same.map(|cidr| Range::of(*cidr)).collect::<Vec<_>>()
    });
    Ok(families.into_iter().filter(|set| !set.is_empty()).collect())
}

fn check_mtu(mtu: u32, sets: &[Vec<Range>]) -> Result<(), Failure> {
    let v6 = sets.iter().flatten().any(|range| range.first.is_ipv6());
    let smallest = if v6 { SMALLEST_MTU_V6 } else { SMALLEST_MTU_V4 };
    if (smallest..=65_535).contains(&mtu) {
        return Ok(());
    }
    Err(Failure::new(
        Code::InvalidConfig,
        format!("an MTU of {mtu} bytes is not possible"),
        format!("it is from {smallest} to 65535: see `mtu` of the network configuration, or the node's uplink"),
    ))
}

fn in_progress(key: &Key) -> Failure {
    Failure::new(
        Code::TryAgainLater,
        format!("another operation works on {key}"),
        "runtimes do one after another; try again when it has ended",
    )
}

fn exists_in_pod(key: &Key) -> Failure {
    Failure::new(
        Code::Exists,
        format!("the pod of {key} has a link of that name"),
        "another plugin made it, or an earlier ADD; the runtime calls DEL first",
    )
}

fn refused(error: &ChangeError, key: &Key) -> Failure {
    Failure::new(
        Code::Kernel,
        format!("the links of {key} cannot be made or removed"),
        format!("{error}; the agent needs CAP_NET_ADMIN and CAP_SYS_ADMIN"),
    )
}

fn no_netlink(error: &std::io::Error) -> Failure {
    Failure::new(Code::Kernel, "the kernel gives no netlink socket", error.to_string())
}

fn unwritten(error: String) -> Failure {
    Failure::new(Code::Io, "the journal of addresses cannot be written", error)
}

#[cfg(test)]
mod tests;
