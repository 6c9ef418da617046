use super::*;
use serde_json::{Value, json};

fn convert(value: Value) -> (Converted<EndpointSlice>, Vec<Skipped>) {
    EndpointSlice::from_api(&serde_json::from_value(value).unwrap(), &mut Interner::default())
}

fn ours(value: Value) -> (EndpointSlice, Vec<String>) {
    let (converted, skipped) = convert(value);
    let fields = skipped.into_iter().map(|skipped| skipped.field).collect();
    (converted.ours().expect("ours"), fields)
}

fn slice(more: Value) -> Value {
    let mut all = json!({
        "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["10.1.1.2"]}],
    });
    let Value::Object(more) = more else {
        panic!("not an object")
    };
    all.as_object_mut().unwrap().extend(more);
    all
}

#[test]
fn everything_a_proxy_reads() {
    let mut api = slice(json!({"endpoints": [
        {"addresses": ["10.1.1.2", "10.1.1.3"], "conditions": {"ready": false, "serving": true, "terminating": true},
         "nodeName": "node-a", "hints": {"forZones": [{"name": "z1"}], "forNodes": [{"name": "node-a"}, {"name": "node-b"}]}},
        {"addresses": ["10.1.2.2"]},
    ]}));
    api["metadata"]["annotations"] =
        json!({"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:01.5Z"});
    let (slice, faults) = ours(api);
    assert_eq!(faults, [""; 0]);
    assert_eq!(slice.service, ObjectName::new("shop", "web"));
    assert_eq!(slice.triggered_ms, Some(1_767_225_601_500));
    let port = EndpointPort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: NonZeroU16::new(8080).unwrap(),
    };
    assert_eq!(slice.ports, [port]);
    let first = Endpoint {
        addr: "10.1.1.2".parse().unwrap(),
        ready: false,
        serving: true,
        terminating: true,
        node: Some("node-a".into()),
        zone_hints: vec!["z1".into()],
        node_hints: vec!["node-a".into(), "node-b".into()],
    };
    let second = Endpoint {
        addr: "10.1.2.2".parse().unwrap(),
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        zone_hints: vec![],
        node_hints: vec![],
    };
    assert_eq!(slice.endpoints, [first, second]);
}

#[test]
fn slices_that_are_somebody_elses() {
    let labels = |labels: Value| slice(json!({"metadata": {"name": "web-1", "labels": labels}}));
    for (api, reports) in [
        (slice(json!({"addressType": "FQDN"})), 0),
        (slice(json!({"addressType": "IPX"})), 1),
        (labels(json!({})), 0),
        (labels(json!({"kubernetes.io/service-name": ""})), 0),
        (labels(json!({"kubernetes.io/service-name": "a/b"})), 1),
        (
            labels(json!({"kubernetes.io/service-name": "web", "service.kubernetes.io/headless": ""})),
            0,
        ),
        (
            labels(json!({"kubernetes.io/service-name": "web", "service.kubernetes.io/service-proxy-name": "x"})),
            0,
        ),
    ] {
        let (converted, skipped) = convert(api.clone());
        assert!(matches!(converted, Converted::NotOurs { .. }), "{api}");
        assert_eq!(skipped.len(), reports, "{api}");
    }
}

#[test]
fn bad_endpoints_lose_themselves_only() {
    let bad = ["127.0.0.1", "169.254.1.1", "224.0.0.1", "0.0.0.0", "fd00::1", "pod-1"];
    let mut endpoints: Vec<_> = bad.iter().map(|addr| json!({"addresses": [addr]})).collect();
    endpoints.push(json!({"addresses": []}));
    endpoints.push(json!({"addresses": ["010.1.1.2"]}));
    let (slice, faults) = ours(slice(json!({"endpoints": endpoints})));
    assert_eq!(slice.endpoints.len(), 1);
    assert_eq!(slice.endpoints[0].addr, "10.1.1.2".parse::<IpAddr>().unwrap());
    let want: Vec<_> = (0..8).map(|n| format!("endpoints[{n}].addresses[0]")).collect();
    assert_eq!(faults, want);
}

#[test]
fn bad_ports_lose_themselves_only() {
    let ports = json!([{"name": "a"}, {"name": "b", "port": 0}, {"name": "c", "port": 1, "protocol": "X"},
                       {"name": "d", "port": 4}, {"name": "d", "port": 5}]);
    let (slice, faults) = ours(slice(json!({"ports": ports})));
    assert_eq!(slice.ports.iter().map(|port| &*port.name).collect::<Vec<_>>(), ["d"]);
    assert_eq!(
        faults,
        ["ports[0].port", "ports[1].port", "ports[2].protocol", "ports[4].name"]
    );
}

#[test]
fn oversized_slices_are_cut() {
    let endpoints: Vec<_> = (0..1001)
        .map(|n| json!({"addresses": [format!("10.1.{}.{}", n / 250, n % 250 + 1)]}))
        .collect();
    let ports: Vec<_> = (1..=101).map(|n| json!({"name": format!("p{n}"), "port": n})).collect();
    let (slice, faults) = ours(slice(json!({"endpoints": endpoints, "ports": ports})));
    assert_eq!((slice.endpoints.len(), slice.ports.len()), (1000, 100));
    assert_eq!(faults, ["ports", "endpoints"]);
}

#[test]
fn a_bad_trigger_time_costs_only_the_measurement() {
    let labels = json!({"kubernetes.io/service-name": "web"});
    let annotations = json!({"endpoints.kubernetes.io/last-change-trigger-time": "yesterday"});
    let meta = json!({"name": "web-1", "labels": labels, "annotations": annotations});
    let (slice, faults) = ours(slice(json!({"metadata": meta})));
    assert_eq!((slice.triggered_ms, slice.endpoints.len()), (None, 1));
    assert_eq!(
        faults,
        ["metadata.annotations[endpoints.kubernetes.io/last-change-trigger-time]"]
    );
}
