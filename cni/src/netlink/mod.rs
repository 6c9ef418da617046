//! Netlink as plain calls: the kernel answers before `send` returns, so nothing here waits for anything but the kernel's
//! own locks. A socket belongs to the network namespace in which its thread was when it was made.

pub(crate) mod nft;
pub(crate) mod pair;
pub(crate) mod routes;

use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};
use std::io;

/// A netlink socket.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// A socket for links, addresses, routes and neighbours.
    pub(crate) fn route() -> io::Result<Self> {
        Self::open(NETLINK_ROUTE)
    }

    fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends all changes at once. The kernel does them in order, also those behind one that failed.
    ///
    /// # Errors
    /// The first change that failed.
    pub(crate) fn change(&mut self, changes: Vec<Change>) -> Result<(), ChangeError> {
        let Some(last) = changes.len().checked_sub(1) else {
            return Ok(());
        };
        let first = self.sequence + 1;
        let mut bytes = Vec::with_capacity(1024);
        let mut names = Vec::with_capacity(changes.len());
        for (at, change) in changes.into_iter().enumerate() {
            self.sequence += 1;
            let mut header = NetlinkHeader::default();
            // Errors come without being asked for; the last acknowledgement ends the conversation.
            header.flags = NLM_F_REQUEST | change.flags | if at == last { NLM_F_ACK } else { 0 };
            header.sequence_number = self.sequence;
            let mut message = NetlinkMessage::new(header, NetlinkPayload::from(change.message));
            message.finalize();
            let start = bytes.len();
            bytes.resize((start + message.buffer_len()).next_multiple_of(4), 0);
            message.serialize(bytes.get_mut(start..).unwrap_or_default());
            names.push(change.what);
        }
        let failed = |what: &'static str, source| ChangeError { what, source };
        self.socket
            .send(&bytes, 0)
            .map_err(|source| failed("send to the kernel", source))?;
        let mut result = Ok(());
        loop {
            let (answer, _) = self
                .socket
                .recv_from_full()
                .map_err(|source| failed("hear from the kernel", source))?;
            for message in messages(&answer) {
                let (number, code) = message.map_err(|source| failed("read the kernel's answer", source))?;
                let at = number.wrapping_sub(first) as usize;
                if let (Some(what), Some(code), true) = (names.get(at), code, result.is_ok()) {
                    result = Err(failed(what, code));
                }
                if at == last {
                    return result;
                }
            }
        }
    }

    /// All objects of one kind.
    ///
    /// # Errors
    /// The kernel refused, or its answer cannot be read.
    pub(crate) fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.ask(message, NLM_F_DUMP)
    }

    /// One object.
    ///
    /// # Errors
    /// There is none, or the kernel refused.
    pub(crate) fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        let mut found = self.ask(message, 0)?;
        found.pop().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut found = Vec::new();
        loop {
            let (answer, _) = self.socket.recv_from_full()?;
            let mut rest = answer.as_slice();
            while rest.len() >= 16 {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(invalid)?;
                let length = (message.header.length as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => found.push(inner),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Done(_) => return Ok(found),
                    _ => {}
                }
                if flags & NLM_F_DUMP == 0 {
                    return Ok(found);
                }
            }
        }
    }
}

/// One change with what it does, for the error.
pub(crate) struct Change {
    what: &'static str,
    flags: u16,
    message: RouteNetlinkMessage,
}

impl Change {
    pub(crate) fn new(what: &'static str, flags: u16, message: RouteNetlinkMessage) -> Self {
        Self { what, flags, message }
    }
}

/// A change that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub(crate) struct ChangeError {
    pub(crate) what: &'static str,
    #[source]
    pub(crate) source: io::Error,
}

impl ChangeError {
    /// Whether this is the error number.
    pub(crate) fn is(&self, errno: i32) -> bool {
        self.source.raw_os_error() == Some(errno)
    }
}

/// Sequence numbers in an answer, with the error where there is one.
fn messages(answer: &[u8]) -> impl Iterator<Item = io::Result<(u32, Option<io::Error>)>> {
    let mut rest = answer;
    std::iter::from_fn(move || {
        if rest.len() < 16 {
            return None;
        }
        let number = |at: usize| {
            let bytes = rest.get(at..at + 4)?;
            Some(u32::from_ne_bytes(bytes.try_into().ok()?))
        };
        let kind = rest
            .get(4..6)
            .and_then(|kind| kind.try_into().ok())
            .map_or(0, u16::from_ne_bytes);
        let (Some(length), Some(sequence)) = (number(0), number(8)) else {
            return Some(Err(io::ErrorKind::InvalidData.into()));
        };
        // NLMSG_ERROR carries a negated errno; 0 acknowledges.
        let code = (i32::from(kind) == libc::NLMSG_ERROR).then(|| number(16).unwrap_or(0).cast_signed());
        rest = rest
            .get((length as usize).next_multiple_of(4).max(16)..)
            .unwrap_or_default();
        let error = code
            .filter(|code| *code != 0)
            .map(|code| io::Error::from_raw_os_error(-code));
        Some(Ok((sequence, error)))
    })
}

fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}
