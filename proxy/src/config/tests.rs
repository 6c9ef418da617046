//! The file as kubeadm writes it, and what flags do to it.

use super::*;

/// Every field that kubeadm writes, plus the newer ones, with values as a tuned cluster has them.
const KUBEADM: &str = include_str!("../../tests/fixtures/kubeadm.yaml");

fn host() -> Host {
    Host {
        hostname: "node-a".to_owned(),
        cgroup2: Some("/sys/fs/cgroup".into()),
        local_ports: (32_768, 60_999),
    }
}

fn resolve(flags: &Overrides, text: &str) -> Result<Config, ConfigError> {
    Config::resolve(flags, Some(("kp.yaml", text)), &host())
}

fn file(lines: &str) -> String {
    format!("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{lines}\n")
}

#[test]
fn defaults() {
    let config = Config::resolve(&Overrides::default(), None, &host()).unwrap();
    assert_eq!(config.source, Source::Kubernetes { kubeconfig: None });
    assert_eq!(config.node_name, "node-a");
    assert_eq!(config.metrics_bind_address, Some("127.0.0.1:10249".parse().unwrap()));
    assert_eq!(config.healthz_bind_address, Some("0.0.0.0:10256".parse().unwrap()));
    assert_eq!(config.snat_ports.to_string(), "1024-29999");
    assert_eq!(config.cgroup_root, Some("/sys/fs/cgroup".into()));
    assert_eq!(
        config.node_port_addresses,
        NodePortAddresses {
            primary: true,
            cidrs: vec![]
        }
    );
    assert_eq!(config.sync_period, Duration::from_secs(30));
    assert_eq!(config.effective.mode, "ebpf");
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn a_kubeadm_file_is_accepted_unchanged() {
    let config = resolve(&Overrides::default(), KUBEADM).unwrap();
    assert_eq!(
        config.source,
        Source::Kubernetes {
            kubeconfig: Some("/var/lib/kube-proxy/kubeconfig.conf".into())
        }
    );
    assert_eq!(config.node_name, "worker-7");
    assert_eq!(config.node_port_addresses.cidrs, ["192.168.0.0/24".parse().unwrap()]);
    assert!(config.node_port_addresses.primary && config.masquerade_all && config.bind_address_hard_fail);
    assert_eq!(config.sync_period, Duration::from_secs(45));
    assert_eq!(config.oom_score_adj, Some(-999));
    assert!(matches!(&config.pod_devices, LinkFilter::Globs(set) if set.is_match("cali12") && !set.is_match("eth0")));
    assert_eq!((config.log_json, config.log_verbosity), (true, 2));
    // What has a value but no effect is said, each with its reason; zeros and nulls are not worth a word.
    let golden: Vec<&str> = include_str!("../../tests/fixtures/kubeadm.warnings.txt")
        .lines()
        .collect();
    assert_eq!(config.warnings, golden);
}

#[test]
fn the_same_file_as_json() {
    let value: serde_json::Value = serde_saphyr::from_str(KUBEADM).unwrap();
    let yaml = resolve(&Overrides::default(), KUBEADM).unwrap();
    let json = resolve(&Overrides::default(), &serde_json::to_string_pretty(&value).unwrap()).unwrap();
    assert_eq!(json.effective, yaml.effective);
}

#[test]
fn unknown_fields_are_named_with_their_path() {
    let config = resolve(&Overrides::default(), &file("nftables: {speed: 11}\nflavour: mint")).unwrap();
    let said = config.warnings.join("\n");
    assert!(
        said.contains("nftables.speed is not a field") && said.contains("flavour is not a field"),
        "{said}"
    );
}

#[test]
fn flags_override_the_file() {
    let flags = Overrides {
        kubeconfig: Some("/k".into()),
        node_name: Some("Other".to_owned()),
        mode: Some("auto".to_owned()),
        masquerade_all: Some(false),
        node_port_addresses: vec!["all".to_owned()],
        metrics_bind_address: Some("none".to_owned()),
        pod_devices: vec!["auto".to_owned()],
        cgroup_root: Some("none".to_owned()),
        ..Overrides::default()
    };
    let text = KUBEADM.replace("mode: \"\"", "mode: ipvs");
    let config = resolve(&flags, &text).unwrap();
    assert_eq!(
        config.source,
        Source::Kubernetes {
            kubeconfig: Some("/k".into())
        }
    );
    assert_eq!(config.node_name, "other");
    assert_eq!(
        config.node_port_addresses.cidrs,
        ["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()]
    );
    assert_eq!((config.metrics_bind_address, config.cgroup_root), (None, None));
    assert!(!config.masquerade_all && matches!(config.pod_devices, LinkFilter::Auto));
    let manifests = Overrides {
        manifests: Some("/m".into()),
        ..flags
    };
    assert_eq!(
        resolve(&manifests, KUBEADM).unwrap().source,
        Source::Manifests("/m".into())
    );
}

#[test]
fn auto_and_names_of_links_do_not_mix() {
    let flags = |devices: &[&str]| Overrides {
        devices: devices.iter().map(ToString::to_string).collect(),
        ..Overrides::default()
    };
    assert!(matches!(
        resolve(&flags(&["auto", "auto"]), KUBEADM).unwrap().devices,
        LinkFilter::Auto
    ));
    let error = resolve(&flags(&["eth0", "auto"]), KUBEADM).unwrap_err().to_string();
    assert!(error.contains("auto alone"), "{error}");
}

#[test]
fn what_cannot_be_served_is_refused_with_a_remedy() {
    for (lines, object) in [
        ("mode: ipvs", "kp.yaml: mode: ipvs"),
        ("mode: iptables", "kp.yaml: mode: iptables"),
        ("mode: kernelspace", "kp.yaml: mode: "),
        ("mode: magic", "kp.yaml: mode: \"magic\""),
        ("bindAddress: here", "kp.yaml: bindAddress: "),
        ("healthzBindAddress: here", "kp.yaml: healthzBindAddress: "),
        ("nodePortAddresses: [10.0.0.1-10.0.0.9]", "kp.yaml: nodePortAddresses: "),
        (
            "detectLocalMode: InterfaceNamePrefix",
            "kp.yaml: detectLocal.interfaceNamePrefix: ",
        ),
        ("detectLocalMode: Guess", "kp.yaml: detectLocalMode: "),
        ("oomScoreAdj: 2000", "kp.yaml: oomScoreAdj: "),
        ("logging: {format: xml}", "kp.yaml: logging.format: "),
        ("iptables: {syncPeriod: -1s}", "kp.yaml: iptables.syncPeriod: "),
    ] {
        let error = resolve(&Overrides::default(), &file(lines)).unwrap_err();
        assert!(error.to_string().starts_with(object), "{lines}: {error}");
        assert!(!error.remedy.is_empty());
    }
    let maps = MapSizes {
        flows: 0,
        ..MapSizes::default()
    };
    let error = Config::resolve(
        &Overrides {
            maps,
            ..Overrides::default()
        },
        None,
        &host(),
    )
    .unwrap_err();
    assert_eq!(error.object, "--max-flows");
    let no_cgroup = Host {
        cgroup2: None,
        ..host()
    };
    let error = Config::resolve(&Overrides::default(), None, &no_cgroup).unwrap_err();
    assert_eq!(error.object, "--cgroup-root");
}

#[test]
fn servers_follow_the_family_of_bind_address() {
    let config = resolve(
        &Overrides::default(),
        &file("bindAddress: \"::\"\nmetricsBindAddress: 192.168.0.9"),
    )
    .unwrap();
    assert_eq!(config.healthz_bind_address, Some("[::]:10256".parse().unwrap()));
    assert_eq!(config.metrics_bind_address, Some("192.168.0.9:10249".parse().unwrap()));
    assert_eq!(config.node_ip, None);
    let config = resolve(&Overrides::default(), &file("bindAddress: 192.168.0.9")).unwrap();
    assert_eq!(config.node_ip, Some("192.168.0.9".parse().unwrap()));
}

#[test]
fn snat_ports_avoid_ephemeral_ports_or_say_so() {
    let chosen = |local, asked| {
        let mut warnings = Vec::new();
        (
            resolve_snat_ports(asked, local, &mut warnings).to_string(),
            warnings.len(),
        )
    };
    assert_eq!(chosen((32_768, 60_999), None), ("1024-29999".to_owned(), 0));
    assert_eq!(chosen((10_000, 65_535), None), ("1024-9999".to_owned(), 0));
    assert_eq!(chosen((1024, 65_535), None), ("1024-29999".to_owned(), 1));
    assert_eq!(
        chosen((32_768, 60_999), Some("30000-40000".parse().unwrap())),
        ("30000-40000".to_owned(), 2)
    );
    assert!("9-1".parse::<PortRange>().is_err() && "0-5".parse::<PortRange>().is_err());
}

#[test]
fn loopback_never_serves_node_ports() {
    let config = resolve(
        &Overrides::default(),
        &file("nodePortAddresses: [127.0.0.0/8, localhost]"),
    )
    .unwrap();
    assert_eq!(
        config.node_port_addresses,
        NodePortAddresses {
            primary: false,
            cidrs: vec![]
        }
    );
    assert_eq!(config.warnings.len(), 2);
}
