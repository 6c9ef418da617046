//! Services, endpoints, ingresses.

use super::{Function, Row, items, joined, joined_or, shortened, text, text_or, texts};
use serde_json::Value;
use std::collections::BTreeSet;

pub(super) fn function(name: &str) -> Option<Function> {
    Some(match name {
        "service-cluster-ip" => |row| {
            let spec = &row.object["spec"];
            text_or(&spec["clusterIPs"][0], text_or(&spec["clusterIP"], "<none>")).into()
        },
        "service-external-ip" => service_external_ip,
        "service-ports" => service_ports,
        "endpoints" => endpoints,
        "slice-ports" => slice_ports,
        "slice-endpoints" => |row| {
            let addresses = items(&row.object["endpoints"]).flat_map(|it| texts(&it["addresses"]));
            short_or_unset(&addresses.map(str::to_owned).collect::<Vec<_>>())
        },
        "ingress-class" => |row| text_or(&row.object["spec"]["ingressClassName"], "<none>").into(),
        "ingress-hosts" => |row| {
            let hosts = items(&row.object["spec"]["rules"]).map(|it| text(&it["host"]));
            let hosts: Vec<String> = hosts.filter(|it| !it.is_empty()).map(str::to_owned).collect();
            if hosts.is_empty() {
                "*".into()
            } else {
                shortened(&hosts, 3, ",").into()
            }
        },
        "ingress-address" => |row| balancers(row.object).into(),
        "ingress-ports" => |row| {
            let tls = items(&row.object["spec"]["tls"]).next().is_some();
            if tls { "80, 443" } else { "80" }.into()
        },
        "ingress-class-parameters" => ingress_class_parameters,
        "ip-parent" => ip_parent,
        _ => return None,
    })
}

/// Addresses or names of load balancers, sorted.
fn balancers(object: &Value) -> String {
    let all = items(&object["status"]["loadBalancer"]["ingress"]);
    let all = all.map(|it| text_or(&it["ip"], text(&it["hostname"])));
    joined(all.filter(|it| !it.is_empty()).collect::<BTreeSet<_>>(), ",")
}

fn service_external_ip(row: &Row<'_>) -> Value {
    let spec = &row.object["spec"];
    match text(&spec["type"]) {
        "ExternalName" => text(&spec["externalName"]).into(),
        "LoadBalancer" => {
            let balancers = balancers(row.object);
            let given = Some(balancers.as_str()).filter(|it| !it.is_empty());
            joined_or(given.into_iter().chain(texts(&spec["externalIPs"])), ",", "<pending>").into()
        }
        _ => joined_or(texts(&spec["externalIPs"]), ",", "<none>").into(),
    }
}

fn service_ports(row: &Row<'_>) -> Value {
    let port = |it: &Value| {
        let (port, protocol) = (it["port"].as_i64().unwrap_or(0), text_or(&it["protocol"], "TCP"));
        match it["nodePort"].as_i64() {
            Some(node_port) if node_port > 0 => format!("{port}:{node_port}/{protocol}"),
            _ => format!("{port}/{protocol}"),
        }
    };
    joined_or(items(&row.object["spec"]["ports"]).map(port), ",", "<none>").into()
}

fn endpoints(row: &Row<'_>) -> Value {
    let subsets = items(&row.object["subsets"]);
    let mut all = Vec::new();
    for subset in subsets {
        let addresses = items(&subset["addresses"]).map(|it| text(&it["ip"]));
        if items(&subset["ports"]).next().is_none() {
            all.extend(addresses.map(str::to_owned));
            continue;
        }
        for port in items(&subset["ports"]) {
            let port = port["port"].as_i64().unwrap_or(0);
            all.extend(addresses.clone().map(|it| {
                if it.contains(':') {
                    format!("[{it}]:{port}")
                } else {
                    format!("{it}:{port}")
                }
            }));
        }
    }
    if all.is_empty() {
        "<none>".into()
    } else {
        shortened(&all, 3, ",").into()
    }
}

fn short_or_unset(all: &[String]) -> Value {
    let short = shortened(all, 3, ",");
    if short.is_empty() {
        "<unset>".into()
    } else {
        short.into()
    }
}

fn slice_ports(row: &Row<'_>) -> Value {
    let port = |it: &Value| {
        it["port"]
            .as_i64()
            .map_or_else(|| text_or(&it["name"], "*").to_owned(), |it| it.to_string())
    };
    short_or_unset(&items(&row.object["ports"]).map(port).collect::<Vec<_>>())
}

fn ingress_class_parameters(row: &Row<'_>) -> Value {
    let parameters = &row.object["spec"]["parameters"];
    if !parameters.is_object() {
        return "<none>".into();
    }
    let group = text(&parameters["apiGroup"]);
    let dot = if group.is_empty() { "" } else { "." };
    format!(
        "{}{dot}{group}/{}",
        text(&parameters["kind"]),
        text(&parameters["name"])
    )
    .into()
}

fn ip_parent(row: &Row<'_>) -> Value {
    let parent = &row.object["spec"]["parentRef"];
    if !parent.is_object() {
        return "<none>".into();
    }
    let group = text(&parent["group"]);
    let dot = if group.is_empty() { "" } else { "." };
    let namespace = text(&parent["namespace"]);
    let slash = if namespace.is_empty() { "" } else { "/" };
    format!(
        "{}{dot}{group}/{namespace}{slash}{}",
        text(&parent["resource"]),
        text(&parent["name"])
    )
    .into()
}
