//! What differs from run to run, in what kubectl prints.

use regex::{Captures, Regex};
use std::{path::Path, sync::LazyLock};

/// Patterns and what stands for them. `$1` is kept.
const PATTERNS: &[(&str, &str)] = &[
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "{uid}"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)", "{time}"),
    (
        r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d \w{3} \d{4} \d\d:\d\d:\d\d \+0000",
        "{date}",
    ),
    (r"(resource[vV]ersion\\?:? ?=?\\?:? ?\\?)\x22\d+", "$1\x22{rv}"),
    (r"(resourceVersion: )\d+", "$1{rv}"),
    (r"https://127\.0\.0\.1:\d+", "{server}"),
    (r"127\.0\.0\.1:\d+", "{address}"),
    (r"eyJ[\w-]+\.[\w-]+\.[\w-]+", "{token}"),
    (r"LS0tLS1CRUdJTi[\w+/=]+", "{pem}"),
    (r"X509SHA256=[0-9a-f]{64}", "X509SHA256={sha256}"),
    (r"JTI=\{uid\}", "JTI={uid}"),
    (
        r"(ClusterIP|NodePort|LoadBalancer|clusterIP: |IPs?: +|^ *- |IP:?\x22?:? ?\[?\x22?)( *)10\.96\.\d+\.\d+( *)",
        "$1$2{ip}$3",
    ),
    (r"\b10\.(?:9[6-9]|1[01]\d)\.(?:\d\d+|[1-9])\.\d+ *", "{ip}   "),
    (r"(\b[nN]odePort\x22?: *(?:\w+ +)?)3\d{4}\b", "$1{port}"),
    (r"(NodePort: +\S+ +)3\d{4}/", "$1{port}/"),
    (r"(\d+:)3\d{4}/", "$1{port}/"),
    (r"(v1\.(?:36|32)\.)\d+(?:\+fairlead\.[\w.]+)?", "$1{patch}"),
];

static REGEXES: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    let compile = |(pattern, with): &(&str, &'static str)| (Regex::new(&format!("(?m){pattern}")).unwrap(), *with);
    PATTERNS.iter().map(compile).collect()
});

/// An age, with what follows it in the row of a table.
static AGE: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(?m)(^|[ (])(\d{1,2}s|<invalid>)( +|$|\))").unwrap());

/// Replaces what differs from run to run by a word for it.
pub fn normalise(text: &str, home: &Path) -> String {
    let mut text = text.replace(&home.display().to_string(), "{home}");
    for (regex, with) in REGEXES.iter() {
        text = regex.replace_all(&text, *with).into_owned();
    }
    let age = |found: &Captures<'_>| {
        let (before, after) = (&found[1], &found[3]);
        let after = if after.starts_with(' ') { "   " } else { after };
        format!("{before}{{age}}{after}")
    };
    AGE.replace_all(&text, age).into_owned()
}
