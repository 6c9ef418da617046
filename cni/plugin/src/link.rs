//! Names and MAC addresses of a pod's pair of links, which follow from its key, and removing them without an agent.

use crate::ledger::Key;
use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// Beginning of the names of all links on the host that lead to pods.
pub const PREFIX: &str = "fl";

/// The host's end of an attachment's pair. 65 bits of a hash fill the 15 bytes that a name may have.
#[must_use]
pub fn host_name(key: &Key) -> String {
    let mut hash = hash(key);
    let mut name = PREFIX.to_owned();
    for _ in 0..13 {
        let digit = u32::try_from(hash % 32).unwrap_or(0);
        name.push(char::from_digit(digit, 32).unwrap_or('0'));
        hash /= 32;
    }
    name
}

/// MAC addresses of the host's and the pod's end: locally administered, unicast.
#[must_use]
pub fn macs(key: &Key) -> ([u8; 6], [u8; 6]) {
    let [a, b, c, d, e, ..] = hash(key).to_be_bytes();
    ([0x0e, a, b, c, d, e], [0x0a, a, b, c, d, e])
}

/// FNV-1a: the same in every version of every program, which the standard library's hashers do not promise.
fn hash(key: &Key) -> u64 {
    let bytes = key.container.bytes().chain([0]).chain(key.ifname.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Removes a link of this network namespace, and with it its peer; `false` if there is none of that name.
///
/// # Errors
/// The kernel refused: it wants `CAP_NET_ADMIN`.
pub fn remove(name: &str) -> io::Result<bool> {
    // struct nlmsghdr, struct ifinfomsg, one attribute IFLA_IFNAME (rtnetlink(7)).
    let mut message = Vec::with_capacity(64);
    let text = name.as_bytes();
    let attribute = 4 + text.len() + 1;
    let length = 16 + 16 + attribute.next_multiple_of(4);
    message.extend(u32::try_from(length).unwrap_or(0).to_ne_bytes());
    message.extend(libc::RTM_DELLINK.to_ne_bytes());
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK).unwrap_or(0);
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8 + 16]);
    message.extend(u16::try_from(attribute).unwrap_or(0).to_ne_bytes());
    message.extend(libc::IFLA_IFNAME.to_ne_bytes());
    message.extend(text);
    message.resize(length, 0);

    let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, flags, libc::NETLINK_ROUTE) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the buffer is valid for its length.
    let sent = unsafe { libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut answer = [0_u8; 1024];
    // SAFETY: the buffer is valid for its length.
    let got = unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
    // NLMSG_ERROR: the header, then an errno, negated; 0 is the acknowledgement.
    let code = match usize::try_from(got) {
        Err(_) => return Err(io::Error::last_os_error()),
        Ok(length) if length < 20 => return Err(io::ErrorKind::InvalidData.into()),
        Ok(_) => answer
            .get(16..20)
            .and_then(|code| code.try_into().ok())
            .map_or(0, i32::from_ne_bytes),
    };
    match -code {
        0 => Ok(true),
        libc::ENODEV => Ok(false),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_links_names_and_differ() {
        let mut seen = HashSet::new();
        for n in 0..10_000 {
            for ifname in ["eth0", "eth1"] {
                let key = Key {
                    container: format!("pod-{n}"),
                    ifname: ifname.into(),
                };
                let name = host_name(&key);
                assert_eq!(name.len(), 15);
                assert!(
                    name.bytes()
                        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
                );
                assert!(seen.insert(name));
                let (host, pod) = macs(&key);
                assert_eq!((host[0] & 3, pod[0] & 3), (2, 2), "local, unicast");
                assert_ne!(host, pod);
            }
        }
    }
}
