//! A packet at a TC hook: bounds-checked access and header parsing.

use crate::family::Family;
use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes},
};
use proxy_common::{
    abi::{FlowKey, Port},
    verdict::Verdict,
};

/// Length of the Ethernet header; VLAN tags live in the skb's metadata.
pub(crate) const ETH: u32 = 14;
/// TCP's protocol number.
pub(crate) const TCP: u8 = 6;
/// UDP's protocol number.
pub(crate) const UDP: u8 = 17;

/// TCP flag bits.
pub(crate) mod tcp {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const ACK: u8 = 0x10;
}

/// IPv6 extension headers that we look through (RFC 8200).
mod ext {
    pub(crate) const HOP_BY_HOP: u8 = 0;
    pub(crate) const ROUTING: u8 = 43;
    pub(crate) const FRAGMENT: u8 = 44;
    pub(crate) const DESTINATION: u8 = 60;
}

/// The packet.
#[derive(Clone, Copy)]
pub(crate) struct Skb(pub(crate) *mut __sk_buff);

impl Skb {
    /// A direct pointer to `size_of::<T>()` bytes at `offset`, if they are in the linear part.
    #[inline(always)]
    pub(crate) fn at<T>(self, offset: u32) -> Option<*mut T> {
        // SAFETY: the verifier checks context reads.
        let (data, end) = unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) };
        let start = data + offset as usize;
        if start + size_of::<T>() > end {
            return None;
        }
        Some(start as *mut T)
    }

    /// Bytes at `offset`: directly where they are linear, else by copy.
    #[inline(always)]
    pub(crate) fn read<T: Copy + Default>(self, offset: u32) -> Option<T> {
        match self.at::<T>(offset) {
            // SAFETY: bounds checked; only byte arrays are read this way, so alignment is no matter.
            Some(value) => Some(unsafe { *value }),
            None => self.load(offset),
        }
    }

    /// Copies bytes at `offset`, wherever they lie.
    #[inline(always)]
    pub(crate) fn load<T: Copy + Default>(self, offset: u32) -> Option<T> {
        let mut value = T::default();
        let to = core::ptr::from_mut(&mut value).cast();
        // SAFETY: `to` is valid for the size given.
        let code = unsafe { bpf_skb_load_bytes(self.0.cast(), offset, to, size_of::<T>() as u32) };
        (code == 0).then_some(value)
    }

    /// Copies bytes at `offset` to where they are wanted.
    #[inline(always)]
    pub(crate) fn load_into<T: Copy>(self, offset: u32, to: &mut T) -> Result<(), Verdict> {
        // SAFETY: `to` is valid for the size given; only byte arrays are read this way.
        let code = unsafe {
            bpf_skb_load_bytes(self.0.cast(), offset, core::ptr::from_mut(to).cast(), size_of::<T>() as u32)
        };
        if code == 0 { Ok(()) } else { Err(Verdict::NotTranslatable) }
    }

    /// Overwrites bytes at `offset`; checksums are the caller's business.
    #[inline(always)]
    pub(crate) fn store<T>(self, offset: u32, value: &T) -> Result<(), Verdict> {
        let from = core::ptr::from_ref(value).cast();
        // SAFETY: `from` is valid for the size given.
        let code = unsafe { bpf_skb_store_bytes(self.0, offset, from, size_of::<T>() as u32, 0) };
        if code == 0 { Ok(()) } else { Err(Verdict::DropHelperFailed) }
    }

    /// Makes the first `len` bytes linear.
    #[inline(always)]
    pub(crate) fn pull(self, len: u32) {
        // SAFETY: valid context; failure shows in the next bounds check.
        unsafe { bpf_skb_pull_data(self.0, len) };
    }

    #[inline(always)]
    pub(crate) fn len(self) -> u32 {
        // SAFETY: the verifier checks context reads.
        unsafe { (*self.0).len }
    }

    #[inline(always)]
    pub(crate) fn ifindex(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).ifindex }
    }

    /// 0 for a packet that this node sends itself.
    #[inline(always)]
    pub(crate) fn ingress_ifindex(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).ingress_ifindex }
    }

    /// Ethertype, network byte order.
    #[inline(always)]
    pub(crate) fn protocol(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).protocol }
    }

    /// Payload bytes per segment of a GSO packet, 0 for others.
    #[inline(always)]
    pub(crate) fn gso_size(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).gso_size }
    }
}

/// Which piece of a datagram a packet is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece {
    /// All of it.
    Whole,
    /// The first fragment: has the ports.
    First,
    /// Another fragment: has none.
    Later,
}

/// What the headers said.
#[derive(Clone, Copy)]
pub(crate) struct Parsed<F: Family> {
    /// Addresses, ports and protocol. Ports are zero for ICMP and for [`Piece::Later`].
    pub(crate) tuple: FlowKey<F::Addr>,
    /// Offset of the transport header.
    pub(crate) l4: u32,
    /// TCP flags, 0 for other protocols.
    pub(crate) flags: u8,
    /// Piece of a datagram.
    pub(crate) piece: Piece,
    /// Identification of a fragment.
    pub(crate) id: [u8; 4],
}

/// Reads the headers. `Err` is a verdict that lets the packet pass: what we cannot read is the kernel's to judge.
#[inline(always)]
pub(crate) fn parse<F: Family>(skb: Skb) -> Result<Parsed<F>, Verdict> {
    if skb.at::<[u8; 54]>(0).is_none() {
        // Headers may sit in fragments of the skb; 94 bytes hold IPv6 with TCP and a bit.
        let len = skb.len();
        skb.pull(if len < 94 { len } else { 94 });
    }
    let src: *mut F::Addr = skb.at(ETH + F::SRC).ok_or(Verdict::NotTranslatable)?;
    let dst: *mut F::Addr = skb.at(ETH + F::SRC + F::BITS / 8).ok_or(Verdict::NotTranslatable)?;
    // SAFETY: bounds checked above; addresses are byte arrays and need no alignment.
    let (src, dst) = unsafe { (*src, *dst) };
    let (protocol, l4, piece, id) = if F::V6 { v6_headers(skb)? } else { v4_headers(skb)? };
    let mut parsed = Parsed::<F> {
        tuple: FlowKey { src, dst, sport: [0; 2], dport: [0; 2], protocol, pad: [0; 3] },
        l4,
        flags: 0,
        piece,
        id,
    };
    if matches!(piece, Piece::Later) || protocol == F::ICMP {
        return Ok(parsed);
    }
    let [a, b, c, d] = skb.read::<[u8; 4]>(l4).ok_or(Verdict::NotTranslatable)?;
    parsed.tuple.sport = [a, b];
    parsed.tuple.dport = [c, d];
    if protocol == TCP {
        parsed.flags = skb.read(l4 + 13).ok_or(Verdict::NotTranslatable)?;
    }
    Ok(parsed)
}

/// Protocol, transport offset, piece and identification of an IPv4 packet (RFC 791).
#[inline(always)]
fn v4_headers(skb: Skb) -> Result<(u8, u32, Piece, [u8; 4]), Verdict> {
    let header: *mut [u8; 20] = skb.at(ETH).ok_or(Verdict::NotTranslatable)?;
    // SAFETY: bounds checked.
    let header = unsafe { &*header };
    let protocol = header[9];
    if protocol != TCP && protocol != UDP && protocol != 1 {
        return Err(Verdict::NotTranslatable);
    }
    let ihl = (header[0] & 0x0f) as u32 * 4;
    if ihl < 20 {
        return Err(Verdict::NotTranslatable);
    }
    let later = (header[6] & 0x1f) | header[7] != 0;
    let more = header[6] & 0x20 != 0;
    let piece = if later {
        Piece::Later
    } else if more {
        Piece::First
    } else {
        Piece::Whole
    };
    Ok((protocol, ETH + ihl, piece, [header[4], header[5], 0, 0]))
}

/// The same of an IPv6 packet, through at most four extension headers (RFC 8200).
#[inline(always)]
fn v6_headers(skb: Skb) -> Result<(u8, u32, Piece, [u8; 4]), Verdict> {
    let next: *mut u8 = skb.at(ETH + 6).ok_or(Verdict::NotTranslatable)?;
    // SAFETY: bounds checked.
    let mut next = unsafe { *next };
    let mut offset = ETH + 40;
    let mut piece = Piece::Whole;
    let mut id = [0; 4];
    for _ in 0..5 {
        match next {
            TCP | UDP | 58 => return Ok((next, offset, piece, id)),
            ext::HOP_BY_HOP | ext::ROUTING | ext::DESTINATION => {
                let [following, length] = skb.load::<[u8; 2]>(offset).ok_or(Verdict::NotTranslatable)?;
                next = following;
                offset += (length as u32 + 1) * 8;
            }
            ext::FRAGMENT => {
                let header: [u8; 8] = skb.load(offset).ok_or(Verdict::NotTranslatable)?;
                next = header[0];
                id = [header[4], header[5], header[6], header[7]];
                let later = header[2] | (header[3] & 0xf8) != 0;
                let more = header[3] & 1 != 0;
                offset += 8;
                if later {
                    // What follows is data; `next` names the protocol only if no other header was cut off.
                    return if matches!(next, TCP | UDP | 58) {
                        Ok((next, offset, Piece::Later, id))
                    } else {
                        Err(Verdict::NotTranslatable)
                    };
                }
                piece = if more { Piece::First } else { Piece::Whole };
            }
            _ => return Err(Verdict::NotTranslatable),
        }
    }
    Err(Verdict::NotTranslatable)
}

/// Whether a port is the same, spelled so that it compiles to one comparison.
#[inline(always)]
pub(crate) fn same(a: Port, b: Port) -> bool {
    u16::from_ne_bytes(a) == u16::from_ne_bytes(b)
}
