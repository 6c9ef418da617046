//! Servers that say who they are and whom they see.

use super::lock;
use crate::proto::{Question, ServerLine, Serving, Transport};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// Largest body either side may ask for, bytes: a mistake must not eat the machine.
const MAX_BODY: usize = 64 << 20;

#[derive(Default)]
struct Server {
    stopped: AtomicBool,
    /// Listening or datagram socket, to wake its thread.
    socket: Mutex<Option<Socket>>,
    /// Live connections, to cut them.
    connections: Mutex<HashMap<u64, TcpStream>>,
}

/// Running servers by id.
#[derive(Default)]
pub(super) struct Servers {
    next: AtomicU64,
    running: Mutex<HashMap<u64, Arc<Server>>>,
}

impl Servers {
    pub(super) fn start(&self, transport: Transport, listen: SocketAddr, name: String) -> io::Result<Serving> {
        let (kind, protocol) = match transport {
            Transport::Udp => (Type::DGRAM, Protocol::UDP),
            Transport::Tcp | Transport::Http => (Type::STREAM, Protocol::TCP),
        };
        let socket = Socket::new(Domain::for_address(listen), kind, Some(protocol))?;
        if listen.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if kind == Type::STREAM {
            socket.set_reuse_address(true)?;
        }
        socket.bind(&listen.into())?;
        let server = Arc::new(Server {
            socket: Mutex::new(Some(socket.try_clone()?)),
            ..Server::default()
        });
        let addr = socket.local_addr()?.as_socket().unwrap_or(listen);
        let running = Arc::clone(&server);
        if kind == Type::DGRAM {
            std::thread::spawn(move || datagrams(&running, &socket.into(), &name));
        } else {
            socket.listen(1024)?;
            std::thread::spawn(move || accept(&running, &socket.into(), transport, &name));
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.running).insert(id, server);
        Ok(Serving { id, addr })
    }

    pub(super) fn stop(&self, id: u64) -> Result<(), String> {
        let server = lock(&self.running)
            .remove(&id)
            .ok_or_else(|| format!("no server {id} runs here"))?;
        server.stopped.store(true, Ordering::SeqCst);
        if let Some(socket) = lock(&server.socket).take() {
            // Wakes the thread in accept or recv; an unconnected UDP socket says ENOTCONN and wakes all the same.
            let _ = socket.shutdown(Shutdown::Both);
        }
        for stream in lock(&server.connections).values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        Ok(())
    }
}

fn accept(server: &Arc<Server>, listener: &TcpListener, transport: Transport, name: &str) {
    for id in 0.. {
        let accepted = listener.accept();
        if server.stopped.load(Ordering::SeqCst) {
            return;
        }
        // ECONNABORTED and the like concern one connection.
        let Ok((stream, peer)) = accepted else { continue };
        let Ok(copy) = stream.try_clone() else { continue };
        lock(&server.connections).insert(id, copy);
        let (server, name) = (Arc::clone(server), name.to_string());
        std::thread::spawn(move || {
            // The client sees a connection end; it is the one that judges.
            let _ = match transport {
                Transport::Http => http(stream, peer, &name),
                Transport::Tcp | Transport::Udp => conversation(stream, peer, &name),
            };
            lock(&server.connections).remove(&id);
        });
    }
}

fn conversation(stream: TcpStream, peer: SocketAddr, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let question: Question = serde_json::from_str(&line)?;
        if question.body.max(question.reply) > MAX_BODY {
            return Err(io::Error::other("body too large"));
        }
        let received = io::copy(&mut reader.by_ref().take(question.body as u64), &mut io::sink())? as usize;
        let answer = ServerLine {
            name: name.to_string(),
            peer,
            body: question.reply,
            received,
            nonce: question.nonce,
        };
        let mut bytes = serde_json::to_vec(&answer)?;
        bytes.push(b'\n');
        bytes.resize(bytes.len() + question.reply, b'.');
        reader.get_mut().write_all(&bytes)?;
    }
}

fn http(stream: TcpStream, peer: SocketAddr, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    loop {
        let (mut line, mut close, mut first) = (String::new(), false, true);
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let field = line.trim_end().to_ascii_lowercase();
            close |= field == "connection: close" || (first && field.ends_with("http/1.0"));
            first = false;
            if field.is_empty() {
                break;
            }
        }
        let body = serde_json::json!({ "name": name, "peer": peer }).to_string();
        let connection = if close { "close" } else { "keep-alive" };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n",
            body.len() + 1
        );
        reader.get_mut().write_all(format!("{head}{body}\n").as_bytes())?;
        if close {
            return Ok(());
        }
    }
}

fn datagrams(server: &Server, socket: &UdpSocket, name: &str) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let received = socket.recv_from(&mut buffer);
        if server.stopped.load(Ordering::SeqCst) {
            return;
        }
        // An error here is an ICMP error about an earlier answer.
        let Ok((received, peer)) = received else { continue };
        let line = buffer[..received]
            .split(|&byte| byte == b'\n')
            .next()
            .unwrap_or_default();
        let Ok(question) = serde_json::from_slice::<Question>(line) else {
            continue;
        };
        let answer = ServerLine {
            name: name.to_string(),
            peer,
            body: 0,
            received,
            nonce: question.nonce,
        };
        let Ok(mut bytes) = serde_json::to_vec(&answer) else {
            continue;
        };
        bytes.push(b'\n');
        bytes.resize(bytes.len().max(question.reply.min(65_000)), b'.');
        let _ = socket.send_to(&bytes, peer);
    }
}
