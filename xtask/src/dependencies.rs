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
    /// Crate and why it is banned.
    banned: BTreeMap<String, String>,
    /// Crate and why it is here.
    reasons: BTreeMap<String, String>,
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
                        rules.banned.insert(name, quoted.next().unwrap_or_default());
                    }
                    _ => {}
                }
            }
        }
        rules
    }
}

fn is_crate_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
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
        if let Some(reason) = rules.banned.get(name) {
            violations.push(format!(
                "{name} is banned: {reason}; `cargo tree --invert {name}` shows who brings it"
            ));
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
                        { crate = \"openssl-sys\", reason = \"one TLS stack\" },\n]\n\n\
                        # Why each direct dependency is here (more words)\n# good: It is needed for good.\n# short: Needed.\n# gone: It was needed until yesterday.\n";

    #[test]
    fn the_file_is_read_by_line() {
        let rules = Rules::parse(DENY);
        assert_eq!(rules.licences, BTreeSet::from(["MIT".to_owned()]));
        assert_eq!(
            rules.banned,
            BTreeMap::from([("openssl-sys".to_owned(), "one TLS stack".to_owned())])
        );
        assert_eq!(rules.reasons.len(), 3);
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
                foreign("viral", json!("GPL-3.0")),
                foreign("unknown", Value::Null),
            ],
        });
        let violations = violations(&Rules::parse(DENY), &metadata).unwrap();
        assert_eq!(
            violations,
            [
                "openssl-sys is banned: one TLS stack; `cargo tree --invert openssl-sys` shows who brings it",
                "viral: licence GPL-3.0 is not allowed in deny.toml",
                "unknown: licence (unnamed) is not allowed in deny.toml",
                "short: `Needed.` in deny.toml is not a sentence",
                "silent, used by us, has no sentence in deny.toml",
                "gone has a sentence in deny.toml and is not a direct dependency",
            ]
        );
    }
}
