//! Words of a Corefile → values.

use crate::name::{Zone, reverse_of};
use ipnet::IpNet;
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// A duration as Go writes it: `5s`, `1m30s`, `500ms`; a bare number is seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let refuse = || format!("{text:?} is no duration; write it as in 5s, 500ms or 1m30s");
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut rest = text;
    let mut total = 0.0_f64;
    while !rest.is_empty() {
        let digits = rest
            .find(|it: char| !it.is_ascii_digit() && it != '.')
            .ok_or_else(refuse)?;
        let number: f64 = rest[..digits].parse().map_err(|_| refuse())?;
        rest = &rest[digits..];
        let units = [
            ("ms", 1e-3),
            ("us", 1e-6),
            ("µs", 1e-6),
            ("ns", 1e-9),
            ("s", 1.0),
            ("m", 60.0),
            ("h", 3600.0),
        ];
        let (unit, seconds) = units
            .iter()
            .find(|(unit, _)| rest.starts_with(unit))
            .ok_or_else(refuse)?;
        total += number * seconds;
        rest = &rest[unit.len()..];
    }
    if text.is_empty() {
        return Err(refuse());
    }
    Duration::try_from_secs_f64(total).map_err(|_| refuse())
}

/// A number within bounds.
pub(super) fn number(text: &str, least: u64, most: u64) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("{text:?} is no number from {least} to {most}"))
}

/// Zones that a word stands for: itself, or the reverse zones of a CIDR.
pub(super) fn zones(text: &str) -> Result<Vec<Zone>, String> {
    let Ok(network) = text.parse::<IpNet>() else {
        return Ok(vec![Zone::parse(text)?]);
    };
    let network = network.trunc();
    let (unit, most) = if network.addr().is_ipv4() { (8, 32) } else { (4, 128) };
    // Reverse zones end at octets and nibbles: a prefix between two is several zones.
    let length = network.prefix_len().div_ceil(unit) * unit;
    let parts = network.subnets(length).map_err(|error| error.to_string())?;
    let zones = parts.map(|part| {
        let name = reverse_of(part.addr());
        let host_labels = usize::from((most - length) / unit);
        let zone = name.splitn(host_labels + 1, '.').last().unwrap_or(&name);
        Zone::parse(zone)
    });
    zones.collect()
}

/// Zones of several words.
pub(super) fn all_zones(words: &[String]) -> Result<Vec<Zone>, String> {
    let mut all = Vec::new();
    for word in words {
        all.extend(zones(word)?);
    }
    Ok(all)
}

/// The zones and the port of a server block's key: `[dns://]zone[:port]`.
pub(super) fn key(text: &str) -> Result<(Vec<Zone>, u16), String> {
    let rest = match text.split_once("://") {
        None => text,
        Some(("dns", rest)) => rest,
        Some((scheme, _)) => return Err(format!("{scheme}:// is not served; only dns:// is, by UDP and TCP")),
    };
    let (zone, port) = match rest.rsplit_once(':') {
        // An IPv6 prefix has colons of its own; a port comes after its length.
        Some((zone, port)) if !port.contains('/') && (zone.contains('/') || !zone.contains(':')) => {
            (zone, port.parse().map_err(|_| format!("{port:?} is no port"))?)
        }
        _ => (rest, 53),
    };
    Ok((zones(if zone.is_empty() { "." } else { zone })?, port))
}

/// An address to listen on: `:9153`, `127.0.0.1:9153`, `localhost:9153`.
pub(super) fn listen(text: &str) -> Result<String, String> {
    let host = text.strip_prefix(':').map(|port| format!("[::]:{port}"));
    let host = host.or_else(|| text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}")));
    let host = host.unwrap_or_else(|| text.to_owned());
    match host.parse::<SocketAddr>() {
        Ok(_) => Ok(host),
        Err(_) => Err(format!(
            "{text:?} is no address to listen on; write it as in :9153 or 127.0.0.1:9153"
        )),
    }
}

/// An upstream: address with or without port, with or without `dns://`.
pub(super) fn upstream(text: &str) -> Result<SocketAddr, String> {
    let rest = match text.split_once("://") {
        None => text,
        Some(("dns", rest)) => rest,
        Some((scheme, _)) => {
            return Err(format!(
                "upstreams by {scheme}:// are not supported; name one that answers by UDP and TCP"
            ));
        }
    };
    let bare = rest.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, 53));
    }
    rest.parse()
        .map_err(|_| format!("{text:?} is neither an address nor a file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, milliseconds) in [
            ("5s", 5000),
            ("500ms", 500),
            ("1m30s", 90_000),
            ("1h", 3_600_000),
            ("30", 30_000),
            ("0.5s", 500),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "s", "5x", "-5s", "5s5"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn keys() {
        let shown = |text: &str| {
            let (zones, port) = key(text).unwrap();
            format!("{zones:?} {port}")
        };
        assert_eq!(shown(".:53"), "[.] 53");
        assert_eq!(shown("dns://Example.org:1053"), "[example.org.] 1053");
        assert_eq!(shown("10.0.0.0/8"), "[10.in-addr.arpa.] 53");
        assert_eq!(shown("10.0.0.0/24:54"), "[0.0.10.in-addr.arpa.] 54");
        assert_eq!(
            shown("172.16.0.0/15"),
            "[16.172.in-addr.arpa., 17.172.in-addr.arpa.] 53"
        );
        assert_eq!(shown("2001:db8::/32"), "[8.b.d.0.1.0.0.2.ip6.arpa.] 53");
        assert_eq!(shown("2001:db8::/30:5353").matches("ip6.arpa").count(), 4);
        assert_eq!(shown("0.0.0.0/0"), "[in-addr.arpa.] 53");
        assert_eq!(shown("192.0.2.1/32"), "[1.2.0.192.in-addr.arpa.] 53");
        assert!(key("tls://.").unwrap_err().contains("tls://"));
        assert!(key("a..b").is_err());
    }
}
