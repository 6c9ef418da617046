//! Masquerading as one nftables table, replaced in one transaction. The few messages are written here: no program is
//! started, and nobody else's rules are read or locked.
//!
//! Source: `include/uapi/linux/netfilter/nf_tables.h`, nfnetlink(7).

use super::Netlink;
use ipnet::IpNet;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use std::{io, net::IpAddr};

const SUBSYSTEM: u16 = 10; // NFNL_SUBSYS_NFTABLES
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DEL_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const GET_RULE: u16 = SUBSYSTEM << 8 | 7;
/// Multicast group of changes to nftables (`NFNLGRP_NFTABLES`).
pub(crate) const GROUP: u32 = 7;

const INET: u8 = 1; // NFPROTO_INET
const NESTED: u16 = 1 << 15;
const REGISTER: u32 = 1; // NFT_REG_1: 16 bytes
const CHAIN: &str = "postrouting";
/// `NF_INET_POST_ROUTING`.
const HOOK: u32 = 4;
/// `NF_IP_PRI_NAT_SRC`.
const PRIORITY: u32 = 100;
/// `NFT_RETURN`: the rest of the chain does not apply.
const RETURN: i32 = -5;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`: two processors never choose the same port for two DNS queries.
const FULLY_RANDOM: u32 = 1 << 4;

/// What the table says: whose traffic gets the node's address, unless it stays inside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Masquerade {
    /// Pod networks of this node.
    pub(crate) from: Vec<IpNet>,
    /// Networks that see pods' own addresses.
    pub(crate) inside: Vec<IpNet>,
}

/// One rule.
#[derive(Debug)]
struct Rule {
    from: IpNet,
    to: Option<IpNet>,
}

impl Masquerade {
    fn rules(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        for from in &self.from {
            let same = |net: &&IpNet| net.network().is_ipv4() == from.network().is_ipv4();
            let multicast = if from.network().is_ipv4() {
                "224.0.0.0/4"
            } else {
                "ff00::/8"
            };
            let inside = self.inside.iter().copied().chain(multicast.parse()).collect::<Vec<_>>();
            rules.extend(inside.iter().filter(same).map(|to| Rule {
                from: *from,
                to: Some(*to),
            }));
            rules.push(Rule { from: *from, to: None });
        }
        rules
    }

    /// What the rules are told by: a hash of all of them and the number of each.
    fn tags(&self) -> Vec<String> {
        let rules = self.rules();
        let hash = crc32fast::hash(format!("{rules:?}").as_bytes());
        (0..rules.len()).map(|at| format!("fairlead {hash:08x}.{at}")).collect()
    }
}

/// Makes the kernel's table say this, if it does not; `true` if it did not.
///
/// # Errors
/// The kernel refused.
pub(crate) fn apply(table: &str, want: &Masquerade) -> io::Result<bool> {
    let mut netlink = Netlink::open(NETLINK_NETFILTER)?;
    let have = tags(&mut netlink, table)?;
    if want.from.is_empty() {
        return match have {
            Some(_) => remove(table).map(|()| true),
            None => Ok(false),
        };
    }
    let tags = want.tags();
    if have.as_ref() == Some(&tags) {
        return Ok(false);
    }
    let mut batch = Batch::begin();
    // Removing wants a table that exists.
    batch.add(NEW_TABLE, libc::NLM_F_CREATE, |m| m.text(1, table));
    batch.add(DEL_TABLE, 0, |m| m.text(1, table));
    batch.add(NEW_TABLE, libc::NLM_F_CREATE, |m| m.text(1, table));
    batch.add(NEW_CHAIN, libc::NLM_F_CREATE, |m| {
        m.text(1, table);
        m.text(3, CHAIN);
        m.nest(4, |hook| {
            hook.number(1, HOOK);
            hook.number(2, PRIORITY);
        });
        m.text(7, "nat");
    });
    for (rule, tag) in want.rules().iter().zip(&tags) {
        batch.add(NEW_RULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND, |m| {
            m.text(1, table);
            m.text(2, CHAIN);
            m.nest(4, |list| rule.expressions(list));
            m.bytes(7, &comment(tag));
        });
    }
    batch.send(&mut netlink)?;
    Ok(true)
}

/// Removes the table, if it is there.
///
/// # Errors
/// The kernel refused.
pub(crate) fn remove(table: &str) -> io::Result<()> {
    let mut netlink = Netlink::open(NETLINK_NETFILTER)?;
    let mut batch = Batch::begin();
    batch.add(NEW_TABLE, libc::NLM_F_CREATE, |m| m.text(1, table));
    batch.add(DEL_TABLE, 0, |m| m.text(1, table));
    batch.send(&mut netlink)
}

/// The tags of the table's rules; `None` if there is no such table.
fn tags(netlink: &mut Netlink, table: &str) -> io::Result<Option<Vec<String>>> {
    let mut request = Message(Vec::new());
    let at = request.head(GET_RULE, libc::NLM_F_REQUEST | libc::NLM_F_DUMP, 1, INET, 0);
    request.text(1, table);
    request.text(2, CHAIN);
    request.end(at);
    netlink.socket.send(&request.0, 0)?;
    let mut tags = Vec::new();
    loop {
        let (answer, _) = netlink.socket.recv_from_full()?;
        let mut rest = answer.as_slice();
        while let Some((kind, payload, next)) = split(rest) {
            rest = next;
            match i32::from(kind) {
                libc::NLMSG_DONE | libc::NLMSG_ERROR => {
                    let code = payload
                        .get(..4)
                        .and_then(|code| code.try_into().ok())
                        .map_or(0, i32::from_ne_bytes);
                    return match -code {
                        0 if tags.is_empty() => exists(netlink, table).map(|exists| exists.then_some(tags)),
                        0 => Ok(Some(tags)),
                        libc::ENOENT => Ok(None),
                        errno => Err(io::Error::from_raw_os_error(errno)),
                    };
                }
                _ => tags.push(tag(payload.get(4..).unwrap_or_default())),
            }
        }
    }
}

/// Whether a table exists: older kernels dump no rules for one that does not.
fn exists(netlink: &mut Netlink, table: &str) -> io::Result<bool> {
    let mut request = Message(Vec::new());
    let at = request.head(SUBSYSTEM << 8 | 1, libc::NLM_F_REQUEST | libc::NLM_F_ACK, 2, INET, 0);
    request.text(1, table);
    request.end(at);
    netlink.socket.send(&request.0, 0)?;
    let mut found = false;
    loop {
        let (answer, _) = netlink.socket.recv_from_full()?;
        let mut rest = answer.as_slice();
        while let Some((kind, payload, next)) = split(rest) {
            rest = next;
            if i32::from(kind) != libc::NLMSG_ERROR {
                found = true;
                continue;
            }
            let code = payload
                .get(..4)
                .and_then(|code| code.try_into().ok())
                .map_or(0, i32::from_ne_bytes);
            return match -code {
                0 => Ok(found),
                libc::ENOENT => Ok(false),
                errno => Err(io::Error::from_raw_os_error(errno)),
            };
        }
    }
}

/// A netlink message's type and payload, and what is behind it.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let payload = bytes.get(16..length)?;
    Some((
        kind,
        payload,
        bytes.get(length.next_multiple_of(4)..).unwrap_or_default(),
    ))
}

/// The comment of a dumped rule (attribute 7, `NFTA_RULE_USERDATA`); empty if it has none, as no rule of ours.
fn tag(mut attributes: &[u8]) -> String {
    while let Some((length, kind)) = attributes.get(..2).zip(attributes.get(2..4)) {
        let length = usize::from(length.try_into().map_or(0, u16::from_ne_bytes));
        let kind = kind.try_into().map_or(0, u16::from_ne_bytes);
        let Some(value) = attributes.get(4..length) else { break };
        if kind == 7 {
            let text = value.get(2..).unwrap_or_default();
            return String::from_utf8_lossy(text).trim_end_matches('\0').to_owned();
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    String::new()
}

/// A rule's comment as `nft` writes and shows it: type 0, length, text with its NUL.
fn comment(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    let mut bytes = vec![0, length];
    bytes.extend(text.as_bytes());
    bytes.push(0);
    bytes
}

impl Rule {
    fn expressions(&self, list: &mut Message) {
        let v4 = self.from.network().is_ipv4();
        let proto: u8 = if v4 { 2 } else { 10 }; // NFPROTO_IPV4, NFPROTO_IPV6
        list.expression("meta", |m| {
            m.number(1, REGISTER);
            m.number(2, 15); // NFT_META_NFPROTO
        });
        list.compare(&[proto]);
        // Offsets of source and destination in the headers (RFC 791, RFC 8200).
        let (source, destination) = if v4 { (12, 16) } else { (8, 24) };
        list.within(source, self.from);
        match self.to {
            Some(to) => {
                list.within(destination, to);
                list.expression("immediate", |m| {
                    m.number(1, 0); // NFT_REG_VERDICT
                    m.nest(2, |data| {
                        data.nest(2, |verdict| verdict.number(1, RETURN.cast_unsigned()));
                    });
                });
            }
            None => list.expression("masq", |m| m.number(1, FULLY_RANDOM)),
        }
    }
}

/// One transaction.
struct Batch {
    message: Message,
    sequence: u32,
}

impl Batch {
    fn begin() -> Self {
        let mut message = Message(Vec::new());
        let at = message.head(BATCH_BEGIN, libc::NLM_F_REQUEST, 0, 0, SUBSYSTEM);
        message.end(at);
        Self { message, sequence: 0 }
    }

    fn add(&mut self, kind: u16, flags: i32, fill: impl FnOnce(&mut Message)) {
        self.sequence += 1;
        let flags = flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        let at = self.message.head(kind, flags, self.sequence, INET, 0);
        fill(&mut self.message);
        self.message.end(at);
    }

    fn send(mut self, netlink: &mut Netlink) -> io::Result<()> {
        let at = self.message.head(BATCH_END, libc::NLM_F_REQUEST, 0, 0, SUBSYSTEM);
        self.message.end(at);
        netlink.socket.send(&self.message.0, 0)?;
        // Each message is answered, also when another one spoils the transaction; an error of the transaction itself
        // answers its beginning.
        let mut result = Ok(());
        let mut left = self.sequence;
        while left > 0 {
            let (answer, _) = netlink.socket.recv_from_full()?;
            for message in super::messages(&answer) {
                let (sequence, error) = message?;
                left = if sequence == 0 { 0 } else { left.saturating_sub(1) };
                if let (Some(error), true) = (error, result.is_ok()) {
                    result = Err(error);
                }
            }
        }
        result
    }
}

/// Bytes of netlink messages, with attributes of nfnetlink: numbers in network order.
struct Message(Vec<u8>);

impl Message {
    /// A header whose length [`Message::end`] writes.
    fn head(&mut self, kind: u16, flags: i32, sequence: u32, family: u8, resource: u16) -> usize {
        let at = self.0.len();
        self.0.extend([0; 4]);
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(u16::try_from(flags).unwrap_or(0).to_ne_bytes());
        self.0.extend(sequence.to_ne_bytes());
        self.0.extend([0; 4]);
        // struct nfgenmsg
        self.0.extend([family, 0]);
        self.0.extend(resource.to_be_bytes());
        at
    }

    fn end(&mut self, at: usize) {
        let length = u32::try_from(self.0.len() - at).unwrap_or(0);
        if let Some(place) = self.0.get_mut(at..at + 4) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
    }

    fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, value: &str) {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat());
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let at = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend((kind | NESTED).to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.0.len() - at).unwrap_or(u16::MAX);
        if let Some(place) = self.0.get_mut(at..at + 2) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
    }

    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        self.nest(1, |element| {
            element.text(1, name);
            element.nest(2, fill);
        });
    }

    /// The register equals these bytes.
    fn compare(&mut self, value: &[u8]) {
        self.expression("cmp", |m| {
            m.number(1, REGISTER);
            m.number(2, 0); // NFT_CMP_EQ
            m.nest(3, |data| data.bytes(1, value));
        });
    }

    /// The address at this offset of the network header is in a network.
    fn within(&mut self, offset: u32, net: IpNet) {
        let (address, mask) = (octets(net.network()), octets(net.netmask()));
        let length = u32::try_from(address.len()).unwrap_or(0);
        self.expression("payload", |m| {
            m.number(1, REGISTER);
            m.number(2, 1); // NFT_PAYLOAD_NETWORK_HEADER
            m.number(3, offset);
            m.number(4, length);
        });
        self.expression("bitwise", |m| {
            m.number(1, REGISTER);
            m.number(2, REGISTER);
            m.number(3, length);
            m.nest(4, |data| data.bytes(1, &mask));
            m.nest(5, |data| data.bytes(1, &vec![0; mask.len()]));
        });
        self.compare(&address);
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
