//! Names in wire form: lower-cased, with the places of their labels, on the stack.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Most bytes of a name, the root's zero included. Source: RFC 1035 §2.3.4.
pub const MAX_NAME: usize = 255;
/// Most bytes of a label.
pub const MAX_LABEL: usize = 63;
/// Most labels that fit into a name.
const MAX_LABELS: usize = 127;

/// A name as a question has it: lower-cased wire form and the place of each label.
#[derive(Clone)]
pub struct Name {
    bytes: [u8; MAX_NAME],
    starts: [u8; MAX_LABELS],
    len: u8,
    labels: u8,
}

impl Name {
    /// Reads the name that starts at `at`, which must not be compressed, and where it ends. `None` is no name.
    pub fn read(packet: &[u8], at: usize) -> Option<(Self, usize)> {
        let mut name = Self {
            bytes: [0; MAX_NAME],
            starts: [0; MAX_LABELS],
            len: 0,
            labels: 0,
        };
        let mut read = at;
        loop {
            let length = usize::from(*packet.get(read)?);
            let place = read - at;
            if length == 0 {
                if place >= MAX_NAME {
                    return None;
                }
                name.bytes[..=place].copy_from_slice(packet.get(at..=read)?);
                // Length bytes are below 64 and no letter: one pass over everything is right.
                name.bytes[..=place].make_ascii_lowercase();
                name.len = u8::try_from(place + 1).ok()?;
                return Some((name, read + 1));
            }
            if length > MAX_LABEL || place + length + 1 >= MAX_NAME {
                return None;
            }
            name.starts[usize::from(name.labels)] = u8::try_from(place).ok()?;
            name.labels += 1;
            read += length + 1;
        }
    }

    /// The same name from wire form alone.
    pub fn from_wire(wire: &[u8]) -> Option<Self> {
        Self::read(wire, 0)
            .filter(|(_, end)| *end == wire.len())
            .map(|(name, _)| name)
    }

    /// Lower-cased wire form, the root's zero included.
    pub fn wire(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// How many labels, the root not counted.
    pub fn labels(&self) -> usize {
        usize::from(self.labels)
    }

    /// Label `index`, from the left.
    pub fn label(&self, index: usize) -> &[u8] {
        let start = usize::from(self.starts[index]);
        let length = usize::from(self.bytes[start]);
        &self.bytes[start + 1..start + 1 + length]
    }

    /// Wire form of the labels `from..to`, without a root.
    pub fn between(&self, from: usize, to: usize) -> &[u8] {
        let start = self.start(from);
        &self.bytes[start..self.start(to).max(start)]
    }

    fn start(&self, label: usize) -> usize {
        if label < self.labels() {
            usize::from(self.starts[label])
        } else {
            usize::from(self.len) - 1
        }
    }

    /// How many labels are left of `zone`, if this name is the zone's or below it.
    #[inline]
    pub fn below(&self, zone: &Zone) -> Option<usize> {
        let above = self.labels().checked_sub(zone.labels)?;
        (self.bytes[self.start(above)..usize::from(self.len)] == *zone.wire).then_some(above)
    }

    /// What a name below in-addr.arpa or ip6.arpa stands for.
    pub fn reverse(&self) -> Option<Reverse> {
        let count = self.labels();
        if count < 2 || self.label(count - 1) != b"arpa" {
            return None;
        }
        match self.label(count - 2) {
            b"in-addr" => Some(self.reverse_v4(count - 2)),
            b"ip6" => Some(self.reverse_v6(count - 2)),
            _ => None,
        }
    }

    fn reverse_v4(&self, count: usize) -> Reverse {
        if count > 4 {
            return Reverse::Nothing;
        }
        let mut bytes = [0; 4];
        for (place, byte) in bytes.iter_mut().enumerate().take(count) {
            let label = self.label(count - 1 - place);
            // One spelling per number: "010" is another name than "10".
            let canonical = label.len() == 1 || label.first() != Some(&b'0');
            let digits = canonical && label.len() <= 3 && label.iter().all(u8::is_ascii_digit);
            let value = label
                .iter()
                .fold(0_u32, |value, digit| value * 10 + u32::from(digit & 0x0f));
            match u8::try_from(value) {
                Ok(value) if digits => *byte = value,
                _ => return Reverse::Nothing,
            }
        }
        if count == 4 {
            return Reverse::Address(Ipv4Addr::from(bytes).into());
        }
        let mut last = [0xff; 4];
        last[..count].copy_from_slice(&bytes[..count]);
        Reverse::Range(Ipv4Addr::from(bytes).into(), Ipv4Addr::from(last).into())
    }

    fn reverse_v6(&self, count: usize) -> Reverse {
        if count > 32 {
            return Reverse::Nothing;
        }
        let (mut first, mut last) = ([0_u8; 16], [0xff_u8; 16]);
        for place in 0..count {
            let [digit] = self.label(count - 1 - place) else {
                return Reverse::Nothing;
            };
            let Some(nibble) = char::from(*digit)
                .to_digit(16)
                .and_then(|nibble| u8::try_from(nibble).ok())
            else {
                return Reverse::Nothing;
            };
            let (shift, mask) = if place % 2 == 0 { (4, 0x0f) } else { (0, 0xf0) };
            first[place / 2] |= nibble << shift;
            last[place / 2] = last[place / 2] & mask | nibble << shift;
        }
        if count == 32 {
            return Reverse::Address(Ipv6Addr::from(first).into());
        }
        Reverse::Range(Ipv6Addr::from(first).into(), Ipv6Addr::from(last).into())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(self.wire(), formatter)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self}")
    }
}

/// What a reverse name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reverse {
    /// One address.
    Address(IpAddr),
    /// Every address from the first to the second: the name is above theirs.
    Range(IpAddr, IpAddr),
    /// No address can be below this name.
    Nothing,
}

/// A name that lasts: lower-cased wire form.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Zone {
    wire: Box<[u8]>,
    labels: usize,
}

impl Zone {
    /// From text, with or without the last dot; `.` is the root. Escapes (`\.`, `\DDD`) are understood.
    ///
    /// # Errors
    /// Why it is no name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wire = wire_of(text)?.to_ascii_lowercase();
        let labels = Name::from_wire(&wire).map(|name| name.labels());
        Ok(Self {
            labels: labels.ok_or_else(|| format!("{text:?} is no DNS name"))?,
            wire: wire.into(),
        })
    }

    /// From a name that was read.
    pub fn from_name(name: &Name) -> Self {
        Self {
            wire: name.wire().into(),
            labels: name.labels(),
        }
    }

    /// Wire form with the root's zero.
    pub fn wire(&self) -> &[u8] {
        &self.wire
    }

    /// How many labels.
    pub fn labels(&self) -> usize {
        self.labels
    }

    /// As a name.
    pub fn name(&self) -> Name {
        Name::from_wire(&self.wire).unwrap_or_else(|| unreachable!("a zone is made from a name"))
    }

    /// Is this in-addr.arpa, ip6.arpa, or below them?
    pub fn is_reverse(&self) -> bool {
        self.name().reverse().is_some()
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(&self.wire, formatter)
    }
}

impl fmt::Debug for Zone {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self}")
    }
}

/// The longest of `zones` that `name` is in, by index.
pub fn longest<'a>(zones: impl IntoIterator<Item = &'a Zone>, name: &Name) -> Option<usize> {
    let matching = zones
        .into_iter()
        .enumerate()
        .filter(|(_, zone)| name.below(zone).is_some());
    matching.max_by_key(|(_, zone)| zone.labels).map(|(index, _)| index)
}

/// Wire form of a name in text, its case kept.
///
/// # Errors
/// Why it is no name.
pub fn wire_of(text: &str) -> Result<Vec<u8>, String> {
    let refuse = |why: &str| Err(format!("{text:?} is no DNS name: {why}"));
    if text.is_empty() {
        return refuse("it is empty; the root is written .");
    }
    let mut wire = vec![0];
    let (mut start, mut ended) = (0, text == ".");
    let mut bytes = if ended { "".bytes() } else { text.bytes() };
    while let Some(byte) = bytes.next() {
        ended = byte == b'.';
        if ended {
            if wire[start] == 0 {
                return refuse("it has an empty label");
            }
            start = wire.len();
            wire.push(0);
            continue;
        }
        let byte = if byte == b'\\' {
            unescape(&mut bytes).ok_or("a bad escape")?
        } else {
            byte
        };
        wire.push(byte);
        wire[start] += 1;
        if usize::from(wire[start]) > MAX_LABEL {
            return refuse("a label is longer than 63 bytes");
        }
    }
    if !ended {
        wire.push(0);
    }
    if wire.len() > MAX_NAME {
        return refuse("it is longer than 255 bytes");
    }
    Ok(wire)
}

fn unescape(bytes: &mut std::str::Bytes<'_>) -> Option<u8> {
    let first = bytes.next()?;
    if !first.is_ascii_digit() {
        return Some(first);
    }
    let mut value = u32::from(first - b'0');
    for _ in 0..2 {
        value = value * 10 + char::from(bytes.next()?).to_digit(10)?;
    }
    u8::try_from(value).ok()
}

/// Text of a wire form, as zone files escape it.
fn show(wire: &[u8], formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut at = 0;
    while let Some(&length) = wire.get(at).filter(|length| **length > 0) {
        let label = wire.get(at + 1..at + 1 + usize::from(length)).unwrap_or_default();
        for &byte in label {
            match byte {
                b'.' | b'\\' => write!(formatter, "\\{}", char::from(byte))?,
                b'!'..=b'~' => write!(formatter, "{}", char::from(byte))?,
                _ => write!(formatter, "\\{byte:03}")?,
            }
        }
        formatter.write_str(".")?;
        at += usize::from(length) + 1;
    }
    if at == 0 { formatter.write_str(".") } else { Ok(()) }
}

/// Puts a label's length and bytes; a label longer than 63 bytes is cut, which API names never are.
pub fn push_label(wire: &mut Vec<u8>, label: &[u8]) {
    let label = &label[..label.len().min(MAX_LABEL)];
    wire.push(u8::try_from(label.len()).unwrap_or_default());
    wire.extend_from_slice(label);
}

/// The reverse name of an address, in text.
pub fn reverse_of(address: IpAddr) -> String {
    match address {
        IpAddr::V4(four) => {
            let [a, b, c, d] = four.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(six) => {
            let nibbles = six
                .octets()
                .into_iter()
                .rev()
                .map(|byte| format!("{:x}.{:x}.", byte & 15, byte >> 4));
            format!("{}ip6.arpa", nibbles.collect::<String>())
        }
    }
}

/// The address that a pod's label stands for: `10-1-2-3`, `2001-db8--7`.
pub fn dashed(label: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(label).ok().filter(|text| text.len() <= 39)?;
    let four = text.bytes().filter(|byte| *byte == b'-').count() == 3 && !text.contains("--");
    if four && let Ok(address) = text.replace('-', ".").parse::<Ipv4Addr>() {
        return Some(address.into());
    }
    text.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::from)
}

/// The label of an endpoint that has no name: its address with dashes. An IPv6 address that ends in `-` or starts with
/// one gets a zero there, since labels of hosts do not.
pub fn dashed_label(address: IpAddr) -> String {
    match address {
        IpAddr::V4(four) => four.to_string().replace('.', "-"),
        IpAddr::V6(six) => {
            let mut text = six.to_string().replace([':', '.'], "-");
            if text.starts_with('-') {
                text.insert(0, '0');
            }
            if text.ends_with('-') {
                text.push('0');
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lowered_and_split() {
        let wire = wire_of("WWW.Example.com").unwrap();
        let (name, end) = Name::read(&wire, 0).unwrap();
        assert_eq!((name.to_string().as_str(), end), ("www.example.com.", wire.len()));
        assert_eq!(name.label(1), b"example");
        assert_eq!(name.between(0, 2), b"\x03www\x07example");
        assert_eq!(name.below(&Zone::parse("example.COM").unwrap()), Some(1));
        assert_eq!(name.below(&Zone::parse(".").unwrap()), Some(3));
        assert_eq!(name.below(&Zone::parse("ample.com").unwrap()), None);
        assert_eq!(name.below(&Zone::parse("a.www.example.com").unwrap()), None);
    }

    #[test]
    fn bad_names_are_refused() {
        for wire in [&b"\x03www"[..], b"", b"\xc0\x00", b"\x40a\x00"] {
            assert!(Name::read(wire, 0).is_none(), "{wire:?}");
        }
        let long = [&b"\x3f"[..], &b"a".repeat(63)].concat().repeat(4);
        assert!(Name::read(&[&long[..], b"\0"].concat(), 0).is_none(), "257 bytes");
        for text in ["", "a..b", ".a", &"a".repeat(64), "a\\9"] {
            assert!(Zone::parse(text).is_err(), "{text}");
        }
        assert_eq!(Zone::parse("a\\.b.\\065").unwrap().to_string(), "a\\.b.a.");
    }

    #[test]
    fn reverse_names() {
        let reverse = |text: &str| Zone::parse(text).unwrap().name().reverse();
        for text in ["10.1.2.3", "2001:db8::7", "::1"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(reverse(&reverse_of(address)), Some(Reverse::Address(address)));
        }
        let (first, last) = ("10.96.0.0".parse().unwrap(), "10.96.255.255".parse().unwrap());
        assert_eq!(reverse("96.10.in-addr.arpa"), Some(Reverse::Range(first, last)));
        let (first, last) = (
            "fd00::".parse().unwrap(),
            "fd0f:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap(),
        );
        assert_eq!(reverse("0.d.f.ip6.arpa"), Some(Reverse::Range(first, last)));
        for text in [
            "256.10.in-addr.arpa",
            "010.in-addr.arpa",
            "x.in-addr.arpa",
            "10.ip6.arpa",
            "1.2.3.4.5.in-addr.arpa",
        ] {
            assert_eq!(reverse(text), Some(Reverse::Nothing), "{text}");
        }
        assert_eq!(reverse("example.com"), None);
    }

    #[test]
    fn dashed_addresses() {
        for (label, address) in [
            ("10-1-2-3", Some("10.1.2.3")),
            ("2001-db8--7", Some("2001:db8::7")),
            ("--1", Some("::1")),
        ] {
            assert_eq!(
                dashed(label.as_bytes()),
                address.map(|it| it.parse().unwrap()),
                "{label}"
            );
        }
        for label in ["10-1-2", "10-1-2-256", "web", "1-2-3-4-5", ""] {
            assert_eq!(dashed(label.as_bytes()), None, "{label}");
        }
        for (address, label) in [("fd00::", "fd00--0"), ("::1", "0--1"), ("10.0.0.1", "10-0-0-1")] {
            assert_eq!(dashed_label(address.parse().unwrap()), label);
        }
    }
}
