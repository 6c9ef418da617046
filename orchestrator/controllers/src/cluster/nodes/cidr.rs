//! Which subnet of the cluster's ranges a node gets: pure, and no subnet twice.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::{collections::BTreeMap, net::IpAddr};

/// One range, cut into subnets of one size.
#[derive(Clone, Debug)]
pub(crate) struct Range {
    range: IpNet,
    mask: u8,
    /// Who has which subnet, by its number.
    taken: BTreeMap<u64, String>,
    /// Where the next search begins, so that a subnet rests before it is given again.
    next: u64,
}

/// Why a subnet cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("{0} has no subnet left; make the cluster's range larger, or its nodes' subnets smaller")]
    Exhausted(IpNet),
    #[error("{subnet} belongs to node {owner} already; delete one of the two nodes")]
    Taken { subnet: IpNet, owner: String },
    #[error("{0} is not one of the subnets of the cluster's ranges")]
    Foreign(IpNet),
}

impl Range {
    /// A range in subnets of this prefix length.
    ///
    /// # Errors
    /// A mask that does not fit the range.
    pub(crate) fn new(range: IpNet, mask: u8) -> Result<Self, String> {
        if mask < range.prefix_len() || mask > range.max_prefix_len() {
            return Err(format!(
                "a node's subnet of /{mask} does not fit into {range}; choose a mask from {} to {}",
                range.prefix_len(),
                range.max_prefix_len()
            ));
        }
        Ok(Self {
            range: range.trunc(),
            mask,
            taken: BTreeMap::new(),
            next: 0,
        })
    }

    /// Subnets in the range.
    fn size(&self) -> u64 {
        let bits = u32::from(self.mask - self.range.prefix_len());
        1u64.checked_shl(bits).unwrap_or(u64::MAX)
    }

    fn subnet(&self, number: u64) -> IpNet {
        let shift = u32::from(self.range.max_prefix_len() - self.mask);
        match self.range {
            IpNet::V4(range) => {
                let offset = u32::try_from(number)
                    .unwrap_or(u32::MAX)
                    .checked_shl(shift)
                    .unwrap_or(0);
                let address = (range.network().to_bits() | offset).into();
                Ipv4Net::new(address, self.mask).map_or(self.range, IpNet::V4)
            }
            IpNet::V6(range) => {
                let offset = u128::from(number).checked_shl(shift).unwrap_or(0);
                let address = (range.network().to_bits() | offset).into();
                Ipv6Net::new(address, self.mask).map_or(self.range, IpNet::V6)
            }
        }
    }

    /// Numbers of our subnets that this net touches; `None` if it lies outside.
    fn numbers(&self, net: IpNet) -> Option<std::ops::RangeInclusive<u64>> {
        if !self.range.contains(&net) {
            return None;
        }
        let number = |address: IpAddr| match (address, self.range) {
            (IpAddr::V4(address), IpNet::V4(range)) => {
                let offset = u64::from(address.to_bits() ^ range.network().to_bits());
                offset.checked_shr(u32::from(32 - self.mask)).unwrap_or(0)
            }
            (IpAddr::V6(address), IpNet::V6(range)) => {
                let offset = address.to_bits() ^ range.network().to_bits();
                let number = offset.checked_shr(u32::from(128 - self.mask)).unwrap_or(0);
                u64::try_from(number).unwrap_or(u64::MAX)
            }
            _ => 0,
        };
        Some(number(net.network())..=number(net.broadcast()))
    }

    /// Notes that a node has this subnet.
    ///
    /// # Errors
    /// Another node has part of it, or it is not in the range: nothing is noted then.
    pub(crate) fn occupy(&mut self, net: IpNet, node: &str) -> Result<(), Refused> {
        let numbers = self.numbers(net).ok_or(Refused::Foreign(net))?;
        let other = self.taken.range(numbers.clone()).find(|(_, owner)| *owner != node);
        if let Some((_, owner)) = other {
            return Err(Refused::Taken {
                subnet: net,
                owner: owner.clone(),
            });
        }
        if numbers.end() - numbers.start() > 0xffff {
            // Larger than what we give out by so much that noting each would cost more than the range is worth.
            return Err(Refused::Foreign(net));
        }
        for number in numbers {
            self.taken.insert(number, node.to_owned());
        }
        Ok(())
    }

    /// A subnet that nobody has; it is the node's from now on. Who has one already gets that.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn allocate(&mut self, node: &str) -> Result<IpNet, Refused> {
        if let Some((number, _)) = self.taken.iter().find(|(_, owner)| *owner == node) {
            return Ok(self.subnet(*number));
        }
        let size = self.size();
        let free = |from: u64, to: u64, taken: &BTreeMap<u64, String>| {
            let mut number = from;
            for used in taken.range(from..to).map(|it| *it.0) {
                if used != number {
                    break;
                }
                number += 1;
            }
            (number < to).then_some(number)
        };
        let start = if self.next < size { self.next } else { 0 };
        let number = free(start, size, &self.taken).or_else(|| free(0, start, &self.taken));
        let number = number.ok_or(Refused::Exhausted(self.range))?;
        self.taken.insert(number, node.to_owned());
        self.next = number + 1;
        Ok(self.subnet(number))
    }

    /// Everything that the node has is free again.
    pub(crate) fn release(&mut self, node: &str) {
        self.taken.retain(|_, owner| owner != node);
    }
}

/// The ranges of the cluster: one per family, IPv4 or IPv6 first as configured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ranges(Vec<Range>);

impl Ranges {
    /// # Errors
    /// Two ranges of one family, or masks that do not fit.
    pub(crate) fn new(cluster: &[IpNet], mask_v4: u8, mask_v6: u8) -> Result<Self, String> {
        let mut ranges: Vec<Range> = Vec::new();
        for net in cluster {
            if ranges.iter().any(|it| is_v6(&it.range) == is_v6(net)) {
                return Err(format!("{net} is a second range of its family; give one per family"));
            }
            ranges.push(Range::new(*net, if is_v6(net) { mask_v6 } else { mask_v4 })?);
        }
        Ok(Self(ranges))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Notes what a node has. All that can be noted is, also if some cannot.
    pub(crate) fn occupy(&mut self, subnets: &[IpNet], node: &str) -> Vec<Refused> {
        let mut refused = Vec::new();
        for net in subnets {
            let range = self.0.iter_mut().find(|it| is_v6(&it.range) == is_v6(net));
            let noted = range.map_or(Err(Refused::Foreign(*net)), |it| it.occupy(*net, node));
            refused.extend(noted.err());
        }
        refused
    }

    /// A subnet of each range, or none of any; the same as before for a node that has some.
    ///
    /// # Errors
    /// A range that has no more.
    pub(crate) fn allocate(&mut self, node: &str) -> Result<Vec<IpNet>, Refused> {
        let subnets: Result<Vec<_>, _> = self.0.iter_mut().map(|it| it.allocate(node)).collect();
        if subnets.is_err() {
            self.release(node);
        }
        subnets
    }

    /// Everything that the node has is free again.
    pub(crate) fn release(&mut self, node: &str) {
        self.0.iter_mut().for_each(|it| it.release(node));
    }
}

fn is_v6(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(_))
}
