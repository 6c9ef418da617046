//! Directives → what a block does. A plugin that is not known here is refused.

use super::{
    Bad, Block, Place, forwarding, kubernetes,
    parse::{Directive, Property, RawBlock},
    values,
};
use crate::{name::Zone, wire::UDP_SIZE};
use std::{path::PathBuf, time::Duration};

/// What `health` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthConfig {
    /// Where /health is.
    pub address: String,
    /// How long it says no before the server stops.
    pub lameduck: Duration,
}

/// What `ready` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadyConfig {
    /// Where /ready is.
    pub address: String,
}

/// What `reload` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReloadConfig {
    /// Time between two looks at the file.
    pub interval: Duration,
    /// At most so much more or less.
    pub jitter: Duration,
}

/// Which answers are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogClass {
    /// Every one.
    All,
    /// With records.
    Success,
    /// NXDOMAIN and NODATA.
    Denial,
    /// The others.
    Error,
}

/// How they are logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// CoreDNS's usual line.
    #[default]
    Common,
    /// The same with the query's opcode.
    Combined,
}

/// A `log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRule {
    /// Names below these.
    pub zones: Vec<Zone>,
    /// The line.
    pub format: LogFormat,
    /// Classes that are logged.
    pub classes: Vec<LogClass>,
}

/// What `hosts` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostsConfig {
    /// File with more lines; absent files are empty.
    pub file: PathBuf,
    /// Names that are answered; all of the block where it is empty.
    pub zones: Vec<Zone>,
    /// Lines of the Corefile.
    pub lines: Vec<String>,
    /// Seconds that answers may be kept.
    pub ttl: u32,
    /// Addresses lead to no names.
    pub no_reverse: bool,
    /// Time between two looks at the file; 0 means one look.
    pub reload: Duration,
    /// Zones in which names that are not there go to the next plugin.
    pub fallthrough: Vec<Zone>,
}

/// A `rewrite name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// The name, or the end of the name.
    pub from: Zone,
    /// What it becomes.
    pub to: Zone,
    /// Only the whole name.
    pub exact: bool,
    /// Later rules are tried as well.
    pub goes_on: bool,
}

/// What each plugin that is not here would need.
const REFUSED: [(&str, &str); 8] = [
    (
        "template",
        "write the names as hosts, or forward them to a server that has templates",
    ),
    ("file", "forward the zone to a server that reads zone files"),
    (
        "autopath",
        "give pods `ndots` by dnsConfig where search paths cost too much",
    ),
    ("acl", "use a NetworkPolicy for who may ask"),
    ("bind", "give the addresses by --listen"),
    ("import", "put it at the start of a line"),
    ("dns64", "use a resolver with DNS64 as upstream"),
    ("tls", "only UDP and TCP are served; put a TLS proxy in front"),
];

impl Directive {
    pub(super) fn bad(&self, place: &Place, why: &str) -> Bad {
        let remedy = "mend the line, or remove it";
        Bad::new(place, &format!("plugin {}: {why}", self.name), remedy)
    }

    pub(super) fn unknown(&self, property: &Property) -> Bad {
        let what = format!("plugin {}: `{}` is not supported", self.name, property.words.join(" "));
        Bad::new(
            &property.place,
            &what,
            "remove the line, or see the list of options in docs/dns.md",
        )
    }

    fn no_properties(&self) -> Result<(), Bad> {
        self.properties
            .first()
            .map_or(Ok(()), |property| Err(self.unknown(property)))
    }

    fn no_arguments(&self) -> Result<(), Bad> {
        self.no_properties()?;
        if self.arguments.is_empty() {
            Ok(())
        } else {
            Err(self.bad(&self.place, "it takes no arguments"))
        }
    }

    /// The only argument, or a default.
    fn listen(&self, default: &str) -> Result<String, Bad> {
        match self.arguments.as_slice() {
            [] => values::listen(default),
            [one] => values::listen(one),
            _ => Err("it takes one address".to_owned()),
        }
        .map_err(|why| self.bad(&self.place, &why))
    }
}

/// Blocks of a block: one per port of its keys.
pub(super) fn compile(raw: &RawBlock, notes: &mut Vec<String>) -> Result<Vec<Block>, Bad> {
    let place = raw.keys.first().map(|key| key.place.clone());
    let Some(place) = place else { return Ok(Vec::new()) };
    let mut ports: Vec<(u16, Vec<Zone>)> = Vec::new();
    for key in &raw.keys {
        for text in key.text.split(',').filter(|text| !text.is_empty()) {
            let (zones, port) =
                values::key(text).map_err(|why| Bad::new(&key.place, &why, "write zones as in example.org:53"))?;
            match ports.iter_mut().find(|(it, _)| *it == port) {
                Some((_, all)) => all.extend(zones),
                None => ports.push((port, zones)),
            }
        }
    }
    ports
        .into_iter()
        .map(|(port, zones)| block(&place, zones, port, &raw.directives, notes))
        .collect()
}

fn block(
    place: &Place,
    zones: Vec<Zone>,
    port: u16,
    directives: &[Directive],
    notes: &mut Vec<String>,
) -> Result<Block, Bad> {
    let mut block = Block {
        place: place.clone(),
        zones,
        port,
        errors: false,
        log: Vec::new(),
        health: None,
        ready: None,
        kubernetes: None,
        prometheus: None,
        forward: Vec::new(),
        cache: None,
        detect_loops: false,
        reload: None,
        shuffle: false,
        hosts: None,
        rewrite: Vec::new(),
        refuse_any: false,
        bufsize: UDP_SIZE,
        minimal: false,
        debug: false,
    };
    let mut seen: Vec<&str> = Vec::new();
    for directive in directives {
        let name = directive.name.as_str();
        if seen.contains(&name) && !matches!(name, "forward" | "rewrite" | "log") {
            return Err(directive.bad(&directive.place, "it stands twice in this block"));
        }
        seen.push(name);
        apply(&mut block, directive, notes)?;
    }
    Ok(block)
}

fn apply(block: &mut Block, directive: &Directive, notes: &mut Vec<String>) -> Result<(), Bad> {
    let place = &directive.place;
    let bad = |why: &str| directive.bad(place, why);
    match directive.name.as_str() {
        "errors" => {
            directive.no_properties()?;
            if directive.arguments.first().is_some_and(|word| word != "stdout") {
                return Err(bad("errors are logged with everything else; write `errors` alone"));
            }
            block.errors = true;
        }
        "log" => block.log.push(log(directive, &block.zones)?),
        "health" => block.health = Some(health(directive)?),
        "ready" => {
            directive.no_properties()?;
            let address = directive.listen(":8181")?;
            block.ready = Some(ReadyConfig { address });
        }
        "kubernetes" => block.kubernetes = Some(kubernetes::compile(directive, &block.zones, notes)?),
        "prometheus" => {
            directive.no_properties()?;
            block.prometheus = Some(directive.listen("localhost:9153")?);
        }
        "forward" => block.forward.push(forwarding::forward(directive, notes)?),
        "cache" => block.cache = Some(forwarding::cache(directive)?),
        "loop" => {
            directive.no_arguments()?;
            block.detect_loops = true;
        }
        "reload" => block.reload = Some(reload(directive)?),
        "loadbalance" => {
            directive.no_properties()?;
            match directive.arguments.as_slice() {
                [] => {}
                [policy] if policy == "round_robin" => {}
                _ => return Err(bad("only round_robin is supported")),
            }
            block.shuffle = true;
        }
        "hosts" => block.hosts = Some(hosts(directive, &block.zones)?),
        "rewrite" => block.rewrite.push(rewrite(directive)?),
        "any" => {
            directive.no_arguments()?;
            block.refuse_any = true;
        }
        "bufsize" => {
            directive.no_properties()?;
            let size = match directive.arguments.as_slice() {
                [] => u64::from(UDP_SIZE),
                [size] => values::number(size, 512, 4096).map_err(|why| bad(&why))?,
                _ => return Err(bad("it takes one size")),
            };
            block.bufsize = u16::try_from(size).unwrap_or(UDP_SIZE);
        }
        "minimal" => {
            directive.no_arguments()?;
            block.minimal = true;
        }
        "debug" => {
            directive.no_arguments()?;
            block.debug = true;
            notes.push(format!(
                "{place}: debug: questions of this block are logged at level debug; a panic never ends the server"
            ));
        }
        name => {
            let remedy = REFUSED.iter().find(|(it, _)| *it == name).map(|(_, remedy)| *remedy);
            let remedy = remedy.unwrap_or("remove it, or see the list of plugins in docs/dns.md");
            return Err(Bad::new(place, &format!("plugin {name} is not supported"), remedy));
        }
    }
    Ok(())
}

fn log(directive: &Directive, block_zones: &[Zone]) -> Result<LogRule, Bad> {
    let bad = |why: &str| directive.bad(&directive.place, why);
    let mut rule = LogRule {
        zones: Vec::new(),
        format: LogFormat::Common,
        classes: Vec::new(),
    };
    for word in &directive.arguments {
        match word.as_str() {
            "{common}" => rule.format = LogFormat::Common,
            "{combined}" => rule.format = LogFormat::Combined,
            format if format.contains('{') => return Err(bad("the formats are {common} and {combined}")),
            zone => rule.zones.extend(values::zones(zone).map_err(|why| bad(&why))?),
        }
    }
    if rule.zones.is_empty() {
        rule.zones = block_zones.to_vec();
    }
    for property in &directive.properties {
        let Some(("class", classes)) = property.words.split_first().map(|(first, rest)| (first.as_str(), rest)) else {
            return Err(directive.unknown(property));
        };
        for class in classes {
            rule.classes.push(match class.as_str() {
                "all" => LogClass::All,
                "success" => LogClass::Success,
                "denial" => LogClass::Denial,
                "error" => LogClass::Error,
                _ => return Err(directive.unknown(property)),
            });
        }
    }
    if rule.classes.is_empty() {
        rule.classes.push(LogClass::All);
    }
    Ok(rule)
}

fn health(directive: &Directive) -> Result<HealthConfig, Bad> {
    let mut config = HealthConfig {
        address: directive.listen(":8080")?,
        lameduck: Duration::ZERO,
    };
    for property in &directive.properties {
        match property.words.as_slice() {
            [word, time] if word == "lameduck" => {
                config.lameduck = values::duration(time).map_err(|why| directive.bad(&property.place, &why))?;
            }
            _ => return Err(directive.unknown(property)),
        }
    }
    Ok(config)
}

fn reload(directive: &Directive) -> Result<ReloadConfig, Bad> {
    directive.no_properties()?;
    let bad = |why: &str| directive.bad(&directive.place, why);
    let (interval, jitter) = match directive.arguments.as_slice() {
        [] => ("30s", None),
        [interval] => (interval.as_str(), None),
        [interval, jitter] => (interval.as_str(), Some(jitter.as_str())),
        _ => return Err(bad("it takes an interval and a jitter")),
    };
    let interval = values::duration(interval).map_err(|why| bad(&why))?;
    if interval < Duration::from_secs(2) {
        return Err(bad("the interval is at least 2s"));
    }
    let jitter = jitter
        .map_or(Ok(interval / 2), values::duration)
        .map_err(|why| bad(&why))?;
    Ok(ReloadConfig {
        interval,
        jitter: jitter.min(interval / 2),
    })
}

fn hosts(directive: &Directive, block_zones: &[Zone]) -> Result<HostsConfig, Bad> {
    let bad = |place: &Place, why: &str| directive.bad(place, why);
    let (file, zones) = match directive.arguments.split_first() {
        Some((file, zones)) => (PathBuf::from(file), zones),
        None => (PathBuf::from("/etc/hosts"), &[][..]),
    };
    let mut config = HostsConfig {
        file,
        zones: values::all_zones(zones).map_err(|why| bad(&directive.place, &why))?,
        lines: Vec::new(),
        ttl: 3600,
        no_reverse: false,
        reload: Duration::from_secs(5),
        fallthrough: Vec::new(),
    };
    for property in &directive.properties {
        let words: Vec<&str> = property.words.iter().map(String::as_str).collect();
        let bad = |why: String| directive.bad(&property.place, &why);
        match words.as_slice() {
            ["ttl", seconds] => {
                let seconds = values::number(seconds, 1, 65535).map_err(bad)?;
                config.ttl = u32::try_from(seconds).unwrap_or_default();
            }
            ["no_reverse"] => config.no_reverse = true,
            ["reload", time] => config.reload = values::duration(time).map_err(bad)?,
            ["fallthrough", ..] => {
                config.fallthrough = values::all_zones(&property.words[1..]).map_err(bad)?;
                if config.fallthrough.is_empty() {
                    config.fallthrough = block_zones.to_vec();
                }
            }
            [address, _, ..] if address.parse::<std::net::IpAddr>().is_ok() => config.lines.push(words.join(" ")),
            _ => return Err(directive.unknown(property)),
        }
    }
    Ok(config)
}

fn rewrite(directive: &Directive) -> Result<Rewrite, Bad> {
    directive.no_properties()?;
    let bad = |why: &str| directive.bad(&directive.place, why);
    let mut words: Vec<&str> = directive.arguments.iter().map(String::as_str).collect();
    let goes_on = words.first() == Some(&"continue");
    if matches!(words.first(), Some(&("continue" | "stop"))) {
        words.remove(0);
    }
    let (exact, from, to) = match words.as_slice() {
        ["name", "exact", from, to] | ["name", "exact", from, to, "answer", "auto"] => (true, from, to),
        ["name", "suffix", from, to] | ["name", "suffix", from, to, "answer", "auto"] => (false, from, to),
        ["name", kind @ ("prefix" | "substring" | "regex"), ..] => {
            return Err(bad(&format!(
                "rewrite name {kind} is not supported; there are exact and suffix"
            )));
        }
        ["name", from, to] => (true, from, to),
        _ => {
            return Err(bad(
                "only rewrite name exact FROM TO and rewrite name suffix FROM TO are supported",
            ));
        }
    };
    let zone = |text: &str| Zone::parse(text.trim_start_matches('.')).map_err(|why| bad(&why));
    Ok(Rewrite {
        from: zone(from)?,
        to: zone(to)?,
        exact,
        goes_on,
    })
}
