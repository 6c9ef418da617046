//! Clients: one question on a fresh socket, or several on a kept one.

use super::lock;
use crate::proto::{Answer, Ask, AskError, Failure, HttpReply, Question, ServerLine, Transport};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, IoSliceMut, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

static NONCE: AtomicU64 = AtomicU64::new(1);

/// What went wrong in the world of sockets, before it becomes an [`AskError`].
struct Trouble {
    kind: Failure,
    detail: String,
    path_mtu: Option<u32>,
}

impl Trouble {
    fn new(kind: Failure, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            path_mtu: None,
        }
    }

    fn io(during: &'static str) -> impl Fn(io::Error) -> Self {
        move |error| Self::new(failure(&error), format!("{during}: {error}"))
    }
}

fn failure(error: &io::Error) -> Failure {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => Failure::ConnectionRefused,
        Some(libc::ECONNRESET | libc::EPIPE) => Failure::ConnectionReset,
        Some(libc::ETIMEDOUT | libc::EAGAIN) => Failure::TimedOut,
        Some(libc::EHOSTUNREACH) => Failure::HostUnreachable,
        Some(libc::ENETUNREACH) => Failure::NetworkUnreachable,
        Some(libc::EMSGSIZE) => Failure::MessageTooLong,
        Some(libc::EADDRINUSE | libc::EADDRNOTAVAIL) => Failure::AddressInUse,
        Some(libc::EPERM | libc::EACCES) => Failure::Denied,
        _ if error.kind() == io::ErrorKind::TimedOut => Failure::TimedOut,
        _ if error.kind() == io::ErrorKind::UnexpectedEof => Failure::ConnectionReset,
        _ => Failure::Other,
    }
}

/// One question on a fresh socket.
pub(super) fn ask(ask: &Ask) -> Result<Answer, AskError> {
    timed(|| {
        let (mut socket, connect_us) = Open::connect(ask)?;
        let mut answer = socket.exchange(ask.send_bytes, ask.reply_bytes)?;
        answer.connect_us = connect_us;
        Ok(answer)
    })
}

fn timed(run: impl FnOnce() -> Result<Answer, Trouble>) -> Result<Answer, AskError> {
    let begun = Instant::now();
    match run() {
        Ok(answer) => Ok(Answer {
            total_us: begun.elapsed().as_micros() as u64,
            ..answer
        }),
        Err(Trouble { kind, detail, path_mtu }) => Err(AskError {
            kind,
            detail,
            path_mtu,
            after_us: begun.elapsed().as_micros() as u64,
        }),
    }
}

enum Stream {
    Tcp(BufReader<TcpStream>),
    Http(BufReader<TcpStream>),
    Udp(UdpSocket),
}

struct Open {
    stream: Stream,
    dst: SocketAddr,
    connected: bool,
    dont_fragment: bool,
    timeout: Duration,
}

impl Open {
    fn connect(ask: &Ask) -> Result<(Self, u64), Trouble> {
        let datagram = ask.transport == Transport::Udp;
        let (kind, protocol) = if datagram {
            (Type::DGRAM, Protocol::UDP)
        } else {
            (Type::STREAM, Protocol::TCP)
        };
        let socket = Socket::new(Domain::for_address(ask.dst), kind, Some(protocol)).map_err(Trouble::io("socket"))?;
        let timeout = Duration::from_millis(ask.timeout_ms.max(1));
        socket
            .set_read_timeout(Some(timeout))
            .map_err(Trouble::io("set timeout"))?;
        socket
            .set_write_timeout(Some(timeout))
            .map_err(Trouble::io("set timeout"))?;
        if let Some(bind) = ask.bind {
            // Lets a test use one client tuple towards several frontends.
            socket
                .set_reuse_address(true)
                .map_err(Trouble::io("set SO_REUSEADDR"))?;
            socket.bind(&bind.into()).map_err(Trouble::io("bind"))?;
        }
        if ask.dont_fragment {
            dont_fragment(&socket, ask.dst.is_ipv6()).map_err(Trouble::io("set DF"))?;
        }
        let begun = Instant::now();
        if datagram {
            if ask.connected {
                socket.connect(&ask.dst.into()).map_err(Trouble::io("connect"))?;
            }
        } else {
            socket
                .connect_timeout(&ask.dst.into(), timeout)
                .map_err(Trouble::io("connect"))?;
            socket.set_tcp_nodelay(true).map_err(Trouble::io("set TCP_NODELAY"))?;
        }
        let connect_us = if datagram && !ask.connected {
            0
        } else {
            begun.elapsed().as_micros() as u64
        };
        let stream = match ask.transport {
            Transport::Tcp => Stream::Tcp(BufReader::new(socket.into())),
            Transport::Http => Stream::Http(BufReader::new(socket.into())),
            Transport::Udp => Stream::Udp(socket.into()),
        };
        let connected = ask.connected || !datagram;
        Ok((
            Self {
                stream,
                dst: ask.dst,
                connected,
                dont_fragment: ask.dont_fragment,
                timeout,
            },
            connect_us,
        ))
    }

    fn exchange(&mut self, send: usize, reply: usize) -> Result<Answer, Trouble> {
        let nonce = NONCE.fetch_add(1, Ordering::Relaxed);
        match &mut self.stream {
            Stream::Tcp(stream) => tcp(
                stream,
                Question {
                    body: send,
                    reply,
                    nonce,
                },
            ),
            Stream::Http(stream) => http(stream, self.dst),
            Stream::Udp(socket) => {
                let outcome = udp(
                    socket,
                    Question { body: 0, reply, nonce },
                    send,
                    self.dst,
                    self.connected,
                    self.timeout,
                );
                outcome.map_err(|mut trouble| {
                    if self.dont_fragment {
                        trouble.path_mtu = error_queue_mtu(socket).or_else(|| path_mtu(socket, self.dst.is_ipv6()));
                        if trouble.path_mtu.is_some() && trouble.kind == Failure::TimedOut && !self.connected {
                            trouble.kind = Failure::MessageTooLong;
                        }
                    }
                    trouble
                })
            }
        }
    }
}

fn answer(line: ServerLine, local: SocketAddr, peer: SocketAddr, path_mtu: Option<u32>) -> Answer {
    Answer {
        served_by: line.name,
        seen_peer: line.peer,
        local_addr: local,
        peer_name: peer,
        connect_us: 0,
        total_us: 0,
        path_mtu,
        body: String::new(),
    }
}

fn tcp(stream: &mut BufReader<TcpStream>, question: Question) -> Result<Answer, Trouble> {
    let garbled = |what: String| Trouble::new(Failure::Garbled, what);
    let mut bytes = serde_json::to_vec(&question).map_err(|error| garbled(error.to_string()))?;
    bytes.push(b'\n');
    bytes.resize(bytes.len() + question.body, b'.');
    stream.get_mut().write_all(&bytes).map_err(Trouble::io("send"))?;
    let mut text = String::new();
    if stream.read_line(&mut text).map_err(Trouble::io("receive"))? == 0 {
        return Err(Trouble::new(
            Failure::ConnectionReset,
            "the server closed the connection",
        ));
    }
    let line: ServerLine = serde_json::from_str(&text).map_err(|error| garbled(format!("{error}: {text}")))?;
    let body = io::copy(&mut stream.by_ref().take(line.body as u64), &mut io::sink());
    let body = body.map_err(Trouble::io("receive body"))? as usize;
    if (line.nonce, line.received, body) != (question.nonce, question.body, question.reply) {
        return Err(garbled(format!("asked {question:?}, got {line:?} and {body} bytes")));
    }
    let socket = stream.get_ref();
    let local = socket.local_addr().map_err(Trouble::io("getsockname"))?;
    let peer = socket.peer_addr().map_err(Trouble::io("getpeername"))?;
    Ok(answer(line, local, peer, path_mtu(socket, local.is_ipv6())))
}

#[derive(serde::Deserialize)]
struct HttpBody {
    name: String,
    peer: SocketAddr,
}

fn http(stream: &mut BufReader<TcpStream>, dst: SocketAddr) -> Result<Answer, Trouble> {
    let reply = http_exchange(stream, dst, "/", false).map_err(Trouble::io("HTTP"))?;
    let garbled = |error| Trouble::new(Failure::Garbled, format!("{error}: {} {}", reply.status, reply.body));
    let body: HttpBody = serde_json::from_str(&reply.body).map_err(garbled)?;
    let socket = stream.get_ref();
    let local = socket.local_addr().map_err(Trouble::io("getsockname"))?;
    let peer = socket.peer_addr().map_err(Trouble::io("getpeername"))?;
    let line = ServerLine {
        name: body.name,
        peer: body.peer,
        body: 0,
        received: 0,
        nonce: 0,
    };
    Ok(Answer {
        body: reply.body,
        ..answer(line, local, peer, path_mtu(socket, local.is_ipv6()))
    })
}

fn http_exchange(
    stream: &mut BufReader<TcpStream>,
    host: SocketAddr,
    path: &str,
    close: bool,
) -> io::Result<HttpReply> {
    let connection = if close { "close" } else { "keep-alive" };
    let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: {connection}\r\n\r\n");
    stream.get_mut().write_all(head.as_bytes())?;
    let (mut status, mut length, mut chunked) = (None, None, false);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if status.is_none() {
            status = Some(line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0));
        } else if let Some((name, value)) = line.split_once(':') {
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse::<u64>().ok(),
                "transfer-encoding" => chunked = value.trim().eq_ignore_ascii_case("chunked"),
                _ => {}
            }
        }
    }
    let mut body = Vec::new();
    if chunked {
        loop {
            let mut size = String::new();
            stream.read_line(&mut size)?;
            let size = u64::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
            stream.by_ref().take(size).read_to_end(&mut body)?;
            stream.read_line(&mut String::new())?;
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = length {
        stream.by_ref().take(length).read_to_end(&mut body)?;
    } else {
        stream.read_to_end(&mut body)?;
    }
    Ok(HttpReply {
        status: status.unwrap_or(0),
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

/// `GET path` on a connection of its own.
pub(super) fn http_get(addr: SocketAddr, path: &str, timeout_ms: u64) -> io::Result<HttpReply> {
    let timeout = Duration::from_millis(timeout_ms.max(1));
    let stream = TcpStream::connect_timeout(&addr, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    http_exchange(&mut BufReader::new(stream), addr, path, true)
}

fn udp(
    socket: &UdpSocket,
    question: Question,
    size: usize,
    dst: SocketAddr,
    connected: bool,
    timeout: Duration,
) -> Result<Answer, Trouble> {
    let garbled = |what: String| Trouble::new(Failure::Garbled, what);
    let mut bytes = serde_json::to_vec(&question).map_err(|error| garbled(error.to_string()))?;
    bytes.push(b'\n');
    bytes.resize(bytes.len().max(size), b'.');
    let sent = if connected {
        socket.send(&bytes)
    } else {
        socket.send_to(&bytes, dst)
    };
    sent.map_err(Trouble::io("send"))?;
    let mut buffer = vec![0; 1 << 16];
    let deadline = Instant::now() + timeout;
    loop {
        let (received, source) = socket.recv_from(&mut buffer).map_err(Trouble::io("receive"))?;
        let text = buffer[..received]
            .split(|&byte| byte == b'\n')
            .next()
            .unwrap_or_default();
        let line: ServerLine = serde_json::from_slice(text).map_err(|error| garbled(error.to_string()))?;
        if line.nonce != question.nonce {
            // The late answer to an earlier question on this socket.
            if Instant::now() > deadline {
                return Err(Trouble::new(
                    Failure::TimedOut,
                    "only answers to earlier questions came",
                ));
            }
            continue;
        }
        let least = text.len() + 1;
        if line.received != bytes.len() || received != least.max(question.reply) {
            return Err(garbled(format!(
                "sent {} bytes, got {received} bytes: {line:?}",
                bytes.len()
            )));
        }
        // On a connected socket recvmsg says the address that the kernel saw; getpeername is what the application asked.
        let peer = if connected {
            socket.peer_addr().map_err(Trouble::io("getpeername"))?
        } else {
            source
        };
        for (what, addr) in [("the answer came from", source), ("getpeername says", peer)] {
            if (addr.ip(), addr.port()) != (dst.ip(), dst.port()) {
                return Err(Trouble::new(
                    Failure::WrongSource,
                    format!("asked {dst}, {what} {addr}"),
                ));
            }
        }
        let local = socket.local_addr().map_err(Trouble::io("getsockname"))?;
        let mtu = if connected {
            path_mtu(socket, dst.is_ipv6())
        } else {
            None
        };
        return Ok(answer(line, local, peer, mtu));
    }
}

fn set_option(fd: &impl AsRawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let pointer = (&raw const value).cast();
    // SAFETY: `pointer` is valid for the size of an int for the duration of the call; `fd` is open.
    let code = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, pointer, size_of::<i32>() as u32) };
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn dont_fragment(socket: &Socket, v6: bool) -> io::Result<()> {
    if v6 {
        set_option(
            socket,
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DO,
        )?;
        set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)
    } else {
        set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)?;
        set_option(socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1)
    }
}

/// `IP_MTU` of a connected socket: what the kernel believes of the path, bytes.
fn path_mtu(fd: &impl AsRawFd, v6: bool) -> Option<u32> {
    let (level, name) = if v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU)
    };
    let (mut value, mut length) = (0i32, size_of::<i32>() as u32);
    // SAFETY: both pointers are valid for writes of the sizes given, for the duration of the call; `fd` is open.
    let code = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length) };
    (code == 0).then_some(value as u32)
}

/// The path MTU in the newest ICMP error on the socket's error queue, bytes.
fn error_queue_mtu(socket: &UdpSocket) -> Option<u32> {
    let mut mtu = None;
    let mut buffer = [0u8; 256];
    let mut control = nix::cmsg_space!([u8; 512]);
    loop {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let Ok(message) = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags) else {
            return mtu;
        };
        let Ok(messages) = message.cmsgs() else { return mtu };
        for part in messages {
            let (ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _)) = part else {
                continue;
            };
            if error.ee_errno == libc::EMSGSIZE as u32 {
                mtu = Some(error.ee_info);
            }
        }
    }
}

/// Sockets that stay open between requests.
#[derive(Default)]
pub(super) struct Kept {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<Mutex<Open>>>>,
}

impl Kept {
    pub(super) fn open(&self, ask: &Ask) -> Result<(u64, Answer), AskError> {
        let mut kept = None;
        let answer = timed(|| {
            let (mut socket, connect_us) = Open::connect(ask)?;
            let answer = socket.exchange(ask.send_bytes, ask.reply_bytes)?;
            kept = Some(socket);
            Ok(Answer { connect_us, ..answer })
        })?;
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.open).extend(kept.map(|socket| (id, Arc::new(Mutex::new(socket)))));
        Ok((id, answer))
    }

    pub(super) fn exchange(&self, id: u64, send: usize, reply: usize) -> Result<Result<Answer, AskError>, String> {
        let socket = lock(&self.open)
            .get(&id)
            .cloned()
            .ok_or_else(|| format!("no connection {id} is open here"))?;
        let mut socket = lock(&socket);
        Ok(timed(|| socket.exchange(send, reply)))
    }

    pub(super) fn close(&self, id: u64) -> Result<(), String> {
        lock(&self.open)
            .remove(&id)
            .map(drop)
            .ok_or_else(|| format!("no connection {id} is open here"))
    }
}
