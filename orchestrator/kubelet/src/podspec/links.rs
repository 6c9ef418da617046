//! Environment variables that name the Services of a pod's namespace: `{NAME}_SERVICE_HOST` and their like.

use k8s_openapi::api::core::v1::Service;
use std::{collections::BTreeMap, net::IpAddr};

/// The Services whose variables a pod of `namespace` gets: with `links` (`enableServiceLinks`) those of its namespace, and
/// always `kubernetes` of the default namespace, unless one of its own has that name.
pub(super) fn variables<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    namespace: &str,
    links: bool,
) -> Vec<(String, String)> {
    let mut chosen = BTreeMap::new();
    for service in services {
        let own = service.metadata.namespace.as_deref() == Some(namespace);
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let master = name == "kubernetes" && service.metadata.namespace.as_deref() == Some("default");
        let address = service.spec.as_ref().and_then(|it| it.cluster_ip.as_deref());
        let Some(address) = address.filter(|it| !it.is_empty() && *it != "None") else {
            continue;
        };
        if own && links {
            chosen.insert(name, (service, address));
        } else if master {
            chosen.entry(name).or_insert((service, address));
        }
    }
    chosen
        .into_iter()
        .flat_map(|(name, (service, address))| of_service(name, service, address))
        .collect()
}

fn of_service(name: &str, service: &Service, address: &str) -> Vec<(String, String)> {
    let prefix = upper(name);
    let ports: Vec<_> = service.spec.iter().flat_map(|it| it.ports.iter().flatten()).collect();
    let mut out = vec![(format!("{prefix}_SERVICE_HOST"), address.to_owned())];
    // The first port is the service's own.
    out.extend(
        ports
            .first()
            .map(|it| (format!("{prefix}_SERVICE_PORT"), it.port.to_string())),
    );
    for port in &ports {
        if let Some(name) = port.name.as_deref().filter(|it| !it.is_empty()) {
            out.push((format!("{prefix}_SERVICE_PORT_{}", upper(name)), port.port.to_string()));
        }
    }
    // What Docker's links were: programs of those days read them.
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let scheme = protocol.to_lowercase();
        let host = match address.parse() {
            Ok(IpAddr::V6(it)) => format!("[{it}]"),
            _ => address.to_owned(),
        };
        let url = format!("{scheme}://{host}:{}", port.port);
        if index == 0 {
            out.push((format!("{prefix}_PORT"), url.clone()));
        }
        let one = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        out.push((format!("{one}_PROTO"), scheme));
        out.push((format!("{one}_PORT"), port.port.to_string()));
        out.push((format!("{one}_ADDR"), address.to_owned()));
        out.push((one, url));
    }
    out
}

fn upper(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[allow(clippy::needless_pass_by_value)] // literals read better by value
    fn service(namespace: &str, name: &str, address: &str, ports: serde_json::Value) -> Service {
        let metadata = json!({"namespace": namespace, "name": name});
        serde_json::from_value(json!({"metadata": metadata, "spec": {"clusterIP": address, "ports": ports}})).unwrap()
    }

    fn text(all: Vec<(String, String)>) -> Vec<String> {
        let mut all: Vec<_> = all.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        all.sort();
        all
    }

    #[test]
    fn a_service_has_its_variables() {
        let ports = json!([{"name": "http-web", "port": 80}, {"port": 53, "protocol": "UDP", "name": "dns"}]);
        let one = service("shop", "my-db", "10.96.0.7", ports);
        assert_eq!(
            text(variables([&one], "shop", true)),
            [
                "MY_DB_PORT=tcp://10.96.0.7:80",
                "MY_DB_PORT_53_UDP=udp://10.96.0.7:53",
                "MY_DB_PORT_53_UDP_ADDR=10.96.0.7",
                "MY_DB_PORT_53_UDP_PORT=53",
                "MY_DB_PORT_53_UDP_PROTO=udp",
                "MY_DB_PORT_80_TCP=tcp://10.96.0.7:80",
                "MY_DB_PORT_80_TCP_ADDR=10.96.0.7",
                "MY_DB_PORT_80_TCP_PORT=80",
                "MY_DB_PORT_80_TCP_PROTO=tcp",
                "MY_DB_SERVICE_HOST=10.96.0.7",
                "MY_DB_SERVICE_PORT=80",
                "MY_DB_SERVICE_PORT_DNS=53",
                "MY_DB_SERVICE_PORT_HTTP_WEB=80",
            ]
        );
        let six = service("shop", "six", "fd00::7", json!([{"port": 80}]));
        assert!(text(variables([&six], "shop", true)).contains(&"SIX_PORT=tcp://[fd00::7]:80".to_owned()));
    }

    #[test]
    fn only_services_of_the_namespace_and_the_api_server_are_named() {
        let ports = json!([{"port": 443}]);
        let all = [
            service("default", "kubernetes", "10.96.0.1", ports.clone()),
            service("shop", "db", "10.96.0.7", ports.clone()),
            service("shop", "headless", "None", ports.clone()),
            service("shop", "external", "", ports.clone()),
            service("other", "cache", "10.96.0.8", ports.clone()),
            service("default", "plain", "10.96.0.9", ports.clone()),
        ];
        let hosts = |namespace: &str, links: bool| {
            let all = variables(&all, namespace, links);
            all.into_iter()
                .filter(|it| it.0.ends_with("_SERVICE_HOST"))
                .map(|it| it.0)
                .collect::<Vec<_>>()
        };
        assert_eq!(hosts("shop", true), ["DB_SERVICE_HOST", "KUBERNETES_SERVICE_HOST"]);
        assert_eq!(hosts("shop", false), ["KUBERNETES_SERVICE_HOST"]);
        assert_eq!(
            hosts("default", true),
            ["KUBERNETES_SERVICE_HOST", "PLAIN_SERVICE_HOST"]
        );
        let own = service("shop", "kubernetes", "10.96.0.3", ports);
        for order in [[&own, &all[0]], [&all[0], &own]] {
            let both = variables(order, "shop", true);
            assert!(both.contains(&("KUBERNETES_SERVICE_HOST".to_owned(), "10.96.0.3".to_owned())));
        }
    }
}
