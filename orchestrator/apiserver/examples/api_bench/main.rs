//! Measures a real `fairlead apiserver` process over TLS: start, idle, durable creates, watch delivery, lists, memory.
//! `cargo xtask bench api`, or with a binary of your own: `--example api_bench -- --server PATH`.

mod client;
mod report;
mod server;

use anyhow::{Context as _, Result, bail};
use report::{Report, Row};
use serde_json::{Value, json};
use server::Server;
use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::{sync::Barrier, task::JoinSet};

/// What is measured, and how much of it.
struct Options {
    server: PathBuf,
    starts: usize,
    rounds: usize,
    seconds: f64,
    watchers: usize,
    pods: usize,
    json: bool,
}

const HELP: &str = "Measures an API server.

  --server PATH     the program [target/release/fairlead]
  --starts N        starts that are timed [7]
  --rounds N        rounds of each rate; the median counts [5]
  --seconds S       length of a round [2]
  --watchers N      watchers at once [1000]
  --pods N          pods for the memory measurement, 0 leaves it out [100000]
  --output json     one JSON document instead of a table";

fn options() -> Result<Option<Options>> {
    let mut options = Options {
        server: "target/release/fairlead".into(),
        starts: 7,
        rounds: 5,
        seconds: 2.0,
        watchers: 1000,
        pods: 100_000,
        json: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        if flag == "--help" || flag == "-h" {
            return Ok(None);
        }
        let value = arguments
            .next()
            .with_context(|| format!("{flag} needs a value; see --help"))?;
        let number = || value.parse().with_context(|| format!("{flag} {value:?} is no number"));
        match flag.as_str() {
            "--server" => options.server = value.into(),
            "--starts" => options.starts = number()?,
            "--rounds" => options.rounds = number()?,
            "--seconds" => {
                options.seconds = value
                    .parse()
                    .with_context(|| format!("{flag} {value:?} is no number"))?;
            }
            "--watchers" => options.watchers = number()?,
            "--pods" => options.pods = number()?,
            "--output" => options.json = value == "json",
            _ => bail!("{flag} is not known; see --help"),
        }
    }
    Ok(Some(options))
}

#[tokio::main]
async fn main() -> Result<()> {
    let Some(options) = options()? else {
        println!("{HELP}");
        return Ok(());
    };
    let mut report = Report::default();
    starts(&options, &mut report).await?;
    let server = Server::start(&options.server).await?;
    idle(&server, &mut report).await?;
    creates(&options, &server, &mut report).await?;
    for watchers in [1, options.watchers] {
        watches(&server, watchers, &mut report).await?;
    }
    server.stop().await?;
    let server = Server::start(&options.server).await?;
    lists(&options, server, &mut report).await?;
    print!("{}", if options.json { report.json() } else { report.text() });
    Ok(())
}

fn say(text: &str) {
    eprintln!("{text} …");
}

/// Process start to the first 200 of `/readyz`: with an empty directory and with one that a server left behind.
async fn starts(options: &Options, report: &mut Report) -> Result<()> {
    say("starting servers");
    let (mut first, mut again) = (Vec::new(), Vec::new());
    for _ in 0..options.starts {
        let mut server = Server::start(&options.server).await?;
        first.push(server.ready_after.as_secs_f64() * 1e3);
        server = server.restart().await?;
        again.push(server.ready_after.as_secs_f64() * 1e3);
        server.stop().await?;
    }
    report.add(Row::of("start to ready, empty directory", "ms", &first));
    report.add(Row::of("start to ready, again", "ms", &again));
    Ok(())
}

/// Memory and processor time of a server that nobody asks anything.
async fn idle(server: &Server, report: &mut Report) -> Result<()> {
    say("idling");
    const REST: Duration = Duration::from_secs(5);
    tokio::time::sleep(REST).await;
    let before = server.cpu_ms()?;
    tokio::time::sleep(REST).await;
    let spent = server.cpu_ms()? - before;
    report.add(Row::one("idle memory", "MB", server.resident_mb()?));
    report.add(Row::one(
        "idle processor time",
        "% of one core",
        spent / REST.as_secs_f64() / 10.0,
    ));
    Ok(())
}

fn config_map(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "key": "x".repeat(64) } })
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Durable creates by clients of one connection each, which wait for their answer.
async fn creates(options: &Options, server: &Server, report: &mut Report) -> Result<()> {
    let names = Arc::new(AtomicUsize::new(0));
    for clients in [1, 16, 128] {
        say(&format!("creating with {clients} clients"));
        let (mut rates, mut slow) = (Vec::new(), Vec::new());
        for _ in 0..options.rounds {
            let gate = Arc::new(Barrier::new(clients + 1));
            let mut work = JoinSet::new();
            for _ in 0..clients {
                let mut client = server.client().await?;
                let (names, gate, seconds) = (Arc::clone(&names), Arc::clone(&gate), options.seconds);
                work.spawn(async move {
                    gate.wait().await;
                    let ends = Instant::now() + Duration::from_secs_f64(seconds);
                    let mut took = Vec::new();
                    while Instant::now() < ends {
                        let name = format!("bench-{}", names.fetch_add(1, Ordering::Relaxed));
                        let begun = Instant::now();
                        client.post(MAPS, &config_map(&name)).await?;
                        took.push(begun.elapsed().as_secs_f64() * 1e3);
                    }
                    anyhow::Ok(took)
                });
            }
            gate.wait().await;
            let begun = Instant::now();
            let mut all = Vec::new();
            while let Some(took) = work.join_next().await {
                all.extend(took??);
            }
            rates.push(all.len() as f64 / begun.elapsed().as_secs_f64());
            slow.push(report::percentile(&mut all, 0.99));
        }
        report.add(Row::of(
            &format!("durable creates, {clients} clients"),
            "per second",
            &rates,
        ));
        report.add(Row::of(
            &format!("durable creates, {clients} clients, p99"),
            "ms",
            &slow,
        ));
    }
    Ok(())
}

/// Changes whose delivery is timed.
const CHANGES: usize = 200;

/// From before the create is sent to after its event was read, by every watcher, in this process' clock.
async fn watches(server: &Server, watchers: usize, report: &mut Report) -> Result<()> {
    say(&format!("watching with {watchers} watchers"));
    let clock = Instant::now();
    let path = format!(
        "/api/v1/namespaces/kube-public/configmaps?watch=true&resourceVersion={}",
        server.client().await?.revision().await?
    );
    let mut work = JoinSet::new();
    for _ in 0..watchers {
        let mut events = server.client().await?.watch(&path).await?;
        work.spawn(async move {
            let mut took = Vec::with_capacity(CHANGES);
            while took.len() < CHANGES {
                let event = events.next().await?;
                let sent: f64 = event["object"]["data"]["sent"]
                    .as_str()
                    .and_then(|it| it.parse().ok())
                    .unwrap_or(0.0);
                took.push((clock.elapsed().as_secs_f64() - sent) * 1e3);
            }
            anyhow::Ok(took)
        });
    }
    let mut client = server.client().await?;
    for change in 0..CHANGES {
        let mut object = config_map(&format!("w{watchers}-{change}"));
        object["data"]["sent"] = json!(clock.elapsed().as_secs_f64().to_string());
        client
            .post("/api/v1/namespaces/kube-public/configmaps", &object)
            .await?;
        // Deliveries are timed one by one, not as a queue.
        tokio::time::sleep(Duration::from_millis(if watchers > 1 { 40 } else { 2 })).await;
    }
    let mut all = Vec::new();
    while let Some(took) = work.join_next().await {
        all.extend(took??);
    }
    let half = report::percentile(&mut all, 0.5);
    report.add(Row::one(
        &format!("create to event, {watchers} watchers, p50"),
        "ms",
        half,
    ));
    let most = report::percentile(&mut all, 0.99);
    report.add(Row::one(
        &format!("create to event, {watchers} watchers, p99"),
        "ms",
        most,
    ));
    Ok(())
}

/// A pod of some 2.9 kB, as a running one of a Deployment is.
fn pod(n: usize) -> Value {
    let mut pod: Value = serde_json::from_str(include_str!("pod.json")).unwrap_or_default();
    pod["metadata"]["name"] = json!(format!("web-5d8f9c7b64-{n:06}"));
    pod["spec"]["nodeName"] = json!(format!("node-{:04}", n % 1000));
    pod
}

const PODS: &str = "/api/v1/namespaces/default/pods";
const LISTED: usize = 10_000;
const CREATORS: usize = 64;

async fn make_pods(server: &Server, from: usize, to: usize) -> Result<()> {
    let next = Arc::new(AtomicUsize::new(from));
    let mut work = JoinSet::new();
    for _ in 0..CREATORS {
        let mut client = server.client().await?;
        let next = Arc::clone(&next);
        work.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= to {
                    return anyhow::Ok(());
                }
                client.post(PODS, &pod(n)).await?;
            }
        });
    }
    while let Some(done) = work.join_next().await {
        done??;
    }
    Ok(())
}

async fn lists(options: &Options, mut server: Server, report: &mut Report) -> Result<()> {
    let mut client = server.client().await?;
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
    client
        .post("/api/v1/namespaces/default/serviceaccounts", &account)
        .await?;
    say(&format!("creating {LISTED} pods"));
    make_pods(&server, 0, LISTED).await?;
    let mut took = Vec::new();
    let mut size = 0;
    for _ in 0..options.rounds.max(3) {
        let begun = Instant::now();
        size = client.get(PODS).await?.len();
        took.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    report.add(Row::of(&format!("list of {LISTED} pods"), "ms", &took));
    report.add(Row::one("that list", "MB", size as f64 / 1e6));
    if options.pods > LISTED {
        say(&format!("creating {} pods", options.pods));
        make_pods(&server, LISTED, options.pods).await?;
        report.add(Row::one(
            &format!("memory at {} pods", options.pods),
            "MB",
            server.resident_mb()?,
        ));
        server = server.restart().await?;
        report.add(Row::one(
            &format!("start to ready at {} pods", options.pods),
            "ms",
            server.ready_after.as_secs_f64() * 1e3,
        ));
        report.add(Row::one(
            &format!("memory at {} pods after that start", options.pods),
            "MB",
            server.resident_mb()?,
        ));
    }
    server.stop().await
}
