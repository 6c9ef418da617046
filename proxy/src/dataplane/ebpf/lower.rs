//! Plan of a service → the map entries that mean it.

use super::{
    ids::{Ids, PortIds, RangeList, cluster_set, local_set, ranges_of},
    image::{Image, Observed, Op, bits_of, frontend_key_v4, frontend_key_v6},
};
use crate::{
    dataplane::Lowered,
    error::{ApplyError, Skipped},
    model::{Family, ObjectName, Protocol},
    plan::{self, Decision, FrontendKind, PortPlan, ServicePlan, SourceRanges},
};
use ipnet::IpNet;
use proxy_common::abi::{
    BackendV4, BackendV6, Frontend, Slot, SlotKey, SourceRangeKeyV4, SourceRangeKeyV6, backend_flags, frontend_flags,
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

/// Sizes of the maps, `max_entries`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// `FRONTENDS_V4`, and as many in `FRONTENDS_V6`; `--max-frontends`.
    pub frontends: u32,
    /// `BACKENDS_V4`, and as many in `BACKENDS_V6`; entry 0 stays unused; `--max-backends`.
    pub backends: u32,
    /// `SLOTS`, both families; `--max-slots`.
    pub slots: u32,
    /// `SOURCE_RANGES_V4`, and as many in `SOURCE_RANGES_V6`; `--max-source-ranges`.
    pub ranges: u32,
}

/// Room for 10 000 services with 10 endpoints each, several times over. The arrays of backends take their memory at
/// once (4 + 7 MiB), the other maps as they fill.
impl Default for Capacity {
    fn default() -> Self {
        Self {
            frontends: 131_072,
            backends: 262_144,
            slots: 524_288,
            ranges: 65_536,
        }
    }
}

/// Entries in each map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    frontends_v4: usize,
    frontends_v6: usize,
    slots: usize,
    ranges_v4: usize,
    ranges_v6: usize,
}

impl Usage {
    fn of(image: &Image) -> Self {
        Self {
            frontends_v4: image.frontends_v4.len(),
            frontends_v6: image.frontends_v6.len(),
            slots: image.slots.len(),
            ranges_v4: image.ranges_v4.len(),
            ranges_v6: image.ranges_v6.len(),
        }
    }

    /// Plus the entries of `image` that `have` lacks: nothing is removed before everything new is written.
    fn plus(self, image: &Image, have: &Image) -> Self {
        Self {
            frontends_v4: self.frontends_v4
                + image
                    .frontends_v4
                    .keys()
                    .filter(|key| !have.frontends_v4.contains_key(key))
                    .count(),
            frontends_v6: self.frontends_v6
                + image
                    .frontends_v6
                    .keys()
                    .filter(|key| !have.frontends_v6.contains_key(key))
                    .count(),
            slots: self.slots + image.slots.keys().filter(|key| !have.slots.contains_key(key)).count(),
            ranges_v4: self.ranges_v4 + image.ranges_v4.difference(&have.ranges_v4).count(),
            ranges_v6: self.ranges_v6 + image.ranges_v6.difference(&have.ranges_v6).count(),
        }
    }

    fn check(&self, capacity: &Capacity) -> Result<(), ApplyError> {
        for (map, used, max_entries, flag) in [
            ("FRONTENDS_V4", self.frontends_v4, capacity.frontends, "max-frontends"),
            ("FRONTENDS_V6", self.frontends_v6, capacity.frontends, "max-frontends"),
            ("SLOTS", self.slots, capacity.slots, "max-slots"),
            ("SOURCE_RANGES_V4", self.ranges_v4, capacity.ranges, "max-source-ranges"),
            ("SOURCE_RANGES_V6", self.ranges_v6, capacity.ranges, "max-source-ranges"),
        ] {
            if used > max_entries as usize {
                return Err(ApplyError::Full { map, max_entries, flag });
            }
        }
        Ok(())
    }

    fn minus(&mut self, ops: &[Op]) {
        for op in ops {
            let count = match op {
                Op::RemoveFrontendV4(_) => &mut self.frontends_v4,
                Op::RemoveFrontendV6(_) => &mut self.frontends_v6,
                Op::RemoveSlot(_) => &mut self.slots,
                Op::RemoveRangeV4(_) => &mut self.ranges_v4,
                Op::RemoveRangeV6(_) => &mut self.ranges_v6,
                _ => continue,
            };
            *count = count.saturating_sub(1);
        }
    }
}

/// Lowers services one at a time; holds the ids that it promised and how full the maps are.
///
/// A dataplane calls [`Lowerer::adopt`] at the end of `observe`, [`Lowerer::lower`] from `lower`, and
/// [`Lowerer::executed`] at the end of a successful `execute`.
#[derive(Debug)]
pub struct Lowerer {
    capacity: Capacity,
    masquerade_all: bool,
    ids: Ids,
    used: Usage,
}

impl Lowerer {
    /// For empty maps of these sizes.
    pub fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            masquerade_all: false,
            ids: Ids::new(capacity.backends),
            used: Usage::default(),
        }
    }

    /// With [`crate::model::NodeView::masquerade_all`], which is off unless set. Takes effect as services are lowered.
    pub fn masquerade_all(self, masquerade_all: bool) -> Self {
        Self { masquerade_all, ..self }
    }

    /// Learns what the kernel holds; see [`crate::dataplane::Dataplane::observe`].
    pub fn adopt(&mut self, observed: &Observed) {
        self.ids.adopt(observed);
        self.used = Usage::of(&observed.image);
    }

    /// All of `ops` are in the kernel, which now holds what was lowered since and nothing else.
    pub fn executed(&mut self, ops: &[Op]) {
        self.ids.executed(ops);
        self.used.minus(ops);
    }

    /// What the maps should hold for one service; see [`crate::dataplane::Dataplane::lower`].
    ///
    /// # Errors
    /// [`ApplyError::Full`] if it does not fit; nothing has changed then.
    pub fn lower(
        &mut self,
        service: &ObjectName,
        plan: Option<&ServicePlan>,
        have: &Image,
    ) -> Result<Lowered<Image>, ApplyError> {
        let mut image = Image::default();
        let mut skipped = Vec::new();
        let Some(plan) = plan else {
            self.ids.release(service);
            return Ok(Lowered { image, skipped });
        };
        let ports = translatable(service, plan, &mut skipped);
        let lists = range_lists(&ports, have);
        let proposal = self
            .ids
            .propose(service, &ports, lists, have)
            .map_err(|exhausted| ApplyError::Full {
                map: match exhausted.0 {
                    Family::V4 => "BACKENDS_V4",
                    Family::V6 => "BACKENDS_V6",
                },
                max_entries: self.capacity.backends,
                flag: "max-backends",
            })?;
        let ranges = &proposal.ids.ranges;
        ranges.iter().for_each(|(list, id)| put_ranges(&mut image, *id, list));
        for (port, ids) in ports.iter().zip(&proposal.ids.ports) {
            for (addr, id, flags) in bound_backends(port, ids) {
                put_backend(&mut image, id, self.ids.generation(port.family, id), addr, flags);
            }
            let cluster = self.put_set(&mut image, port, ids, Decision::Cluster, &mut skipped, service);
            let local = self.put_set(&mut image, port, ids, Decision::Local, &mut skipped, service);
            for frontend in port.frontends.iter().filter(|fe| Family::of(&fe.addr) == port.family) {
                let mut entry = frontend_entry(frontend, ids.pair, cluster, local);
                entry.affinity_timeout_s = port.affinity_s.unwrap_or(0);
                let list = range_list(port, frontend);
                if let Some((_, id)) = ranges.iter().find(|(other, _)| Some(other) == list.as_ref()) {
                    entry.flags |= frontend_flags::SOURCE_RANGES;
                    entry.ranges = *id;
                }
                if self.masquerade_all && frontend.kind == FrontendKind::ClusterIP {
                    entry.flags |= frontend_flags::MASQUERADE;
                }
                match frontend.addr {
                    IpAddr::V4(addr) => {
                        let key = frontend_key_v4(addr, frontend.port.get(), port.protocol);
                        image.frontends_v4.insert(key, entry);
                    }
                    IpAddr::V6(addr) => {
                        let key = frontend_key_v6(addr, frontend.port.get(), port.protocol);
                        image.frontends_v6.insert(key, entry);
                    }
                }
            }
        }
        let used = self.used.plus(&image, have);
        if let Err(full) = used.check(&self.capacity) {
            self.ids.rollback(proposal);
            return Err(full);
        }
        self.used = used;
        self.ids.commit(proposal);
        Ok(Lowered { image, skipped })
    }

    /// Writes the slots of a set if some frontend uses it; returns its backend count.
    fn put_set(
        &self,
        image: &mut Image,
        port: &PortPlan,
        ids: &PortIds,
        policy: Decision,
        skipped: &mut Vec<Skipped>,
        service: &ObjectName,
    ) -> u16 {
        if !port
            .frontends
            .iter()
            .any(|fe| fe.internal == policy || fe.external == policy)
        {
            return 0;
        }
        let (set, bit) = match policy {
            Decision::Local => (local_set(ids.pair), backend_flags::IN_LOCAL),
            _ => (cluster_set(ids.pair), backend_flags::IN_CLUSTER),
        };
        let mut count = 0u16;
        for (_, id, _) in bound_backends(port, ids).filter(|(_, _, flags)| flags & bit != 0) {
            if count == u16::MAX {
                skipped.push(Skipped {
                    object: format!("Service {service}"),
                    field: format!("spec.ports[name={}]", port.name),
                    reason: "more than 65535 usable endpoints: only the first 65535 get new connections".into(),
                });
                break;
            }
            count += 1;
            let key = SlotKey {
                set,
                slot: count.into(),
            };
            image.slots.insert(
                key,
                Slot {
                    backend: id,
                    generation: self.ids.generation(port.family, id),
                },
            );
        }
        count
    }
}

/// The ports that the programs can translate.
fn translatable<'a>(service: &ObjectName, plan: &'a ServicePlan, skipped: &mut Vec<Skipped>) -> Vec<&'a PortPlan> {
    let mut ports = Vec::with_capacity(plan.ports.len());
    for port in &plan.ports {
        if port.protocol != Protocol::Sctp {
            ports.push(port);
            continue;
        }
        let reason = Skipped {
            object: format!("Service {service}"),
            field: format!("spec.ports[name={}].protocol", port.name),
            reason: "SCTP: not translated by the eBPF dataplane yet".into(),
        };
        // A dual-stack port appears twice.
        if !skipped.contains(&reason) {
            skipped.push(reason);
        }
    }
    ports
}

/// Who may come to a frontend; `None` = anybody. A range of the other family says nothing about this frontend.
fn range_list(port: &PortPlan, frontend: &plan::Frontend) -> Option<RangeList> {
    let SourceRanges::Only(nets) = &frontend.sources else {
        return None;
    };
    let nets = nets
        .iter()
        .filter(|net| Family::of(&net.addr()) == port.family)
        .map(IpNet::trunc);
    Some(nets.collect::<BTreeSet<_>>().into_iter().collect())
}

/// The different lists of a service, each with the ids of those that the kernel uses for its frontends.
fn range_lists(ports: &[&PortPlan], have: &Image) -> Vec<(RangeList, Vec<u32>)> {
    let mut lists: Vec<(RangeList, Vec<u32>)> = Vec::new();
    for port in ports {
        for frontend in &port.frontends {
            let Some(list) = range_list(port, frontend) else {
                continue;
            };
            let in_use = have
                .frontend(frontend.addr, frontend.port.get(), port.protocol)
                .and_then(ranges_of);
            match lists.iter_mut().find(|(other, _)| *other == list) {
                Some((_, ids)) => ids.extend(in_use),
                None => lists.push((list, in_use.into_iter().collect())),
            }
        }
    }
    lists
}

fn put_ranges(image: &mut Image, ranges: u32, list: &[IpNet]) {
    for net in list {
        let prefix_len = 32 + u32::from(net.prefix_len());
        match net.network() {
            IpAddr::V4(addr) => {
                image.ranges_v4.insert(SourceRangeKeyV4 {
                    prefix_len,
                    ranges,
                    addr: addr.octets(),
                });
            }
            IpAddr::V6(addr) => {
                image.ranges_v6.insert(SourceRangeKeyV6 {
                    prefix_len,
                    ranges,
                    addr: addr.octets(),
                });
            }
        }
    }
}

/// Backends of a port with their ids and flags, in the order of the plan.
fn bound_backends(port: &PortPlan, ids: &PortIds) -> impl Iterator<Item = (SocketAddr, u32, u16)> {
    let bound = |backend: &plan::Backend| Some((backend.addr, ids.backend(&backend.addr)?, bits_of(backend)));
    port.backends.iter().filter_map(bound)
}

fn put_backend(image: &mut Image, id: u32, generation: u32, addr: SocketAddr, flags: u16) {
    let port = addr.port().to_be_bytes();
    match addr.ip() {
        IpAddr::V4(ip) => {
            let entry = BackendV4 {
                generation,
                addr: ip.octets(),
                port,
                flags,
                reserved: 0,
            };
            image.backends_v4.insert(id, entry);
        }
        IpAddr::V6(ip) => {
            let entry = BackendV6 {
                generation,
                addr: ip.octets(),
                port,
                flags,
                reserved: 0,
            };
            image.backends_v6.insert(id, entry);
        }
    }
}

fn frontend_entry(frontend: &plan::Frontend, pair: u32, cluster: u16, local: u16) -> Frontend {
    use frontend_flags::{
        EXTERNAL_DROP, EXTERNAL_LOCAL, EXTERNAL_REJECT, INTERNAL_DROP, INTERNAL_LOCAL, INTERNAL_REJECT, NODE_ADDRESS,
    };
    // A plan promises at least one backend to balance over; should it have none, say so instead of pointing to nothing.
    let side = |decision, local_bit, reject, drop| match decision {
        Decision::Cluster if cluster > 0 => (cluster_set(pair), cluster, 0),
        Decision::Local if local > 0 => (local_set(pair), local, local_bit),
        Decision::Cluster | Decision::Reject => (0, 0, reject),
        Decision::Local | Decision::Drop => (0, 0, drop),
    };
    let (internal_set, internal_count, internal_flags) =
        side(frontend.internal, INTERNAL_LOCAL, INTERNAL_REJECT, INTERNAL_DROP);
    let (external_set, external_count, external_flags) =
        side(frontend.external, EXTERNAL_LOCAL, EXTERNAL_REJECT, EXTERNAL_DROP);
    Frontend {
        internal_set,
        external_set,
        internal_count,
        external_count,
        flags: internal_flags | external_flags | if frontend.node_address { NODE_ADDRESS } else { 0 },
        ..Frontend::default()
    }
}
