//! Addresses of Services: who gets which, conflicts, exhaustion; no address twice.

use super::pool::{Pool, Refused, given, ingress, is_ours, node_addresses};
use crate::{cluster::config::AddressPool, frame::Key};
use k8s_openapi::api::core::v1::{Node, Service};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

fn service(families: &[&str], more: &[(&str, Value)]) -> Service {
    let mut spec =
        json!({ "type": "LoadBalancer", "ipFamilies": families, "ports": [{ "port": 80, "protocol": "TCP" }] });
    for (name, value) in more {
        spec[*name] = value.clone();
    }
    serde_json::from_value(json!({ "metadata": { "name": "s", "namespace": "d" }, "spec": spec })).unwrap()
}

fn pool(ranges: &[&str]) -> Pool {
    Pool::new(AddressPool::Ranges(
        ranges.iter().map(|it| it.parse().unwrap()).collect(),
    ))
}

fn key(name: &str) -> Key {
    Key::new("d", name)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn whose_services_are_ours() {
    let table = [
        (&[][..], true),
        (&[("loadBalancerClass", json!("fairlead.dev/pool"))], true),
        (&[("loadBalancerClass", json!("example.com/other"))], false),
        (&[("type", json!("NodePort"))], false),
    ];
    for (more, wanted) in table {
        assert_eq!(is_ours(&service(&["IPv4"], more)), wanted, "{more:?}");
    }
}

#[test]
fn each_service_has_its_own_of_each_family() {
    let mut pool = pool(&["192.0.2.0/30", "2001:db8::/126"]);
    let (none, dual) = (BTreeSet::new(), service(&["IPv6", "IPv4"], &[]));
    let first = pool.assign(&key("a"), &dual, &none).unwrap();
    assert_eq!(first, [ip("2001:db8::1"), ip("192.0.2.1")]);
    assert_eq!(pool.assign(&key("a"), &dual, &none).unwrap(), first, "the same again");
    assert_eq!(
        pool.assign(&key("b"), &dual, &none).unwrap(),
        [ip("2001:db8::2"), ip("192.0.2.2")]
    );
    assert_eq!(pool.assign(&key("c"), &dual, &none), Err(Refused::Exhausted("IPv4")));
    assert_eq!(
        pool.assign(&key("d"), &service(&["IPv6"], &[]), &none).unwrap(),
        [ip("2001:db8::3")],
        "c took nothing"
    );
    assert!(pool.release(&key("a")));
    assert_eq!(pool.assign(&key("c"), &dual, &none).unwrap(), first);
}

#[test]
fn wishes_are_kept_or_refused() {
    let mut pool = pool(&["192.0.2.0/28"]);
    let none = BTreeSet::new();
    let wish = |it: &str| service(&["IPv4"], &[("loadBalancerIP", json!(it))]);
    assert_eq!(
        pool.assign(&key("a"), &wish("192.0.2.9"), &none).unwrap(),
        [ip("192.0.2.9")]
    );
    let taken = Refused::Taken {
        address: ip("192.0.2.9"),
        owner: key("a"),
    };
    assert_eq!(pool.assign(&key("b"), &wish("192.0.2.9"), &none), Err(taken));
    assert_eq!(
        pool.assign(&key("b"), &wish("198.51.100.1"), &none),
        Err(Refused::Foreign(ip("198.51.100.1")))
    );
    assert_eq!(
        pool.assign(&key("b"), &wish("192.0.2.0"), &none),
        Err(Refused::Foreign(ip("192.0.2.0")))
    );
    assert_eq!(
        pool.assign(&key("a"), &wish("192.0.2.3"), &none).unwrap(),
        [ip("192.0.2.3")]
    );
    assert_eq!(
        pool.assign(&key("b"), &wish("192.0.2.9"), &none).unwrap(),
        [ip("192.0.2.9")]
    );
}

#[test]
fn of_two_that_show_the_same_one_is_given_another() {
    let mut pool = pool(&["192.0.2.0/28"]);
    let mut shows = service(&["IPv4"], &[]);
    shows
        .status
        .get_or_insert_default()
        .load_balancer
        .get_or_insert_default()
        .ingress = Some(ingress(&[ip("192.0.2.1")]));
    assert_eq!(given(&shows), [ip("192.0.2.1")]);
    pool.adopt(&key("old"), &shows);
    pool.adopt(&key("new"), &shows);
    let none = BTreeSet::new();
    assert_eq!(pool.assign(&key("new"), &shows, &none).unwrap(), [ip("192.0.2.2")]);
    assert_eq!(pool.assign(&key("old"), &shows, &none).unwrap(), [ip("192.0.2.1")]);
}

#[test]
fn services_share_the_nodes_but_not_a_port() {
    let node = |ready: &str, addresses: Value| -> Node {
        serde_json::from_value(json!({
            "metadata": {}, "status": { "addresses": addresses, "conditions": [{ "type": "Ready", "status": ready }] },
        }))
        .unwrap()
    };
    let internal = |ip: &str| json!({ "type": "InternalIP", "address": ip });
    let external = |ip: &str| json!({ "type": "ExternalIP", "address": ip });
    let nodes = [
        node("True", json!([internal("192.168.0.1"), internal("fd00::1")])),
        node("True", json!([internal("192.168.0.2"), external("203.0.113.2")])),
        node("False", json!([internal("192.168.0.3")])),
    ];
    let addresses = node_addresses(&nodes);
    assert_eq!(addresses, [ip("192.168.0.1"), ip("203.0.113.2"), ip("fd00::1")].into());
    let mut pool = Pool::new(AddressPool::Nodes);
    let web = service(&["IPv4"], &[]);
    assert_eq!(
        pool.assign(&key("a"), &web, &addresses).unwrap(),
        [ip("192.168.0.1"), ip("203.0.113.2")]
    );
    let refused = Refused::Port {
        port: "80/TCP".to_owned(),
        owner: key("a"),
    };
    assert_eq!(pool.assign(&key("b"), &web, &addresses), Err(refused));
    let other = service(&["IPv6"], &[("ports", json!([{ "port": 80, "protocol": "UDP" }]))]);
    assert_eq!(pool.assign(&key("b"), &other, &addresses).unwrap(), [ip("fd00::1")]);
    pool.release(&key("a"));
    assert!(pool.assign(&key("c"), &web, &addresses).is_ok());
    assert_eq!(
        pool.assign(
            &key("d"),
            &service(&["IPv4"], &[("ports", json!([{ "port": 1 }]))]),
            &BTreeSet::new()
        ),
        Err(Refused::NoNode)
    );
}

proptest! {
    /// Whatever comes and goes, also over a restart, no address has two owners.
    #[test]
    fn no_address_is_given_twice(steps in prop::collection::vec((0u8..4, 0u8..12), 1..120)) {
        let mut pool = pool(&["192.0.2.0/29", "192.0.2.16/30"]);
        let none = BTreeSet::new();
        let mut model: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        for (what, number) in steps {
            let name = format!("s{number}");
            match what {
                0 => {
                    pool.release(&key(&name));
                    model.remove(&name);
                }
                1 => {
                    pool = self::pool(&["192.0.2.0/29", "192.0.2.16/30"]);
                    for (name, addresses) in &model {
                        let mut shows = service(&["IPv4"], &[]);
                        shows.status.get_or_insert_default().load_balancer.get_or_insert_default().ingress = Some(ingress(addresses));
                        pool.adopt(&key(name), &shows);
                    }
                }
                _ => match pool.assign(&key(&name), &service(&["IPv4"], &[]), &none) {
                    Ok(addresses) => {
                        prop_assert!(model.iter().all(|(other, it)| *other == name || *it != addresses));
                        model.insert(name, addresses);
                    }
                    Err(_) => prop_assert_eq!(model.len(), 8),
                },
            }
        }
    }
}
