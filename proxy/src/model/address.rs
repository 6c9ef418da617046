//! Addresses and CIDRs as API objects spell them, including spellings that only old objects still have.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr};

/// A value that was understood, and what was odd about its spelling.
pub(super) struct Read<T> {
    pub(super) value: T,
    pub(super) odd: Option<&'static str>,
}

const LEADING_ZEROS: &str = "has leading zeros, read as decimal; write it without them";
const MAPPED: &str = "is an IPv4-mapped IPv6 address, read as IPv4; write it as IPv4";
const HOST_BITS: &str = "has bits set beyond its prefix, which are ignored; write the network address";

/// An address. Objects stored before strict validation (KEP-4858) may carry leading zeros or IPv4-mapped IPv6; both
/// mean what Kubernetes always took them to mean.
pub(super) fn parse_ip(text: &str) -> Result<Read<IpAddr>, &'static str> {
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(addr)) => Ok(match addr.to_ipv4_mapped() {
            Some(v4) => Read {
                value: v4.into(),
                odd: Some(MAPPED),
            },
            None => Read {
                value: addr.into(),
                odd: None,
            },
        }),
        Ok(value) => Ok(Read { value, odd: None }),
        Err(_) => match parse_v4_with_zeros(text) {
            Some(v4) => Ok(Read {
                value: v4.into(),
                odd: Some(LEADING_ZEROS),
            }),
            None => Err("is not an IP address"),
        },
    }
}

fn parse_v4_with_zeros(text: &str) -> Option<Ipv4Addr> {
    let mut parts = text.split('.');
    let mut octets = [0u8; 4];
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || part.len() > 16 || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then(|| octets.into())
}

/// A network in CIDR notation, blanks around it ignored, host bits cleared.
pub(super) fn parse_cidr(text: &str) -> Result<Read<IpNet>, &'static str> {
    const BAD: &str = "is not a network in CIDR notation, as in 203.0.113.0/24";
    let (addr, prefix) = text.trim().split_once('/').ok_or(BAD)?;
    let mapped = addr.contains(':');
    let Read { value: addr, mut odd } = parse_ip(addr).map_err(|_| BAD)?;
    if prefix.is_empty() || prefix.len() > 3 || !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(BAD);
    }
    let prefix: u8 = prefix.parse().map_err(|_| BAD)?;
    let net: IpNet = match addr {
        IpAddr::V4(addr) => {
            let prefix = if mapped {
                prefix.checked_sub(96).ok_or(BAD)?
            } else {
                prefix
            };
            Ipv4Net::new(addr, prefix).map_err(|_| BAD)?.into()
        }
        IpAddr::V6(addr) => Ipv6Net::new(addr, prefix).map_err(|_| BAD)?.into(),
    };
    let value = net.trunc();
    if value != net {
        odd = odd.or(Some(HOST_BITS));
    }
    Ok(Read { value, odd })
}

/// Why traffic to this address must never be intercepted or balanced to: such addresses mean something else on every
/// node, so taking them over (or sending to them) would reach into the node itself.
pub(super) fn unfit(addr: IpAddr) -> Option<&'static str> {
    let link_local = match addr {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if addr.is_unspecified() || matches!(addr, IpAddr::V4(v4) if v4.octets()[0] == 0) {
        Some("is an unspecified address")
    } else if addr.is_loopback() {
        Some("is a loopback address")
    } else if addr.is_multicast() {
        Some("is a multicast address")
    } else if link_local {
        Some("is a link-local address")
    } else if matches!(addr, IpAddr::V4(v4) if v4.is_broadcast()) {
        Some("is the broadcast address")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_old_objects_spell_them() {
        for (text, want, odd) in [
            ("10.96.0.1", "10.96.0.1", false),
            ("010.0.0.1", "10.0.0.1", true),
            ("010.096.000.009", "10.96.0.9", true),
            ("::ffff:10.0.0.1", "10.0.0.1", true),
            ("fd00::1", "fd00::1", false),
        ] {
            let read = parse_ip(text).unwrap();
            assert_eq!(read.value, want.parse::<IpAddr>().unwrap(), "{text}");
            assert_eq!(read.odd.is_some(), odd, "{text}");
        }
        for text in [
            "",
            "10.0.0",
            "10.0.0.256",
            "10.0.0.1.",
            "0x0a.0.0.1",
            "10.0.0.1/32",
            " 10.0.0.1",
            "fe80::1%eth0",
        ] {
            assert!(parse_ip(text).is_err(), "{text}");
        }
    }

    #[test]
    fn networks() {
        for (text, want, odd) in [
            ("203.0.113.0/24", "203.0.113.0/24", false),
            (" 203.0.113.0/24 ", "203.0.113.0/24", false),
            ("203.0.113.7/24", "203.0.113.0/24", true),
            ("010.0.0.0/8", "10.0.0.0/8", true),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8", true),
            ("2001:db8::/32", "2001:db8::/32", false),
        ] {
            let read = parse_cidr(text).unwrap();
            assert_eq!(read.value, want.parse::<IpNet>().unwrap(), "{text}");
            assert_eq!(read.odd.is_some(), odd, "{text}");
        }
        for text in [
            "",
            "/",
            "10.0.0.0",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "::/129",
            "::ffff:10.0.0.0/8",
            "a/b",
            "10.0.0.0/256",
        ] {
            assert!(parse_cidr(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_that_belong_to_every_node() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.53",
            "169.254.1.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
        ] {
            assert!(unfit(text.parse().unwrap()).is_some(), "{text}");
        }
        for text in ["10.0.0.1", "198.51.100.1", "fd00::1", "2001:db8::1"] {
            assert!(unfit(text.parse().unwrap()).is_none(), "{text}");
        }
    }
}
