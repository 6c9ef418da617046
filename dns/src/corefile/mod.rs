//! The Corefile: CoreDNS's configuration, read whole and refused whole.
//!
//! Every plugin and option is either understood or refused at the start, with its line and what to do.

mod forwarding;
mod kubernetes;
mod lex;
mod parse;
mod plugins;
mod values;

pub use forwarding::{CacheConfig, ForwardConfig, HealthCheck, Policy, Portion, Prefetch, Stale, Upstreams};
pub use kubernetes::KubernetesConfig;
pub use plugins::{HealthConfig, HostsConfig, LogClass, LogFormat, LogRule, ReadyConfig, ReloadConfig, Rewrite};

use crate::name::Zone;
use std::{fmt, path::Path, sync::Arc};

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Path, or `Corefile`.
    pub file: Arc<str>,
    /// From 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.file, self.line)
    }
}

/// What is wrong with a Corefile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}; {remedy}")]
pub struct Bad {
    /// Where.
    pub place: Place,
    /// What, with the plugin's name.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl Bad {
    pub(crate) fn new(place: &Place, what: &str, remedy: &str) -> Self {
        Self {
            place: place.clone(),
            what: what.to_owned(),
            remedy: remedy.to_owned(),
        }
    }
}

/// A Corefile that can be served.
#[derive(Clone, Debug)]
pub struct Corefile {
    /// In the file's order.
    pub blocks: Vec<Block>,
    /// Options that are accepted without a meaning here, with the reason.
    pub notes: Vec<String>,
}

/// A server block.
#[derive(Clone, Debug)]
pub struct Block {
    /// Where it begins.
    pub place: Place,
    /// Names that it serves.
    pub zones: Vec<Zone>,
    /// Port of all of them.
    pub port: u16,
    /// `errors`
    pub errors: bool,
    /// `log`
    pub log: Vec<LogRule>,
    /// `health`
    pub health: Option<HealthConfig>,
    /// `ready`
    pub ready: Option<ReadyConfig>,
    /// `kubernetes`
    pub kubernetes: Option<KubernetesConfig>,
    /// `prometheus`, its address.
    pub prometheus: Option<String>,
    /// `forward`, which may repeat.
    pub forward: Vec<ForwardConfig>,
    /// `cache`
    pub cache: Option<CacheConfig>,
    /// `loop`
    pub detect_loops: bool,
    /// `reload`
    pub reload: Option<ReloadConfig>,
    /// `loadbalance`
    pub shuffle: bool,
    /// `hosts`
    pub hosts: Option<HostsConfig>,
    /// `rewrite`, in order.
    pub rewrite: Vec<Rewrite>,
    /// `any`
    pub refuse_any: bool,
    /// `bufsize`, bytes.
    pub bufsize: u16,
    /// `minimal`
    pub minimal: bool,
    /// `debug`
    pub debug: bool,
}

impl Corefile {
    /// Reads a Corefile's text. `file` is its name in errors, and imports are relative to it.
    ///
    /// # Errors
    /// The first thing that is not understood: line, plugin, remedy.
    pub fn parse(file: &str, text: &str) -> Result<Self, Bad> {
        Self::parse_with(file, text, &|name| std::env::var(name).ok())
    }

    /// The same, with the environment given.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_with(file: &str, text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, Bad> {
        let file: Arc<str> = file.into();
        let raw = parse::blocks(&file, text, variable)?;
        let mut corefile = Self {
            blocks: Vec::new(),
            notes: Vec::new(),
        };
        for block in raw {
            let blocks = plugins::compile(&block, &mut corefile.notes)?;
            corefile.blocks.extend(blocks);
        }
        let start = Place { file, line: 1 };
        if corefile.blocks.is_empty() {
            return Err(Bad::new(
                &start,
                "there is no server block",
                "write .:53 { … } with the plugins to use",
            ));
        }
        for (index, block) in corefile.blocks.iter().enumerate() {
            for zone in &block.zones {
                let twin = corefile.blocks[..index]
                    .iter()
                    .find(|it| it.port == block.port && it.zones.contains(zone));
                if let Some(twin) = twin {
                    let what = format!(
                        "{zone}:{} is served by the block of line {} already",
                        block.port, twin.place.line
                    );
                    return Err(Bad::new(
                        &block.place,
                        &what,
                        "merge the blocks, or give one another zone or port",
                    ));
                }
            }
        }
        Ok(corefile)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or [`Self::parse`] refuses it.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        use anyhow::Context as _;
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("the Corefile {shown} cannot be read; name one with --conf, or leave it out for the default")
        })?;
        Ok(Self::parse(&shown, &text)?)
    }
}

/// The Corefile that kubeadm writes, for a cluster domain.
pub fn default_corefile(domain: &str) -> String {
    format!(
        ".:53 {{
    errors
    health {{
        lameduck 5s
    }}
    ready
    kubernetes {domain} in-addr.arpa ip6.arpa {{
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }}
    prometheus :9153
    forward . /etc/resolv.conf {{
        max_concurrent 1000
    }}
    cache 30 {{
        disable success {domain}
        disable denial {domain}
    }}
    loop
    reload
    loadbalance
}}
"
    )
}
