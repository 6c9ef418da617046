//! A Corefile at work: which block a question belongs to, which plugin answers it, and in which order they are asked.
//!
//! The order is fixed, as CoreDNS's is: any, rewrite, cache, hosts, kubernetes, forward. What memory can answer is
//! answered at once, in the caller's thread; the rest is a [`Later`].

use crate::{
    cache::{Cache, Hit, Key},
    corefile::{Block, LogClass},
    forward::{Failure, Forward},
    hosts::{self, Hosts, replace_suffix},
    message::{Answer, Form},
    metrics::{BlockStats, Metrics, Plugin, Sample},
    name::{Name, Zone as Origin},
    wire::{
        Bad, IN, Owner, Query, Reply, Section, UDP_SIZE, flag, header_only, question, rcode, rcode_name, rtype,
        type_name,
    },
    zone::{
        Zone,
        answer::{Told, View},
    },
};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

/// Aliases that are followed from one source of names to the next.
const MOST_ALIASES: usize = 8;
/// Most questions that wait at one time.
const MOST_WAITING: usize = 20_000;
/// Bytes of an answer that has no client's limit.
const WHOLE: usize = 65535;

/// A block at work.
#[derive(Debug)]
pub struct Served {
    /// What the Corefile says.
    pub config: Block,
    /// The cluster's names, and how they are shown.
    pub cluster: Option<(Arc<Zone>, View)>,
    /// `hosts`
    pub hosts: Option<Arc<Hosts>>,
    /// `cache`
    pub cache: Option<Arc<Cache>>,
    /// `forward`
    pub forwards: Vec<Arc<Forward>>,
    /// Counts.
    pub stats: Arc<BlockStats>,
    /// Ends of names that only our probes for loops have, by upstream.
    pub probes: Vec<(Origin, Arc<crate::forward::upstream::Upstream>)>,
}

/// All blocks of a Corefile.
#[derive(Debug)]
pub struct Engine {
    /// In the file's order.
    pub blocks: Vec<Arc<Served>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    waiting: AtomicUsize,
}

/// Where a question came from.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// Port of the Corefile at which it came.
    pub port: u16,
    /// Who asks.
    pub peer: SocketAddr,
    /// By TCP.
    pub tcp: bool,
    /// The thread's number, for counters.
    pub worker: usize,
    /// When it came.
    pub at: Instant,
}

/// What becomes of a packet.
#[derive(Debug)]
pub enum Outcome {
    /// The answer has been written.
    Reply,
    /// It deserves none.
    Nothing,
    /// Somebody else must be asked.
    Later(Later),
}

/// A question that waits for somebody else.
#[derive(Debug)]
pub struct Later {
    engine: Arc<Engine>,
    block: Arc<Served>,
    packet: Vec<u8>,
    client: Client,
}

impl Drop for Later {
    fn drop(&mut self) {
        self.engine.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the plugins in memory know.
enum Local {
    /// The answer is written: its code.
    Done(u8, Plugin),
    /// It is an alias; the records so far are written.
    Alias(Box<[u8]>),
    /// This `forward` is to be asked.
    Forward(usize),
}

impl Engine {
    /// Of blocks.
    pub fn new(blocks: Vec<Arc<Served>>, metrics: Arc<Metrics>) -> Self {
        Self {
            blocks,
            metrics,
            waiting: AtomicUsize::new(0),
        }
    }

    /// The block with the longest zone that `name` is in.
    fn block(&self, port: u16, name: &Name) -> Option<&Arc<Served>> {
        if let [only] = self.blocks.as_slice()
            && let [zone] = only.config.zones.as_slice()
            && zone.labels() == 0
            && only.config.port == port
        {
            return Some(only);
        }
        let here = self.blocks.iter().filter(|block| block.config.port == port);
        let matching = here.flat_map(|block| block.config.zones.iter().map(move |zone| (block, zone)));
        let matching = matching.filter(|(_, zone)| name.below(zone).is_some());
        matching.max_by_key(|(_, zone)| zone.labels()).map(|(block, _)| block)
    }

    /// Answers a packet from memory, or says who must.
    pub fn serve(self: &Arc<Self>, packet: &[u8], client: &Client, out: &mut Vec<u8>) -> Outcome {
        let mut query = match Query::parse(packet) {
            Ok(query) => query,
            Err(Bad::Drop) => return Outcome::Nothing,
            Err(Bad::Reply(code)) => {
                header_only(out, packet, code);
                return Outcome::Reply;
            }
        };
        let Some(block) = self.block(client.port, &query.name) else {
            plain(&query, rcode::REFUSED, out, UDP_SIZE);
            return Outcome::Reply;
        };
        let limit = if client.tcp {
            WHOLE
        } else {
            query.udp_limit(block.config.bufsize)
        };
        let (code, plugin) = match block.refusal(&query) {
            Some(code) => (plain(&query, code, out, block.config.bufsize), Plugin::Server),
            None => match block.quick(&mut query, limit, out, client.at) {
                Quick::Done(code, plugin) => (code, plugin),
                Quick::Refresh(code, plugin, forward) => {
                    self.refresh(block, forward, &query);
                    (code, plugin)
                }
                Quick::Later => {
                    if self.waiting.fetch_add(1, Ordering::Relaxed) < MOST_WAITING {
                        return Outcome::Later(Later {
                            engine: Arc::clone(self),
                            block: Arc::clone(block),
                            packet: packet.to_vec(),
                            client: *client,
                        });
                    }
                    self.waiting.fetch_sub(1, Ordering::Relaxed);
                    self.metrics.overload.inc();
                    (
                        plain(&query, rcode::REFUSED, out, block.config.bufsize),
                        Plugin::Forward,
                    )
                }
            },
        };
        block.note(&query, client, code, plugin, out);
        Outcome::Reply
    }

    /// Fetches an answer again, for the cache alone.
    fn refresh(self: &Arc<Self>, block: &Arc<Served>, forward: usize, query: &Query<'_>) {
        let (key, name, block) = (key_of(query), query.name.clone(), Arc::clone(block));
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            if let (Some(forward), Some(cache)) = (block.forwards.get(forward), &block.cache)
                && let Ok(answer) = forward.ask(&key, false).await
            {
                cache.put(&key, &name, &answer, Instant::now());
            }
        });
    }

    /// The answer to a question, from memory or from others, with the TTL to tell where it is not the records' own.
    async fn resolve(&self, block: &Arc<Served>, packet: &[u8], client: &Client, depth: usize) -> Result<Resolved, u8> {
        let mut query = Query::parse(packet).map_err(|_| rcode::SERVFAIL)?;
        block.rewrite(&mut query);
        let mut out = Vec::new();
        match block.local(&query, WHOLE, &mut out) {
            Local::Done(_, plugin) => {
                let answer = Answer::read(&out).ok_or(rcode::SERVFAIL)?;
                Ok(Resolved {
                    answer: Arc::new(answer),
                    ttl_s: None,
                    plugin,
                })
            }
            Local::Forward(forward) => {
                let mut resolved = block.fetch(forward, &query, client.tcp).await?;
                if query.rewritten {
                    let renamed = resolved.answer.renamed(query.question()).ok_or(rcode::SERVFAIL)?;
                    resolved.answer = Arc::new(renamed);
                }
                Ok(resolved)
            }
            Local::Alias(target) => {
                let head = Answer::read(&out).ok_or(rcode::SERVFAIL)?;
                let name = Name::from_wire(&target).ok_or(rcode::SERVFAIL)?;
                let next = self.block(client.port, &name).cloned();
                let Some(next) = next.filter(|_| depth < MOST_ALIASES) else {
                    return Err(rcode::SERVFAIL);
                };
                let flags = query.flags() & (flag::RD | flag::CD);
                let packet = question(0, flags, name.wire(), query.qtype, query.edns);
                let resolving = Box::pin(self.resolve(&next, &packet, client, depth + 1));
                let tail = resolving.await?;
                let answer = tail.answer.behind(&head).ok_or(rcode::SERVFAIL)?;
                Ok(Resolved {
                    answer: Arc::new(answer),
                    ttl_s: tail.ttl_s.map(|ttl| ttl.min(answer_ttl(&head))),
                    plugin: Plugin::Kubernetes,
                })
            }
        }
    }
}

fn answer_ttl(answer: &Answer) -> u32 {
    answer.ttl.unwrap_or_default()
}

/// An answer and what to tell with it.
struct Resolved {
    answer: Arc<Answer>,
    ttl_s: Option<u32>,
    plugin: Plugin,
}

impl Later {
    /// Waits for the answer; bytes for the client.
    pub async fn run(self) -> Vec<u8> {
        let mut out = Vec::new();
        let (block, client) = (&self.block, &self.client);
        let resolved = self.engine.resolve(block, &self.packet, client, 0).await;
        let Ok(query) = Query::parse(&self.packet) else {
            return out;
        };
        let limit = if client.tcp {
            WHOLE
        } else {
            query.udp_limit(block.config.bufsize)
        };
        let (code, plugin) = match resolved {
            Ok(resolved) => {
                let answer = if block.config.shuffle {
                    Arc::new(Answer::clone(&resolved.answer).shuffled())
                } else {
                    resolved.answer
                };
                let form = Form {
                    ttl: resolved.ttl_s,
                    authoritative: true,
                    ..block.form(limit)
                };
                (answer.write(&mut out, &query, &form), resolved.plugin)
            }
            Err(code) => {
                if block.config.errors && code == rcode::SERVFAIL {
                    tracing::warn!(name = %query.name, kind = type_name(query.qtype), peer = %client.peer, "no upstream answered");
                }
                (plain(&query, code, &mut out, block.config.bufsize), Plugin::Forward)
            }
        };
        block.note(&query, client, code, plugin, &out);
        out
    }
}

enum Quick {
    Done(u8, Plugin),
    /// As done; and this `forward` is to be asked again for the cache.
    Refresh(u8, Plugin, usize),
    Later,
}

impl Served {
    /// Why a question is refused, if it is.
    fn refusal(&self, query: &Query<'_>) -> Option<u8> {
        if query.edns.is_some_and(|edns| edns.version > 0) {
            return Some(rcode::BADVERS);
        }
        let transfer = matches!(query.qtype, rtype::AXFR | rtype::IXFR);
        (query.qclass != IN || transfer).then_some(rcode::REFUSED)
    }

    fn rewrite(&self, query: &mut Query<'_>) {
        for rule in &self.config.rewrite {
            let replaced = if rule.exact {
                (query.name.wire() == rule.from.wire()).then(|| rule.to.name())
            } else {
                replace_suffix(&query.name, &rule.from, &rule.to)
            };
            if let Some(name) = replaced {
                query.name = name;
                query.rewritten = true;
                if !rule.goes_on {
                    return;
                }
            }
        }
    }

    fn form(&self, limit: usize) -> Form {
        Form {
            limit,
            flags: flag::RA,
            size: self.config.bufsize,
            ttl: None,
            minimal: self.config.minimal,
            authoritative: false,
        }
    }

    fn quick(&self, query: &mut Query<'_>, limit: usize, out: &mut Vec<u8>, now: Instant) -> Quick {
        self.rewrite(query);
        let forward = match self.local(query, limit, out) {
            Local::Done(code, plugin) => return Quick::Done(code, plugin),
            Local::Alias(_) => return Quick::Later,
            Local::Forward(forward) => forward,
        };
        let Some(cache) = self
            .cache
            .as_ref()
            .filter(|cache| !query.rewritten && cache.covers(&query.name))
        else {
            return Quick::Later;
        };
        let Some(hit) = cache.get(&key_of(query), now) else {
            return Quick::Later;
        };
        if hit.stale && cache.config.stale.is_some_and(|stale| stale.verify.is_some()) {
            return Quick::Later;
        }
        let form = Form {
            ttl: Some(hit.ttl_s),
            ..self.form(limit)
        };
        let code = if self.config.shuffle {
            Answer::clone(&hit.answer).shuffled().write(out, query, &form)
        } else {
            hit.answer.write(out, query, &form)
        };
        if hit.refresh {
            Quick::Refresh(code, Plugin::Cache, forward)
        } else {
            Quick::Done(code, Plugin::Cache)
        }
    }

    /// Asks the plugins that know at once.
    #[inline]
    fn local(&self, query: &Query<'_>, limit: usize, out: &mut Vec<u8>) -> Local {
        let size = self.config.bufsize;
        let recursion = if self.forwards.is_empty() { 0 } else { flag::RA };
        if query.qtype == rtype::ANY && (self.config.refuse_any || self.is_cluster(&query.name)) {
            return Local::Done(any(query, out, size), Plugin::Any);
        }
        if query.qtype == rtype::HINFO
            && let Some((_, upstream)) = self.probes.iter().find(|(probe, _)| query.name.below(probe).is_some())
        {
            upstream.exclude();
            return Local::Done(plain(query, rcode::REFUSED, out, size), Plugin::Loop);
        }
        if let Some(hosts) = &self.hosts {
            let mut reply = Reply::new(out, query, limit, flag::AA | recursion, size);
            match hosts.answer(query, &mut reply, self.config.shuffle) {
                hosts::Told::Answered => return Local::Done(reply.finish(), Plugin::Hosts),
                hosts::Told::NoName => {
                    reply.rcode(rcode::NXDOMAIN);
                    return Local::Done(reply.finish(), Plugin::Hosts);
                }
                hosts::Told::FallThrough => {}
            }
        }
        if let Some((zone, view)) = &self.cluster {
            let mut reply = Reply::new(out, query, limit, flag::AA | recursion, size);
            if self.config.minimal {
                reply.leave_out_the_rest();
            }
            match view.answer(zone, query, &mut reply) {
                Told::Answered => return Local::Done(reply.finish(), Plugin::Kubernetes),
                Told::Alias(target) => {
                    reply.finish();
                    return Local::Alias(target);
                }
                Told::NotOurs => {}
                Told::FallThrough if self.forward_of(&query.name).is_none() => {
                    // Nobody else knows: the name does not exist.
                    let mut reply = Reply::new(out, query, limit, flag::AA | recursion, size);
                    reply.rcode(rcode::NXDOMAIN);
                    return Local::Done(reply.finish(), Plugin::Kubernetes);
                }
                Told::FallThrough => {}
            }
        }
        match self.forward_of(&query.name) {
            Some(forward) => Local::Forward(forward),
            None => Local::Done(plain(query, rcode::REFUSED, out, size), Plugin::Server),
        }
    }

    fn is_cluster(&self, name: &Name) -> bool {
        let view = self.cluster.as_ref().map(|(_, view)| view);
        view.is_some_and(|view| {
            view.origins
                .iter()
                .any(|origin| !origin.is_reverse() && name.below(origin).is_some())
        })
    }

    fn forward_of(&self, name: &Name) -> Option<usize> {
        self.forwards.iter().position(|forward| forward.covers(name))
    }

    /// From the cache, or from an upstream.
    async fn fetch(&self, forward: usize, query: &Query<'_>, by_tcp: bool) -> Result<Resolved, u8> {
        let key = key_of(query);
        let cache = self.cache.as_ref().filter(|cache| cache.covers(&query.name));
        let mut stale: Option<Hit> = None;
        if let Some(hit) = cache.and_then(|cache| cache.get(&key, Instant::now())) {
            if !hit.stale {
                return Ok(Resolved::kept(&hit));
            }
            stale = Some(hit);
        }
        let asking = self.forwards[forward].ask(&key, by_tcp);
        let verify = cache
            .and_then(|cache| cache.config.stale?.verify)
            .filter(|_| stale.is_some());
        let asked = match verify {
            Some(time) => tokio::time::timeout(time, asking)
                .await
                .unwrap_or(Err(Failure::Unanswered)),
            None => asking.await,
        };
        match (asked, stale) {
            (Ok(answer), _) => {
                let ttl_s = cache.and_then(|cache| cache.put(&key, &query.name, &answer, Instant::now()));
                Ok(Resolved {
                    answer,
                    ttl_s,
                    plugin: Plugin::Forward,
                })
            }
            (Err(_), Some(hit)) => Ok(Resolved::kept(&hit)),
            (Err(Failure::Busy), None) => Err(rcode::REFUSED),
            (Err(Failure::Unanswered), None) => Err(rcode::SERVFAIL),
        }
    }

    /// Counts and logs an answer.
    fn note(&self, query: &Query<'_>, client: &Client, code: u8, plugin: Plugin, out: &[u8]) {
        let sample = Sample {
            tcp: client.tcp,
            ipv6: is_ipv6(client.peer),
            qtype: query.qtype,
            rcode: code,
            plugin,
            asked: query.packet.len(),
            answered: out.len(),
            time: client.at.elapsed(),
        };
        self.stats.slot(client.worker).count(&sample);
        if !self.config.log.is_empty() {
            self.log(query, client, &sample, out);
        }
        if self.config.debug {
            tracing::debug!(name = %query.name, kind = type_name(query.qtype), rcode = rcode_name(code), ?plugin, "answered");
        }
    }

    fn log(&self, query: &Query<'_>, client: &Client, sample: &Sample, out: &[u8]) {
        let answers = crate::wire::u16_at(out, 6).unwrap_or_default();
        let class = match (sample.rcode, answers) {
            (rcode::NOERROR, 1..) => LogClass::Success,
            (rcode::NOERROR | rcode::NXDOMAIN, _) => LogClass::Denial,
            _ => LogClass::Error,
        };
        let wanted = self.config.log.iter().any(|rule| {
            let kind = rule.classes.contains(&LogClass::All) || rule.classes.contains(&class);
            kind && rule.zones.iter().any(|zone| query.name.below(zone).is_some())
        });
        if !wanted {
            return;
        }
        tracing::info!(
            peer = %client.peer,
            id = query.id(),
            kind = type_name(query.qtype),
            name = %query.name,
            transport = if sample.tcp { "tcp" } else { "udp" },
            rcode = rcode_name(sample.rcode),
            bytes = sample.answered,
            seconds = sample.time.as_secs_f64(),
            "question"
        );
    }
}

fn is_ipv6(peer: SocketAddr) -> bool {
    match peer {
        SocketAddr::V4(_) => false,
        SocketAddr::V6(six) => six.ip().to_ipv4_mapped().is_none(),
    }
}

impl Resolved {
    fn kept(hit: &Hit) -> Self {
        Self {
            answer: Arc::clone(&hit.answer),
            ttl_s: Some(hit.ttl_s),
            plugin: Plugin::Cache,
        }
    }
}

fn key_of(query: &Query<'_>) -> Key {
    Key {
        name: query.name.wire().into(),
        qtype: query.qtype,
        dnssec_ok: query.dnssec_ok(),
        unchecked: query.flags() & flag::CD != 0,
    }
}

/// An answer without records.
fn plain(query: &Query<'_>, code: u8, out: &mut Vec<u8>, size: u16) -> u8 {
    let mut reply = Reply::new(out, query, WHOLE, 0, size);
    reply.rcode(code);
    reply.finish()
}

/// The answer to a question for everything. Source: RFC 8482.
fn any(query: &Query<'_>, out: &mut Vec<u8>, size: u16) -> u8 {
    let mut reply = Reply::new(out, query, WHOLE, 0, size);
    reply.record(Section::Answer, Owner::Question, rtype::HINFO, 8482, |out| {
        out.extend_from_slice(b"\x07RFC8482\0");
    });
    reply.finish()
}
