//! Answers of upstreams: kept as they came, given to each client in its own form.

use crate::name::Name;
use crate::wire::{HEADER, Query, Record, Reply, Section, flag, rcode, rtype, u16_at};
use hickory_proto::op::{Message, Query as ProtoQuery};

/// An answer without its OPT record, and where its records are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    bytes: Box<[u8]>,
    question_end: u16,
    records: Box<[Place]>,
    /// Response code.
    pub rcode: u8,
    /// Seconds that it may be kept, as the records say; none if nothing says so.
    pub ttl: Option<u32>,
    /// It has records that answer.
    pub positive: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    start: u16,
    ttl_at: u16,
    section: Section,
}

impl Answer {
    /// Reads an answer. `None` if it is malformed, or no answer.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        if u16_at(bytes, 2)? & flag::QR == 0 || u16_at(bytes, 4)? != 1 || bytes.len() > usize::from(u16::MAX) {
            return None;
        }
        let (_, end) = Name::read(bytes, HEADER)?;
        let mut at = end + 4;
        let question_end = u16::try_from(at).ok()?;
        let mut records = Vec::new();
        let (mut ttl, mut negative_ttl, mut opt, mut code) = (None::<u32>, None::<u32>, None, bytes[3] & 0x0f);
        for (section, count_at) in [(Section::Answer, 6), (Section::Authority, 8), (Section::Additional, 10)] {
            for _ in 0..u16_at(bytes, count_at)? {
                let record = Record::read(bytes, at)?;
                at = record.end;
                if record.rtype == rtype::OPT {
                    if opt.is_some() {
                        return None;
                    }
                    // The upper bits of the code are in the TTL's first byte.
                    code |= bytes[record.ttl_at()] << 4;
                    opt = Some(record);
                    continue;
                }
                let seconds = record.ttl(bytes);
                match section {
                    Section::Answer => ttl = Some(ttl.map_or(seconds, |ttl| ttl.min(seconds))),
                    Section::Authority if record.rtype == rtype::SOA => {
                        let minimum = bytes.get(record.end.checked_sub(4)?..record.end)?;
                        let minimum = u32::from_be_bytes(minimum.try_into().ok()?);
                        negative_ttl = Some(seconds.min(minimum));
                    }
                    _ => {}
                }
                records.push(Place {
                    start: u16::try_from(record.start).ok()?,
                    ttl_at: u16::try_from(record.ttl_at()).ok()?,
                    section,
                });
            }
        }
        if let Some(opt) = opt {
            if opt.end == at {
                at = opt.start;
            } else {
                // Records behind it would move, and names refer to places: written anew, which is rare.
                let mut message = Message::from_vec(bytes).ok()?;
                message.edns = None;
                return Self::read(&message.to_vec().ok()?);
            }
        }
        let positive = records.iter().any(|it| it.section == Section::Answer);
        let mut kept: Box<[u8]> = bytes.get(..at)?.into();
        let additional = records.iter().filter(|it| it.section == Section::Additional).count();
        kept[10..HEADER].copy_from_slice(&u16::try_from(additional).ok()?.to_be_bytes());
        Some(Self {
            bytes: kept,
            question_end,
            records: records.into(),
            rcode: code,
            ttl: if positive && code == rcode::NOERROR {
                ttl
            } else {
                negative_ttl
            },
            positive,
        })
    }

    /// Bytes that it occupies.
    pub fn size(&self) -> usize {
        self.bytes.len() + self.records.len() * size_of::<Place>() + size_of::<Self>()
    }

    /// Was it cut off?
    pub fn truncated(&self) -> bool {
        self.flags() & flag::TC != 0
    }

    /// The header's flags.
    pub fn flags(&self) -> u16 {
        u16_at(&self.bytes, 2).unwrap_or_default()
    }

    /// The question section.
    pub fn question(&self) -> &[u8] {
        &self.bytes[HEADER..usize::from(self.question_end)]
    }

    /// As a message of the library, for what is done rarely.
    pub fn message(&self) -> Option<Message> {
        Message::from_vec(&self.bytes).ok()
    }

    /// Does it answer this very question, letter by letter or (`exact` unset) but for case?
    pub fn answers(&self, question: &[u8], exact: bool) -> bool {
        if exact {
            self.question() == question
        } else {
            self.question().eq_ignore_ascii_case(question)
        }
    }

    /// Writes it for a client: its id, its spelling of the name, its limits. `ttl` replaces every TTL. The question must be
    /// the same but for case.
    pub fn write(&self, out: &mut Vec<u8>, query: &Query<'_>, form: &Form) -> u8 {
        let mut flags = self.flags() & (flag::AD | flag::AA) | form.flags;
        if !form.authoritative {
            flags &= !flag::AA;
        }
        let mut reply = Reply::new(out, query, form.limit, flags, form.size);
        reply.rcode(self.rcode);
        let mut written = Vec::with_capacity(self.records.len());
        'records: for section in [Section::Answer, Section::Authority, Section::Additional] {
            if section != Section::Answer && (form.minimal && self.positive || reply.truncated()) {
                break;
            }
            for (index, place) in self
                .records
                .iter()
                .enumerate()
                .filter(|(_, place)| place.section == section)
            {
                let end = self
                    .records
                    .get(index + 1)
                    .map_or(self.bytes.len(), |next| usize::from(next.start));
                let start = usize::from(place.start);
                // Records keep their places, to which names refer: one that does not fit ends the answer.
                if !reply.raw(section, &self.bytes[start..end], 1) {
                    break 'records;
                }
                written.push(usize::from(place.ttl_at));
            }
        }
        let code = reply.finish();
        if let Some(ttl) = form.ttl {
            for at in written {
                out[at..at + 4].copy_from_slice(&ttl.to_be_bytes());
            }
        }
        code
    }

    /// The same for another spelling of the question: records of the old name are the new name's. For rewritten names.
    pub fn renamed(&self, question: &[u8]) -> Option<Self> {
        let mut message = self.message()?;
        let query = message.queries.first()?.clone();
        let name = read_proto_name(question)?;
        for record in message
            .answers
            .iter_mut()
            .chain(&mut message.authorities)
            .chain(&mut message.additionals)
        {
            if record.name == *query.name() {
                record.name = name.clone();
            }
        }
        let renamed = ProtoQuery::query(name, query.query_type());
        message.queries = vec![renamed];
        let mut answer = Self::read(&message.to_vec().ok()?)?;
        answer.rcode = self.rcode;
        Some(answer)
    }

    /// The aliases of `head` with the records of `self`, which answers for the last alias.
    pub fn behind(&self, head: &Self) -> Option<Self> {
        let mut message = head.message()?;
        let mut tail = self.message()?;
        message.answers.append(&mut tail.answers);
        message.authorities = tail.authorities;
        message.metadata.response_code = tail.metadata.response_code;
        Self::read(&message.to_vec().ok()?)
    }

    /// Puts the addresses among the answers into another order.
    pub fn shuffled(mut self) -> Self {
        let place_of = |index: usize| self.records.get(index).map(|place| usize::from(place.start));
        let mut same: Vec<(usize, usize)> = Vec::new();
        let mut first: Option<(Vec<u8>, u16)> = None;
        for index in (0..self.records.len()).filter(|index| self.records[*index].section == Section::Answer) {
            let Some(record) = place_of(index).and_then(|start| Record::read(&self.bytes, start)) else {
                continue;
            };
            if record.rtype != rtype::A && record.rtype != rtype::AAAA {
                continue;
            }
            let owner = (self.bytes[record.start..record.owner_end].to_vec(), record.rtype);
            if *first.get_or_insert_with(|| owner.clone()) == owner {
                same.push((record.data, record.end));
            }
        }
        for last in (1..same.len()).rev() {
            let other = rand::random::<u32>() as usize % (last + 1);
            let (a, b) = (same[last], same[other]);
            if a.1 - a.0 == b.1 - b.0 && a.0 != b.0 {
                for offset in 0..a.1 - a.0 {
                    self.bytes.swap(a.0 + offset, b.0 + offset);
                }
            }
        }
        self
    }
}

/// Name of a question section in the library's form.
fn read_proto_name(question: &[u8]) -> Option<hickory_proto::rr::Name> {
    let end = question.len().checked_sub(4)?;
    let (mut labels, mut at) = (Vec::new(), 0);
    while let Some(&length) = question.get(at).filter(|length| **length > 0 && at < end) {
        labels.push(question.get(at + 1..at + 1 + usize::from(length))?);
        at += usize::from(length) + 1;
    }
    let mut name = hickory_proto::rr::Name::from_labels(labels).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// How a client gets an answer.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// Most bytes.
    pub limit: usize,
    /// Flags to set.
    pub flags: u16,
    /// Size of datagrams that we say we take.
    pub size: u16,
    /// Every TTL, seconds; none leaves them.
    pub ttl: Option<u32>,
    /// Leave out what is not the answer.
    pub minimal: bool,
    /// Keep the mark of an authoritative answer.
    pub authoritative: bool,
}
