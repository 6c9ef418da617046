//! Packets: described, encoded with every checksum computed in full, and their tuple read back.
//!
//! A test says what a packet should look like after a program and compares bytes with [`Packet::encode`]: that checks
//! checksums and that nothing else changed.

use std::net::{IpAddr, SocketAddr};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const SCTP: u8 = 132;
pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

const FRAGMENT: u8 = 44;

/// Destination and source hardware address of every packet that a test makes.
pub(crate) const ETHERNET: [u8; 12] = [0x02, 0, 0, 0, 0, 0x0d, 0x02, 0, 0, 0, 0, 0x05];

/// An Ethernet frame with one IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    /// Destination and source hardware address.
    pub(crate) ethernet: [u8; 12],
    /// The port is 0 where there is none.
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    /// Time to live or hop limit.
    pub(crate) hops: u8,
    /// IPv4 identification.
    pub(crate) id: u16,
    /// IPv4 without "don't fragment"; a [`Packet::piece`] never has it.
    pub(crate) may_fragment: bool,
    /// IPv4 options, a multiple of 4 bytes.
    pub(crate) options: Vec<u8>,
    /// IPv6 extension headers, each with its number; their first byte is set by [`Packet::encode`].
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
    pub(crate) piece: Option<Piece>,
    pub(crate) body: Body,
}

/// Which part of a datagram a packet is: bytes of what follows the IP header, from a multiple of 8 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) id: u32,
    pub(crate) from: usize,
    pub(crate) to: usize,
}

/// What the IP packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Tcp {
        seq: u32,
        ack: u32,
        flags: u8,
        window: u16,
        /// A multiple of 4 bytes.
        options: Vec<u8>,
        data: Vec<u8>,
    },
    Udp {
        /// Without: the checksum field is zero.
        checksum: bool,
        data: Vec<u8>,
    },
    /// ICMP of the packet's family; `data` follows the first eight bytes.
    Icmp {
        kind: u8,
        code: u8,
        rest: [u8; 4],
        data: Vec<u8>,
    },
    /// Anything else: no checksum.
    Raw { protocol: u8, data: Vec<u8> },
}

/// One's complement sum of big-endian words (RFC 1071).
pub(crate) fn sum(bytes: &[u8]) -> u32 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let total: u32 = parts.iter().map(|part| sum(part)).sum();
    let folded = (total & 0xffff) + (total >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    (!(folded as u16)).to_be_bytes()
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

impl Packet {
    /// A packet with this body and 64 hops to live.
    pub(crate) fn new(source: SocketAddr, destination: SocketAddr, body: Body) -> Self {
        Self {
            ethernet: ETHERNET,
            source,
            destination,
            hops: 64,
            id: 0x1234,
            may_fragment: false,
            options: Vec::new(),
            extensions: Vec::new(),
            piece: None,
            body,
        }
    }

    /// A TCP segment.
    pub(crate) fn tcp(source: SocketAddr, destination: SocketAddr, flags: u8, data: &[u8]) -> Self {
        let body = Body::Tcp {
            seq: 0xffff_fff0,
            ack: if flags & ACK != 0 { 0x0102_0304 } else { 0 },
            flags,
            window: 64_240,
            // Maximum segment size 1460.
            options: if flags & SYN != 0 {
                vec![2, 4, 5, 0xb4]
            } else {
                Vec::new()
            },
            data: data.to_vec(),
        };
        Self::new(source, destination, body)
    }

    /// A UDP datagram.
    pub(crate) fn udp(source: SocketAddr, destination: SocketAddr, data: &[u8]) -> Self {
        let body = Body::Udp {
            checksum: true,
            data: data.to_vec(),
        };
        Self::new(source, destination, body)
    }

    /// An ICMP error.
    pub(crate) fn error(from: IpAddr, to: IpAddr, [kind, code]: [u8; 2], rest: [u8; 4], quote: &[u8]) -> Self {
        let body = Body::Icmp {
            kind,
            code,
            rest,
            data: quote.to_vec(),
        };
        Self::new(SocketAddr::new(from, 0), SocketAddr::new(to, 0), body)
    }

    /// This ICMP error, with another quote.
    pub(crate) fn quoting(&self, quote: Vec<u8>) -> Self {
        let mut packet = self.clone();
        match &mut packet.body {
            Body::Icmp { data, .. } => *data = quote,
            other => panic!("{other:?} quotes nothing"),
        }
        packet
    }

    /// The first packet of a flow: SYN, or a datagram.
    pub(crate) fn first(protocol: u8, source: SocketAddr, destination: SocketAddr) -> Self {
        if protocol == TCP {
            Self::tcp(source, destination, SYN, b"")
        } else {
            Self::udp(source, destination, b"a question")
        }
    }

    /// The same between others.
    pub(crate) fn between(&self, source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            source,
            destination,
            ..self.clone()
        }
    }

    /// The same, `hops` nearer to its end.
    pub(crate) fn hopped(&self, hops: u8) -> Self {
        Self {
            hops: self.hops - hops,
            ..self.clone()
        }
    }

    /// What its receiver would answer: SYN and ACK, or other data.
    pub(crate) fn reply(&self) -> Self {
        let (to, from) = (self.source, self.destination);
        match self.body {
            Body::Tcp { .. } => Self::tcp(from, to, SYN | ACK, b""),
            _ => Self::udp(from, to, b"an answer"),
        }
    }

    /// A piece of this datagram; `to` may lie past the end.
    pub(crate) fn cut(&self, id: u32, from: usize, to: usize) -> Self {
        let piece = Some(Piece { id, from, to });
        Self { piece, ..self.clone() }
    }

    /// IANA number of the body.
    pub(crate) fn protocol(&self) -> u8 {
        match self.body {
            Body::Tcp { .. } => TCP,
            Body::Udp { .. } => UDP,
            Body::Icmp { .. } if self.source.is_ipv4() => 1,
            Body::Icmp { .. } => 58,
            Body::Raw { protocol, .. } => protocol,
        }
    }

    /// Transport header and data.
    pub(crate) fn transport(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let ports = |bytes: &mut Vec<u8>| {
            bytes.extend(self.source.port().to_be_bytes());
            bytes.extend(self.destination.port().to_be_bytes());
        };
        let check_at = match &self.body {
            Body::Tcp {
                seq,
                ack,
                flags,
                window,
                options,
                data,
            } => {
                ports(&mut bytes);
                bytes.extend(seq.to_be_bytes());
                bytes.extend(ack.to_be_bytes());
                bytes.extend([(5 + options.len() as u8 / 4) << 4, *flags]);
                bytes.extend(window.to_be_bytes());
                bytes.extend([0; 4]);
                bytes.extend(options);
                bytes.extend(data);
                Some(16)
            }
            Body::Udp { checksum, data } => {
                ports(&mut bytes);
                bytes.extend((8 + data.len() as u16).to_be_bytes());
                bytes.extend([0; 2]);
                bytes.extend(data);
                checksum.then_some(6)
            }
            Body::Icmp { kind, code, rest, data } => {
                bytes.extend([*kind, *code, 0, 0]);
                bytes.extend(rest);
                bytes.extend(data);
                Some(2)
            }
            Body::Raw { data, .. } => {
                bytes.extend(data);
                None
            }
        };
        if let Some(at) = check_at {
            let mut pseudo = Vec::new();
            if !matches!(self.body, Body::Icmp { .. }) || !self.source.is_ipv4() {
                pseudo.extend(octets(self.source.ip()));
                pseudo.extend(octets(self.destination.ip()));
                pseudo.extend((bytes.len() as u32).to_be_bytes());
                pseudo.extend([0, 0, 0, self.protocol()]);
            }
            let mut check = checksum(&[&pseudo, &bytes]);
            if check == [0, 0] && matches!(self.body, Body::Udp { .. }) {
                check = [0xff, 0xff];
            }
            bytes[at..at + 2].copy_from_slice(&check);
        }
        bytes
    }

    /// IP header, transport header and data.
    pub(crate) fn ip(&self) -> Vec<u8> {
        let whole = self.transport();
        let piece = self
            .piece
            .map(|piece| (piece.id, (piece.from / 8) as u16, piece.to < whole.len()));
        let transport = match self.piece {
            Some(piece) => &whole[piece.from..piece.to.min(whole.len())],
            None => &whole,
        };
        let mut bytes = Vec::new();
        if self.source.is_ipv4() {
            let header = 20 + self.options.len();
            bytes.extend([0x40 | (header / 4) as u8, 0]);
            bytes.extend(((header + transport.len()) as u16).to_be_bytes());
            let (id, field) = match piece {
                Some((id, offset, more)) => (id as u16, offset | if more { 0x2000 } else { 0 }),
                None => (self.id, if self.may_fragment { 0 } else { 0x4000 }),
            };
            bytes.extend(id.to_be_bytes());
            bytes.extend(field.to_be_bytes());
            bytes.extend([self.hops, self.protocol(), 0, 0]);
            bytes.extend(octets(self.source.ip()));
            bytes.extend(octets(self.destination.ip()));
            bytes.extend(&self.options);
            let check = checksum(&[&bytes]);
            bytes[10..12].copy_from_slice(&check);
        } else {
            let mut headers = self.extensions.clone();
            if let Some((id, offset, more)) = piece {
                let field = offset << 3 | u16::from(more);
                let mut header = vec![0, 0];
                header.extend(field.to_be_bytes());
                header.extend(id.to_be_bytes());
                headers.push((FRAGMENT, header));
            }
            let mut numbers: Vec<u8> = headers.iter().map(|(number, _)| *number).collect();
            numbers.push(self.protocol());
            let extra: usize = headers.iter().map(|(_, header)| header.len()).sum();
            bytes.extend([0x60, 0, 0, 0]);
            bytes.extend(((extra + transport.len()) as u16).to_be_bytes());
            bytes.extend([numbers[0], self.hops]);
            bytes.extend(octets(self.source.ip()));
            bytes.extend(octets(self.destination.ip()));
            for ((_, header), next) in headers.iter().zip(&numbers[1..]) {
                bytes.push(*next);
                bytes.extend(&header[1..]);
            }
        }
        bytes.extend(transport);
        bytes
    }

    /// The frame.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.ethernet.to_vec();
        bytes.extend(if self.source.is_ipv4() {
            [0x08, 0x00]
        } else {
            [0x86, 0xdd]
        });
        bytes.extend(self.ip());
        bytes
    }
}

/// Source and destination of a frame that has ports; extension headers are skipped.
pub(crate) fn tuple(frame: &[u8]) -> (SocketAddr, SocketAddr) {
    let ip = &frame[14..];
    let (source, destination, l4): (IpAddr, IpAddr, usize) = if ip[0] >> 4 == 4 {
        let addr = |at: usize| <[u8; 4]>::try_from(&ip[at..at + 4]).unwrap().into();
        (addr(12), addr(16), usize::from(ip[0] & 0x0f) * 4)
    } else {
        let addr = |at: usize| <[u8; 16]>::try_from(&ip[at..at + 16]).unwrap().into();
        let (mut next, mut at) = (ip[6], 40);
        while !matches!(next, TCP | UDP) {
            let length = if next == FRAGMENT { 0 } else { usize::from(ip[at + 1]) };
            next = ip[at];
            at += (length + 1) * 8;
        }
        (addr(8), addr(24), at)
    };
    let port = |at: usize| u16::from_be_bytes([ip[at], ip[at + 1]]);
    (
        SocketAddr::new(source, port(l4)),
        SocketAddr::new(destination, port(l4 + 2)),
    )
}

/// A quoted packet (from its IP header on) as if it had another tuple; its transport checksum stays what it was.
pub(crate) fn requote(quote: &[u8], source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut quote = quote.to_vec();
    let (addresses, l4) = if source.is_ipv4() { (12, 20) } else { (8, 40) };
    let mut at = addresses;
    for addr in [source, destination] {
        let addr = octets(addr.ip());
        quote[at..at + addr.len()].copy_from_slice(&addr);
        at += addr.len();
    }
    quote[l4..l4 + 2].copy_from_slice(&source.port().to_be_bytes());
    quote[l4 + 2..l4 + 4].copy_from_slice(&destination.port().to_be_bytes());
    if source.is_ipv4() {
        quote[10..12].fill(0);
        let check = checksum(&[&quote[..20]]);
        quote[10..12].copy_from_slice(&check);
    }
    quote
}

/// A frame in hexadecimal, for a failed comparison.
pub(crate) fn hex(frame: &[u8]) -> String {
    let mut text = String::new();
    for (at, byte) in frame.iter().enumerate() {
        if at == 14 || at == 34 || at == 54 || at == 74 {
            text.push('|');
        }
        text += &format!("{byte:02x}");
    }
    text
}
