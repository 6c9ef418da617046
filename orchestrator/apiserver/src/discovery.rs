//! Everything that is not about objects: discovery (aggregated and not), OpenAPI, version, health, metrics, OIDC.

use crate::{
    authn::oidc,
    core::ApiServer,
    health,
    http::{Body, body},
    request_info::{RequestInfo, parameters},
    status::{Result, Status},
};
use fairlead_schema::{Registry, Resource, Scope, openapi::Document, resource::Version};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// The API version that this server speaks.
pub const KUBERNETES_VERSION: &str = "v1.36.4";

/// Answers.
pub(crate) fn answer<B>(server: &ApiServer, request: &Request<B>, info: &RequestInfo) -> Result<Response<Body>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let message = "only GET and HEAD are answered here";
        return Err(Status::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message));
    }
    let query = request.uri().query().unwrap_or_default();
    let path = info.path.trim_end_matches('/');
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let registry = server.registry.load();
    let aggregated = wants_aggregated(request.headers());
    match parts.as_slice() {
        [] => Ok(body::json(StatusCode::OK, &json!({ "paths": paths(&registry) }))),
        ["api"] if aggregated => Ok(tagged(request.headers(), AGGREGATED, &groups(&registry, true))),
        ["apis"] if aggregated => Ok(tagged(request.headers(), AGGREGATED, &groups(&registry, false))),
        ["api"] => Ok(json_answer(&json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": host(request) }],
        }))),
        ["apis"] => {
            let groups: Vec<_> = registry
                .groups
                .keys()
                .filter(|it| !it.is_empty())
                .map(|it| group(&registry, it))
                .collect();
            Ok(json_answer(
                &json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups }),
            ))
        }
        ["apis", name] if registry.groups.contains_key(*name) => {
            let mut group = group(&registry, name);
            group["kind"] = json!("APIGroup");
            group["apiVersion"] = json!("v1");
            Ok(json_answer(&group))
        }
        ["api", version] => resource_list(&registry, "", version),
        ["apis", group, version] => resource_list(&registry, group, version),
        ["version"] => Ok(json_answer(&version())),
        ["healthz" | "livez" | "readyz", ..] => health::answer(server, path, query),
        ["metrics"] => {
            let media_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            Ok(body::with_type(
                StatusCode::OK,
                media_type,
                body::full(server.metrics.text()),
            ))
        }
        [".well-known", "openid-configuration"] => Ok(json_answer(&oidc::configuration(
            &server.authenticator.keys,
            &server.settings.issuer,
        ))),
        ["openid", "v1", "jwks"] => {
            let keys = body::full(oidc::jwks(&server.authenticator.keys).to_string());
            Ok(body::with_type(StatusCode::OK, oidc::JWKS_TYPE, keys))
        }
        ["openapi", "v3"] => Ok(document(
            request,
            &server.openapi.index(&registry, &server.crds.schemas()),
        )),
        ["openapi", "v3", path @ ..] => {
            let (group, version) = match path {
                ["api", version] => ("", *version),
                ["apis", group, version] => (*group, *version),
                _ => return Err(Status::no_such_path()),
            };
            let found = server
                .openapi
                .group_version(&registry, group, version, &server.crds.schemas());
            let found = found.ok_or_else(Status::no_such_path)?;
            let mut response = document(request, &found);
            if parameters(query).any(|(name, value)| name == "hash" && value == found.hash) {
                // What a hash names never changes.
                let forever = HeaderValue::from_static("public, max-age=31536000, immutable");
                response.headers_mut().insert(header::CACHE_CONTROL, forever);
            }
            Ok(response)
        }
        ["openapi", "v2"] => {
            let schemas = server.crds.schemas();
            if !wants_gnostic(request.headers()) {
                return Ok(document(request, &server.openapi.v2(&registry, &schemas)));
            }
            let found = server.openapi.v2_protobuf(&registry, &schemas);
            let mut response = with_etag(
                request.headers(),
                GNOSTIC_ANSWER,
                found.body.clone().into(),
                &found.hash,
            );
            response
                .headers_mut()
                .insert(header::VARY, HeaderValue::from_static("Accept"));
            Ok(response)
        }
        _ => Err(Status::no_such_path()),
    }
}

fn document<B>(request: &Request<B>, document: &Document) -> Response<Body> {
    with_etag(
        request.headers(),
        "application/json",
        document.body.clone().into(),
        &document.hash,
    )
}

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// How clients ask for version 2 as protobuf, and how it is called in the answer, where `@` must not stand.
const GNOSTIC: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
const GNOSTIC_ANSWER: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Whether the first form that the client names and this server has is protobuf.
fn wants_gnostic(headers: &HeaderMap) -> bool {
    let offers = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut types = offers
        .flat_map(|value| value.split(','))
        .map(|offer| offer.split(';').next().unwrap_or_default().trim());
    types
        .find(|it| [GNOSTIC, GNOSTIC_ANSWER, "application/json", "application/*", "*/*"].contains(it))
        .is_some_and(|it| it == GNOSTIC || it == GNOSTIC_ANSWER)
}

fn json_answer(value: &Value) -> Response<Body> {
    body::json(StatusCode::OK, value)
}

fn wants_aggregated(headers: &HeaderMap) -> bool {
    let offers = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let first = offers.flat_map(|value| value.split(',')).find(|offer| {
        let media_type = offer.split(';').next().unwrap_or_default().trim();
        matches!(media_type, "application/json" | "*/*" | "application/*")
    });
    first.is_some_and(|offer| {
        let has = |wanted: &str| offer.split(';').any(|part| part.trim() == wanted);
        has("as=APIGroupDiscoveryList") && has("g=apidiscovery.k8s.io") && has("v=v2")
    })
}

fn tagged(headers: &HeaderMap, media_type: &'static str, value: &Value) -> Response<Body> {
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    let hash: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    let mut response = with_etag(headers, media_type, bytes.into(), &hash);
    response
        .headers_mut()
        .insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

/// 304 where the client has it already.
fn with_etag(headers: &HeaderMap, media_type: &'static str, bytes: bytes::Bytes, hash: &str) -> Response<Body> {
    let tag = format!("\"{hash}\"");
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let mut response = if known.is_some_and(|known| known.split(',').any(|it| it.trim() == tag)) {
        let mut response = Response::new(crate::core::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        body::with_type(StatusCode::OK, media_type, body::full(bytes))
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

fn host<B>(request: &Request<B>) -> String {
    let header = request.headers().get(header::HOST).and_then(|it| it.to_str().ok());
    let authority = request.uri().authority().map(http::uri::Authority::as_str);
    header.or(authority).unwrap_or_default().to_owned()
}

fn version() -> Value {
    let mut numbers = KUBERNETES_VERSION.trim_start_matches('v').split('.');
    json!({
        "major": numbers.next(), "minor": numbers.next(),
        "gitVersion": format!("{KUBERNETES_VERSION}+fairlead.{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none", "compiler": "rustc", "platform": format!("{}/{}", std::env::consts::OS, arch()),
        "emulationMajor": "1", "emulationMinor": "36", "minCompatibilityMajor": "1", "minCompatibilityMinor": "35",
    })
}

fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn paths(registry: &Registry) -> Vec<String> {
    let mut paths: Vec<String> = [
        "/.well-known/openid-configuration",
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ]
    .map(str::to_owned)
    .into();
    for (name, group) in registry.groups.iter().filter(|(name, _)| !name.is_empty()) {
        paths.push(format!("/apis/{name}"));
        paths.extend(
            group
                .versions
                .iter()
                .map(|version| format!("/apis/{name}/{}", version.name)),
        );
    }
    paths.sort();
    paths
}

fn group(registry: &Registry, name: &str) -> Value {
    let versions = registry
        .groups
        .get(name)
        .map(|group| &group.versions[..])
        .unwrap_or_default();
    let versions: Vec<_> = versions
        .iter()
        .map(|version| json!({ "groupVersion": format!("{name}/{}", version.name), "version": &*version.name }))
        .collect();
    json!({ "name": name, "preferredVersion": versions.first(), "versions": versions })
}

fn scope(resource: &Resource) -> &'static str {
    match resource.scope {
        Scope::Namespaced => "Namespaced",
        Scope::Cluster => "Cluster",
    }
}

/// `apidiscovery.k8s.io/v2 APIGroupDiscoveryList`.
fn groups(registry: &Registry, core: bool) -> Value {
    let groups = registry.groups.iter().filter(|(name, _)| name.is_empty() == core);
    let items: Vec<_> = groups
        .map(|(name, group)| {
            let versions: Vec<_> = group.versions.iter().map(|version| discovered(name, version)).collect();
            let mut item = json!({ "metadata": { "creationTimestamp": null }, "versions": versions });
            if !core {
                item["metadata"]["name"] = json!(**name);
            }
            item
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
    })
}

fn discovered(group: &str, version: &Version) -> Value {
    let resources: Vec<_> = version
        .resources
        .values()
        .map(|resource| {
            let kind =
                |group: &str, version: &str, kind: &str| json!({ "group": group, "version": version, "kind": kind });
            let mut row = json!({
                "resource": &*resource.plural,
                "responseKind": kind(group, &version.name, &resource.kind),
                "scope": scope(resource),
                "singularResource": &*resource.singular,
                "verbs": resource.verbs.iter().map(|it| &**it).collect::<Vec<_>>(),
            });
            if !resource.short_names.is_empty() {
                row["shortNames"] = resource.short_names.iter().map(|it| json!(**it)).collect();
            }
            if !resource.categories.is_empty() {
                row["categories"] = resource.categories.iter().map(|it| json!(**it)).collect();
            }
            if !resource.subresources.is_empty() {
                let subresources = resource.subresources.iter().map(|it| {
                    json!({
                        "subresource": &*it.name,
                        "responseKind": kind(&it.group, &it.version, &it.kind),
                        "verbs": it.verbs.iter().map(|it| &**it).collect::<Vec<_>>(),
                    })
                });
                row["subresources"] = subresources.collect();
            }
            row
        })
        .collect();
    json!({ "version": &*version.name, "freshness": "Current", "resources": resources })
}

/// `v1 APIResourceList`.
fn resource_list(registry: &Registry, group: &str, version: &str) -> Result<Response<Body>> {
    let versions = registry
        .groups
        .get(group)
        .map(|group| &group.versions[..])
        .unwrap_or_default();
    let version = versions
        .iter()
        .find(|it| &*it.name == version)
        .ok_or_else(Status::no_such_path)?;
    let mut rows = Vec::new();
    for resource in version.resources.values() {
        let namespaced = resource.scope == Scope::Namespaced;
        let mut row = json!({
            "name": &*resource.plural, "singularName": &*resource.singular, "namespaced": namespaced,
            "kind": &*resource.kind, "verbs": resource.verbs.iter().map(|it| &**it).collect::<Vec<_>>(),
        });
        if !resource.short_names.is_empty() {
            row["shortNames"] = resource.short_names.iter().map(|it| json!(**it)).collect();
        }
        if !resource.categories.is_empty() {
            row["categories"] = resource.categories.iter().map(|it| json!(**it)).collect();
        }
        rows.push(row);
        for it in &resource.subresources {
            let mut row = json!({
                "name": format!("{}/{}", resource.plural, it.name), "singularName": "", "namespaced": namespaced,
                "kind": &*it.kind, "verbs": it.verbs.iter().map(|it| &**it).collect::<Vec<_>>(),
            });
            if (&it.group, &it.version) != (&resource.group, &resource.version) {
                row["group"] = json!(*it.group);
                row["version"] = json!(*it.version);
            }
            rows.push(row);
        }
    }
    let group_version = if group.is_empty() {
        version.name.to_string()
    } else {
        format!("{group}/{}", version.name)
    };
    Ok(json_answer(&json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": rows,
    })))
}
