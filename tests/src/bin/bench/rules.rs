//! Rules that do for services what kube-proxy's nftables and iptables modes do, packet by packet: the same hooks, the
//! same number of chains and lookups on the way. Names and text are our own.

use crate::services::{PORT, Service, TARGET_PORT};
use std::fmt::Write as _;

/// Sources that need no masquerading.
const CLUSTER_CIDR: &str = "10.1.0.0/16";
/// Bit of the packet mark that asks for masquerading.
const MASQUERADE_BIT: &str = "0x4000";

/// Input of `nft -f -`: one map of all VIPs to a chain per service port, which picks one of a chain per endpoint.
pub(crate) fn nftables(services: &[Service]) -> String {
    let mut text = format!(
        "table ip bench {{
 chain mark-packet {{ meta mark set meta mark | {MASQUERADE_BIT}; }}
 chain masquerading {{
  meta mark & {MASQUERADE_BIT} == 0 return
  meta mark set meta mark ^ {MASQUERADE_BIT}
  masquerade fully-random
 }}
"
    );
    let mut elements = Vec::new();
    for (n, service) in services.iter().enumerate() {
        for protocol in service.protocols() {
            let (protocol, vip) = (protocol.to_lowercase(), service.vip);
            let mut picks = Vec::new();
            for (e, endpoint) in service.endpoints.iter().enumerate() {
                // Writing to a string does not fail, here and below.
                let _ = writeln!(
                    text,
                    " chain endpoint-{n}-{e}-{protocol} {{
  ip saddr {endpoint} jump mark-packet
  meta l4proto {protocol} dnat to {endpoint}:{TARGET_PORT}
 }}"
                );
                picks.push(format!("{e} : goto endpoint-{n}-{e}-{protocol}"));
            }
            let _ = writeln!(
                text,
                " chain service-{n}-{protocol} {{
  ip daddr {vip} {protocol} dport {PORT} ip saddr != {CLUSTER_CIDR} jump mark-packet
  numgen random mod {} vmap {{ {} }}
 }}",
                picks.len(),
                picks.join(", ")
            );
            elements.push(format!("{vip} . {protocol} . {PORT} : goto service-{n}-{protocol}"));
        }
    }
    let _ = writeln!(
        text,
        " map services {{
  type ipv4_addr . inet_proto . inet_service : verdict
  elements = {{ {} }}
 }}
 map without-endpoints {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
 chain services {{ ip daddr . meta l4proto . th dport vmap @services; }}
 chain refused {{ ip daddr . meta l4proto . th dport vmap @without-endpoints; }}
 chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
 chain nat-output {{ type nat hook output priority -100; jump services; }}
 chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
 chain filter-input {{ type filter hook input priority -110; ct state new jump refused; }}
 chain filter-forward {{ type filter hook forward priority -110; ct state new jump refused; }}
 chain filter-output {{ type filter hook output priority -110; ct state new jump refused; }}
}}",
        elements.join(",\n")
    );
    text
}

/// Input of `iptables-restore`: one rule per service port in one chain, then a chain per service port and per endpoint.
pub(crate) fn iptables(services: &[Service]) -> String {
    let (mut chains, mut first, mut rules) = (String::new(), String::new(), String::new());
    for (n, service) in services.iter().enumerate() {
        for protocol in service.protocols() {
            let (protocol, vip, name) = (protocol.to_lowercase(), service.vip, &service.name);
            let comment = format!("-m comment --comment \"default/{name}:http-{protocol}\"");
            let to_vip = format!("-d {vip}/32 -p {protocol} {comment} -m {protocol} --dport {PORT}");
            let chain = format!("SVC-{n}-{protocol}");
            let _ = writeln!(chains, ":{chain} - [0:0]");
            let _ = writeln!(first, "-A SERVICES {to_vip} -j {chain}");
            let _ = writeln!(rules, "-A {chain} ! -s {CLUSTER_CIDR} {to_vip} -j MARK-MASQ");
            let last = service.endpoints.len().saturating_sub(1);
            for (e, endpoint) in service.endpoints.iter().enumerate() {
                let target = format!("SEP-{n}-{e}-{protocol}");
                let pick = if e == last {
                    String::new()
                } else {
                    let probability = 1.0 / (last + 1 - e) as f64;
                    format!(" -m statistic --mode random --probability {probability:.10}")
                };
                let _ = writeln!(chains, ":{target} - [0:0]");
                let _ = writeln!(
                    rules,
                    "-A {chain} {comment}{pick} -j {target}
-A {target} -s {endpoint}/32 {comment} -j MARK-MASQ
-A {target} -p {protocol} {comment} -m {protocol} -j DNAT --to-destination {endpoint}:{TARGET_PORT}"
                );
            }
        }
    }
    format!(
        "*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:REFUSED - [0:0]
:FORWARDING - [0:0]
-A INPUT -m conntrack --ctstate NEW -j REFUSED
-A FORWARD -j FORWARDING
-A FORWARD -m conntrack --ctstate NEW -j REFUSED
-A OUTPUT -m conntrack --ctstate NEW -j REFUSED
-A FORWARDING -m conntrack --ctstate INVALID -j DROP
-A FORWARDING -m mark --mark {MASQUERADE_BIT}/{MASQUERADE_BIT} -j ACCEPT
-A FORWARDING -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:SERVICES - [0:0]
:MARK-MASQ - [0:0]
:MASQUERADING - [0:0]
{chains}-A PREROUTING -j SERVICES
-A OUTPUT -j SERVICES
-A POSTROUTING -j MASQUERADING
-A MARK-MASQ -j MARK --or-mark {MASQUERADE_BIT}
-A MASQUERADING -m mark ! --mark {MASQUERADE_BIT}/{MASQUERADE_BIT} -j RETURN
-A MASQUERADING -j MARK --xor-mark {MASQUERADE_BIT}
-A MASQUERADING -j MASQUERADE --random-fully
{first}{rules}COMMIT
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_endpoint_takes_what_is_left() {
        let text = iptables(&[Service::numbered(0, 3)]);
        let picks: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("-A SVC-0-tcp -m"))
            .map(|line| line.split("--probability ").nth(1).unwrap_or("rest"))
            .map(|line| line.split(' ').next().unwrap_or_default())
            .collect();
        assert_eq!(picks, ["0.3333333333", "0.5000000000", "rest"]);
    }

    #[test]
    fn every_service_is_reached_by_one_lookup() {
        let services: Vec<Service> = (0..3).map(|n| Service::numbered(n, 2)).collect();
        let text = nftables(&services);
        for (n, Service { vip, .. }) in services.iter().enumerate() {
            let element = format!("{vip} . tcp . 80 : goto service-{n}-tcp");
            assert_eq!(text.matches(&element).count(), 1);
        }
        assert_eq!(text.matches("numgen random mod 2 vmap").count(), 3);
        assert_eq!(text.matches(" chain endpoint-").count(), 6);
    }
}
