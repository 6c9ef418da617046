//! A packet at a TC hook: bounds-checked access and header parsing.

use crate::{
    family::Family,
    flow,
    maps::{EXTENSIONS, Extensions},
    nat::Pair,
};
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

/// Largest offset of anything that we read or write directly; one less than a power of two.
pub(crate) const MAX_OFFSET: u32 = 0x7ff;
/// Headers that end past this are not read.
const MAX_L4: u32 = 0x3ff;

/// Copies `T` by 32-bit words.
///
/// # Safety
/// Both pointers are valid for `T`, whose size is a multiple of 4. IP headers lie on a multiple of 4 or the kernel takes
/// the packet no further on machines that mind; BPF itself has no alignment of its own.
#[inline(always)]
pub(crate) unsafe fn copy<T>(from: *const T, to: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(4)) };
    for word in 0..size_of::<T>() / 4 {
        // SAFETY: within `T`, as the caller says.
        unsafe { to.cast::<u32>().add(word).write(from.cast::<u32>().add(word).read()) };
    }
}

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

    /// [`Skb::at`] for an offset that is not a constant: the verifier relates a bounds check to an access only if both use
    /// the same sum, and the optimiser would rather add twice.
    #[inline(always)]
    pub(crate) fn at_variable<T>(self, offset: u32) -> Option<*mut T> {
        // SAFETY: the verifier checks context reads.
        let (data, end) = unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) };
        // Offsets are small by construction ([`MAX_OFFSET`]), which the verifier has long forgotten here.
        let start = core::hint::black_box(data + (offset & MAX_OFFSET) as usize);
        if start + size_of::<T>() > end {
            return None;
        }
        Some(start as *mut T)
    }

    /// Bytes at `offset`: directly where they are linear, else by copy. At least two: the verifier learns nothing from
    /// the bounds check of a single byte at a variable offset.
    #[inline(always)]
    pub(crate) fn read<T: Copy + Default>(self, offset: u32) -> Option<T> {
        const { assert!(size_of::<T>() > 1) };
        match self.at_variable::<T>(offset) {
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
            bpf_skb_load_bytes(
                self.0.cast(),
                offset,
                core::ptr::from_mut(to).cast(),
                size_of::<T>() as u32,
            )
        };
        if code == 0 {
            Ok(())
        } else {
            Err(Verdict::NotTranslatable)
        }
    }

    /// Overwrites bytes at `offset`; checksums are the caller's business.
    #[inline(always)]
    pub(crate) fn store<T>(self, offset: u32, value: &T) -> Result<(), Verdict> {
        let from = core::ptr::from_ref(value).cast();
        // SAFETY: `from` is valid for the size given.
        let code = unsafe { bpf_skb_store_bytes(self.0, offset, from, size_of::<T>() as u32, 0) };
        if code == 0 {
            Ok(())
        } else {
            Err(Verdict::DropHelperFailed)
        }
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

    /// Whether the packet carries a VLAN tag.
    #[inline(always)]
    pub(crate) fn tagged(self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.0).vlan_present != 0 }
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

/// Which piece of a datagram a packet is: IPv4's fragment field (RFC 791), of IPv6 the same bits rearranged. A number and
/// not an enum, so that the verifier does not follow each kind on its own.
#[derive(Clone, Copy)]
pub(crate) struct Piece(u16);

impl Piece {
    const MORE: u16 = 0x2000;
    const OFFSET: u16 = 0x1fff;

    /// The first fragment: has the ports, others follow.
    #[inline(always)]
    pub(crate) fn first(self) -> bool {
        self.0 & (Self::MORE | Self::OFFSET) == Self::MORE
    }

    /// Not the first fragment: has no ports.
    #[inline(always)]
    pub(crate) fn later(self) -> bool {
        self.0 & Self::OFFSET != 0
    }
}

/// What the headers said.
#[derive(Clone, Copy)]
pub(crate) struct Parsed<F: Family> {
    /// Addresses, ports and protocol. Ports are zero for ICMP and for later fragments.
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
    let addresses: *mut Pair<F> = skb.at(ETH + F::SRC).ok_or(Verdict::NotTranslatable)?;
    let Headers {
        protocol,
        l4,
        piece,
        id,
    } = if F::V6 { v6_headers(skb)? } else { v4_headers(skb)? };
    let mut tuple = flow::key::<F>(F::ZERO, F::ZERO, [0; 2], [0; 2], protocol);
    // SAFETY: bounds checked; a key begins with its two addresses.
    unsafe { copy(addresses, core::ptr::from_mut(&mut tuple).cast()) };
    let mut parsed = Parsed::<F> {
        tuple,
        l4,
        flags: 0,
        piece,
        id,
    };
    if protocol == F::ICMP || piece.later() {
        return Ok(parsed);
    }
    let [a, b, c, d] = skb.read::<[u8; 4]>(l4).ok_or(Verdict::NotTranslatable)?;
    parsed.tuple.sport = [a, b];
    parsed.tuple.dport = [c, d];
    if protocol == TCP {
        let [_, flags]: [u8; 2] = skb.read(l4 + 12).ok_or(Verdict::NotTranslatable)?;
        parsed.flags = flags;
    }
    Ok(parsed)
}

/// What the IP header and its extensions say.
#[derive(Clone, Copy)]
struct Headers {
    protocol: u8,
    l4: u32,
    piece: Piece,
    id: [u8; 4],
}

/// An IPv4 header (RFC 791).
#[inline(always)]
fn v4_headers(skb: Skb) -> Result<Headers, Verdict> {
    let header: *mut [u8; 20] = skb.at(ETH).ok_or(Verdict::NotTranslatable)?;
    // SAFETY: bounds checked.
    let header = unsafe { &*header };
    let protocol = header[9];
    let ihl = (header[0] & 0x0f) as u32 * 4;
    if (protocol != TCP && protocol != UDP && protocol != 1) || ihl < 20 {
        return Err(Verdict::NotTranslatable);
    }
    let piece = Piece(u16::from_be_bytes([header[6], header[7]]) & (Piece::MORE | Piece::OFFSET));
    Ok(Headers {
        protocol,
        l4: ETH + ihl,
        piece,
        id: [header[4], header[5], 0, 0],
    })
}

/// An IPv6 header (RFC 8200); extension headers are walked out of line.
#[inline(always)]
fn v6_headers(skb: Skb) -> Result<Headers, Verdict> {
    let next: *mut [u8; 2] = skb.at(ETH + 6).ok_or(Verdict::NotTranslatable)?;
    // SAFETY: bounds checked.
    let [next, _] = unsafe { *next };
    if matches!(next, TCP | UDP | 58) {
        return Ok(Headers {
            protocol: next,
            l4: ETH + 40,
            piece: Piece(0),
            id: [0; 4],
        });
    }
    let walk = EXTENSIONS.get_ptr_mut(0).ok_or(Verdict::NotTranslatable)?;
    if !v6_extensions(skb, walk, next as u32) {
        return Err(Verdict::NotTranslatable);
    }
    // Read back from the map, so that the verifier forgets which headers it met on the way.
    // SAFETY: this CPU's own entry.
    let walk = unsafe { walk.read_volatile() };
    let l4 = walk.l4 & MAX_L4;
    Ok(Headers {
        protocol: walk.protocol as u8,
        l4,
        piece: Piece(walk.piece as u16),
        id: walk.id,
    })
}

/// Walks at most four extension headers into `walk`. Whether it ended at a protocol that we translate.
#[inline(never)]
fn v6_extensions(skb: Skb, walk: *mut Extensions, first: u32) -> bool {
    // SAFETY: this CPU's own entry.
    let walk = unsafe { &mut *walk };
    let mut next = first as u8;
    let mut offset = ETH + 40;
    walk.piece = 0;
    walk.id = [0; 4];
    for _ in 0..4 {
        if matches!(next, ext::HOP_BY_HOP | ext::ROUTING | ext::DESTINATION) {
            let Some([following, length]) = skb.load::<[u8; 2]>(offset) else {
                return false;
            };
            next = following;
            offset += (length as u32 + 1) * 8;
        } else if next == ext::FRAGMENT {
            let Some(header) = skb.load::<[u8; 8]>(offset) else {
                return false;
            };
            next = header[0];
            walk.id = [header[4], header[5], header[6], header[7]];
            let field = u16::from_be_bytes([header[2], header[3]]);
            walk.piece = (field >> 3 | (field & 1) << 13) as u32;
            offset += 8;
        }
        if matches!(next, TCP | UDP | 58) {
            walk.protocol = next as u32;
            walk.l4 = offset;
            return offset <= MAX_L4;
        }
    }
    false
}

/// Whether a port is the same, spelled so that it compiles to one comparison.
#[inline(always)]
pub(crate) fn same(a: Port, b: Port) -> bool {
    u16::from_ne_bytes(a) == u16::from_ne_bytes(b)
}
