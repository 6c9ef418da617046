//! `forward` and `cache` of a Corefile.

use super::{Bad, Place, parse::Directive, values};
use crate::name::Zone;
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Most upstreams of one `forward`, CoreDNS's limit.
const MOST_UPSTREAMS: usize = 15;

/// Where questions are forwarded to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstreams {
    /// These.
    Addresses(Vec<SocketAddr>),
    /// The name servers of a file like /etc/resolv.conf.
    File(PathBuf),
}

/// How an upstream is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// At random.
    #[default]
    Random,
    /// One after the other.
    RoundRobin,
    /// The first that is healthy.
    Sequential,
}

/// How an upstream that failed is asked whether it is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Time between two.
    pub interval: Duration,
    /// Ask for recursion.
    pub recursion: bool,
    /// Name that is asked for, with type NS.
    pub domain: Zone,
}

/// What `forward` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardConfig {
    /// Where it stands.
    pub place: Place,
    /// Names below this are forwarded.
    pub from: Zone,
    /// To whom.
    pub to: Upstreams,
    /// Names below these are not.
    pub except: Vec<Zone>,
    /// Never UDP.
    pub force_tcp: bool,
    /// UDP also for clients that came by TCP.
    pub prefer_udp: bool,
    /// How an upstream is chosen.
    pub policy: Policy,
    /// Failures in a row before an upstream counts as down; 0 means never.
    pub max_fails: u32,
    /// Questions at one time; more are refused. 0 means as many as this server takes.
    pub max_concurrent: usize,
    /// Time for an answer.
    pub read_timeout: Duration,
    /// How long idle TCP connections are kept.
    pub expire: Duration,
    /// Most idle TCP connections per upstream.
    pub max_idle: usize,
    /// Attempts per question; 0 means until its time is over.
    pub max_attempts: u32,
    /// Checks of upstreams that failed.
    pub health: HealthCheck,
    /// When no upstream is well, fail instead of trying one.
    pub fail_fast: bool,
}

pub(super) fn forward(directive: &Directive, notes: &mut Vec<String>) -> Result<ForwardConfig, Bad> {
    let place = &directive.place;
    let [from, to @ ..] = directive.arguments.as_slice() else {
        return Err(directive.bad(place, "it says neither what nor where to; write forward . ADDRESS"));
    };
    let mut from = values::zones(from).map_err(|why| directive.bad(place, &why))?;
    let (Some(from), true) = (from.pop(), from.is_empty()) else {
        return Err(directive.bad(place, "this prefix is several zones; write one forward for each"));
    };
    let mut config = ForwardConfig {
        place: place.clone(),
        from,
        to: Upstreams::Addresses(Vec::new()),
        except: Vec::new(),
        force_tcp: false,
        prefer_udp: false,
        policy: Policy::default(),
        max_fails: 2,
        max_concurrent: 0,
        read_timeout: Duration::from_secs(2),
        expire: Duration::from_secs(10),
        max_idle: 100,
        max_attempts: 0,
        health: HealthCheck {
            interval: Duration::from_millis(500),
            recursion: true,
            domain: Zone::parse(".").map_err(|why| directive.bad(place, &why))?,
        },
        fail_fast: false,
    };
    let mut targets = to.to_vec();
    for property in &directive.properties {
        let bad = |why: String| directive.bad(&property.place, &why);
        let words: Vec<&str> = property.words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["to", more @ ..] => targets.extend(more.iter().map(|&word| word.to_owned())),
            ["except", zones @ ..] if !zones.is_empty() => {
                config
                    .except
                    .extend(values::all_zones(&property.words[1..]).map_err(bad)?);
            }
            ["force_tcp"] => config.force_tcp = true,
            ["prefer_udp"] => config.prefer_udp = true,
            ["policy", "random"] => config.policy = Policy::Random,
            ["policy", "round_robin"] => config.policy = Policy::RoundRobin,
            ["policy", "sequential"] => config.policy = Policy::Sequential,
            ["max_fails", number] => config.max_fails = count(number).map_err(bad)?,
            ["max_concurrent", number] => config.max_concurrent = count(number).map_err(bad)? as usize,
            ["max_idle_conns", number] => config.max_idle = count(number).map_err(bad)? as usize,
            ["max_connect_attempts", number] => config.max_attempts = count(number).map_err(bad)?,
            ["read_timeout", time] => config.read_timeout = positive(time).map_err(bad)?,
            ["expire", time] => config.expire = values::duration(time).map_err(bad)?,
            ["failfast_all_unhealthy_upstreams"] => config.fail_fast = true,
            ["health_check", time, rest @ ..] => {
                config.health.interval = positive(time).map_err(bad)?;
                health_options(rest, &mut config.health).map_err(bad)?;
            }
            ["max_age", time] => {
                values::duration(time).map_err(bad)?;
                notes.push(format!(
                    "{}: forward: max_age: connections are used again for as long as `expire` lets them",
                    property.place
                ));
            }
            ["tls" | "tls_servername" | "doh_method", ..] => {
                return Err(bad(
                    "upstreams by TLS are not supported; name one that answers by UDP and TCP".to_owned(),
                ));
            }
            _ => return Err(directive.unknown(property)),
        }
    }
    config.to = upstreams(&targets).map_err(|why| directive.bad(place, &why))?;
    if config.force_tcp && config.prefer_udp {
        return Err(directive.bad(place, "force_tcp and prefer_udp exclude each other"));
    }
    Ok(config)
}

fn upstreams(targets: &[String]) -> Result<Upstreams, String> {
    match targets {
        [] => Err("it names no upstream; write forward . ADDRESS".to_owned()),
        [file] if file.starts_with('/') || file.starts_with('.') => Ok(Upstreams::File(file.into())),
        many if many.len() > MOST_UPSTREAMS => Err(format!("{} upstreams; there may be {MOST_UPSTREAMS}", many.len())),
        many if many.iter().any(|it| it.starts_with('/')) => {
            Err("a file and other upstreams; name the file alone".to_owned())
        }
        many => {
            let addresses: Result<Vec<SocketAddr>, String> = many.iter().map(|text| values::upstream(text)).collect();
            Ok(Upstreams::Addresses(addresses?))
        }
    }
}

fn count(text: &str) -> Result<u32, String> {
    values::number(text, 0, 1_000_000).map(|number| u32::try_from(number).unwrap_or(u32::MAX))
}

fn positive(text: &str) -> Result<Duration, String> {
    let time = values::duration(text)?;
    if time.is_zero() {
        Err(format!("{text} is no time to wait"))
    } else {
        Ok(time)
    }
}

fn health_options(words: &[&str], health: &mut HealthCheck) -> Result<(), String> {
    let mut words = words.iter();
    while let Some(&word) = words.next() {
        match word {
            "no_rec" => health.recursion = false,
            "domain" => {
                let name = words.next().ok_or("health_check: domain without a name")?;
                health.domain = Zone::parse(name)?;
            }
            _ => {
                return Err(format!(
                    "health_check: unknown option {word:?}; there are no_rec and domain NAME"
                ));
            }
        }
    }
    Ok(())
}

/// Size and times of one half of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Portion {
    /// Most answers.
    pub capacity: usize,
    /// Longest time that one is kept, seconds.
    pub most_s: u32,
    /// Shortest, seconds.
    pub least_s: u32,
}

/// Answers that are fetched again before they end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefetch {
    /// Questions …
    pub amount: u32,
    /// … with no longer pause than this between them.
    pub within: Duration,
    /// Percent of the time that are left when it happens.
    pub percent: u32,
}

/// Answers that have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    /// How long after their end they may be given.
    pub within: Duration,
    /// Ask the upstream first, for at most this long; none means: answer, then ask.
    pub verify: Option<Duration>,
    /// TTL of a stale answer, seconds.
    pub ttl_s: u32,
    /// How long after a failed attempt the upstream is left alone.
    pub recheck: Duration,
}

/// What `cache` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Names that are cached; all of the block where it is empty.
    pub zones: Vec<Zone>,
    /// Answers with records.
    pub success: Portion,
    /// NXDOMAIN and NODATA.
    pub denial: Portion,
    /// How long SERVFAIL is kept; 0 means not.
    pub servfail: Duration,
    /// Give the upstream's TTL, not what is left of it.
    pub keep_ttl: bool,
    /// Fetch again what is asked for often.
    pub prefetch: Option<Prefetch>,
    /// Give answers that have ended when there is no other.
    pub stale: Option<Stale>,
    /// Names whose answers with records are not cached.
    pub no_success: Vec<Zone>,
    /// Names whose denials are not cached.
    pub no_denial: Vec<Zone>,
}

pub(super) fn cache(directive: &Directive) -> Result<CacheConfig, Bad> {
    let place = &directive.place;
    let mut config = CacheConfig {
        zones: Vec::new(),
        success: Portion {
            capacity: 9984,
            most_s: 3600,
            least_s: 5,
        },
        denial: Portion {
            capacity: 9984,
            most_s: 1800,
            least_s: 5,
        },
        servfail: Duration::from_secs(5),
        keep_ttl: false,
        prefetch: None,
        stale: None,
        no_success: Vec::new(),
        no_denial: Vec::new(),
    };
    let mut arguments = directive.arguments.as_slice();
    if let [first, rest @ ..] = arguments
        && first.bytes().all(|byte| byte.is_ascii_digit())
    {
        let seconds = values::number(first, 1, 1 << 31).map_err(|why| directive.bad(place, &why))?;
        let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
        config.success.most_s = seconds;
        config.denial.most_s = seconds;
        arguments = rest;
    }
    config.zones = values::all_zones(arguments).map_err(|why| directive.bad(place, &why))?;
    for property in &directive.properties {
        let bad = |why: String| directive.bad(&property.place, &why);
        let words: Vec<&str> = property.words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["success", rest @ ..] if !rest.is_empty() => {
                config.success = portion(rest, config.success).map_err(bad)?;
            }
            ["denial", rest @ ..] if !rest.is_empty() => config.denial = portion(rest, config.denial).map_err(bad)?,
            ["servfail", time] => {
                config.servfail = values::duration(time).map_err(bad)?;
                if config.servfail > Duration::from_secs(300) {
                    return Err(bad("SERVFAIL may be kept for 5m at most (RFC 2308)".to_owned()));
                }
            }
            ["keepttl"] => config.keep_ttl = true,
            ["prefetch", amount, rest @ ..] => config.prefetch = prefetch(amount, rest).map_err(bad)?,
            ["serve_stale", rest @ ..] => config.stale = Some(stale(rest).map_err(bad)?),
            ["disable", what @ ("success" | "denial"), rest @ ..] => {
                let words: Vec<String> = rest.iter().map(|&word| word.to_owned()).collect();
                let mut zones = values::all_zones(&words).map_err(bad)?;
                if zones.is_empty() {
                    zones.extend(Zone::parse("."));
                }
                if *what == "success" {
                    config.no_success = zones;
                } else {
                    config.no_denial = zones;
                }
            }
            _ => return Err(directive.unknown(property)),
        }
    }
    Ok(config)
}

fn portion(words: &[&str], before: Portion) -> Result<Portion, String> {
    let mut portion = before;
    let number = |text: &str| values::number(text, 0, u64::from(u32::MAX));
    match words {
        [capacity, times @ ..] if times.len() <= 2 => {
            portion.capacity = usize::try_from(number(capacity)?).unwrap_or(usize::MAX);
            if let Some(most) = times.first() {
                portion.most_s = u32::try_from(number(most)?).unwrap_or(u32::MAX);
            }
            if let Some(least) = times.get(1) {
                portion.least_s = u32::try_from(number(least)?).unwrap_or(u32::MAX);
            }
            Ok(portion)
        }
        _ => Err("write it as CAPACITY [TTL [MINTTL]]".to_owned()),
    }
}

fn prefetch(amount: &str, rest: &[&str]) -> Result<Option<Prefetch>, String> {
    let amount = u32::try_from(values::number(amount, 0, u64::from(u32::MAX))?).unwrap_or(u32::MAX);
    let (time, percent) = match rest {
        [] => ("1m", "10%"),
        [time] => (*time, "10%"),
        [time, percent] => (*time, *percent),
        _ => return Err("write it as prefetch AMOUNT [DURATION [PERCENTAGE%]]".to_owned()),
    };
    let percent = percent.strip_suffix('%').ok_or("the percentage has no %")?;
    let percent = u32::try_from(values::number(percent, 1, 90)?).unwrap_or_default();
    Ok((amount > 0).then_some(Prefetch {
        amount,
        within: values::duration(time)?,
        percent,
    }))
}

fn stale(words: &[&str]) -> Result<Stale, String> {
    let mut stale = Stale {
        within: Duration::from_secs(3600),
        verify: None,
        ttl_s: 0,
        recheck: Duration::ZERO,
    };
    let Some((time, mode)) = words.split_first() else {
        return Ok(stale);
    };
    stale.within = values::duration(time)?;
    let rest = match mode {
        [] | ["immediate"] => &[][..],
        ["immediate", rest @ ..] => rest,
        ["verify", rest @ ..] => {
            let time = rest
                .first()
                .map_or(Ok(Duration::from_secs(5)), |time| values::duration(time));
            stale.verify = Some(time?);
            rest.get(1..).unwrap_or_default()
        }
        _ => return Err("the mode is immediate or verify".to_owned()),
    };
    match rest {
        [] => {}
        [ttl] | [ttl, _] => {
            let ttl = values::duration(ttl)?.as_secs();
            stale.ttl_s = u32::try_from(ttl).unwrap_or(u32::MAX);
        }
        _ => return Err("too many words".to_owned()),
    }
    if let [_, recheck] = rest {
        stale.recheck = values::duration(recheck)?;
    }
    Ok(stale)
}
