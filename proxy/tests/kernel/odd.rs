//! Packets that nobody sends, or only attackers: options, extension headers, cut short, of unknown kinds.

use crate::{
    answer::rejection,
    packet::{ACK, Body, FIN, Packet, RST, SYN, TCP, UDP, tuple},
    rig::{At, HOOKS, NEXT, REDIRECT, Rig, SHOT, on_node, same},
    trip::Trip,
    world::{ORIGINS, World},
};
use proxy::{
    model::{Family, Protocol},
    plan::trace::Origin,
};
use proxy_common::verdict::Verdict;

/// What stands between the IP header and ours: IPv4 options, or IPv6 extension headers (hop-by-hop, routing of a
/// spent kind, destination options), alone and together.
fn decorations(family: Family) -> Vec<Packet> {
    let any = "0.0.0.0:0".parse().unwrap();
    let plain = Packet::udp(any, any, b"");
    if family == Family::V4 {
        let options = [vec![1; 4], vec![148, 4, 0, 0, 1, 1, 1, 0], vec![1; 40]];
        return options
            .map(|options| Packet {
                options,
                ..plain.clone()
            })
            .to_vec();
    }
    let padding = |length: u8| {
        let mut header = vec![0, length, 1, 4];
        header.resize(8 * (usize::from(length) + 1), 0);
        header
    };
    let routing = vec![0, 0, 253, 0, 0, 0, 0, 0];
    let chains = [
        vec![(0, padding(0))],
        vec![(60, padding(3))],
        vec![(43, routing.clone())],
        vec![(0, padding(0)), (60, padding(1)), (43, routing), (60, padding(0))],
    ];
    let decorate = |extensions| Packet {
        extensions,
        ..plain.clone()
    };
    chains.map(decorate).to_vec()
}

fn decorated(packet: Packet, decoration: &Packet) -> Packet {
    Packet {
        options: decoration.options.clone(),
        extensions: decoration.extensions.clone(),
        ..packet
    }
}

#[test]
fn options_and_extension_headers_stay() {
    on_node("options_and_extension_headers_stay", |mut rig| {
        let mut port = 25_000;
        for direct in [false, true] {
            rig.set_direct(direct);
            for world in World::all() {
                for backend in [world.here(1), world.there(2)] {
                    world.serve(&mut rig, &[backend]);
                    for origin in ORIGINS {
                        for decoration in decorations(world.family) {
                            port += 1;
                            let client = world.client(origin, port);
                            let targets = world.targets(&rig, origin, client, &[backend]);
                            let first = decorated(world.first(client, world.vip()), &decoration);
                            let trip = Trip::open(&mut rig, origin, &first, &targets).unwrap();
                            trip.again(&mut rig).unwrap();
                            trip.answered(&mut rig).unwrap();
                            let answer = first.between(trip.source, trip.target).reply();
                            trip.answered_with(&mut rig, &decorated(answer, &decoration)).unwrap();
                        }
                    }
                }
            }
        }
    });
}

/// More extension headers than four, or headers that end past 1 KiB, or an unknown one: the kernel's to judge.
#[test]
fn a_long_chain_of_headers_passes() {
    on_node("a_long_chain_of_headers_passes", |mut rig| {
        for world in World::of(Protocol::Udp).filter(|world| world.family == Family::V6) {
            world.serve(&mut rig, &[world.here(1)]);
            let first = world.first(world.client(Origin::Pod, 25_000), world.vip());
            let small = (60, vec![0, 0, 1, 4, 0, 0, 0, 0]);
            let mut large = vec![0, 127, 1, 4];
            large.resize(1_024, 0);
            // Authentication header, no next header, an experiment.
            let chains = [
                vec![small.clone(); 5],
                vec![(60, large)],
                vec![(51, small.1.clone())],
                vec![(59, small.1.clone())],
                vec![(253, small.1)],
            ];
            for extensions in chains {
                let packet = Packet {
                    extensions,
                    ..first.clone()
                };
                rig.passes(At::FromPod, &packet, &[Verdict::NotTranslatable]).unwrap();
            }
        }
    });
}

/// Whatever a packet is cut down to: nothing crashes, what cannot be read passes as it came, and the rest is one of the
/// verdicts that the whole packet could have had, or a drop.
#[test]
fn every_length() {
    on_node("every_length", |mut rig| {
        for world in World::all() {
            for served in [true, false] {
                world.serve(&mut rig, &[world.here(1)][..usize::from(served)]);
                let first = world.first(world.client(Origin::Pod, 25_000), world.vip());
                let mut frames = vec![
                    first.encode(),
                    Packet::first(TCP, first.source, first.destination).encode(),
                    Packet::error(first.source.ip(), first.destination.ip(), [3, 3], [0; 4], &first.ip()).encode(),
                    Packet::error(first.source.ip(), first.destination.ip(), [1, 4], [0; 4], &first.ip()).encode(),
                    first.cut(1, 0, 16).encode(),
                    first.cut(1, 16, 64).encode(),
                ];
                for decoration in decorations(world.family) {
                    frames.push(decorated(first.clone(), &decoration).encode());
                }
                let head = if world.family == Family::V4 { 34 } else { 54 };
                for frame in frames {
                    for length in 0..=frame.len().min(80) {
                        for at in HOOKS {
                            let cut = &frame[..length];
                            match rig.try_run(at, cut, 0) {
                                // Less than an IP header is no packet for newer kernels, less than Ethernet's for none.
                                Err(error) => assert!(length < head, "{length} bytes: {error}"),
                                Ok(got) if matches!(got.verdict, Verdict::NotService | Verdict::NotTranslatable) => {
                                    assert_eq!((got.action, &got.frame[..]), (NEXT, cut), "{world:?} {at:?} {length}");
                                }
                                Ok(got) => {
                                    assert!(
                                        matches!(got.action, NEXT | SHOT | REDIRECT) && length >= head,
                                        "{world:?} {at:?} {length}: {got:?}"
                                    );
                                }
                            }
                        }
                    }
                }
            }
        }
    });
}

/// Any bytes at all behind the Ethernet header.
#[test]
fn noise() {
    on_node("noise", |mut rig| {
        let mut rng = proxy::testing::Rng::new(11);
        for world in World::all() {
            world.serve(&mut rig, &[world.here(1), world.there(2)]);
            let first = world.first(world.client(Origin::Pod, 25_000), world.vip());
            let frames = [
                first.encode(),
                first.cut(2, 0, 16).encode(),
                Packet::error(first.source.ip(), first.destination.ip(), [3, 3], [0; 4], &first.ip()).encode(),
                decorated(first.clone(), decorations(world.family).last().unwrap()).encode(),
            ];
            for _ in 0..3_000 {
                let mut frame = rng.pick(&frames);
                for _ in 0..=rng.below(4) {
                    let at = 14 + rng.below(frame.len() - 14);
                    frame[at] = rng.bits() as u8;
                }
                frame.truncate((frame.len() - rng.below(3) * rng.below(20)).max(54));
                let got = rig.run(rng.pick(&HOOKS), &frame);
                assert!(matches!(got.action, NEXT | SHOT | REDIRECT), "{got:?}");
                if matches!(got.verdict, Verdict::NotService | Verdict::NotTranslatable) {
                    assert_eq!((got.action, got.frame), (NEXT, frame));
                }
            }
        }
    });
}

/// Not IPv4, not IPv6: ARP, VLAN tags inside the packet, LLDP, lengths of IEEE 802.3, nothing.
#[test]
fn other_ethertypes_pass() {
    on_node("other_ethertypes_pass", |mut rig| {
        for world in World::all() {
            world.serve(&mut rig, &[world.here(1)]);
            let mut frame = world.first(world.client(Origin::Pod, 25_000), world.vip()).encode();
            for ethertype in [0x0806u16, 0x8100, 0x88a8, 0x88cc, 0x8847, 0x0026, 0x0000, 0xffff] {
                frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
                for at in HOOKS {
                    let got = rig.run(at, &frame);
                    assert_eq!(
                        (got.verdict, got.action, &got.frame),
                        (Verdict::NotTranslatable, NEXT, &frame)
                    );
                }
            }
        }
    });
}

/// A UDP datagram without a checksum (RFC 768) stays without; one whose checksum becomes zero carries 0xffff.
#[test]
fn udp_checksums_of_zero() {
    on_node("udp_checksums_of_zero", |mut rig| {
        for world in World::of(Protocol::Udp) {
            for (origin, port) in ORIGINS.into_iter().zip(25_000..) {
                let backend = world.there(2);
                world.serve(&mut rig, &[backend]);
                let client = world.client(origin, port);
                let targets = world.targets(&rig, origin, client, &[backend]);
                let first = Packet::udp(client, world.vip(), &[0; 2]);
                let trip = Trip::open(&mut rig, origin, &first, &targets).unwrap();
                // The data that makes the translated checksum zero.
                let translated = |data: u16| Packet::udp(trip.source, trip.target, &data.to_be_bytes());
                let data = (0..=u16::MAX)
                    .find(|data| translated(*data).transport()[6..8] == [0xff, 0xff])
                    .unwrap();
                trip.forward(&mut rig, &Packet::udp(client, world.vip(), &data.to_be_bytes()))
                    .unwrap();
                let answer = |data: u16| Packet::udp(world.vip(), client, &data.to_be_bytes());
                let data = (0..=u16::MAX)
                    .find(|data| answer(*data).transport()[6..8] == [0xff, 0xff])
                    .unwrap();
                trip.answered_with(&mut rig, &Packet::udp(trip.target, trip.source, &data.to_be_bytes()))
                    .unwrap();
                let body = Body::Udp {
                    checksum: false,
                    data: b"unchecked".to_vec(),
                };
                trip.forward(&mut rig, &Packet::new(client, world.vip(), body.clone()))
                    .unwrap();
                trip.answered_with(&mut rig, &Packet::new(trip.target, trip.source, body))
                    .unwrap();
            }
        }
    });
}

/// RST answers what a segment says (RFC 9293 §3.10.7.1), nothing answers a RST.
#[test]
fn resets() {
    on_node("resets", |mut rig| {
        for world in World::of(Protocol::Tcp) {
            world.serve(&mut rig, &[]);
            for origin in ORIGINS {
                let client = world.client(origin, 25_000);
                let at = rig.entry(origin, world.vip().ip());
                for flags in [0, SYN, ACK, FIN, SYN | FIN, FIN | ACK] {
                    for data in [&b""[..], b"x", b"some data"] {
                        let packet = Packet::tcp(client, world.vip(), flags, data);
                        same(&rejection(&packet, at), &rig.run(at, &packet.encode())).unwrap();
                        for decoration in decorations(world.family) {
                            let packet = decorated(packet.clone(), &decoration);
                            same(&rejection(&packet, at), &rig.run(at, &packet.encode())).unwrap();
                        }
                    }
                }
                for flags in [RST, RST | ACK] {
                    let got = rig.run(at, &Packet::tcp(client, world.vip(), flags, b"").encode());
                    assert_eq!((got.verdict, got.action), (Verdict::RejectNoEndpoints, SHOT));
                }
                // An answer is for whoever asked.
                let answer = Packet::tcp(client, world.vip(), SYN | ACK, b"");
                rig.passes(at, &answer, &[Verdict::NotService]).unwrap();
            }
        }
    });
}

/// Ethernet pads short frames; padding is no data, and stays behind when the packet is answered.
#[test]
fn padding_is_no_data() {
    on_node("padding_is_no_data", |mut rig| {
        for world in World::of(Protocol::Tcp).filter(|world| world.family == Family::V4) {
            let client = world.client(Origin::Outside, 25_000);
            let body = Body::Tcp {
                seq: 1_000,
                ack: 0,
                flags: SYN,
                window: 1_024,
                options: Vec::new(),
                data: Vec::new(),
            };
            let packet = Packet::new(client, world.vip(), body);
            let mut frame = packet.encode();
            assert_eq!(frame.len(), 54);
            frame.resize(60, 0);
            world.serve(&mut rig, &[]);
            same(&rejection(&packet, At::FromNet), &rig.run(At::FromNet, &frame)).unwrap();
            world.serve(&mut rig, &[world.here(1)]);
            let got = rig.run(At::FromNet, &frame);
            let (source, target) = tuple(&got.frame);
            assert_eq!(got.frame[..54], packet.between(source, target).encode());
        }
    });
}

/// A known wrong answer: an ICMP error would have to quote a header of variable length, so nobody is told.
#[test]
fn datagrams_with_options_are_rejected_silently() {
    on_node("datagrams_with_options_are_rejected_silently", |mut rig| {
        for world in World::of(Protocol::Udp) {
            world.serve(&mut rig, &[]);
            for decoration in decorations(world.family) {
                let packet = decorated(world.first(world.client(Origin::Pod, 25_000), world.vip()), &decoration);
                assert_eq!(packet.protocol(), UDP);
                let got = rig.run(At::FromPod, &packet.encode());
                assert_eq!((got.verdict, got.action), (Verdict::DropHelperFailed, SHOT));
            }
        }
    });
}

/// The rejections of all origins, forwarded up the stack or directly.
#[test]
fn rejections() {
    on_node("rejections", |mut rig: Rig| {
        for direct in [false, true] {
            rig.set_direct(direct);
            for world in World::all() {
                world.serve(&mut rig, &[]);
                for origin in ORIGINS {
                    for frontend in [world.vip(), world.external(), world.node_port()] {
                        for data in [0, 1, 7, 8, 9, 100, 1_400] {
                            let client = world.client(origin, 25_000);
                            let packet = match world.protocol {
                                Protocol::Tcp => Packet::tcp(client, frontend, SYN, &vec![5; data]),
                                _ => Packet::udp(client, frontend, &vec![5; data]),
                            };
                            let at = rig.entry(origin, frontend.ip());
                            same(&rejection(&packet, at), &rig.run(at, &packet.encode()))
                                .unwrap_or_else(|error| panic!("{world:?} {origin:?} {frontend}: {error}"));
                        }
                    }
                }
            }
        }
    });
}
