//! `ServiceMap` + `NodeView` → Plan, whole or for the services that changed.

use super::{
    Decision, Frontend, FrontendKind, HealthCheck, Plan, PortPlan, ServicePlan, SourceRanges,
    claims::{self, Claims, FrontendKey},
    topology::{self, Categorized, Uses},
};
use crate::{
    error::Skipped,
    model::{
        Family, HeldSlice, MergedEndpoint, NodeView, ObjectName, Service, ServiceMap, ServicePort, TrafficPolicy, merge,
    },
};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// What may have changed since the last [`Planner::update`].
#[derive(Clone, Copy, Debug)]
pub enum Changed<'a> {
    /// Anything.
    All,
    /// These services: all that [`ServiceMap::apply`] has returned since.
    Services(&'a BTreeSet<ObjectName>),
}

/// Keeps a [`Plan`] in step with a service map. The plan is a pure function of the newest map and node, whatever the
/// steps on the way were.
///
/// Two service ports may claim one address, port and protocol (an external IP listed twice, a node port in a manifest).
/// The one of the older service owns it, ties go by name; the other lacks that frontend and says so in
/// [`ServicePlan::skipped`] until the owner gives it up.
#[derive(Debug, Default)]
pub struct Planner {
    plan: Plan,
    node: NodeView,
    /// The services as they were when their claims were entered.
    entered: BTreeMap<ObjectName, Arc<Service>>,
    claims: Claims,
}

impl Planner {
    /// Brings the plan in step and returns the services whose [`ServicePlan`] is another one now (or came, or went):
    /// some of `changed`, and others that won or lost a frontend by it. A `node` other than the last time's has the
    /// effect of [`Changed::All`].
    pub fn update(&mut self, map: &ServiceMap, node: &NodeView, changed: Changed<'_>) -> BTreeSet<ObjectName> {
        let names = match changed {
            Changed::Services(names) if self.node == *node => self.enter(map, names),
            _ => self.enter_all(map, node),
        };
        let mut different = BTreeSet::new();
        for name in names {
            let new = self.entered.get(&name).map(|service| {
                let plan = compile_service(service, map.slices(&name), node, &self.claims);
                plan.is_something().then_some(plan)
            });
            let old = self.plan.services.get(&name);
            match new.flatten() {
                Some(new) if old.is_some_and(|old| **old == new) => continue,
                None if old.is_none() => continue,
                Some(new) => self.plan.services.insert(name.clone(), Arc::new(new)),
                None => self.plan.services.remove(&name),
            };
            different.insert(name);
        }
        different
    }

    /// The plan as of the last [`Planner::update`].
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Claims of changed services; returns all services that must be compiled.
    fn enter(&mut self, map: &ServiceMap, changed: &BTreeSet<ObjectName>) -> BTreeSet<ObjectName> {
        let mut names = changed.clone();
        for name in changed {
            let new = map.service(name);
            let old = self.entered.get(name);
            if old.zip(new).is_some_and(|(old, new)| Arc::ptr_eq(old, new)) {
                continue; // only endpoints changed
            }
            if let Some(old) = self.entered.remove(name) {
                self.claims.remove(&old, &self.node, &mut names);
            }
            if let Some(new) = new {
                self.claims.add(new, &self.node, &mut names);
                self.entered.insert(name.clone(), new.clone());
            }
        }
        names
    }

    fn enter_all(&mut self, map: &ServiceMap, node: &NodeView) -> BTreeSet<ObjectName> {
        let mut names: BTreeSet<_> = self.plan.services.keys().cloned().collect();
        self.node = node.clone();
        self.claims.clear();
        self.entered.clear();
        for service in map.services() {
            self.claims.add(service, node, &mut BTreeSet::new());
            self.entered.insert(service.name.clone(), service.clone());
            names.insert(service.name.clone());
        }
        names
    }
}

/// The whole plan at once.
pub fn compile(map: &ServiceMap, node: &NodeView) -> Plan {
    let mut planner = Planner::default();
    planner.update(map, node, Changed::All);
    planner.plan
}

/// The plan of one service, with those frontends that it owns under `claims`. Pure: no clock, no randomness, no ids.
pub fn compile_service(service: &Service, slices: &[HeldSlice], node: &NodeView, claims: &Claims) -> ServicePlan {
    let mut plan = ServicePlan::default();
    let mut ready_here: BTreeSet<IpAddr> = BTreeSet::new();
    for port in claims::usable_ports(service) {
        for family in Family::ALL
            .into_iter()
            .filter(|family| claims::serves(service, *family))
        {
            let endpoints = merge(slices, &port.name, port.protocol, family, node);
            if service.health_check_node_port.is_some() {
                ready_here.extend(ready_on_node(&endpoints));
            }
            let mut frontends = own_frontends(service, port, family, node, claims, &mut plan.skipped);
            if frontends.is_empty() {
                continue;
            }
            let sets = topology::categorize(&endpoints, uses(service, port));
            for frontend in &mut frontends {
                (frontend.internal, frontend.external) = decide(service, frontend.kind, &sets);
            }
            plan.ports.push(PortPlan {
                name: port.name.clone(),
                protocol: port.protocol,
                family,
                affinity_s: service.affinity_s,
                backends: sets.backends,
                frontends,
            });
        }
    }
    plan.ports
        .sort_by(|a, b| (&a.name, a.protocol, a.family).cmp(&(&b.name, b.protocol, b.family)));
    plan.ports.shrink_to_fit();
    plan.health_check = service.health_check_node_port.map(|port| HealthCheck {
        port,
        local_endpoints: count_pods(&ready_here),
    });
    warn(service, &mut plan.skipped);
    plan.skipped.sort();
    plan.skipped.dedup();
    plan
}

impl ServicePlan {
    fn is_something(&self) -> bool {
        !self.ports.is_empty() || self.health_check.is_some() || !self.skipped.is_empty()
    }
}

fn ready_on_node(endpoints: &[MergedEndpoint]) -> impl Iterator<Item = IpAddr> {
    endpoints.iter().filter(|e| e.ready && e.on_node).map(|e| e.addr.ip())
}

/// A pod of a dual-stack service has an address in each family, and counts once.
fn count_pods(addrs: &BTreeSet<IpAddr>) -> usize {
    let v4 = addrs.iter().filter(|addr| addr.is_ipv4()).count();
    v4.max(addrs.len() - v4)
}

/// Reachable from outside by a field that `externalTrafficPolicy` governs.
fn has_external(service: &Service, port: &ServicePort) -> bool {
    port.node_port.is_some() || !service.load_balancer_ips.is_empty() || !service.external_ips.is_empty()
}

fn uses(service: &Service, port: &ServicePort) -> Uses {
    let external = has_external(service, port);
    Uses {
        cluster: service.internal_policy == TrafficPolicy::Cluster || external,
        local: service.internal_policy == TrafficPolicy::Local
            || (service.external_policy == TrafficPolicy::Local && external),
    }
}

/// Decisions for clients on this node and outside.
///
/// `externalTrafficPolicy: Local` is about keeping the client's address and about not passing on what a load balancer
/// could have sent to the right node. Neither concerns clients on this node, so pods and the node itself reach the
/// whole cluster by any external address (KEP-1669).
fn decide(service: &Service, kind: FrontendKind, sets: &Categorized) -> (Decision, Decision) {
    let under = |policy| match policy {
        _ if !sets.any_usable => Decision::Reject,
        TrafficPolicy::Cluster => Decision::Cluster,
        TrafficPolicy::Local if sets.any_in_local => Decision::Local,
        TrafficPolicy::Local => Decision::Drop,
    };
    match kind {
        FrontendKind::ClusterIP => (under(service.internal_policy), under(service.internal_policy)),
        FrontendKind::NodePort | FrontendKind::LoadBalancer | FrontendKind::ExternalIP => {
            (under(TrafficPolicy::Cluster), under(service.external_policy))
        }
    }
}

/// The frontends that are the port's own, decisions still open; claims that another port won go to `skipped`.
fn own_frontends(
    service: &Service,
    port: &ServicePort,
    family: Family,
    node: &NodeView,
    claims: &Claims,
    skipped: &mut Vec<Skipped>,
) -> Vec<Frontend> {
    let mut frontends = Vec::new();
    let candidates = claims::candidates(service, port, family, node);
    frontends.reserve_exact(candidates.len());
    for (addr, number, kind) in candidates {
        let key = FrontendKey {
            addr,
            port: number,
            protocol: port.protocol,
        };
        if let Some(owner) = claims.owner(&key)
            && (*owner.service() != service.name || *owner.port() != *port.name)
        {
            skipped.push(Skipped {
                object: format!("Service {}", service.name),
                field: claims::field(kind, &port.name),
                reason: format!(
                    "{key} already belongs to port {:?} of Service {} ({}), which comes first; \
                     give one of them another address or port",
                    owner.port(),
                    owner.service(),
                    owner.field(),
                ),
            });
            continue;
        }
        frontends.push(Frontend {
            addr,
            port: number,
            kind,
            internal: Decision::Reject,
            external: Decision::Reject,
            sources: sources(service, addr, kind, node),
            node_address: kind == FrontendKind::NodePort || node.addresses.contains(&addr),
        });
    }
    frontends
}

/// `spec.loadBalancerSourceRanges` for one frontend; they concern load balancer addresses only.
///
/// A family without ranges, while the other one has some, admits nobody: whoever restricted the service meant all of
/// it. (kube-proxy admits everybody.)
fn sources(service: &Service, addr: IpAddr, kind: FrontendKind, node: &NodeView) -> SourceRanges {
    if kind != FrontendKind::LoadBalancer || service.source_ranges.is_empty() {
        return SourceRanges::Any;
    }
    let family = Family::of(&addr);
    let mut nets: Vec<_> = ranges_of(service, family).map(IpNet::trunc).collect();
    // The node reaching its own load balancer may do so with the VIP as source, where the VIP is one of its addresses.
    if nets
        .iter()
        .any(|net| node.addresses.iter().any(|own| net.contains(own)))
    {
        nets.push(IpNet::from(addr));
    }
    nets.sort_unstable();
    nets.dedup();
    SourceRanges::Only(nets)
}

fn ranges_of(service: &Service, family: Family) -> impl Iterator<Item = &IpNet> {
    service
        .source_ranges
        .iter()
        .filter(move |net| Family::of(&net.addr()) == family)
}

/// What of a service is left out for reasons of its own.
fn warn(service: &Service, skipped: &mut Vec<Skipped>) {
    let mut skip = |field: String, reason: String| {
        skipped.push(Skipped {
            object: format!("Service {}", service.name),
            field,
            reason,
        });
    };
    for family in Family::ALL
        .into_iter()
        .filter(|family| !claims::serves(service, *family))
    {
        for (kind, addrs) in [
            (FrontendKind::LoadBalancer, &service.load_balancer_ips),
            (FrontendKind::ExternalIP, &service.external_ips),
        ] {
            for addr in addrs.iter().filter(|addr| Family::of(addr) == family) {
                skip(
                    claims::field(kind, ""),
                    format!("{addr} is not served: the service has no {family} cluster IP; make it dual-stack"),
                );
            }
        }
    }
    for family in Family::ALL {
        let restricted = !service.source_ranges.is_empty()
            && ranges_of(service, family).next().is_none()
            && claims::serves(service, family)
            && service.load_balancer_ips.iter().any(|addr| Family::of(addr) == family);
        if restricted {
            skip(
                "spec.loadBalancerSourceRanges".into(),
                format!("no {family} range, so the {family} load balancer address admits nobody; list the sources"),
            );
        }
    }
    for (port, _) in claims::ports(service).filter(|(_, repeated)| *repeated) {
        skip(
            claims::port_path(&port.name),
            format!(
                "port {}/{} repeats the name of an earlier port; rename it",
                port.port, port.protocol
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Change, EndpointSlice, Event, Protocol},
        testing::{Ep, ServiceBuilder, node, service, slice},
    };

    fn name(name: &str) -> ObjectName {
        ObjectName::new("default", name)
    }

    fn names(list: &[&str]) -> BTreeSet<ObjectName> {
        list.iter().map(|text| name(text)).collect()
    }

    #[derive(Default)]
    struct World {
        map: ServiceMap,
        planner: Planner,
    }

    impl World {
        fn apply(&mut self, event: Event) -> BTreeSet<ObjectName> {
            let touched = self.map.apply(event);
            self.planner.update(&self.map, &node(), Changed::Services(&touched))
        }

        fn put(&mut self, service: ServiceBuilder) -> BTreeSet<ObjectName> {
            self.apply(Event::Service(Change::Apply(service.build())))
        }

        fn put_slice(&mut self, slice: EndpointSlice) -> BTreeSet<ObjectName> {
            self.apply(Event::Slice(Change::Apply(slice)))
        }

        fn delete(&mut self, text: &str) -> BTreeSet<ObjectName> {
            self.apply(Event::Service(Change::Delete(name(text))))
        }

        fn plan(&self, text: &str) -> &ServicePlan {
            &self.planner.plan().services[&name(text)]
        }

        fn frontends(&self, text: &str) -> Vec<String> {
            let ports = self.plan(text).ports.iter();
            let all = ports.flat_map(|p| p.frontends.iter().map(|f| format!("{} {} {}", f.kind, f.addr, f.port)));
            all.collect()
        }

        fn skipped(&self, text: &str) -> Vec<String> {
            self.plan(text).skipped.iter().map(ToString::to_string).collect()
        }
    }

    fn claim(text: &str, created_s: i64) -> ServiceBuilder {
        service(text).external_ip("198.51.100.20").created(created_s)
    }

    #[test]
    fn the_loser_of_a_conflict_says_who_won_and_gets_the_frontend_when_the_owner_goes() {
        let mut world = World::default();
        let taken = |owner: &str| {
            format!(
                "Service default/young: spec.externalIPs: 198.51.100.20:80/TCP already belongs to port \"\" of Service \
                 default/{owner} (spec.externalIPs), which comes first; give one of them another address or port"
            )
        };
        assert_eq!(world.put(claim("young", 3)), names(&["young"]));
        assert_eq!(world.put(claim("middle", 2)), names(&["young", "middle"]));
        assert_eq!(world.skipped("young"), [taken("middle")]);
        assert_eq!(world.put(claim("old", 1)), names(&["young", "middle", "old"]));
        assert_eq!(world.frontends("old"), ["ExternalIP 198.51.100.20 80"]);
        assert_eq!(world.frontends("middle"), [""; 0]);
        assert_eq!(world.skipped("young"), [taken("old")]);

        // a loser that goes concerns nobody else
        assert_eq!(world.delete("middle"), names(&["middle"]));
        assert_eq!(world.delete("old"), names(&["young", "old"]));
        assert_eq!(world.frontends("young"), ["ExternalIP 198.51.100.20 80"]);
        assert_eq!(world.skipped("young"), [""; 0]);
        // an owner that moves away gives it up too
        assert_eq!(world.put(claim("old", 1)), names(&["young", "old"]));
        assert_eq!(
            world.put(service("old").external_ip("198.51.100.21").created(1)),
            names(&["young", "old"])
        );
        assert_eq!(world.frontends("young"), ["ExternalIP 198.51.100.20 80"]);
    }

    #[test]
    fn a_node_port_is_contested_by_its_own_field() {
        let mut world = World::default();
        let web = |text: &str, ip| {
            service(text)
                .cluster_ip(ip)
                .port("http", 80, Protocol::Tcp, Some(30_080))
        };
        world.put(web("a", "10.96.0.1"));
        world.put(web("b", "10.96.0.2"));
        assert_eq!(
            world.frontends("a"),
            ["ClusterIP 10.96.0.1 80", "NodePort 192.168.0.1 30080"]
        );
        assert_eq!(world.frontends("b"), ["ClusterIP 10.96.0.2 80"]);
        assert_eq!(
            world.skipped("b"),
            [
                "Service default/b: spec.ports[\"http\"].nodePort: 192.168.0.1:30080/TCP already belongs to port \"http\" \
              of Service default/a (spec.ports[\"http\"].nodePort), which comes first; \
              give one of them another address or port"
            ]
        );
    }

    #[test]
    fn two_ports_of_one_service_may_be_in_conflict_too() {
        let mut world = World::default();
        world.put(
            service("a")
                .external_ip("192.168.0.1")
                .port("x", 30_080, Protocol::Tcp, None)
                .port("y", 80, Protocol::Tcp, Some(30_080)),
        );
        assert_eq!(
            world.frontends("a"),
            [
                "ExternalIP 192.168.0.1 30080",
                "ExternalIP 192.168.0.1 80",
                "NodePort fd00:192:168::1 30080"
            ]
        );
        assert_eq!(world.skipped("a").len(), 1);
    }

    #[test]
    fn only_changes_of_the_plan_are_returned() {
        let mut world = World::default();
        assert_eq!(world.put_slice(slice("a", "web", &[Ep::here("10.1.0.1")])), names(&[]));
        assert_eq!(world.put(service("web").cluster_ip("10.96.0.1")), names(&["web"]));
        let unready = Ep::there("10.1.1.9").dead();
        let slice_with_unready = slice("a", "web", &[Ep::here("10.1.0.1"), unready]);
        assert_eq!(
            world.put_slice(slice_with_unready),
            names(&[]),
            "a dead endpoint is no backend"
        );
        assert_eq!(world.put_slice(slice("a", "web", &[])), names(&["web"]));
        assert_eq!(world.delete("web"), names(&["web"]));
        assert!(world.planner.plan().services.is_empty());
    }

    #[test]
    fn another_node_view_recompiles_everything() {
        let mut world = World::default();
        world.put(
            service("web")
                .cluster_ip("10.96.0.1")
                .port("", 80, Protocol::Tcp, Some(30_080)),
        );
        world.put(service("db").cluster_ip("10.96.0.2"));
        let mut other = node();
        other.node_port_addresses.clear();
        let changed = world
            .planner
            .update(&world.map, &other, Changed::Services(&BTreeSet::new()));
        assert_eq!(changed, names(&["web"]));
        assert_eq!(world.frontends("web"), ["ClusterIP 10.96.0.1 80"]);
    }

    #[test]
    fn a_health_check_counts_pods_that_are_ready_here() {
        let mut world = World::default();
        world.put(
            service("web")
                .cluster_ip("10.96.0.1")
                .cluster_ip("fd00:10:96::1")
                .port("http", 80, Protocol::Tcp, None)
                .port("https", 443, Protocol::Tcp, None)
                .health_check(32_000),
        );
        let mut count = |addrs: &[Ep]| {
            for (at, family) in Family::ALL.into_iter().enumerate() {
                let of_family: Vec<_> = addrs
                    .iter()
                    .filter(|ep| Family::of(&ep.addr) == family)
                    .cloned()
                    .collect();
                let ports = [("http", 8080, Protocol::Tcp), ("https", 8443, Protocol::Tcp)];
                let slice = crate::testing::slice_with(&at.to_string(), "web", &ports, &of_family);
                world.put_slice(EndpointSlice { family, ..slice });
            }
            world.plan("web").health_check.unwrap().local_endpoints
        };
        assert_eq!(count(&[]), 0);
        let two = [
            Ep::here("10.1.0.1"),
            Ep::here("10.1.0.2"),
            Ep::here("fd00:10:1::1"),
            Ep::there("10.1.1.1"),
        ];
        assert_eq!(count(&two), 2, "once per pod, whatever its ports and families");
        assert_eq!(
            count(&[Ep::here("10.1.0.1").terminating()]),
            0,
            "load balancers must leave this node"
        );
    }

    #[test]
    fn what_is_left_out_is_said() {
        let mut world = World::default();
        world.put(
            service("web")
                .cluster_ip("10.96.0.1")
                .external_ip("2001:db8:100::20")
                .port("x", 80, Protocol::Tcp, None)
                .port("x", 81, Protocol::Tcp, None)
                .port("x", 80, Protocol::Udp, None),
        );
        assert_eq!(
            world.frontends("web"),
            ["ClusterIP 10.96.0.1 80", "ClusterIP 10.96.0.1 80"]
        );
        assert_eq!(
            world.skipped("web"),
            [
                "Service default/web: spec.externalIPs: 2001:db8:100::20 is not served: the service has no IPv6 cluster \
                 IP; make it dual-stack",
                "Service default/web: spec.ports[\"x\"]: port 81/TCP repeats the name of an earlier port; rename it",
            ]
        );
        let ranges = service("lb")
            .cluster_ip("10.96.0.2")
            .cluster_ip("fd00:10:96::2")
            .load_balancer_ip("198.51.100.10")
            .load_balancer_ip("2001:db8:100::10")
            .source_range("203.0.113.9/24");
        world.put(ranges);
        assert_eq!(
            world.skipped("lb"),
            [
                "Service default/lb: spec.loadBalancerSourceRanges: no IPv6 range, so the IPv6 load balancer address admits \
              nobody; list the sources"
            ]
        );
    }

    #[test]
    fn source_ranges_are_normal_and_hold_the_vip_where_the_node_is_inside() {
        let lb = |ranges: &[&str]| {
            let web = service("web").cluster_ip("10.96.0.1").load_balancer_ip("198.51.100.10");
            let web = ranges.iter().fold(web, |web, range| web.source_range(range)).build();
            sources(
                &web,
                "198.51.100.10".parse().unwrap(),
                FrontendKind::LoadBalancer,
                &node(),
            )
        };
        let only = |ranges: &[&str]| SourceRanges::Only(ranges.iter().map(|range| range.parse().unwrap()).collect());
        assert_eq!(lb(&[]), SourceRanges::Any);
        assert_eq!(
            lb(&["203.0.113.9/24", "10.0.0.0/8", "203.0.113.0/24"]),
            only(&["10.0.0.0/8", "203.0.113.0/24"])
        );
        assert_eq!(lb(&["192.168.1.0/24"]), only(&["192.168.1.0/24", "198.51.100.10/32"]));
        assert_eq!(lb(&["::/0"]), only(&[]));
    }
}
