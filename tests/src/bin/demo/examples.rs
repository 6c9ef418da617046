//! The manifests: which pods they need, what those serve, and which frontends lead there.

use crate::{family, transport};
use anyhow::{Context, Result, bail};
use harness::{Topology, Transport, addr::Family, manifest};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

/// The pod that only asks; on node-a.
pub(crate) const CLIENT: &str = "client";
const CLIENT_NUMBER: u8 = 254;

/// One manifest file.
pub(crate) struct File {
    pub(crate) name: String,
    objects: Vec<Value>,
}

impl File {
    pub(crate) fn text(&self) -> String {
        manifest::file(self.objects.iter().cloned())
    }
}

/// All manifest files of a folder.
pub(crate) struct Examples {
    pub(crate) files: Vec<File>,
}

/// One address that leads to a service port.
pub(crate) struct Frontend {
    pub(crate) service: String,
    /// Name of the service port.
    pub(crate) port: String,
    pub(crate) kind: &'static str,
    pub(crate) family: Family,
    pub(crate) addr: SocketAddr,
    pub(crate) transport: Transport,
}

/// One endpoint of a service port.
pub(crate) struct Endpoint {
    pub(crate) addr: SocketAddr,
    pub(crate) port: String,
    pub(crate) protocol: String,
    pub(crate) ready: bool,
}

/// deploy/examples, here or in the folder that this was built from.
pub(crate) fn default_folder() -> Result<PathBuf> {
    let built_from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    [PathBuf::from("deploy/examples"), built_from]
        .into_iter()
        .find(|path| path.is_dir())
        .context("there is no folder deploy/examples here: name one with --manifests DIR")
}

/// A list that may be missing.
fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// Node and pod number of a pod's address, by the address plan.
fn place(ip: IpAddr) -> Option<(u8, u8)> {
    match ip {
        IpAddr::V4(ip) => match ip.octets() {
            [10, 1, node, pod] => Some((node, pod)),
            _ => None,
        },
        IpAddr::V6(ip) => match ip.segments() {
            [0xfd00, 0x10, 1, node, 0, 0, 0, pod] => Some((node.try_into().ok()?, pod.try_into().ok()?)),
            _ => None,
        },
    }
}

fn pod_name((node, pod): (u8, u8)) -> String {
    format!("{}{pod}", char::from(b'a' + (node - 1) % 26))
}

impl Examples {
    /// Reads *.yaml, *.yml and *.json.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|suffix| ["yaml", "yml", "json"].iter().any(|known| suffix == *known))
            {
                let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
                let parsed: Vec<Value> =
                    serde_saphyr::from_multiple(&text).with_context(|| format!("parse {}", path.display()))?;
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let objects = parsed.into_iter().flat_map(|object| match object["items"].as_array() {
                    Some(items) => items.clone(),
                    None => vec![object],
                });
                files.push(File {
                    name,
                    objects: objects.collect(),
                });
            }
        }
        files.sort_by(|one, other| one.name.cmp(&other.name));
        let examples = Self { files };
        if examples.services().next().is_none() {
            bail!("no Service in {}: nothing to show", folder.display());
        }
        Ok(examples)
    }

    fn objects(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.files
            .iter()
            .flat_map(|file| &file.objects)
            .filter(move |object| object["kind"] == kind)
    }

    fn services(&self) -> impl Iterator<Item = &Value> {
        self.objects("Service")
    }

    /// A service by name.
    pub(crate) fn service(&self, name: &str) -> &Value {
        self.services()
            .find(|service| text(&service["metadata"], "name") == name)
            .unwrap_or(&Value::Null)
    }

    /// All endpoints of a service.
    pub(crate) fn endpoints(&self, service: &str) -> Vec<Endpoint> {
        let mut found = Vec::new();
        for slice in self.objects("EndpointSlice").filter(|slice| belongs(slice, service)) {
            for endpoint in list(slice, "endpoints") {
                let Some(ip) = list(endpoint, "addresses").first().and_then(Value::as_str) else {
                    continue;
                };
                let Ok(ip) = ip.parse::<IpAddr>() else { continue };
                for port in list(slice, "ports") {
                    let number = port["port"]
                        .as_u64()
                        .and_then(|number| u16::try_from(number).ok())
                        .unwrap_or(0);
                    found.push(Endpoint {
                        addr: SocketAddr::new(ip, number),
                        port: text(port, "name").to_string(),
                        protocol: port["protocol"].as_str().unwrap_or("TCP").to_string(),
                        ready: endpoint["conditions"]["ready"].as_bool().unwrap_or(true),
                    });
                }
            }
        }
        found
    }

    fn all_endpoints(&self) -> Vec<Endpoint> {
        let names = self.services().map(|service| text(&service["metadata"], "name"));
        names.flat_map(|name| self.endpoints(name)).collect()
    }

    /// Nodes and pods as the endpoints' addresses say.
    pub(crate) fn topology(&self) -> Result<Topology> {
        let mut pods: BTreeMap<u8, BTreeSet<u8>> = BTreeMap::from([(1, BTreeSet::new()), (2, BTreeSet::new())]);
        for Endpoint { addr, .. } in self.all_endpoints() {
            match place(addr.ip()) {
                Some((node @ 1..=26, pod @ 1..CLIENT_NUMBER)) => {
                    pods.entry(node).or_default().insert(pod);
                }
                _ => bail!(
                    "endpoint {}: the demo's pods are 10.1.NODE.POD and fd00:10:1:NODE::POD with NODE from 1 to 26",
                    addr.ip()
                ),
            }
        }
        let last = *pods.keys().last().unwrap_or(&1);
        let mut builder = Topology::builder();
        for node in 1..=last {
            builder = builder.node(&format!("node-{}", char::from(b'a' + node - 1)));
            for pod in pods.get(&node).into_iter().flatten() {
                builder = builder.pod(&pod_name((node, *pod)), *pod);
            }
            if node == 1 {
                builder = builder.pod(CLIENT, CLIENT_NUMBER);
            }
        }
        builder.build()
    }

    /// Starts a server for every endpoint.
    pub(crate) fn serve(&self, topology: &Topology) {
        let mut listening = BTreeSet::new();
        for endpoint in self.all_endpoints() {
            let Some((place, transport)) = place(endpoint.addr.ip()).zip(transport(&endpoint.protocol)) else {
                continue;
            };
            if listening.insert((endpoint.addr, transport)) {
                topology.pod(&pod_name(place)).actor.serve(transport, endpoint.addr);
            }
        }
    }

    /// Every frontend of every service, in the order of the manifests; node ports on node-a.
    pub(crate) fn frontends(&self, topology: &Topology) -> Vec<Frontend> {
        let node = &topology.nodes()[0];
        let mut found = Vec::new();
        for service in self.services() {
            let spec = &service["spec"];
            let parse = |values: &[Value]| -> Vec<IpAddr> {
                values.iter().filter_map(|value| value.as_str()?.parse().ok()).collect()
            };
            let mut cluster_ips = parse(list(spec, "clusterIPs"));
            if cluster_ips.is_empty() {
                cluster_ips.extend(text(spec, "clusterIP").parse::<IpAddr>());
            }
            let ingress = list(&service["status"]["loadBalancer"], "ingress");
            let ingress: Vec<Value> = ingress
                .iter()
                .filter(|entry| entry["ipMode"] != "Proxy")
                .map(|entry| entry["ip"].clone())
                .collect();
            let families: BTreeSet<bool> = cluster_ips.iter().map(IpAddr::is_ipv6).collect();
            for port in list(spec, "ports") {
                let protocol = port["protocol"].as_str().unwrap_or("TCP");
                let Some(transport) = transport(protocol) else { continue };
                let number = |field: &str| port[field].as_u64().and_then(|number| u16::try_from(number).ok());
                let mut add = |kind, ip: IpAddr, port_number| {
                    found.push(Frontend {
                        service: text(&service["metadata"], "name").to_string(),
                        port: text(port, "name").to_string(),
                        kind,
                        family: family(ip),
                        addr: SocketAddr::new(ip, port_number),
                        transport,
                    });
                };
                let Some(own) = number("port") else { continue };
                cluster_ips.iter().for_each(|ip| add("ClusterIP", *ip, own));
                if let Some(node_port) = number("nodePort") {
                    let served = harness::addr::FAMILIES.map(|family| node.ip(family)).into_iter();
                    served
                        .filter(|ip| families.contains(&ip.is_ipv6()))
                        .for_each(|ip| add("NodePort", ip, node_port));
                }
                parse(&ingress).into_iter().for_each(|ip| add("LoadBalancer", ip, own));
                parse(list(spec, "externalIPs"))
                    .into_iter()
                    .for_each(|ip| add("ExternalIP", ip, own));
            }
        }
        found
    }

    /// Name of the pod behind an endpoint.
    pub(crate) fn server(endpoint: &Endpoint) -> Option<String> {
        place(endpoint.addr.ip()).map(pod_name)
    }

    /// Names of the pods behind a service.
    pub(crate) fn servers(&self, service: &str) -> BTreeSet<String> {
        self.endpoints(service).iter().filter_map(Self::server).collect()
    }

    /// The service with a load balancer and most endpoints, of which at least two are needed for a change.
    pub(crate) fn busiest(&self) -> Option<&str> {
        let names = self.services().filter(|service| {
            // Policy Local would be right to drop when the last endpoint of a node goes.
            service["spec"]["externalTrafficPolicy"] != "Local" && service["spec"]["internalTrafficPolicy"] != "Local"
        });
        names
            .map(|service| text(&service["metadata"], "name"))
            .map(|name| (self.servers(name).len(), name))
            .filter(|(count, _)| *count > 1)
            .max()
            .map(|(_, name)| name)
    }

    /// The files that hold a service's slices, with some of the endpoints: others at each step, never none.
    pub(crate) fn with_endpoints(&self, service: &str, step: usize) -> Vec<(String, String)> {
        let affected = self
            .files
            .iter()
            .filter(|file| file.objects.iter().any(|object| belongs(object, service)));
        affected
            .map(|file| {
                let objects = file.objects.iter().map(|object| {
                    let mut object = object.clone();
                    if belongs(&object, service)
                        && let Some(endpoints) = object["endpoints"].as_array_mut()
                        && !endpoints.is_empty()
                    {
                        let count = endpoints.len();
                        endpoints.rotate_left(step % count);
                        endpoints.truncate(1 + step / count % count);
                    }
                    object
                });
                (file.name.clone(), manifest::file(objects))
            })
            .collect()
    }
}

fn belongs(object: &Value, service: &str) -> bool {
    object["kind"] == "EndpointSlice" && object["metadata"]["labels"]["kubernetes.io/service-name"] == service
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_never_takes_the_last_endpoint() {
        let examples = Examples::read(&default_folder().unwrap()).unwrap();
        let service = examples.busiest().unwrap();
        let mut seen = BTreeSet::new();
        for step in 0..50 {
            for (name, text) in examples.with_endpoints(service, step) {
                let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
                let slices = objects.iter().filter(|object| belongs(object, service));
                assert!(slices.clone().count() > 0 && slices.clone().all(|slice| !list(slice, "endpoints").is_empty()));
                seen.insert((name, text));
            }
        }
        assert!(seen.len() > 2, "endpoints change");
    }

    #[test]
    fn addresses_say_where_a_pod_is() {
        let places = ["10.1.2.3", "fd00:10:1:2::3", "10.2.0.1", "fd00::1"].map(|ip| place(ip.parse().unwrap()));
        assert_eq!(places, [Some((2, 3)), Some((2, 3)), None, None]);
        assert_eq!(pod_name((2, 3)), "b3");
    }
}
