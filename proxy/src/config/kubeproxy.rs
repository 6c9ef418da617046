//! `KubeProxyConfiguration` v1alpha1, the file that kubeadm writes for kube-proxy, and what each field does here.

use super::{ConfigError, duration::GoDuration};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// `apiVersion` of the only version that exists.
const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// `kind` of the document.
const KIND: &str = "KubeProxyConfiguration";

macro_rules! sections {
    ($($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }
    )*};
}

sections! {
    /// The whole file. Field meanings that we act on are in [`super::Config`]; the rest is kept for `/configz`.
    KubeProxyConfiguration {
        /// Always `kubeproxy.config.k8s.io/v1alpha1`.
        api_version: String,
        /// Always `KubeProxyConfiguration`.
        kind: String,
        /// No effect.
        feature_gates: BTreeMap<String, bool>,
        /// How to reach the API server.
        client_connection: ClientConnection,
        /// `format` and `verbosity` are used.
        logging: Logging,
        /// Node name.
        hostname_override: String,
        /// A specific address is the node's primary address; the unspecified one chooses the family of the servers.
        bind_address: String,
        /// Whether a port that cannot be bound stops the agent.
        bind_address_hard_fail: bool,
        /// `address[:port]` of `/healthz` and `/livez`.
        healthz_bind_address: String,
        /// `address[:port]` of `/metrics` and `/status`.
        metrics_bind_address: String,
        /// No effect.
        enable_profiling: bool,
        /// No effect.
        show_hidden_metrics_for_version: String,
        /// Empty = auto.
        mode: String,
        /// `syncPeriod` and `masqueradeAll` are used.
        iptables: Iptables,
        /// No effect.
        ipvs: Ipvs,
        /// `masqueradeAll` is used.
        nftables: Nftables,
        /// No effect.
        winkernel: Winkernel,
        /// With `InterfaceNamePrefix`, says which links belong to pods.
        detect_local_mode: String,
        /// See `detect_local_mode`.
        detect_local: DetectLocal,
        /// No effect.
        #[serde(rename = "clusterCIDR")]
        cluster_cidr: String,
        /// CIDRs, `primary` or `all`.
        node_port_addresses: Vec<String>,
        /// Written to `/proc/self/oom_score_adj`.
        oom_score_adj: Option<i32>,
        /// No effect.
        conntrack: Conntrack,
        /// No effect.
        config_sync_period: GoDuration,
        /// No effect.
        port_range: String,
        /// No effect.
        windows_run_as_service: bool,
    }
    /// `clientConnection`.
    ClientConnection {
        /// Path; empty = in-cluster.
        kubeconfig: String,
        /// No effect.
        accept_content_types: String,
        /// No effect.
        content_type: String,
        /// No effect.
        qps: f32,
        /// No effect.
        burst: i32,
    }
    /// `logging` (component-base `LoggingConfiguration`).
    Logging {
        /// `text` or `json`.
        format: String,
        /// No effect; a duration, or nanoseconds in older files.
        flush_frequency: Value,
        /// Above 0 = debug, from 6 on = trace.
        verbosity: u32,
        /// No effect.
        vmodule: Value,
        /// No effect.
        options: Value,
    }
    /// `iptables`.
    Iptables {
        /// No effect.
        masquerade_bit: Option<i32>,
        /// Masquerade all ClusterIP traffic.
        masquerade_all: bool,
        /// No effect.
        localhost_node_ports: Option<bool>,
        /// Half of the time after which an unfinished change makes `/healthz` fail.
        sync_period: GoDuration,
        /// No effect.
        min_sync_period: GoDuration,
    }
    /// `ipvs`.
    Ipvs {
        /// No effect.
        sync_period: GoDuration,
        /// No effect.
        min_sync_period: GoDuration,
        /// No effect.
        scheduler: String,
        /// No effect.
        #[serde(rename = "excludeCIDRs")]
        exclude_cidrs: Vec<String>,
        /// No effect.
        #[serde(rename = "strictARP")]
        strict_arp: bool,
        /// No effect.
        tcp_timeout: GoDuration,
        /// No effect.
        tcp_fin_timeout: GoDuration,
        /// No effect.
        udp_timeout: GoDuration,
    }
    /// `nftables`.
    Nftables {
        /// No effect.
        masquerade_bit: Option<i32>,
        /// Masquerade all ClusterIP traffic.
        masquerade_all: bool,
        /// As in [`Iptables`].
        sync_period: GoDuration,
        /// No effect.
        min_sync_period: GoDuration,
    }
    /// `winkernel`: Windows only.
    Winkernel {
        /// No effect.
        network_name: String,
        /// No effect.
        source_vip: String,
        /// No effect.
        #[serde(rename = "enableDSR")]
        enable_dsr: bool,
        /// No effect.
        root_hns_endpoint_name: String,
        /// No effect.
        forward_health_check_vip: bool,
    }
    /// `detectLocal`.
    DetectLocal {
        /// No effect.
        bridge_interface: String,
        /// Prefix of the names of pods' links, with mode `InterfaceNamePrefix`.
        interface_name_prefix: String,
    }
    /// `conntrack`.
    Conntrack {
        /// No effect.
        max_per_core: Option<i32>,
        /// No effect.
        min: Option<i32>,
        /// No effect.
        tcp_established_timeout: Option<GoDuration>,
        /// No effect.
        tcp_close_wait_timeout: Option<GoDuration>,
        /// No effect.
        tcp_be_liberal: bool,
        /// No effect.
        udp_timeout: GoDuration,
        /// No effect.
        udp_stream_timeout: GoDuration,
    }
}

/// What a field of the file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// Acted on.
    Used,
    /// Accepted without effect, for this reason.
    None(&'static str),
}

const FLOWS: &str = "flows are tracked in our own table (--max-flows), not in nf_conntrack";
const NO_BIT: &str = "packets are masqueraded in eBPF, no mark bit is taken";
const NO_PACING: &str = "a change costs what it changes, so syncs are not paced";
const NO_IPVS: &str = "there is no ipvs mode in this release";
const LINUX_ONLY: &str = "Windows only";
const JSON_API: &str = "the API is spoken in JSON";

/// Every field of v1alpha1; a name ending in `.*` covers all below it. What is not listed is unknown.
const FIELDS: &[(&str, Effect)] = &[
    ("apiVersion", Effect::Used),
    ("kind", Effect::Used),
    (
        "featureGates.*",
        Effect::None("kube-proxy's feature gates name code that is not ours"),
    ),
    ("clientConnection.kubeconfig", Effect::Used),
    ("clientConnection.acceptContentTypes", Effect::None(JSON_API)),
    ("clientConnection.contentType", Effect::None(JSON_API)),
    (
        "clientConnection.qps",
        Effect::None("three watches need no client-side rate limit"),
    ),
    (
        "clientConnection.burst",
        Effect::None("three watches need no client-side rate limit"),
    ),
    ("logging.format", Effect::Used),
    ("logging.verbosity", Effect::Used),
    ("logging.flushFrequency", Effect::None("log lines are not buffered")),
    ("logging.options.*", Effect::None("log lines are not buffered")),
    (
        "logging.vmodule",
        Effect::None("choose modules with --log-level, as in proxy::controller=debug"),
    ),
    ("hostnameOverride", Effect::Used),
    ("bindAddress", Effect::Used),
    ("bindAddressHardFail", Effect::Used),
    ("healthzBindAddress", Effect::Used),
    ("metricsBindAddress", Effect::Used),
    (
        "enableProfiling",
        Effect::None("there is no Go runtime to profile; use perf"),
    ),
    ("showHiddenMetricsForVersion", Effect::None("no metric is hidden")),
    ("mode", Effect::Used),
    ("iptables.masqueradeBit", Effect::None(NO_BIT)),
    ("iptables.masqueradeAll", Effect::Used),
    (
        "iptables.localhostNodePorts",
        Effect::None("NodePorts are not served on loopback"),
    ),
    ("iptables.syncPeriod", Effect::Used),
    ("iptables.minSyncPeriod", Effect::None(NO_PACING)),
    ("ipvs.syncPeriod", Effect::None(NO_IPVS)),
    ("ipvs.minSyncPeriod", Effect::None(NO_IPVS)),
    ("ipvs.scheduler", Effect::None(NO_IPVS)),
    ("ipvs.excludeCIDRs", Effect::None(NO_IPVS)),
    ("ipvs.strictARP", Effect::None(NO_IPVS)),
    ("ipvs.tcpTimeout", Effect::None(NO_IPVS)),
    ("ipvs.tcpFinTimeout", Effect::None(NO_IPVS)),
    ("ipvs.udpTimeout", Effect::None(NO_IPVS)),
    ("nftables.masqueradeBit", Effect::None(NO_BIT)),
    ("nftables.masqueradeAll", Effect::Used),
    ("nftables.syncPeriod", Effect::Used),
    ("nftables.minSyncPeriod", Effect::None(NO_PACING)),
    ("winkernel.networkName", Effect::None(LINUX_ONLY)),
    ("winkernel.sourceVip", Effect::None(LINUX_ONLY)),
    ("winkernel.enableDSR", Effect::None(LINUX_ONLY)),
    ("winkernel.rootHnsEndpointName", Effect::None(LINUX_ONLY)),
    ("winkernel.forwardHealthCheckVip", Effect::None(LINUX_ONLY)),
    ("detectLocalMode", Effect::Used),
    (
        "detectLocal.bridgeInterface",
        Effect::None("pods are told by the link their packets enter on (--pod-devices)"),
    ),
    ("detectLocal.interfaceNamePrefix", Effect::Used),
    (
        "clusterCIDR",
        Effect::None("pods are told by the link their packets enter on (--pod-devices)"),
    ),
    ("nodePortAddresses", Effect::Used),
    ("oomScoreAdj", Effect::Used),
    ("conntrack.maxPerCore", Effect::None(FLOWS)),
    ("conntrack.min", Effect::None(FLOWS)),
    ("conntrack.tcpEstablishedTimeout", Effect::None(FLOWS)),
    ("conntrack.tcpCloseWaitTimeout", Effect::None(FLOWS)),
    (
        "conntrack.tcpBeLiberal",
        Effect::None("our flow table does not check TCP windows"),
    ),
    ("conntrack.udpTimeout", Effect::None(FLOWS)),
    ("conntrack.udpStreamTimeout", Effect::None(FLOWS)),
    ("configSyncPeriod", Effect::None("watches are followed, never polled")),
    ("portRange", Effect::None("unused by kube-proxy too")),
    ("windowsRunAsService", Effect::None(LINUX_ONLY)),
];

impl KubeProxyConfiguration {
    /// Reads YAML or JSON. Returns the configuration and warnings: unknown fields by path, and fields with a value that
    /// has no effect here, with the reason.
    ///
    /// # Errors
    /// Not YAML, another `apiVersion` or `kind`, or a value of the wrong type; the error names the field.
    pub fn parse(text: &str, file: &str) -> Result<(Self, Vec<String>), ConfigError> {
        let object = |path: &str| {
            if path.is_empty() {
                file.to_owned()
            } else {
                format!("{file}: {path}")
            }
        };
        let mut raw: Value = serde_saphyr::from_str(text).map_err(|error| ConfigError {
            object: file.to_owned(),
            cause: error.to_string(),
            remedy: "give a YAML or JSON KubeProxyConfiguration".to_owned(),
        })?;
        for (field, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
            let found = raw.get(field).and_then(Value::as_str).unwrap_or_default();
            if found != expected {
                return Err(ConfigError {
                    object: object(field),
                    cause: format!("expected {expected}, found {found:?}"),
                    remedy: format!("give a {KIND} of {API_VERSION}, as kubeadm writes it"),
                });
            }
        }
        remove_nulls(&mut raw);
        let mut warnings = Vec::new();
        check_fields(&raw, "", &mut warnings);
        let parsed: Self = serde_path_to_error::deserialize(&raw).map_err(|error| ConfigError {
            object: object(&error.path().to_string()),
            cause: error.inner().to_string(),
            remedy: "correct the value; kube-proxy would refuse it too".to_owned(),
        })?;
        let warnings = warnings
            .into_iter()
            .map(|warning| format!("{file}: {warning}"))
            .collect();
        Ok((parsed, warnings))
    }
}

/// kubeadm writes `null` for unset pointers; an absent field means the same.
fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(remove_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}

/// Whether a value means "not set": kubeadm writes every field, most of them as their zero.
fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => matches!(text.as_str(), "" | "0" | "0s"),
        Value::Array(items) => items.iter().all(is_unset),
        Value::Object(map) => map.values().all(is_unset),
    }
}

/// Compares an object with [`FIELDS`].
fn check_fields(value: &Value, at: &str, warnings: &mut Vec<String>) {
    let empty = Map::new();
    for (name, value) in value.as_object().unwrap_or(&empty) {
        let path = if at.is_empty() {
            name.clone()
        } else {
            format!("{at}.{name}")
        };
        let exact = FIELDS
            .iter()
            .find(|(field, _)| *field == path || field.strip_suffix(".*") == Some(&path));
        match exact {
            Some((_, Effect::Used)) => {}
            Some((_, Effect::None(reason))) => {
                if !is_unset(value) {
                    warnings.push(format!("{path} has no effect: {reason}"));
                }
            }
            None if FIELDS
                .iter()
                .any(|(field, _)| field.strip_prefix(&*path).is_some_and(|f| f.starts_with('.'))) =>
            {
                check_fields(value, &path, warnings);
            }
            None => warnings.push(format!("{path} is not a field of {KIND} v1alpha1; ignored")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_the_struct_is_in_the_table_and_back() {
        let full = serde_json::to_value(KubeProxyConfiguration {
            feature_gates: BTreeMap::from([("A".to_owned(), true)]),
            ..Default::default()
        })
        .unwrap();
        let mut warnings = Vec::new();
        check_fields(&full, "", &mut warnings);
        assert!(
            warnings.iter().all(|warning| !warning.contains("is not a field")),
            "{warnings:?}"
        );
        for (field, _) in FIELDS {
            let path = field.strip_suffix(".*").unwrap_or(field);
            assert!(
                full.pointer(&format!("/{}", path.replace('.', "/"))).is_some(),
                "{path}"
            );
        }
    }

    #[test]
    fn wrong_types_are_named_by_path() {
        let text = format!("apiVersion: {API_VERSION}\nkind: {KIND}\nconntrack:\n  min: many\n");
        let error = KubeProxyConfiguration::parse(&text, "c.yaml").unwrap_err().to_string();
        assert!(error.starts_with("c.yaml: conntrack.min: "), "{error}");
        let text = format!("apiVersion: {API_VERSION}\nkind: {KIND}\niptables: {{syncPeriod: fast}}\n");
        let error = KubeProxyConfiguration::parse(&text, "c.yaml").unwrap_err().to_string();
        assert!(error.starts_with("c.yaml: iptables.syncPeriod: "), "{error}");
    }

    #[test]
    fn other_documents_are_refused() {
        for text in [
            "kind: KubeletConfiguration",
            "[]",
            "{",
            "apiVersion: kubeproxy.config.k8s.io/v1alpha2",
        ] {
            assert!(KubeProxyConfiguration::parse(text, "c.yaml").is_err(), "{text}");
        }
    }
}
