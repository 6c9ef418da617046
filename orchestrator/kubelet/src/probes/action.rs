//! From a probe's definition to what is to be done.

use crate::podspec::expand;
use k8s_openapi::{
    api::core::v1::{Container, GRPCAction, HTTPGetAction, Probe, TCPSocketAction},
    apimachinery::pkg::util::intstr::IntOrString,
};
use std::net::IpAddr;

/// A port number that can be connected to.
pub type Port = u16;

/// One way of asking a container, with names resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Run this in the container.
    Exec {
        /// Program and arguments; no shell.
        command: Vec<String>,
    },
    /// Connect there.
    Tcp {
        /// A name or an address.
        host: String,
        /// Number.
        port: Port,
    },
    /// Ask there.
    Http(HttpGet),
    /// Call `grpc.health.v1.Health/Check` there.
    Grpc {
        /// The pod's address.
        host: String,
        /// Number.
        port: Port,
        /// What is asked for; empty: the server as a whole.
        service: String,
    },
}

/// A GET request. Source: `HTTPGetAction`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpGet {
    /// TLS, with whatever certificate.
    pub tls: bool,
    /// A name or an address.
    pub host: String,
    /// Number.
    pub port: Port,
    /// With query.
    pub path: String,
    /// In the order given; a name may repeat.
    pub headers: Vec<(String, String)>,
}

impl Action {
    /// What this probe of this container does.
    ///
    /// # Errors
    /// What is missing or wrong, in words for the pod's owner.
    pub fn of_probe(probe: &Probe, container: &Container, pod_ip: Option<IpAddr>) -> Result<Self, String> {
        if let Some(exec) = &probe.exec {
            let command = exec.command.iter().flatten();
            let command = command
                .map(|it| expand(it, |name| plain_value(container, name)).text)
                .collect();
            return Ok(Self::Exec { command });
        }
        if let Some(http) = &probe.http_get {
            return Self::http(http, container, pod_ip);
        }
        if let Some(tcp) = &probe.tcp_socket {
            return Self::tcp(tcp, container, pod_ip);
        }
        if let Some(grpc) = &probe.grpc {
            return Self::grpc(grpc, pod_ip);
        }
        Err(format!("missing probe handler for container {}", container.name))
    }

    /// A GET request.
    ///
    /// # Errors
    /// No address, or no such port.
    pub fn http(action: &HTTPGetAction, container: &Container, pod_ip: Option<IpAddr>) -> Result<Self, String> {
        let headers = action.http_headers.iter().flatten();
        let mut path = action.path.clone().unwrap_or_default();
        if !path.starts_with('/') {
            path.insert(0, '/');
        }
        Ok(Self::Http(HttpGet {
            tls: action
                .scheme
                .as_deref()
                .is_some_and(|it| it.eq_ignore_ascii_case("https")),
            host: host(action.host.as_deref(), pod_ip)?,
            port: port(&action.port, container)?,
            path,
            headers: headers.map(|it| (it.name.clone(), it.value.clone())).collect(),
        }))
    }

    /// A connection.
    ///
    /// # Errors
    /// No address, or no such port.
    pub fn tcp(action: &TCPSocketAction, container: &Container, pod_ip: Option<IpAddr>) -> Result<Self, String> {
        Ok(Self::Tcp {
            host: host(action.host.as_deref(), pod_ip)?,
            port: port(&action.port, container)?,
        })
    }

    fn grpc(action: &GRPCAction, pod_ip: Option<IpAddr>) -> Result<Self, String> {
        Ok(Self::Grpc {
            host: host(None, pod_ip)?,
            port: number(action.port)?,
            service: action.service.clone().unwrap_or_default(),
        })
    }
}

/// A variable that the container's definition gives a value: those from elsewhere are not known here. Source: upstream expands
/// probe commands by them alone.
fn plain_value<'a>(container: &'a Container, name: &str) -> Option<&'a str> {
    let mut named = container.env.iter().flatten().rev().filter(|it| it.name == name);
    named.next()?.value.as_deref()
}

fn host(given: Option<&str>, pod_ip: Option<IpAddr>) -> Result<String, String> {
    match (given.filter(|it| !it.is_empty()), pod_ip) {
        (Some(host), _) => Ok(host.to_owned()),
        (None, Some(address)) => Ok(address.to_string()),
        (None, None) => Err("the pod has no address yet".to_owned()),
    }
}

/// A number, or the name of one of the container's ports.
fn port(port: &IntOrString, container: &Container) -> Result<Port, String> {
    match port {
        IntOrString::Int(it) => number(*it),
        IntOrString::String(name) => {
            let mut named = container.ports.iter().flatten();
            match named.find(|it| it.name.as_deref() == Some(name)) {
                Some(found) => number(found.container_port),
                // Upstream takes a number in quotes, too.
                None => name
                    .parse()
                    .ok()
                    .filter(|it| *it != 0)
                    .ok_or_else(|| format!("container {} has no port named {name:?}", container.name)),
            }
        }
    }
}

fn number(port: i32) -> Result<Port, String> {
    let valid = Port::try_from(port).ok().filter(|it| *it != 0);
    valid.ok_or_else(|| format!("invalid port number: {port}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn action(probe: serde_json::Value, pod_ip: Option<&str>) -> Result<Action, String> {
        let container = json!({ "name": "c", "ports": [{ "name": "web", "containerPort": 8080 }], "env": [{ "name": "A", "value": "1" }] });
        let container = serde_json::from_value(container).unwrap();
        let probe = serde_json::from_value(probe).unwrap();
        Action::of_probe(&probe, &container, pod_ip.map(|it| it.parse().unwrap()))
    }

    #[test]
    fn names_are_resolved() {
        let http = json!({ "httpGet": { "port": "web", "path": "ok?x", "scheme": "HTTPS", "httpHeaders": [{ "name": "A", "value": "b" }] } });
        let expected = Action::Http(HttpGet {
            tls: true,
            host: "10.1.0.5".to_owned(),
            port: 8080,
            path: "/ok?x".to_owned(),
            headers: vec![("A".to_owned(), "b".to_owned())],
        });
        assert_eq!(action(http, Some("10.1.0.5")), Ok(expected));
        let command = vec!["test 1 $(B)".to_owned()];
        let exec = json!({ "exec": { "command": ["test $(A) $(B)"] } });
        assert_eq!(action(exec, None), Ok(Action::Exec { command }));
        let (host, port) = ("h".to_owned(), 99);
        let tcp = json!({ "tcpSocket": { "port": 99, "host": "h" } });
        assert_eq!(action(tcp, None), Ok(Action::Tcp { host, port }));
        let (host, service) = ("fd00::5".to_owned(), "s".to_owned());
        let grpc = json!({ "grpc": { "port": 99, "service": "s" } });
        assert_eq!(action(grpc, Some("fd00::5")), Ok(Action::Grpc { host, port, service }));
    }

    #[test]
    fn what_cannot_be_asked_says_why() {
        for (probe, expected) in [
            (
                json!({ "tcpSocket": { "port": "none" } }),
                "container c has no port named \"none\"",
            ),
            (json!({ "tcpSocket": { "port": 70_000 } }), "invalid port number: 70000"),
            (json!({ "grpc": { "port": 0 } }), "invalid port number: 0"),
            (json!({}), "missing probe handler for container c"),
        ] {
            assert_eq!(action(probe, Some("10.1.0.5")), Err(expected.to_owned()));
        }
        let none = action(json!({ "httpGet": { "port": 80 } }), None);
        assert_eq!(none, Err("the pod has no address yet".to_owned()));
    }
}
