//! Measures the store: durable writes per second, delivery of watches, load time and memory with 100 000 objects.
//!
//! `cargo run --release -p fairlead-store --example store_bench [-- DIRECTORY]`. Rounds alternate between the cases and
//! medians are printed, since the rest of the machine is rarely quiet.

use bytes::Bytes;
use fairlead_store::{
    Backend, Cache, Durability, Expect, Key, Operation, Txn, encode,
    redb_store::{Options, RedbStore, check},
    testing::MetadataIndexer,
};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

const ROUNDS: usize = 5;
const OBJECTS: u64 = 100_000;
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A pod of about 2 900 bytes, as a Deployment's are.
fn pod(name: &str) -> Bytes {
    let container = |name: &str| {
        json!({
            "name": name, "image": "registry.example/team/application:v1.27.3", "imagePullPolicy": "IfNotPresent",
            "ports": [{"containerPort": 8080, "name": "http", "protocol": "TCP"}],
            "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}}],
            "resources": {"limits": {"cpu": "500m", "memory": "256Mi"}, "requests": {"cpu": "100m", "memory": "128Mi"}},
            "volumeMounts": [{"mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "name": "token", "readOnly": true}],
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
        })
    };
    encode(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "default", "uid": "0a1b2c3d-0a1b-2c3d-4e5f-0a1b2c3d4e5f", "generateName": "web-7f9c6d5b8c-",
            "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"app": "web", "pod-template-hash": "7f9c6d5b8c", "tier": "front"},
            "ownerReferences": [{"apiVersion": "apps/v1", "blockOwnerDeletion": true, "controller": true, "kind": "ReplicaSet",
                "name": "web-7f9c6d5b8c", "uid": "11111111-2222-3333-4444-555555555555"}],
            "managedFields": [{"apiVersion": "v1", "fieldsType": "FieldsV1", "manager": "controllers", "operation": "Update",
                "time": "2026-01-01T00:00:00Z", "fieldsV1": {"f:metadata": {"f:labels": {".": {}, "f:app": {}, "f:tier": {}}},
                "f:spec": {"f:containers": {"k:{\"name\":\"web\"}": {".": {}, "f:image": {}, "f:name": {}, "f:ports": {}}}}}}],
        },
        "spec": {
            "containers": [container("web"), container("sidecar")], "dnsPolicy": "ClusterFirst", "nodeName": "node-17",
            "restartPolicy": "Always", "schedulerName": "default-scheduler", "serviceAccountName": "default",
            "tolerations": [{"effect": "NoExecute", "key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 300}],
            "volumes": [{"name": "token", "projected": {"defaultMode": 420, "sources": [{"serviceAccountToken": {"path": "token"}}]}}],
        },
        "status": {
            "phase": "Running", "podIP": "10.1.7.9", "hostIP": "192.168.0.17", "qosClass": "Burstable",
            "conditions": [{"lastTransitionTime": "2026-01-01T00:00:00Z", "status": "True", "type": "Ready"},
                {"lastTransitionTime": "2026-01-01T00:00:00Z", "status": "True", "type": "PodScheduled"}],
            "containerStatuses": [{"name": "web", "ready": true, "restartCount": 0, "image": "registry.example/team/application:v1.27.3",
                "containerID": "containerd://0123456789abcdef0123456789abcdef", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}],
        },
    }))
}

/// A pod of that name; only the name is put in, so that writing costs more than making it.
fn create(name: &str, durability: Durability) -> Txn {
    static TEMPLATE: LazyLock<String> = LazyLock::new(|| String::from_utf8_lossy(&pod("web-0000000")).into_owned());
    let value = Bytes::from(TEMPLATE.replace("web-0000000", name));
    let key = Key {
        prefix: "core/pods".into(),
        namespace: "default".into(),
        name: name.into(),
    };
    Txn {
        key,
        expect: Expect::Absent,
        operation: Operation::Put(value),
        durability,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Value of a line of `/proc/self/status`, in MiB.
fn memory(line: &str) -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let found = status
        .lines()
        .find_map(|it| it.strip_prefix(line)?.split_whitespace().next()?.parse::<f64>().ok());
    found.unwrap_or(0.0) / 1024.0
}

/// Processor time of this process so far, in seconds: user and system, from `/proc/self/stat` in ticks of 10 ms.
fn processor() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let numbers = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    numbers
        .skip(11)
        .take(2)
        .filter_map(|it| it.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}

/// Runs a part and prints how long it took, by the clock and in processor time.
async fn timed<T>(what: &str, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let (started, used) = (Instant::now(), processor());
    let result = work.await?;
    println!(
        "{what}: {:.2?}, {:.2} s of processor time",
        started.elapsed(),
        processor() - used
    );
    Ok(result)
}

/// Durable creates per second through the cache, that many at a time.
async fn creates(directory: &Path, writers: usize, how_long: Duration) -> Result<(f64, f64), Failure> {
    let store = Arc::new(RedbStore::open(directory, Options::default())?);
    let cache = Cache::open(store, Arc::new(MetadataIndexer)).await?;
    let (names, until) = (Arc::new(AtomicU64::new(0)), Instant::now() + how_long);
    let started = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|_| {
            let (cache, names) = (Arc::clone(&cache), Arc::clone(&names));
            tokio::spawn(async move {
                let mut count = 0u32;
                while Instant::now() < until {
                    let name = format!("web-{:07}", names.fetch_add(1, Ordering::Relaxed));
                    cache.commit(create(&name, Durability::Durable)).await?;
                    count += 1;
                }
                Ok::<_, Failure>(count)
            })
        })
        .collect();
    let mut count = 0;
    for task in tasks {
        count += task.await??;
    }
    let count = f64::from(count);
    Ok((count / started.elapsed().as_secs_f64(), count))
}

/// What `fdatasync` alone allows, a pod at a time.
fn syncs(directory: &Path, how_long: Duration) -> Result<f64, Failure> {
    use std::os::unix::fs::FileExt;
    let file = fs::File::create(directory.join("plain"))?;
    let value = pod("web");
    file.write_all_at(&vec![0; 8 << 20], 0)?;
    file.sync_all()?;
    let (started, mut count) = (Instant::now(), 0u32);
    while started.elapsed() < how_long {
        file.write_all_at(&value, u64::from(count % 2_000) * 4_096)?;
        file.sync_data()?;
        count += 1;
    }
    Ok(f64::from(count) / started.elapsed().as_secs_f64())
}

/// Median and 99th percentile of the time from a write's acknowledgement to its delivery, in ms.
async fn delivery(directory: &Path, watchers: usize, writes: u64) -> Result<(f64, f64), Failure> {
    let store = Arc::new(RedbStore::open(directory, Options::default())?);
    let cache = Cache::open(store, Arc::new(MetadataIndexer)).await?;
    let started = Instant::now();
    let sent: Arc<Vec<AtomicU64>> = Arc::new((0..=writes).map(|_| AtomicU64::new(0)).collect());
    let start = cache.revision();
    let tasks: Vec<_> = (0..watchers)
        .map(|_| {
            let sent = Arc::clone(&sent);
            let mut watcher = cache.watch("core/pods", start)?;
            Ok(tokio::spawn(async move {
                let mut delays = Vec::new();
                while (delays.len() as u64) < writes {
                    let events = watcher.next().await.map_err(|end| format!("{end:?}"))?;
                    let now = started.elapsed().as_nanos() as u64;
                    for event in events {
                        // A watcher may be faster than the acknowledgement: then the write's begin counts.
                        let at = sent[(event.revision - start) as usize].load(Ordering::Acquire);
                        delays.push(now.saturating_sub(at) as f64 / 1e6);
                    }
                }
                Ok::<_, Failure>(delays)
            }))
        })
        .collect::<Result<_, Failure>>()?;
    for number in 1..=writes {
        // Taken before the write: what is measured includes its way through the cache, but also its fsync.
        let txn = create(&format!("web-{number:07}"), Durability::Relaxed);
        sent[number as usize].store(started.elapsed().as_nanos() as u64, Ordering::Release);
        cache.commit(txn).await?;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut delays = Vec::new();
    for task in tasks {
        delays.extend(task.await??);
    }
    delays.sort_by(f64::total_cmp);
    Ok((delays[delays.len() / 2], delays[delays.len() * 99 / 100]))
}

/// Fills a store with 100 000 pods.
async fn fill(directory: &Path) -> Result<(), Failure> {
    let store = RedbStore::open(
        directory,
        Options {
            keep: None,
            ..Options::default()
        },
    )?;
    for chunk in (0..OBJECTS).collect::<Vec<_>>().chunks(500) {
        let writes = chunk
            .iter()
            .map(|number| store.commit(create(&format!("web-{number:07}"), Durability::Relaxed)));
        for result in futures::future::join_all(writes).await {
            result?;
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args_os().skip(1);
    let root = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    if arguments.next().is_some() {
        return Err("usage: store_bench [DIRECTORY]".into());
    }
    let scratch = tempfile::tempdir_in(&root)?;
    println!("pod: {} bytes; median of {ROUNDS} rounds", pod("web-0000000").len());

    let full = scratch.path().join("full");
    timed("fill, 100 000 relaxed creates", fill(&full)).await?;
    let store = timed("open the store", async {
        Ok(Arc::new(RedbStore::open(&full, Options::default())?))
    })
    .await?;
    let before = memory("VmRSS:");
    let backend = Arc::clone(&store) as Arc<dyn Backend>;
    let cache = timed("fill the cache", async {
        Ok(Cache::open(backend, Arc::new(MetadataIndexer)).await?)
    })
    .await?;
    println!(
        "resident {:.0} MiB (before {before:.0}, peak {:.0}), {} objects",
        memory("VmRSS:"),
        memory("VmHWM:"),
        cache.snapshot("core/pods").len(),
    );
    let walk = async {
        Ok(cache
            .snapshot("core/pods")
            .entries(None, None)
            .map(|it| it.json.len())
            .sum::<usize>())
    };
    timed("walk all objects", walk).await?;
    let copy = scratch.path().join("copy");
    timed("copy the store", async { Ok(store.snapshot(&copy).await?) }).await?;
    drop((cache, store));
    timed("check the copy", async { Ok(check(&copy)?) }).await?;

    let mut rates = [const { Vec::new() }; 4];
    let mut used = [0.0; 3];
    for round in 0..ROUNDS {
        rates[3].push(syncs(scratch.path(), Duration::from_millis(500))?);
        for (at, writers) in [1, 16, 128].into_iter().enumerate() {
            let directory = scratch.path().join(format!("w{writers}-{round}"));
            let before = processor();
            let (rate, count) = creates(&directory, writers, Duration::from_millis(1_500)).await?;
            used[at] += (processor() - before) / count / ROUNDS as f64;
            rates[at].push(rate);
            fs::remove_dir_all(&directory)?;
        }
    }
    let spread = |values: &[f64]| {
        let (low, high) = values
            .iter()
            .fold((f64::MAX, 0.0f64), |(low, high), it| (low.min(*it), high.max(*it)));
        format!("{:.0}/s ({low:.0}–{high:.0})", median(values.to_vec()))
    };
    println!("fdatasync alone: {}", spread(&rates[3]));
    for (at, writers) in [1, 16, 128].into_iter().enumerate() {
        println!(
            "durable creates, {writers} writers: {}, {:.0} µs of processor time each",
            spread(&rates[at]),
            used[at] * 1e6
        );
    }

    let mut delays = [const { Vec::new() }; 2];
    for round in 0..ROUNDS {
        for (at, watchers) in [1, 1_000].into_iter().enumerate() {
            let directory = scratch.path().join(format!("d{watchers}-{round}"));
            delays[at].push(delivery(&directory, watchers, 100).await?);
            fs::remove_dir_all(&directory)?;
        }
    }
    for (at, watchers) in [1, 1_000].into_iter().enumerate() {
        let p50 = median(delays[at].iter().map(|it| it.0).collect());
        let p99 = median(delays[at].iter().map(|it| it.1).collect());
        println!("watch, {watchers} watchers: p50 {p50:.2} ms, p99 {p99:.2} ms from before the write to each delivery");
    }
    Ok(())
}
