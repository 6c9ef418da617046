//! Corefiles: what is understood, what is refused and how.

mod support;

use fairlead_dns::corefile::{CacheConfig, Corefile, Policy, Upstreams, default_corefile};
use hickory_proto::rr::RecordType::{A, PTR};
use std::{fs, time::Duration};
use support::World;

fn parse(text: &str) -> Corefile {
    Corefile::parse("Corefile", text).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_default_is_kubeadms() {
    let corefile = parse(&default_corefile("cluster.local"));
    let [block] = corefile.blocks.as_slice() else {
        panic!("{corefile:?}")
    };
    assert_eq!((format!("{:?}", block.zones).as_str(), block.port), ("[.]", 53));
    assert!(block.errors && block.detect_loops && block.shuffle && block.ready.is_some() && block.reload.is_some());
    assert_eq!(block.health.as_ref().unwrap().lameduck, Duration::from_secs(5));
    let kubernetes = block.kubernetes.as_ref().unwrap();
    assert_eq!(kubernetes.ttl, 30);
    assert_eq!(
        format!("{:?}", kubernetes.zones),
        "[cluster.local., in-addr.arpa., ip6.arpa.]"
    );
    assert_eq!(format!("{:?}", kubernetes.fallthrough), "[in-addr.arpa., ip6.arpa.]");
    assert_eq!(block.forward[0].max_concurrent, 1000);
    assert_eq!(block.forward[0].to, Upstreams::File("/etc/resolv.conf".into()));
    let cache = block.cache.as_ref().unwrap();
    assert_eq!((cache.success.most_s, cache.denial.most_s), (30, 30));
    assert_eq!(
        format!("{:?}{:?}", cache.no_success, cache.no_denial),
        "[cluster.local.][cluster.local.]"
    );
    assert!(corefile.notes.is_empty());
}

#[test]
fn syntax() {
    let corefile = parse(
        "# a comment\n(common) {\n  errors # here\n  cache 60\n}\n\nexample.org, example.net:54\n  10.0.0.0/23 {\n import common\n \
         forward . dns://192.0.2.1 192.0.2.2:5353 [2001:db8::1]:53 2001:db8::2 {\n policy sequential\n except a.example.org\n }\n}\n. {\n  \
         whoops_is_not_here_but \"quoted\" }\n"
            .replace("whoops_is_not_here_but \"quoted\"", "import \"common\"")
            .as_str(),
    );
    let shown: Vec<String> = corefile
        .blocks
        .iter()
        .map(|it| format!("{:?}:{}", it.zones, it.port))
        .collect();
    assert_eq!(
        shown,
        [
            "[example.org., 0.0.10.in-addr.arpa., 1.0.10.in-addr.arpa.]:53",
            "[example.net.]:54",
            "[.]:53"
        ]
    );
    assert!(corefile.blocks.iter().all(|it| it.errors && it.cache.is_some()));
    let forward = &corefile.blocks[0].forward[0];
    assert_eq!(forward.policy, Policy::Sequential);
    let Upstreams::Addresses(addresses) = &forward.to else {
        panic!()
    };
    let shown: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        ["192.0.2.1:53", "192.0.2.2:5353", "[2001:db8::1]:53", "[2001:db8::2]:53"]
    );
}

#[test]
fn variables_and_imports() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::create_dir(path("conf.d")).unwrap();
    fs::write(path("conf.d/a.conf"), "a.example { forward . {$UP} }\n").unwrap();
    fs::write(path("conf.d/b.conf"), "b.example { forward . {%UP%} }\n").unwrap();
    fs::write(path("conf.d/c.other"), "nonsense").unwrap();
    fs::write(path("inner"), "errors\nlog\n").unwrap();
    fs::write(
        path("Corefile"),
        "import conf.d/*.conf\nimport none.d/*\n. {\n import inner\n}\n",
    )
    .unwrap();
    let main = path("Corefile").display().to_string();
    let text = fs::read_to_string(&main).unwrap();
    let variable = |name: &str| (name == "UP").then(|| "192.0.2.9".to_owned());
    let corefile = Corefile::parse_with(&main, &text, &variable).unwrap();
    assert_eq!(corefile.blocks.len(), 3);
    assert!(corefile.blocks[2].errors && corefile.blocks[2].log.len() == 1);
    fs::write(path("Corefile"), "import Corefile\n").unwrap();
    let error = Corefile::read(&path("Corefile")).unwrap_err();
    assert!(error.to_string().contains("imports do not end"), "{error}");
}

#[test]
fn what_is_refused_and_how() {
    let table = [
        ("", "Corefile:1: there is no server block"),
        (
            ". {\n errors\n",
            "Corefile:1: the block's { is never closed; add the closing }",
        ),
        (
            ". {\n forward\n}",
            "Corefile:2: plugin forward: it says neither what nor where to",
        ),
        (
            ". {\n template IN A\n}",
            "Corefile:2: plugin template is not supported; write the names as hosts",
        ),
        (
            ". {\n nonsense\n}",
            "Corefile:2: plugin nonsense is not supported; remove it",
        ),
        (
            ". {\n errors\n errors\n}",
            "Corefile:3: plugin errors: it stands twice in this block",
        ),
        (
            ". {\n kubernetes cluster.local {\n  zonal\n }\n}",
            "Corefile:3: plugin kubernetes: `zonal` is not supported",
        ),
        (
            ". {\n kubernetes cluster.local {\n  ttl 4000\n }\n}",
            "Corefile:3: plugin kubernetes: \"4000\" is no number from 0 to 3600",
        ),
        (
            ". {\n kubernetes cluster.local {\n  endpoint http://x\n }\n}",
            "by a kubeconfig",
        ),
        (
            ". {\n kubernetes in-addr.arpa\n}",
            "there is no cluster domain among its zones",
        ),
        (
            ". {\n forward . tls://1.1.1.1\n}",
            "upstreams by tls:// are not supported",
        ),
        (
            ". {\n forward . 1.1.1.1 {\n tls\n }\n}",
            "Corefile:3: plugin forward: upstreams by TLS",
        ),
        (
            ". {\n forward . one.one\n}",
            "\"one.one\" is neither an address nor a file",
        ),
        ("tls://. {\n}", "Corefile:1: tls:// is not served"),
        (
            ". {\n}\n. {\n}",
            "Corefile:3: .:53 is served by the block of line 1 already",
        ),
        ("a..b {\n}", "no DNS name"),
        (
            ". {\n cache x y z {\n nope\n}\n}",
            "Corefile:3: plugin cache: `nope` is not supported",
        ),
        (". {\n cache {\n servfail 10m\n}\n}", "5m at most"),
        (". {\n rewrite name regex a b\n}", "rewrite name regex is not supported"),
        (". {\n rewrite type A AAAA\n}", "only rewrite name exact"),
        (
            ". {\n log . \"{remote} x\"\n}",
            "the formats are {common} and {combined}",
        ),
        (". {\n import absent\n}", "absent cannot be imported"),
        (". {\n errors \"a\n}", "a quote is opened but never closed"),
        (". {\n reload 1s\n}", "at least 2s"),
        (". {\n bufsize 100\n}", "no number from 512 to 4096"),
        (". {\n prometheus nowhere\n}", "no address to listen on"),
        (". {\n hosts {\n 192.0.2.1\n }\n}", "`192.0.2.1` is not supported"),
    ];
    for (text, expected) in table {
        let error = Corefile::parse("Corefile", text).expect_err(text).to_string();
        assert!(error.contains(expected), "{text:?}: {error}");
        assert!(error.contains("; "), "no remedy: {error}");
    }
}

#[test]
fn options_of_cache() {
    let cache = |text: &str| -> CacheConfig {
        parse(&format!(". {{\n cache {text}\n}}")).blocks[0]
            .cache
            .clone()
            .unwrap()
    };
    let plain = cache("");
    assert_eq!(
        (
            plain.success.most_s,
            plain.denial.most_s,
            plain.success.capacity,
            plain.servfail.as_secs()
        ),
        (3600, 1800, 9984, 5)
    );
    let all = cache(
        "60 example.org {\n success 100 50 2\n denial 200\n prefetch 3 2m 20%\n serve_stale 1h verify 1s 7s 9s\n servfail 0\n keepttl\n disable success a.example.org\n}",
    );
    assert_eq!(
        (all.success.capacity, all.success.most_s, all.success.least_s),
        (100, 50, 2)
    );
    assert_eq!(
        (all.denial.capacity, all.denial.most_s, all.denial.least_s),
        (200, 60, 5)
    );
    let prefetch = all.prefetch.unwrap();
    assert_eq!(
        (prefetch.amount, prefetch.within.as_secs(), prefetch.percent),
        (3, 120, 20)
    );
    let stale = all.stale.unwrap();
    assert_eq!(
        (
            stale.within.as_secs(),
            stale.verify.map(|it| it.as_secs()),
            stale.ttl_s,
            stale.recheck.as_secs()
        ),
        (3600, Some(1), 7, 9)
    );
    assert!(all.keep_ttl && all.servfail.is_zero() && all.no_success.len() == 1 && all.no_denial.is_empty());
    assert_eq!(cache("{\n serve_stale\n}").stale.unwrap().verify, None);
}

#[test]
fn the_longest_zone_answers() {
    let world = World::new(
        ". {\n hosts /nonexistent {\n 192.0.2.1 a.example.org\n }\n}\nexample.org {\n hosts /nonexistent {\n 192.0.2.2 a.example.org A.b.example.org\n 2001:db8::2 a.example.org\n }\n}\n\
         192.0.2.0/24 {\n hosts /nonexistent {\n 192.0.2.2 a.example.org\n }\n}",
    );
    assert_eq!(world.tell("a.example.org", A), "NOERROR A 192.0.2.2;");
    assert_eq!(world.tell("a.B.example.org", A), "NOERROR A 192.0.2.2;");
    assert_eq!(
        world.tell("a.example.org", hickory_proto::rr::RecordType::AAAA),
        "NOERROR AAAA 2001:db8::2;"
    );
    assert_eq!(world.tell("b.example.org", A), "NXDOMAIN");
    assert_eq!(world.tell("2.2.0.192.in-addr.arpa", PTR), "NOERROR PTR a.example.org.;");
}

#[test]
fn rewritten_names_answer_under_the_name_that_was_asked() {
    let mut world = World::new(
        ". {\n rewrite name exact db.example web.default.svc.cluster.local\n rewrite continue name suffix .old.local .cluster.local\n \
         rewrite name suffix cluster.test cluster.local answer auto\n minimal\n any\n kubernetes cluster.local\n}",
    );
    world.namespace("default");
    world.service("default/web", serde_json::json!({"clusterIP": "10.96.0.20"}));
    for name in [
        "db.example",
        "Web.default.svc.old.local",
        "web.default.svc.cluster.test",
    ] {
        let answer = world.ask(name, A);
        assert_eq!(support::tell(&answer), "NOERROR A 10.96.0.20;", "{name}");
        assert_eq!(
            answer.answers[0].name.to_string().to_lowercase(),
            format!("{}.", name.to_lowercase())
        );
    }
    assert_eq!(world.tell("no.default.svc.old.local", A), "NXDOMAIN -");
    let any = world.ask("web.default.svc.cluster.local", hickory_proto::rr::RecordType::ANY);
    assert_eq!(any.answers[0].record_type(), hickory_proto::rr::RecordType::HINFO);
}
