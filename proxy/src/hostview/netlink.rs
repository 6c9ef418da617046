//! Reads links, addresses and default routes by rtnetlink and follows their changes.
//!
//! A notification only says what to read again: the kernel's state is the truth, so a notification that was lost when
//! the socket overran costs nothing.

use super::{AddressFacts, DefaultRoute, HostFacts, LinkFacts};
use crate::model::Family;
use futures::{StreamExt, TryStream, TryStreamExt, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
        link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
        route::{RouteAttribute, RouteHeader, RouteMessage, RouteType},
    },
    sys::SocketAddr,
};
use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};
use tokio::{sync::watch, task::JoinHandle};

/// Pause before reading again what could not be read.
const RETRY: Duration = Duration::from_secs(1);

/// The host's links or addresses cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {what} by rtnetlink: {source}; the agent needs CAP_NET_ADMIN and the host's network namespace")]
pub struct HostError {
    /// What was read.
    pub what: &'static str,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// Follows [`HostFacts`].
#[derive(Debug)]
pub struct HostWatcher {
    handle: Handle,
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    connection: JoinHandle<()>,
    facts: HostFacts,
}

/// What has to be read again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stale {
    links: bool,
    addresses: bool,
    routes: bool,
}

impl Stale {
    const ALL: Self = Self {
        links: true,
        addresses: true,
        routes: true,
    };

    fn or(self, other: Self) -> Self {
        Self {
            links: self.links || other.links,
            addresses: self.addresses || other.addresses,
            routes: self.routes || other.routes,
        }
    }

    /// What a notification makes stale. Routes other than default ones are none of our business: a node may carry a
    /// whole routing table. The kernel takes IPv4 routes along without a word when their link or source address goes
    /// (`fib_sync_down_dev`, `fib_sync_down_addr`), so those changes concern routes too.
    fn from(message: &NetlinkPayload<RouteNetlinkMessage>) -> Self {
        match message {
            NetlinkPayload::InnerMessage(message) => match message {
                RouteNetlinkMessage::NewLink(_) | RouteNetlinkMessage::DelLink(_) => Self {
                    links: true,
                    routes: true,
                    ..Self::default()
                },
                RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => Self {
                    addresses: true,
                    routes: true,
                    ..Self::default()
                },
                RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => Self {
                    routes: route.header.destination_prefix_length == 0,
                    ..Self::default()
                },
                _ => Self::default(),
            },
            NetlinkPayload::Overrun(_) => Self::ALL,
            _ => Self::default(),
        }
    }
}

impl HostWatcher {
    /// Subscribes in the network namespace of the calling thread, then reads everything once: no change is missed.
    ///
    /// # Errors
    /// The socket or one of the reads was refused.
    pub async fn start() -> Result<Self, HostError> {
        let (connection, handle, messages) = new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ])
        .map_err(|source| HostError {
            what: "the host's network",
            source,
        })?;
        let connection = tokio::spawn(connection);
        let mut watcher = Self {
            handle,
            messages,
            connection,
            facts: HostFacts::default(),
        };
        watcher.read(Stale::ALL).await?;
        Ok(watcher)
    }

    /// The newest facts.
    pub fn facts(&self) -> &HostFacts {
        &self.facts
    }

    /// Publishes facts until nobody listens any more or the socket closes.
    pub async fn run(mut self, sender: watch::Sender<HostFacts>) {
        let publish = |facts: &HostFacts| {
            sender.send_if_modified(|held| {
                let differs = held != facts;
                if differs {
                    held.clone_from(facts);
                }
                differs
            })
        };
        publish(&self.facts);
        let mut stale = Stale::default();
        loop {
            tokio::select! {
                biased;
                () = sender.closed() => return,
                message = self.messages.next() => match message {
                    Some((message, _)) => stale = stale.or(Stale::from(&message.payload)),
                    None => {
                        tracing::error!("the rtnetlink socket closed: link and address changes are not followed any more");
                        return;
                    }
                },
                () = tokio::time::sleep(RETRY), if stale != Stale::default() => {}
            }
            // A pod comes with a burst of notifications; one read covers all that have arrived.
            while let Ok((message, _)) = self.messages.try_recv() {
                stale = stale.or(Stale::from(&message.payload));
            }
            if stale == Stale::default() {
                continue;
            }
            match self.read(stale).await {
                Ok(()) => {
                    stale = Stale::default();
                    publish(&self.facts);
                }
                Err(error) => tracing::warn!(%error, "trying again"),
            }
        }
    }

    async fn read(&mut self, stale: Stale) -> Result<(), HostError> {
        if stale.links {
            let links: Vec<_> = dump("links", self.handle.link().get().execute()).await?;
            self.facts.links = links
                .into_iter()
                .map(|message| (message.header.index, link(message)))
                .collect();
        }
        if stale.addresses {
            let addresses: Vec<_> = dump("addresses", self.handle.address().get().execute()).await?;
            self.facts.addresses = addresses.into_iter().filter_map(|message| address(&message)).collect();
        }
        if stale.routes {
            let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
            let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
            let mut routes: Vec<DefaultRoute> = Vec::new();
            for request in [v4, v6] {
                let found = dump("routes", self.handle.route().get(request).execute()).await?;
                routes.extend(found.iter().flat_map(default_routes));
            }
            routes.sort_unstable();
            routes.dedup();
            self.facts.default_routes = routes;
        }
        Ok(())
    }
}

impl Drop for HostWatcher {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// All messages of one dump.
async fn dump<T>(
    what: &'static str,
    messages: impl TryStream<Ok = T, Error = rtnetlink::Error>,
) -> Result<Vec<T>, HostError> {
    messages.try_collect().await.map_err(|error| HostError {
        what,
        source: io::Error::other(error),
    })
}

fn link(message: LinkMessage) -> LinkFacts {
    let loopback = message.header.flags.contains(LinkFlags::Loopback);
    let mut facts = LinkFacts {
        loopback,
        ..LinkFacts::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => facts.name = name,
            LinkAttribute::LinkNetNsId(id) => facts.peer_netnsid = Some(id),
            LinkAttribute::LinkInfo(infos) => {
                let kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
                facts.kind = kind.unwrap_or_default();
            }
            _ => {}
        }
    }
    facts
}

fn address(message: &AddressMessage) -> Option<AddressFacts> {
    // On point-to-point links `Address` is the other end and `Local` ours (rtnetlink(7)).
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(addr) => Some(*addr),
        _ => None,
    });
    let any = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(addr) => Some(*addr),
        _ => None,
    });
    let flags = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    // The header holds the low 8 of the same bits, for kernels that send no attribute.
    let flags = flags.unwrap_or(AddressFlags::from_bits_retain(u32::from(header_bits(
        message.header.flags,
    ))));
    let unusable = AddressFlags::Tentative | AddressFlags::Dadfailed;
    let global = matches!(message.header.scope, AddressScope::Universe | AddressScope::Site);
    Some(AddressFacts {
        ifindex: message.header.index,
        addr: local.or(any)?,
        usable: global && !flags.intersects(unusable),
        primary: !flags.intersects(AddressFlags::Secondary | AddressFlags::Deprecated),
    })
}

fn header_bits(flags: AddressHeaderFlags) -> u8 {
    flags.bits()
}

/// The default routes that a route message holds: none, one, or one per next hop.
fn default_routes(message: &RouteMessage) -> Vec<DefaultRoute> {
    let family = match message.header.address_family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return Vec::new(),
    };
    let mut table = u32::from(message.header.table);
    let mut priority = 0;
    let mut links = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Priority(metric) => priority = *metric,
            RouteAttribute::Oif(ifindex) => links.push(*ifindex),
            RouteAttribute::MultiPath(hops) => links.extend(hops.iter().map(|hop| hop.interface_index)),
            _ => {}
        }
    }
    let wanted = message.header.destination_prefix_length == 0
        && message.header.kind == RouteType::Unicast
        && table == u32::from(RouteHeader::RT_TABLE_MAIN);
    let routes = BTreeMap::from_iter(links.into_iter().map(|ifindex| (ifindex, ())));
    let routes = routes.into_keys().map(|ifindex| DefaultRoute {
        priority,
        family,
        ifindex,
    });
    routes.filter(|_| wanted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::skip_without_kernel;
    use nix::sched::{CloneFlags, unshare};
    use rtnetlink::{LinkUnspec, LinkVeth};
    use std::{fs::File, os::fd::AsRawFd, thread};

    /// Runs in a thread with a network namespace of its own, which goes away with the thread.
    fn in_own_namespace<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root (CAP_SYS_ADMIN) to make a namespace");
            run()
        });
        thread.join().unwrap()
    }

    #[test]
    fn follows_a_pods_veth_and_an_address() {
        if skip_without_kernel("follows_a_pods_veth_and_an_address") {
            return;
        }
        let pod = in_own_namespace(|| File::open("/proc/thread-self/ns/net").unwrap());
        in_own_namespace(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let watcher = HostWatcher::start().await.unwrap();
                assert_eq!(watcher.facts().links.len(), 1, "only lo: {:?}", watcher.facts());
                // A connection of its own, as every other process has: notifications of changes that the watcher's own
                // socket asked for would be taken for answers.
                let (connection, handle, _) = rtnetlink::new_connection().unwrap();
                tokio::spawn(connection);
                let (sender, mut receiver) = watch::channel(HostFacts::default());
                let task = tokio::spawn(watcher.run(sender));

                handle
                    .link()
                    .add(LinkVeth::new("here", "there").build())
                    .execute()
                    .await
                    .unwrap();
                let named = |name: &'static str| move |facts: &HostFacts| facts.links.values().any(|l| l.name == name);
                let facts = receiver.wait_for(named("there")).await.unwrap().clone();
                let index =
                    |facts: &HostFacts, name: &str| *facts.links.iter().find(|(_, l)| l.name == name).unwrap().0;
                let (here, there) = (index(&facts, "here"), index(&facts, "there"));
                assert_eq!(
                    (facts.links[&here].kind.as_str(), facts.links[&here].peer_netnsid),
                    ("veth", None)
                );

                // The moment in which a CNI plugin hands the other end to the pod.
                let moved = LinkUnspec::new_with_index(there).setns_by_fd(pod.as_raw_fd()).build();
                handle.link().set(moved).execute().await.unwrap();
                let in_pod = |facts: &HostFacts| facts.links.get(&here).is_some_and(|l| l.peer_netnsid.is_some());
                receiver.wait_for(in_pod).await.unwrap();

                handle
                    .link()
                    .set(LinkUnspec::new_with_index(here).up().build())
                    .execute()
                    .await
                    .unwrap();
                let addr = "192.168.0.10".parse().unwrap();
                handle.address().add(here, addr, 24).execute().await.unwrap();
                let has_address = |facts: &HostFacts| facts.addresses.iter().any(|a| a.addr == addr && a.usable);
                receiver.wait_for(has_address).await.unwrap();

                let gateway = "192.168.0.1".parse().unwrap();
                let route = RouteMessageBuilder::<Ipv4Addr>::new()
                    .gateway(gateway)
                    .output_interface(here)
                    .build();
                handle.route().add(route).execute().await.unwrap();
                let expected = vec![DefaultRoute {
                    priority: 0,
                    family: Family::V4,
                    ifindex: here,
                }];
                receiver
                    .wait_for(|facts| facts.default_routes == expected)
                    .await
                    .unwrap();

                // The kernel drops the route with the link, and sends no message about the route.
                let down = LinkUnspec::new_with_index(here).down().build();
                handle.link().set(down).execute().await.unwrap();
                receiver
                    .wait_for(|facts| facts.default_routes.is_empty())
                    .await
                    .unwrap();

                handle.link().del(here).execute().await.unwrap();
                receiver
                    .wait_for(|facts| !facts.links.contains_key(&here) && facts.addresses.len() < 2)
                    .await
                    .unwrap();
                drop(receiver);
                task.await.unwrap();
            });
        });
    }

    #[test]
    fn only_default_routes_of_the_main_table_count() {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet6;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![RouteAttribute::Priority(100), RouteAttribute::Oif(7)];
        let route = DefaultRoute {
            priority: 100,
            family: Family::V6,
            ifindex: 7,
        };
        assert_eq!(default_routes(&message), [route]);
        let mut other = message.clone();
        other.header.destination_prefix_length = 64;
        assert_eq!(default_routes(&other), []);
        assert_eq!(
            Stale::from(&NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(other))),
            Stale::default()
        );
        let mut other = message.clone();
        other.attributes.push(RouteAttribute::Table(1000));
        assert_eq!(default_routes(&other), []);
        message.header.kind = RouteType::Unreachable;
        assert_eq!(default_routes(&message), []);
    }
}
