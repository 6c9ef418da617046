//! [`dns`]: `dnsPolicy` and `dnsConfig` as the resolver settings of a sandbox.

use super::Facts;
use crate::{cri::v1::DnsConfig, pod};
use k8s_openapi::api::core::v1::Pod;

/// How many name servers glibc asks. Source: resolv.conf(5), `MAXNS`.
const SERVERS: usize = 3;
/// How many search domains a pod may have, and of how many characters together. Source: KEP-2595.
const SEARCHES: usize = 32;
const SEARCH_CHARS: usize = 2048;

/// Resolver settings, as resolv.conf(5) has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    /// `nameserver`, in order.
    pub servers: Vec<String>,
    /// The last `search` or `domain`.
    pub searches: Vec<String>,
    /// All `options`.
    pub options: Vec<String>,
}

impl Resolver {
    /// Reads the text of a resolv.conf; lines that say nothing known are passed over.
    pub fn parse(text: &str) -> Self {
        let mut out = Self::default();
        for line in text.lines() {
            // A comment starts a line; glibc knows none behind a value.
            let line = line.trim();
            if line.starts_with(['#', ';']) {
                continue;
            }
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => out.servers.extend(words.next().map(str::to_owned)),
                // The root, which is searched anyway: `.` alone would make `name.` of every name.
                Some("search" | "domain") => {
                    let trimmed = words.map(|it| if it.len() > 1 { it.trim_end_matches('.') } else { it });
                    out.searches = trimmed.filter(|it| *it != ".").map(str::to_owned).collect();
                }
                Some("options") => words.for_each(|it| out.option(it)),
                _ => {}
            }
        }
        out
    }

    /// Adds an option, or gives one of that name its new value.
    fn option(&mut self, option: &str) {
        let name = |it: &str| it.split(':').next().unwrap_or_default().to_owned();
        match self.options.iter_mut().find(|it| name(it) == name(option)) {
            Some(found) => option.clone_into(found),
            None => self.options.push(option.to_owned()),
        }
    }
}

/// The resolver settings of a pod, and messages about what was left out of them: events with the reasons `MissingClusterDNS`
/// and `DNSConfigForming`.
pub fn dns(pod: &Pod, facts: &Facts) -> (DnsConfig, Vec<(&'static str, String)>) {
    let spec = pod.spec.as_ref();
    let policy = spec.and_then(|it| it.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let mut events = Vec::new();
    let cluster = match policy {
        "ClusterFirst" => !pod::host_network(pod),
        policy => policy == "ClusterFirstWithHostNet",
    };
    let mut out = if policy == "None" {
        Resolver::default()
    } else if cluster && !facts.cluster_dns.is_empty() {
        of_cluster(pod, facts)
    } else {
        if cluster {
            let message = "kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" \
                policy. Falling back to \"Default\" policy.";
            events.push(("MissingClusterDNS", message.to_owned()));
        }
        facts.resolver.clone()
    };
    if let Some(config) = spec.and_then(|it| it.dns_config.as_ref()) {
        out.servers.extend(config.nameservers.iter().flatten().cloned());
        out.searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = option.name.as_deref().filter(|it| !it.is_empty()) else {
                continue;
            };
            match option.value.as_deref().filter(|it| !it.is_empty()) {
                Some(value) => out.option(&format!("{name}:{value}")),
                None => out.option(name),
            }
        }
    }
    once(&mut out.servers);
    once(&mut out.searches);
    if out.servers.len() > SERVERS {
        out.servers.truncate(SERVERS);
        let line = out.servers.join(" ");
        let message = format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {line}"
        );
        events.push(("DNSConfigForming", message));
    }
    if shorten(&mut out.searches) {
        let line = out.searches.join(" ");
        let message = format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {line}"
        );
        events.push(("DNSConfigForming", message));
    }
    (
        DnsConfig {
            servers: out.servers,
            searches: out.searches,
            options: out.options,
        },
        events,
    )
}

/// The cluster's servers; its domains before the node's.
fn of_cluster(pod: &Pod, facts: &Facts) -> Resolver {
    let mut searches = Vec::new();
    if !facts.cluster_domain.is_empty() {
        let domain = &facts.cluster_domain;
        searches = vec![
            format!("{}.svc.{domain}", pod::namespace(pod)),
            format!("svc.{domain}"),
            domain.clone(),
        ];
    }
    searches.extend(facts.resolver.searches.iter().cloned());
    let servers = facts.cluster_dns.iter().map(ToString::to_string).collect();
    // So many dots that `name.namespace.svc` is still looked up below the cluster's domain first.
    Resolver {
        servers,
        searches,
        options: vec!["ndots:5".to_owned()],
    }
}

fn once(list: &mut Vec<String>) {
    let mut seen = std::collections::HashSet::new();
    list.retain(|it| seen.insert(it.clone()));
}

/// Whether something had to go.
fn shorten(searches: &mut Vec<String>) -> bool {
    let before = searches.len();
    searches.truncate(SEARCHES);
    let mut used = 0;
    let fit = searches.iter().take_while(|it| {
        used += it.len() + usize::from(used > 0);
        used <= SEARCH_CHARS
    });
    let fit = fit.count();
    searches.truncate(fit);
    searches.len() < before
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod_of;
    use serde_json::json;

    fn facts() -> Facts {
        Facts {
            cluster_dns: vec!["10.96.0.10".parse().unwrap()],
            cluster_domain: "cluster.local".into(),
            resolver: Resolver::parse("nameserver 192.168.0.1\nsearch example.com lan.\noptions ndots:1 rotate\n"),
            ..Facts::default()
        }
    }

    fn text(spec: serde_json::Value, facts: &Facts) -> String {
        let (it, events) = dns(&pod_of(spec), facts);
        let events: Vec<_> = events.iter().map(|it| it.0).collect();
        [
            it.servers.join(" "),
            it.searches.join(" "),
            it.options.join(" "),
            events.join(" "),
        ]
        .join(" | ")
    }

    #[test]
    fn the_policy_says_whose_servers() {
        let cluster =
            "10.96.0.10 | shop.svc.cluster.local svc.cluster.local cluster.local example.com lan | ndots:5 | ";
        let node = "192.168.0.1 | example.com lan | ndots:1 rotate | ";
        for (spec, want) in [
            (json!({}), cluster),
            (json!({"dnsPolicy": "ClusterFirst"}), cluster),
            (json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}), node),
            (
                json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}),
                cluster,
            ),
            (json!({"dnsPolicy": "Default"}), node),
            (
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"]}}),
                "1.1.1.1 |  |  | ",
            ),
        ] {
            let mut spec = spec;
            spec["containers"] = json!([]);
            assert_eq!(text(spec.clone(), &facts()), want, "{spec}");
        }
        let none = Facts {
            cluster_dns: vec![],
            ..facts()
        };
        assert_eq!(
            text(json!({"containers": []}), &none),
            node.to_owned() + "MissingClusterDNS"
        );
    }

    #[test]
    fn the_pods_own_settings_are_added_and_win() {
        let spec = json!({"containers": [], "dnsConfig": {
            "nameservers": ["10.96.0.10", "8.8.8.8"],
            "searches": ["lan", "my.example"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}, {"value": "x"}],
        }});
        let want = "10.96.0.10 8.8.8.8 | shop.svc.cluster.local svc.cluster.local cluster.local example.com lan my.example \
            | ndots:2 edns0 | ";
        assert_eq!(text(spec, &facts()), want);
    }

    #[test]
    fn what_is_too_much_is_left_out_and_told() {
        let searches: Vec<_> = (0..40).map(|it| format!("s{it}.example")).collect();
        let servers = ["1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"];
        let config = json!({"nameservers": servers, "searches": searches});
        let (it, events) = dns(
            &pod_of(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": config})),
            &facts(),
        );
        assert_eq!((it.servers.len(), it.searches.len(), events.len()), (3, 32, 2));
        assert!(
            events[0]
                .1
                .ends_with("the applied nameserver line is: 1.1.1.1 2.2.2.2 3.3.3.3")
        );
        let long: Vec<_> = (0..12).map(|it| format!("{it:0>200}")).collect();
        let config = json!({"searches": long});
        let (it, _) = dns(
            &pod_of(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": config})),
            &facts(),
        );
        assert_eq!(it.searches.len(), 10, "ten and nine spaces are 2009 characters");
    }

    #[test]
    fn resolver_files_of_all_kinds_are_read() {
        let text = "# comment\n; other\nnameserver 1.1.1.1 extra\nnameserver fe80::1%eth0\n nameserver\nsearch a. b .\n\
            search c.example. d\noptions timeout:1 timeout:2\noptions edns0\nsortlist 1.2.3.4\n\n";
        let it = Resolver::parse(text);
        assert_eq!(it.servers, ["1.1.1.1", "fe80::1%eth0"]);
        assert_eq!(it.searches, ["c.example", "d"]);
        assert_eq!(it.options, ["timeout:2", "edns0"]);
        assert_eq!(Resolver::parse(""), Resolver::default());
    }
}
