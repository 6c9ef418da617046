//! `Service` and `EndpointSlice` objects as YAML, from as few words as a test needs.
//!
//! The text is JSON, which is YAML too; several objects are separated by `---`.

use crate::topology::{Pod, addr};
use addr::Family;
use serde_json::{Value, json};
use std::net::IpAddr;

/// A Service in namespace `default`.
#[derive(Clone, Debug, Default)]
pub struct Service {
    name: String,
    spec: serde_json::Map<String, Value>,
    ports: Vec<Value>,
    load_balancer_ips: Vec<IpAddr>,
}

impl Service {
    /// A `ClusterIP` service, dual stack when given an address of each family.
    pub fn new(name: &str, cluster_ips: &[IpAddr]) -> Self {
        let mut service = Self {
            name: name.to_string(),
            ..Self::default()
        };
        let families: Vec<&str> = cluster_ips.iter().map(|ip| family_name(*ip)).collect();
        service.set("clusterIP", json!(cluster_ips.first()));
        service.set("clusterIPs", json!(cluster_ips));
        service.set("ipFamilies", json!(families));
        let policy = if cluster_ips.len() > 1 {
            "RequireDualStack"
        } else {
            "SingleStack"
        };
        service.set("ipFamilyPolicy", json!(policy));
        service.set("type", json!("ClusterIP"));
        service
    }

    /// A dual-stack service with cluster IPs number `n` (see [`addr::cluster_ip`]).
    pub fn numbered(name: &str, n: u8) -> Self {
        Self::new(name, &addr::FAMILIES.map(|family| addr::cluster_ip(family, n)))
    }

    /// Any field of `spec`.
    pub fn set(&mut self, field: &str, value: Value) {
        self.spec.insert(field.to_string(), value);
    }

    /// As [`Service::set`], for chains.
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.set(field, value);
        self
    }

    /// A TCP and a UDP port of that number, named `tcp-PORT` and `udp-PORT`.
    pub fn port(mut self, port: u16) -> Self {
        self.ports.extend(
            ["TCP", "UDP"]
                .map(|protocol| json!({"name": port_name(protocol, port), "protocol": protocol, "port": port})),
        );
        self
    }

    /// Node ports for the two ports given last; makes the type `NodePort`.
    pub fn node_port(mut self, node_port: u16) -> Self {
        for port in self.ports.iter_mut().rev().take(2) {
            port["nodePort"] = json!(node_port);
        }
        self.with("type", json!("NodePort"))
    }

    /// LB addresses number `n`; makes the type `LoadBalancer`.
    pub fn load_balancer(mut self, n: u8) -> Self {
        self.load_balancer_ips = addr::FAMILIES.map(|family| addr::load_balancer(family, n)).to_vec();
        self.with("type", json!("LoadBalancer"))
    }

    /// External addresses number `n`.
    pub fn external(self, n: u8) -> Self {
        self.with(
            "externalIPs",
            json!(addr::FAMILIES.map(|family| addr::external(family, n))),
        )
    }

    /// `sessionAffinity: ClientIP`.
    pub fn affinity(self, seconds: u32) -> Self {
        self.with("sessionAffinity", json!("ClientIP")).with(
            "sessionAffinityConfig",
            json!({"clientIP": {"timeoutSeconds": seconds}}),
        )
    }

    /// `externalTrafficPolicy: Local`.
    pub fn external_local(self) -> Self {
        self.with("externalTrafficPolicy", json!("Local"))
    }

    /// `internalTrafficPolicy: Local`.
    pub fn internal_local(self) -> Self {
        self.with("internalTrafficPolicy", json!("Local"))
    }

    /// The object.
    pub fn to_json(&self) -> Value {
        let mut spec = self.spec.clone();
        spec.insert("ports".to_string(), json!(self.ports));
        let ingress: Vec<Value> = self
            .load_balancer_ips
            .iter()
            .map(|ip| json!({"ip": ip, "ipMode": "VIP"}))
            .collect();
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": self.name, "namespace": "default"},
            "spec": spec,
            "status": {"loadBalancer": {"ingress": ingress}},
        })
    }
}

/// An endpoint: a pod and its conditions.
#[derive(Clone, Debug)]
pub struct Endpoint<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// `conditions.ready`.
    pub ready: bool,
    /// `conditions.serving`.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
}

impl<'a> Endpoint<'a> {
    /// Ready.
    pub fn ready(pod: &'a Pod) -> Self {
        Self {
            pod,
            ready: true,
            serving: true,
            terminating: false,
        }
    }

    /// Terminating, and still serving.
    pub fn terminating(pod: &'a Pod) -> Self {
        Self {
            pod,
            ready: false,
            serving: true,
            terminating: true,
        }
    }
}

/// The slices of one service: one per family, with the same endpoints in each. Service port `port` leads to target port
/// `target`, TCP and UDP.
#[derive(Clone, Debug)]
pub struct Slices<'a> {
    /// Name of the service.
    pub service: &'a str,
    /// (service port, target port), as given to [`Service::port`].
    pub ports: &'a [(u16, u16)],
    /// The endpoints.
    pub endpoints: Vec<Endpoint<'a>>,
}

impl<'a> Slices<'a> {
    /// Service port 80 → target port 8080, to ready pods.
    pub fn ready(service: &'a str, pods: impl IntoIterator<Item = &'a Pod>) -> Self {
        Self {
            service,
            ports: &[(80, 8080)],
            endpoints: pods.into_iter().map(Endpoint::ready).collect(),
        }
    }

    /// The objects.
    pub fn to_json(&self) -> [Value; 2] {
        addr::FAMILIES.map(|family| self.slice(family))
    }

    fn slice(&self, family: Family) -> Value {
        let ports = self.ports.iter().flat_map(|(port, target)| {
            ["TCP", "UDP"]
                .map(|protocol| json!({"name": port_name(protocol, *port), "protocol": protocol, "port": target}))
        });
        let endpoints = self.endpoints.iter().map(
            |Endpoint {
                 pod,
                 ready,
                 serving,
                 terminating,
             }| {
                json!({
                    "addresses": [pod.ip(family)],
                    "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
                    "nodeName": format!("node-{}", char::from(b'a' + pod.node - 1)),
                })
            },
        );
        let (suffix, address_type) = match family {
            Family::V4 => ("v4", "IPv4"),
            Family::V6 => ("v6", "IPv6"),
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{suffix}", self.service),
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": self.service},
            },
            "addressType": address_type,
            "ports": Vec::from_iter(ports),
            "endpoints": Vec::from_iter(endpoints),
        })
    }
}

/// Several objects as one file.
pub fn file(objects: impl IntoIterator<Item = Value>) -> String {
    let mut text = String::new();
    for object in objects {
        text += &format!("---\n{object}\n");
    }
    text
}

/// A service and its slices as one file.
pub fn service_file(service: &Service, slices: &Slices<'_>) -> String {
    file(std::iter::once(service.to_json()).chain(slices.to_json()))
}

fn port_name(protocol: &str, port: u16) -> String {
    format!("{}-{port}", protocol.to_lowercase())
}

fn family_name(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}
