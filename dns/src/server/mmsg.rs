//! Many datagrams per system call, with the address that each came to.

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr,
};

/// Datagrams per call.
pub(super) const BATCH: usize = 32;
/// Bytes of a question: a name, and options of EDNS.
const QUESTION: usize = 2048;
/// Bytes of control data: one packet info of either family.
const CONTROL: usize = 64;

/// Control data with the alignment of its headers.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// Where a datagram came from and to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path {
    /// Who sent it.
    pub(super) peer: SocketAddr,
    /// The address of this host that it was sent to, and the link's index where the address alone does not tell it.
    pub(super) local: Option<(IpAddr, u32)>,
}

/// Room for one batch of questions.
pub(super) struct Inbox {
    buffers: Box<[[u8; QUESTION]]>,
    peers: Box<[libc::sockaddr_storage]>,
    controls: Box<[Control]>,
    lengths: [usize; BATCH],
    control_lengths: [usize; BATCH],
}

impl Inbox {
    pub(super) fn new() -> Self {
        // SAFETY: an address of zeros is a valid sockaddr_storage, of the family AF_UNSPEC.
        let peer: libc::sockaddr_storage = unsafe { mem::zeroed() };
        Self {
            buffers: vec![[0; QUESTION]; BATCH].into(),
            peers: vec![peer; BATCH].into(),
            controls: vec![Control([0; CONTROL]); BATCH].into(),
            lengths: [0; BATCH],
            control_lengths: [0; BATCH],
        }
    }

    /// Waits for one datagram and takes those that are there besides.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: a header of zeros is valid: no name, no buffers, no control data.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        let mut slices = [libc::iovec {
            iov_base: ptr::null_mut(),
            iov_len: 0,
        }; BATCH];
        for index in 0..BATCH {
            slices[index] = libc::iovec {
                iov_base: self.buffers[index].as_mut_ptr().cast(),
                iov_len: QUESTION,
            };
            let header = &mut headers[index].msg_hdr;
            header.msg_name = (&raw mut self.peers[index]).cast();
            header.msg_namelen = socklen(size_of::<libc::sockaddr_storage>());
            header.msg_iov = &raw mut slices[index];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[index].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL;
        }
        // SAFETY: every header points to memory of this struct or this frame, as long as it says, which outlives the call.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_WAITFORONE,
                ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for (index, header) in headers.iter().enumerate().take(count) {
            // A longer one was cut, and is none of ours: it reads as malformed.
            self.lengths[index] = (header.msg_len as usize).min(QUESTION);
            self.control_lengths[index] = header.msg_hdr.msg_controllen.min(CONTROL);
        }
        Ok(count)
    }

    /// Datagram `index` of the last batch.
    pub(super) fn packet(&self, index: usize) -> &[u8] {
        &self.buffers[index][..self.lengths[index]]
    }

    /// Its way; none if its sender has no address that can be answered.
    pub(super) fn path(&self, index: usize) -> Option<Path> {
        Some(Path {
            peer: read_address(&self.peers[index])?,
            local: read_control(&self.controls[index], self.control_lengths[index]),
        })
    }
}

fn socklen(length: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(length).unwrap_or_default()
}

fn read_address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that this is a sockaddr_in, and the storage is large and aligned enough for any.
            let address = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(address.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above, a sockaddr_in6.
            let address = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(address.sin6_port), 0, address.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn write_address(address: SocketAddr, storage: &mut libc::sockaddr_storage) -> libc::socklen_t {
    match address {
        SocketAddr::V4(four) => {
            // SAFETY: the storage is large and aligned enough for any address.
            let target = unsafe { &mut *(&raw mut *storage).cast::<libc::sockaddr_in>() };
            target.sin_family = libc::AF_INET as libc::sa_family_t;
            target.sin_port = four.port().to_be();
            target.sin_addr.s_addr = u32::from_ne_bytes(four.ip().octets());
            socklen(size_of::<libc::sockaddr_in>())
        }
        SocketAddr::V6(six) => {
            // SAFETY: as above.
            let target = unsafe { &mut *(&raw mut *storage).cast::<libc::sockaddr_in6>() };
            target.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            target.sin6_port = six.port().to_be();
            target.sin6_addr.s6_addr = six.ip().octets();
            target.sin6_scope_id = six.scope_id();
            socklen(size_of::<libc::sockaddr_in6>())
        }
    }
}

/// Reads the packet info that the kernel put in front.
fn read_control(control: &Control, length: usize) -> Option<(IpAddr, u32)> {
    let header_length = size_of::<libc::cmsghdr>();
    // SAFETY: the buffer is aligned for a header, longer than one, and initialised.
    let header = unsafe { &*control.0.as_ptr().cast::<libc::cmsghdr>() };
    let data = control.0.get(header_length..length)?;
    match (header.cmsg_level, header.cmsg_type) {
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
            // in_pktinfo: the link, the local address, the address in the packet's header.
            let address: [u8; 4] = data.get(4..8)?.try_into().ok()?;
            Some((Ipv4Addr::from(address).into(), 0))
        }
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
            let address: [u8; 16] = data.get(..16)?.try_into().ok()?;
            let address = Ipv6Addr::from(address);
            let link = u32::from_ne_bytes(data.get(16..20)?.try_into().ok()?);
            // Other addresses have one link, by the routing table.
            Some((address.into(), if address.is_unicast_link_local() { link } else { 0 }))
        }
        _ => None,
    }
}

/// Writes the packet info that sends from `local`; its length.
fn write_control((local, link): (IpAddr, u32), control: &mut Control) -> usize {
    let header_length = size_of::<libc::cmsghdr>();
    let mut data = [0_u8; 20];
    let (level, kind, length) = match local {
        IpAddr::V4(four) => {
            data[4..8].copy_from_slice(&four.octets());
            (libc::IPPROTO_IP, libc::IP_PKTINFO, 12)
        }
        IpAddr::V6(six) => {
            data[..16].copy_from_slice(&six.octets());
            data[16..20].copy_from_slice(&link.to_ne_bytes());
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, 20)
        }
    };
    // SAFETY: the buffer is aligned for a header and longer than one.
    let header = unsafe { &mut *control.0.as_mut_ptr().cast::<libc::cmsghdr>() };
    header.cmsg_len = header_length + length;
    header.cmsg_level = level;
    header.cmsg_type = kind;
    control.0[header_length..header_length + length].copy_from_slice(&data[..length]);
    // Padded to the alignment of headers (CMSG_SPACE).
    (header_length + length).next_multiple_of(align_of::<libc::cmsghdr>())
}

/// Sends answers to where their questions came from. What the network refuses is dropped, as a lost datagram is.
pub(super) fn send<'a>(socket: BorrowedFd<'_>, answers: impl Iterator<Item = (&'a [u8], Path)>) {
    // SAFETY: zeros are valid: see `receive`.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
    // SAFETY: an address of zeros is valid.
    let mut peers: [libc::sockaddr_storage; BATCH] = unsafe { mem::zeroed() };
    let mut controls = [Control([0; CONTROL]); BATCH];
    let mut slices = [libc::iovec {
        iov_base: ptr::null_mut(),
        iov_len: 0,
    }; BATCH];
    let mut count = 0;
    for (index, (bytes, path)) in answers.take(BATCH).enumerate() {
        slices[index] = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let header = &mut headers[index].msg_hdr;
        header.msg_namelen = write_address(path.peer, &mut peers[index]);
        header.msg_name = (&raw mut peers[index]).cast();
        header.msg_iov = &raw mut slices[index];
        header.msg_iovlen = 1;
        if let Some(local) = path.local {
            header.msg_controllen = write_control(local, &mut controls[index]);
            header.msg_control = controls[index].0.as_mut_ptr().cast();
        }
        count = index + 1;
    }
    let mut start = 0;
    while start < count {
        let rest = &mut headers[start..count];
        let length = libc::c_uint::try_from(rest.len()).unwrap_or_default();
        // SAFETY: every header points to memory of this frame or to `bytes`, which outlive the call; the kernel reads only.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), length, 0) };
        match usize::try_from(sent) {
            Ok(sent) => start += sent.max(1),
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            // The first of the rest cannot be sent; the others may.
            Err(_) => start += 1,
        }
    }
}

/// Asks the kernel for the address that each datagram came to.
pub(super) fn ask_for_local_address(socket: BorrowedFd<'_>, ipv6: bool) -> io::Result<()> {
    let option = if ipv6 {
        (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)
    } else {
        (libc::IPPROTO_IP, libc::IP_PKTINFO)
    };
    let on: libc::c_int = 1;
    let length = socklen(size_of::<libc::c_int>());
    // SAFETY: `on` is as long as `length` says and outlives the call.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), option.0, option.1, (&raw const on).cast(), length) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Ends every receive on this socket, now and later.
pub(super) fn wake(socket: BorrowedFd<'_>) {
    // SAFETY: takes a descriptor and a number. An unconnected socket says ENOTCONN and wakes its readers all the same.
    unsafe {
        libc::shutdown(socket.as_raw_fd(), libc::SHUT_RD);
    }
}
