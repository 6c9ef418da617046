//! What plugin and agent say to one another: one request and one answer per connection of a unix socket, both JSON.
//!
//! The plugin ends its request by closing its direction. It passes the pod's network namespace as a descriptor, so the
//! agent need not see the runtime's mounts.

use crate::{address::Range, ledger::Key, spec::Failure};
use serde::{Deserialize, Serialize};
use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Shutdown},
    os::{
        fd::{AsRawFd as _, BorrowedFd, RawFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::Duration,
};

/// The agent's socket in its run directory.
pub const SOCKET: &str = "agent.sock";
/// A longer message is refused: no list of attachments of one node comes near.
pub const LONGEST: u64 = 8 << 20;
/// How long the plugin waits for an answer. Runtimes give up after some minutes themselves.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A verb with what it is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "UPPERCASE")]
pub enum Request {
    /// Make the interface. The pod's network namespace comes with it.
    Add(Add),
    /// Remove it.
    Del {
        /// Whose.
        key: Key,
    },
    /// Is the host's side as ADD made it?
    Check {
        /// Whose.
        key: Key,
    },
    /// Remove all attachments of a network that are not listed.
    Gc {
        /// The network.
        network: String,
        /// Who stays.
        valid: Vec<Key>,
    },
    /// Could ADD be served?
    Status {
        /// Sets of ranges of the configuration; empty: the node's own.
        ranges: Vec<Vec<Range>>,
    },
}

/// What ADD needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Add {
    /// Whose.
    pub key: Key,
    /// The network.
    pub network: String,
    /// Namespace and name of the pod; for people.
    pub pod: Option<String>,
    /// Sets of ranges of the configuration; empty: the node's own.
    pub ranges: Vec<Vec<Range>>,
    /// MTU of the configuration, in bytes.
    pub mtu: Option<u32>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// ADD: what was made. CHECK: what there should be.
    Attached(Attachment),
    /// Nothing more to say.
    Done,
    /// It was not done.
    Failed(Failure),
}

/// A pair of links and its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Name of the link's end on the host.
    pub host_if: String,
    /// Its MAC address, which the pod sends to.
    pub host_mac: String,
    /// The MAC address in the pod.
    pub pod_mac: String,
    /// Bytes.
    pub mtu: u32,
    /// The pod's addresses.
    pub ips: Vec<IpAddr>,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// Nobody listens, or who listened went away: no agent runs.
    Down(io::Error),
    /// The agent said something else than an answer, or nothing for too long.
    Broken(io::Error),
}

/// Asks the agent. `netns` goes along where there is one.
///
/// # Errors
/// There is no answer.
pub fn call(socket: &Path, request: &Request, netns: Option<BorrowedFd<'_>>) -> Result<Answer, NoAnswer> {
    let mut stream = UnixStream::connect(socket).map_err(NoAnswer::Down)?;
    exchange(&mut stream, request, netns).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            NoAnswer::Down(error)
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => NoAnswer::Broken(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {} s", PATIENCE.as_secs()),
        )),
        _ => NoAnswer::Broken(error),
    })
}

fn exchange(stream: &mut UnixStream, request: &Request, netns: Option<BorrowedFd<'_>>) -> io::Result<Answer> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let bytes = serde_json::to_vec(request)?;
    let sent = match netns {
        Some(fd) => send_with(stream.as_raw_fd(), &bytes, fd.as_raw_fd())?,
        None => 0,
    };
    stream.write_all(bytes.get(sent..).unwrap_or_default())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&answer)?)
}

/// Sends the beginning of `bytes` with a descriptor; how much of it was sent.
fn send_with(socket: RawFd, bytes: &[u8], fd: RawFd) -> io::Result<usize> {
    // Room for one descriptor behind its header, aligned as the header wants.
    let mut control = [0_u64; 4];
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all fields of msghdr may be zero.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    let size = size_of::<RawFd>() as libc::c_uint;
    // SAFETY: CMSG_SPACE only computes.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(size) } as _;
    // SAFETY: `control` is aligned and holds `msg_controllen` bytes, so the first header and its data are inside it.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size) as _;
        libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd);
    }
    // SAFETY: `message` points to buffers that outlive the call.
    let sent = unsafe { libc::sendmsg(socket, &raw const message, libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}
