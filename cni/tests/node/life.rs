//! Many pods at once, agents that die and come back, hosts that others meddle with.

use crate::{
    rig::{Host, Netns, eventually, may_run, run},
    spec::held,
};
use serde_json::Value;
use std::{collections::BTreeSet, fs, thread};

#[test]
fn fifty_adds_at_once_get_fifty_addresses() {
    if !may_run("fifty_adds_at_once_get_fifty_addresses") {
        return;
    }
    let host = Host::running(&["10.1.0.0/24", "fd00:10:1::/64"]);
    let pods: Vec<_> = thread::scope(|scope| {
        let adding: Vec<_> = (0..50).map(|_| scope.spawn(|| host.pod())).collect();
        adding.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let ips: BTreeSet<_> = pods.iter().flat_map(crate::rig::Pod::ips).collect();
    assert_eq!(ips.len(), 100);
    assert_eq!(held(&host).len(), 50);
    let server = pods[49].netns.serve(&pods[49].ips()[1]);
    for pod in &pods[..49] {
        assert_eq!(pod.netns.ask(server).unwrap(), pod.ips()[1]);
    }
    thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| host.del(pod));
        }
    });
    assert!(held(&host).is_empty());
    assert!(host.pod_links().is_empty());
}

#[test]
fn pods_outlive_a_killed_agent_and_are_known_to_the_next() {
    if !may_run("pods_outlive_a_killed_agent_and_are_known_to_the_next") {
        return;
    }
    let mut host = Host::new(&["10.1.0.0/24", "fd00:10:1::/64"]);
    host.start_process();
    let (a, b) = (host.pod(), host.pod());
    let server = b.netns.serve(&b.ips()[0]);
    host.stop();
    assert_eq!(a.netns.ask(server).unwrap(), a.ips()[0]);
    // The socket of the killed agent is still there, and nobody answers.
    assert!(host.config.run_dir.join("agent.sock").exists());
    host.check(&a).unwrap();
    let netns = Netns::new();
    let refused = host
        .call("ADD", "meanwhile", &netns.path(), &host.network("1.1.0"))
        .unwrap_err();
    assert_eq!(refused["code"], 11);
    assert!(
        refused["msg"].as_str().unwrap().contains("no node agent answers"),
        "{refused}"
    );
    assert_eq!(host.status().unwrap_err()["code"], 50);
    host.start_process();
    host.check(&a).unwrap();
    let c = host.pod();
    assert_eq!(c.ips(), ["10.1.0.3", "fd00:10:1::3"]);
    assert_eq!(c.netns.ask(server).unwrap(), c.ips()[0]);
    host.stop();
}

#[test]
fn del_check_and_gc_work_without_an_agent() {
    if !may_run("del_check_and_gc_work_without_an_agent") {
        return;
    }
    let mut host = Host::running(&["10.1.0.0/24"]);
    let pods: Vec<_> = (0..4).map(|_| host.pod()).collect();
    host.stop();
    for _ in 0..2 {
        host.del(&pods[0]);
        assert_eq!(held(&host).len(), 3);
        assert_eq!(host.pod_links().len(), 3);
    }
    assert_eq!(host.check(&pods[0]).unwrap_err()["code"], 102);
    host.check(&pods[1]).unwrap();
    host.netns.ip(&format!(
        "link del {}",
        pods[1].result["interfaces"][0]["name"].as_str().unwrap()
    ));
    assert_eq!(host.check(&pods[1]).unwrap_err()["code"], 102);
    host.del(&pods[1]);
    let mut network = host.network("1.1.0");
    network["cni.dev/valid-attachments"] = serde_json::json!([{ "containerID": pods[3].container, "ifname": "eth0" }]);
    assert!(host.plugin("GC", &[], &network.to_string()).1);
    assert_eq!(held(&host), BTreeSet::from([pods[3].container.clone()]));
    host.start();
    host.ready();
    host.check(&pods[3]).unwrap();
    // What was released rests; there are addresses that were never used.
    assert_eq!(host.pod().ips(), ["10.1.0.5"]);
}

#[test]
fn many_dels_without_an_agent_take_turns() {
    if !may_run("many_dels_without_an_agent_take_turns") {
        return;
    }
    let mut host = Host::running(&["10.1.0.0/24"]);
    let pods: Vec<_> = (0..20).map(|_| host.pod()).collect();
    host.stop();
    // And an agent starts in between.
    thread::scope(|scope| {
        let host = &host;
        let deleting: Vec<_> = pods.iter().map(|pod| scope.spawn(move || host.del(pod))).collect();
        for thread in deleting {
            thread.join().unwrap();
        }
    });
    assert!(held(&host).is_empty());
    assert!(host.pod_links().is_empty());
}

#[test]
fn del_where_no_agent_ever_ran_succeeds() {
    if !may_run("del_where_no_agent_ever_ran_succeeds") {
        return;
    }
    let host = Host::new(&[]);
    fairlead_cni::install(&host.config.cni_bin_dir).unwrap();
    let netns = Netns::new();
    assert_eq!(
        host.call("DEL", "c", &netns.path(), &host.network("1.1.0")),
        Ok(Value::Null)
    );
    assert!(!host.config.run_dir.exists());
}

#[test]
fn a_boot_frees_all_addresses() {
    if !may_run("a_boot_frees_all_addresses") {
        return;
    }
    let mut host = Host::running(&["10.1.0.0/24"]);
    let _pods = [host.pod(), host.pod()];
    host.stop();
    // After a boot there are no links, and the boot has another name.
    let path = host.config.run_dir.join("journal");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let old = "00000000-0000-0000-0000-000000000000";
    let json = format!(r#"{{"op":"boot","id":"{old}"}}"#);
    let mut text = String::from_utf8(fs::read(&path).unwrap()).unwrap();
    let end = text.find('\n').unwrap();
    assert!(text[..end].contains(boot.trim()));
    text.replace_range(..end, &format!("{:08x} {json}", crc32fast::hash(json.as_bytes())));
    fs::write(&path, text).unwrap();
    host.netns = Netns::new();
    host.start();
    host.ready();
    assert!(held(&host).is_empty());
    assert_eq!(host.pod().ips(), ["10.1.0.1"]);
}

#[test]
fn addresses_come_back_when_a_pods_namespace_goes() {
    if !may_run("addresses_come_back_when_a_pods_namespace_goes") {
        return;
    }
    let host = Host::running(&["10.1.0.0/24"]);
    let kept = host.pod();
    let gone = host.pod();
    let container = gone.container.clone();
    drop(gone);
    eventually("the address is free without DEL", || {
        held(&host) == BTreeSet::from([kept.container.clone()])
    });
    host.check(&kept).unwrap();
    // DEL may come after all.
    let netns = Netns::new();
    host.call("DEL", &container, &netns.path(), &host.network("1.1.0"))
        .unwrap();
}

#[test]
fn what_others_remove_is_put_back() {
    if !may_run("what_others_remove_is_put_back") {
        return;
    }
    let host = Host::running(&["10.1.0.0/24", "fd00:10:1::/64"]);
    let pod = host.pod();
    let nft = |args: &[&str]| host.netns.run(|| run("nft", args));
    let rules = || nft(&["list", "ruleset"]);
    let routes = || host.netns.ip("route show table main") + &host.netns.ip("-6 route show table main");
    let (good_rules, good_routes) = (rules(), routes());
    assert!(
        good_rules.contains("masquerade") && good_rules.contains("fully-random"),
        "{good_rules}"
    );
    assert!(good_routes.contains("blackhole 10.1.0.0/24"), "{good_routes}");
    nft(&["flush", "ruleset"]);
    eventually("the table is back", || rules() == good_rules);
    let table = good_rules.split(' ').nth(2).unwrap().to_owned();
    nft(&["flush", "chain", "inet", &table, "postrouting"]);
    eventually("the rules are back", || rules() == good_rules);
    for route in [
        "route del blackhole 10.1.0.0/24",
        "route del 10.1.0.1",
        "-6 route del fd00:10:1::1",
    ] {
        host.netns.ip(route);
        eventually("the route is back", || routes() == good_routes);
    }
    host.check(&pod).unwrap();
    host.netns
        .run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap());
    // Nothing tells of a setting, so any other change has to.
    host.netns.ip("link add other type bridge");
    eventually("forwarding is back", || {
        host.netns
            .run(|| fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap())
            == "1\n"
    });
    host.status().unwrap();
}

#[test]
fn uninstalling_leaves_nothing() {
    if !may_run("uninstalling_leaves_nothing") {
        return;
    }
    let mut host = Host::new(&["10.1.0.0/24", "fd00:10:1::/64"]);
    let state = |host: &Host| {
        let routes = host.netns.ip("route show table all") + &host.netns.ip("-6 route show table all");
        (
            host.netns.ip("-o link show"),
            routes,
            host.netns.run(|| run("nft", &["list", "ruleset"])),
        )
    };
    // Somebody else's.
    host.netns.run(|| run("nft", &["add", "table", "inet", "other"]));
    host.netns.ip("route add blackhole 10.77.0.0/16");
    let before = state(&host);
    host.start();
    host.ready();
    let pods = [host.pod(), host.pod()];
    let files = || {
        let dirs = [&host.config.cni_bin_dir, &host.config.cni_conf_dir];
        dirs.map(|dir| fs::read_dir(dir).unwrap().count())
    };
    eventually("the network is announced", || files() == [2, 1]);
    let error = host.netns.run(|| fairlead_cni::uninstall(&host.config)).unwrap_err();
    assert!(error.to_string().contains("stop it first"), "{error}");
    host.stop();
    host.netns.run(|| fairlead_cni::uninstall(&host.config)).unwrap();
    assert_eq!(state(&host), before);
    let dirs = [&host.config.cni_bin_dir, &host.config.cni_conf_dir];
    assert_eq!(dirs.map(|dir| fs::read_dir(dir).unwrap().count()), [0, 0]);
    assert!(!host.config.run_dir.exists());
    assert!(!pods[0].netns.ip("-o link show").contains("eth0"));
    // Again, with nothing there.
    host.netns.run(|| fairlead_cni::uninstall(&host.config)).unwrap();
}

#[test]
fn a_second_agent_does_not_start() {
    if !may_run("a_second_agent_does_not_start") {
        return;
    }
    let host = Host::running(&["10.1.0.0/24"]);
    let config = host.config.clone();
    let error = host.netns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let nobody = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
            let client = kube::Client::try_from(nobody).unwrap();
            fairlead_cni::run(config, client, tokio_util::sync::CancellationToken::new())
                .await
                .unwrap_err()
        })
    });
    assert!(error.to_string().contains("another node agent runs"), "{error}");
}
