//! The cluster's own life: killed, stopped, started again, taken down.

use crate::{client, in_client, one_node, server, text};
use harness::{Cluster, Topology};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// How often the whole process is killed; more by `CLUSTER_KILLS`.
fn kills() -> u32 {
    std::env::var("CLUSTER_KILLS")
        .ok()
        .and_then(|it| it.parse().ok())
        .unwrap_or(3)
}

#[test]
fn pods_connections_and_objects_survive_kills_of_the_whole_process() {
    let topology = one_node();
    let cluster = Cluster::start(&topology, topology.node("node-a"), &[]).unwrap();
    client(&cluster);
    server(&cluster, "web", 2);
    let hold = "testbox hold http://web/ > /tmp/held 2> /tmp/broken & echo $! > /tmp/pid";
    cluster.kubectl(&["exec", "client", "--", "sh", "-c", hold]);
    let containers = |cluster: &Cluster<'_>| -> BTreeSet<String> {
        let pods = cluster.get("pods");
        let pods = pods["items"].as_array().unwrap().iter();
        pods.map(|it| text(it, "/status/containerStatuses/0/containerID").to_owned())
            .collect()
    };
    let before = containers(&cluster);
    let mut acknowledged = Vec::new();
    for round in 0..kills() {
        // Written until the moment of the kill, which is another one each time.
        for n in 0..=(round * 7) % 13 {
            let name = format!("written-{round}-{n}");
            cluster.kubectl(&["create", "configmap", &name]);
            acknowledged.push(name);
        }
        cluster.stop(9).unwrap();
        cluster.launch().unwrap();
        let answer = in_client(&cluster, &["get", "http://web/"]);
        assert!(answer.starts_with("web-"), "{answer}");
    }
    let maps = cluster.kubectl(&["get", "configmaps", "-o", "name"]);
    let maps: BTreeSet<&str> = maps.lines().collect();
    for name in &acknowledged {
        assert!(
            maps.contains(format!("configmap/{name}").as_str()),
            "{name} was acknowledged and is lost"
        );
    }
    assert_eq!(containers(&cluster), before, "the same containers run");
    let pods = cluster.get("pods");
    for pod in pods["items"].as_array().unwrap() {
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
    }
    let alive = "kill -0 $(cat /tmp/pid) && test ! -s /tmp/broken && wc -l < /tmp/held";
    let held: u32 = cluster
        .kubectl(&["exec", "client", "--", "sh", "-c", alive])
        .trim()
        .parse()
        .unwrap();
    assert!(held > 10, "one connection answered all the time: {held}");
}

#[test]
fn what_was_stopped_is_found_again_and_what_is_taken_down_leaves_nothing() {
    let topology = one_node();
    let node = topology.node("node-a");
    let links = || {
        node.actor
            .run("ip", &["-o", "link"], "")
            .unwrap()
            .stdout
            .lines()
            .count()
    };
    let before = (links(), host_traces(&topology));
    let cluster = Cluster::start(&topology, node, &[]).unwrap();
    server(&cluster, "web", 2);
    let pods = cluster.kubectl(&["get", "pods", "-o", "name"]);
    assert_eq!(cluster.stop(2).unwrap(), Some(0), "Ctrl-C: {}", cluster.said());
    cluster.launch().unwrap();
    assert_eq!(cluster.kubectl(&["get", "pods", "-o", "name"]), pods);
    assert!(links() > before.0);

    // A second one on the same data directory is refused by name.
    let run = cluster.run_dir().to_string_lossy().into_owned();
    let data = cluster.data().to_string_lossy().into_owned();
    let places = ["--data-dir", data.as_str(), "--run-dir", run.as_str()];
    let program = harness::agent::binary().unwrap();
    let fairlead = |words: &[&str]| {
        node.actor
            .run(&program.to_string_lossy(), &[words, &places].concat(), "")
            .unwrap()
    };
    let refused = fairlead(&["up"]);
    assert!(
        refused.code == Some(1) && refused.stderr.contains("is in use by process"),
        "{refused:?}"
    );

    cluster.kubectl(&["delete", "deployment,service", "web"]);
    cluster
        .until("deleted pods leave no link", || Ok((links() == before.0).then_some(())))
        .unwrap();
    server(&cluster, "web", 2);
    let down = fairlead(&["down", "--all"]);
    assert_eq!(down.code, Some(0), "{down:?}");
    assert_eq!((links(), host_traces(&topology)), before);
    assert!(!Path::new(&data).exists() && !Path::new(&run).exists());
    let again = fairlead(&["down", "--all"]);
    assert_eq!(again.code, Some(0), "twice is as good as once: {again:?}");
}

/// What a cluster of this topology may leave: processes with its directories in their words, cgroups, tables, programs.
fn host_traces(topology: &Topology) -> (BTreeSet<String>, usize, String) {
    let name = topology
        .scratch()
        .dir
        .file_name()
        .unwrap()
        .to_string_lossy()
        .into_owned();
    let mut processes = BTreeSet::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        if words.contains(&name) && words.contains("containerd") {
            processes.insert(words);
        }
    }
    let cgroups = find(Path::new("/sys/fs/cgroup"), 3)
        .iter()
        .filter(|it| it.to_string_lossy().contains(&name))
        .count();
    let rules = topology
        .node("node-a")
        .actor
        .run("nft", &["list", "ruleset"], "")
        .unwrap()
        .stdout;
    (processes, cgroups, rules)
}

/// Directories down to a depth.
fn find(root: &Path, depth: u32) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|it| it.is_dir()) {
            if depth > 0 {
                found.extend(find(&entry.path(), depth - 1));
            }
            found.push(entry.path());
        }
    }
    found
}
