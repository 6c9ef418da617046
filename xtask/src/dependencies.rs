//! Holds the dependencies to `deny.toml`: a reason for each direct one, licences that we allow, no banned crate.
//!
//! `deny.toml` is cargo-deny's format, so `cargo deny check` judges the same rules where it is installed. This check
//! needs nothing installed, and asks for the reasons, which cargo-deny cannot.

mod licence;

use crate::workspace::Workspace;
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

/// Begins the comment lines `# crate: sentence.` of `deny.toml`.
const REASONS: &str = "# Why each direct dependency is here";

/// What `deny.toml` says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rules {
    /// SPDX identifiers.
    licences: BTreeSet<String>,
    /// Crate, and what is banned about it.
    banned: BTreeMap<String, Ban>,
    /// Crate and why it is here.
    reasons: BTreeMap<String, String>,
}

/// One entry of `bans.deny`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ban {
    /// Why.
    reason: String,
    /// Crates that may bring it nevertheless (cargo-deny's word for them); nobody else may.
    wrappers: BTreeSet<String>,
}

/// Checks all rules; every violation is one line of the error.
///
/// # Errors
/// The violations.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let text = fs::read_to_string(workspace.root.join("deny.toml")).context("deny.toml")?;
    let rules = Rules::parse(&text);
    if rules.licences.is_empty() || rules.banned.is_empty() || rules.reasons.is_empty() {
        bail!("deny.toml: licences, bans or reasons were not found; keep one entry per line");
    }
    let violations = violations(&rules, &workspace.dependencies()?)?;
    if !violations.is_empty() {
        bail!("{}", violations.join("\n"));
    }
    Ok(())
}

impl Rules {
    /// Reads our own file, one entry per line; a whole TOML parser would cost more to build than all of xtask.
    fn parse(text: &str) -> Self {
        let mut rules = Self::default();
        let (mut section, mut list, mut in_reasons) = ("", "", false);
        for line in text.lines().map(str::trim) {
            if let Some(comment) = line.strip_prefix("# ") {
                in_reasons |= line.starts_with(REASONS);
                let entry = comment
                    .split_once(": ")
                    .filter(|(name, _)| in_reasons && is_crate_name(name));
                if let Some((name, sentence)) = entry {
                    rules.reasons.insert(name.to_owned(), sentence.trim().to_owned());
                }
            } else if line.starts_with('[') {
                (section, list) = (line, "");
            } else if line.starts_with(']') {
                list = "";
            } else if let Some((key, "[")) = line.split_once(" = ") {
                list = key;
            } else {
                let mut quoted = line.split('"').skip(1).step_by(2).map(str::to_owned);
                match (section, list, quoted.next()) {
                    ("[licenses]", "allow", Some(licence)) => {
                        rules.licences.insert(licence);
                    }
                    ("[bans]", "deny", Some(name)) => {
                        rules.banned.insert(name, Ban::parse(line));
                    }
                    _ => {}
                }
            }
        }
        rules
    }
}

impl Ban {
    /// Reads `{ crate = "x", wrappers = ["y"], reason = "z" },`.
    fn parse(line: &str) -> Self {
        let quoted = |text: &str| -> Vec<String> { text.split('"').skip(1).step_by(2).map(str::to_owned).collect() };
        let after = |key: &str| line.split_once(key).map(|(_, rest)| rest);
        let wrappers = after("wrappers = [").and_then(|rest| rest.split_once(']'));
        Self {
            reason: after("reason = ")
                .and_then(|rest| quoted(rest).into_iter().next())
                .unwrap_or_default(),
            wrappers: wrappers
                .map(|(list, _)| quoted(list).into_iter().collect())
                .unwrap_or_default(),
        }
    }
}

fn is_crate_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

/// Names of the packages that depend on one, as the build resolves them.
fn users(metadata: &Value, id: &str) -> BTreeSet<String> {
    let nodes = metadata["resolve"]["nodes"].as_array().into_iter().flatten();
    let users = nodes.filter(|node| {
        node["dependencies"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|it| *it == id)
    });
    let ids: BTreeSet<&str> = users.filter_map(|node| node["id"].as_str()).collect();
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let packages = packages.filter(|package| package["id"].as_str().is_some_and(|it| ids.contains(it)));
    packages
        .filter_map(|package| package["name"].as_str())
        .map(str::to_owned)
        .collect()
}

fn violations(rules: &Rules, metadata: &Value) -> Result<Vec<String>> {
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    let members: BTreeSet<&str> = metadata["workspace_members"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let mut violations = Vec::new();
    let mut direct: BTreeMap<&str, &str> = BTreeMap::new();
    for package in packages {
        let name = package["name"].as_str().context("a package without a name")?;
        if let Some(ban) = rules.banned.get(name) {
            let users = users(metadata, package["id"].as_str().unwrap_or_default());
            // Without wrappers nobody may bring it; with them, whoever is none of them.
            if ban.wrappers.is_empty() || !users.is_subset(&ban.wrappers) {
                violations.push(format!(
                    "{name} is banned: {}; `cargo tree --invert {name}` shows who brings it",
                    ban.reason
                ));
            }
        }
        let licence = package["license"].as_str();
        if !licence.is_some_and(|expression| licence::allowed(expression, &rules.licences)) {
            violations.push(format!(
                "{name}: licence {} is not allowed in deny.toml",
                licence.unwrap_or("(unnamed)")
            ));
        }
        if members.contains(package["id"].as_str().unwrap_or_default()) {
            let own = package["dependencies"].as_array().into_iter().flatten();
            // Crates of this workspace have a path, and need no reason.
            let foreign = own
                .filter(|dependency| dependency["path"].is_null())
                .filter_map(|it| it["name"].as_str());
            direct.extend(foreign.map(|dependency| (dependency, name)));
        }
    }
    for (dependency, user) in &direct {
        match rules.reasons.get(*dependency) {
            None => violations.push(format!("{dependency}, used by {user}, has no sentence in deny.toml")),
            Some(sentence) if !(sentence.ends_with('.') && sentence.split_whitespace().count() >= 4) => {
                violations.push(format!("{dependency}: `{sentence}` in deny.toml is not a sentence"));
            }
            Some(_) => {}
        }
    }
    let stale = rules.reasons.keys().filter(|name| !direct.contains_key(name.as_str()));
    violations.extend(stale.map(|name| format!("{name} has a sentence in deny.toml and is not a direct dependency")));
    Ok(violations)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const DENY: &str = "[licenses]\nallow = [\n  \"MIT\",\n]\n\n[bans]\nmultiple-versions = \"allow\"\ndeny = [\n  \
                        { crate = \"openssl-sys\", reason = \"one TLS stack\" },\n  { crate = \"clock\", wrappers = [\"wrapper\"], reason = \"one clock\" },\n]\n\n\
                        # Why each direct dependency is here (more words)\n# good: It is needed for good.\n# short: Needed.\n# gone: It was needed until yesterday.\n";

    #[test]
    fn the_file_is_read_by_line() {
        let rules = Rules::parse(DENY);
        assert_eq!(rules.licences, BTreeSet::from(["MIT".to_owned()]));
        assert_eq!(
            rules.banned,
            BTreeMap::from([
                (
                    "openssl-sys".to_owned(),
                    Ban {
                        reason: "one TLS stack".to_owned(),
                        wrappers: BTreeSet::new()
                    }
                ),
                (
                    "clock".to_owned(),
                    Ban {
                        reason: "one clock".to_owned(),
                        wrappers: BTreeSet::from(["wrapper".to_owned()])
                    }
                ),
            ])
        );
        assert_eq!(rules.reasons.len(), 3);
    }

    #[test]
    fn a_wrapper_may_bring_what_nobody_else_may() {
        let package = |name: &str| json!({"name": name, "id": name, "license": "MIT", "dependencies": []});
        let metadata = json!({
            "workspace_members": [],
            "packages": [package("clock"), package("wrapper")],
            "resolve": {"nodes": [{"id": "wrapper", "dependencies": ["clock"]}]},
        });
        let mut rules = Rules::parse(DENY);
        rules.reasons.clear();
        assert_eq!(violations(&rules, &metadata).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn every_rule_can_be_broken() {
        let foreign =
            |name: &str, licence: Value| json!({"name": name, "id": name, "license": licence, "dependencies": []});
        let metadata = json!({
            "workspace_members": ["us"],
            "packages": [
                {"name": "us", "id": "us", "license": "MIT", "dependencies": [
                    {"name": "good"}, {"name": "short"}, {"name": "silent"}, {"name": "sibling", "path": "/sibling"},
                ]},
                foreign("good", json!("MIT")),
                foreign("openssl-sys", json!("MIT")),
                foreign("clock", json!("MIT")),
                foreign("wrapper", json!("MIT")),
                foreign("viral", json!("GPL-3.0")),
                foreign("unknown", Value::Null),
            ],
            "resolve": {"nodes": [
                {"id": "good", "dependencies": ["clock"]},
                {"id": "wrapper", "dependencies": ["clock"]},
            ]},
        });
        let violations = violations(&Rules::parse(DENY), &metadata).unwrap();
        assert_eq!(
            violations,
            [
                "openssl-sys is banned: one TLS stack; `cargo tree --invert openssl-sys` shows who brings it",
                "clock is banned: one clock; `cargo tree --invert clock` shows who brings it",
                "viral: licence GPL-3.0 is not allowed in deny.toml",
                "unknown: licence (unnamed) is not allowed in deny.toml",
                "short: `Needed.` in deny.toml is not a sentence",
                "silent, used by us, has no sentence in deny.toml",
                "gone has a sentence in deny.toml and is not a direct dependency",
            ]
        );
    }
}
