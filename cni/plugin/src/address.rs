//! Ranges of addresses that pods may get.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A range is cut to this many addresses: no node runs more pods, and used addresses stay countable in an IPv6 /64.
pub const MOST: u32 = 1 << 16;

/// Next hop of IPv4 pods: link-local, answered by a permanent neighbour entry and held by nobody.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Next hop of IPv6 pods, as [`GATEWAY_V4`].
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The next hop of pods in the family of an address.
#[must_use]
pub const fn gateway(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => IpAddr::V4(GATEWAY_V4),
        IpAddr::V6(_) => IpAddr::V6(GATEWAY_V6),
    }
}

/// Addresses `first..=last` of one family, at most [`MOST`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Range {
    /// The lowest address.
    pub first: IpAddr,
    /// The highest address.
    pub last: IpAddr,
    /// One address in between that is never given away: a gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub except: Option<IpAddr>,
}

impl Range {
    /// The addresses of a network that hosts may have: not the network's own nor the broadcast address (IPv4, RFC 1122
    /// section 3.2.1.3), not the subnet-router anycast address (IPv6, RFC 4291 section 2.6.1). Networks of one or two
    /// addresses are used whole (RFC 3021, RFC 6164).
    #[must_use]
    pub fn of(net: IpNet) -> Self {
        let (first, last) = (number(net.network()), number(net.broadcast()));
        let v4 = net.network().is_ipv4();
        let small = last - first < 2;
        let first = if small { first } else { first + 1 };
        let last = if small || !v4 { last } else { last - 1 };
        Self::between(address(first, v4), address(last, v4), None)
    }

    /// The addresses from `first` to `last`, which are of one family and in order.
    fn between(first: IpAddr, last: IpAddr, except: Option<IpAddr>) -> Self {
        let top = number(first).saturating_add(u128::from(MOST - 1)).min(number(last));
        Self {
            first,
            last: address(top, first.is_ipv4()),
            except,
        }
    }

    /// Reads one range of a network configuration.
    ///
    /// # Errors
    /// What is wrong, with the field's name.
    pub fn from_config(config: &RangeConfig) -> Result<Self, String> {
        let RangeConfig {
            subnet,
            range_start,
            range_end,
            gateway,
        } = config;
        let whole = Self::of(*subnet);
        let first = range_start.unwrap_or(whole.first);
        let last = match range_end {
            Some(last) => *last,
            // The whole range is cut; what begins later may go on to the network's end.
            None => {
                let end = number(subnet.broadcast());
                let broadcast = whole.first.is_ipv4() && end - number(subnet.network()) >= 2;
                address(end - u128::from(broadcast), whole.first.is_ipv4())
            }
        };
        for (name, addr) in [("rangeStart", first), ("rangeEnd", last)] {
            if !subnet.contains(&addr) {
                return Err(format!("{name} {addr} is outside subnet {subnet}"));
            }
        }
        if number(first) > number(last) {
            return Err(format!("rangeStart {first} is above rangeEnd {last}"));
        }
        Ok(Self::between(first, last, *gateway))
    }

    /// How many addresses there are, the excepted one included.
    #[must_use]
    pub fn size(&self) -> u32 {
        u32::try_from(number(self.last).saturating_sub(number(self.first)))
            .unwrap_or(MOST)
            .saturating_add(1)
            .min(MOST)
    }

    /// The `n`th address, from 0; `None` past the end and for the excepted one.
    #[must_use]
    pub fn nth(&self, n: u32) -> Option<IpAddr> {
        if n >= self.size() {
            return None;
        }
        let found = address(number(self.first) + u128::from(n), self.first.is_ipv4());
        (Some(found) != self.except).then_some(found)
    }

    /// Whether pods may get this address from this range.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        addr.is_ipv4() == self.first.is_ipv4()
            && (number(self.first)..=number(self.last)).contains(&number(addr))
            && Some(addr) != self.except
    }
}

/// One range as conflists have it, in the format of the well-known host-local plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RangeConfig {
    /// The network.
    pub subnet: IpNet,
    /// The lowest address to give away; default: the network's first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_start: Option<IpAddr>,
    /// The highest address to give away; default: the network's last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_end: Option<IpAddr>,
    /// An address that is not given away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The inverse of [`number`].
fn address(number: u128, v4: bool) -> IpAddr {
    if v4 {
        IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX)))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(net: &str) -> (String, String, u32) {
        let range = Range::of(net.parse().unwrap());
        (range.first.to_string(), range.last.to_string(), range.size())
    }

    #[test]
    fn networks_keep_back_what_no_host_may_have() {
        let cases = [
            ("10.1.0.0/24", "10.1.0.1", "10.1.0.254", 254),
            ("10.1.0.8/30", "10.1.0.9", "10.1.0.10", 2),
            ("10.1.0.8/31", "10.1.0.8", "10.1.0.9", 2),
            ("10.1.0.8/32", "10.1.0.8", "10.1.0.8", 1),
            ("0.0.0.0/0", "0.0.0.1", "0.1.0.0", 65_536),
            ("255.255.255.0/24", "255.255.255.1", "255.255.255.254", 254),
            ("fd00::/64", "fd00::1", "fd00::1:0", 65_536),
            ("fd00::/126", "fd00::1", "fd00::3", 3),
            ("fd00::8/127", "fd00::8", "fd00::9", 2),
            ("::/0", "::1", "::1:0", 65_536),
        ];
        for (net, first, last, size) in cases {
            assert_eq!(range(net), (first.into(), last.into(), size), "{net}");
        }
    }

    #[test]
    fn configured_ranges_stay_inside_their_network() {
        let read = |text: &str| Range::from_config(&serde_json::from_str(text).unwrap());
        let range =
            read(r#"{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.10","rangeEnd":"10.1.0.12","gateway":"10.1.0.11"}"#);
        let range = range.unwrap();
        let all: Vec<_> = (0..9).filter_map(|n| range.nth(n)).map(|it| it.to_string()).collect();
        assert_eq!(all, ["10.1.0.10", "10.1.0.12"]);
        assert!(!range.contains("10.1.0.11".parse().unwrap()));
        let open = read(r#"{"subnet":"10.0.0.0/8","rangeStart":"10.9.0.0"}"#).unwrap();
        assert_eq!(
            (open.size(), open.last.to_string()),
            (65_536, "10.9.255.255".to_owned())
        );
        for bad in [
            r#"{"subnet":"10.1.0.0/24","rangeStart":"10.2.0.1"}"#,
            r#"{"subnet":"10.1.0.0/24","rangeEnd":"fd00::1"}"#,
            r#"{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.9","rangeEnd":"10.1.0.8"}"#,
        ] {
            read(bad).unwrap_err();
        }
    }
}
