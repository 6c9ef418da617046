//! The CNI specification as far as a plugin sees it: environment, configuration, result, errors.
//!
//! Source: containernetworking/cni `SPEC.md` 1.1.0, sections "Execution Protocol" and "Plugin delegation" and appendix.

use crate::address::{Range, RangeConfig, gateway};
use crate::{ledger::Key, wire::Attachment};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
};

/// Versions that this plugin speaks, in order.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Where the agent's socket and journal are, unless the network configuration says otherwise in `runDir`.
pub const RUN_DIR: &str = "/run/fairlead/cni";

/// A well-known error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// The version of the configuration is not spoken.
    IncompatibleVersion = 1,
    /// The container is unknown or gone; the runtime need not clean up.
    UnknownContainer = 3,
    /// A variable of the environment is missing or wrong.
    InvalidEnvironment = 4,
    /// Reading or writing failed.
    Io = 5,
    /// The input is no JSON, or of the wrong types.
    Decoding = 6,
    /// The configuration is well-formed and wrong.
    InvalidConfig = 7,
    /// The network namespace is the plugin's own.
    InvalidNamespace = 8,
    /// A transient condition: try again later.
    TryAgainLater = 11,
    /// STATUS: ADD cannot be served.
    NotAvailable = 50,
    /// STATUS: ADD cannot be served, and running containers may have limited connectivity.
    Limited = 51,
    /// Ours: the attachment exists already.
    Exists = 100,
    /// Ours: the kernel refused something.
    Kernel = 101,
    /// Ours: CHECK found a difference.
    Differs = 102,
}

/// Why a verb failed, as the runtime is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A [`Code`].
    pub code: u32,
    /// One sentence.
    pub msg: String,
    /// Cause and remedy.
    #[serde(default)]
    pub details: String,
}

impl Failure {
    /// A failure with a sentence and its details.
    #[must_use]
    pub fn new(code: Code, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self {
            code: code as u32,
            msg: msg.into(),
            details: details.into(),
        }
    }

    /// The answer to the runtime.
    #[must_use]
    pub fn to_json(&self, version: &str) -> Value {
        json!({ "cniVersion": version, "code": self.code, "msg": self.msg, "details": self.details })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.msg, self.code)?;
        if !self.details.is_empty() {
            write!(f, ": {}", self.details)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// A plugin's configuration on standard input: the keys we read. Others are ignored, as the specification wants.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// A version of [`VERSIONS`]; where it is missing, 0.1.0 is meant.
    #[serde(default)]
    pub cni_version: Option<String>,
    /// The network.
    #[serde(default)]
    pub name: String,
    /// The plugin.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Directory of the agent's socket and journal; default [`RUN_DIR`].
    #[serde(default)]
    pub run_dir: Option<PathBuf>,
    /// The agent's socket, where it is elsewhere.
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// MTU of pod links in bytes; default: the uplink's.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// Sets of ranges: one address from each. Default: the node's `spec.podCIDRs`.
    #[serde(default)]
    pub ranges: Vec<Vec<RangeConfig>>,
    /// What the plugins before us made (ADD), or what ADD answered (CHECK, DEL).
    #[serde(default)]
    pub prev_result: Option<Value>,
    /// GC: who is alive.
    #[serde(rename = "cni.dev/valid-attachments", default)]
    pub valid: Option<Vec<ValidAttachment>>,
    /// GC: the same under the name that older libraries use.
    #[serde(rename = "cni.dev/attachments", default)]
    pub attachments: Option<Vec<ValidAttachment>>,
}

/// An attachment that GC keeps.
#[derive(Clone, Debug, Deserialize)]
pub struct ValidAttachment {
    /// `CNI_CONTAINERID`.
    #[serde(rename = "containerID")]
    pub container: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// No JSON, wrong types ([`Code::Decoding`]).
    pub fn read(input: &[u8]) -> Result<Self, Failure> {
        serde_json::from_slice(input).map_err(|error| {
            Failure::new(
                Code::Decoding,
                "the network configuration cannot be read",
                error.to_string(),
            )
        })
    }

    /// The version to speak.
    ///
    /// # Errors
    /// We do not speak it ([`Code::IncompatibleVersion`]).
    pub fn version(&self) -> Result<&'static str, Failure> {
        let wanted = self.cni_version.as_deref().unwrap_or("0.1.0");
        VERSIONS.into_iter().find(|version| *version == wanted).ok_or_else(|| {
            let speaks = VERSIONS.join(", ");
            Failure::new(
                Code::IncompatibleVersion,
                format!("CNI version {wanted} is not supported"),
                format!("set cniVersion of the network configuration to one of {speaks}"),
            )
        })
    }

    /// Checks the network's name (section 1: begins with an alphanumeric, then also `_`, `.`, `-`).
    ///
    /// # Errors
    /// It is missing or wrong ([`Code::InvalidConfig`]).
    pub fn check_name(&self) -> Result<(), Failure> {
        if is_name(&self.name) {
            return Ok(());
        }
        Err(Failure::new(
            Code::InvalidConfig,
            format!("the network's name {:?} is invalid", self.name),
            "`name` begins with a letter or digit, followed by letters, digits, '_', '.' or '-'",
        ))
    }

    /// The sets of ranges.
    ///
    /// # Errors
    /// A range is wrong ([`Code::InvalidConfig`]).
    pub fn ranges(&self) -> Result<Vec<Vec<Range>>, Failure> {
        let invalid = |details: String| Failure::new(Code::InvalidConfig, "`ranges` is invalid", details);
        let mut sets = Vec::with_capacity(self.ranges.len());
        for set in &self.ranges {
            let ranges: Result<Vec<_>, _> = set.iter().map(Range::from_config).collect();
            let ranges = ranges.map_err(invalid)?;
            let Some(first) = ranges.first() else {
                return Err(invalid("a set has no range".into()));
            };
            if ranges
                .iter()
                .any(|range| range.first.is_ipv4() != first.first.is_ipv4())
            {
                return Err(invalid(
                    "a set mixes address families; give each family a set of its own".into(),
                ));
            }
            sets.push(ranges);
        }
        Ok(sets)
    }

    /// Directory of the agent's socket and journal.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        self.run_dir.as_deref().unwrap_or_else(|| Path::new(RUN_DIR))
    }
}

/// What the runtime says in the environment.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `CNI_CONTAINERID`.
    pub container: Option<String>,
    /// `CNI_IFNAME`.
    pub ifname: Option<String>,
    /// `CNI_NETNS`: path of a network namespace.
    pub netns: Option<PathBuf>,
    /// `CNI_ARGS`: `KEY=VALUE` pairs between semicolons.
    pub args: Option<String>,
    /// `CNI_NETNS_OVERRIDE`: the namespace may be the plugin's own.
    pub own_netns: bool,
}

impl Environment {
    /// Reads this process's environment. Empty variables count as missing.
    #[must_use]
    pub fn read() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            container: text("CNI_CONTAINERID"),
            ifname: text("CNI_IFNAME"),
            netns: std::env::var_os("CNI_NETNS")
                .filter(|value| !value.is_empty())
                .map(Into::into),
            args: text("CNI_ARGS"),
            own_netns: text("CNI_NETNS_OVERRIDE").is_some(),
        }
    }

    /// The attachment that is meant.
    ///
    /// # Errors
    /// A variable is missing or wrong ([`Code::InvalidEnvironment`]).
    pub fn key(&self) -> Result<Key, Failure> {
        let container = self.container.clone().ok_or_else(|| missing("CNI_CONTAINERID"))?;
        if !is_name(&container) {
            return Err(wrong(
                "CNI_CONTAINERID",
                &container,
                "it begins with a letter or digit, followed by letters, digits, '_', '.' or '-'",
            ));
        }
        let ifname = self.ifname.clone().ok_or_else(|| missing("CNI_IFNAME"))?;
        // What the kernel takes for a name (dev_valid_name in net/core/dev.c).
        let odd = |c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0';
        if ifname.len() > 15 || ifname == "." || ifname == ".." || ifname.contains(odd) {
            return Err(wrong(
                "CNI_IFNAME",
                &ifname,
                "it has at most 15 bytes, no '/', no ':' and no spaces, and is neither '.' nor '..'",
            ));
        }
        Ok(Key { container, ifname })
    }

    /// The namespace's path.
    ///
    /// # Errors
    /// It is missing ([`Code::InvalidEnvironment`]).
    pub fn netns(&self) -> Result<&Path, Failure> {
        self.netns.as_deref().ok_or_else(|| missing("CNI_NETNS"))
    }

    /// Namespace and name of the pod, if the runtime says so.
    #[must_use]
    pub fn pod(&self) -> Option<String> {
        let args = self.args.as_deref()?;
        let of = |name: &str| {
            args.split(';')
                .filter_map(|pair| pair.split_once('='))
                .find_map(|(key, value)| (key == name && !value.is_empty()).then_some(value))
        };
        Some(format!("{}/{}", of("K8S_POD_NAMESPACE")?, of("K8S_POD_NAME")?))
    }
}

fn missing(variable: &str) -> Failure {
    Failure::new(
        Code::InvalidEnvironment,
        format!("{variable} is not set"),
        "the container runtime sets it (CNI specification, \"Parameters\")",
    )
}

fn wrong(variable: &str, value: &str, rule: &str) -> Failure {
    Failure::new(
        Code::InvalidEnvironment,
        format!("{variable} {value:?} is invalid"),
        rule,
    )
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// The result of ADD in the words of a version of [`VERSIONS`]. What earlier plugins of the chain made comes first.
#[must_use]
pub fn result(version: &str, attachment: &Attachment, ifname: &str, netns: &Path, prev: Option<&Value>) -> Value {
    let new = version == "1.1.0";
    let numbered = version.starts_with("0.");
    let before = |field: &str| -> Vec<Value> {
        let found = prev.and_then(|prev| prev.get(field)).and_then(Value::as_array);
        found.cloned().unwrap_or_default()
    };
    let mut interfaces = before("interfaces");
    let inside = interfaces.len() + 1;
    let link = |name: &str, mac: &str, sandbox: Option<&Path>| {
        let mut link = Map::from_iter([("name".to_owned(), json!(name)), ("mac".to_owned(), json!(mac))]);
        if let Some(sandbox) = sandbox {
            link.insert("sandbox".into(), json!(sandbox.to_string_lossy()));
        }
        if new {
            link.insert("mtu".into(), json!(attachment.mtu));
        }
        Value::Object(link)
    };
    interfaces.push(link(&attachment.host_if, &attachment.host_mac, None));
    interfaces.push(link(ifname, &attachment.pod_mac, Some(netns)));
    let mut ips = before("ips");
    let mut routes = before("routes");
    for ip in &attachment.ips {
        let (bits, number, all) = match ip {
            IpAddr::V4(_) => (32, "4", "0.0.0.0/0"),
            IpAddr::V6(_) => (128, "6", "::/0"),
        };
        let mut entry = json!({ "address": format!("{ip}/{bits}"), "gateway": gateway(*ip), "interface": inside });
        let mut route = json!({ "dst": all, "gw": gateway(*ip) });
        if numbered {
            entry["version"] = json!(number);
        }
        if new {
            route["mtu"] = json!(attachment.mtu);
        }
        ips.push(entry);
        routes.push(route);
    }
    let dns = prev
        .and_then(|prev| prev.get("dns"))
        .cloned()
        .unwrap_or_else(|| json!({}));
    json!({ "cniVersion": version, "interfaces": interfaces, "ips": ips, "routes": routes, "dns": dns })
}
