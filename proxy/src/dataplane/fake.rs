//! The eBPF dataplane without a kernel: maps in memory, faults on demand, and a referee that knows what is legal.

use super::{
    Dataplane, Lowered,
    ebpf::{
        diff::diff,
        image::{Image, Observed, Op},
        lower::{Capacity, Lowerer},
    },
};
use crate::{error::ApplyError, model::ObjectName, plan::ServicePlan};
use proxy_common::abi::{Frontend, SlotKey, backend_flags};
use std::{collections::BTreeMap, io};

/// Maps in memory.
///
/// # Panics
/// [`Dataplane::execute`] panics on an op that would be illegal in the kernel: an entry removed that another one still
/// refers to, one written whose target is not there, an id rebound without a new generation.
#[derive(Debug)]
pub struct Fake {
    /// What the maps hold. Survives [`Fake::restart`], as pinned maps do.
    pub kernel: Observed,
    /// Every op executed, in order; tests clear it when they like.
    pub log: Vec<Op>,
    lowerer: Lowerer,
    capacity: Capacity,
    fail_after: Option<usize>,
}

impl Fake {
    /// Empty maps of these sizes.
    pub fn new(capacity: Capacity) -> Self {
        Self::restart(Observed::default(), capacity)
    }

    /// A new process that finds the maps that another one left.
    pub fn restart(kernel: Observed, capacity: Capacity) -> Self {
        Self {
            kernel,
            log: Vec::new(),
            lowerer: Lowerer::new(capacity),
            capacity,
            fail_after: None,
        }
    }

    /// The next [`Dataplane::execute`] with more than `ops` ops fails after so many.
    pub fn fail_after(&mut self, ops: usize) {
        self.fail_after = Some(ops);
    }

    /// How full the maps may be.
    pub fn capacity(&self) -> &Capacity {
        &self.capacity
    }

    fn apply(&mut self, op: &Op) {
        legal(&self.kernel, op);
        apply(&mut self.kernel, op);
        let image = &self.kernel.image;
        assert!(
            image.frontends_v4.len() <= self.capacity.frontends as usize,
            "FRONTENDS_V4 overflows: {op}"
        );
        assert!(
            image.frontends_v6.len() <= self.capacity.frontends as usize,
            "FRONTENDS_V6 overflows: {op}"
        );
        assert!(
            image.slots.len() <= self.capacity.slots as usize,
            "SLOTS overflows: {op}"
        );
        assert!(
            image.ranges_v4.len() <= self.capacity.ranges as usize,
            "SOURCE_RANGES_V4 overflows: {op}"
        );
        assert!(
            image.ranges_v6.len() <= self.capacity.ranges as usize,
            "SOURCE_RANGES_V6 overflows: {op}"
        );
        let last = image
            .backends_v4
            .keys()
            .chain(image.backends_v6.keys())
            .max()
            .copied()
            .unwrap_or(0);
        assert!(last < self.capacity.backends, "BACKENDS has no index {last}: {op}");
    }
}

impl Dataplane for Fake {
    type Image = Image;
    type Op = Op;
    const NAME: &'static str = "fake";

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
        diff(have, want)
    }

    fn observe(&mut self) -> Result<Image, ApplyError> {
        self.lowerer.adopt(&self.kernel);
        Ok(self.kernel.image.clone())
    }

    fn execute(&mut self, ops: &[Op]) -> Result<(), ApplyError> {
        let fail_at = self.fail_after.take_if(|after| *after < ops.len());
        for (at, op) in ops.iter().enumerate() {
            if fail_at == Some(at) {
                return Err(ApplyError::Kernel {
                    op: op.to_string(),
                    source: io::Error::other("fault on demand"),
                });
            }
            self.apply(op);
            self.log.push(*op);
        }
        self.lowerer.executed(ops);
        Ok(())
    }
}

/// What an op does to the maps.
pub fn apply(kernel: &mut Observed, op: &Op) {
    let image = &mut kernel.image;
    match *op {
        Op::PutBackendV4(id, entry) => {
            kernel.generations_v4.remove(&id);
            image.backends_v4.insert(id, entry);
        }
        Op::PutBackendV6(id, entry) => {
            kernel.generations_v6.remove(&id);
            image.backends_v6.insert(id, entry);
        }
        Op::FreeBackendV4(id, generation) => {
            image.backends_v4.remove(&id);
            kernel.generations_v4.insert(id, generation);
        }
        Op::FreeBackendV6(id, generation) => {
            image.backends_v6.remove(&id);
            kernel.generations_v6.insert(id, generation);
        }
        Op::PutSlot(key, slot) => _ = image.slots.insert(key, slot),
        Op::RemoveSlot(key) => _ = image.slots.remove(&key),
        Op::PutRangeV4(key) => _ = image.ranges_v4.insert(key),
        Op::PutRangeV6(key) => _ = image.ranges_v6.insert(key),
        Op::RemoveRangeV4(key) => _ = image.ranges_v4.remove(&key),
        Op::RemoveRangeV6(key) => _ = image.ranges_v6.remove(&key),
        Op::PutFrontendV4(key, frontend) => _ = image.frontends_v4.insert(key, frontend),
        Op::PutFrontendV6(key, frontend) => _ = image.frontends_v6.insert(key, frontend),
        Op::RemoveFrontendV4(key) => _ = image.frontends_v4.remove(&key),
        Op::RemoveFrontendV6(key) => _ = image.frontends_v6.remove(&key),
    }
}

/// Panics unless `op` is legal on these maps.
fn legal(kernel: &Observed, op: &Op) {
    let image = &kernel.image;
    match *op {
        Op::PutBackendV4(id, new) => {
            let old = image.backends_v4.get(&id).map(|be| (be.generation, (be.addr, be.port)));
            let free = kernel.generations_v4.get(&id).copied();
            put_backend(op, id, old, free, (new.generation, (new.addr, new.port)), new.flags);
        }
        Op::PutBackendV6(id, new) => {
            let old = image.backends_v6.get(&id).map(|be| (be.generation, (be.addr, be.port)));
            let free = kernel.generations_v6.get(&id).copied();
            put_backend(op, id, old, free, (new.generation, (new.addr, new.port)), new.flags);
        }
        Op::FreeBackendV4(id, generation) => {
            let old = image.backends_v4.get(&id).map(|be| be.generation);
            free_backend(op, old, generation);
            let used = |fe: &Frontend| reaches(image, fe, id);
            assert!(
                !image.frontends_v4.values().any(used),
                "{op}: a frontend still leads there"
            );
        }
        Op::FreeBackendV6(id, generation) => {
            let old = image.backends_v6.get(&id).map(|be| be.generation);
            free_backend(op, old, generation);
            let used = |fe: &Frontend| reaches(image, fe, id);
            assert!(
                !image.frontends_v6.values().any(used),
                "{op}: a frontend still leads there"
            );
        }
        Op::PutSlot(key, slot) => {
            let bound = [
                image.backends_v4.get(&slot.backend).map(|be| be.generation),
                image.backends_v6.get(&slot.backend).map(|be| be.generation),
            ];
            assert!(key.set != 0 && key.slot != 0, "{op}: there is no such slot");
            assert!(bound.contains(&Some(slot.generation)), "{op}: the backend is not bound");
        }
        Op::RemoveSlot(key) => {
            let visible = |fe: &Frontend| {
                visible_slots(fe)
                    .into_iter()
                    .any(|(set, n)| set == key.set && key.slot <= n)
            };
            let frontends = || image.frontends_v4.values().chain(image.frontends_v6.values());
            assert!(!frontends().any(visible), "{op}: a frontend still counts it");
        }
        Op::PutFrontendV4(_, fe) => {
            let bound: BTreeMap<_, _> = image.backends_v4.iter().map(|(id, be)| (*id, be.generation)).collect();
            put_frontend(op, image, &fe, &bound);
        }
        Op::PutFrontendV6(_, fe) => {
            let bound: BTreeMap<_, _> = image.backends_v6.iter().map(|(id, be)| (*id, be.generation)).collect();
            put_frontend(op, image, &fe, &bound);
        }
        Op::PutRangeV4(_)
        | Op::PutRangeV6(_)
        | Op::RemoveRangeV4(_)
        | Op::RemoveRangeV6(_)
        | Op::RemoveFrontendV4(_)
        | Op::RemoveFrontendV6(_) => {}
    }
}

fn put_backend<A: Copy + PartialEq>(
    op: &Op,
    id: u32,
    old: Option<(u32, A)>,
    free: Option<u32>,
    new: (u32, A),
    flags: u16,
) {
    assert!(
        id != 0 && new.0 != 0 && flags & backend_flags::BOUND != 0,
        "{op}: not a binding"
    );
    match old {
        Some(old) => assert!(old == new, "{op}: rebinds an id that is in use"),
        None => assert!(new.0 > free.unwrap_or(0), "{op}: this generation was there before"),
    }
}

fn free_backend(op: &Op, old: Option<u32>, generation: u32) {
    assert_eq!(
        old.map(|old| old.wrapping_add(1)),
        Some(generation),
        "{op}: not bound, or no new generation"
    );
}

fn put_frontend(op: &Op, image: &Image, fe: &Frontend, bound: &BTreeMap<u32, u32>) {
    for (set, count) in visible_slots(fe) {
        assert!(count > 0, "{op}: an empty set");
        for slot in 1..=count {
            let slot = image.slots.get(&SlotKey { set, slot });
            let good = slot.is_some_and(|slot| bound.get(&slot.backend) == Some(&slot.generation));
            assert!(good, "{op}: {slot:?} of set {set} leads nowhere");
        }
    }
}

/// The sets of a frontend and how many of their slots it counts.
fn visible_slots(fe: &Frontend) -> impl IntoIterator<Item = (u32, u32)> + use<> {
    let sides = [
        (fe.internal_set, fe.internal_count.into()),
        (fe.external_set, fe.external_count.into()),
    ];
    sides.into_iter().filter(|(set, _)| *set != 0)
}

/// Whether a frontend may choose a backend id of its family.
fn reaches(image: &Image, fe: &Frontend, id: u32) -> bool {
    visible_slots(fe).into_iter().any(|(set, _)| {
        let slots = image
            .slots
            .range(SlotKey { set, slot: 0 }..=SlotKey { set, slot: u32::MAX });
        slots.into_iter().any(|(_, slot)| slot.backend == id)
    })
}
