//! [`RequestInfo`]: what a path and a method ask for. Rules: the API's path conventions (`/api/v1`, `/apis/G/V`).

use crate::selectors;
use http::Method;
use std::borrow::Cow;

/// What a request asks for, as authorization sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether it is about API objects at all.
    pub is_resource: bool,
    /// The path as sent.
    pub path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for other paths the method in
    /// lower case.
    pub verb: String,
    /// Empty for the core group.
    pub group: String,
    /// As `v1`.
    pub version: String,
    /// Empty for all namespaces, and for what belongs to the cluster.
    pub namespace: String,
    /// As `pods`.
    pub resource: String,
    /// As `log`.
    pub subresource: String,
    /// Object name; also from `fieldSelector=metadata.name=…` of a list or watch.
    pub name: String,
    /// What follows the subresource: a path for `proxy`.
    pub rest: Vec<String>,
}

/// Subresources of namespaces: what else follows a namespace's name is a resource.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

impl RequestInfo {
    /// Reads method, path and query (as sent, percent-encoded).
    pub fn parse(method: &Method, path: &str, query: &str) -> Self {
        let mut info = Self {
            path: path.to_owned(),
            verb: method.as_str().to_ascii_lowercase(),
            ..Self::default()
        };
        let parts: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(decode).collect();
        let mut parts = match parts.split_first() {
            Some((prefix, rest)) if prefix == "api" && rest.len() >= 2 => rest,
            Some((prefix, rest)) if prefix == "apis" && rest.len() >= 3 => {
                info.group = rest[0].clone();
                &rest[1..]
            }
            _ => return info,
        };
        info.is_resource = true;
        info.version = parts[0].clone();
        parts = &parts[1..];
        let via_path = parts[0] == "watch" && parts.len() > 1;
        info.verb = match *method {
            _ if via_path => "watch",
            Method::POST => "create",
            Method::GET | Method::HEAD => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "",
        }
        .to_owned();
        if via_path {
            parts = &parts[1..];
        }
        if parts[0] == "namespaces" && parts.len() > 1 {
            info.namespace = parts[1].clone();
            if parts.len() > 2 && !NAMESPACE_SUBRESOURCES.contains(&parts[2].as_str()) {
                parts = &parts[2..];
            }
        }
        info.resource = parts[0].clone();
        if let Some(name) = parts.get(1) {
            info.name.clone_from(name);
        }
        if let Some(subresource) = parts.get(2) {
            info.subresource.clone_from(subresource);
        }
        info.rest = parts.get(3..).unwrap_or_default().to_vec();
        if info.name.is_empty() {
            match info.verb.as_str() {
                "get" => {
                    let watch = parameter(query, "watch")
                        .is_some_and(|value| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0"));
                    info.verb = if watch { "watch" } else { "list" }.to_owned();
                    info.name = name_of_selector(query).unwrap_or_default();
                }
                "delete" => info.verb = "deletecollection".to_owned(),
                _ => {}
            }
        }
        info
    }
}

/// The name in `fieldSelector=metadata.name=NAME`, when the selector demands exactly one name.
fn name_of_selector(query: &str) -> Option<String> {
    let selector = parameter(query, "fieldSelector")?;
    let terms = selectors::field_terms(&selector).ok()?;
    let name = terms
        .into_iter()
        .find(|it| it.field == "metadata.name" && it.equal)?
        .value;
    (!name.is_empty() && !name.contains(['/', '%']) && name != "." && name != "..").then_some(name)
}

/// A parameter of a query, decoded. Of several the first counts, as upstream: whoever reads a query must read the same.
pub fn parameter<'a>(query: &'a str, wanted: &str) -> Option<Cow<'a, str>> {
    parameters(query)
        .find(|(name, _)| name == wanted)
        .map(|(_, value)| value)
}

/// Parameters of a query, decoded, in order.
pub fn parameters(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    form_urlencoded::parse(query.as_bytes())
}

/// Percent-decoding (RFC 3986 §2.1). What is no valid escape stays as it is.
fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text)
        .decode_utf8_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &Method, url: &str) -> RequestInfo {
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        RequestInfo::parse(method, path, query)
    }

    #[test]
    fn paths() {
        // method, url -> verb group/version ns resource/name/subresource
        let table = [
            (Method::GET, "/api/v1/pods", "list /v1 '' pods//"),
            (Method::GET, "/api/v1/namespaces", "list /v1 '' namespaces//"),
            (Method::GET, "/api/v1/namespaces/a", "get /v1 'a' namespaces/a/"),
            (
                Method::PUT,
                "/api/v1/namespaces/a/finalize",
                "update /v1 'a' namespaces/a/finalize",
            ),
            (Method::GET, "/api/v1/namespaces/a/pods?watch=1", "watch /v1 'a' pods//"),
            (
                Method::GET,
                "/api/v1/namespaces/a/pods?watch=false",
                "list /v1 'a' pods//",
            ),
            (Method::GET, "/api/v1/watch/namespaces/a/pods", "watch /v1 'a' pods//"),
            (
                Method::GET,
                "/api/v1/pods?fieldSelector=metadata.name%3Dweb",
                "list /v1 '' pods/web/",
            ),
            (
                Method::POST,
                "/apis/apps/v1/namespaces/a/deployments",
                "create apps/v1 'a' deployments//",
            ),
            (
                Method::PATCH,
                "/apis/apps/v1/namespaces/a/deployments/w/scale",
                "patch apps/v1 'a' deployments/w/scale",
            ),
            (
                Method::DELETE,
                "/api/v1/namespaces/a/pods",
                "deletecollection /v1 'a' pods//",
            ),
            (Method::DELETE, "/api/v1/nodes/n", "delete /v1 '' nodes/n/"),
            (
                Method::GET,
                "/api/v1/namespaces/a/pods/web%2D0/log",
                "get /v1 'a' pods/web-0/log",
            ),
        ];
        for (method, url, expected) in table {
            let it = parse(&method, url);
            let seen = format!(
                "{} {}/{} '{}' {}/{}/{}",
                it.verb, it.group, it.version, it.namespace, it.resource, it.name, it.subresource
            );
            assert!(it.is_resource, "{url}");
            assert_eq!(seen, expected, "{url}");
        }
        for url in [
            "/",
            "/api",
            "/api/v1",
            "/apis",
            "/apis/apps",
            "/apis/apps/v1",
            "/healthz",
            "/openapi/v3/api/v1",
        ] {
            assert!(!parse(&Method::GET, url).is_resource, "{url}");
        }
        assert_eq!(
            parse(&Method::GET, "/api/v1/namespaces/a/services/s/proxy/x/y").rest,
            ["x", "y"]
        );
    }

    #[test]
    fn escapes() {
        assert_eq!(decode("a%2Fb%"), "a/b%");
        assert_eq!(decode("%zz%e2%82%ac"), "%zz€");
        let all: Vec<_> = parameters("a=1&b=x%3Dy+z&c").collect();
        assert_eq!(all[1], ("b".into(), "x=y z".into()));
        assert_eq!(all[2], ("c".into(), "".into()));
    }
}
