use super::*;
use serde_json::{Value, json};

fn convert(value: Value) -> (Converted<Service>, Vec<Skipped>) {
    Service::from_api(&serde_json::from_value(value).unwrap(), &mut Interner::default())
}

/// A sound service, with `spec` merged into its spec.
fn with(spec: Value) -> Value {
    let mut all = json!({"clusterIP": "10.96.0.10", "ports": [{"name": "http", "port": 80}]});
    let Value::Object(spec) = spec else {
        panic!("not an object")
    };
    all.as_object_mut().unwrap().extend(spec);
    json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": all})
}

fn ours(value: Value) -> (Service, Vec<String>) {
    let (converted, skipped) = convert(value);
    let fields = skipped.into_iter().map(|skipped| skipped.field).collect();
    (converted.ours().expect("ours"), fields)
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn everything_a_proxy_reads() {
    let (service, faults) = ours(json!({
        "metadata": {"namespace": "shop", "name": "web", "creationTimestamp": "2026-01-01T00:00:01Z"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00:10:96::10"],
            "externalIPs": ["198.51.100.7", "198.51.100.7"],
            "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Cluster", "healthCheckNodePort": 32000,
            "loadBalancerSourceRanges": [" 203.0.113.0/25 ", "2001:db8:113::/64"],
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "ports": [
                {"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080},
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
            ],
        },
        "status": {"loadBalancer": {"ingress": [
            {"ip": "203.0.113.130"}, {"ip": "203.0.113.131", "ipMode": "VIP"}, {"ip": "203.0.113.132", "ipMode": "Proxy"},
            {"hostname": "lb.example"},
        ]}},
    }));
    assert_eq!(faults, [""; 0]);
    let port = |name: &str, protocol, port, node_port| ServicePort {
        name: name.into(),
        protocol,
        port: NonZeroU16::new(port).unwrap(),
        node_port: NonZeroU16::new(node_port),
    };
    let want = Service {
        name: ObjectName::new("shop", "web"),
        created_s: Some(1_767_225_601),
        cluster_ips: ips(&["10.96.0.10", "fd00:10:96::10"]),
        external_ips: ips(&["198.51.100.7"]),
        load_balancer_ips: ips(&["203.0.113.130", "203.0.113.131"]),
        ports: vec![
            port("http", Protocol::Tcp, 80, 30080),
            port("dns", Protocol::Udp, 53, 0),
            port("dns-tcp", Protocol::Tcp, 53, 0),
        ],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Local,
        source_ranges: vec!["203.0.113.0/25".parse().unwrap(), "2001:db8:113::/64".parse().unwrap()],
        affinity_s: Some(60),
        health_check_node_port: NonZeroU16::new(32000),
    };
    assert_eq!(service, want);
}

#[test]
fn services_that_are_somebody_elses() {
    let label = |label: &str, value: &str| {
        let mut service = with(json!({}));
        service["metadata"]["labels"] = json!({label: value});
        service
    };
    for service in [
        with(json!({"clusterIP": "None"})),
        with(json!({"clusterIPs": ["None"]})),
        with(json!({"type": "ExternalName", "externalName": "db.example"})),
        with(json!({"clusterIP": ""})),
        label("service.kubernetes.io/service-proxy-name", "other"),
        label("service.kubernetes.io/service-proxy-name", ""),
        label("service.kubernetes.io/headless", ""),
        json!({"metadata": {"namespace": "shop", "name": "web"}}),
    ] {
        let (converted, skipped) = convert(service.clone());
        assert!(matches!(converted, Converted::NotOurs { .. }), "{service}");
        assert_eq!(skipped, [], "{service}");
    }
}

#[test]
fn a_service_of_node_ports_only_is_ours() {
    let spec = json!({"clusterIP": "", "type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]});
    let (service, faults) = ours(with(spec));
    assert_eq!((service.cluster_ips.len(), faults.len()), (0, 0));
}

#[test]
fn a_service_without_a_usable_name_is_reported() {
    for name in ["", "a/b", "a\nb", &"x".repeat(254)] {
        let (converted, skipped) = convert(json!({"metadata": {"name": name}}));
        assert_eq!(converted, Converted::Nameless);
        assert_eq!(skipped[0].field, "metadata.name");
    }
    let (converted, skipped) = convert(json!({"metadata": {"name": "web", "namespace": "a b"}}));
    assert_eq!(converted, Converted::Nameless);
    assert_eq!(
        skipped[0].to_string(),
        "Service web: metadata.namespace: \"a b\" contains characters that no name may have"
    );
}

#[test]
fn a_manifest_without_a_namespace_means_default() {
    let mut service = with(json!({}));
    service["metadata"] = json!({"name": "web"});
    assert_eq!(ours(service).0.name, ObjectName::new("default", "web"));
}

#[test]
fn bad_addresses_lose_themselves_only() {
    let (service, faults) = ours(with(json!({
        "clusterIPs": ["127.0.0.1", "10.96.0.10", "10.96.0.11", "fd00:10:96::10"],
        "externalIPs": ["0.0.0.0", "169.254.169.254", "224.0.0.1", "fe80::1", "nonsense", "", "198.51.100.7"],
    })));
    assert_eq!(service.cluster_ips, ips(&["10.96.0.10", "fd00:10:96::10"]));
    assert_eq!(service.external_ips, ips(&["198.51.100.7"]));
    let want = [
        "spec.clusterIPs[0]",
        "spec.clusterIPs[2]",
        "spec.externalIPs[0]",
        "spec.externalIPs[1]",
        "spec.externalIPs[2]",
        "spec.externalIPs[3]",
        "spec.externalIPs[4]",
        "spec.externalIPs[5]",
    ];
    assert_eq!(faults, want);
}

#[test]
fn old_spellings_are_read_and_reported() {
    let (service, faults) = ours(with(json!({"clusterIP": "010.96.0.010"})));
    assert_eq!(service.cluster_ips, ips(&["10.96.0.10"]));
    assert_eq!(faults, ["spec.clusterIP"]);
}

#[test]
fn bad_ports_lose_themselves_only() {
    let (service, faults) = ours(with(json!({"type": "NodePort", "ports": [
        {"name": "zero", "port": 0},
        {"name": "negative", "port": -1},
        {"name": "huge", "port": 65536},
        {"name": "odd", "port": 1, "protocol": "ICMP"},
        {"name": "good", "port": 80, "nodePort": 30080},
        {"name": "good", "port": 81},
        {"name": "same-number", "port": 80},
        {"name": "other-protocol", "port": 80, "protocol": "UDP", "nodePort": 30080},
        {"name": "same-node-port", "port": 82, "nodePort": 30080},
        {"name": "bad-node-port", "port": 83, "nodePort": 70000},
    ]})));
    let kept: Vec<_> = service
        .ports
        .iter()
        .map(|port| (&*port.name, port.node_port.map(NonZeroU16::get)))
        .collect();
    let want = [
        ("good", Some(30080)),
        ("other-protocol", Some(30080)),
        ("same-node-port", None),
        ("bad-node-port", None),
    ];
    assert_eq!(kept, want);
    let want = [
        "spec.ports[0].port",
        "spec.ports[1].port",
        "spec.ports[2].port",
        "spec.ports[3].protocol",
        "spec.ports[5].name",
        "spec.ports[6].port",
        "spec.ports[8].nodePort",
        "spec.ports[9].nodePort",
    ];
    assert_eq!(faults, want);
}

#[test]
fn a_cluster_ip_service_has_no_node_ports() {
    let (service, faults) = ours(with(json!({"ports": [{"port": 80, "nodePort": 30080}]})));
    assert_eq!(service.ports[0].node_port, None);
    assert_eq!(faults, ["spec.ports[0].nodePort"]);
}

#[test]
fn unreadable_source_ranges_never_open_the_service() {
    let (service, faults) = ours(with(json!({"loadBalancerSourceRanges": ["10.0.0.0/33", ""]})));
    assert_eq!(service.source_ranges, ["255.255.255.255/32".parse().unwrap()]);
    assert_eq!(faults.len(), 3);
    let (service, faults) = ours(with(json!({"loadBalancerSourceRanges": ["10.0.0.0/33", "10.0.0.0/8"]})));
    assert_eq!(service.source_ranges, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(faults, ["spec.loadBalancerSourceRanges[0]"]);
}

#[test]
fn affinity_timeouts() {
    let timeout = |seconds: Value| {
        let config = json!({"clientIP": {"timeoutSeconds": seconds}});
        ours(with(
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config}),
        ))
    };
    for (seconds, want, faults) in [
        (json!(1), 1, 0),
        (json!(86_400), 86_400, 0),
        (json!(0), 10_800, 1),
        (json!(86_401), 10_800, 1),
        (json!(-5), 10_800, 1),
        (json!(null), 10_800, 0),
    ] {
        let (service, reported) = timeout(seconds.clone());
        assert_eq!((service.affinity_s, reported.len()), (Some(want), faults), "{seconds}");
    }
    assert_eq!(ours(with(json!({"sessionAffinity": "None"}))).0.affinity_s, None);
    let (service, faults) = ours(with(json!({"sessionAffinity": "Cookie"})));
    assert_eq!(
        (service.affinity_s, faults),
        (None, vec!["spec.sessionAffinity".to_owned()])
    );
}

#[test]
fn health_check_ports_need_a_load_balancer_with_policy_local() {
    for (type_, policy, want) in [
        ("LoadBalancer", "Local", Some(32000)),
        ("LoadBalancer", "Cluster", None),
        ("NodePort", "Local", None),
    ] {
        let spec = json!({"type": type_, "externalTrafficPolicy": policy, "healthCheckNodePort": 32000});
        let (service, faults) = ours(with(spec));
        assert_eq!(
            service.health_check_node_port.map(NonZeroU16::get),
            want,
            "{type_} {policy}"
        );
        assert_eq!(faults.len(), 0);
    }
}

#[test]
fn reports_about_one_object_are_bounded() {
    let many: Vec<_> = (0..10_000).map(|n| format!("bad-{n}")).collect();
    let (_, skipped) = convert(with(json!({"externalIPs": many})));
    assert_eq!(skipped.len(), 33);
    assert_eq!(skipped[32].to_string(), "Service shop/web: 9968 more faults not listed");
    let (_, skipped) = convert(with(json!({"externalIPs": ["x".repeat(1_000_000)]})));
    assert!(skipped[0].reason.len() < 200);
}
