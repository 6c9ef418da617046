//! The maps that the agent reads and writes, opened once.

use super::{
    image::{Image, Observed, Op},
    sweep::Flows,
    table::Table,
};
use crate::{error::ApplyError, status::MapFill};
use aya::{
    Ebpf,
    maps::{Map, MapData, PerCpuArray},
};
use proxy_common::{
    abi::{
        BackendV4, BackendV6, Frontend, FrontendKeyV4, FrontendKeyV6, Node, Plain, Slot, SlotKey, SourceRangeKeyV4,
        SourceRangeKeyV6, backend_flags,
    },
    verdict::{self, Verdict},
};
use std::{
    io,
    sync::{Mutex, PoisonError},
};

/// Entries in the maps that the agent writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    frontends_v4: usize,
    frontends_v6: usize,
    backends_v4: usize,
    backends_v6: usize,
    slots: usize,
    ranges_v4: usize,
    ranges_v6: usize,
}

impl Usage {
    /// What one service's image takes.
    pub fn of(image: &Image) -> Self {
        Self {
            frontends_v4: image.frontends_v4.len(),
            frontends_v6: image.frontends_v6.len(),
            backends_v4: image.backends_v4.len(),
            backends_v6: image.backends_v6.len(),
            slots: image.slots.len(),
            ranges_v4: image.ranges_v4.len(),
            ranges_v6: image.ranges_v6.len(),
        }
    }

    /// This, with `less` taken away and `more` added.
    pub fn changed(self, less: Self, more: Self) -> Self {
        Self {
            frontends_v4: self.frontends_v4 - less.frontends_v4 + more.frontends_v4,
            frontends_v6: self.frontends_v6 - less.frontends_v6 + more.frontends_v6,
            backends_v4: self.backends_v4 - less.backends_v4 + more.backends_v4,
            backends_v6: self.backends_v6 - less.backends_v6 + more.backends_v6,
            slots: self.slots - less.slots + more.slots,
            ranges_v4: self.ranges_v4 - less.ranges_v4 + more.ranges_v4,
            ranges_v6: self.ranges_v6 - less.ranges_v6 + more.ranges_v6,
        }
    }
}

/// All of them.
pub struct Maps {
    frontends_v4: Table<FrontendKeyV4, Frontend>,
    frontends_v6: Table<FrontendKeyV6, Frontend>,
    slots: Table<SlotKey, Slot>,
    backends_v4: Table<u32, BackendV4>,
    backends_v6: Table<u32, BackendV6>,
    ranges_v4: Table<SourceRangeKeyV4, u32>,
    ranges_v6: Table<SourceRangeKeyV6, u32>,
    node: Table<u32, Node>,
    devices: Table<u32, u32>,
    counters: PerCpuArray<MapData, u64>,
    usage: Mutex<Usage>,
}

fn open<K: Plain, V: Plain>(bpf: &mut Ebpf, name: &'static str, flag: &'static str) -> Result<Table<K, V>, ApplyError> {
    let wrong = |source: io::Error| ApplyError::Kernel {
        op: format!("open map {name}"),
        source,
    };
    let map = bpf
        .take_map(name)
        .ok_or_else(|| wrong(io::Error::other("not in the BPF object")))?;
    let data = match map {
        Map::Array(data) | Map::HashMap(data) | Map::LruHashMap(data) | Map::LpmTrie(data) => data,
        _ => return Err(wrong(io::Error::other("of another type than the agent expects"))),
    };
    Table::new(data, name, flag).map_err(|error| wrong(io::Error::other(error)))
}

/// Takes the flow tables out of a loaded object.
pub(super) fn open_flows(bpf: &mut Ebpf) -> Result<Flows, ApplyError> {
    Ok(Flows {
        v4: open(bpf, "FLOWS_V4", "max-flows")?,
        v6: open(bpf, "FLOWS_V6", "max-flows")?,
    })
}

impl Maps {
    /// Takes the maps out of a loaded object.
    pub fn open(bpf: &mut Ebpf) -> Result<Self, ApplyError> {
        let counters = bpf
            .take_map("COUNTERS")
            .ok_or_else(|| io::Error::other("not in the BPF object"))
            .and_then(|map| PerCpuArray::try_from(map).map_err(io::Error::other))
            .map_err(|source| ApplyError::Kernel {
                op: "open map COUNTERS".into(),
                source,
            })?;
        Ok(Self {
            frontends_v4: open(bpf, "FRONTENDS_V4", "max-frontends")?,
            frontends_v6: open(bpf, "FRONTENDS_V6", "max-frontends")?,
            slots: open(bpf, "SLOTS", "max-slots")?,
            backends_v4: open(bpf, "BACKENDS_V4", "max-backends")?,
            backends_v6: open(bpf, "BACKENDS_V6", "max-backends")?,
            ranges_v4: open(bpf, "SOURCE_RANGES_V4", "max-source-ranges")?,
            ranges_v6: open(bpf, "SOURCE_RANGES_V6", "max-source-ranges")?,
            node: open(bpf, "NODE", "")?,
            devices: open(bpf, "DEVICES", "pod-devices")?,
            counters,
            usage: Mutex::default(),
        })
    }

    /// Tells the programs about this node.
    pub fn set_node(&self, node: &Node) -> Result<(), ApplyError> {
        self.node.put(&0, node).map_err(|source| ApplyError::Kernel {
            op: "write map NODE".into(),
            source,
        })
    }

    /// What an earlier agent told the programs about this node; `None` if nobody did.
    pub fn node(&self) -> Result<Option<Node>, ApplyError> {
        let node = self.node.get(&0).map_err(|source| ApplyError::Kernel {
            op: "read map NODE".into(),
            source,
        })?;
        Ok(node.filter(|node| *node != Node::default()))
    }

    /// Tells the programs what an interface is; `None` forgets it.
    pub fn set_device(&self, ifindex: u32, flags: Option<u32>) -> Result<(), ApplyError> {
        match flags {
            Some(flags) => self.devices.put(&ifindex, &flags),
            None => self.devices.remove(&ifindex),
        }
        .map_err(|source| failed(&self.devices, format!("device {ifindex}"), source))
    }

    /// Sums of the per-CPU counters, in the order of [`Verdict::ALL`].
    pub fn counters(&self) -> Result<Vec<(Verdict, u64)>, ApplyError> {
        let mut sums = Vec::with_capacity(verdict::COUNT as usize);
        for verdict in Verdict::ALL {
            let values = self
                .counters
                .get(&(*verdict as u32), 0)
                .map_err(|error| ApplyError::Kernel {
                    op: "read map COUNTERS".into(),
                    source: io::Error::other(error),
                })?;
            sums.push((*verdict, values.iter().sum()));
        }
        Ok(sums)
    }

    /// Reads everything that the agent writes.
    pub fn observe(&self) -> Result<Observed, ApplyError> {
        let mut observed = Observed::default();
        for (id, backend) in read(&self.backends_v4)? {
            if backend.flags & backend_flags::BOUND != 0 {
                observed.image.backends_v4.insert(id, backend);
            } else if backend.generation != 0 {
                observed.generations_v4.insert(id, backend.generation);
            }
        }
        for (id, backend) in read(&self.backends_v6)? {
            if backend.flags & backend_flags::BOUND != 0 {
                observed.image.backends_v6.insert(id, backend);
            } else if backend.generation != 0 {
                observed.generations_v6.insert(id, backend.generation);
            }
        }
        observed.image.slots = read(&self.slots)?.into_iter().collect();
        observed.image.ranges_v4 = read(&self.ranges_v4)?.into_iter().map(|(key, _)| key).collect();
        observed.image.ranges_v6 = read(&self.ranges_v6)?.into_iter().map(|(key, _)| key).collect();
        observed.image.frontends_v4 = read(&self.frontends_v4)?.into_iter().collect();
        observed.image.frontends_v6 = read(&self.frontends_v6)?.into_iter().collect();
        Ok(observed)
    }

    /// Executes ops in order, runs of one kind in batches.
    pub fn execute(&self, ops: &[Op]) -> Result<(), ApplyError> {
        let mut at = 0;
        while at < ops.len() {
            let run = ops[at..].iter().take_while(|op| same_kind(op, &ops[at])).count();
            self.execute_run(&ops[at..at + run])?;
            at += run;
        }
        Ok(())
    }

    fn execute_run(&self, ops: &[Op]) -> Result<(), ApplyError> {
        match ops[0] {
            Op::PutBackendV4(..) | Op::FreeBackendV4(..) => put(&self.backends_v4, ops, |op| match *op {
                Op::PutBackendV4(id, backend) => Some((id, backend)),
                Op::FreeBackendV4(id, generation) => Some((
                    id,
                    BackendV4 {
                        generation,
                        ..BackendV4::default()
                    },
                )),
                _ => None,
            }),
            Op::PutBackendV6(..) | Op::FreeBackendV6(..) => put(&self.backends_v6, ops, |op| match *op {
                Op::PutBackendV6(id, backend) => Some((id, backend)),
                Op::FreeBackendV6(id, generation) => Some((
                    id,
                    BackendV6 {
                        generation,
                        ..BackendV6::default()
                    },
                )),
                _ => None,
            }),
            Op::PutSlot(..) => put(&self.slots, ops, |op| match *op {
                Op::PutSlot(key, slot) => Some((key, slot)),
                _ => None,
            }),
            Op::PutFrontendV4(..) => put(&self.frontends_v4, ops, |op| match *op {
                Op::PutFrontendV4(key, frontend) => Some((key, frontend)),
                _ => None,
            }),
            Op::PutFrontendV6(..) => put(&self.frontends_v6, ops, |op| match *op {
                Op::PutFrontendV6(key, frontend) => Some((key, frontend)),
                _ => None,
            }),
            Op::PutRangeV4(..) => put(&self.ranges_v4, ops, |op| match *op {
                Op::PutRangeV4(key) => Some((key, 1)),
                _ => None,
            }),
            Op::PutRangeV6(..) => put(&self.ranges_v6, ops, |op| match *op {
                Op::PutRangeV6(key) => Some((key, 1)),
                _ => None,
            }),
            Op::RemoveSlot(_)
            | Op::RemoveFrontendV4(_)
            | Op::RemoveFrontendV6(_)
            | Op::RemoveRangeV4(_)
            | Op::RemoveRangeV6(_) => ops.iter().try_for_each(|op| self.remove(op)),
        }
    }

    fn remove(&self, op: &Op) -> Result<(), ApplyError> {
        match op {
            Op::RemoveSlot(key) => self.slots.remove(key),
            Op::RemoveFrontendV4(key) => self.frontends_v4.remove(key),
            Op::RemoveFrontendV6(key) => self.frontends_v6.remove(key),
            Op::RemoveRangeV4(key) => self.ranges_v4.remove(key),
            Op::RemoveRangeV6(key) => self.ranges_v6.remove(key),
            _ => Ok(()),
        }
        .map_err(|source| ApplyError::Kernel {
            op: op.to_string(),
            source,
        })
    }

    /// Remembers how many entries a sync left, for [`Maps::fill`]: counting in the kernel would read everything.
    pub fn note_usage(&self, usage: Usage) {
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner) = usage;
    }

    /// How full the maps are that the agent writes.
    pub fn fill(&self) -> Vec<MapFill> {
        fn of<K: Plain, V: Plain>(table: &Table<K, V>, entries: usize) -> MapFill {
            MapFill {
                name: table.name().to_owned(),
                entries: entries as u64,
                max_entries: table.max_entries().into(),
                flag: table.flag().to_owned(),
            }
        }
        let usage = *self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        vec![
            of(&self.frontends_v4, usage.frontends_v4),
            of(&self.frontends_v6, usage.frontends_v6),
            of(&self.backends_v4, usage.backends_v4),
            of(&self.backends_v6, usage.backends_v6),
            of(&self.slots, usage.slots),
            of(&self.ranges_v4, usage.ranges_v4),
            of(&self.ranges_v6, usage.ranges_v6),
        ]
    }
}

fn same_kind(a: &Op, b: &Op) -> bool {
    core::mem::discriminant(a) == core::mem::discriminant(b)
}

fn read<K: Plain, V: Plain>(table: &Table<K, V>) -> Result<Vec<(K, V)>, ApplyError> {
    table.read_all().map_err(|source| ApplyError::Kernel {
        op: format!("read map {}", table.name()),
        source,
    })
}

fn put<K: Plain, V: Plain>(
    table: &Table<K, V>,
    ops: &[Op],
    entry: impl Fn(&Op) -> Option<(K, V)>,
) -> Result<(), ApplyError> {
    let (keys, values): (Vec<K>, Vec<V>) = ops.iter().filter_map(entry).unzip();
    table.put_all(&keys, &values).map_err(|(done, source)| {
        let op = ops.get(done).map_or_else(|| table.name().to_owned(), Op::to_string);
        failed(table, op, source)
    })
}

/// The kernel's way of saying that a map is full is E2BIG, for a trie ENOSPC.
fn failed<K: Plain, V: Plain>(table: &Table<K, V>, op: String, source: io::Error) -> ApplyError {
    match source.raw_os_error() {
        Some(libc::E2BIG | libc::ENOSPC) => ApplyError::Full {
            map: table.name(),
            max_entries: table.max_entries(),
            flag: table.flag(),
        },
        _ => ApplyError::Kernel { op, source },
    }
}
