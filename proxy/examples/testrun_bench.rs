//! Nanoseconds per packet of the TC programs, by `BPF_PROG_TEST_RUN`: no driver, no stack, no allocation of packets, so
//! the numbers are those of the programs alone. Needs root; attaches nothing.
//!
//! ```text
//! cargo run --release -p fairlead-proxy --example testrun_bench
//! ```
//!
//! The kernel runs a program many times on *one* packet, so the second run meets what the first one made of it. Two
//! services that are each other's backend keep the work going: a packet to A is sent to B's frontend, which sends it to
//! A's, and so on, for ever; the answers likewise. Addresses and ports change in every run, as in real life.
//!
//! A new flow is measured with a segment that has SYN and RST: each run opens a connection and ends it, so the next one
//! opens it anew. That finds the reply entry of its predecessor and replaces it, a little more than inserting one.
//!
//! The numbers are raw: the kernel's loop around the program is in them. One flow stays in the processor's caches, so on
//! a busy node a packet costs more.

use anyhow::{Context as _, Result, ensure};
use aya::programs::TestRunOptions;
use proxy::{
    dataplane::{
        Changed, Reconciler,
        ebpf::{EbpfDataplane, Options, Sizes},
    },
    model::{Change, Event, Protocol, ServiceMap},
    plan::compile::compile,
    testing::{self, Ep},
};
use proxy_common::{abi::Node, verdict::Verdict};
use std::net::{IpAddr, SocketAddr};

const RUNS: u32 = 1_000_000;
const ROUNDS: usize = 9;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// A packet in front of a program.
struct Case {
    name: &'static str,
    program: &'static str,
    /// What opens the flow, at `from_pod` unless the program is another's.
    opening: Option<(&'static str, Vec<u8>)>,
    frame: Vec<u8>,
    /// How the program counts it.
    verdict: Verdict,
}

fn frame(source: SocketAddr, destination: SocketAddr, protocol: Protocol, flags: u8) -> Vec<u8> {
    let l4 = if protocol == Protocol::Tcp { 20 } else { 8 };
    let mut bytes = vec![0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1];
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            bytes.extend([8, 0, 0x45, 0, 0, 20 + l4, 0, 0, 0x40, 0, 64, protocol.number(), 0, 0]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, l4, protocol.number(), 64]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
        }
        _ => unreachable!("one family per packet"),
    }
    bytes.extend(source.port().to_be_bytes());
    bytes.extend(destination.port().to_be_bytes());
    // Checksums need not be right to be updated; UDP's must not be zero.
    match protocol {
        Protocol::Tcp => bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0x12, 0x34, 0, 0]),
        _ => bytes.extend([0, 8, 0x12, 0x34]),
    }
    bytes
}

/// The packets of one family: client, frontend A, frontend B, and somebody who is no service.
fn cases(addrs: [&str; 4], family: [&'static str; 8]) -> Result<Vec<Case>> {
    let mut parsed = Vec::new();
    for addr in addrs {
        parsed.push(addr.parse::<IpAddr>()?);
    }
    let socket = |at: usize, port| SocketAddr::new(parsed[at], port);
    let (a, b, stranger) = (socket(1, 80), socket(2, 8080), socket(3, 80));
    let mut cases = Vec::new();
    for (protocol, names) in [(Protocol::Tcp, &family[..4]), (Protocol::Udp, &family[4..])] {
        let client = socket(0, 40_000);
        let opening = |program| Some((program, frame(client, a, protocol, SYN)));
        cases.push(Case {
            name: names[0],
            program: "from_pod",
            opening: opening("from_pod"),
            frame: frame(client, a, protocol, ACK),
            verdict: Verdict::Forward,
        });
        cases.push(Case {
            name: names[1],
            program: "to_pod",
            opening: opening("from_pod"),
            frame: frame(b, client, protocol, ACK),
            verdict: Verdict::Reply,
        });
        cases.push(Case {
            name: names[2],
            program: "from_pod",
            opening: None,
            frame: frame(client, stranger, protocol, ACK),
            verdict: Verdict::NotService,
        });
        let (program, client, flags, verdict) = match protocol {
            Protocol::Tcp => ("from_pod", socket(0, 40_001), SYN | RST, Verdict::NewFlow),
            // A socket of the node itself: the way out is looked up once a second, and used.
            _ => ("to_net", socket(0, 40_002), 0, Verdict::Forward),
        };
        cases.push(Case {
            name: names[3],
            program,
            opening: Some((program, frame(client, a, protocol, flags))),
            frame: frame(client, a, protocol, flags),
            verdict,
        });
    }
    Ok(cases)
}

/// A node with two services that are each other's backend, and `others` more.
fn node(others: usize) -> Result<Reconciler<EbpfDataplane>> {
    let mut map = ServiceMap::default();
    let mut serve = |name: &str, [v4, v6]: [&str; 2], port, targets: [&str; 2], target_port| {
        let mut service = testing::service(name).cluster_ip(v4).cluster_ip(v6);
        for (protocol, label) in [(Protocol::Tcp, "tcp"), (Protocol::Udp, "udp")] {
            service = service.port(label, port, protocol, None);
        }
        map.apply(Event::Service(Change::Apply(service.build())));
        for (n, target) in targets.iter().enumerate() {
            let ports = [("tcp", target_port, Protocol::Tcp), ("udp", target_port, Protocol::Udp)];
            let slice = testing::slice_with(&format!("{name}-{n}"), name, &ports, &[Ep::there(target)]);
            map.apply(Event::Slice(Change::Apply(slice)));
        }
    };
    let (a, b) = (["10.96.0.1", "fd00:10:96::1"], ["10.97.0.2", "fd00:10:97::2"]);
    serve("a", a, 80, b, 8080);
    serve("b", b, 8080, a, 80);
    for n in 0..others {
        let (high, low) = (n / 250, n % 250 + 1);
        serve(
            &format!("other-{n}"),
            [&format!("10.98.{high}.{low}"), &format!("fd00:10:98:{high:x}::{low:x}")],
            80,
            [&format!("10.2.{high}.{low}"), &format!("fd00:10:2:{high:x}::{low:x}")],
            8080,
        );
    }
    map.apply(Event::InitDone);
    let view = testing::node();
    let dataplane = EbpfDataplane::open(&Options {
        sizes: Sizes::default(),
        bpffs: None,
        cgroup: None,
        node: Node {
            seed: 7,
            lo_ifindex: 1,
            ..Node::default()
        },
        tcx: None,
        masquerade_all: false,
        log_level: 0,
    })?;
    let mut reconciler = Reconciler::new(dataplane);
    let report = reconciler.sync(&compile(&map, &view), &Changed::All)?;
    ensure!(report.deferred.is_empty(), "{:?}", report.deferred);
    Ok(reconciler)
}

/// Runs a program; returns the nanoseconds of one run.
fn run(node: &EbpfDataplane, program: &str, frame: &[u8], runs: u32) -> Result<u64> {
    let mut out = [0; 256];
    let options = TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        repeat: runs,
        ..TestRunOptions::new()
    };
    Ok(node.test_run(program, options)?.duration.as_nanos() as u64)
}

/// A packet that counts as translated must not leave as it came.
fn translates(node: &EbpfDataplane, case: &Case) -> Result<bool> {
    let mut out = [0; 256];
    let options = TestRunOptions {
        data_in: Some(&case.frame),
        data_out: Some(&mut out),
        ..TestRunOptions::new()
    };
    let length = node.test_run(case.program, options)?.data_size_out as usize;
    Ok(out[..length] != case.frame[..])
}

/// As [`run`], and every run must count as `verdict`.
fn measure(node: &EbpfDataplane, case: &Case) -> Result<u64> {
    if let Some((program, frame)) = &case.opening {
        run(node, program, frame, 2)?;
    }
    let passes = case.verdict == Verdict::NotService;
    ensure!(
        translates(node, case)? != passes,
        "{}: not what it is called",
        case.name
    );
    let count = |node: &EbpfDataplane| -> Result<u64> {
        let counters = node.counters()?;
        let found = counters.iter().find(|(verdict, _)| *verdict == case.verdict);
        Ok(found.context("a verdict without a counter")?.1)
    };
    let before = count(node)?;
    let nanoseconds = run(node, case.program, &case.frame, RUNS)?;
    let counted = count(node)? - before;
    ensure!(
        counted == u64::from(RUNS),
        "{}: {counted} of {RUNS} runs counted as {:?}",
        case.name,
        case.verdict
    );
    Ok(nanoseconds)
}

fn main() -> Result<()> {
    let v4 = [
        "IPv4 TCP, established",
        "IPv4 TCP, reply",
        "IPv4 TCP, not a service",
        "IPv4 TCP, new flow",
        "IPv4 UDP, established",
        "IPv4 UDP, reply",
        "IPv4 UDP, not a service",
        "IPv4 UDP, established, the node's own",
    ];
    let v6 = [
        "IPv6 TCP, established",
        "IPv6 TCP, reply",
        "IPv6 TCP, not a service",
        "IPv6 TCP, new flow",
        "IPv6 UDP, established",
        "IPv6 UDP, reply",
        "IPv6 UDP, not a service",
        "IPv6 UDP, established, the node's own",
    ];
    let mut cases = cases(["10.1.0.100", "10.96.0.1", "10.97.0.2", "10.1.1.9"], v4)?;
    cases.extend(self::cases(
        ["fd00:10:1::100", "fd00:10:96::1", "fd00:10:97::2", "fd00:10:1:1::9"],
        v6,
    )?);
    let nodes = [node(0)?, node(10_000)?];
    // By case and node; rounds alternate, so that what disturbs one disturbs the others too.
    let mut results = vec![[const { Vec::new() }; 2]; cases.len()];
    for _ in 0..ROUNDS {
        for (case, results) in cases.iter().zip(&mut results) {
            for (node, results) in nodes.iter().zip(results) {
                results.push(measure(node.dataplane(), case)?);
            }
        }
    }
    println!("ns per packet, {ROUNDS} rounds of {RUNS} runs: median (least)");
    println!("{:40} {:>14} {:>17}", "", "2 services", "10 002 services");
    for (case, results) in cases.iter().zip(&mut results) {
        let [few, many] = results.each_mut().map(|results| {
            results.sort_unstable();
            format!("{} ({})", results[ROUNDS / 2], results[0])
        });
        println!("{:40} {few:>14} {many:>17}", case.name);
    }
    Ok(())
}
