//! Shows the service proxy at work: a small cluster in network namespaces, real servers, clients and agents.

mod examples;
mod expect;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use examples::{Examples, Frontend};
use expect::Expected;
use harness::{
    Actor, Agent, AgentOptions, Ask, Forwarding, Load, Topology, Transport, actor,
    addr::Family,
    report::{Align, Table, micros},
};
use serde::Serialize;
use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, process::ExitCode, time::Instant};

/// Builds a small cluster on this machine, runs an agent on each node, asks every service in every way, and changes
/// endpoints while requests run. Removes all that it made. Needs root.
///
/// The cluster: a client outside (203.0.113.10, 2001:db8:113::10), a router, and one node per 10.1.N.0/24 that the
/// manifests name (192.168.0.11, .12, …). Its pods are the endpoints in the manifests, and one more as a client. Load
/// balancer and external addresses are routed to node-a.
#[derive(Parser)]
#[allow(
    clippy::doc_markdown,
    reason = "these words are the help text, where backticks would show"
)]
#[command(
    name = "demo",
    after_help = "Examples:
  cargo xtask demo                                     a table on stdout, progress on stderr
  cargo xtask demo --output json | jq '.rows[0]'       the same for scripts
  cargo xtask demo -- --manifests my-services/         your own Services and EndpointSlices

Exit code: 0 if every line of the table holds, 1 if not, 2 if the demo could not run."
)]
struct Options {
    /// What to print on stdout
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
    /// Questions per line of the table
    #[arg(long, default_value_t = 200)]
    requests: usize,
    /// Endpoint changes while requests run
    #[arg(long, default_value_t = 200)]
    changes: usize,
    /// Folder of Services and EndpointSlices [default: deploy/examples]
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// How the agents forward translated packets
    #[arg(long, value_enum, default_value = "stack")]
    forwarding: ForwardingFlag,
    /// Translate every packet instead of sockets, as for clients that the agent's cgroup programs cannot see
    #[arg(long)]
    no_socket_lb: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Clone, Copy, ValueEnum)]
enum ForwardingFlag {
    Stack,
    Direct,
}

/// One line of the table.
#[derive(Serialize)]
struct Row {
    client: String,
    service: String,
    frontend: &'static str,
    address: SocketAddr,
    protocol: String,
    answered_by: BTreeMap<String, u64>,
    wrong: BTreeMap<String, u64>,
    failed: BTreeMap<String, u64>,
    expected: String,
    p50_us: u64,
    p99_us: u64,
    endpoint_changes: usize,
    ok: bool,
}

#[derive(Serialize)]
struct Report {
    rows: Vec<Row>,
    ok: bool,
}

fn main() -> ExitCode {
    if let Some(code) = actor::run_as_actor_if_asked() {
        return code;
    }
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<bool> {
    if !nix::unistd::geteuid().is_root() {
        bail!("making network namespaces and loading programs into the kernel needs root: run this with sudo");
    }
    harness::agent::binary()?;
    let folder = match &options.manifests {
        Some(folder) => folder.clone(),
        None => examples::default_folder()?,
    };
    let examples = Examples::read(&folder)?;
    let begun = Instant::now();
    let topology = examples.topology()?;
    eprintln!(
        "built {} nodes and {} pods in {} ms",
        topology.nodes().len(),
        topology.pods().count(),
        begun.elapsed().as_millis()
    );
    let forwarding = match options.forwarding {
        ForwardingFlag::Stack => Forwarding::Stack,
        ForwardingFlag::Direct => Forwarding::Direct,
    };
    let agent_options = AgentOptions {
        socket_lb: !options.no_socket_lb,
        forwarding,
        flags: Vec::new(),
    };
    examples.serve(&topology);
    let begun = Instant::now();
    let files: Vec<(&str, String)> = examples
        .files
        .iter()
        .map(|file| (file.name.as_str(), file.text()))
        .collect();
    let agents: Vec<Agent<'_>> = topology
        .nodes()
        .iter()
        .map(|node| Agent::start(node, &agent_options, &files))
        .collect::<Result<_>>()?;
    eprintln!(
        "started {} agents, services are in the kernel after {} ms",
        agents.len(),
        begun.elapsed().as_millis()
    );

    let mut rows = ask_everything(options, &examples, &topology);
    rows.extend(change_under_load(options, &examples, &topology, &agents)?);
    for agent in &agents {
        eprintln!("stopping the agent on {}", agent.node().name);
    }
    drop(agents);
    drop(topology);
    eprintln!("removed namespaces, links, cgroups and files");
    let report = Report {
        ok: rows.iter().all(|row| row.ok) && !rows.is_empty(),
        rows,
    };
    print(options.output, &report)?;
    Ok(report.ok)
}

/// The three places that a request can come from, by name.
fn clients(topology: &Topology) -> Result<[(&'static str, &Actor); 3]> {
    let node = topology.nodes().first().context("no node")?;
    Ok([
        ("pod", &topology.pod(examples::CLIENT).actor),
        ("node", &node.actor),
        ("outside", topology.outside()),
    ])
}

fn ask_everything(options: &Options, examples: &Examples, topology: &Topology) -> Vec<Row> {
    let mut rows = Vec::new();
    let Ok(clients) = clients(topology) else { return rows };
    for frontend in examples.frontends(topology) {
        for (name, client) in clients {
            let expected = expect::expected(examples, &frontend, name);
            if expected == Expected::Unroutable {
                continue;
            }
            eprintln!("{name} asks {} {} {}", frontend.service, frontend.kind, frontend.addr);
            let mut ask = Ask::new(frontend.transport, frontend.addr);
            let mut count = options.requests;
            if !matches!(expected, Expected::AnyOf(_) | Expected::OneOf(_)) {
                // Nobody answers, and a dropped packet takes the whole timeout.
                ask.timeout_ms = 500;
                count = 4;
            }
            let seen = client.ask_many(&ask, count, 4);
            rows.push(Row {
                client: name.to_string(),
                service: frontend.service.clone(),
                frontend: frontend.kind,
                address: frontend.addr,
                protocol: frontend.transport.to_string(),
                ok: expected.holds(&seen),
                wrong: BTreeMap::new(),
                p50_us: seen.percentile_us(50.0),
                p99_us: seen.percentile_us(99.0),
                answered_by: seen.by_server,
                failed: seen.failed,
                expected: expected.to_string(),
                endpoint_changes: 0,
            });
        }
    }
    rows
}

/// Requests through every kind of frontend of one service, while its endpoints change.
fn change_under_load(
    options: &Options,
    examples: &Examples,
    topology: &Topology,
    agents: &[Agent<'_>],
) -> Result<Vec<Row>> {
    if options.changes == 0 {
        return Ok(Vec::new());
    }
    let Some(service) = examples.busiest() else {
        eprintln!("no service has two endpoints to change between");
        return Ok(Vec::new());
    };
    let frontends = examples.frontends(topology);
    let mut loads = Vec::new();
    for frontend in frontends.iter().filter(|frontend| frontend.service == service) {
        for (name, client) in clients(topology)? {
            // One load per client and family, each through another kind of frontend where there is a choice.
            let wanted = matches!(
                (name, frontend.kind),
                ("pod" | "node", "ClusterIP") | ("outside", "LoadBalancer")
            );
            if wanted
                && !loads
                    .iter()
                    .any(|(other, taken, _): &(_, &Frontend, _)| *other == name && taken.family == frontend.family)
            {
                let ask = Ask::new(frontend.transport, frontend.addr);
                let load = Load {
                    workers: 1,
                    pause_us: 500,
                    ..Load::new(ask, examples.servers(service))
                };
                loads.push((name, frontend, client.load(load)));
            }
        }
    }
    eprintln!(
        "changing the endpoints of {service} {} times while {} clients ask",
        options.changes,
        loads.len()
    );
    for step in 1..=options.changes {
        for (file, text) in examples.with_endpoints(service, step) {
            for agent in agents {
                agent.apply(&file, &text)?;
            }
        }
    }
    let rows = loads.into_iter().map(|(name, frontend, load)| {
        let tally = load.stop();
        Row {
            client: name.to_string(),
            service: service.to_string(),
            frontend: frontend.kind,
            address: frontend.addr,
            protocol: frontend.transport.to_string(),
            ok: tally.is_clean(),
            p50_us: harness::proto::percentile(&tally.latencies_us, 50.0),
            p99_us: harness::proto::percentile(&tally.latencies_us, 99.0),
            answered_by: tally.ok,
            wrong: tally.wrong,
            failed: tally.failed,
            expected: "its endpoints".to_string(),
            endpoint_changes: options.changes,
        }
    });
    Ok(rows.collect())
}

fn print(output: Output, report: &Report) -> Result<()> {
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(report)?);
        return Ok(());
    }
    let latency = |row: &Row, us: u64| {
        if row.answered_by.is_empty() {
            String::new()
        } else {
            micros(us)
        }
    };
    let counts = |counts: &BTreeMap<String, u64>| {
        counts
            .iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    for (title, changing) in [
        ("Every service, asked from everywhere", false),
        ("While endpoints change", true),
    ] {
        let mut table = Table::new(&[
            ("FROM", Align::Left),
            ("SERVICE", Align::Left),
            ("FRONTEND", Align::Left),
            ("ADDRESS", Align::Left),
            ("OVER", Align::Left),
            ("ANSWERED BY", Align::Left),
            ("P50", Align::Right),
            ("P99", Align::Right),
            ("", Align::Left),
        ]);
        let mut any = false;
        for row in report.rows.iter().filter(|row| (row.endpoint_changes > 0) == changing) {
            any = true;
            let mut answered = counts(&row.answered_by);
            for (what, map) in [("wrong", &row.wrong), ("failed", &row.failed)] {
                if !map.is_empty() {
                    let comma = if answered.is_empty() { "" } else { "; " };
                    answered += &format!("{comma}{what}: {}", counts(map));
                }
            }
            let verdict = if row.ok {
                "ok".to_string()
            } else {
                format!("WRONG: expected {}", row.expected)
            };
            table.row([
                row.client.clone(),
                row.service.clone(),
                row.frontend.to_string(),
                row.address.to_string(),
                row.protocol.clone(),
                answered,
                latency(row, row.p50_us),
                latency(row, row.p99_us),
                verdict,
            ]);
        }
        if any {
            println!("{title}\n\n{}", table.render());
        }
    }
    let wrong = report.rows.iter().filter(|row| !row.ok).count();
    let verdict = if report.ok {
        "every line holds".to_string()
    } else {
        format!("{wrong} lines do not hold")
    };
    println!(
        "{}: P50 and P99 are of connect (UDP: of the answer); {verdict}",
        report.rows.len()
    );
    Ok(())
}

/// Which transport a service port is asked over: HTTP stands for TCP.
fn transport(protocol: &str) -> Option<Transport> {
    match protocol {
        "TCP" => Some(Transport::Http),
        "UDP" => Some(Transport::Udp),
        _ => None,
    }
}

/// The family of an address.
fn family(ip: std::net::IpAddr) -> Family {
    if ip.is_ipv4() { Family::V4 } else { Family::V6 }
}
