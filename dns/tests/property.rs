//! Whatever happens in whatever order: names kept up step by step, names built at once, and a naive model say the same.

mod support;

use fairlead_dns::{
    name::{dashed_label, reverse_of},
    zone::{
        facts::{EndpointFacts, Key, PortFacts, Protocol, Reach, ServiceFacts, SliceFacts},
        store::Change,
    },
};
use hickory_proto::rr::RecordType;
use proptest::{prelude::*, sample::select};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};
use support::{COREFILE, World};

const Z: &str = "cluster.local.";

fn service() -> impl Strategy<Value = ServiceFacts> {
    let ports = proptest::collection::vec(port(), 0..3).prop_map(distinct);
    let reach = prop_oneof![
        3 => proptest::collection::btree_set(address(), 1..3).prop_map(|it| Reach::ClusterIp(it.into_iter().collect())),
        4 => Just(Reach::Headless),
        1 => Just(Reach::External(fairlead_dns::name::wire_of("s0.n0.svc.cluster.local").unwrap().into())),
        1 => Just(Reach::Nothing),
    ];
    (reach, ports, any::<bool>()).prop_map(|(reach, ports, publish_not_ready)| ServiceFacts {
        reach,
        ports,
        publish_not_ready,
    })
}

/// Ports of a Service have different names.
fn distinct(ports: Vec<PortFacts>) -> Box<[PortFacts]> {
    let all: BTreeMap<(Box<str>, Protocol), PortFacts> = ports
        .into_iter()
        .map(|it| ((it.name.clone(), it.protocol), it))
        .collect();
    all.into_values().collect()
}

fn port() -> impl Strategy<Value = PortFacts> {
    let protocol = select(vec![Protocol::Tcp, Protocol::Udp]);
    (select(vec!["", "p", "q"]), protocol, 1..4_u16).prop_map(|(name, protocol, number)| PortFacts {
        name: name.into(),
        protocol,
        number,
    })
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0..6_u8).prop_map(|it| IpAddr::from([10, 1, 0, it])),
        (0..3_u16).prop_map(|it| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, it])),
    ]
}

fn slice() -> impl Strategy<Value = SliceFacts> {
    let name = prop_oneof![Just(None), select(vec!["h0", "h1"]).prop_map(|it| Some(Box::from(it)))];
    let endpoint = (address(), name, prop::bool::weighted(0.8)).prop_map(|(address, name, ready)| EndpointFacts {
        address,
        name,
        ready,
    });
    let endpoints = proptest::collection::vec(endpoint, 0..4);
    let ports = proptest::collection::vec(port(), 0..3).prop_map(distinct);
    (0..3_u8, endpoints, ports).prop_map(|(owner, endpoints, ports)| SliceFacts {
        service: format!("s{owner}").into(),
        endpoints: endpoints.into(),
        ports,
    })
}

fn key(kind: &'static str, count: u8) -> impl Strategy<Value = Key> {
    (0..2_u8, 0..count).prop_map(move |(namespace, name)| Key::new(&format!("n{namespace}"), &format!("{kind}{name}")))
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (key("s", 3), proptest::option::weighted(0.8, service())).prop_map(|(key, it)| Change::Service(key, it)),
        6 => (key("e", 4), proptest::option::weighted(0.8, slice())).prop_map(|(key, it)| Change::Slice(key, it)),
        1 => (0..2_u8, any::<bool>()).prop_map(|(it, there)| Change::Namespace(format!("n{it}").into(), there)),
    ]
}

/// What there is in the end.
#[derive(Default)]
struct Objects {
    services: BTreeMap<Key, ServiceFacts>,
    slices: BTreeMap<Key, SliceFacts>,
    namespaces: BTreeSet<Box<str>>,
}

impl Objects {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Service(key, Some(it)) => drop(self.services.insert(key, it)),
            Change::Service(key, None) => drop(self.services.remove(&key)),
            Change::Slice(key, Some(it)) => drop(self.slices.insert(key, it)),
            Change::Slice(key, None) => drop(self.slices.remove(&key)),
            Change::Namespace(name, true) => drop(self.namespaces.insert(name)),
            Change::Namespace(name, false) => drop(self.namespaces.remove(&name)),
            Change::Pod(..) => {}
        }
    }

    /// Names, types and data, spelled out.
    fn records(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut put = |name: String, record: String| {
            all.entry(name).or_default().insert(record);
        };
        let address_record = |address: IpAddr| format!("{} {address}", if address.is_ipv4() { "A" } else { "AAAA" });
        for (key, service) in &self.services {
            let own = format!("{}.{}.svc.{Z}", key.name, key.namespace);
            // (label, address) and (port name, protocol, label, number), each once.
            let (mut hosts, mut targets) = (BTreeSet::new(), BTreeSet::new());
            for slice in self
                .slices
                .iter()
                .filter(|(it, slice)| it.namespace == key.namespace && slice.service == key.name)
                .map(|it| it.1)
            {
                for endpoint in slice
                    .endpoints
                    .iter()
                    .filter(|it| it.ready || service.publish_not_ready)
                {
                    let label = endpoint
                        .name
                        .as_deref()
                        .map_or_else(|| dashed_label(endpoint.address), str::to_owned);
                    for port in &slice.ports {
                        targets.insert((port.name.clone(), port.protocol, label.clone(), port.number));
                    }
                    hosts.insert((label, endpoint.address));
                }
            }
            match &service.reach {
                Reach::Nothing => continue,
                Reach::External(_) => {
                    put(own, format!("CNAME s0.n0.svc.{Z}"));
                    continue;
                }
                Reach::Headless if hosts.is_empty() => continue,
                Reach::Headless => {
                    for (_, address) in &hosts {
                        put(own.clone(), address_record(*address));
                    }
                    let weight = |count: usize| (100 / count).max(1);
                    let distinct = targets.iter().map(|it| (&it.2, it.3)).collect::<BTreeSet<_>>().len();
                    for (name, protocol, label, number) in &targets {
                        let srv = |count| format!("SRV 0 {} {number} {label}.{own}", weight(count));
                        put(own.clone(), srv(distinct));
                        if !name.is_empty() {
                            let same = targets.iter().filter(|it| (&it.0, it.1) == (name, *protocol)).count();
                            put(format!("_{name}.{}.{own}", proto(*protocol)), srv(same));
                        }
                    }
                }
                Reach::ClusterIp(addresses) => {
                    for address in addresses {
                        put(own.clone(), address_record(*address));
                        put(format!("{}.", reverse_of(*address)), format!("PTR {own}"));
                    }
                    for port in &service.ports {
                        let numbers: BTreeSet<u16> = service.ports.iter().map(|it| it.number).collect();
                        let weight = 100 / numbers.len();
                        put(own.clone(), format!("SRV 0 {weight} {} {own}", port.number));
                        if !port.name.is_empty() {
                            put(
                                format!("_{}.{}.{own}", port.name, proto(port.protocol)),
                                format!("SRV 0 100 {} {own}", port.number),
                            );
                        }
                    }
                }
            }
            for (label, address) in hosts {
                put(format!("{label}.{own}"), address_record(address));
                put(format!("{}.", reverse_of(address)), format!("PTR {label}.{own}"));
            }
        }
        all
    }

    fn tell(&self, name: &str, kind: RecordType) -> String {
        let records = self.records();
        let prefix = format!("{kind} ");
        let mut answers: Vec<String> = records
            .get(name)
            .into_iter()
            .flatten()
            .filter(|it| it.starts_with(&prefix))
            .cloned()
            .collect();
        answers.sort();
        if !answers.is_empty() {
            let list: String = answers.iter().map(|it| format!(" {it};")).collect();
            return format!("NOERROR{list}");
        }
        let below = format!(".{name}");
        let exists = records.contains_key(name) || records.keys().any(|it| it.ends_with(&below));
        let fixed = ["svc.", "pod.", "dns.", "dns-version."]
            .iter()
            .any(|it| name == format!("{it}{Z}"));
        let namespace = self
            .namespaces
            .iter()
            .any(|it| name == format!("{it}.svc.{Z}") || name == format!("{it}.pod.{Z}"));
        let inhabited = name.strip_suffix(&format!(".pod.{Z}")).is_some_and(|namespace| {
            let end = format!(".{namespace}.svc.{Z}");
            records.keys().any(|it| it.ends_with(&end))
        });
        if exists || fixed || namespace || inhabited {
            "NOERROR -".to_owned()
        } else {
            "NXDOMAIN -".to_owned()
        }
    }
}

fn proto(protocol: Protocol) -> &'static str {
    if protocol == Protocol::Tcp { "_tcp" } else { "_udp" }
}

/// Names worth asking for: all that there are, those above and beside them, and some that are nowhere.
fn names(objects: &Objects) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = ["n0.svc.", "n1.svc.", "n0.pod.", "n2.svc.", "s9.n0.svc.", "x."]
        .iter()
        .map(|it| format!("{it}{Z}"))
        .collect();
    for namespace in ["n0", "n1"] {
        for service in ["s0", "s1", "s2"] {
            for label in [
                "",
                "h0.",
                "h1.",
                "10-1-0-1.",
                "_tcp.",
                "_udp.",
                "_p._tcp.",
                "_q._udp.",
                "_x._tcp.",
            ] {
                names.insert(format!("{label}{service}.{namespace}.svc.{Z}"));
            }
        }
    }
    for name in objects.records().keys() {
        let mut rest = name.as_str();
        while let Some((_, above)) = rest
            .split_once('.')
            .filter(|(_, above)| above.len() > Z.len() && *above != "arpa.")
        {
            names.insert(rest.to_owned());
            rest = above;
        }
        names.insert(format!("y.{name}"));
    }
    names.retain(|name| name.ends_with(Z) || name.ends_with(".in-addr.arpa.") || name.ends_with(".ip6.arpa."));
    names
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn step_by_step_at_once_and_naive_are_the_same(changes in proptest::collection::vec(change(), 1..40), pause in 1..5_usize) {
        let mut objects = Objects::default();
        let mut stepwise = World::new(COREFILE);
        for (index, change) in changes.into_iter().enumerate() {
            objects.apply(change.clone());
            stepwise.store.apply(change);
            if index % pause == 0 {
                stepwise.store.publish(1);
            }
        }
        stepwise.store.publish(1);
        let mut at_once = World::new(COREFILE);
        // Slices before Services and Namespaces last: the order of arrival is nobody's.
        for (key, it) in &objects.slices {
            at_once.store.apply(Change::Slice(key.clone(), Some(it.clone())));
        }
        for (key, it) in &objects.services {
            at_once.store.apply(Change::Service(key.clone(), Some(it.clone())));
        }
        for name in &objects.namespaces {
            at_once.store.apply(Change::Namespace(name.clone(), true));
        }
        at_once.store.publish(1);
        for name in names(&objects) {
            let alias = objects.records().get(&name).is_some_and(|it| it.iter().any(|it| it.starts_with("CNAME")));
            let kinds: &[RecordType] = match alias {
                true => &[RecordType::CNAME],
                false => &[RecordType::A, RecordType::AAAA, RecordType::SRV, RecordType::PTR],
            };
            for kind in kinds {
                let told = stepwise.tell(&name, *kind);
                prop_assert_eq!(&told, &at_once.tell(&name, *kind), "{} {}: step by step, at once", &name, kind);
                prop_assert_eq!(&told, &objects.tell(&name, *kind), "{} {}: real, model", &name, kind);
            }
        }
    }
}
