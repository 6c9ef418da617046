//! What every cluster has from the first second: system namespaces, default roles, priority classes, the Service
//! `kubernetes`. Written through the router like everything else, and only what is missing or outdated.

use crate::{
    authz::{defaults, rbac},
    core::ApiServer,
    object,
    objects::Objects as _,
    open::{Pki, Start},
};
use anyhow::{Result, bail};
use http::Method;
use ipnet::IpNet;
use serde_json::{Value, json};
use std::{net::IpAddr, sync::Arc};

const JSON: &str = "application/json";
const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// Rounds until every role is as it should be: a binding whose role changed is deleted, then made again.
const ROUNDS: usize = 3;

/// Writes what is missing.
///
/// # Errors
/// What this server refused itself, which is a fault of ours.
pub(crate) async fn run(server: &Arc<ApiServer>, start: &Start, pki: &Pki) -> Result<()> {
    let namespaces = NAMESPACES
        .iter()
        .filter(|name| server.get("core/namespaces", "", name).is_none())
        .map(|name| {
            let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
            create(server, "/api/v1/namespaces", namespace)
        });
    futures::future::try_join_all(namespaces).await?;
    let (roles, rest) = tokio::join!(roles(server), others(server, start, pki));
    roles?;
    rest
}

async fn create(server: &Arc<ApiServer>, path: &str, object: Value) -> Result<()> {
    let (code, answer) = server.itself().request(Method::POST, path, JSON, Some(&object)).await;
    match code {
        201 | 409 => Ok(()),
        _ => bail!(
            "{path} {}: {code} {}",
            object::meta(&object, "name"),
            answer["message"].as_str().unwrap_or_default()
        ),
    }
}

async fn roles(server: &Arc<ApiServer>) -> Result<()> {
    for _ in 0..ROUNDS {
        let writes = defaults::reconcile(&**server);
        if writes.is_empty() {
            break;
        }
        let writes = writes.into_iter().map(|write| async move {
            let path = format!(
                "/apis/{}/v1/{}",
                rbac::GROUP,
                write.prefix.rsplit('/').next().unwrap_or_default()
            );
            let one = format!("{path}/{}", write.name);
            let (code, answer) = match &write.object {
                None => server.itself().request(Method::DELETE, &one, JSON, None).await,
                Some(object) if server.get(write.prefix, "", &write.name).is_none() => {
                    server.itself().request(Method::POST, &path, JSON, Some(object)).await
                }
                Some(object) => server.itself().request(Method::PUT, &one, JSON, Some(object)).await,
            };
            match code {
                200 | 201 | 404 | 409 => Ok(()),
                _ => bail!("{one}: {code} {}", answer["message"].as_str().unwrap_or_default()),
            }
        });
        futures::future::try_join_all(writes).await?;
    }
    Ok(())
}

async fn others(server: &Arc<ApiServer>, start: &Start, pki: &Pki) -> Result<()> {
    let class = |name: &str, value: i64, description: &str| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": { "name": name },
            "value": value, "description": description,
        })
    };
    let classes = [
        class(
            "system-cluster-critical",
            2_000_000_000,
            "For pods that the cluster needs, on whichever node.",
        ),
        class("system-node-critical", 2_000_001_000, "For pods that every node needs."),
    ];
    let classes = classes.into_iter().filter(|it| {
        server
            .get("scheduling.k8s.io/priorityclasses", "", object::meta(it, "name"))
            .is_none()
    });
    let classes = classes.map(|class| create(server, "/apis/scheduling.k8s.io/v1/priorityclasses", class));
    let authentication = async {
        if server
            .get("core/configmaps", "kube-system", "extension-apiserver-authentication")
            .is_some()
        {
            return Ok(());
        }
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": "extension-apiserver-authentication", "namespace": "kube-system" },
            "data": { "client-ca-file": pki.authority.pem() },
        });
        create(server, "/api/v1/namespaces/kube-system/configmaps", map).await
    };
    let (classes, authentication, cidr, service) = tokio::join!(
        futures::future::try_join_all(classes),
        authentication,
        service_cidr(server),
        kubernetes(server, start)
    );
    classes?;
    authentication?;
    cidr?;
    service
}

async fn service_cidr(server: &Arc<ApiServer>) -> Result<()> {
    if server.get("networking.k8s.io/servicecidrs", "", "kubernetes").is_some() {
        return Ok(());
    }
    let cidrs: Vec<String> = server.settings.service_cidrs.iter().map(IpNet::to_string).collect();
    let object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": { "name": "kubernetes" }, "spec": { "cidrs": cidrs },
    });
    create(server, "/apis/networking.k8s.io/v1/servicecidrs", object).await
}

/// The Service by which pods reach this server, and its endpoints: the first non-loopback address of the host in each
/// family that the Service has.
async fn kubernetes(server: &Arc<ApiServer>, start: &Start) -> Result<()> {
    if server.get("core/services", "default", "kubernetes").is_none() {
        let first = server.services.first_address().map(|it| it.to_string());
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": { "component": "apiserver", "provider": "kubernetes" },
            },
            "spec": {
                "type": "ClusterIP", "clusterIP": first, "sessionAffinity": "None",
                "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": start.port }],
            },
        });
        create(server, "/api/v1/namespaces/default/services", service).await?;
    }
    let six = server.services.first_address().is_some_and(|it| it.is_ipv6());
    let usable = |it: &&IpAddr| it.is_ipv6() == six && !it.is_loopback() && !it.is_unspecified();
    let Some(address) = start.addresses.iter().find(usable) else {
        tracing::warn!(
            "this host has no address for the endpoints of the Service kubernetes: pods cannot reach the API by it"
        );
        return Ok(());
    };
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes", "namespace": "default", "labels": { "kubernetes.io/service-name": "kubernetes" },
        },
        "addressType": if six { "IPv6" } else { "IPv4" },
        "endpoints": [{ "addresses": [address.to_string()], "conditions": { "ready": true } }],
        "ports": [{ "name": "https", "port": start.port, "protocol": "TCP" }],
    });
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": "kubernetes", "namespace": "default", "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" },
        },
        "subsets": [{
            "addresses": [{ "ip": address.to_string() }],
            "ports": [{ "name": "https", "port": start.port, "protocol": "TCP" }],
        }],
    });
    put(
        server,
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
        "discovery.k8s.io/endpointslices",
        slice,
    )
    .await?;
    put(
        server,
        "/api/v1/namespaces/default/endpoints",
        "core/endpoints",
        endpoints,
    )
    .await
}

async fn put(server: &Arc<ApiServer>, path: &str, prefix: &str, object: Value) -> Result<()> {
    let name = object::meta(&object, "name").to_owned();
    if server.get(prefix, "default", &name).is_none() {
        return create(server, path, object).await;
    }
    let one = format!("{path}/{name}");
    let (code, answer) = server.itself().request(Method::PUT, &one, JSON, Some(&object)).await;
    match code {
        200 => Ok(()),
        _ => bail!("{one}: {code} {}", answer["message"].as_str().unwrap_or_default()),
    }
}
