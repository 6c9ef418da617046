//! What differs from run to run, in what kubectl prints.
#![allow(unreachable_pub, reason = "nothing else sees it")]

use regex::{Captures, Regex};
use std::{path::Path, sync::LazyLock};

/// Patterns and what stands for them. `$1` is kept.
const PATTERNS: &[(&str, &str)] = &[
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "{uid}"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)", "{time}"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)? \+0000(?: UTC)?", "{time}"),
    (
        r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d \w{3} \d{4} \d\d:\d\d:\d\d \+0000",
        "{date}",
    ),
    (r"(current: )\d+$", "$1{rv}"),
    (r"([rR]esource ?[vV]ersion\x22?: *\x22?)\d+", "$1{rv}"),
    (r"https://127\.0\.0\.1:\d+", "{server}"),
    (r"127\.0\.0\.1:\d+", "{address}"),
    (r"eyJ[\w-]+\.[\w-]+\.[\w-]+", "{token}"),
    (r"LS0tLS1CRUdJTi[\w+/=]+", "{pem}"),
    (r"X509SHA256=[0-9a-f]{64}", "X509SHA256={sha256}"),
    (r"kube-api-access-[a-z0-9]{5}", "kube-api-access-{id}"),
    (r"debugger-[a-z0-9]{5}", "debugger-{id}"),
    (r"(MERGED|LIVE)-\d+", "$1-{id}"),
    (r"kubectl-edit-\d+", "kubectl-edit-{id}"),
    (r"\b10\.96\.(?:\d+\.[1-9]\d*|[1-9]\d*\.\d+)\b", "{ip}"),
    (r"(TargetPort: +)\d{5}/", "$1{port}/"),
    (r"([nN]odePort: +(?:\S+ +)?)3\d{4}\b", "$1{port}"),
    (r"(\d+:)3\d{4}/", "$1{port}/"),
    (r"(v1\.(?:36|32)\.)\d+(?:\+fairlead\.[\w.]+)?", "$1{patch}"),
];

static REGEXES: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    let compile = |(pattern, with): &(&str, &'static str)| (Regex::new(&format!("(?m){pattern}")).unwrap(), *with);
    PATTERNS.iter().map(compile).collect()
});

/// An age, with what follows it in the row of a table.
static AGE: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(?m)(^|[ (])(\d{1,2}s|<invalid>)( +|$|\))").unwrap());

/// The space between columns.
static SPACES: LazyLock<Regex> = LazyLock::new(|| Regex::new("   +").unwrap());

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
    let text = AGE.replace_all(&text, age).into_owned();
    if text.contains("CLUSTER-IP") {
        // Addresses are of different lengths, and columns as wide as the longest.
        return SPACES.replace_all(&text, "   ").into_owned();
    }
    text
}

#[test]
fn what_differs_is_replaced() {
    let home = Path::new("/tmp/x");
    let same = |text: &str, expected: &str| assert_eq!(normalise(text, home), expected);
    same("a   Running   12s   x", "a   Running   {age}   x");
    same("delay=0s timeout=1s for 300s", "delay=0s timeout=1s for 300s");
    same("CLUSTER-IP   A\n10.96.1.2    B", "CLUSTER-IP   A\n{ip}   B");
    same("\"resourceVersion\": \"131\"", "\"resourceVersion\": \"{rv}\"");
    same("80:31234/TCP nodePort: 31234", "80:{port}/TCP nodePort: {port}");
    same("/tmp/x/f 2026-01-02T03:04:05Z", "{home}/f {time}");
}
