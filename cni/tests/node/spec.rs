//! Every verb and error of the specification, by the real binary.

use crate::rig::{Host, Netns, may_run};
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn code(answer: &Value) -> u64 {
    answer["code"].as_u64().unwrap_or_else(|| panic!("{answer}"))
}

#[test]
fn version_names_all_that_are_spoken() {
    if !may_run("version_names_all_that_are_spoken") {
        return;
    }
    let host = Host::running(&["10.1.0.0/24"]);
    let (answer, success) = host.plugin("VERSION", &[], r#"{"cniVersion":"1.0.0"}"#);
    assert!(success);
    assert_eq!(
        answer,
        json!({ "cniVersion": "1.0.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] })
    );
}

#[test]
fn results_follow_the_version() {
    if !may_run("results_follow_the_version") {
        return;
    }
    let host = Host::running(&["10.1.0.0/24", "fd00:10:1::/64"]);
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = Netns::new();
        let mut network = host.network(version);
        let result = host.call("ADD", version, &pod.path(), &network).unwrap();
        assert_eq!(result["cniVersion"], version);
        let (old, new) = (version.starts_with('0'), version == "1.1.0");
        assert_eq!(result["ips"][0]["version"], if old { json!("4") } else { Value::Null });
        assert_eq!(result["ips"][1]["version"], if old { json!("6") } else { Value::Null });
        let ip = result["ips"][0]["address"].as_str().unwrap();
        assert!(ip.starts_with("10.1.0.") && ip.ends_with("/32"), "{ip}");
        assert_eq!(result["ips"][0]["gateway"], "169.254.1.1");
        assert_eq!(result["ips"][1]["gateway"], "fe80::1");
        assert_eq!(result["ips"][0]["interface"], 1);
        assert_eq!(result["interfaces"][1]["name"], "eth0");
        assert_eq!(result["interfaces"][1]["sandbox"], pod.path().to_str().unwrap());
        assert_eq!(result["interfaces"][0].get("sandbox"), None);
        assert_eq!(
            result["interfaces"][0]["mtu"],
            if new { json!(1500) } else { Value::Null }
        );
        let mac = result["interfaces"][1]["mac"].as_str().unwrap();
        assert!(pod.ip("link show eth0").contains(mac));
        assert_eq!(result["routes"][0]["dst"], "0.0.0.0/0");
        assert_eq!(result["routes"][1], {
            let mut route = json!({ "dst": "::/0", "gw": "fe80::1" });
            if new {
                route["mtu"] = json!(1500);
            }
            route
        });
        network["prevResult"] = result;
        host.call("CHECK", version, &pod.path(), &network).unwrap();
        assert_eq!(host.call("DEL", version, &pod.path(), &network), Ok(Value::Null));
        assert!(host.pod_links().is_empty());
    }
}

#[test]
fn a_chain_keeps_what_came_before() {
    if !may_run("a_chain_keeps_what_came_before") {
        return;
    }
    let host = Host::running(&["10.1.0.0/24"]);
    let pod = Netns::new();
    let mut network = host.network("1.0.0");
    network["prevResult"] = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{ "name": "net1", "sandbox": "/there" }],
        "ips": [{ "address": "192.0.2.9/24", "interface": 0 }],
        "routes": [{ "dst": "192.0.2.0/24" }],
        "dns": { "nameservers": ["192.0.2.53"] },
    });
    let result = host.call("ADD", "chained", &pod.path(), &network).unwrap();
    assert_eq!(result["interfaces"][0]["name"], "net1");
    assert_eq!(result["interfaces"][2]["name"], "eth0");
    assert_eq!(result["ips"][1]["interface"], 2);
    assert_eq!(result["routes"][1]["dst"], "0.0.0.0/0");
    assert_eq!(result["dns"]["nameservers"][0], "192.0.2.53");
}

#[test]
fn malformed_input_has_its_code() {
    if !may_run("malformed_input_has_its_code") {
        return;
    }
    let host = Host::running(&["10.1.0.0/24"]);
    let pod = Netns::new();
    let path = pod.path();
    let netns = path.to_str().unwrap();
    let good = host.network("1.1.0");
    let all = [("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", netns)];
    let fail = |verb: &str, variables: &[(&str, &str)], network: &str| {
        let (answer, success) = host.plugin(verb, variables, network);
        assert!(!success, "{verb} {variables:?} {network}: {answer}");
        assert!(!answer["msg"].as_str().unwrap().is_empty() && answer["cniVersion"].is_string());
        code(&answer)
    };
    let with = |name: &str, value: Value| {
        let mut network = good.clone();
        network[name] = value;
        network.to_string()
    };
    for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
        for version in ["0.1.0", "0.2.0", "0.3.0", "2.0.0", ""] {
            assert_eq!(fail(verb, &all, &with("cniVersion", json!(version))), 1, "{verb}");
        }
        assert_eq!(fail(verb, &all, "{"), 6);
        assert_eq!(fail(verb, &all, ""), 6);
        assert_eq!(fail(verb, &all, r#"{"cniVersion":7}"#), 6);
        for name in ["", "-a", "a/b", "a b"] {
            assert_eq!(fail(verb, &all, &with("name", json!(name))), 7, "{name:?}");
        }
    }
    assert_eq!(fail("add", &all, &good.to_string()), 4);
    for verb in ["ADD", "CHECK"] {
        for missing in 0..3 {
            let mut some = all.to_vec();
            some.remove(missing);
            assert_eq!(
                fail(verb, &some, &good.to_string()),
                4,
                "{verb} without {:?}",
                all[missing]
            );
        }
        let gone = [all[0], all[1], ("CNI_NETNS", "/proc/self/nothing")];
        assert_eq!(fail(verb, &gone, &good.to_string()), 3);
    }
    for ifname in ["a/b", "a:b", "a b", ".", "..", "sixteen-letters!"] {
        let odd = [all[0], ("CNI_IFNAME", ifname), all[2]];
        assert_eq!(fail("ADD", &odd, &good.to_string()), 4, "{ifname}");
    }
    for container in ["-c", "../c", "c d"] {
        let odd = [("CNI_CONTAINERID", container), all[1], all[2]];
        assert_eq!(fail("DEL", &odd, &good.to_string()), 4, "{container}");
    }
    for ranges in [
        json!([[]]),
        json!([[{ "subnet": "10.0.0.0/24", "rangeStart": "10.1.0.0" }]]),
        json!([[{ "subnet": "10.0.0.0/24" }, { "subnet": "fd00::/64" }]]),
    ] {
        assert_eq!(fail("ADD", &all, &with("ranges", ranges)), 7);
    }
    assert_eq!(
        fail("ADD", &all, &with("ranges", json!([[{ "subnet": "10.0.0.0/33" }]]))),
        6
    );
    assert_eq!(fail("ADD", &all, &with("mtu", json!(3))), 7);
    assert_eq!(fail("ADD", &all, &with("mtu", json!(70_000))), 7);
    // No namespace at all is not one to enter, and the host's own is not a pod's.
    assert_eq!(
        fail(
            "ADD",
            &[all[0], all[1], ("CNI_NETNS", "/proc/self/status")],
            &good.to_string()
        ),
        101
    );
    let own = host.netns.path();
    assert_eq!(
        fail(
            "ADD",
            &[all[0], all[1], ("CNI_NETNS", own.to_str().unwrap())],
            &good.to_string()
        ),
        8
    );
    assert_eq!(fail("CHECK", &all, &good.to_string()), 7, "prevResult is missing");
    assert_eq!(fail("CHECK", &all, &with("prevResult", json!({}))), 102, "never added");
    assert_eq!(fail("GC", &[], &good.to_string()), 7);
    // None of it left anything.
    assert!(host.pod_links().is_empty());
    assert_eq!(
        host.journal().iter().filter(|line| line["op"] == "hold").count(),
        1,
        "that of what is no namespace"
    );
    host.pod();
}

#[test]
fn an_interface_is_added_once() {
    if !may_run("an_interface_is_added_once") {
        return;
    }
    let host = Host::running(&["10.1.0.0/24"]);
    let pod = host.pod();
    let network = host.network("1.1.0");
    let again = host.call("ADD", &pod.container, &pod.netns.path(), &network);
    assert_eq!(code(&again.unwrap_err()), 100);
    // The same name in the pod by another container's id.
    let other = host.call("ADD", "other", &pod.netns.path(), &network);
    assert_eq!(code(&other.unwrap_err()), 100);
    host.check(&pod).unwrap();
    assert_eq!(host.pod_links().len(), 1);
    host.del(&pod);
    host.del(&pod);
    assert_eq!(host.call("DEL", "never", &pod.netns.path(), &network), Ok(Value::Null));
}

#[test]
fn del_needs_no_namespace() {
    if !may_run("del_needs_no_namespace") {
        return;
    }
    let host = Host::running(&["10.1.0.0/24"]);
    let pod = host.pod();
    let variables = [("CNI_CONTAINERID", pod.container.as_str()), ("CNI_IFNAME", "eth0")];
    let (_, success) = host.plugin("DEL", &variables, &host.network("1.1.0").to_string());
    assert!(success);
    assert!(host.pod_links().is_empty());
}

#[test]
fn check_sees_every_difference() {
    if !may_run("check_sees_every_difference") {
        return;
    }
    let host = Host::running(&["10.1.0.0/24", "fd00:10:1::/64"]);
    for change in [
        "addr del 10.1.0.X/32 dev eth0",
        "addr del fd00:10:1::X/128 dev eth0",
        "route del default",
        "-6 route del default",
        "link set eth0 address 02:00:00:00:00:01",
        "link set eth0 name eth9",
        "link del eth0",
    ] {
        let pod = host.pod();
        host.check(&pod).unwrap();
        let last = pod.ips()[0].rsplit('.').next().unwrap().to_owned();
        if change.contains("name") {
            pod.netns.ip("link set eth0 down");
        }
        pod.netns.ip(&change.replace('X', &last));
        assert_eq!(code(&host.check(&pod).unwrap_err()), 102, "{change}");
        host.del(&pod);
    }
}

#[test]
fn gc_removes_what_is_not_listed() {
    if !may_run("gc_removes_what_is_not_listed") {
        return;
    }
    let host = Host::running(&["10.1.0.0/24"]);
    let pods: Vec<_> = (0..4).map(|_| host.pod()).collect();
    let mut other = host.network("1.1.0");
    other["name"] = json!("other");
    let netns = Netns::new();
    host.call("ADD", "of-another-network", &netns.path(), &other).unwrap();
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let mut network = host.network("1.1.0");
        let live = pods[1..3]
            .iter()
            .map(|pod| json!({ "containerID": pod.container, "ifname": "eth0" }));
        network[key] = live.collect();
        let (answer, success) = host.plugin("GC", &[], &network.to_string());
        assert!(success, "{answer}");
        let held: BTreeSet<_> = held(&host);
        assert_eq!(held.len(), 3, "{held:?}");
        assert!(held.contains(&pods[1].container) && held.contains("of-another-network"));
        assert_eq!(host.pod_links().len(), 3);
        host.check(&pods[2]).unwrap();
    }
    let valid = [fairlead_cni::Key {
        container: pods[1].container.clone(),
        ifname: "eth0".into(),
    }];
    fairlead_cni::collect_garbage(&host.config.run_dir, valid.to_vec()).unwrap();
    assert_eq!(held(&host).len(), 2);
}

/// Containers that hold addresses according to the journal.
pub(crate) fn held(host: &Host) -> BTreeSet<String> {
    let mut held = BTreeSet::new();
    for line in host.journal() {
        let id = line["id"].as_str().unwrap_or_default().to_owned();
        match line["op"].as_str().unwrap() {
            "hold" => assert!(held.insert(id)),
            "release" => assert!(held.remove(&id)),
            _ => {}
        }
    }
    held
}

#[test]
fn exhaustion_is_told_before_and_after() {
    if !may_run("exhaustion_is_told_before_and_after") {
        return;
    }
    let host = Host::running(&["10.1.0.0/30", "fd00:10:1::/64"]);
    host.status().unwrap();
    let (_a, b) = (host.pod(), host.pod());
    let status = host.status().unwrap_err();
    assert_eq!(code(&status), 50);
    assert!(
        status["details"].as_str().unwrap().contains("10.1.0.1-10.1.0.2"),
        "{status}"
    );
    let netns = Netns::new();
    let refused = host
        .call("ADD", "third", &netns.path(), &host.network("1.1.0"))
        .unwrap_err();
    assert_eq!(code(&refused), 11);
    assert!(
        refused["details"].as_str().unwrap().contains("10.1.0.1-10.1.0.2"),
        "{refused}"
    );
    // The other family's address is not lost by it.
    assert_eq!(held(&host).len(), 2);
    host.del(&b);
    host.status().unwrap();
    // Ranges of a network of its own.
    let mut network = host.network("1.1.0");
    network["ranges"] = json!([[{ "subnet": "10.9.0.0/29", "rangeStart": "10.9.0.5", "gateway": "10.9.0.5" }]]);
    let result = host.call("ADD", "own", &netns.path(), &network).unwrap();
    assert_eq!(result["ips"][0]["address"], "10.9.0.6/32");
    assert_eq!(result["ips"].as_array().unwrap().len(), 1);
}

#[test]
fn without_pod_networks_pods_wait() {
    if !may_run("without_pod_networks_pods_wait") {
        return;
    }
    let mut host = Host::new(&[]);
    host.start();
    crate::rig::eventually("the agent answers", || {
        host.status().is_err_and(|answer| {
            answer["msg"]
                .as_str()
                .is_some_and(|msg| msg.contains("no pod network yet"))
        })
    });
    assert_eq!(code(&host.status().unwrap_err()), 50);
    let netns = Netns::new();
    let refused = host
        .call("ADD", "early", &netns.path(), &host.network("1.1.0"))
        .unwrap_err();
    assert_eq!(code(&refused), 11);
    // The runtime is not told of a network that cannot serve.
    assert!(!host.config.cni_conf_dir.join(fairlead_cni::CONFLIST).exists());
}

#[test]
fn the_loopback_plugin_of_older_runtimes_is_there() {
    if !may_run("the_loopback_plugin_of_older_runtimes_is_there") {
        return;
    }
    let host = Host::running(&["10.1.0.0/24"]);
    let pod = Netns::new();
    pod.ip("link set lo down");
    let path = pod.path();
    let all = [
        ("CNI_CONTAINERID", "c"),
        ("CNI_IFNAME", "lo"),
        ("CNI_NETNS", path.to_str().unwrap()),
    ];
    let network = r#"{"cniVersion":"0.3.1","name":"cni-loopback","type":"loopback"}"#;
    assert_eq!(code(&host.plugin_as("loopback", "CHECK", &all, network).0), 102);
    let (result, success) = host.plugin_as("loopback", "ADD", &all, network);
    assert!(success, "{result}");
    assert_eq!(result["interfaces"][0]["name"], "lo");
    assert_eq!(
        result["ips"][0],
        json!({ "address": "127.0.0.1/8", "interface": 0, "version": "4" })
    );
    assert_eq!(pod.ask(pod.serve("127.0.0.1")).unwrap(), "127.0.0.1");
    for verb in ["CHECK", "DEL"] {
        assert!(host.plugin_as("loopback", verb, &all, network).1, "{verb}");
    }
}
