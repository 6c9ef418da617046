//! The ledger in memory and its journal on disk: many ADDs at once share one sync.
//!
//! A change takes effect in memory at once and is written by a thread of its own, together with all that came while it
//! wrote before. Who asked for it may be told when the ticket says so.

use fairlead_cni_plugin::{
    address::Range,
    journal::{Journal, Lock},
    ledger::{Exhausted, Key, Ledger, Record},
};
use ipnet::IpNet;
use std::{
    io,
    net::IpAddr,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

/// The ledger, kept on disk.
#[derive(Debug)]
pub(crate) struct Store {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

/// When a change is on disk.
#[derive(Debug)]
#[must_use]
pub(crate) struct Ticket(Option<Receiver<Result<(), String>>>);

impl Ticket {
    /// Waits until the change is on disk.
    ///
    /// # Errors
    /// The journal could not be written.
    pub(crate) fn wait(self) -> Result<(), String> {
        self.0.map_or(Ok(()), |receiver| {
            receiver.recv().unwrap_or_else(|_| Err("the journal is closed".into()))
        })
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug)]
struct State {
    ledger: Ledger,
    records: Vec<Record>,
    tickets: Vec<SyncSender<Result<(), String>>>,
    /// What the last write failed with.
    failing: Option<String>,
    closed: bool,
}

impl Shared {
    /// A panic elsewhere leaves the state whole: it is changed by single calls.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn ticket(&mut self, record: Record) -> Ticket {
        self.records.push(record);
        self.promise()
    }

    fn promise(&mut self) -> Ticket {
        let (sender, receiver) = sync_channel(1);
        self.tickets.push(sender);
        Ticket(Some(receiver))
    }
}

impl Store {
    /// Opens the journal of a run directory; who calls holds its lock and gives it away.
    ///
    /// # Errors
    /// The journal cannot be read or written.
    pub(crate) fn open(dir: &Path, boot: &str, lock: Lock) -> io::Result<Self> {
        let (journal, ledger, found) = Journal::open(dir, boot)?;
        if found.freed > 0 {
            tracing::info!(
                attachments = found.freed,
                "the machine was booted: their addresses are free"
            );
        }
        if found.bad > 0 {
            tracing::error!(lines = found.bad, dir = %dir.display(), "the journal of addresses was damaged; links whose line is lost are removed");
        }
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                ledger,
                records: Vec::new(),
                tickets: Vec::new(),
                failing: None,
                closed: false,
            }),
            wake: Condvar::new(),
        });
        let writing = Arc::clone(&shared);
        let writer = thread::Builder::new()
            .name("cni-journal".into())
            .spawn(move || write(&writing, journal, lock))?;
        Ok(Self {
            shared,
            writer: Some(writer),
        })
    }

    /// Reserves addresses, one from each set.
    ///
    /// # Errors
    /// A set has none left.
    pub(crate) fn hold(
        &self,
        key: &Key,
        network: &str,
        pod: Option<&str>,
        sets: &[Vec<Range>],
        now_ms: u64,
    ) -> Result<(Vec<IpAddr>, Ticket), Exhausted> {
        let mut state = self.shared.lock();
        let record = state.ledger.hold(key, network, pod, sets, now_ms)?;
        let ips = state.ledger.get(key).map(|held| held.ips.clone()).unwrap_or_default();
        let ticket = state.ticket(record);
        drop(state);
        self.shared.wake.notify_one();
        Ok((ips, ticket))
    }

    /// Lets the addresses of an attachment rest. Where it holds none, the ticket is for an earlier release that could
    /// not be written.
    pub(crate) fn release(&self, key: &Key, now_ms: u64) -> Ticket {
        let mut state = self.shared.lock();
        let ticket = match state.ledger.release(key, now_ms) {
            Some(record) => state.ticket(record),
            None if state.failing.is_some() => state.promise(),
            None => return Ticket(None),
        };
        drop(state);
        self.shared.wake.notify_one();
        ticket
    }

    /// Remembers the node's own ranges.
    pub(crate) fn set_cidrs(&self, cidrs: &[IpNet]) {
        let mut state = self.shared.lock();
        if let Some(record) = state.ledger.set_cidrs(cidrs) {
            // Nobody waits for it: without it, a restarted agent asks the API server first.
            state.records.push(record);
            drop(state);
            self.shared.wake.notify_one();
        }
    }

    /// Looks at the ledger.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        look(&self.shared.lock().ledger)
    }

    /// What the last write failed with.
    pub(crate) fn failing(&self) -> Option<String> {
        self.shared.lock().failing.clone()
    }
}

impl Drop for Store {
    /// Writes what is pending; then the lock is free.
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_one();
        if let Some(writer) = self.writer.take() {
            // A panic of the writer was printed by its thread.
            let _ = writer.join();
        }
    }
}

/// The writer: all that is pending, again and again. It has the lock of the journal as long as it lives.
fn write(shared: &Shared, mut journal: Journal, lock: Lock) {
    let mut state = shared.lock();
    loop {
        if state.records.is_empty() && state.tickets.is_empty() {
            if state.closed {
                break;
            }
            state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        let records = std::mem::take(&mut state.records);
        let tickets = std::mem::take(&mut state.tickets);
        // A snapshot has the pending changes in it.
        let all = journal.wants_rewrite().then(|| state.ledger.snapshot());
        drop(state);
        let result = match all {
            Some(all) => journal.rewrite(&all),
            None => journal.append(&records),
        };
        if let Err(error) = &result {
            tracing::error!(%error, "the journal of addresses cannot be written; no pod gets an address until it can");
        }
        let result = result.map_err(|error| error.to_string());
        state = shared.lock();
        state.failing = result.as_ref().err().cloned();
        for ticket in tickets {
            // Who asked may have gone.
            let _ = ticket.try_send(result.clone());
        }
    }
    drop(state);
    drop(lock);
}
