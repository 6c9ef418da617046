//! Packets between pods, nodes and the outside.

use crate::rig::{Host, Netns, may_run};
use std::process::Command;

const V4: &str = "10.1.0.0/24";
const V6: &str = "fd00:10:1::/64";

#[test]
fn pods_and_their_node_reach_one_another_in_both_families() {
    if !may_run("pods_and_their_node_reach_one_another_in_both_families") {
        return;
    }
    let host = Host::running(&[V4, V6]);
    host.netns.ip("link add eth0 type bridge");
    host.netns.ip("addr add 192.168.0.1/24 dev eth0");
    host.netns.ip("addr add fd00:192:168::1/64 dev eth0 nodad");
    host.netns.ip("link set eth0 up");
    let (a, b) = (host.pod(), host.pod());
    assert_eq!(a.ips(), ["10.1.0.1", "fd00:10:1::1"]);
    assert_eq!(b.ips(), ["10.1.0.2", "fd00:10:1::2"]);
    for (at, node) in ["192.168.0.1", "fd00:192:168::1"].into_iter().enumerate() {
        let server = b.netns.serve(&b.ips()[at]);
        assert_eq!(a.netns.ask(server).unwrap(), a.ips()[at], "pod to pod");
        assert_eq!(host.netns.ask(server).unwrap(), node, "node to pod");
        let server = host.netns.serve(node);
        assert_eq!(a.netns.ask(server).unwrap(), a.ips()[at], "pod to node");
    }
    host.check(&a).unwrap();
    // An address of the node's networks that no pod has leads nowhere, not out.
    for nobody in ["10.1.0.77", "fd00:10:1::77"] {
        let said = host
            .netns
            .run(|| Command::new("ip").args(["route", "get", nobody]).output().unwrap());
        assert!(!said.status.success(), "{said:?}");
    }
}

#[test]
fn only_traffic_to_the_outside_gets_the_nodes_address() {
    if !may_run("only_traffic_to_the_outside_gets_the_nodes_address") {
        return;
    }
    let outside = Netns::new();
    let mut host = Host::new(&[V4, V6]);
    host.config.cluster_cidrs = vec!["10.1.0.0/16".parse().unwrap(), "fd00:10:1::/48".parse().unwrap()];
    let (here, there) = (
        ["203.0.113.2/24", "2001:db8:113::2/64"],
        ["203.0.113.1/24", "2001:db8:113::1/64"],
    );
    host.netns.join("eth0", &here, &outside, "eth9", &there);
    host.netns.ip("route add default via 203.0.113.1");
    host.netns.ip("route add default via 2001:db8:113::1");
    // Part of the cluster, but not of this node.
    outside.ip("addr add 10.1.9.9/32 dev eth9");
    outside.ip("route add 10.1.0.0/24 via 203.0.113.2");
    host.start();
    host.ready();
    let pod = host.pod();
    for (server, source) in [
        ("203.0.113.1", "203.0.113.2"),
        ("2001:db8:113::1", "2001:db8:113::2"),
        ("10.1.9.9", pod.ips()[0].as_str()),
    ] {
        assert_eq!(pod.netns.ask(outside.serve(server)).unwrap(), source);
    }
    // Nor does anybody else's traffic get it: the node's own has it already, and what is forwarded keeps its own.
    assert_eq!(host.netns.ask(outside.serve("203.0.113.1")).unwrap(), "203.0.113.2");
}

#[test]
fn global_addresses_of_pods_are_not_masqueraded() {
    if !may_run("global_addresses_of_pods_are_not_masqueraded") {
        return;
    }
    let outside = Netns::new();
    let host = Host::running(&["2001:db8:1::/64"]);
    host.netns.join(
        "eth0",
        &["2001:db8:113::2/64"],
        &outside,
        "eth9",
        &["2001:db8:113::1/64"],
    );
    outside.ip("route add 2001:db8:1::/64 via 2001:db8:113::2");
    let pod = host.pod();
    assert_eq!(pod.netns.ask(outside.serve("2001:db8:113::1")).unwrap(), pod.ips()[0]);
}

#[test]
fn links_have_the_mtu_of_the_uplink() {
    if !may_run("links_have_the_mtu_of_the_uplink") {
        return;
    }
    let outside = Netns::new();
    let mut host = Host::new(&[V4]);
    host.netns
        .join("eth0", &["203.0.113.2/24"], &outside, "eth9", &["203.0.113.1/24"]);
    host.netns.ip("link set eth0 mtu 1400");
    host.netns.ip("route add default via 203.0.113.1");
    host.start();
    host.ready();
    let pod = host.pod();
    assert_eq!(pod.result["interfaces"][1]["mtu"], 1400);
    assert_eq!(pod.result["routes"][0]["mtu"], 1400);
    assert!(pod.netns.ip("link show eth0").contains("mtu 1400"));
    assert!(pod.netns.ip("route show default").contains("mtu 1400"));
    // A network's own setting wins.
    let mut network = host.network("1.1.0");
    network["mtu"] = 9000.into();
    let netns = Netns::new();
    let result = host.call("ADD", "other", &netns.path(), &network).unwrap();
    assert_eq!(result["interfaces"][0]["mtu"], 9000);
}
