//! Routes that the agent makes on the host, told from others by protocol and metric, and routes of pods.

use super::{Change, Netlink, pair::family};
use ipnet::IpNet;
use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage as Message,
        route::{
            RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
            RouteScope, RouteType,
        },
    },
};
use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// `rtm_protocol` of our routes: none that `/etc/iproute2/rt_protos` knows.
const PROTOCOL: u8 = 0xfa;

/// A route of the host's main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) to: IpNet,
    pub(crate) way: Way,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// Nowhere: addresses of this node that no pod has must not follow the default route.
    Blackhole,
    /// To a pod, by its link.
    Link(u32),
    /// To another node, by this link.
    Node(IpAddr, u32),
}

impl Route {
    pub(crate) fn pod(ip: IpAddr, index: u32) -> Self {
        Self {
            to: IpNet::from(ip),
            way: Way::Link(index),
        }
    }

    pub(crate) fn add(&self, mark: u32) -> Change {
        Change::new(
            "add the route",
            NLM_F_CREATE | NLM_F_REPLACE,
            Message::NewRoute(self.message(mark)),
        )
    }

    pub(crate) fn remove(&self, mark: u32) -> Change {
        Change::new("remove the route", 0, Message::DelRoute(self.message(mark)))
    }

    fn message(&self, mark: u32) -> RouteMessage {
        let to = self.to.network();
        let mut message = empty(to);
        message.header.protocol = PROTOCOL.into();
        message.header.destination_prefix_length = self.to.prefix_len();
        message.attributes = vec![RouteAttribute::Destination(to.into()), RouteAttribute::Priority(mark)];
        match self.way {
            Way::Blackhole => message.header.kind = RouteType::BlackHole,
            Way::Link(index) => {
                message.header.scope = RouteScope::Link;
                message.attributes.push(RouteAttribute::Oif(index));
            }
            Way::Node(gateway, index) => {
                message.attributes.push(RouteAttribute::Gateway(gateway.into()));
                message.attributes.push(RouteAttribute::Oif(index));
            }
        }
        message
    }
}

/// A unicast route of the main table to a destination that is still to be given.
fn empty(to: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(to);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message
}

/// In a pod: its IPv4 next hop is on the link.
pub(super) fn on_link(to: Ipv4Addr, index: u32) -> Change {
    let mut message = empty(to.into());
    message.header.destination_prefix_length = 32;
    message.header.scope = RouteScope::Link;
    message.attributes = vec![
        RouteAttribute::Destination(RouteAddress::Inet(to)),
        RouteAttribute::Oif(index),
    ];
    Change::new(
        "add the pod's route to its next hop",
        NLM_F_CREATE | NLM_F_EXCL,
        Message::NewRoute(message),
    )
}

/// In a pod: everything goes to the next hop.
pub(super) fn default(gateway: IpAddr, index: u32, mtu: u32) -> Change {
    let mut message = empty(gateway);
    message.attributes = vec![
        RouteAttribute::Gateway(gateway.into()),
        RouteAttribute::Oif(index),
        RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]),
    ];
    Change::new(
        "add the pod's default route",
        NLM_F_CREATE | NLM_F_EXCL,
        Message::NewRoute(message),
    )
}

/// What is known about the host's routes.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Those with our protocol and this mark.
    pub(crate) ours: BTreeSet<Route>,
    /// Links that default routes lead to.
    pub(crate) uplinks: BTreeSet<u32>,
}

/// Reads the host's routes.
pub(crate) fn read(netlink: &mut Netlink, mark: u32) -> io::Result<Known> {
    let mut known = Known::default();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        for message in netlink.dump(Message::GetRoute(request))? {
            let Message::NewRoute(route) = message else { continue };
            note(&mut known, &route, mark);
        }
    }
    Ok(known)
}

fn note(known: &mut Known, message: &RouteMessage, mark: u32) {
    if message.header.flags.contains(RouteFlags::Cloned) || message.header.table != RouteHeader::RT_TABLE_MAIN {
        return;
    }
    let found = parts(message);
    if found.to.is_none() && message.header.kind == RouteType::Unicast {
        known.uplinks.extend(found.oif);
    }
    if u8::from(message.header.protocol) != PROTOCOL || found.metric != Some(mark) {
        return;
    }
    let to = found.to.unwrap_or_else(|| unspecified(message.header.address_family));
    let Ok(to) = IpNet::new(to, message.header.destination_prefix_length) else {
        return;
    };
    let way = match (message.header.kind, found.gateway, found.oif) {
        (RouteType::Unicast, None, Some(index)) => Way::Link(index),
        (RouteType::Unicast, Some(gateway), Some(index)) => Way::Node(gateway, index),
        _ => Way::Blackhole,
    };
    known.ours.insert(Route { to, way });
}

/// How the kernel reaches an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// It is on the same link.
    OnLink(u32),
    /// By a router.
    By(IpAddr),
    /// It is an address of this host.
    Here,
    /// Not at all.
    Nowhere,
}

/// Asks the kernel how it reaches an address.
pub(crate) fn reach(netlink: &mut Netlink, ip: IpAddr) -> io::Result<Reach> {
    let mut request = RouteMessage::default();
    request.header.address_family = family(ip);
    request.header.destination_prefix_length = if ip.is_ipv4() { 32 } else { 128 };
    request.attributes = vec![RouteAttribute::Destination(ip.into())];
    let found = match netlink.get(Message::GetRoute(request)) {
        Ok(Message::NewRoute(found)) => found,
        Ok(_) => return Ok(Reach::Nowhere),
        Err(error) => {
            return match error.raw_os_error() {
                Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL) => Ok(Reach::Nowhere),
                _ => Err(error),
            };
        }
    };
    let way = parts(&found);
    Ok(match (found.header.kind, way.gateway, way.oif) {
        (RouteType::Local, ..) => Reach::Here,
        (RouteType::Unicast, None, Some(index)) => Reach::OnLink(index),
        (RouteType::Unicast, Some(gateway), _) => Reach::By(gateway),
        _ => Reach::Nowhere,
    })
}

#[derive(Default)]
struct Parts {
    to: Option<IpAddr>,
    gateway: Option<IpAddr>,
    oif: Option<u32>,
    metric: Option<u32>,
}

fn parts(message: &RouteMessage) -> Parts {
    let mut parts = Parts::default();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => parts.to = ip(to),
            RouteAttribute::Gateway(gateway) => parts.gateway = ip(gateway),
            RouteAttribute::Oif(index) => parts.oif = Some(*index),
            RouteAttribute::Priority(metric) => parts.metric = Some(*metric),
            _ => {}
        }
    }
    parts
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn unspecified(family: AddressFamily) -> IpAddr {
    if family == AddressFamily::Inet {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    }
}
