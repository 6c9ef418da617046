//! ServiceMap + NodeView → Plan, whole or for the services that changed.

use super::{
    Decision, Frontend, FrontendKind, HealthCheck, Plan, PortPlan, ServicePlan, SourceRanges,
    claims::{self, Claims, FrontendKey},
    topology::{self, Categorized, Uses},
};
use crate::{
    error::Skipped,
    model::{
        EndpointSlice, Family, MergedEndpoint, NodeView, ObjectName, Service, ServiceMap, ServicePort, TrafficPolicy,
        merge,
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
pub fn compile_service(service: &Service, slices: &[EndpointSlice], node: &NodeView, claims: &Claims) -> ServicePlan {
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
            && (owner.service != service.name || owner.port != port.name)
        {
            skipped.push(Skipped {
                object: format!("Service {}", service.name),
                field: claims::field(kind, &port.name),
                reason: format!(
                    "{key} already belongs to port {:?} of Service {} ({}), which comes first; \
                     give one of them another address or port",
                    &*owner.port,
                    owner.service,
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
    let mut nets: Vec<_> = ranges_of(service, family).map(|net| net.trunc()).collect();
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
