//! Which resources the API server has, by asking it: a group that does not answer costs only itself.

use crate::frame::Fault;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource;
use kube::{Client, api::ApiResource};

/// One resource in its group's preferred version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Group, version, kind and plural.
    pub(crate) resource: ApiResource,
    /// Its objects are in namespaces.
    pub(crate) namespaced: bool,
    verbs: Vec<String>,
}

impl Found {
    /// Whether it has all of these verbs.
    pub(crate) fn can(&self, verbs: &[&str]) -> bool {
        verbs.iter().all(|verb| self.verbs.iter().any(|it| it == verb))
    }
}

/// What there is, and which groups could not be asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Discovered {
    pub(crate) resources: Vec<Found>,
    /// As `metrics.k8s.io/v1beta1: ...`
    pub(crate) faults: Vec<String>,
}

/// Asks for everything.
///
/// # Errors
/// The list of groups itself could not be had.
pub(crate) async fn discover(client: &Client) -> Result<Discovered, Fault> {
    let groups = client.list_api_groups().await;
    let groups = groups.map_err(|error| Fault::api("list the API groups", error))?;
    let mut versions = vec![String::from("v1")];
    for group in groups.groups {
        let preferred = group.preferred_version.or_else(|| group.versions.into_iter().next());
        versions.extend(preferred.map(|it| it.group_version));
    }
    let mut discovered = Discovered::default();
    let lists = versions.iter().map(|version| async move {
        match version.as_str() {
            "v1" => client.list_core_api_resources("v1").await,
            version => client.list_api_group_resources(version).await,
        }
    });
    let lists = futures::future::join_all(lists).await;
    for (version, list) in versions.iter().zip(lists) {
        match list {
            Ok(list) => discovered
                .resources
                .extend(list.resources.into_iter().filter_map(|it| found(version, it))),
            Err(error) => discovered.faults.push(format!("{version}: {error}")),
        }
    }
    Ok(discovered)
}

fn found(api_version: &str, resource: APIResource) -> Option<Found> {
    // Subresources are not objects.
    if resource.name.contains('/') {
        return None;
    }
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    Some(Found {
        resource: ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: api_version.to_owned(),
            kind: resource.kind,
            plural: resource.name,
        },
        namespaced: resource.namespaced,
        verbs: resource.verbs,
    })
}
