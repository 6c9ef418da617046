//! Services, ingresses, network policies, endpoint slices. Source: field documentation of `core/v1.ServiceSpec`,
//! `networking/v1` and `discovery/v1`.

use super::{Causes, Path, is_empty, items, number, pods, same, table::Call, text};
use crate::names;
use serde_json::{Value, json};
use std::{collections::HashSet, net::IpAddr};

pub(super) fn call(name: &str) -> Option<Call> {
    Some(match name {
        "service" => service,
        "service-port" => |port, path, causes| pods::port(&port["targetPort"], &path.child("targetPort"), causes),
        "ingress" => |spec, path, causes| {
            if is_empty(&spec["rules"]) && spec["defaultBackend"].is_null() {
                causes.invalid(path, spec, "either `defaultBackend` or `rules` must be specified");
            }
        },
        "ingress-rule" => ingress_rule,
        "ingress-path" => ingress_path,
        "ingress-backend" => {
            |backend, path, causes| match (backend["service"].is_null(), backend["resource"].is_null()) {
                (true, true) => causes.required(path, "resource or service backend is required"),
                (false, false) => {
                    causes.invalid(path, &"".into(), "cannot set both resource and service backends");
                }
                _ => {}
            }
        }
        "ingress-service" => ingress_service,
        "policy-port" => policy_port,
        "policy-peer" => policy_peer,
        "endpoint-slice" => endpoint_slice,
        _ => return None,
    })
}

/// `address/bits`, the address being of either family.
pub(super) fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else {
        return false;
    };
    let most = match address.parse() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    bits.bytes().all(|it| it.is_ascii_digit()) && bits.parse::<u32>().is_ok_and(|it| it <= most)
}

fn service(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let ty = text(&spec["type"]);
    let ports = items(&spec["ports"]);
    let path_of_ports = path.child("ports");
    let headless = text(&spec["clusterIP"]) == "None";
    if ports.is_empty() && !headless && ty != "ExternalName" {
        causes.required(&path_of_ports, "");
    }
    match ty {
        "LoadBalancer" | "NodePort" if headless => {
            let detail = format!("may not be set to 'None' for {ty} services");
            causes.invalid(&path.child("clusterIPs").index(0), &"None".into(), &detail);
        }
        "ExternalName" => external_name(spec, path, causes),
        _ => {}
    }
    addresses(spec, path, causes);
    service_ports(ty, ports, &path_of_ports, causes);
    let external =
        matches!(ty, "NodePort" | "LoadBalancer") || (ty == "ClusterIP" && !items(&spec["externalIPs"]).is_empty());
    if !external && !is_empty(&spec["externalTrafficPolicy"]) {
        let detail = "may only be set for externally-accessible services";
        causes.invalid(
            &path.child("externalTrafficPolicy"),
            &spec["externalTrafficPolicy"],
            detail,
        );
    }
    if external && is_empty(&spec["externalTrafficPolicy"]) && ty != "ClusterIP" {
        let path = path.child("externalTrafficPolicy");
        causes.required(&path, "");
    }
    let timeout = &spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"];
    if timeout.as_i64().is_some_and(|it| !(1..=86400).contains(&it)) {
        let path = path.child("sessionAffinityConfig");
        let path = path.child("clientIP");
        let detail = "must be greater than 0 and less than 86400";
        causes.invalid(&path.child("timeoutSeconds"), timeout, detail);
    }
    if ty != "LoadBalancer" {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if !spec[field].is_null() {
                causes.forbidden(&path.child(field), "may only be used when `type` is 'LoadBalancer'");
            }
        }
    }
}

fn external_name(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        if !is_empty(&spec[field]) {
            causes.forbidden(&path.child(field), "may not be set for ExternalName services");
        }
    }
    let name = &spec["externalName"];
    let path = path.child("externalName");
    if is_empty(name) {
        causes.required(&path, "");
    } else {
        let bare = text(name).strip_suffix('.').unwrap_or(text(name));
        causes.all_invalid(&path, name, names::dns1123_subdomain(bare));
    }
}

fn addresses(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let (one, all) = (&spec["clusterIP"], items(&spec["clusterIPs"]));
    let path_of_all = path.child("clusterIPs");
    if let Some(first) = all.first() {
        if text(first) != text(one) {
            causes.invalid(&path_of_all, &spec["clusterIPs"], "first value must match `clusterIP`");
        }
        if all.len() > 2 {
            let detail = "may only hold up to 2 values";
            causes.invalid(&path_of_all, &spec["clusterIPs"], detail);
        }
    }
    for (index, address) in all.iter().enumerate() {
        let good = text(address) == "None" || text(address).parse::<IpAddr>().is_ok();
        if !good {
            let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            causes.invalid(&path_of_all.index(index), address, detail);
        }
    }
    let bad = all.is_empty() && !matches!(text(one), "" | "None") && text(one).parse::<IpAddr>().is_err();
    if bad {
        let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        causes.invalid(&path_of_all.index(0), one, detail);
    }
    for (index, address) in items(&spec["externalIPs"]).iter().enumerate() {
        let path = path.child("externalIPs");
        let path = path.index(index);
        match text(address).parse::<IpAddr>() {
            Err(_) => {
                let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                causes.invalid(&path, address, detail);
            }
            Ok(it) if it.is_unspecified() => causes.invalid(&path, address, &format!("may not be unspecified ({it})")),
            Ok(it) if it.is_loopback() => {
                causes.invalid(
                    &path,
                    address,
                    "may not be in the loopback range (127.0.0.0/8, ::1/128)",
                );
            }
            Ok(it) if it.is_multicast() => {
                causes.invalid(
                    &path,
                    address,
                    "may not be in the multicast range (224.0.0.0/24, ff02::/10)",
                );
            }
            Ok(_) => {}
        }
    }
}

fn service_ports(ty: &str, ports: &[Value], path: &Path<'_>, causes: &mut Causes) {
    let (mut seen, mut node_ports) = (HashSet::new(), HashSet::new());
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        if ports.len() > 1 && is_empty(&port["name"]) {
            causes.required(&path.child("name"), "");
        }
        let protocol = text(&port["protocol"]);
        if !seen.insert((protocol, number(&port["port"]))) {
            causes.duplicate(&path, &json!({"protocol": protocol, "port": port["port"]}));
        }
        let node_port = number(&port["nodePort"]);
        if node_port == 0 {
            continue;
        }
        if !matches!(ty, "NodePort" | "LoadBalancer") {
            let detail = format!("may not be used when `type` is '{ty}'");
            causes.forbidden(&path.child("nodePort"), &detail);
        } else if !node_ports.insert((protocol, node_port)) {
            causes.duplicate(&path.child("nodePort"), &port["nodePort"]);
        }
    }
}

/// A service keeps its address, unless it loses it by becoming an alias.
pub(super) fn service_update(old: &Value, new: &Value, path: &Path<'_>, causes: &mut Causes) {
    let (was, is) = (&old["spec"], &new["spec"]);
    let alias = |spec: &Value| text(&spec["type"]) == "ExternalName";
    if alias(was) || alias(is) {
        return;
    }
    let path = path.child("spec");
    let first = &was["clusterIP"];
    if !is_empty(first) && text(first) != text(&is["clusterIP"]) {
        let now = if is_empty(&is["clusterIPs"]) {
            json!([is["clusterIP"]])
        } else {
            is["clusterIPs"].clone()
        };
        causes.invalid(&path.child("clusterIPs").index(0), &now, "may not change once set");
    }
    let families = items(&was["ipFamilies"]);
    if let (Some(was), Some(now)) = (families.first(), items(&is["ipFamilies"]).first())
        && was != now
    {
        causes.invalid(
            &path.child("ipFamilies").index(0),
            &is["ipFamilies"],
            "may not change once set",
        );
    }
    let both = text(&was["type"]) == "LoadBalancer" && text(&is["type"]) == "LoadBalancer";
    if both && !same(&was["loadBalancerClass"], &is["loadBalancerClass"]) {
        let detail = "may not change once set";
        causes.invalid(&path.child("loadBalancerClass"), &is["loadBalancerClass"], detail);
    }
}

fn ingress_rule(rule: &Value, path: &Path<'_>, causes: &mut Causes) {
    let host = &rule["host"];
    let path = path.child("host");
    match text(host) {
        "" => {}
        it if it.parse::<IpAddr>().is_ok() => {
            causes.invalid(&path, host, "must be a DNS name, not an IP address");
        }
        it if it.contains('*') => causes.all_invalid(&path, host, names::wildcard_subdomain(it)),
        it => causes.all_invalid(&path, host, names::dns1123_subdomain(it)),
    }
}

fn ingress_path(value: &Value, path: &Path<'_>, causes: &mut Causes) {
    let ty = &value["pathType"];
    let path_of_path = path.child("path");
    match text(ty) {
        "" => causes.required(&path.child("pathType"), "pathType must be specified"),
        "Exact" | "Prefix" => {
            let it = text(&value["path"]);
            if !it.starts_with('/') {
                causes.invalid(&path_of_path, &value["path"], "must be an absolute path");
            }
            for bad in ["//", "/./", "/../", "%2f", "%2F"] {
                if it.contains(bad) {
                    causes.invalid(&path_of_path, &value["path"], &format!("must not contain '{bad}'"));
                }
            }
            for bad in ["/..", "/."] {
                if it.ends_with(bad) {
                    causes.invalid(&path_of_path, &value["path"], &format!("cannot end with '{bad}'"));
                }
            }
        }
        "ImplementationSpecific" => {
            if !is_empty(&value["path"]) && !text(&value["path"]).starts_with('/') {
                causes.invalid(&path_of_path, &value["path"], "must be an absolute path");
            }
        }
        _ => causes.not_supported(
            &path.child("pathType"),
            ty,
            &["Exact", "ImplementationSpecific", "Prefix"],
        ),
    }
}

fn ingress_service(service: &Value, path: &Path<'_>, causes: &mut Causes) {
    let name = &service["name"];
    if !is_empty(name) {
        causes.all_invalid(&path.child("name"), name, names::dns1035_label(text(name)));
    }
    let (by_name, by_number) = (&service["port"]["name"], &service["port"]["number"]);
    let path_of_port = path.child("port");
    match (is_empty(by_name), number(by_number) == 0) {
        (true, true) => causes.required(path, "port name or number is required"),
        (false, false) => causes.invalid(path, &"".into(), "cannot set both port name & port number"),
        (false, true) => causes.all_invalid(&path_of_port.child("name"), by_name, names::port_name(text(by_name))),
        (true, false) => pods::port(by_number, &path_of_port.child("number"), causes),
    }
}

fn policy_port(port: &Value, path: &Path<'_>, causes: &mut Causes) {
    pods::port(&port["port"], &path.child("port"), causes);
    let end = &port["endPort"];
    if end.is_null() {
        return;
    }
    let path = path.child("endPort");
    match &port["port"] {
        Value::Number(start) if number(end) < start.as_i64().unwrap_or(0) => {
            causes.invalid(&path, end, "must be greater than or equal to `port`");
        }
        Value::Number(_) => pods::port(end, &path, causes),
        Value::Null => causes.invalid(&path, end, "may not be specified when `port` is not specified"),
        _ => causes.invalid(&path, end, "may not be specified when `port` is non-numeric"),
    }
}

fn policy_peer(peer: &Value, path: &Path<'_>, causes: &mut Causes) {
    let selectors = ["podSelector", "namespaceSelector"]
        .iter()
        .filter(|it| !peer[**it].is_null())
        .count();
    match (selectors, peer["ipBlock"].is_null()) {
        (0, true) => causes.required(path, "must specify a peer"),
        (1.., false) => causes.forbidden(path, "may not specify both ipBlock and another peer"),
        _ => {}
    }
}

fn endpoint_slice(slice: &Value, path: &Path<'_>, causes: &mut Causes) {
    const MOST: usize = 1000;
    let endpoints = items(&slice["endpoints"]);
    let path_of_all = path.child("endpoints");
    if endpoints.len() > MOST {
        causes.too_many(&path_of_all, endpoints.len(), MOST);
    }
    let ty = text(&slice["addressType"]);
    for (index, endpoint) in endpoints.iter().take(MOST).enumerate() {
        let path = path_of_all.index(index);
        let path = path.child("addresses");
        let addresses = items(&endpoint["addresses"]);
        if addresses.len() > 100 {
            causes.too_many(&path, addresses.len(), 100);
        }
        for (index, address) in addresses.iter().take(100).enumerate() {
            let path = path.index(index);
            match (ty, text(address).parse()) {
                ("IPv4", Ok(IpAddr::V4(_))) | ("IPv6", Ok(IpAddr::V6(_))) => {}
                ("IPv4", _) => causes.invalid(&path, address, "must be a valid IPv4 address"),
                ("IPv6", _) => causes.invalid(&path, address, "must be a valid IPv6 address"),
                _ => causes.all_invalid(&path, address, names::dns1123_subdomain(text(address))),
            }
        }
    }
}
