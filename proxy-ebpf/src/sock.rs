//! Socket load balancing: a socket that connects or sends to a frontend is given a backend at once, so that its packets
//! need no translation. An accelerator only: whatever it leaves alone, TC decides.
//!
//! Left to TC: connected UDP (a connected socket has no later hook, so it could not leave a backend that went away),
//! and frontends whose policy needs the packet's source (source ranges, affinity) or has no endpoint (TC answers).

use crate::{
    count::count,
    family::{Family, Ipv4, Ipv6, words},
    flow,
    maps::NODE,
    packet::{self, TCP, UDP},
};
use aya_ebpf::{bindings::bpf_sock_addr, helpers::generated::bpf_get_socket_cookie, programs::SockAddrContext};
use proxy_common::{
    abi::{FlowKey, Frontend, Port, Slot, SocketFrontend, SocketKey, Stream, V4, V6, backend_flags, frontend_flags},
    select,
    verdict::Verdict,
};

const SOCK_STREAM: u32 = 1;

/// Flags of a frontend that only TC can honour.
const NEEDS_PACKET: u32 = frontend_flags::SOURCE_RANGES
    | frontend_flags::INTERNAL_DROP
    | frontend_flags::INTERNAL_REJECT
    | frontend_flags::MASQUERADE;

/// The call.
#[derive(Clone, Copy)]
pub(crate) struct Call(pub(crate) *mut bpf_sock_addr);

impl Call {
    #[inline(always)]
    fn cookie(self) -> u64 {
        // SAFETY: valid context.
        unsafe { bpf_get_socket_cookie(self.0.cast()) }
    }

    #[inline(always)]
    fn context(self) -> SockAddrContext {
        SockAddrContext::new(self.0)
    }

    #[inline(always)]
    fn stream(self) -> bool {
        // SAFETY: the verifier checks context reads.
        unsafe { (*self.0).type_ == SOCK_STREAM }
    }

    #[inline(always)]
    fn port(self) -> Port {
        // SAFETY: as above; the port is 16 bits in network order at the start of the field.
        let [a, b, _, _] = unsafe { (*self.0).user_port }.to_ne_bytes();
        [a, b]
    }

    #[inline(always)]
    fn set_port(self, port: Port) {
        // SAFETY: the verifier checks context writes.
        unsafe { (*self.0).user_port = u32::from_ne_bytes([port[0], port[1], 0, 0]) };
    }

    #[inline(always)]
    fn v4(self) -> V4 {
        // SAFETY: the verifier checks context reads.
        unsafe { (*self.0).user_ip4 }.to_ne_bytes()
    }

    #[inline(always)]
    fn set_v4(self, addr: &V4) {
        // SAFETY: the verifier checks context writes.
        unsafe { (*self.0).user_ip4 = u32::from_ne_bytes(*addr) };
    }

    #[inline(always)]
    fn v6_words(self) -> [u32; 4] {
        // SAFETY: the verifier wants single-word context reads.
        unsafe {
            let words = core::ptr::addr_of!((*self.0).user_ip6).cast::<u32>();
            [
                words.read_volatile(),
                words.add(1).read_volatile(),
                words.add(2).read_volatile(),
                words.add(3).read_volatile(),
            ]
        }
    }

    #[inline(always)]
    fn set_v6_words(self, value: [u32; 4]) {
        // SAFETY: as above, writes.
        unsafe {
            let words = core::ptr::addr_of_mut!((*self.0).user_ip6).cast::<u32>();
            words.write_volatile(value[0]);
            words.add(1).write_volatile(value[1]);
            words.add(2).write_volatile(value[2]);
            words.add(3).write_volatile(value[3]);
        }
    }
}

#[inline(always)]
fn bytes(words: [u32; 4]) -> V6 {
    let [a, b, c, d] = [
        words[0].to_ne_bytes(),
        words[1].to_ne_bytes(),
        words[2].to_ne_bytes(),
        words[3].to_ne_bytes(),
    ];
    [
        a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3],
    ]
}

/// `::ffff:0:0/96`: an IPv6 socket that speaks IPv4 (RFC 4291, 2.5.5.2).
#[inline(always)]
fn mapped(words: [u32; 4]) -> Option<V4> {
    (words[0] == 0 && words[1] == 0 && words[2] == 0xffffu32.to_be()).then_some(words[3].to_ne_bytes())
}

#[inline(always)]
fn socket_key<F: Family>(cookie: u64, addr: F::Addr, port: Port) -> SocketKey<F::Addr> {
    SocketKey {
        cookie: cookie.to_ne_bytes(),
        addr,
        port,
        pad: [0; 2],
    }
}

/// A backend for this socket, remembered so that the application keeps seeing the frontend.
#[inline(always)]
fn choose<F: Family>(call: Call, addr: F::Addr, port: Port, stream: bool) -> Option<(F::Addr, Port)> {
    let protocol = if stream { TCP } else { UDP };
    let tuple = FlowKey {
        src: F::ZERO,
        dst: addr,
        sport: [0; 2],
        dport: port,
        protocol,
        pad: [0; 3],
    };
    let mut copy = Frontend::default();
    let frontend = flow::frontend::<F>(&tuple, &mut copy)?;
    if frontend.flags & NEEDS_PACKET != 0 || frontend.affinity_timeout_s != 0 {
        count(Verdict::SocketLeftToTc as u32);
        return None;
    }
    let cookie = call.cookie();
    let mut stuck = None;
    if !stream {
        // SAFETY: an LRU entry may be reused under us; the generation check rejects what does not fit.
        if let Some(peer) = unsafe { F::socket_peers().get(socket_key::<F>(cookie, addr, port)) } {
            let member = if frontend.flags & frontend_flags::INTERNAL_LOCAL != 0 {
                backend_flags::IN_LOCAL
            } else {
                backend_flags::IN_CLUSTER
            };
            let id = peer.backend;
            stuck = flow::backend::<F>(id, peer.generation)
                .filter(|backend| backend.flags & member != 0)
                .map(|backend| flow::Choice { id, backend });
        }
    }
    let choice = match stuck {
        Some(choice) => choice,
        None => {
            let seed = NODE.get(0)?.seed;
            let hash = select::mix(select::mix(cookie as u32 ^ seed) ^ (cookie >> 32) as u32 ^ F::fold(&addr));
            let choice = flow::pick::<F>(frontend.internal_set, frontend.internal_count, hash)?;
            if !stream {
                let peer = Slot {
                    backend: choice.id,
                    generation: choice.backend.generation,
                };
                // A failure costs stickiness of this socket's datagrams.
                let _ = F::socket_peers().insert(socket_key::<F>(cookie, addr, port), &peer, 0);
            }
            choice
        }
    };
    let backend = (choice.backend.addr, choice.backend.port);
    // Without the way back a datagram's answer would come from a stranger, and a stream's peer would be one: then TC
    // shall do it.
    if stream {
        remember_stream::<F>(call, addr, port, backend)?;
    } else {
        remember_datagrams::<F>(cookie, addr, port, backend)?;
    }
    count(Verdict::SocketTranslated as u32);
    Some(backend)
}

/// What `getpeername` shall say, kept in the socket. `None` if the socket's owner may not have more kernel memory.
#[inline(always)]
fn remember_stream<F: Family>(call: Call, addr: F::Addr, port: Port, backend: (F::Addr, Port)) -> Option<()> {
    let mut value = Stream {
        addr,
        backend: backend.0,
        port,
        backend_port: backend.1,
    };
    // SAFETY: the context is valid, and the helper copies the value.
    let stored = unsafe { F::streams().get_or_insert_ptr_mut(&call.context(), Some(&mut value)) };
    if stored.is_null() {
        return None;
    }
    // SAFETY: not null, so the kernel's; a socket connects under its lock. It may have been connected before.
    unsafe { packet::copy(&value, stored) };
    Some(())
}

/// What `recvmsg` shall say for datagrams of this backend.
#[inline(always)]
fn remember_datagrams<F: Family>(cookie: u64, addr: F::Addr, port: Port, backend: (F::Addr, Port)) -> Option<()> {
    let shown = SocketFrontend {
        addr,
        port,
        pad: [0; 2],
    };
    let key = socket_key::<F>(cookie, backend.0, backend.1);
    // SAFETY: only compared; an LRU entry that is reused under us is written anew.
    if unsafe { F::sockets().get(key) }.is_some_and(|old| old.addr == addr && old.port == port) {
        return Some(());
    }
    F::sockets().insert(key, &shown, 0).ok()
}

/// connect4, sendmsg4.
#[inline(always)]
pub(crate) fn outward_v4(call: Call, sends: bool) {
    let stream = call.stream();
    if stream == sends {
        return;
    }
    if let Some((addr, port)) = choose::<Ipv4>(call, call.v4(), call.port(), stream) {
        call.set_v4(&addr);
        call.set_port(port);
    }
}

/// connect6, sendmsg6.
#[inline(always)]
pub(crate) fn outward_v6(call: Call, sends: bool) {
    let stream = call.stream();
    if stream == sends {
        return;
    }
    let asked = call.v6_words();
    if let Some(addr) = mapped(asked) {
        if let Some((addr, port)) = choose::<Ipv4>(call, addr, call.port(), stream) {
            call.set_v6_words([asked[0], asked[1], asked[2], u32::from_ne_bytes(addr)]);
            call.set_port(port);
        }
    } else if let Some((addr, port)) = choose::<Ipv6>(call, bytes(asked), call.port(), stream) {
        call.set_v6_words(words(&addr));
        call.set_port(port);
    }
}

/// What the application shall see instead of this peer.
#[inline(always)]
fn shown<F: Family>(call: Call, addr: F::Addr, port: Port) -> Option<SocketFrontend<F::Addr>> {
    if call.stream() {
        // SAFETY: the context is valid.
        let stored = unsafe { F::streams().get_ptr_mut(&call.context()) };
        if stored.is_null() {
            return None;
        }
        // SAFETY: not null, so the kernel's for as long as the socket is in use.
        let stream = unsafe { *stored };
        return (stream.backend == addr && stream.backend_port == port).then_some(SocketFrontend {
            addr: stream.addr,
            port: stream.port,
            pad: [0; 2],
        });
    }
    // SAFETY: an LRU entry may be reused under us; copied at once.
    unsafe { F::sockets().get(socket_key::<F>(call.cookie(), addr, port)) }.copied()
}

/// recvmsg4, getpeername4.
#[inline(always)]
pub(crate) fn inward_v4(call: Call) {
    if let Some(frontend) = shown::<Ipv4>(call, call.v4(), call.port()) {
        call.set_v4(&frontend.addr);
        call.set_port(frontend.port);
    }
}

/// recvmsg6, getpeername6.
#[inline(always)]
pub(crate) fn inward_v6(call: Call) {
    let peer = call.v6_words();
    if let Some(addr) = mapped(peer) {
        if let Some(frontend) = shown::<Ipv4>(call, addr, call.port()) {
            call.set_v6_words([peer[0], peer[1], peer[2], u32::from_ne_bytes(frontend.addr)]);
            call.set_port(frontend.port);
        }
    } else if let Some(frontend) = shown::<Ipv6>(call, bytes(peer), call.port()) {
        call.set_v6_words(words(&frontend.addr));
        call.set_port(frontend.port);
    }
}
