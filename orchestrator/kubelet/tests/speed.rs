//! How soon pods run: figures for people, printed; nothing is asserted about time.

mod support;

use serde_json::json;
use std::time::{Duration, Instant};
use support::{Cluster, WAIT, isolated, sh};

fn milliseconds(mut all: Vec<Duration>) -> String {
    all.sort();
    let at = |share: usize| all[(all.len() - 1) * share / 100].as_millis();
    format!("p50 {} ms, p99 {} ms", at(50), at(99))
}

#[test]
fn pods_run_one_by_one_and_in_a_burst() {
    isolated("pods_run_one_by_one_and_in_a_burst", |directory| async {
        let cluster = Cluster::start(directory).await;
        let spec = || json!({"containers": [sh("app", WAIT)]});
        let mut single = Vec::new();
        for number in 0..15 {
            let name = format!("single{number}");
            let begun = Instant::now();
            cluster.create(&name, spec()).await;
            cluster.until_running(&name).await;
            single.push(begun.elapsed());
        }
        println!("created to Running, one after the other: {}", milliseconds(single));
        let begun = Instant::now();
        for number in 0..30 {
            cluster.create(&format!("burst{number}"), spec()).await;
        }
        for number in 0..30 {
            cluster.until_running(&format!("burst{number}")).await;
        }
        println!("a burst of 30 is Running after {} ms", begun.elapsed().as_millis());
        let begun = Instant::now();
        cluster.end().await;
        println!("45 pods are gone after {} ms", begun.elapsed().as_millis());
    });
}
