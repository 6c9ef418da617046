//! What the programs remember of flows and clients, read and rewritten: time passes here without anybody waiting.

use crate::rig::Rig;
use aya::maps::{HashMap, Map, MapData, MapInfo};
use proxy::dataplane::ebpf::EbpfDataplane;
use proxy_common::abi::{Affinity, AffinityKeyV4, AffinityKeyV6, FlowKeyV4, FlowKeyV6, FlowV4, FlowV6, Plain};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

const AFFINITY: usize = size_of::<Affinity>();
const AFFINITY_KEY_V4: usize = size_of::<AffinityKeyV4>();
const AFFINITY_KEY_V6: usize = size_of::<AffinityKeyV6>();
const FLOW_V4: usize = size_of::<FlowV4>();
const FLOW_V6: usize = size_of::<FlowV6>();
const FLOW_KEY_V4: usize = size_of::<FlowKeyV4>();
const FLOW_KEY_V6: usize = size_of::<FlowKeyV6>();

/// The fields of a flow that tests look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) flags: u32,
    pub(crate) ifindex: u32,
    pub(crate) way: u16,
}

/// Seconds of the clock that the programs read.
pub(crate) fn now_s() -> u32 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is valid for the call.
    let code = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) };
    assert_eq!(code, 0);
    now.tv_sec as u32
}

/// The maps of flows and clients, as a loaded program names them: the agent keeps its own handles to itself.
pub(crate) fn open(dataplane: &mut EbpfDataplane) -> BTreeMap<String, Map> {
    let program = dataplane.bpf().program("from_pod").unwrap();
    let ids = program
        .info()
        .unwrap()
        .map_ids()
        .unwrap()
        .expect("a kernel that lists a program's maps");
    let named = ids
        .into_iter()
        .map(|id| (MapInfo::from_id(id).unwrap().name_as_str().unwrap().to_owned(), id));
    named
        .filter(|(name, _)| name.starts_with("FLOWS") || name.starts_with("AFFINITY"))
        .map(|(name, id)| (name, Map::from_map_data(MapData::from_id(id).unwrap()).unwrap()))
        .collect()
}

fn bytes<const N: usize>(plain: &impl Plain) -> [u8; N] {
    plain.as_bytes().try_into().unwrap()
}

/// A map, by the sizes of its keys and values.
fn map<'a, const K: usize, const V: usize>(rig: &'a mut Rig, name: &str) -> HashMap<&'a mut MapData, [u8; K], [u8; V]> {
    rig.memory.get_mut(name).unwrap().try_into().unwrap()
}

/// Reads, changes and writes back (or removes, on `None`) the entry of a tuple. `None` if there is none.
macro_rules! with_flow {
    ($rig:ident, $tuple:expr, $change:expr) => {{
        let (protocol, source, destination): (u8, SocketAddr, SocketAddr) = $tuple;
        let (sport, dport) = (source.port().to_be_bytes(), destination.port().to_be_bytes());
        match (source.ip(), destination.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let (src, dst) = (src.octets(), dst.octets());
                let key = FlowKeyV4 { src, dst, sport, dport, protocol, pad: [0; 3] };
                let mut map = map::<FLOW_KEY_V4, FLOW_V4>($rig, "FLOWS_V4");
                with_flow!(@ map, bytes::<FLOW_KEY_V4>(&key), FlowV4, FLOW_V4, $change)
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let (src, dst) = (src.octets(), dst.octets());
                let key = FlowKeyV6 { src, dst, sport, dport, protocol, pad: [0; 3] };
                let mut map = map::<FLOW_KEY_V6, FLOW_V6>($rig, "FLOWS_V6");
                with_flow!(@ map, bytes::<FLOW_KEY_V6>(&key), FlowV6, FLOW_V6, $change)
            }
            _ => panic!("two families"),
        }
    }};
    (@ $map:ident, $key:expr, $flow:ident, $size:ident, $change:expr) => {{
        let key = $key;
        $map.get(&key, 0).ok().map(|value| {
            let mut flow = $flow::from_bytes(&value).unwrap();
            let keep: bool = $change(&mut flow.seen);
            if keep {
                $map.insert(key, bytes::<$size>(&flow), 0).unwrap();
            } else {
                $map.remove(&key).unwrap();
            }
            Remembered {
                flags: flow.flags,
                ifindex: flow.ifindex,
                way: flow.way,
            }
        })
    }};
}

impl Rig {
    /// The entry of a packet with this tuple.
    pub(crate) fn flow(&mut self, protocol: u8, source: SocketAddr, destination: SocketAddr) -> Option<Remembered> {
        with_flow!(self, (protocol, source, destination), |_: &mut u32| true)
    }

    /// Makes an entry look as if its last packet came this many ticks earlier.
    pub(crate) fn age_flow(&mut self, protocol: u8, source: SocketAddr, destination: SocketAddr, ticks: u32) {
        let age = |seen: &mut u32| {
            *seen = seen.wrapping_sub(ticks);
            true
        };
        with_flow!(self, (protocol, source, destination), age).expect("no such flow");
    }

    /// Removes an entry, as the kernel may do when it needs room.
    pub(crate) fn forget_flow(&mut self, protocol: u8, source: SocketAddr, destination: SocketAddr) {
        with_flow!(self, (protocol, source, destination), |_: &mut u32| false).expect("no such flow");
    }

    /// Writes what the programs remember of a client.
    pub(crate) fn stick(&mut self, client: IpAddr, set: u32, affinity: &Affinity) {
        match client {
            IpAddr::V4(addr) => {
                let client = addr.octets();
                let key = bytes::<AFFINITY_KEY_V4>(&AffinityKeyV4 { client, set });
                map::<AFFINITY_KEY_V4, AFFINITY>(self, "AFFINITY_V4").insert(key, bytes::<AFFINITY>(affinity), 0)
            }
            IpAddr::V6(addr) => {
                let client = addr.octets();
                let key = bytes::<AFFINITY_KEY_V6>(&AffinityKeyV6 { client, set });
                map::<AFFINITY_KEY_V6, AFFINITY>(self, "AFFINITY_V6").insert(key, bytes::<AFFINITY>(affinity), 0)
            }
        }
        .unwrap();
    }

    /// Everything that the programs remember of clients: address, set, and what they stick to.
    pub(crate) fn stuck(&mut self) -> Vec<(IpAddr, u32, Affinity)> {
        let mut stuck = Vec::new();
        for entry in &map::<AFFINITY_KEY_V4, AFFINITY>(self, "AFFINITY_V4") {
            let (key, value) = entry.unwrap();
            let key = AffinityKeyV4::from_bytes(&key).unwrap();
            stuck.push((key.client.into(), key.set, Affinity::from_bytes(&value).unwrap()));
        }
        for entry in &map::<AFFINITY_KEY_V6, AFFINITY>(self, "AFFINITY_V6") {
            let (key, value) = entry.unwrap();
            let key = AffinityKeyV6::from_bytes(&key).unwrap();
            stuck.push((key.client.into(), key.set, Affinity::from_bytes(&value).unwrap()));
        }
        stuck
    }

    /// Forgets every client.
    pub(crate) fn unstick(&mut self) {
        for (client, set, _) in self.stuck() {
            match client {
                IpAddr::V4(addr) => {
                    let client = addr.octets();
                    let key = bytes::<AFFINITY_KEY_V4>(&AffinityKeyV4 { client, set });
                    map::<AFFINITY_KEY_V4, AFFINITY>(self, "AFFINITY_V4").remove(&key)
                }
                IpAddr::V6(addr) => {
                    let client = addr.octets();
                    let key = bytes::<AFFINITY_KEY_V6>(&AffinityKeyV6 { client, set });
                    map::<AFFINITY_KEY_V6, AFFINITY>(self, "AFFINITY_V6").remove(&key)
                }
            }
            .unwrap();
        }
    }
}
