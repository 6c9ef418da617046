//! Every record of the specification, and every name that is near one and does not exist.

mod support;

use hickory_proto::rr::RecordType::{self, A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use serde_json::json;
use support::{COREFILE, World, packet, tell};

/// A ClusterIP Service, a headless one with and without host names, one without ready endpoints, aliases.
fn world() -> World {
    let mut world = World::new(COREFILE);
    world.namespace("default");
    world.namespace("empty");
    world.service(
        "default/web",
        json!({"clusterIPs": ["10.96.0.20", "fd00::20"], "ports": [
            {"name": "http", "port": 80}, {"name": "dns", "protocol": "UDP", "port": 53}, {"port": 81, "protocol": "SCTP"}]}),
    );
    world.slice(
        "default/web-1",
        "web",
        "IPv4",
        json!([{"name": "http", "port": 8080}]),
        json!([{"addresses": ["10.1.0.9"]}]),
    );
    world.service(
        "default/four",
        json!({"clusterIP": "10.96.0.4", "ports": [{"port": 80}]}),
    );
    world.service(
        "default/db",
        json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 1}]}),
    );
    world.slice(
        "default/db-4",
        "db",
        "IPv4",
        json!([{"name": "sql", "port": 5432}]),
        json!([
            {"addresses": ["10.1.0.1"], "hostname": "db-0"},
            {"addresses": ["10.1.0.2"], "hostname": "db-1", "conditions": {"ready": true}},
            {"addresses": ["10.1.0.3"], "hostname": "db-2", "conditions": {"ready": false}},
            {"addresses": ["10.1.0.4"]}]),
    );
    world.slice(
        "default/db-6",
        "db",
        "IPv6",
        json!([{"name": "sql", "port": 5432}]),
        json!([{"addresses": ["fd00:1::1"], "hostname": "db-0"}]),
    );
    world.service(
        "default/down",
        json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 1}]}),
    );
    let unready = json!([{"addresses": ["10.1.0.5"], "hostname": "x", "conditions": {"ready": false}}]);
    world.slice("default/down-1", "down", "IPv4", json!([]), unready.clone());
    world.service(
        "default/early",
        json!({"clusterIP": "None", "publishNotReadyAddresses": true}),
    );
    world.slice("default/early-1", "early", "IPv4", json!([]), unready);
    world.service(
        "default/outside",
        json!({"type": "ExternalName", "externalName": "Example.org"}),
    );
    world.service(
        "default/inside",
        json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"}),
    );
    world.service(
        "default/nowhere",
        json!({"type": "ExternalName", "externalName": "no.default.svc.cluster.local"}),
    );
    world.service(
        "default/number",
        json!({"type": "ExternalName", "externalName": "192.0.2.1"}),
    );
    world.service(
        "default/ring",
        json!({"type": "ExternalName", "externalName": "ring.default.svc.cluster.local"}),
    );
    world.service(
        "kube-system/kube-dns",
        json!({"clusterIP": "10.96.0.10", "ports": [{"name": "dns", "port": 53}]}),
    );
    world
}

const NODATA: &str = "NOERROR -";
const NXDOMAIN: &str = "NXDOMAIN -";

#[test]
fn every_record_of_the_specification() {
    let world = world();
    let table: &[(&str, RecordType, &str)] = &[
        ("dns-version", TXT, "NOERROR TXT 1.1.0;"),
        ("dns-version", A, NODATA),
        // ClusterIP
        ("web.default.svc", A, "NOERROR A 10.96.0.20;"),
        ("web.default.svc", AAAA, "NOERROR AAAA fd00::20;"),
        ("WEB.Default.SVC", A, "NOERROR A 10.96.0.20;"),
        ("web.default.svc", TXT, NODATA),
        ("four.default.svc", AAAA, NODATA),
        (
            "_http._tcp.web.default.svc",
            SRV,
            "NOERROR SRV 0 100 80 web.default.svc.cluster.local.;",
        ),
        (
            "_dns._udp.web.default.svc",
            SRV,
            "NOERROR SRV 0 100 53 web.default.svc.cluster.local.;",
        ),
        ("_http._tcp.web.default.svc", A, NODATA),
        ("_http._udp.web.default.svc", SRV, NXDOMAIN),
        ("_no._tcp.web.default.svc", SRV, NXDOMAIN),
        ("http.tcp.web.default.svc", SRV, NXDOMAIN),
        ("_tcp.web.default.svc", SRV, NODATA),
        ("_tcp.web.default.svc", A, NODATA),
        ("_sctp.web.default.svc", A, NXDOMAIN),
        ("_tcp.four.default.svc", A, NXDOMAIN),
        (
            "four.default.svc",
            SRV,
            "NOERROR SRV 0 100 80 four.default.svc.cluster.local.;",
        ),
        (
            "web.default.svc",
            SRV,
            "NOERROR SRV 0 33 53 web.default.svc.cluster.local.; SRV 0 33 80 web.default.svc.cluster.local.; SRV 0 33 81 web.default.svc.cluster.local.;",
        ),
        ("10-1-0-9.web.default.svc", A, "NOERROR A 10.1.0.9;"),
        ("10-1-0-8.web.default.svc", A, NXDOMAIN),
        // Headless
        ("db.default.svc", A, "NOERROR A 10.1.0.1; A 10.1.0.2; A 10.1.0.4;"),
        ("db.default.svc", AAAA, "NOERROR AAAA fd00:1::1;"),
        ("db-0.db.default.svc", A, "NOERROR A 10.1.0.1;"),
        ("db-0.db.default.svc", AAAA, "NOERROR AAAA fd00:1::1;"),
        ("db-1.db.default.svc", AAAA, NODATA),
        ("db-2.db.default.svc", A, NXDOMAIN),
        ("10-1-0-4.db.default.svc", A, "NOERROR A 10.1.0.4;"),
        ("10-1-0-1.db.default.svc", A, NXDOMAIN),
        (
            "_sql._tcp.db.default.svc",
            SRV,
            "NOERROR SRV 0 33 5432 10-1-0-4.db.default.svc.cluster.local.; SRV 0 33 5432 db-0.db.default.svc.cluster.local.; SRV 0 33 5432 db-1.db.default.svc.cluster.local.;",
        ),
        ("_tcp.db.default.svc", A, NODATA),
        ("down.default.svc", A, NXDOMAIN),
        ("_sql._tcp.down.default.svc", SRV, NXDOMAIN),
        ("early.default.svc", A, "NOERROR A 10.1.0.5;"),
        ("x.early.default.svc", A, "NOERROR A 10.1.0.5;"),
        // ExternalName
        ("outside.default.svc", CNAME, "NOERROR CNAME Example.org.;"),
        (
            "inside.default.svc",
            CNAME,
            "NOERROR CNAME web.default.svc.cluster.local.;",
        ),
        (
            "inside.default.svc",
            A,
            "NOERROR A 10.96.0.20; CNAME web.default.svc.cluster.local.;",
        ),
        (
            "inside.default.svc",
            TXT,
            "NOERROR CNAME web.default.svc.cluster.local.; -",
        ),
        (
            "nowhere.default.svc",
            A,
            "NXDOMAIN CNAME no.default.svc.cluster.local.; -",
        ),
        ("x.outside.default.svc", A, NXDOMAIN),
        ("number.default.svc", A, NXDOMAIN),
        // Pods
        ("10-1-0-77.default.pod", A, "NOERROR A 10.1.0.77;"),
        ("10-1-0-77.default.pod", AAAA, NODATA),
        ("fd00--7.default.pod", AAAA, "NOERROR AAAA fd00::7;"),
        ("10-1-0-77.absent.pod", A, NXDOMAIN),
        ("10-1-0-777.default.pod", A, NXDOMAIN),
        ("a.10-1-0-77.default.pod", A, NXDOMAIN),
        // What is between
        ("svc", A, NODATA),
        ("pod", A, NODATA),
        ("dns", A, NODATA),
        ("default.svc", A, NODATA),
        ("empty.svc", AAAA, NODATA),
        ("empty.pod", A, NODATA),
        ("kube-system.svc", A, NODATA),
        ("absent.svc", A, NXDOMAIN),
        ("absent.default.svc", A, NXDOMAIN),
        ("web.absent.svc", A, NXDOMAIN),
        ("other", A, NXDOMAIN),
        ("a.b.c.d.e.web.default.svc", A, NXDOMAIN),
        ("ns.dns", A, "NOERROR A 10.96.0.10;"),
        ("ns.dns", AAAA, NODATA),
    ];
    for (name, kind, expected) in table {
        assert_eq!(
            world.tell(&format!("{name}.cluster.local"), *kind),
            *expected,
            "{name} {kind}"
        );
    }
    assert_eq!(world.tell("cluster.local", A), NODATA);
    assert_eq!(world.tell("cluster.local", NS), "NOERROR NS ns.dns.cluster.local.;");
    let soa = world.tell("cluster.local", SOA);
    assert_eq!(
        soa,
        "NOERROR SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 30;"
    );
    assert_eq!(world.tell("example.org", A), "REFUSED");
    assert_eq!(
        world.tell("ring.default.svc.cluster.local", CNAME),
        "NOERROR CNAME ring.default.svc.cluster.local.;"
    );
    assert!(world.tell("ring.default.svc.cluster.local", A).starts_with("SERVFAIL"));
}

#[test]
fn reverse_names() {
    let world = world();
    let table: &[(&str, RecordType, &str)] = &[
        (
            "20.0.96.10.in-addr.arpa",
            PTR,
            "NOERROR PTR web.default.svc.cluster.local.;",
        ),
        (
            "0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa",
            PTR,
            "NOERROR PTR web.default.svc.cluster.local.;",
        ),
        (
            "1.0.1.10.in-addr.arpa",
            PTR,
            "NOERROR PTR db-0.db.default.svc.cluster.local.;",
        ),
        (
            "4.0.1.10.in-addr.arpa",
            PTR,
            "NOERROR PTR 10-1-0-4.db.default.svc.cluster.local.;",
        ),
        (
            "9.0.1.10.in-addr.arpa",
            PTR,
            "NOERROR PTR 10-1-0-9.web.default.svc.cluster.local.;",
        ),
        (
            "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa",
            PTR,
            "NOERROR PTR db-0.db.default.svc.cluster.local.;",
        ),
        ("3.0.1.10.in-addr.arpa", PTR, NXDOMAIN),
        ("20.0.96.10.in-addr.arpa", A, NODATA),
        ("96.10.in-addr.arpa", PTR, NODATA),
        ("10.in-addr.arpa", PTR, NODATA),
        ("11.in-addr.arpa", PTR, NXDOMAIN),
        ("d.f.ip6.arpa", PTR, NODATA),
        ("e.f.ip6.arpa", PTR, NXDOMAIN),
        ("x.in-addr.arpa", PTR, NXDOMAIN),
        ("a.20.0.96.10.in-addr.arpa", PTR, NXDOMAIN),
    ];
    for (name, kind, expected) in table {
        assert_eq!(world.tell(name, *kind), *expected, "{name} {kind}");
    }
}

#[test]
fn addresses_of_targets_come_along() {
    let world = world();
    let answer = world.ask("_sql._tcp.db.default.svc.cluster.local", SRV);
    let mut extra: Vec<String> = answer
        .additionals
        .iter()
        .map(|it| format!("{} {}", it.name, it.data))
        .collect();
    extra.sort();
    let expected = [
        "10-1-0-4.db.default.svc.cluster.local. 10.1.0.4",
        "db-0.db.default.svc.cluster.local. 10.1.0.1",
        "db-0.db.default.svc.cluster.local. fd00:1::1",
        "db-1.db.default.svc.cluster.local. 10.1.0.2",
    ];
    assert_eq!(extra, expected);
    let answer = world.ask("inside.default.svc.cluster.local", SRV);
    assert!(
        tell(&answer).contains("SRV 0 33 80 web.default.svc.cluster.local."),
        "{}",
        tell(&answer)
    );
}

#[test]
fn the_question_comes_back_letter_by_letter() {
    let world = world();
    let question = packet("wEb.DeFault.svc.CLUSTER.local", A);
    let answer = world.raw(&question).unwrap();
    assert_eq!(answer[12..question.len()], question[12..]);
    assert_eq!(answer[..2], question[..2], "the id");
    // QR, AA, and RD as it came; no recursion here.
    assert_eq!(answer[2..4], [0x85, 0x00]);
}

#[test]
fn names_are_unknown_until_all_is_read() {
    let corefile = "cluster.local in-addr.arpa { kubernetes { fallthrough in-addr.arpa } }";
    let fresh = World::new(corefile);
    assert_eq!(fresh.tell("web.default.svc.cluster.local", A), "NXDOMAIN -");
    let (_store, zone) = fairlead_dns::zone::store::Store::new(Default::default());
    assert!(!zone.is_ready());
    let view = &fresh.engine.blocks[0].cluster.as_ref().unwrap().1;
    for name in ["web.default.svc.cluster.local", "1.0.0.10.in-addr.arpa"] {
        let packet = packet(name, A);
        let query = fairlead_dns::wire::Query::parse(&packet).unwrap();
        let mut out = Vec::new();
        let mut reply = fairlead_dns::wire::Reply::new(&mut out, &query, 512, 0, 1232);
        view.answer(&zone, &query, &mut reply);
        assert_eq!(reply.finish(), 2, "{name}");
    }
}

#[test]
fn names_follow_their_objects() {
    use fairlead_dns::zone::{facts::Key, store::Change};
    let mut world = world();
    let name = "db.default.svc.cluster.local";
    world.change(Change::Slice(Key::new("default", "db-4"), None));
    assert_eq!(world.tell(name, A), NODATA);
    assert_eq!(world.tell("1.0.1.10.in-addr.arpa", PTR), NXDOMAIN);
    world.change(Change::Slice(Key::new("default", "db-6"), None));
    assert_eq!(world.tell(name, A), NXDOMAIN);
    // A slice that changes hands takes its addresses along.
    let endpoints = json!([{"addresses": ["10.1.0.9"]}]);
    world.slice(
        "default/web-1",
        "down",
        "IPv4",
        json!([{"name": "sql", "port": 9}]),
        endpoints,
    );
    assert_eq!(world.tell("down.default.svc.cluster.local", A), "NOERROR A 10.1.0.9;");
    assert_eq!(world.tell("10-1-0-9.web.default.svc.cluster.local", A), NXDOMAIN);
    assert_eq!(
        world.tell("9.0.1.10.in-addr.arpa", PTR),
        "NOERROR PTR 10-1-0-9.down.default.svc.cluster.local.;"
    );
    world.change(Change::Service(Key::new("kube-system", "kube-dns"), None));
    assert_eq!(world.tell("kube-system.svc.cluster.local", A), NXDOMAIN);
    assert_eq!(world.tell("10.0.96.10.in-addr.arpa", PTR), NXDOMAIN);
}

#[test]
fn one_address_of_many_services_has_a_name_in_each() {
    let mut world = world();
    world.service("default/also", json!({"clusterIP": "None"}));
    world.slice(
        "default/also-1",
        "also",
        "IPv4",
        json!([]),
        json!([{"addresses": ["10.1.0.1"], "hostname": "z"}]),
    );
    let told = world.tell("1.0.1.10.in-addr.arpa", PTR);
    assert_eq!(
        told,
        "NOERROR PTR db-0.db.default.svc.cluster.local.; PTR z.also.default.svc.cluster.local.;"
    );
}

#[test]
fn options_of_the_plugin() {
    let with = |options: &str| {
        let mut world = World::new(&format!(
            "cluster.local {{\n kubernetes cluster.local in-addr.arpa {{\n{options}\n}}\n}}"
        ));
        world.namespace("default");
        world.service("default/web", json!({"clusterIP": "10.96.0.20"}));
        world.service("other/web", json!({"clusterIP": "10.96.0.21"}));
        world
    };
    let web = "web.default.svc.cluster.local";
    assert_eq!(
        with("").tell("10-1-0-7.default.pod.cluster.local", A),
        NXDOMAIN,
        "pods are disabled"
    );
    assert_eq!(with("ignore empty_service").tell(web, A), NXDOMAIN);
    let listed = with("namespaces default");
    assert_eq!(listed.tell(web, A), "NOERROR A 10.96.0.20;");
    assert_eq!(listed.tell("web.other.svc.cluster.local", A), NXDOMAIN);
    let labelled = with("namespace_labels shown=yes");
    assert_eq!(labelled.tell(web, A), "NOERROR A 10.96.0.20;");
    assert_eq!(labelled.tell("web.other.svc.cluster.local", A), NXDOMAIN);
    let mut verified = with("pods verified");
    let name = "10-1-0-7.default.pod.cluster.local";
    assert_eq!(verified.tell(name, A), NXDOMAIN);
    let pod = fairlead_dns::zone::facts::Key::new("default", "p");
    let addresses: Box<[std::net::IpAddr]> = ["10.1.0.7".parse().unwrap()].into();
    verified.change(fairlead_dns::zone::store::Change::Pod(pod.clone(), addresses));
    assert_eq!(verified.tell(name, A), "NOERROR A 10.1.0.7;");
    verified.change(fairlead_dns::zone::store::Change::Pod(pod, Box::default()));
    assert_eq!(verified.tell(name, A), NXDOMAIN);
    assert_eq!(with("ttl 7").ask(web, A).answers[0].ttl, 7);
}

#[test]
fn malformed_objects_hurt_only_themselves() {
    use fairlead_dns::zone::facts;
    let object = support::service(
        "default/bad",
        json!({"clusterIPs": ["10.96.0.5", "nonsense"], "ports": [{"port": 99999}]}),
    );
    let (facts, complaints) = facts::service(&object);
    assert_eq!(complaints.len(), 2, "{complaints:?}");
    assert!(matches!(facts.reach, facts::Reach::ClusterIp(ref it) if it.len() == 1));
    let endpoints = json!([{"addresses": ["fd00::1"]}, {"addresses": ["10.1.0.1"], "hostname": "a.b"}, {"addresses": ["10.1.0.2"]}]);
    let object = support::slice("default/bad", "bad", "IPv4", json!([]), endpoints);
    let (facts, complaints) = facts::slice(&object, false);
    assert_eq!(
        (complaints.len(), facts.unwrap().endpoints.len()),
        (2, 1),
        "{complaints:?}"
    );
}

#[test]
fn long_answers_are_cut_and_whole_by_tcp() {
    let mut world = World::new(COREFILE);
    world.service("default/big", json!({"clusterIP": "None"}));
    let endpoints: Vec<_> = (0..250)
        .map(|it| json!({"addresses": [format!("10.1.0.{it}")]}))
        .collect();
    world.slice(
        "default/big-1",
        "big",
        "IPv4",
        json!([{"name": "p", "port": 1}]),
        json!(endpoints),
    );
    let name = fairlead_dns::name::wire_of("big.default.svc.cluster.local").unwrap();
    for (size, limit) in [(None, 512), (Some(1232), 1232), (Some(4096), 1232), (Some(100), 512)] {
        let edns = size.map(|size| fairlead_dns::wire::Edns {
            size,
            version: 0,
            dnssec_ok: true,
        });
        let packet = fairlead_dns::wire::question(1, 0, &name, 1, edns);
        let bytes = world.raw(&packet).unwrap();
        let message = hickory_proto::op::Message::from_vec(&bytes).unwrap();
        assert!(
            message.metadata.truncation && bytes.len() <= limit && bytes.len() > limit - 16 - 11,
            "{size:?}: {}",
            bytes.len()
        );
        assert_eq!(message.edns.is_some(), size.is_some());
        assert_eq!(message.edns.is_some_and(|edns| edns.flags().dnssec_ok), size.is_some());
    }
    let whole = world.ask("big.default.svc.cluster.local", A);
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (250, false));
    let srv = world.ask("_p._tcp.big.default.svc.cluster.local", SRV);
    assert_eq!((srv.answers.len(), srv.additionals.len()), (250, 250));
}
