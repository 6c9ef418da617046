//! Who reaches whom without any agent.

use harness::{Actor, Ask, Failure, Topology, Transport, addr};
use std::{net::SocketAddr, time::Duration};

/// What of the plain network a host belongs to: pods and nodes reach each other, as do nodes and the outside.
#[derive(Clone, Copy, PartialEq)]
enum Zone {
    Outside,
    Node,
    Pod,
}

fn hosts(topology: &Topology) -> Vec<(&Actor, Zone, [std::net::IpAddr; 2])> {
    let outside = (
        topology.outside(),
        Zone::Outside,
        addr::FAMILIES.map(|family| addr::outside(family, 0)),
    );
    let nodes = topology
        .nodes()
        .iter()
        .map(|node| (&node.actor, Zone::Node, addr::FAMILIES.map(|f| node.ip(f))));
    let pods = topology
        .pods()
        .map(|pod| (&pod.actor, Zone::Pod, addr::FAMILIES.map(|f| pod.ip(f))));
    std::iter::once(outside).chain(nodes).chain(pods).collect()
}

#[test]
fn every_host_reaches_the_hosts_it_should() {
    let topology = Topology::standard(2, 2).unwrap();
    let hosts = hosts(&topology);
    let transports = [Transport::Tcp, Transport::Udp, Transport::Http];
    for (actor, _, ips) in &hosts {
        for (port, transport) in (8000..).zip(transports) {
            for ip in ips {
                actor.serve(transport, SocketAddr::new(*ip, port));
            }
        }
    }
    let mut asked = 0;
    for (client, from, sources) in &hosts {
        for (server, to, ips) in &hosts {
            // The router does not know the pods: that is why services are needed.
            if matches!((from, to), (Zone::Outside, Zone::Pod) | (Zone::Pod, Zone::Outside)) {
                continue;
            }
            for (ip, source) in ips.iter().zip(sources) {
                for (port, transport) in (8000..).zip(transports) {
                    let answer = client.ask(&Ask::new(transport, SocketAddr::new(*ip, port)));
                    let answer = answer.unwrap_or_else(|error| {
                        panic!("{} → {} {transport} {ip}: {error}", client.name(), server.name())
                    });
                    assert_eq!(answer.served_by, server.name());
                    assert_eq!(answer.seen_peer, answer.local_addr, "nothing translates");
                    if client.name() != server.name() {
                        assert_eq!(answer.seen_peer.ip(), *source);
                    }
                    asked += 1;
                }
            }
        }
    }
    assert_eq!(asked, (7 * 7 - 2 * 4) * 6);
}

#[test]
fn pods_are_not_reached_from_outside() {
    let topology = Topology::standard(1, 1).unwrap();
    for family in addr::FAMILIES {
        let dst = SocketAddr::new(topology.pod("a1").ip(family), 80);
        // TCP and plain UDP take "no route" for a passing trouble; only a socket with an error queue is told.
        let ask = Ask::udp(dst).dont_fragment().timeout(Duration::from_secs(1));
        let error = topology.outside().ask(&ask).unwrap_err();
        assert!(
            matches!(error.kind, Failure::NetworkUnreachable | Failure::HostUnreachable),
            "{family:?}: {error}"
        );
    }
}

#[test]
fn virtual_addresses_are_routed_to_the_chosen_node() {
    let topology = Topology::standard(2, 0).unwrap();
    for node in topology.nodes() {
        topology.route_vips_to(node).unwrap();
        for family in addr::FAMILIES {
            for ip in [addr::load_balancer(family, 1), addr::external(family, 1)] {
                let nodad = if ip.is_ipv6() { "nodad" } else { "" };
                node.actor.ip(&format!("addr add {ip} dev lo {nodad}")).unwrap();
                let serving = node.actor.serve(Transport::Tcp, SocketAddr::new(ip, 80));
                assert_eq!(
                    topology.outside().ask(&Ask::tcp(serving.addr)).unwrap().served_by,
                    node.name
                );
            }
        }
    }
}

#[test]
fn nodes_are_in_cgroups_of_their_own() {
    let topology = Topology::standard(2, 1).unwrap();
    for node in topology.nodes() {
        let members = |path: &std::path::Path| std::fs::read_to_string(path.join("cgroup.procs")).unwrap();
        assert_eq!(members(&node.cgroup).trim(), node.actor.pid().to_string());
        for pod in &node.pods {
            assert_eq!(
                members(&node.cgroup.join(&pod.name)).trim(),
                pod.actor.pid().to_string()
            );
        }
    }
}

#[test]
fn nodes_see_their_own_links_and_bpffs() {
    let topology = Topology::standard(2, 1).unwrap();
    for (node, pod) in topology.nodes().iter().zip(["veth-a1", "veth-b1"]) {
        let listed = node.actor.run("ls", &["/sys/class/net"], "").unwrap();
        assert!(
            listed.stdout.contains(pod) && listed.stdout.contains("eth0"),
            "{listed:?}"
        );
        let pinned = node.actor.run("mkdir", &["/sys/fs/bpf/only-here"], "").unwrap();
        assert_eq!(
            pinned.code,
            Some(0),
            "each node has an empty bpffs of its own: {pinned:?}"
        );
        let cgroup = node.cgroup.join("cgroup.procs");
        assert_eq!(
            node.actor.run("cat", &[&cgroup.to_string_lossy()], "").unwrap().code,
            Some(0)
        );
    }
    assert!(!std::path::Path::new("/sys/fs/bpf/only-here").exists());
}
