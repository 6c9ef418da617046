//! Where a forwarded request goes.

use crate::{
    core::ApiServer,
    handlers::Call,
    objects::Objects as _,
    request_info::{RequestInfo, parameters},
    status::{Result, Status},
};
use form_urlencoded::Serializer;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use rand::seq::IndexedRandom as _;
use serde_json::Value;
use std::{net::IpAddr, sync::Arc};

/// Port of a kubelet that does not say.
const KUBELET_PORT: u64 = 10250;

/// One address and what to ask for there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// `host:port`.
    pub(super) authority: String,
    pub(super) path_and_query: String,
    pub(super) tls: Tls,
}

/// Whether TLS is spoken, and as whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tls {
    None,
    AsNobody,
    AsThisServer,
}

impl Tls {
    /// To pods and Services.
    fn asked(tls: bool) -> Self {
        if tls { Self::AsNobody } else { Self::None }
    }
}

/// Refuses addresses that lead to this host or its link, where a proxy would lend its user what is meant for the host.
fn check_outside(address: &str) -> Result<()> {
    let inside = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(it)) => it.is_loopback() || it.is_unspecified() || it.is_link_local() || it.is_multicast(),
        Ok(IpAddr::V6(it)) => {
            let mapped = it.to_ipv4_mapped().is_some();
            it.is_loopback() || it.is_unspecified() || it.is_unicast_link_local() || it.is_multicast() || mapped
        }
        Err(_) => true,
    };
    if inside {
        return Err(Status::bad_request(format!("address not allowed: {address}")));
    }
    Ok(())
}

/// Finds it; `None` where nothing is to be had yet: the log of a pod without a node.
pub(super) fn find(call: &Call) -> Result<Option<Target>> {
    let target = match (&*call.resource.plural, call.info.subresource.as_str()) {
        ("pods", "proxy") => pod_proxy(call),
        ("services", "proxy") => service_proxy(call),
        ("nodes", "proxy") => {
            let (name, _) = split(&call.info.name);
            let path = rest(&call.info);
            kubelet(&call.server, &name, with_query(path, &call.query))
        }
        ("pods", subresource) => return kubelet_of_pod(call, subresource),
        _ => Err(Status::no_such_path()),
    };
    target.map(Some)
}

/// What a path may not hold as it is. Source: RFC 3986 §3.3.
const ESCAPED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'/')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// The path behind the subresource, escaped again: an escaped `?` or `/` of the client's stays one.
fn rest(info: &RequestInfo) -> String {
    let steps = info
        .rest
        .iter()
        .map(|step| utf8_percent_encode(step, ESCAPED).to_string());
    let mut path = format!("/{}", steps.collect::<Vec<_>>().join("/"));
    // Servers tell a directory from a file by it.
    if info.path.ends_with('/') && !path.ends_with('/') {
        path.push('/');
    }
    path
}

fn with_query(path: String, query: &str) -> String {
    if query.is_empty() {
        path
    } else {
        format!("{path}?{query}")
    }
}

/// `[scheme:]name[:port]`, as the API writes what a proxy request is for.
fn split(text: &str) -> (String, Option<(bool, String)>) {
    let parts: Vec<&str> = text.split(':').collect();
    match parts.as_slice() {
        [scheme, name, port] => ((*name).to_owned(), Some((*scheme == "https", (*port).to_owned()))),
        [name, port] => ((*name).to_owned(), Some((false, (*port).to_owned()))),
        _ => (text.to_owned(), None),
    }
}

fn authority(host: &str, port: u64) -> String {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => format!("[{address}]:{port}"),
        _ => format!("{host}:{port}"),
    }
}

fn stored(call: &Call, name: &str) -> Result<Arc<Value>> {
    let storage = call.resource.storage.as_ref().ok_or_else(Status::no_such_path)?;
    let found = call.server.get(&storage.prefix, &call.info.namespace, name);
    found.ok_or_else(|| Status::not_found(&call.resource, name))
}

fn pod_proxy(call: &Call) -> Result<Target> {
    let (name, port) = split(&call.info.name);
    let pod = stored(call, &name)?;
    let address = pod["status"]["podIP"].as_str().unwrap_or_default();
    if address.is_empty() {
        return Err(Status::unavailable(format!("pod {name} has no address yet")));
    }
    check_outside(address)?;
    let first = || {
        pod["spec"]["containers"]
            .as_array()
            .into_iter()
            .flatten()
            .find_map(|it| it["ports"][0]["containerPort"].as_u64())
    };
    let (tls, port) = match port {
        Some((tls, port)) => (
            tls,
            port.parse()
                .map_err(|_| Status::bad_request(format!("invalid port {port:?}")))?,
        ),
        None => (false, first().unwrap_or(80)),
    };
    Ok(Target {
        authority: authority(address, port),
        path_and_query: with_query(rest(&call.info), &call.query),
        tls: Tls::asked(tls),
    })
}

/// One of the ready endpoints, at random.
fn service_proxy(call: &Call) -> Result<Target> {
    let (name, port) = split(&call.info.name);
    let service = stored(call, &name)?;
    let ports = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let (tls, wanted) = port.unwrap_or((false, String::new()));
    let chosen = ports.iter().find(|it| {
        wanted.is_empty() && ports.len() == 1
            || it["name"] == *wanted
            || it["port"].as_u64().is_some_and(|it| it.to_string() == wanted)
    });
    let chosen =
        chosen.ok_or_else(|| Status::unavailable(format!("no service port {wanted:?} found for service {name:?}")))?;
    let port_name = chosen["name"].as_str().unwrap_or_default();
    let slices = call
        .server
        .list("discovery.k8s.io/endpointslices", Some(&call.info.namespace));
    let slices = slices
        .iter()
        .filter(|it| it["metadata"]["labels"]["kubernetes.io/service-name"] == *name);
    let mut endpoints = Vec::new();
    for slice in slices {
        let ports = slice["ports"].as_array().into_iter().flatten();
        let port = ports
            .filter(|it| it["name"].as_str().unwrap_or_default() == port_name)
            .find_map(|it| it["port"].as_u64());
        let ready = slice["endpoints"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|it| it["conditions"]["ready"] != false);
        for address in ready.filter_map(|it| it["addresses"][0].as_str()) {
            endpoints.extend(port.map(|port| (address.to_owned(), port)));
        }
    }
    let chosen = endpoints.choose(&mut rand::rng());
    let (address, port) =
        chosen.ok_or_else(|| Status::unavailable(format!("no endpoints available for service {name:?}")))?;
    check_outside(address)?;
    Ok(Target {
        authority: authority(address, *port),
        path_and_query: with_query(rest(&call.info), &call.query),
        tls: Tls::asked(tls),
    })
}

/// The kubelet of a node.
fn kubelet(server: &ApiServer, node: &str, path_and_query: String) -> Result<Target> {
    let object = server.get("core/nodes", "", node);
    let object = object.ok_or_else(|| Status::unavailable(format!("node {node:?} is not known")))?;
    let addresses = object["status"]["addresses"].as_array().cloned().unwrap_or_default();
    let address = ["InternalIP", "ExternalIP", "Hostname"].iter().find_map(|kind| {
        let one = addresses.iter().find(|it| it["type"] == **kind)?;
        one["address"].as_str()
    });
    let address = address.ok_or_else(|| Status::unavailable(format!("node {node:?} has no address")))?;
    let port = object["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        .as_u64()
        .unwrap_or(KUBELET_PORT);
    Ok(Target {
        authority: authority(address, port),
        path_and_query,
        tls: Tls::AsThisServer,
    })
}

fn kubelet_of_pod(call: &Call, subresource: &str) -> Result<Option<Target>> {
    let pod = stored(call, &call.info.name)?;
    let (namespace, name) = (&call.info.namespace, &call.info.name);
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    let given = |wanted: &str| {
        parameters(&call.query)
            .find(|(it, _)| it == wanted)
            .map(|(_, value)| value.into_owned())
    };
    let mut query = Serializer::new(String::new());
    let path = match subresource {
        "portforward" => {
            for (key, value) in parameters(&call.query).filter(|(key, _)| key == "ports") {
                query.append_pair(&key, &value);
            }
            format!("/portForward/{namespace}/{name}")
        }
        "log" => {
            let container = container(&pod, given("container"), name)?;
            const KNOWN: [&str; 8] = [
                "follow",
                "previous",
                "sinceSeconds",
                "sinceTime",
                "timestamps",
                "tailLines",
                "limitBytes",
                "stream",
            ];
            for (key, value) in parameters(&call.query).filter(|(key, _)| KNOWN.contains(&&**key)) {
                query.append_pair(&key, &value);
            }
            format!("/containerLogs/{namespace}/{name}/{container}")
        }
        _ => {
            let container = container(&pod, given("container"), name)?;
            // The kubelet has its own names for these. Source: k8s.io/kubelet's remotecommand parameters.
            const NAMES: [(&str, &str); 4] = [
                ("stdin", "input"),
                ("stdout", "output"),
                ("stderr", "error"),
                ("tty", "tty"),
            ];
            for (key, value) in parameters(&call.query) {
                match NAMES.iter().find(|(it, _)| *it == key) {
                    // As Go reads truth: Python's client says "True".
                    Some((_, kubelet)) if matches!(&*value, "1" | "t" | "T" | "true" | "TRUE" | "True") => {
                        query.append_pair(kubelet, "1");
                    }
                    None if key == "command" => drop(query.append_pair("command", &value)),
                    _ => {}
                }
            }
            format!("/{subresource}/{namespace}/{name}/{container}")
        }
    };
    if node.is_empty() && subresource == "log" {
        return Ok(None);
    }
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
    }
    kubelet(&call.server, node, with_query(path, &query.finish())).map(Some)
}

/// The container that is meant: the named one, or the only one.
fn container(pod: &Value, asked: Option<String>, name: &str) -> Result<String> {
    let all = |list: &str| -> Vec<String> {
        let containers = pod["spec"][list].as_array().into_iter().flatten();
        containers
            .filter_map(|it| it["name"].as_str().map(str::to_owned))
            .collect()
    };
    let (main, init, ephemeral) = (all("containers"), all("initContainers"), all("ephemeralContainers"));
    match asked.filter(|it| !it.is_empty()) {
        Some(asked) if main.contains(&asked) || init.contains(&asked) || ephemeral.contains(&asked) => Ok(asked),
        Some(asked) => Err(Status::bad_request(format!(
            "container {asked} is not valid for pod {name}"
        ))),
        None => match (main.as_slice(), init.is_empty()) {
            ([one], _) => Ok(one.clone()),
            (several, no_init) => {
                let mut text = format!(
                    "a container name must be specified for pod {name}, choose one of: [{}]",
                    several.join(" ")
                );
                if !no_init {
                    text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
                }
                Err(Status::bad_request(text))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_of_proxies() {
        assert_eq!(split("web"), ("web".to_owned(), None));
        assert_eq!(split("web:80"), ("web".to_owned(), Some((false, "80".to_owned()))));
        assert_eq!(split("https:web:"), ("web".to_owned(), Some((true, String::new()))));
    }

    #[test]
    fn containers() {
        let pod = |names: &[&str]| json!({ "spec": { "containers": names.iter().map(|it| json!({ "name": it })).collect::<Vec<_>>() } });
        assert_eq!(container(&pod(&["a"]), None, "p").unwrap(), "a");
        assert_eq!(container(&pod(&["a", "b"]), Some("b".to_owned()), "p").unwrap(), "b");
        let several = container(&pod(&["a", "b"]), None, "p").unwrap_err();
        assert_eq!(
            several.message,
            "a container name must be specified for pod p, choose one of: [a b]"
        );
        let unknown = container(&pod(&["a"]), Some("z".to_owned()), "p").unwrap_err();
        assert_eq!(unknown.message, "container z is not valid for pod p");
    }

    #[test]
    fn what_a_proxy_asks_for_stays_as_it_was() {
        for (path, expected) in [
            ("a/b", "/a/b"),
            ("a%20b/", "/a%20b/"),
            ("a%3Fb", "/a%3Fb"),
            ("a%2Fb%25", "/a%2Fb%25"),
            ("%0d%0ax", "/%0D%0Ax"),
            ("", "/"),
        ] {
            let path = format!("/api/v1/namespaces/d/pods/p/proxy/{path}");
            let info = RequestInfo::parse(&http::Method::GET, &path, "");
            assert_eq!(rest(&info), expected, "{path}");
        }
    }

    #[test]
    fn proxies_lead_outside() {
        for address in ["10.1.0.5", "192.0.2.1", "fd00::5"] {
            assert!(check_outside(address).is_ok(), "{address}");
        }
        for address in [
            "127.0.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "224.0.0.1",
            "::1",
            "fe80::1",
            "::ffff:127.0.0.1",
            "x",
        ] {
            assert!(check_outside(address).is_err(), "{address}");
        }
    }

    #[test]
    fn six_is_bracketed() {
        assert_eq!(authority("::1", 80), "[::1]:80");
        assert_eq!(authority("10.0.0.1", 80), "10.0.0.1:80");
    }
}
