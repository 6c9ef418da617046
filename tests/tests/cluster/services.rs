//! Services by every address and every name, and proof that it is our path that the packets take.

use crate::{client, in_client, one_node, server, text};
use harness::{Cluster, addr::Family};
use std::net::{IpAddr, SocketAddr};

#[test]
fn services_are_reached_by_name_and_address_from_pods_the_node_and_outside() {
    let topology = one_node();
    let cluster = Cluster::start(&topology, topology.node("node-a"), &[]).unwrap();
    client(&cluster);
    server(&cluster, "web", 2);
    let expose = |kind: &str, name: &str, port: &str| {
        let kind = format!("--type={kind}");
        cluster.kubectl(&[
            "expose",
            "deployment",
            "web",
            &kind,
            "--name",
            name,
            port,
            "--target-port=8080",
        ]);
    };
    expose("NodePort", "outer", "--port=80");
    expose("LoadBalancer", "balanced", "--port=8088");
    let node = cluster.node.ip(Family::V4).to_string();
    let curl = |url: &str, from: &harness::Actor| {
        let output = from.run("curl", &["-sS", "--max-time", "5", url], "").unwrap();
        assert!(
            output.stdout.starts_with("web-"),
            "{url} from {}: {output:?}",
            from.name()
        );
    };

    // By ClusterIP: from a pod by name, of this namespace and of others, and from the node.
    let before = packets(&cluster);
    for name in [
        "web",
        "web.default",
        "web.default.svc",
        "web.default.svc.cluster.local",
        "web.default.svc.cluster.local.",
    ] {
        let answer = in_client(&cluster, &["get", &format!("http://{name}/")]);
        assert!(answer.starts_with("web-"), "{name}: {answer}");
    }
    cluster.kubectl(&["create", "namespace", "elsewhere"]);
    cluster.kubectl(&[
        "-n",
        "elsewhere",
        "run",
        "far",
        "--image",
        harness::cluster::IMAGE,
        "--",
        "testbox",
        "sleep",
        "3600",
    ]);
    cluster.kubectl(&[
        "-n",
        "elsewhere",
        "wait",
        "--for=condition=Ready",
        "pod/far",
        "--timeout=60s",
    ]);
    let far = cluster.kubectl(&[
        "-n",
        "elsewhere",
        "exec",
        "far",
        "--",
        "testbox",
        "get",
        "http://web.default/",
    ]);
    assert!(far.starts_with("web-"), "{far}");
    let address = cluster.get("service web");
    curl(
        &format!("http://{}/", text(&address, "/spec/clusterIP")),
        &cluster.node.actor,
    );

    // By NodePort and by the load balancer's address.
    let outer = cluster.get("service outer");
    let port = outer["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    let balanced = cluster
        .until("an address for the load balancer", || {
            let service = cluster.get("service balanced");
            let address = text(&service, "/status/loadBalancer/ingress/0/ip").to_owned();
            Ok((!address.is_empty()).then_some(address))
        })
        .unwrap();
    for url in [format!("http://{node}:{port}/"), format!("http://{balanced}:8088/")] {
        let answer = in_client(&cluster, &["get", &url]);
        assert!(answer.starts_with("web-"), "{url}: {answer}");
        curl(&url, &cluster.node.actor);
        curl(&url, topology.outside());
    }
    assert!(
        packets(&cluster) > before + 10,
        "the service proxy's own programs saw these packets"
    );

    // Nobody else is involved: no rule of another proxy, and addresses from our own journal.
    let rules = cluster.node.actor.run("iptables-save", &[], "").unwrap();
    assert!(!rules.stdout.contains("KUBE-"), "{}", rules.stdout);
    let pod = cluster.get("pod client");
    let conf = std::fs::read_dir(cluster.data().join("cni/net.d")).unwrap().count();
    assert_eq!(conf, 1, "one network, ours");
    let address: IpAddr = text(&pod, "/status/podIP").parse().unwrap();
    let route = cluster
        .node
        .actor
        .run("ip", &["route", "show", &address.to_string()], "")
        .unwrap();
    assert!(route.stdout.contains("dev fl"), "{route:?}");

    // From a pod to the outside: by the node's address, as nothing outside knows pods.
    let outside = harness::addr::outside(Family::V4, 0);
    let serving = topology
        .outside()
        .serve(harness::Transport::Tcp, SocketAddr::new(outside, 9000));
    let reach = format!("nc -w 3 {outside} 9000 < /dev/null && echo reached");
    assert_eq!(
        cluster.kubectl(&["exec", "client", "--", "sh", "-c", &reach]),
        "reached"
    );
    topology.outside().stop_serving(serving);
}

/// Packets that the proxy's programs have translated, from its metrics.
fn packets(cluster: &Cluster<'_>) -> u64 {
    let metrics: SocketAddr = "127.0.0.1:10249".parse().unwrap();
    let reply = cluster.node.actor.http_get(metrics, "/metrics", 5_000).unwrap();
    let lines = reply
        .body
        .lines()
        .filter(|it| it.starts_with("fairlead_") && it.contains("packets") && !it.starts_with('#'));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .map(|it| it as u64)
        .sum()
}

#[test]
fn every_kind_of_record_is_answered_in_pods() {
    let topology = one_node();
    // The outside world's names come from a file that the node's resolver settings name.
    let cluster = Cluster::start(&topology, topology.node("node-a"), &[]).unwrap();
    client(&cluster);
    server(&cluster, "web", 2);
    let manifest = r#"{"apiVersion":"v1","kind":"List","items":[
        {"apiVersion":"v1","kind":"Service","metadata":{"name":"many"},
         "spec":{"clusterIP":"None","selector":{"app":"many"},"ports":[{"name":"http","port":80,"targetPort":8080}]}},
        {"apiVersion":"apps/v1","kind":"StatefulSet","metadata":{"name":"many"},
         "spec":{"serviceName":"many","replicas":2,"selector":{"matchLabels":{"app":"many"}},
          "template":{"metadata":{"labels":{"app":"many"}},
           "spec":{"containers":[{"name":"many","image":"fairlead.dev/testbox:1"}]}}}},
        {"apiVersion":"v1","kind":"Service","metadata":{"name":"named"},
         "spec":{"selector":{"app":"web"},"ports":[{"name":"http","port":80,"targetPort":8080}]}},
        {"apiVersion":"v1","kind":"Service","metadata":{"name":"alias"},
         "spec":{"type":"ExternalName","externalName":"web.default.svc.cluster.local"}}]}"#;
    cluster.kubectl_with(&["apply", "-f", "-"], manifest);
    cluster.kubectl(&["rollout", "status", "statefulset/many", "--timeout=60s"]);

    let resolve = |name: &str| in_client(&cluster, &["resolve", name]);
    let address = |name: &str| text(&cluster.get(&format!("service {name}")), "/spec/clusterIP").to_owned();
    let web = address("web");
    assert_eq!(resolve("web"), web);
    assert_eq!(resolve("WEB.Default.svc"), web);
    assert_eq!(
        resolve("alias"),
        web,
        "an alias of a name of the cluster is followed inside"
    );
    assert_eq!(resolve("kubernetes.default"), address("kubernetes"));
    let pods = cluster.get("pods -l app=many");
    let mut addresses: Vec<&str> = pods["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| text(it, "/status/podIP"))
        .collect();
    addresses.sort_unstable();
    assert_eq!(resolve("many"), addresses.join(" "));
    let first = text(&cluster.get("pod many-0"), "/status/podIP").to_owned();
    assert_eq!(resolve("many-0.many"), first);
    let dashed = first.replace('.', "-");
    assert_eq!(resolve(&format!("{dashed}.default.pod.cluster.local")), first);

    // As glibc's own programs ask, through /etc/resolv.conf's search path.
    let getent = cluster.kubectl(&["exec", "client", "--", "getent", "ahostsv4", "web"]);
    assert!(getent.starts_with(&web), "{getent}");
    let look = |kind: &str, name: &str| {
        let kind = format!("-type={kind}");
        cluster.kubectl(&["exec", "client", "--", "nslookup", &kind, name])
    };
    let srv = look("srv", "_http._tcp.named.default.svc.cluster.local");
    assert!(srv.contains("80 named.default.svc.cluster.local"), "{srv}");
    let srv = look("srv", "_http._tcp.many.default.svc.cluster.local");
    assert!(srv.contains("8080 many-0.many.default.svc.cluster.local"), "{srv}");
    let reversed = |address: &str| {
        let parts: Vec<&str> = address.rsplit('.').collect();
        format!("{}.in-addr.arpa", parts.join("."))
    };
    let reverse = look("ptr", &reversed(&web));
    assert!(reverse.contains("web.default.svc.cluster.local"), "{reverse}");
    let reverse = look("ptr", &reversed(&first));
    assert!(reverse.contains("many-0.many.default.svc.cluster.local"), "{reverse}");
    let version = look("txt", "dns-version.cluster.local");
    assert!(version.contains("1.1.0"), "{version}");
    let missing = cluster
        .try_kubectl(
            &["exec", "client", "--", "nslookup", "no.default.svc.cluster.local"],
            "",
        )
        .unwrap();
    assert!(missing.stdout.contains("NXDOMAIN"), "{missing:?}");
}
