//! `kubernetes` of a Corefile.

use super::{Bad, parse::Directive, values};
use crate::{
    name::Zone,
    zone::{Pods, store::Options},
};
use std::path::PathBuf;

/// What `kubernetes` says.
#[derive(Clone, Debug)]
pub struct KubernetesConfig {
    /// The cluster's domain and reverse zones.
    pub zones: Vec<Zone>,
    /// Which objects are read and which names they have.
    pub options: Options,
    /// Seconds that answers may be kept.
    pub ttl: u32,
    /// Zones in which names that do not exist go to the next plugin.
    pub fallthrough: Vec<Zone>,
    /// `kubeconfig FILE [CONTEXT]`, for who makes the client.
    pub kubeconfig: Option<(PathBuf, Option<String>)>,
}

pub(super) fn compile(
    directive: &Directive,
    block_zones: &[Zone],
    notes: &mut Vec<String>,
) -> Result<KubernetesConfig, Bad> {
    let place = &directive.place;
    let zones = values::all_zones(&directive.arguments).map_err(|why| directive.bad(place, &why))?;
    let mut config = KubernetesConfig {
        zones: if zones.is_empty() { block_zones.to_vec() } else { zones },
        options: Options::default(),
        ttl: 5,
        fallthrough: Vec::new(),
        kubeconfig: None,
    };
    if config.zones.iter().all(Zone::is_reverse) {
        return Err(directive.bad(place, "there is no cluster domain among its zones"));
    }
    for property in &directive.properties {
        let words: Vec<&str> = property.words.iter().map(String::as_str).collect();
        let bad = |why: &str| directive.bad(&property.place, why);
        match words.as_slice() {
            ["pods", "disabled"] => config.options.pods = Pods::Disabled,
            ["pods", "insecure"] => config.options.pods = Pods::Insecure,
            ["pods", "verified"] => config.options.pods = Pods::Verified,
            ["ttl", seconds] => {
                let seconds = values::number(seconds, 0, 3600).map_err(|why| bad(&why))?;
                config.ttl = u32::try_from(seconds).unwrap_or_default();
            }
            ["endpoint_pod_names"] => config.options.endpoint_pod_names = true,
            ["noendpoints"] => config.options.no_endpoints = true,
            ["ignore", "empty_service"] => config.options.ignore_empty = true,
            ["namespaces", names @ ..] if !names.is_empty() => {
                config
                    .options
                    .namespaces
                    .extend(names.iter().map(|&name| name.to_owned()));
            }
            ["labels", expression @ ..] if !expression.is_empty() => config.options.labels = Some(expression.join(" ")),
            ["namespace_labels", expression @ ..] if !expression.is_empty() => {
                config.options.namespace_labels = Some(expression.join(" "));
            }
            ["fallthrough", rest @ ..] => {
                let words: Vec<String> = rest.iter().map(|&word| word.to_owned()).collect();
                config.fallthrough = values::all_zones(&words).map_err(|why| bad(&why))?;
                if config.fallthrough.is_empty() {
                    config.fallthrough.clone_from(&config.zones);
                }
            }
            ["kubeconfig", file] => config.kubeconfig = Some((file.into(), None)),
            ["kubeconfig", file, context] => config.kubeconfig = Some((file.into(), Some((*context).to_owned()))),
            ["startup_timeout", time] => {
                values::duration(time).map_err(|why| bad(&why))?;
                notes.push(format!("{}: startup_timeout: questions are answered from the start, with SERVFAIL for the cluster's names until all is read", property.place));
            }
            ["apiserver_qps" | "apiserver_burst" | "apiserver_max_inflight", _] => {
                notes.push(format!(
                    "{}: {}: the API server is asked once per resource and then watched; there is nothing to limit",
                    property.place, words[0]
                ));
            }
            ["endpoint" | "tls", ..] => {
                return Err(bad(
                    "the API server is reached by a kubeconfig: write `kubeconfig FILE`, or use --kubeconfig",
                ));
            }
            _ => return Err(directive.unknown(property)),
        }
    }
    if config.options.namespaces.is_empty() || config.options.namespace_labels.is_none() {
        return Ok(config);
    }
    Err(directive.bad(place, "namespaces and namespace_labels exclude each other"))
}
