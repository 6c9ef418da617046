//! Questions and answers on the wire: what the hot path reads and writes itself.

use crate::name::Name;

/// Types of records, as numbers. Source: IANA, DNS parameters.
pub mod rtype {
    #![allow(missing_docs, reason = "the names are the documentation")]
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const CNAME: u16 = 5;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const HINFO: u16 = 13;
    pub const MX: u16 = 15;
    pub const TXT: u16 = 16;
    pub const AAAA: u16 = 28;
    pub const SRV: u16 = 33;
    pub const OPT: u16 = 41;
    pub const IXFR: u16 = 251;
    pub const AXFR: u16 = 252;
    pub const ANY: u16 = 255;
}

/// Response codes. Source: RFC 1035 §4.1.1, RFC 6891.
pub mod rcode {
    #![allow(missing_docs, reason = "the names are the documentation")]
    pub const NOERROR: u8 = 0;
    pub const FORMERR: u8 = 1;
    pub const SERVFAIL: u8 = 2;
    pub const NXDOMAIN: u8 = 3;
    pub const NOTIMP: u8 = 4;
    pub const REFUSED: u8 = 5;
    pub const BADVERS: u8 = 16;
}

/// The class of the Internet.
pub const IN: u16 = 1;
/// Bytes of a header.
pub const HEADER: usize = 12;
/// Most bytes of an answer over UDP to a client without EDNS. Source: RFC 1035 §4.2.1.
pub const PLAIN_UDP: usize = 512;
/// Most bytes of an answer over UDP unless the Corefile says else: fits every path without fragments. Source: DNS Flag
/// Day 2020.
pub const UDP_SIZE: u16 = 1232;
/// Bytes of our OPT record.
const OPT_LENGTH: usize = 11;

/// Bits of the header's second word.
pub mod flag {
    #![allow(missing_docs, reason = "the names are the documentation")]
    pub const QR: u16 = 0x8000;
    pub const AA: u16 = 0x0400;
    pub const TC: u16 = 0x0200;
    pub const RD: u16 = 0x0100;
    pub const RA: u16 = 0x0080;
    pub const AD: u16 = 0x0020;
    pub const CD: u16 = 0x0010;
    pub const OPCODE: u16 = 0x7800;
}

/// What a client says about EDNS. Source: RFC 6891.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// Most bytes that the client takes over UDP.
    pub size: u16,
    /// 0 is the only one there is.
    pub version: u8,
    /// The client wants DNSSEC records.
    pub dnssec_ok: bool,
}

/// One question.
#[derive(Clone, Debug)]
pub struct Query<'a> {
    /// As it came.
    pub packet: &'a [u8],
    /// Lower-cased; a rewritten name replaces it while the packet keeps what was asked.
    pub name: Name,
    /// Where the question section ends in the packet.
    pub question_end: usize,
    /// Type asked for.
    pub qtype: u16,
    /// Class asked for.
    pub qclass: u16,
    /// What the client said about EDNS.
    pub edns: Option<Edns>,
    /// `name` is not what the packet asks for.
    pub rewritten: bool,
}

/// Why a packet is not answered as a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// Not even an error can be sent: too short, or itself an answer.
    Drop,
    /// An error without a question.
    Reply(u8),
}

pub(crate) fn u16_at(packet: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]))
}

impl<'a> Query<'a> {
    /// Reads a packet. Total: every input gives an answer.
    ///
    /// # Errors
    /// What to do with a packet that is no question.
    pub fn parse(packet: &'a [u8]) -> Result<Self, Bad> {
        let word = |at| u16_at(packet, at).ok_or(Bad::Drop);
        let (flags, questions) = (word(2)?, word(4)?);
        let counts = usize::from(word(6)?) + usize::from(word(8)?);
        let additional = usize::from(word(10)?);
        if flags & flag::QR != 0 {
            return Err(Bad::Drop);
        }
        if flags & flag::OPCODE != 0 {
            return Err(Bad::Reply(rcode::NOTIMP));
        }
        let malformed = Bad::Reply(rcode::FORMERR);
        // Questions come without answers; a few records are let pass, as signatures and options are records too.
        if questions != 1 || counts > 2 || additional > 4 {
            return Err(malformed);
        }
        let (name, end) = Name::read(packet, HEADER).ok_or(malformed)?;
        let (Some(qtype), Some(qclass)) = (u16_at(packet, end), u16_at(packet, end + 2)) else {
            return Err(malformed);
        };
        let mut query = Self {
            packet,
            name,
            question_end: end + 4,
            qtype,
            qclass,
            edns: None,
            rewritten: false,
        };
        let mut at = query.question_end;
        for index in 0..counts + additional {
            let record = Record::read(packet, at).ok_or(malformed)?;
            at = record.end;
            if record.rtype != rtype::OPT {
                continue;
            }
            // RFC 6891 §6.1.1: one, at the root, in the additional section.
            if index < counts || query.edns.is_some() || record.owner_end != record.start + 1 {
                return Err(malformed);
            }
            query.edns = Some(Edns {
                size: record.class,
                version: packet[record.owner_end + 5],
                dnssec_ok: packet[record.owner_end + 6] & 0x80 != 0,
            });
        }
        Ok(query)
    }

    /// The id.
    pub fn id(&self) -> u16 {
        u16_at(self.packet, 0).unwrap_or_default()
    }

    /// The header's flags.
    pub fn flags(&self) -> u16 {
        u16_at(self.packet, 2).unwrap_or_default()
    }

    /// The question section as it came, case and all.
    pub fn question(&self) -> &'a [u8] {
        &self.packet[HEADER..self.question_end]
    }

    /// Does the client want DNSSEC records?
    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// Most bytes of an answer over UDP, where this server gives at most `most`.
    pub fn udp_limit(&self, most: u16) -> usize {
        self.edns
            .map_or(PLAIN_UDP, |edns| usize::from(edns.size.min(most)).max(PLAIN_UDP))
    }
}

/// A question of our own: for upstreams, and for names that aliases lead to. `name` is wire form.
pub fn question(id: u16, flags: u16, name: &[u8], qtype: u16, edns: Option<Edns>) -> Vec<u8> {
    let mut packet = Vec::with_capacity(HEADER + name.len() + 4 + OPT_LENGTH);
    for word in [id, flags, 1, 0, 0, u16::from(edns.is_some())] {
        packet.extend_from_slice(&word.to_be_bytes());
    }
    packet.extend_from_slice(name);
    packet.extend_from_slice(&qtype.to_be_bytes());
    packet.extend_from_slice(&IN.to_be_bytes());
    if let Some(edns) = edns {
        push_opt(&mut packet, edns.size, 0, edns.dnssec_ok);
    }
    packet
}

fn push_opt(packet: &mut Vec<u8>, size: u16, extended: u8, dnssec_ok: bool) {
    packet.push(0);
    packet.extend_from_slice(&rtype::OPT.to_be_bytes());
    packet.extend_from_slice(&size.to_be_bytes());
    packet.extend_from_slice(&[extended, 0, if dnssec_ok { 0x80 } else { 0 }, 0, 0, 0]);
}

/// Where the parts of a record are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) start: usize,
    pub(crate) owner_end: usize,
    pub(crate) rtype: u16,
    pub(crate) class: u16,
    pub(crate) data: usize,
    pub(crate) end: usize,
}

impl Record {
    /// The record at `at`; names in it may be compressed. `None` if it does not fit.
    pub(crate) fn read(packet: &[u8], at: usize) -> Option<Self> {
        let owner_end = skip_name(packet, at)?;
        let data = owner_end + 10;
        let end = data + usize::from(u16_at(packet, owner_end + 8)?);
        (end <= packet.len()).then_some(Self {
            start: at,
            owner_end,
            rtype: u16_at(packet, owner_end)?,
            class: u16_at(packet, owner_end + 2)?,
            data,
            end,
        })
    }

    /// Place of the TTL.
    pub(crate) fn ttl_at(&self) -> usize {
        self.owner_end + 4
    }

    /// The TTL in seconds; one with the highest bit set is 0 (RFC 2181 §8).
    pub(crate) fn ttl(&self, packet: &[u8]) -> u32 {
        let bytes = packet.get(self.ttl_at()..self.ttl_at() + 4);
        let ttl = bytes
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u32::from_be_bytes);
        if ttl > i32::MAX.cast_unsigned() { 0 } else { ttl }
    }
}

fn skip_name(packet: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *packet.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += usize::from(length) + 1,
            // A pointer must point back, or reading would not end.
            pointer if pointer >= 0xc0 => {
                let target = usize::from(u16_at(packet, at)? & 0x3fff);
                return (target < at).then_some(at + 2);
            }
            _ => return None,
        }
    }
}

/// Sections after the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// What was asked for: if it does not fit, the answer is truncated.
    Answer,
    /// Who says so.
    Authority,
    /// What may be of use: left out without a word if it does not fit.
    Additional,
}

/// Owner of a record that is written.
#[derive(Clone, Copy, Debug)]
pub enum Owner<'a> {
    /// The question's name.
    Question,
    /// A name in the message, by its place.
    At(u16),
    /// Wire form in two parts.
    Name(&'a [u8], &'a [u8]),
}

/// Writes an answer, record by record, into a buffer that is used again.
#[derive(Debug)]
pub struct Reply<'b> {
    out: &'b mut Vec<u8>,
    limit: usize,
    edns: Option<(u16, bool)>,
    counts: [u16; 3],
    flags: u16,
    extended: u8,
    minimal: bool,
}

impl<'b> Reply<'b> {
    /// Starts the answer to `query`, at most `limit` bytes long. `flags` are those to set besides QR and the query's own.
    pub fn new(out: &'b mut Vec<u8>, query: &Query<'_>, limit: usize, flags: u16, size: u16) -> Self {
        out.clear();
        let kept = query.flags() & (flag::RD | flag::CD | flag::OPCODE);
        out.extend_from_slice(&query.packet[..2]);
        out.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(query.question());
        let edns = query.edns.map(|edns| (size, edns.dnssec_ok));
        Self {
            out,
            limit: if edns.is_some() { limit - OPT_LENGTH } else { limit },
            edns,
            counts: [0; 3],
            flags: flag::QR | kept | flags,
            extended: 0,
            minimal: false,
        }
    }

    /// From here on, nothing but the answer is written where there is one.
    pub fn leave_out_the_rest(&mut self) {
        self.minimal = true;
    }

    /// Sets the response code.
    pub fn rcode(&mut self, code: u8) {
        self.flags = self.flags & !0x000f | u16::from(code & 0x0f);
        self.extended = code >> 4;
    }

    /// Writes a record whose data `data` appends; false if it does not fit, and nothing is written.
    pub fn record(
        &mut self,
        section: Section,
        owner: Owner<'_>,
        rtype: u16,
        ttl: u32,
        data: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        let unwanted = self.truncated() || self.minimal && self.counts[0] > 0;
        if unwanted && section != Section::Answer {
            return false;
        }
        let start = self.out.len();
        match owner {
            Owner::Question => self.out.extend_from_slice(&[0xc0, 12]),
            Owner::At(place) => self.out.extend_from_slice(&(0xc000 | place).to_be_bytes()),
            Owner::Name(first, rest) => {
                self.out.extend_from_slice(first);
                self.out.extend_from_slice(rest);
            }
        }
        self.out.extend_from_slice(&rtype.to_be_bytes());
        self.out.extend_from_slice(&IN.to_be_bytes());
        self.out.extend_from_slice(&ttl.to_be_bytes());
        let length_at = self.out.len();
        self.out.extend_from_slice(&[0, 0]);
        data(self.out);
        let length = self.out.len() - length_at - 2;
        match u16::try_from(length) {
            Ok(length) if self.out.len() <= self.limit => {
                self.out[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
                self.counts[section as usize] += 1;
                true
            }
            _ => {
                self.out.truncate(start);
                if section == Section::Answer {
                    self.flags |= flag::TC;
                }
                false
            }
        }
    }

    /// Appends records that are in wire form already, all of one section: `records` of them. As [`Self::record`], whole
    /// or not at all.
    pub(crate) fn raw(&mut self, section: Section, bytes: &[u8], records: u16) -> bool {
        if self.out.len() + bytes.len() > self.limit {
            if section == Section::Answer {
                self.flags |= flag::TC;
            }
            return false;
        }
        self.out.extend_from_slice(bytes);
        self.counts[section as usize] += records;
        true
    }

    /// Where the next record begins; `None` where no pointer reaches.
    pub fn place(&self) -> Option<u16> {
        u16::try_from(self.out.len()).ok().filter(|place| *place < 0x4000)
    }

    /// Did something of the answer not fit?
    pub fn truncated(&self) -> bool {
        self.flags & flag::TC != 0
    }

    /// Writes what is left; the code that was set.
    pub fn finish(self) -> u8 {
        if let Some((size, dnssec_ok)) = self.edns {
            push_opt(self.out, size, self.extended, dnssec_ok);
        }
        let additional = self.counts[2] + u16::from(self.edns.is_some());
        let words = [self.flags, 1, self.counts[0], self.counts[1], additional];
        for (index, word) in words.iter().enumerate() {
            self.out[2 + index * 2..4 + index * 2].copy_from_slice(&word.to_be_bytes());
        }
        (self.flags & 0x0f) as u8 | self.extended << 4
    }
}

/// An error for a packet whose question could not be read: the header alone.
pub fn header_only(out: &mut Vec<u8>, packet: &[u8], code: u8) {
    out.clear();
    let kept = u16_at(packet, 2).unwrap_or_default() & (flag::OPCODE | flag::RD);
    out.extend_from_slice(packet.get(..2).unwrap_or(&[0, 0]));
    out.extend_from_slice(&(flag::QR | kept | u16::from(code & 0x0f)).to_be_bytes());
    out.extend_from_slice(&[0; 8]);
}

/// The name of a type as metrics and logs have it.
pub fn type_name(qtype: u16) -> &'static str {
    TYPES
        .iter()
        .find(|(number, _)| *number == qtype)
        .map_or("other", |(_, name)| name)
}

/// Types with a name in metrics, CoreDNS's choice.
pub(crate) const TYPES: [(u16, &str); 18] = [
    (1, "A"),
    (28, "AAAA"),
    (15, "MX"),
    (6, "SOA"),
    (5, "CNAME"),
    (12, "PTR"),
    (16, "TXT"),
    (2, "NS"),
    (33, "SRV"),
    (43, "DS"),
    (48, "DNSKEY"),
    (46, "RRSIG"),
    (47, "NSEC"),
    (50, "NSEC3"),
    (65, "HTTPS"),
    (251, "IXFR"),
    (252, "AXFR"),
    (255, "ANY"),
];

/// The name of a code as metrics and logs have it.
pub fn rcode_name(code: u8) -> &'static str {
    RCODES.get(usize::from(code)).copied().unwrap_or("OTHER")
}

/// Codes by number.
pub(crate) const RCODES: [&str; 17] = [
    "NOERROR",
    "FORMERR",
    "SERVFAIL",
    "NXDOMAIN",
    "NOTIMP",
    "REFUSED",
    "YXDOMAIN",
    "YXRRSET",
    "NXRRSET",
    "NOTAUTH",
    "NOTZONE",
    "DSOTYPENI",
    "12",
    "13",
    "14",
    "15",
    "BADVERS",
];
