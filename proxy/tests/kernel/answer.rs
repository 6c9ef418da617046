//! What the node answers for a service without endpoints.

use crate::{
    packet::{ACK, Body, FIN, Packet, RST, SYN},
    rig::{At, Outcome, REDIRECT},
};
use proxy_common::verdict::Verdict;

/// Bytes of a packet that an ICMP error quotes.
pub(crate) fn quote(packet: &Packet) -> Vec<u8> {
    let mut quote = packet.ip();
    quote.truncate(if packet.source.is_ipv4() { 28 } else { 48 });
    quote
}

/// Back to the sender; what the node sends to itself has no hardware addresses.
pub(crate) fn back(packet: &Packet, at: At) -> [u8; 12] {
    if matches!(at, At::OutOfNode | At::Loopback) {
        return [0; 12];
    }
    let [a, b, c, d, e, f, u, v, w, x, y, z] = packet.ethernet;
    [u, v, w, x, y, z, a, b, c, d, e, f]
}

/// RFC 9293 §3.10.7.1 for TCP, port unreachable (RFC 792, RFC 4443) for UDP.
pub(crate) fn rejection(packet: &Packet, at: At) -> Outcome {
    let body = match &packet.body {
        Body::Tcp {
            seq, ack, flags, data, ..
        } => {
            let length = data.len() as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
            let (seq, ack, flags) = if flags & ACK != 0 {
                (*ack, 0, RST)
            } else {
                (0, seq.wrapping_add(length), RST | ACK)
            };
            Body::Tcp {
                seq,
                ack,
                flags,
                window: 0,
                options: Vec::new(),
                data: Vec::new(),
            }
        }
        _ => {
            let (kind, code) = if packet.source.is_ipv4() { (3, 3) } else { (1, 4) };
            Body::Icmp {
                kind,
                code,
                rest: [0; 4],
                data: quote(packet),
            }
        }
    };
    let answer = Packet {
        ethernet: back(packet, at),
        id: 0,
        ..Packet::new(packet.destination, packet.source, body)
    };
    Outcome {
        action: REDIRECT,
        verdict: Verdict::RejectNoEndpoints,
        frame: answer.encode(),
    }
}
