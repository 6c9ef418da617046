//! The packet table and random worlds: `plan::trace`, the image and the kernel agree on every packet.

use crate::{
    answer::rejection,
    memory::now_s,
    packet::{Body, Packet, SCTP, SYN},
    rig::{NEXT, Outcome, Rig, SHOT, in_namespace, large, same},
    trip::Trip,
};
use proxy::{
    dataplane::ebpf::{
        image::Image,
        judge::{Judgement, Lookups, judge, judge_flow},
    },
    model::Protocol,
    plan::{
        compile::compile,
        trace::{self, Origin, State, TraceIndex, trace},
    },
    testing::{self, Case, Rng},
};
use proxy_common::{
    abi::{Affinity, BackendV4, BackendV6, V4, V6},
    select::flow_hash,
    verdict::Verdict,
};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

/// The frame of a packet of the table, from another port.
fn frame(packet: &trace::Packet, port: u16) -> Packet {
    let source = SocketAddr::new(packet.source.ip(), port);
    match packet.protocol {
        Protocol::Tcp => Packet::tcp(source, packet.destination, SYN, b""),
        Protocol::Udp => Packet::udp(source, packet.destination, b"a question"),
        Protocol::Sctp => {
            let mut data = Vec::new();
            data.extend(port.to_be_bytes());
            data.extend(packet.destination.port().to_be_bytes());
            // Verification tag, a checksum that nobody looks at, the head of an INIT chunk.
            data.extend([0, 0, 0, 0, 1, 2, 3, 4, 1, 0, 0, 20]);
            Packet::new(source, packet.destination, Body::Raw { protocol: SCTP, data })
        }
    }
}

/// The flow hash that the programs compute.
pub(crate) fn hash(packet: &Packet, seed: u32) -> u32 {
    let v4 = |addr: V4| u32::from_ne_bytes(addr);
    let v6 = |addr: V6| {
        let mut words = addr.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
        let mut next = |turn| words.next().unwrap().rotate_left(turn);
        next(0) ^ next(8) ^ next(16) ^ next(24)
    };
    let fold = |addr| match addr {
        IpAddr::V4(addr) => v4(addr.octets()),
        IpAddr::V6(addr) => v6(addr.octets()),
    };
    let ([a, b], [c, d]) = (
        packet.source.port().to_be_bytes(),
        packet.destination.port().to_be_bytes(),
    );
    let ports = u32::from_ne_bytes([a, b, c, d]);
    flow_hash(
        fold(packet.source.ip()),
        fold(packet.destination.ip()),
        ports,
        packet.protocol(),
        seed,
    )
}

/// Id and generation of a backend.
fn backend(image: &Image, addr: SocketAddr) -> Option<(u32, u32)> {
    let port = addr.port().to_be_bytes();
    match addr.ip() {
        IpAddr::V4(ip) => {
            let is = |entry: &BackendV4| entry.addr == ip.octets() && entry.port == port;
            let (id, entry) = image.backends_v4.iter().find(|(_, entry)| is(entry))?;
            Some((*id, entry.generation))
        }
        IpAddr::V6(ip) => {
            let is = |entry: &BackendV6| entry.addr == ip.octets() && entry.port == port;
            let (id, entry) = image.backends_v6.iter().find(|(_, entry)| is(entry))?;
            Some((*id, entry.generation))
        }
    }
}

/// Makes the programs remember what `state` says.
fn remember(rig: &mut Rig, image: &Image, packet: &trace::Packet, state: &State) {
    for ((client, to), stuck_to) in &state.affinity {
        let Some(frontend) = image.frontend(to.ip(), to.port(), packet.protocol) else {
            continue;
        };
        let set = match packet.origin {
            Origin::Outside => frontend.external_set,
            Origin::Pod | Origin::Host => frontend.internal_set,
        };
        // A backend that is no more: its id belongs to another now, under a later generation.
        let (backend, generation) = backend(image, *stuck_to).unwrap_or((1, u32::MAX));
        let affinity = Affinity {
            backend,
            generation,
            used_s: now_s(),
        };
        rig.stick(*client, set, &affinity);
    }
}

/// A frame that becomes nothing new.
fn as_it_was(frame: &Packet, action: i32, verdict: Verdict) -> Outcome {
    Outcome {
        action,
        verdict,
        frame: frame.encode(),
    }
}

/// Runs a packet, and the flow that it opens, through the kernel. Returns the backend that was chosen.
fn judge_in_kernel(
    rig: &mut Rig,
    packet: &trace::Packet,
    port: u16,
    verdict: &trace::Verdict,
) -> Result<Option<SocketAddr>, String> {
    let frame = frame(packet, port);
    let at = rig.entry(packet.origin, packet.destination.ip());
    let want = match verdict {
        _ if packet.protocol == Protocol::Sctp => as_it_was(&frame, NEXT, Verdict::NotTranslatable),
        trace::Verdict::Pass => as_it_was(&frame, NEXT, Verdict::NotService),
        trace::Verdict::DropNoLocalEndpoints => as_it_was(&frame, SHOT, Verdict::DropNoLocalEndpoints),
        trace::Verdict::DropSourceRange => as_it_was(&frame, SHOT, Verdict::DropSourceRange),
        trace::Verdict::Reject => rejection(&frame, at),
        trace::Verdict::Forward(targets) => {
            let trip = Trip::open(rig, packet.origin, &frame, targets)?;
            trip.keeps_port()?;
            trip.again(rig)?;
            trip.answered(rig)?;
            // An answer does not disturb the flow.
            trip.forward(rig, &frame)?;
            return Ok(Some(trip.target));
        }
    };
    same(&want, &rig.run(at, &frame.encode()))?;
    Ok(None)
}

/// What the image says, which must be what the plan says; except for SCTP, which it lacks.
fn judge_image(image: &Image, packet: &trace::Packet, state: &State, verdict: &trace::Verdict) -> Result<(), String> {
    let want = if packet.protocol == Protocol::Sctp {
        trace::Verdict::Pass
    } else {
        verdict.clone()
    };
    match judge(image, packet, state) {
        Judgement::Decided(got) if got == want => Ok(()),
        got => Err(format!("the image says {got:?}, the plan {want:?}")),
    }
}

/// The kernel took the backend on which the flow's hash falls.
fn chose_by_hash(
    rig: &Rig,
    image: &Image,
    packet: &trace::Packet,
    port: u16,
    chosen: SocketAddr,
) -> Result<(), String> {
    let hash = hash(&frame(packet, port), rig.node().seed);
    match judge_flow(Lookups::at(image), packet, hash) {
        Judgement::Decided(trace::Verdict::Forward(targets)) if targets[0].addr == chosen => Ok(()),
        got => Err(format!("the hash falls on {got:?}, the kernel chose {chosen}")),
    }
}

fn check(rig: &mut Rig, case: &Case, port: u16) -> Result<(), String> {
    let plan = compile(&case.map(), &case.node);
    let verdict = trace(&plan, &case.node, &case.packet, &case.state);
    if verdict != case.expected {
        return Err(format!("the plan says {verdict:?}, the table {:?}", case.expected));
    }
    rig.view = case.node.clone();
    let report = rig.follow(plan);
    let reported = report.skipped.iter().any(|skipped| skipped.reason.contains("SCTP"));
    let asked_for = case
        .services
        .iter()
        .flat_map(|service| &service.ports)
        .any(|port| port.protocol == Protocol::Sctp);
    if reported != asked_for {
        return Err(format!("SCTP is asked for: {asked_for}, reported: {reported}"));
    }
    let image = rig.image();
    judge_image(&image, &case.packet, &case.state, &verdict)?;
    remember(rig, &image, &case.packet, &case.state);
    let chosen = judge_in_kernel(rig, &case.packet, port, &verdict);
    let affinity = case.services.iter().any(|service| service.affinity_s.is_some());
    if affinity {
        rig.unstick();
    }
    match chosen? {
        Some(chosen) if case.state.affinity.is_empty() => chose_by_hash(rig, &image, &case.packet, port, chosen),
        _ => Ok(()),
    }
}

/// Two nodes, as `masqueradeAll` is decided when the programs are loaded.
fn nodes() -> [Rig; 2] {
    let plain = Rig::open(testing::node(), large());
    let masquerading = proxy::model::NodeView {
        masquerade_all: true,
        ..testing::node()
    };
    [plain, Rig::load(masquerading, large())]
}

/// No case meets the flows of another.
const FIRST_PORT: u16 = 15_000;

fn every_row(direct: bool) {
    let mut nodes = nodes();
    nodes.iter_mut().for_each(|rig| rig.set_direct(direct));
    let cases = testing::table();
    let mut wrong = Vec::new();
    for (case, port) in cases.iter().zip(FIRST_PORT..) {
        let rig = &mut nodes[usize::from(case.node.masquerade_all)];
        if let Err(error) = check(rig, case, port) {
            wrong.push(format!("{}: {error}", case.name));
        }
    }
    let shown = wrong[..wrong.len().min(20)].join("\n");
    assert!(wrong.is_empty(), "{} of {} rows\n{shown}", wrong.len(), cases.len());
}

#[test]
fn every_row_of_the_table() {
    in_namespace("every_row_of_the_table", || every_row(false));
}

#[test]
fn every_row_of_the_table_with_direct_forwarding() {
    in_namespace("every_row_of_the_table_with_direct_forwarding", || every_row(true));
}

/// Services, endpoints, packets and the node at random. Affinity is what the packets of one world left behind.
#[test]
fn random_worlds() {
    in_namespace("random_worlds", || {
        let mut nodes = nodes();
        let mut port = 1024;
        for seed in 0..150 {
            let (map, view) = testing::random_world(seed);
            let plan = compile(&map, &view);
            let rig = &mut nodes[usize::from(view.masquerade_all)];
            rig.view = view.clone();
            rig.set_direct(seed % 2 == 0);
            rig.unstick();
            rig.follow(plan.clone());
            let image = rig.image();
            let index = TraceIndex::new(&plan);
            // A state is about one protocol.
            let mut states: HashMap<Protocol, State> = HashMap::new();
            let mut rng = Rng::new(seed);
            for _ in 0..40 {
                let packet = testing::random_packet(&mut rng);
                let state = states.entry(packet.protocol).or_default();
                let verdict = index.trace(&view, &packet, state);
                port += 1;
                let outcome = judge_image(&image, &packet, state, &verdict)
                    .and_then(|()| judge_in_kernel(rig, &packet, port, &verdict));
                let chosen = outcome.unwrap_or_else(|error| panic!("seed {seed}, {packet:?}: {error}"));
                if let Some(chosen) = chosen {
                    state.affinity.insert((packet.source.ip(), packet.destination), chosen);
                }
            }
        }
    });
}

/// Chi-squared over ten equal backends, 20 000 flows, 9 degrees of freedom, p = 0.001. The seed is fixed.
#[test]
fn flows_spread_evenly() {
    in_namespace("flows_spread_evenly", || {
        let mut rig = Rig::open(testing::node(), large());
        let service = testing::service("web")
            .cluster_ip("10.96.0.10")
            .cluster_ip("fd00:10:96::10");
        let service = service.port("", 80, Protocol::Udp, None).build();
        let slices = ["10.1.1.", "fd00:10:1:1::"].map(|prefix| {
            let eps: Vec<_> = (10..20).map(|n| testing::Ep::there(&format!("{prefix}{n}"))).collect();
            testing::slice_with(
                prefix.trim_end_matches(['.', ':']),
                "web",
                &[("", 8080, Protocol::Udp)],
                &eps,
            )
        });
        rig.serve(&[service], &slices);
        for (client, vip) in [("10.1.0.", "10.96.0.10"), ("fd00:10:1::", "fd00:10:96::10")] {
            let mut seen: HashMap<SocketAddr, f64> = HashMap::new();
            for client in (0..4).map(|n| format!("{client}{}", 100 + n)) {
                for port in 0..5_000 {
                    let source = SocketAddr::new(client.parse().unwrap(), 30_000 + port);
                    let packet = Packet::udp(source, SocketAddr::new(vip.parse().unwrap(), 80), b"");
                    let got = rig.run(crate::rig::At::FromPod, &packet.encode());
                    assert_eq!(got.verdict, Verdict::NewFlow);
                    *seen.entry(crate::packet::tuple(&got.frame).1).or_default() += 1.0;
                }
            }
            let expected = 2_000.0;
            let chi2: f64 = seen.values().map(|n| (n - expected).powi(2) / expected).sum();
            assert_eq!(seen.len(), 10);
            assert!(chi2 < 27.88, "{vip}: chi2 = {chi2}, {seen:?}");
        }
    });
}
