//! A pod's pair of links: the messages that make it, and what is read about links.
//!
//! ```text
//! pod:  10.1.0.5/32, fd00::5/128 on eth0; default by 169.254.1.1 and fe80::1, whose MAC is the host end's for good
//! host: 10.1.0.5 and fd00::5 by the host end, with the pod's MAC for good
//! ```
//!
//! Neighbours are written down, not asked for: the first packet waits for no ARP or neighbour discovery, and nobody
//! needs to answer for the gateways. No link-local IPv6 address is made, so nothing waits for duplicate detection.

use super::{Change, Netlink, routes};
use fairlead_cni_plugin::address::{GATEWAY_V4, gateway};
use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage as Message,
        address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
        link::{
            AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags,
            LinkInfo, LinkMessage,
        },
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::RouteType,
    },
};
use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    os::fd::{AsRawFd as _, BorrowedFd},
};

/// Both ends as they are made.
pub(crate) struct Pair<'a> {
    pub(crate) host_if: &'a str,
    pub(crate) pod_if: &'a str,
    pub(crate) host_mac: [u8; 6],
    pub(crate) pod_mac: [u8; 6],
    pub(crate) mtu: u32,
    /// Mark of the agent: group of the host's end, metric of its routes.
    pub(crate) mark: u32,
    pub(crate) ips: &'a [IpAddr],
}

const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;

impl Pair<'_> {
    /// Makes both ends, the pod's straight in its namespace.
    pub(crate) fn create(&self, netns: BorrowedFd<'_>) -> Change {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(self.pod_if.to_owned()),
            LinkAttribute::Address(self.pod_mac.to_vec()),
            LinkAttribute::Mtu(self.mtu),
            LinkAttribute::NetNsFd(netns.as_raw_fd()),
        ];
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(self.host_if.to_owned()),
            LinkAttribute::Address(self.host_mac.to_vec()),
            LinkAttribute::Mtu(self.mtu),
            LinkAttribute::Group(self.mark),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        Change::new("make the pair of links", NEW, Message::NewLink(link))
    }

    /// The host's end, in the host's namespace.
    pub(crate) fn host(&self, index: u32) -> Vec<Change> {
        let mut changes = vec![no_link_local(index), up(index)];
        for ip in self.ips {
            changes.push(neighbour(index, *ip, self.pod_mac));
            changes.push(routes::Route::pod(*ip, index).add(self.mark));
        }
        changes
    }

    /// The pod's end, in the pod's namespace.
    pub(crate) fn pod(&self, index: u32) -> Vec<Change> {
        let mut changes = vec![no_link_local(index)];
        changes.extend(self.ips.iter().map(|ip| address(index, *ip)));
        changes.push(up(index));
        for ip in self.ips {
            changes.push(neighbour(index, gateway(*ip), self.host_mac));
            if ip.is_ipv4() {
                // IPv4 wants a route to the next hop; IPv6 takes link-local ones for on-link.
                changes.push(routes::on_link(GATEWAY_V4, index));
            }
            changes.push(routes::default(gateway(*ip), index, self.mtu));
        }
        changes
    }
}

/// Must come before the link is up, when the kernel would make the address.
fn no_link_local(index: u32) -> Change {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes = vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
        AfSpecInet6::AddrGenMode(In6AddrGenMode::None),
    ])])];
    Change::new("turn link-local addresses off", 0, Message::SetLink(link))
}

fn up(index: u32) -> Change {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    Change::new("bring the link up", 0, Message::SetLink(link))
}

fn address(index: u32, ip: IpAddr) -> Change {
    let mut message = AddressMessage::default();
    message.header.family = family(ip);
    message.header.prefix_len = if ip.is_ipv4() { 32 } else { 128 };
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    if ip.is_ipv6() {
        let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    Change::new("give the pod its address", NEW, Message::NewAddress(message))
}

fn neighbour(index: u32, ip: IpAddr, mac: [u8; 6]) -> Change {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    let destination = match ip {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    };
    message.attributes = vec![
        NeighbourAttribute::Destination(destination),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    Change::new("write down the neighbour", flags, Message::NewNeighbour(message))
}

/// Removes a link, and with it its peer.
pub(crate) fn delete(name: &str) -> Change {
    let mut link = LinkMessage::default();
    link.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    Change::new("remove the link", 0, Message::DelLink(link))
}

/// Removes all links of a group.
pub(crate) fn delete_group(mark: u32) -> Change {
    let mut link = LinkMessage::default();
    link.attributes = vec![LinkAttribute::Group(mark)];
    Change::new("remove the links of pods", 0, Message::DelLink(link))
}

/// A link of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) mtu: u32,
    pub(crate) group: u32,
}

/// All links of the namespace, by index.
pub(crate) fn links(netlink: &mut Netlink) -> io::Result<BTreeMap<u32, Link>> {
    let found = netlink.dump(Message::GetLink(LinkMessage::default()))?;
    let links = found.into_iter().filter_map(|message| match message {
        Message::NewLink(link) => Some((link.header.index, read(link.attributes))),
        _ => None,
    });
    Ok(links.collect())
}

/// The index of a link by its name.
pub(crate) fn index(netlink: &mut Netlink, name: &str) -> io::Result<u32> {
    let mut link = LinkMessage::default();
    link.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    match netlink.get(Message::GetLink(link))? {
        Message::NewLink(link) => Ok(link.header.index),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

fn read(attributes: Vec<LinkAttribute>) -> Link {
    let mut link = Link {
        name: String::new(),
        mtu: 0,
        group: 0,
    };
    for attribute in attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Group(group) => link.group = group,
            _ => {}
        }
    }
    link
}

pub(crate) fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}
