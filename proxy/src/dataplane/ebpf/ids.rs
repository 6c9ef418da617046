//! Who holds which id: backend ids per family, set ids, source range ids.
//!
//! An id is never rebound while an entry of the kernel may still refer to it. Released ids wait as *pending* until an
//! execute has succeeded, because only that proves that the kernel forgot them. Then:
//! * Backend ids are few, so they are given away again, oldest first; each binding has its own generation, and flows
//!   remember it.
//! * Set and range ids are many: a cursor runs through all of them before one comes back, so that affinity entries of a
//!   port that is gone (at most 86 400 s old) are long forgotten. A port keeps both of its sets as long as it lives,
//!   even while no frontend uses one of them, for the same reason.
//!
//! After a restart, ids that the kernel holds are *found*: lowering claims those that it recognises. A backend id is
//! recognised by its address, which is always safe. A set is recognised by its frontends, and only if all of them still
//! belong together: its slots are rewritten in place, and a frontend that went elsewhere must not see them. A list of
//! source ranges is recognised by a frontend and by what is in it: another list gets another id, so that ranges and
//! decision of a frontend change in one write.

use super::{
    image::{Image, Observed, Op, bits_of, socket_addr},
    pool::{BackendIds, Rolling},
};
use crate::{
    model::{Family, ObjectName, Protocol},
    plan::PortPlan,
};
use ipnet::IpNet;
use proxy_common::abi::{Frontend, SlotKey, frontend_flags};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// Pairs of set ids: [`cluster_set`] and [`local_set`] of pair `n` are `2n` and `2n + 1`, so either tells the other.
const LAST_PAIR: u32 = u32::MAX / 2;

/// The Cluster set of a pair.
pub(super) const fn cluster_set(pair: u32) -> u32 {
    pair * 2
}

/// The Local set of a pair.
pub(super) const fn local_set(pair: u32) -> u32 {
    pair * 2 + 1
}

/// The ids of one service.
#[derive(Debug, Default)]
pub(super) struct ServiceIds {
    /// In the order of the plan's translatable ports.
    pub(super) ports: Vec<PortIds>,
    /// In the order of the range lists that were asked for.
    pub(super) ranges: Vec<(RangeList, u32)>,
}

/// The ids of one service port in one family.
#[derive(Debug)]
pub(super) struct PortIds {
    name: Arc<str>,
    protocol: Protocol,
    family: Family,
    /// See [`cluster_set`] and [`local_set`].
    pub(super) pair: u32,
    /// Sorted by address.
    backends: Box<[(SocketAddr, u32)]>,
}

impl PortIds {
    /// Id of a backend that was in the plan of this port.
    pub(super) fn backend(&self, addr: &SocketAddr) -> Option<u32> {
        let at = self.backends.binary_search_by_key(addr, |(addr, _)| *addr).ok()?;
        Some(self.backends[at].1)
    }

    fn is(&self, port: &PortPlan) -> bool {
        self.name == port.name && self.protocol == port.protocol && self.family == port.family
    }
}

/// A list of source ranges of one family: host bits zero, sorted, no duplicates.
pub(super) type RangeList = Box<[IpNet]>;

/// A family's backend ids are all in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exhausted(pub(super) Family);

/// Ids for a new version of a service, to be kept ([`Ids::commit`]) or given back ([`Ids::rollback`]).
#[derive(Debug)]
pub(super) struct Proposal {
    service: ObjectName,
    old: Option<ServiceIds>,
    pub(super) ids: ServiceIds,
    taken: Vec<Taken>,
}

/// How an id that the service did not have came into a proposal.
#[derive(Clone, Copy, Debug)]
enum Taken {
    FreshBackend(Family, u32),
    ClaimedBackend(Family, u32),
    FreshPair(u32),
    ClaimedPair(u32),
    FreshRange(u32),
    ClaimedRange(u32),
}

/// The allocator.
#[derive(Debug)]
pub(super) struct Ids {
    services: HashMap<ObjectName, ServiceIds>,
    backends_v4: BackendIds,
    backends_v6: BackendIds,
    pairs: Rolling,
    ranges: Rolling,
    /// Backends found in the kernel that are in no set (they only serve the flows that they have), with their flags,
    /// until the next success.
    loose: HashMap<SocketAddr, Vec<(u16, u32)>>,
    /// How many of the kernel's frontends use a pair, until the next success.
    pair_users: HashMap<u32, usize>,
    /// Lists found in the kernel, by id, until the next success.
    lists: HashMap<u32, RangeList>,
}

impl Ids {
    /// Backend ids 1 to `backends - 1` per family: they are array indexes, and 0 means none.
    pub(super) fn new(backends: u32) -> Self {
        let last = backends.saturating_sub(1);
        Self {
            services: HashMap::new(),
            backends_v4: BackendIds::new(last),
            backends_v6: BackendIds::new(last),
            pairs: Rolling::new(LAST_PAIR),
            ranges: Rolling::new(u32::MAX),
            loose: HashMap::new(),
            pair_users: HashMap::new(),
            lists: HashMap::new(),
        }
    }

    /// The generation under which a backend id is bound, or was last.
    pub(super) fn generation(&self, family: Family, id: u32) -> u32 {
        match family {
            Family::V4 => self.backends_v4.generation(id),
            Family::V6 => self.backends_v6.generation(id),
        }
    }

    /// Chooses ids: those that the service has, else those that the kernel (`have`) already uses for its frontends,
    /// else new ones. `lists` gives each list with the ids that the kernel uses for its frontends.
    ///
    /// # Errors
    /// [`Exhausted`]; then nothing has changed.
    pub(super) fn propose(
        &mut self,
        service: &ObjectName,
        ports: &[&PortPlan],
        lists: Vec<(RangeList, Vec<u32>)>,
        have: &Image,
    ) -> Result<Proposal, Exhausted> {
        let mut proposal = Proposal {
            service: service.clone(),
            old: self.services.remove(service),
            ids: ServiceIds::default(),
            taken: Vec::new(),
        };
        for port in ports {
            if let Err(exhausted) = self.propose_port(&mut proposal, ports, port, have) {
                self.rollback(proposal);
                return Err(exhausted);
            }
        }
        for (list, in_use) in lists {
            let old = proposal
                .old
                .as_ref()
                .and_then(|old| old.ranges.iter().find(|(other, _)| *other == list));
            let same = |id: &&u32| self.lists.get(*id) == Some(&list) && self.ranges.claim(**id);
            let id = if let Some((_, id)) = old {
                *id
            } else if let Some(id) = in_use.iter().find(same) {
                proposal.taken.push(Taken::ClaimedRange(*id));
                *id
            } else {
                let id = self.ranges.take();
                proposal.taken.push(Taken::FreshRange(id));
                id
            };
            proposal.ids.ranges.push((list, id));
        }
        Ok(proposal)
    }

    fn propose_port(
        &mut self,
        proposal: &mut Proposal,
        ports: &[&PortPlan],
        port: &PortPlan,
        have: &Image,
    ) -> Result<(), Exhausted> {
        let Proposal { old, ids, taken, .. } = proposal;
        let found = found_pair(port, have);
        let old_ports = old.as_ref().map_or(&[][..], |old| &old.ports);
        // A port that was only renamed still leads from the same frontends: its flows must live on.
        let old_port = old_ports.iter().find(|old| old.is(port)).or_else(|| {
            let renamed = |old: &&PortIds| {
                found.is_some_and(|found| found.id == old.pair && found.users == pair_users(old.pair, have))
                    && !ids.ports.iter().any(|new| new.pair == old.pair)
                    && !ports.iter().any(|other| old.is(other))
            };
            old_ports.iter().find(renamed)
        });
        let pair = match (old_port, found) {
            (Some(old), _) => old.pair,
            (None, Some(found))
                if self.pair_users.get(&found.id) == Some(&found.users) && self.pairs.claim(found.id) =>
            {
                taken.push(Taken::ClaimedPair(found.id));
                found.id
            }
            _ => {
                let pair = self.pairs.take();
                taken.push(Taken::FreshPair(pair));
                pair
            }
        };
        let found = found
            .map(|found| self.found_backends(port.family, found.id, have))
            .unwrap_or_default();
        let mut backends = Vec::with_capacity(port.backends.len());
        for backend in &port.backends {
            let addr = backend.addr;
            if Family::of(&addr.ip()) != port.family {
                continue;
            }
            let known = old_port.and_then(|old| old.backend(&addr));
            let id = match known {
                Some(id) => id,
                None => {
                    let loose = self.loose.get(&addr).map_or(&[][..], Vec::as_slice);
                    // Two services may have the same endpoint; what looks exactly like ours is more likely ours.
                    let flags = bits_of(backend);
                    let alike = loose
                        .iter()
                        .filter(|(other, _)| *other == flags)
                        .chain(loose)
                        .map(|(_, id)| id);
                    let mut candidates = found.get(&addr).into_iter().chain(alike).copied();
                    let pool = match port.family {
                        Family::V4 => &mut self.backends_v4,
                        Family::V6 => &mut self.backends_v6,
                    };
                    if let Some(id) = candidates.find(|id| pool.claim(*id)) {
                        taken.push(Taken::ClaimedBackend(port.family, id));
                        id
                    } else {
                        let id = pool.take().ok_or(Exhausted(port.family))?;
                        taken.push(Taken::FreshBackend(port.family, id));
                        id
                    }
                }
            };
            backends.push((addr, id));
        }
        backends.sort_unstable();
        ids.ports.push(PortIds {
            name: port.name.clone(),
            protocol: port.protocol,
            family: port.family,
            pair,
            backends: backends.into(),
        });
        Ok(())
    }

    /// Found ids that the kernel's slots of this pair lead to.
    fn found_backends(&self, family: Family, pair: u32, have: &Image) -> HashMap<SocketAddr, u32> {
        let mut found = HashMap::new();
        let claimable = match family {
            Family::V4 => &self.backends_v4.found,
            Family::V6 => &self.backends_v6.found,
        };
        if claimable.is_empty() {
            return found;
        }
        let first = SlotKey {
            set: cluster_set(pair),
            slot: 0,
        };
        let last = SlotKey {
            set: local_set(pair),
            slot: u32::MAX,
        };
        for slot in have.slots.range(first..=last).map(|(_, slot)| slot) {
            let entry = match family {
                Family::V4 => have
                    .backends_v4
                    .get(&slot.backend)
                    .map(|be| (be.generation, socket_addr(be.addr, be.port))),
                Family::V6 => have
                    .backends_v6
                    .get(&slot.backend)
                    .map(|be| (be.generation, socket_addr(be.addr, be.port))),
            };
            if let Some((generation, addr)) = entry
                && generation == slot.generation
                && claimable.contains(&slot.backend)
            {
                found.entry(addr).or_insert(slot.backend);
            }
        }
        found
    }

    /// Keeps a proposal; what the service had and has no more becomes pending.
    pub(super) fn commit(&mut self, proposal: Proposal) -> &ServiceIds {
        if let Some(old) = &proposal.old {
            self.release_but(old, &proposal.ids);
        }
        self.services
            .entry(proposal.service)
            .insert_entry(proposal.ids)
            .into_mut()
    }

    /// Gives a proposal back, as if it had never been.
    pub(super) fn rollback(&mut self, proposal: Proposal) {
        for taken in proposal.taken.into_iter().rev() {
            match taken {
                Taken::FreshBackend(Family::V4, id) => self.backends_v4.untake(id),
                Taken::FreshBackend(Family::V6, id) => self.backends_v6.untake(id),
                Taken::ClaimedBackend(Family::V4, id) => self.backends_v4.unclaim(id),
                Taken::ClaimedBackend(Family::V6, id) => self.backends_v6.unclaim(id),
                Taken::FreshPair(pair) => self.pairs.untake(pair),
                Taken::ClaimedPair(pair) => self.pairs.unclaim(pair),
                Taken::FreshRange(id) => self.ranges.untake(id),
                Taken::ClaimedRange(id) => self.ranges.unclaim(id),
            }
        }
        if let Some(old) = proposal.old {
            self.services.insert(proposal.service, old);
        }
    }

    /// All ids of a service become pending.
    pub(super) fn release(&mut self, service: &ObjectName) {
        if let Some(old) = self.services.remove(service) {
            self.release_but(&old, &ServiceIds::default());
        }
    }

    fn release_but(&mut self, old: &ServiceIds, new: &ServiceIds) {
        let kept = Owned::of([new]);
        for port in &old.ports {
            let (pool, kept_backends) = match port.family {
                Family::V4 => (&mut self.backends_v4, &kept.backends_v4),
                Family::V6 => (&mut self.backends_v6, &kept.backends_v6),
            };
            port.backends
                .iter()
                .filter(|(_, id)| !kept_backends.contains(id))
                .for_each(|(_, id)| pool.release(*id));
            if !kept.pairs.contains(&port.pair) {
                self.pairs.release(port.pair);
            }
        }
        old.ranges
            .iter()
            .filter(|(_, id)| !kept.ranges.contains(id))
            .for_each(|(_, id)| self.ranges.release(*id));
    }

    /// The kernel now holds what was lowered and nothing else: pending ids, and found ones that nobody claimed, may be
    /// given away.
    pub(super) fn executed(&mut self, ops: &[Op]) {
        for op in ops {
            match op {
                Op::FreeBackendV4(id, generation) => self.backends_v4.set_generation(*id, *generation),
                Op::FreeBackendV6(id, generation) => self.backends_v6.set_generation(*id, *generation),
                _ => {}
            }
        }
        self.backends_v4.settle();
        self.backends_v6.settle();
        self.pairs.settle();
        self.ranges.settle();
        self.loose.clear();
        self.pair_users.clear();
        self.lists.clear();
    }

    /// Learns what the kernel holds. Ids of no service are found: lowering claims those that it recognises, the rest is
    /// reusable after the next success.
    pub(super) fn adopt(&mut self, observed: &Observed) {
        let image = &observed.image;
        let owned = Owned::of(self.services.values());
        let bound = image.backends_v4.iter().map(|(id, be)| (*id, be.generation));
        self.backends_v4
            .adopt(bound, &observed.generations_v4, &owned.backends_v4);
        let bound = image.backends_v6.iter().map(|(id, be)| (*id, be.generation));
        self.backends_v6
            .adopt(bound, &observed.generations_v6, &owned.backends_v6);

        let frontends = || image.frontends_v4.values().chain(image.frontends_v6.values());
        self.pair_users.clear();
        for frontend in frontends() {
            for pair in pairs_of(frontend) {
                *self.pair_users.entry(pair).or_default() += 1;
            }
        }
        let pairs = frontends()
            .flat_map(pairs_of)
            .chain(image.slots.keys().map(|key| key.set / 2));
        self.pairs.adopt(pairs, &owned.pairs);
        let mut lists = lists_of(image);
        for id in frontends().filter_map(ranges_of) {
            // A list that lets nobody in has no entries.
            lists.entry(id).or_default();
        }
        self.ranges.adopt(lists.keys().copied(), &owned.ranges);
        self.lists = lists
            .into_iter()
            .map(|(id, list)| (id, list.into_iter().collect()))
            .collect();

        self.loose.clear();
        let mut reachable = HashSet::new();
        let mut note = |sets: [u32; 2], family| {
            for set in sets {
                let slots = image
                    .slots
                    .range(SlotKey { set, slot: 0 }..=SlotKey { set, slot: u32::MAX });
                reachable.extend(slots.map(|(_, slot)| (family, slot.backend)));
            }
        };
        if !self.backends_v4.found.is_empty() {
            image
                .frontends_v4
                .values()
                .for_each(|fe| note([fe.internal_set, fe.external_set], Family::V4));
        }
        if !self.backends_v6.found.is_empty() {
            image
                .frontends_v6
                .values()
                .for_each(|fe| note([fe.internal_set, fe.external_set], Family::V6));
        }
        for id in self
            .backends_v4
            .found
            .iter()
            .filter(|id| !reachable.contains(&(Family::V4, **id)))
        {
            if let Some(be) = image.backends_v4.get(id) {
                self.loose
                    .entry(socket_addr(be.addr, be.port))
                    .or_default()
                    .push((be.flags, *id));
            }
        }
        for id in self
            .backends_v6
            .found
            .iter()
            .filter(|id| !reachable.contains(&(Family::V6, **id)))
        {
            if let Some(be) = image.backends_v6.get(id) {
                self.loose
                    .entry(socket_addr(be.addr, be.port))
                    .or_default()
                    .push((be.flags, *id));
            }
        }
    }
}

/// A pair in the kernel, and how many frontends of the plan's port use it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct InUse {
    id: u32,
    users: usize,
}

/// The pairs that a frontend uses: one, unless somebody else wrote it.
fn pairs_of(frontend: &Frontend) -> impl Iterator<Item = u32> + Clone + use<> {
    let [internal, external] = [frontend.internal_set / 2, frontend.external_set / 2];
    let external = (external != internal).then_some(external);
    [Some(internal), external]
        .into_iter()
        .flatten()
        .filter(|pair| *pair != 0)
}

/// The source ranges of a frontend.
pub(super) fn ranges_of(frontend: &Frontend) -> Option<u32> {
    (frontend.flags & frontend_flags::SOURCE_RANGES != 0).then_some(frontend.ranges)
}

/// The kernel's lists of source ranges, by id.
fn lists_of(image: &Image) -> HashMap<u32, BTreeSet<IpNet>> {
    let mut lists: HashMap<u32, BTreeSet<IpNet>> = HashMap::new();
    let v4 = image
        .ranges_v4
        .iter()
        .map(|key| (key.ranges, IpAddr::from(key.addr), key.prefix_len));
    let v6 = image
        .ranges_v6
        .iter()
        .map(|key| (key.ranges, IpAddr::from(key.addr), key.prefix_len));
    for (id, addr, prefix_len) in v4.chain(v6) {
        let len = u8::try_from(prefix_len.saturating_sub(32)).unwrap_or(u8::MAX);
        lists.entry(id).or_default().extend(IpNet::new(addr, len));
    }
    lists
}

/// The pair that the kernel uses for the frontends of this port.
fn found_pair(port: &PortPlan, have: &Image) -> Option<InUse> {
    let entries = port
        .frontends
        .iter()
        .filter_map(|fe| have.frontend(fe.addr, fe.port.get(), port.protocol));
    let pairs = entries.flat_map(pairs_of);
    let id = pairs.clone().next()?;
    Some(InUse {
        id,
        users: pairs.filter(|other| *other == id).count(),
    })
}

/// How many frontends of the kernel use a pair.
fn pair_users(pair: u32, have: &Image) -> usize {
    let entries = have.frontends_v4.values().chain(have.frontends_v6.values());
    entries.flat_map(pairs_of).filter(|other| *other == pair).count()
}

/// Ids held by some services.
#[derive(Default)]
struct Owned {
    backends_v4: HashSet<u32>,
    backends_v6: HashSet<u32>,
    pairs: HashSet<u32>,
    ranges: HashSet<u32>,
}

impl Owned {
    fn of<'a>(services: impl IntoIterator<Item = &'a ServiceIds>) -> Self {
        let mut owned = Self::default();
        for service in services {
            for port in &service.ports {
                let backends = match port.family {
                    Family::V4 => &mut owned.backends_v4,
                    Family::V6 => &mut owned.backends_v6,
                };
                backends.extend(port.backends.iter().map(|(_, id)| *id));
                owned.pairs.insert(port.pair);
            }
            owned.ranges.extend(service.ranges.iter().map(|(_, id)| *id));
        }
        owned
    }
}
