//! `forward`: questions that somebody else answers.

pub mod upstream;

use crate::{
    cache::Key,
    corefile::{ForwardConfig, Policy, Upstreams},
    message::Answer,
    metrics::ForwardMetrics,
    name::Name,
    wire::{Edns, UDP_SIZE, flag, question},
};
use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, timeout_at};
use upstream::Upstream;

/// Time for a question, all attempts together.
const DEADLINE: Duration = Duration::from_secs(5);
/// Most name servers of a resolv.conf; as the file's readers.
const MOST_IN_FILE: usize = 15;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Too many questions at one time: REFUSED.
    Busy,
    /// Nobody answered: SERVFAIL.
    Unanswered,
}

type Exchange = Shared<BoxFuture<'static, Result<Arc<Answer>, Failure>>>;

/// One `forward` of a block.
pub struct Forward {
    /// What the Corefile says.
    pub config: ForwardConfig,
    /// To whom.
    pub upstreams: Vec<Arc<Upstream>>,
    next: AtomicUsize,
    running: AtomicUsize,
    /// Questions that are being asked: who asks the same waits for the same answer.
    pending: Mutex<HashMap<Key, Exchange>>,
    metrics: Arc<ForwardMetrics>,
}

impl std::fmt::Debug for Forward {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Forward({:?})", self.config)
    }
}

impl Forward {
    /// Finds out who the upstreams are.
    pub fn new(config: ForwardConfig, metrics: Arc<ForwardMetrics>) -> Self {
        let addresses = match &config.to {
            Upstreams::Addresses(addresses) => addresses.clone(),
            Upstreams::File(path) => name_servers(path),
        };
        if addresses.is_empty() {
            tracing::error!(
                place = %config.place, to = ?config.to,
                "forward has no upstream, names outside the cluster are not resolved; write `nameserver ADDRESS` in the file, or name upstreams"
            );
        }
        let upstreams = addresses
            .into_iter()
            .map(|address| Arc::new(Upstream::new(address, &config, Arc::clone(&metrics))));
        Self {
            upstreams: upstreams.collect(),
            config,
            next: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            pending: Mutex::default(),
            metrics,
        }
    }

    /// Is this name forwarded?
    pub fn covers(&self, name: &Name) -> bool {
        name.below(&self.config.from).is_some() && !self.config.except.iter().any(|zone| name.below(zone).is_some())
    }

    /// Asks, together with everybody who asks the same.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn ask(self: &Arc<Self>, key: &Key, by_tcp: bool) -> Result<Arc<Answer>, Failure> {
        let exchange = {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            match pending.get(key) {
                Some(exchange) => exchange.clone(),
                None => {
                    let running = self.running.fetch_add(1, Ordering::Relaxed);
                    if self.config.max_concurrent > 0 && running >= self.config.max_concurrent {
                        self.running.fetch_sub(1, Ordering::Relaxed);
                        self.metrics.rejected.inc();
                        return Err(Failure::Busy);
                    }
                    let (this, own) = (Arc::clone(self), key.clone());
                    // A task of its own: who asked may go away.
                    let task = tokio::spawn(async move {
                        let done = Done {
                            forward: &this,
                            key: &own,
                        };
                        let answer = this.exchange(&own, by_tcp).await;
                        drop(done);
                        answer
                    });
                    let exchange = task.map(|end| end.unwrap_or(Err(Failure::Unanswered))).boxed().shared();
                    pending.insert(key.clone(), exchange.clone());
                    exchange
                }
            }
        };
        exchange.await
    }

    async fn exchange(&self, key: &Key, by_tcp: bool) -> Result<Arc<Answer>, Failure> {
        let edns = Edns {
            size: UDP_SIZE,
            version: 0,
            dnssec_ok: key.dnssec_ok,
        };
        let flags = flag::RD | if key.unchecked { flag::CD } else { 0 };
        let packet = question(0, flags, &key.name, key.qtype, Some(edns));
        let deadline = Instant::now() + DEADLINE;
        let by_tcp = self.config.force_tcp || by_tcp && !self.config.prefer_udp;
        let mut attempts = 0;
        while Instant::now() < deadline {
            let attempt = attempts;
            attempts += 1;
            let most = if self.config.max_attempts == 0 {
                u32::MAX
            } else {
                self.config.max_attempts
            };
            if attempt >= most {
                break;
            }
            let Some(upstream) = self.choose(attempt as usize) else {
                break;
            };
            let end = deadline.min(Instant::now() + self.config.read_timeout);
            match timeout_at(end, upstream.ask(&packet, by_tcp)).await {
                Ok(Ok(answer)) => {
                    upstream.succeeded();
                    return Ok(Arc::new(answer));
                }
                Ok(Err(error)) => {
                    tracing::debug!(upstream = %upstream.address, %error, "no answer");
                    upstream.failed();
                    // Refused at once: let others run before the next attempt, and do not spin on it.
                    if attempts as usize >= self.upstreams.len() * 2 {
                        break;
                    }
                }
                Err(_) => {
                    tracing::debug!(upstream = %upstream.address, "no answer in time");
                    upstream.failed();
                }
            }
        }
        Err(Failure::Unanswered)
    }

    /// Who is asked next. The `attempt`s of one question go round.
    fn choose(&self, attempt: usize) -> Option<Arc<Upstream>> {
        let usable: Vec<&Arc<Upstream>> = self.upstreams.iter().filter(|it| !it.is_looping()).collect();
        let well: Vec<&Arc<Upstream>> = usable.iter().copied().filter(|it| !it.is_down()).collect();
        let from = if well.is_empty() {
            if self.config.fail_fast {
                return None;
            }
            // CoreDNS: perhaps it is the check that is wrong, so one is tried all the same.
            self.metrics.broken.inc();
            &usable
        } else {
            &well
        };
        if from.is_empty() {
            return None;
        }
        let start = match self.config.policy {
            Policy::Random => rand::random::<u32>() as usize,
            Policy::RoundRobin if attempt == 0 => self.next.fetch_add(1, Ordering::Relaxed),
            Policy::RoundRobin => self.next.load(Ordering::Relaxed).wrapping_sub(1).wrapping_add(attempt),
            Policy::Sequential => attempt,
        };
        from.get(start % from.len()).map(|it| Arc::clone(it))
    }
}

/// Takes a question off the list however it ends.
struct Done<'a> {
    forward: &'a Forward,
    key: &'a Key,
}

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.forward.running.fetch_sub(1, Ordering::Relaxed);
        self.forward
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(self.key);
    }
}

/// The name servers of a file like /etc/resolv.conf.
fn name_servers(path: &Path) -> Vec<SocketAddr> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = (words.next() == Some("nameserver")).then(|| words.next()).flatten()?;
        let address: IpAddr = address.split('%').next()?.parse().ok()?;
        Some(SocketAddr::new(address, 53))
    });
    servers.take(MOST_IN_FILE).collect()
}
