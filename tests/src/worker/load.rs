//! Many questions: a fixed number, or until told to stop.

use super::{ask::ask, lock};
use crate::proto::{Answer, Ask, Histogram, Load, Tally, Transport};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Latencies kept per load.
const MAX_LATENCIES: usize = 100_000;

fn latency_us(transport: Transport, answer: &Answer) -> u64 {
    // Connecting a UDP socket sends nothing.
    if transport == Transport::Udp {
        answer.total_us
    } else {
        answer.connect_us
    }
}

pub(super) fn ask_many(question: &Ask, count: usize, concurrency: usize) -> Histogram {
    let begun = AtomicUsize::new(0);
    let histogram = Mutex::new(Histogram::default());
    std::thread::scope(|scope| {
        for _ in 0..concurrency.clamp(1, count.max(1)) {
            scope.spawn(|| {
                while begun.fetch_add(1, Ordering::Relaxed) < count {
                    let outcome = ask(question);
                    let mut histogram = lock(&histogram);
                    match outcome {
                        Ok(answer) => {
                            histogram.latencies_us.push(latency_us(question.transport, &answer));
                            *histogram.by_server.entry(answer.served_by).or_default() += 1;
                        }
                        Err(error) => *histogram.failed.entry(format!("{:?}", error.kind)).or_default() += 1,
                    }
                }
            });
        }
    });
    let mut histogram = lock(&histogram).clone();
    histogram.latencies_us.sort_unstable();
    histogram
}

struct Running {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    threads: Vec<JoinHandle<()>>,
}

/// Running loads by id.
#[derive(Default)]
pub(super) struct Loads {
    next: AtomicU64,
    running: Mutex<HashMap<u64, Running>>,
}

impl Loads {
    pub(super) fn start(&self, load: &Load) -> u64 {
        let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Tally::default())));
        let threads = (0..load.workers.max(1))
            .map(|_| {
                let (load, stop, tally) = (load.clone(), Arc::clone(&stop), Arc::clone(&tally));
                std::thread::spawn(move || work(&load, &stop, &tally))
            })
            .collect();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.running).insert(id, Running { stop, tally, threads });
        id
    }

    pub(super) fn peek(&self, id: u64) -> Result<Tally, String> {
        let running = lock(&self.running);
        let running = running.get(&id).ok_or_else(|| format!("no load {id} runs here"))?;
        let tally = lock(&running.tally).clone();
        Ok(sorted(tally))
    }

    pub(super) fn stop(&self, id: u64) -> Result<Tally, String> {
        let running = lock(&self.running)
            .remove(&id)
            .ok_or_else(|| format!("no load {id} runs here"))?;
        running.stop.store(true, Ordering::SeqCst);
        for thread in running.threads {
            thread.join().map_err(|_| "a thread of the load panicked".to_string())?;
        }
        let tally = lock(&running.tally).clone();
        Ok(sorted(tally))
    }
}

fn sorted(mut tally: Tally) -> Tally {
    tally.latencies_us.sort_unstable();
    tally
}

fn work(load: &Load, stop: &AtomicBool, tally: &Mutex<Tally>) {
    while !stop.load(Ordering::SeqCst) {
        let outcome = ask(&load.ask);
        let mut now = lock(tally);
        match outcome {
            Ok(answer) => {
                if now.latencies_us.len() < MAX_LATENCIES {
                    now.latencies_us.push(latency_us(load.ask.transport, &answer));
                }
                let expected = load.expect.is_empty() || load.expect.contains(&answer.served_by);
                let counts = if expected { &mut now.ok } else { &mut now.wrong };
                *counts.entry(answer.served_by).or_default() += 1;
            }
            Err(error) => *now.failed.entry(error.to_string()).or_default() += 1,
        }
        drop(now);
        if load.pause_us > 0 {
            // The pace of the load, not a wait for anything.
            std::thread::sleep(Duration::from_micros(load.pause_us));
        }
    }
}
