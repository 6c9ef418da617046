//! Queries per second and their latency, one pinned client against one pinned server, in rounds that alternate.
//!
//! ```text
//! cargo run --release -p fairlead-dns --example dns_bench -- [--services 10000] [--rounds 5] [--against ADDR:PORT]
//! ```
//!
//! The server is this program again, on core 0 with one socket, over a stand-in for an API server with so many Services.
//! `--against` measures another server in the same rounds; it must have the same names (`svc-N.bench.svc.cluster.local`
//! at 10.128.0.0/9 by N, and a headless `pods.bench` with ten addresses).

use anyhow::Context as _;
use fairlead_dns::{Config, Http, Source, name::wire_of, wire::question};
use http::{Request, Response};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use serde_json::{Value, json};
use std::{
    convert::Infallible,
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Sockets of the client, so that the kernel has flows to spread.
const SOCKETS: usize = 8;
/// Questions that wait per socket when throughput is measured.
const WINDOW: usize = 16;
/// Length of a round.
const ROUND: Duration = Duration::from_secs(1);

struct Arguments {
    services: usize,
    rounds: usize,
    against: Option<SocketAddr>,
    serve: bool,
}

fn arguments() -> anyhow::Result<Arguments> {
    let mut all = Arguments {
        services: 10_000,
        rounds: 5,
        against: None,
        serve: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} takes a value"));
        match word.as_str() {
            "--services" => all.services = value()?.parse()?,
            "--rounds" => all.rounds = value()?.parse()?,
            "--against" => all.against = Some(value()?.parse()?),
            "--serve" => all.serve = true,
            _ => anyhow::bail!("unknown argument {word}"),
        }
    }
    Ok(all)
}

fn main() -> anyhow::Result<()> {
    let arguments = arguments()?;
    if arguments.serve {
        return serve(arguments.services);
    }
    pin(1);
    let mut server = Command::new(std::env::current_exe()?)
        .args(["--serve", "--services", &arguments.services.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(server.stdout.take().context("no output")?).read_line(&mut line)?;
    let own: SocketAddr = line.trim().parse().context("the server did not start")?;
    let mut servers = vec![("fairlead", own)];
    servers.extend(arguments.against.map(|address| ("other", address)));
    println!(
        "{:<10} {:<16} {:>12} {:>10} {:>10} {:>10}",
        "server", "questions", "queries/s", "p50 µs", "p99 µs", "lost"
    );
    for (kind, names) in kinds(arguments.services) {
        let mut results: Vec<Vec<Round>> = servers.iter().map(|_| Vec::new()).collect();
        for _ in 0..arguments.rounds {
            for (place, (_, address)) in servers.iter().enumerate() {
                results[place].push(round(*address, &names, WINDOW)?);
                let alone = round(*address, &names, 0)?;
                if let Some(last) = results[place].last_mut() {
                    last.latencies = alone.latencies;
                }
            }
        }
        for ((name, _), mut rounds) in servers.iter().zip(results) {
            rounds.sort_by(|a, b| a.rate.total_cmp(&b.rate));
            let mut latencies: Vec<u64> = rounds.iter().flat_map(|round| round.latencies.clone()).collect();
            latencies.sort_unstable();
            let at = |part: f64| {
                latencies
                    .get((latencies.len() as f64 * part) as usize)
                    .map_or(0.0, |it| *it as f64 / 1000.0)
            };
            let lost: usize = rounds.iter().map(|round| round.lost).sum();
            let median = rounds.get(rounds.len() / 2).map_or(0.0, |round| round.rate);
            println!(
                "{name:<10} {kind:<16} {median:>12.0} {:>10.1} {:>10.1} {lost:>10}",
                at(0.5),
                at(0.99)
            );
        }
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap_or_default();
    let memory = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap_or_default();
    println!("server {}", memory.split_whitespace().collect::<Vec<_>>().join(" "));
    // The server ends with its standard input.
    drop(server.stdin.take());
    server.wait()?;
    Ok(())
}

/// Binds this process to a core, where there are so many.
fn pin(core: usize) {
    let mut set = CpuSet::new();
    let _ = set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
}

/// Packets of each kind of question.
fn kinds(services: usize) -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let packet = |name: String, kind: u16| {
        wire_of(&name)
            .map(|wire| question(0, 0x0100, &wire, kind, None))
            .unwrap_or_default()
    };
    let mixed = |number: usize| (number * 7919) % services.max(1);
    let service = |number: usize| format!("svc-{number}.bench.svc.cluster.local");
    vec![
        ("A", (0..services).map(|it| packet(service(mixed(it)), 1)).collect()),
        (
            "half NXDOMAIN",
            (0..services)
                .map(|it| {
                    if it % 2 == 0 {
                        packet(service(mixed(it)), 1)
                    } else {
                        packet(format!("no-{it}.bench.svc.cluster.local"), 1)
                    }
                })
                .collect(),
        ),
        (
            "headless, 10",
            vec![packet("pods.bench.svc.cluster.local".to_owned(), 1)],
        ),
    ]
}

struct Round {
    rate: f64,
    lost: usize,
    latencies: Vec<u64>,
}

/// Asks for one round. `window` 0 asks one question at a time, for latency.
fn round(server: SocketAddr, names: &[Vec<u8>], window: usize) -> anyhow::Result<Round> {
    let sockets: Vec<UdpSocket> = (0..SOCKETS)
        .map(|_| {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.connect(server)?;
            if window > 0 {
                socket.set_nonblocking(true)?;
            } else {
                socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            }
            std::io::Result::Ok(socket)
        })
        .collect::<Result<_, _>>()?;
    let started = Instant::now();
    let (mut sent, mut received, mut latencies) = (0_usize, 0_usize, Vec::new());
    let mut waiting = [0_usize; SOCKETS];
    let mut last = started;
    let mut buffer = [0; 4096];
    while started.elapsed() < ROUND {
        for (socket, waiting) in sockets.iter().zip(&mut waiting) {
            if window == 0 {
                let at = Instant::now();
                socket.send(&names[sent % names.len()])?;
                sent += 1;
                if socket.recv(&mut buffer).is_ok() {
                    received += 1;
                    latencies.push(u64::try_from(at.elapsed().as_nanos()).unwrap_or(u64::MAX));
                }
                continue;
            }
            while *waiting < window && socket.send(&names[sent % names.len()]).is_ok() {
                sent += 1;
                *waiting += 1;
            }
            while socket.recv(&mut buffer).is_ok() {
                received += 1;
                *waiting = waiting.saturating_sub(1);
                last = Instant::now();
            }
        }
        // Lost datagrams would hold their places for ever.
        if last.elapsed() > Duration::from_millis(100) {
            waiting = [0; SOCKETS];
            last = Instant::now();
        }
    }
    Ok(Round {
        rate: received as f64 / started.elapsed().as_secs_f64(),
        lost: sent.saturating_sub(received).saturating_sub(SOCKETS * window),
        latencies,
    })
}

fn serve(services: usize) -> anyhow::Result<()> {
    pin(0);
    let client = kube::Client::new(tower::service_fn(move |request| api(services, request)), "default");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (sender, bound) = tokio::sync::oneshot::channel();
        let stop = tokio_util::sync::CancellationToken::new();
        let ready: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        let config = Config {
            corefile: Source::Text(".:53 {\n ready\n kubernetes cluster.local in-addr.arpa {\n ttl 30\n pods insecure\n }\n loadbalance\n}".to_owned()),
            listen: vec![(Ipv4Addr::LOCALHOST, 0).into()],
            ready: Http::At(ready),
            sockets: 1,
            bound: Some(sender),
            ..Config::default()
        };
        let server = tokio::spawn(fairlead_dns::run(config, client, stop.clone()));
        let bound = bound.await.context("the server did not start")?;
        let (address, ready) = (bound.dns[0], bound.ready.context("no /ready")?);
        while !is_ready(ready).await? {
            tokio::task::yield_now().await;
        }
        println!("{address}");
        // Ends when the client closes our input.
        tokio::task::spawn_blocking(|| std::io::stdin().lock().read_line(&mut String::new())).await??;
        stop.cancel();
        server.await?
    })
}

async fn is_ready(address: SocketAddr) -> anyhow::Result<bool> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream
        .write_all(b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer.starts_with("HTTP/1.1 200"))
}

/// Lists of the objects, and watches that say nothing.
async fn api(
    services: usize,
    request: Request<kube::client::Body>,
) -> Result<Response<kube::client::Body>, Infallible> {
    if request.uri().query().unwrap_or_default().contains("watch=true") {
        std::future::pending::<()>().await;
    }
    let metadata = |name: String| json!({"name": name, "namespace": "bench"});
    let items: Vec<Value> = match request.uri().path().rsplit('/').next() {
        Some("services") => (0..services)
            .map(|number| {
                let address = Ipv4Addr::from(0x0a80_0000 + u32::try_from(number).unwrap_or(0));
                json!({"metadata": metadata(format!("svc-{number}")), "spec": {"clusterIP": address, "ports": [{"name": "http", "port": 80}]}})
            })
            .chain([json!({"metadata": metadata("pods".to_owned()), "spec": {"clusterIP": "None"}})])
            .collect(),
        Some("namespaces") => vec![json!({"metadata": {"name": "bench"}})],
        Some("endpointslices") => {
            let endpoints: Vec<Value> = (0..10).map(|number| json!({"addresses": [format!("10.1.0.{number}")]})).collect();
            let labels = json!({"kubernetes.io/service-name": "pods"});
            vec![json!({"metadata": {"name": "pods-1", "namespace": "bench", "labels": labels}, "addressType": "IPv4", "endpoints": endpoints})]
        }
        _ => Vec::new(),
    };
    let list = json!({"metadata": {"resourceVersion": "1"}, "items": items});
    Ok(Response::new(kube::client::Body::from(list.to_string().into_bytes())))
}
