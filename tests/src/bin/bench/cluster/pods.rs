//! Pods of a cluster: one after the other, by kubectl, many at once, and their end.

use super::{
    Options, client,
    client::{Pods, Times},
    report::{Report, Row},
    stages,
};
use anyhow::{Context as _, Result, anyhow, ensure};
use harness::cluster::{IMAGE, kubectl};
use k8s_openapi::api::core::v1::Pod;
use std::{
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Aims: one pod after the other, and fifty at once.
const RUNNING_P50_AIM_MS: f64 = 350.0;
const RUNNING_P99_AIM_MS: f64 = 450.0;
const BURST: u32 = 50;
const BURST_AIM_S: f64 = 4.0;
/// What the container does: nothing, until it is told to end.
const WORDS: [&str; 3] = ["testbox", "sleep", "36000"];

/// Measures all of it from the node's network namespace, that of the process `node`.
///
/// # Errors
/// A pod does not run, or does not go.
pub(crate) fn measure(options: &Options, node: u32, kubeconfig: &Path, log: &Path, report: &mut Report) -> Result<()> {
    let inside = || -> Result<()> {
        client::enter(node)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(all(options, kubeconfig, log, report))
    };
    // A thread of its own: the rest of this program stays in its namespace.
    thread::scope(|scope| scope.spawn(inside).join()).map_err(|_| anyhow!("a thread panicked"))?
}

async fn all(options: &Options, kubeconfig: &Path, log: &Path, report: &mut Report) -> Result<()> {
    let mut pods = Pods::new(kubeconfig).await?;
    // The first one finds nothing in any cache; nobody meets it twice.
    let first = vec!["first".to_owned()];
    one_by_one(&mut pods, &first).await?;
    report.add(Row::one("first pod to running", "ms", running_ms(&pods, &first)?[0]));

    eprintln!("{} pods, one after the other …", options.pods);
    let names: Vec<String> = (0..options.pods).map(|n| format!("one-{n}")).collect();
    one_by_one(&mut pods, &names).await?;
    let since_sent = |name: &String, of: fn(&Times) -> Option<Instant>| {
        let times = pods
            .times
            .get(name)
            .with_context(|| format!("pod {name} was not made"))?;
        let at = of(times).with_context(|| format!("pod {name} was not followed"))?;
        anyhow::Ok(ms(at - times.sent))
    };
    let every = |of: fn(&Times) -> Option<Instant>| {
        names
            .iter()
            .map(|name| since_sent(name, of))
            .collect::<Result<Vec<f64>>>()
    };
    report.add(Row::of("pod: create to answer", "ms", &every(|it| it.answered)?));
    report.add(Row::of("pod: create to scheduled", "ms", &every(|it| it.scheduled)?));
    let running = Row::of("pod: create to running", "ms", &every(|it| it.running)?);
    report.add(running.at_most(RUNNING_P50_AIM_MS).p99_at_most(RUNNING_P99_AIM_MS));
    let named = names.iter().filter_map(|name| Some((name, pods.times.get(name)?)));
    stages::report(log, named, report);
    pods.delete(&[first, names].concat()).await?;

    eprintln!("{} pods by kubectl run …", options.pods);
    pods.watch_again().await?;
    let names: Vec<String> = (0..options.pods).map(|n| format!("run-{n}")).collect();
    for name in &names {
        pods.times.insert(name.clone(), Times::begin());
        kubectl_run(kubeconfig, name).await?;
        pods.running(std::slice::from_ref(name)).await?;
    }
    report.add(Row::of("kubectl run to running", "ms", &running_ms(&pods, &names)?));
    pods.delete(&names).await?;

    eprintln!("{} pods at once …", options.burst);
    pods.watch_again().await?;
    let names: Vec<String> = (0..options.burst).map(|n| format!("many-{n}")).collect();
    let begun = Instant::now();
    pods.create(names.iter().map(|name| pod(name)).collect::<Result<_>>()?)
        .await?;
    pods.running(&names).await?;
    let last = names.iter().filter_map(|name| pods.times.get(name)?.running).max();
    let took = last.map_or(Duration::ZERO, |it| it - begun);
    let mut row = Row::one(
        &format!("{} pods at once: all running", options.burst),
        "s",
        took.as_secs_f64(),
    );
    if options.burst == BURST {
        row = row.at_most(BURST_AIM_S);
    }
    report.add(row);
    let what = format!("{} pods at once: create to running", options.burst);
    report.add(Row::of(&what, "ms", &running_ms(&pods, &names)?));

    let (some, rest) = names.split_at(options.deletions as usize);
    eprintln!("deleting {} of them …", some.len());
    let took = pods.delete(some).await?;
    let what = format!("{} pods deleted at once: all gone", some.len());
    report.add(Row::one(&what, "s", took.as_secs_f64()));
    pods.delete(rest).await?;
    Ok(())
}

async fn one_by_one(pods: &mut Pods, names: &[String]) -> Result<()> {
    for name in names {
        pods.create(vec![pod(name)?]).await?;
        pods.running(std::slice::from_ref(name)).await?;
    }
    Ok(())
}

fn running_ms(pods: &Pods, names: &[String]) -> Result<Vec<f64>> {
    let of = |name: &String| {
        let times = pods.times.get(name)?;
        Some(ms(times.running? - times.sent))
    };
    let all = names
        .iter()
        .map(|name| of(name).with_context(|| format!("pod {name} was not followed")));
    all.collect()
}

fn pod(name: &str) -> Result<Pod> {
    Ok(serde_json::from_value(serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": { "containers": [{ "name": "testbox", "image": IMAGE, "args": WORDS }] },
    }))?)
}

/// A thread that waits for kubectl, so that the watch is read meanwhile: it is in this thread's namespace too.
async fn kubectl_run(kubeconfig: &Path, name: &str) -> Result<()> {
    let mut command = Command::new(kubectl()?);
    command.arg("--kubeconfig").arg(kubeconfig).arg("--cache-dir");
    command.arg(kubeconfig.with_file_name("kubectl-cache"));
    command.args(["run", name, "--image", IMAGE, "--"]).args(WORDS);
    let output = tokio::task::spawn_blocking(move || command.stdin(Stdio::null()).output()).await??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kubectl run {name}: {said}");
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
