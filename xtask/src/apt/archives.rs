//! Which package archives the host uses, from its apt sources: mirrors and keys are never guessed.

use anyhow::{Result, bail};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::tools;

/// A mirror of the distribution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Archive {
    /// As in the host's sources.
    pub(super) uri: String,
    /// Suites that the host takes from it.
    suites: Vec<String>,
    /// `Signed-By` and `Trusted`, as they would follow the colon in a deb822 stanza.
    options: BTreeMap<&'static str, String>,
}

impl Archive {
    /// A deb822 stanza for another suite of this mirror.
    pub(super) fn stanza(&self, suite: &str) -> String {
        let mut stanza = format!("Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n", self.uri);
        for (key, value) in &self.options {
            stanza.push_str(&format!("{key}: {value}\n"));
        }
        stanza
    }
}

/// The host's archives; those of its own release only, where that is known.
///
/// # Errors
/// Its apt has no archive with a `main` component.
pub(super) fn of_host() -> Result<Vec<Archive>> {
    let mut found = Vec::new();
    for path in source_files() {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        if path.extension().is_some_and(|extension| extension == "sources") {
            found.extend(deb822(&text));
        } else {
            found.extend(one_line(&text));
        }
    }
    let archives = choose(found, host_release().as_deref());
    if archives.is_empty() {
        bail!("the apt sources of this machine name no archive of the distribution");
    }
    Ok(archives)
}

/// The code name of the host's release.
pub(super) fn host_release() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))?
        .trim_matches('"');
    (!name.is_empty()).then(|| name.to_owned())
}

/// The files that apt reads, as apt says.
fn source_files() -> Vec<PathBuf> {
    let shell = [
        "shell",
        "LIST",
        "Dir::Etc::sourcelist/f",
        "PARTS",
        "Dir::Etc::sourceparts/d",
    ];
    let said = tools::quietly(Command::new("apt-config").args(shell)).unwrap_or_default();
    let value = |name: &str, default: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        PathBuf::from(line.map_or(default, |value| value.trim_matches('\'')))
    };
    let mut files = vec![value("LIST", "/etc/apt/sources.list")];
    let parts = value("PARTS", "/etc/apt/sources.list.d");
    let entries = fs::read_dir(&parts)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path());
    let mut parts: Vec<_> = entries.filter(|path| is_source(path)).collect();
    parts.sort();
    files.append(&mut parts);
    files
}

fn is_source(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "sources" || extension == "list")
}

/// One entry per mirror, in the order of the sources, without security archives: they have no other suites.
fn choose(found: Vec<Archive>, release: Option<&str>) -> Vec<Archive> {
    let of_release = |archive: &Archive| {
        release.is_some_and(|release| {
            archive
                .suites
                .iter()
                .any(|suite| suite == release || suite.strip_prefix(release) == Some("-updates"))
        })
    };
    let any_of_release = found.iter().any(of_release);
    let mut chosen: Vec<Archive> = Vec::new();
    for archive in found {
        let security = archive.suites.iter().all(|suite| suite.ends_with("-security"));
        let known = chosen.iter().any(|other| other.uri == archive.uri);
        if !security && !known && (of_release(&archive) || !any_of_release) {
            chosen.push(archive);
        }
    }
    chosen
}

/// sources.list(5), "DEB822-STYLE FORMAT". A field's continuation lines stay as they are: `Signed-By` may hold a key.
fn deb822(text: &str) -> Vec<Archive> {
    let mut archives = Vec::new();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for stanza in lines.split(|line| line.trim().is_empty()) {
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in stanza {
            if line.starts_with([' ', '\t']) {
                if let Some((_, value)) = fields.last_mut() {
                    value.push('\n');
                    value.push_str(line);
                }
            } else if let Some((key, value)) = line.split_once(':') {
                fields.push((key.trim().to_lowercase(), value.trim().to_owned()));
            }
        }
        let field = |key: &str| {
            fields
                .iter()
                .find(|(name, _)| name == key)
                .map_or("", |(_, value)| value.as_str())
        };
        let has = |key: &str, word: &str| field(key).split_whitespace().any(|found| found == word);
        if has("enabled", "no") || !has("types", "deb") || !has("components", "main") {
            continue;
        }
        let options = ["Signed-By", "Trusted"].into_iter();
        let options = options
            .map(|key| (key, field(&key.to_lowercase()).to_owned()))
            .filter(|(_, value)| !value.is_empty());
        for uri in field("uris").split_whitespace() {
            archives.push(Archive {
                uri: uri.to_owned(),
                suites: field("suites").split_whitespace().map(str::to_owned).collect(),
                options: options.clone().collect(),
            });
        }
    }
    archives
}

/// sources.list(5), "ONE-LINE-STYLE FORMAT": `deb [option=value ...] uri suite component ...`
fn one_line(text: &str) -> Vec<Archive> {
    let mut archives = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let Some(rest) = line
            .trim_start()
            .strip_prefix("deb")
            .filter(|rest| rest.starts_with([' ', '\t']))
        else {
            continue;
        };
        let rest = rest.trim_start();
        let (given, rest) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((given, rest)) => (given, rest),
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else {
            continue;
        };
        if !words.any(|component| component == "main") {
            continue;
        }
        let option = |word: &str| match word.split_once('=')? {
            ("signed-by", value) => Some(("Signed-By", value.to_owned())),
            ("trusted", value) => Some(("Trusted", value.to_owned())),
            _ => None,
        };
        archives.push(Archive {
            uri: uri.to_owned(),
            suites: vec![suite.to_owned()],
            options: given.split_whitespace().filter_map(option).collect(),
        });
    }
    archives
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "Types: deb deb-src\n# a comment\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n\
                          Components: main contrib\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n\n\
                          Types: deb\nURIs: http://mirror.example/debian-security\nSuites: bookworm-security\nComponents: main\n\n\
                          Types: deb\nEnabled: no\nURIs: http://off.example/debian\nSuites: bookworm\nComponents: main\n";

    #[test]
    fn a_stanza_keeps_mirror_and_key_and_changes_the_suite() {
        let archives = choose(deb822(DEB822), Some("bookworm"));
        assert_eq!(archives.len(), 1, "{archives:?}");
        assert_eq!(
            archives[0].stanza("sid"),
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: sid\nComponents: main\n\
             Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n"
        );
    }

    #[test]
    fn one_line_sources_keep_their_options() {
        let text = "# deb http://off.example/debian bookworm main\ndeb-src http://mirror.example/debian bookworm main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main # x\ndeb broken\n";
        let archives = one_line(text);
        assert_eq!(archives.len(), 1, "{archives:?}");
        assert!(
            archives[0]
                .stanza("sid")
                .ends_with("Components: main\nSigned-By: /k.gpg\n")
        );
    }

    #[test]
    fn other_peoples_archives_are_left_alone() {
        let text = "deb https://vendor.example/apt nodistro main\ndeb http://mirror.example/debian bookworm main\n\
                    deb http://mirror.example/debian bookworm-updates main\n";
        let uris = |release| {
            choose(one_line(text), release)
                .into_iter()
                .map(|archive| archive.uri)
                .collect::<Vec<_>>()
        };
        assert_eq!(uris(Some("bookworm")), ["http://mirror.example/debian"]);
        // `Suites: stable` on a bookworm host: nothing names the release, so every archive is asked.
        assert_eq!(uris(Some("trixie")).len(), 2);
    }
}
