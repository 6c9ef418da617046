//! Services that nobody made by hand: as many as wanted, and all different.

use anyhow::Result;
use clap::ValueEnum;
use serde_json::{Value, json};
use std::net::Ipv4Addr;

/// Port of every service.
pub(crate) const PORT: u16 = 80;
/// Port of every endpoint.
pub(crate) const TARGET_PORT: u16 = 8080;

/// A `ClusterIP` service and its endpoints.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Service {
    /// Unique among the services of a run.
    pub(crate) name: String,
    /// Its VIP.
    pub(crate) vip: Ipv4Addr,
    /// Whether port 80 is served over UDP too, or only over TCP.
    pub(crate) udp: bool,
    /// Addresses of its endpoints.
    pub(crate) endpoints: Vec<Ipv4Addr>,
}

/// Syntax of manifest files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// One List per file.
    Json,
    /// One document per object, block style.
    Yaml,
}

impl Format {
    /// End of a file's name, without the dot.
    pub(crate) fn extension(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Yaml => "yaml",
        }
    }
}

impl Service {
    /// Number `n` (below 65 000), with endpoints that no pod of ours has.
    pub(crate) fn numbered(n: usize, endpoints: usize) -> Self {
        // 10.96.0.0/12 as usual for services, from 10.96.1.0 on.
        let vip = u32::from(Ipv4Addr::new(10, 96, 1, 0)) + n as u32;
        let [.., high, low] = (n as u32).to_be_bytes();
        Self {
            name: format!("service-{n:05}"),
            vip: vip.into(),
            udp: false,
            endpoints: (0..endpoints)
                .map(|e| Ipv4Addr::new(10, 128 + e as u8, high, low))
                .collect(),
        }
    }

    /// `TCP`, or `TCP` and `UDP`.
    pub(crate) fn protocols(&self) -> &'static [&'static str] {
        if self.udp { &["TCP", "UDP"] } else { &["TCP"] }
    }

    /// The Service and its EndpointSlice as an API server shows them.
    pub(crate) fn objects(&self) -> [Value; 2] {
        let Self {
            name, vip, endpoints, ..
        } = self;
        let port = |protocol: &&str| {
            let port_name = format!("http-{}", protocol.to_lowercase());
            (
                json!({"name": port_name, "protocol": protocol, "port": PORT, "targetPort": TARGET_PORT}),
                json!({"name": port_name, "protocol": protocol, "port": TARGET_PORT}),
            )
        };
        let (ports, targets): (Vec<Value>, Vec<Value>) = self.protocols().iter().map(port).unzip();
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": name,
                "namespace": "default",
                "uid": uid(*vip, 0),
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"app.kubernetes.io/name": name},
            },
            "spec": {
                "type": "ClusterIP",
                "clusterIP": vip,
                "clusterIPs": [vip],
                "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack",
                "internalTrafficPolicy": "Cluster",
                "selector": {"app.kubernetes.io/name": name},
                "sessionAffinity": "None",
                "ports": ports,
            },
            "status": {"loadBalancer": {}},
        });
        let endpoints = endpoints.iter().zip(0u32..).map(|(ip, e)| {
            json!({
                "addresses": [ip],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": format!("node-{}", (u32::from(*vip) + e) % 500),
                "zone": format!("zone-{}", e % 3),
                "targetRef": {
                    "kind": "Pod",
                    "namespace": "default",
                    "name": format!("{name}-6f7d9c-{e:05}"),
                    "uid": uid(*vip, 1 + e),
                },
            })
        });
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{name}-x7k2p"),
                "namespace": "default",
                "uid": uid(*vip, u32::MAX),
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {
                    "kubernetes.io/service-name": name,
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                },
            },
            "addressType": "IPv4",
            "ports": targets,
            "endpoints": Vec::from_iter(endpoints),
        });
        [service, slice]
    }
}

fn uid(vip: Ipv4Addr, n: u32) -> String {
    format!("{:08x}-0000-4000-8000-0000{n:08x}", u32::from(vip))
}

/// A manifest file of these services.
pub(crate) fn file(services: &[Service], format: Format) -> Result<String> {
    let objects: Vec<Value> = services.iter().flat_map(Service::objects).collect();
    match format {
        Format::Json => {
            let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
            Ok(serde_json::to_string_pretty(&list)?)
        }
        Format::Yaml => {
            let mut text = String::new();
            for object in objects {
                text += "---\n";
                text += &serde_saphyr::to_string(&object)?;
            }
            Ok(text)
        }
    }
}

/// Manifest files of these services, `per_file` in each: names and texts.
pub(crate) fn files(services: &[Service], per_file: usize, format: Format) -> Result<Vec<(String, String)>> {
    let chunks = services.chunks(per_file.max(1)).enumerate();
    chunks
        .map(|(n, chunk)| Ok((format!("services-{n:03}.{}", format.extension()), file(chunk, format)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn both_formats_say_the_same() {
        let services = [
            Service::numbered(0, 2),
            Service {
                udp: true,
                ..Service::numbered(9_999, 1)
            },
        ];
        let json: Value = serde_json::from_str(&file(&services, Format::Json).unwrap()).unwrap();
        let yaml: Vec<Value> = serde_saphyr::from_multiple(&file(&services, Format::Yaml).unwrap()).unwrap();
        assert_eq!(json["items"], json!(yaml));
        assert_eq!(yaml[3]["ports"][1]["protocol"], "UDP");
    }

    #[test]
    fn no_address_twice() {
        let services: Vec<Service> = (0..10_000).map(|n| Service::numbered(n, 10)).collect();
        let addresses: BTreeSet<Ipv4Addr> = services
            .iter()
            .flat_map(|service| service.endpoints.iter().copied().chain([service.vip]))
            .collect();
        assert_eq!(addresses.len(), 10_000 * 11);
        assert_eq!(files(&services, 100, Format::Json).unwrap().len(), 100);
    }
}
