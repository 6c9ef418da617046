//! The endpoints behind the cluster DNS: the DNS of every node that is ready, the client's own first.

use super::cluster::{DNS_PORT, DNS_SERVICE};
use anyhow::Result;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::{core::v1::Node, discovery::v1::EndpointSlice};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt as _, reflector, watcher},
};
use serde_json::{Value, json};
use std::{net::IpAddr, pin::pin};
use tokio_util::sync::CancellationToken;

/// Keeps the EndpointSlices until `stop`.
///
/// # Errors
/// None today: what fails is logged and tried again with the next change of a node.
pub(crate) async fn run(client: Client, stop: CancellationToken) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let slices: Api<EndpointSlice> = Api::namespaced(client, "kube-system");
    let (store, writer) = reflector::store();
    let events = watcher(nodes, watcher::Config::default()).default_backoff();
    let mut events = pin!(reflector(writer, events).map_err(|error| {
        tracing::warn!(%error, "nodes cannot be watched for the cluster DNS; trying again");
    }));
    let mut written: Vec<(String, Value)> = Vec::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            event = events.next() => if event.is_none() { return Ok(()) },
        }
        let wanted = slices_for(store.state().iter().map(|it| &**it));
        if wanted == written {
            continue;
        }
        let mut done = Vec::new();
        for (name, slice) in wanted {
            let apply = PatchParams::apply("fairlead").force();
            match slices.patch(&name, &apply, &Patch::Apply(&slice)).await {
                Ok(_) => done.push((name, slice)),
                Err(error) => tracing::error!(%error, name, "endpoints of the cluster DNS cannot be written"),
            }
        }
        written = done;
    }
}

/// One slice per family: every node that is ready, in the order of names.
fn slices_for<'a>(nodes: impl Iterator<Item = &'a Node>) -> Vec<(String, Value)> {
    let mut nodes: Vec<&Node> = nodes.collect();
    nodes.sort_by_key(|it| it.name_any());
    let family = |six: bool| {
        let endpoints = nodes.iter().filter_map(|node| {
            let status = node.status.as_ref()?;
            let addresses = status.addresses.iter().flatten().filter(|it| it.type_ == "InternalIP");
            let mut addresses = addresses.filter_map(|it| it.address.parse::<IpAddr>().ok());
            let address = addresses.find(|it| it.is_ipv6() == six)?;
            let ready = status.conditions.iter().flatten();
            let ready = ready.clone().any(|it| it.type_ == "Ready" && it.status == "True");
            let zone = node.labels().get("topology.kubernetes.io/zone");
            let mut endpoint = json!({
                "addresses": [address], "nodeName": node.name_any(),
                "conditions": {"ready": ready, "serving": ready, "terminating": false},
                "hints": {"forNodes": [{"name": node.name_any()}]},
            });
            if let Some(zone) = zone {
                endpoint["zone"] = zone.as_str().into();
            }
            Some(endpoint)
        });
        endpoints.collect::<Vec<_>>()
    };
    let port = |name: &str, protocol: &str| json!({"name": name, "protocol": protocol, "port": DNS_PORT});
    [(false, "IPv4"), (true, "IPv6")]
        .into_iter()
        .filter_map(|(six, kind)| {
            let endpoints = family(six);
            if endpoints.is_empty() {
                return None;
            }
            let name = format!("{DNS_SERVICE}-{}", kind.to_lowercase());
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind,
                "metadata": {"name": name, "namespace": "kube-system", "labels": {
                    "kubernetes.io/service-name": DNS_SERVICE, "endpointslice.kubernetes.io/managed-by": "fairlead.dev",
                }},
                "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")], "endpoints": endpoints,
            });
            Some((name, slice))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, addresses: &[&str], ready: bool) -> Node {
        let addresses: Vec<Value> = addresses
            .iter()
            .map(|it| json!({"type": "InternalIP", "address": it}))
            .collect();
        let ready = if ready { "True" } else { "Unknown" };
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "status": {"addresses": addresses, "conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    #[test]
    fn every_node_is_an_endpoint_of_its_families() {
        let nodes = [
            node("b", &["10.0.0.2"], false),
            node("a", &["10.0.0.1", "fd00::1"], true),
        ];
        let slices = slices_for(nodes.iter());
        assert_eq!(
            slices.iter().map(|it| it.0.as_str()).collect::<Vec<_>>(),
            ["kube-dns-ipv4", "kube-dns-ipv6"]
        );
        let four = &slices[0].1["endpoints"];
        assert_eq!((&four[0]["nodeName"], &four[1]["nodeName"]), (&json!("a"), &json!("b")));
        assert_eq!(
            (&four[0]["conditions"]["ready"], &four[1]["conditions"]["ready"]),
            (&json!(true), &json!(false))
        );
        assert_eq!(slices[1].1["endpoints"].as_array().unwrap().len(), 1);
        assert!(slices_for([].into_iter()).is_empty());
    }
}
