//! Packages of the distribution, fetched with a private apt configuration. The host's own is read, never changed, and
//! nothing is installed.

mod archives;

use crate::tools;
use anyhow::{Context as _, Result, anyhow, bail};
use archives::Archive;
use std::{
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

/// Suites that may carry a version, after the host's own and its backports.
const SUITES: [&str; 4] = ["trixie", "trixie-backports", "forky", "sid"];

/// apt with its own state, cache and sources; proxies, credentials and keys stay the host's.
pub(crate) struct PrivateApt {
    dir: Scratch,
    archives: Vec<Archive>,
}

impl PrivateApt {
    /// Writes its configuration.
    ///
    /// # Errors
    /// The host has no apt, or its apt has no archive of the distribution.
    pub(crate) fn new() -> Result<Self> {
        for program in ["apt-get", "apt-cache", "dpkg-deb"] {
            tools::find(program).with_context(|| format!("{program} is not on this machine"))?;
        }
        let archives = archives::of_host()?;
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "fairlead-apt-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = Scratch::new(&env::temp_dir().join(name))?;
        for folder in ["state/lists/partial", "cache/archives/partial", "none", "package"] {
            fs::create_dir_all(dir.0.join(folder))?;
        }
        fs::write(dir.0.join("status"), "")?;
        let mut configuration = String::new();
        for (key, path) in [
            ("Dir::State", "state"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
            ("Dir::Etc::SourceList", "fairlead.sources"),
            ("Dir::Etc::SourceParts", "none"),
            ("Dir::Etc::Preferences", "none/preferences"),
            ("Dir::Etc::PreferencesParts", "none"),
        ] {
            writeln!(configuration, "{key} \"{}\";", dir.0.join(path).display())?;
        }
        // No translations; no hooks meant for the host's own index; no release that these sources do not have.
        configuration.push_str("Acquire::Languages \"none\";\nAcquire::Retries \"2\";\n");
        // An index that could not be fetched is an error, not a warning: the report must name the network.
        configuration.push_str("APT::Update::Error-Mode \"any\";\n");
        for key in [
            "APT::Update::Pre-Invoke",
            "APT::Update::Post-Invoke",
            "APT::Update::Post-Invoke-Success",
            "APT::Default-Release",
        ] {
            writeln!(configuration, "#clear {key};")?;
        }
        fs::write(dir.0.join("apt.conf"), configuration)?;
        Ok(Self { dir, archives })
    }

    /// A package's file, from the first suite that has a version that matches; checked by apt against the archive's
    /// signature. Gone when `self` is.
    ///
    /// # Errors
    /// No suite has it, with the last cause; `version` is what the message calls it.
    pub(crate) fn fetch(&self, package: &str, version: &str, matches: impl Fn(&str) -> bool) -> Result<PathBuf> {
        let release = archives::host_release();
        let own = release
            .iter()
            .flat_map(|name| [name.clone(), format!("{name}-backports")]);
        let mut suites: Vec<String> = Vec::new();
        for suite in own.chain(SUITES.map(str::to_owned)) {
            if !suites.contains(&suite) {
                suites.push(suite);
            }
        }
        let mut last = None;
        for suite in &suites {
            match self.fetch_from(suite, package, &matches) {
                Ok(Some(file)) => return Ok(file),
                Ok(None) => {}
                Err(error) => last = Some(error),
            }
        }
        let uris: Vec<&str> = self.archives.iter().map(|archive| archive.uri.as_str()).collect();
        let cause = format!("no {package} {version} in {} of {}", suites.join(", "), uris.join(", "));
        Err(match last {
            Some(error) => error.context(cause),
            None => anyhow!(cause),
        })
    }

    /// Files of packages of the host's own release and of all that they depend on, in a folder that is gone when `self` is.
    ///
    /// # Errors
    /// One of them cannot be had.
    pub(crate) fn closure(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let suite = archives::host_release().context("/etc/os-release names no release of the distribution")?;
        let sources: Vec<String> = self.archives.iter().map(|archive| archive.stanza(&suite)).collect();
        fs::write(self.dir.0.join("fairlead.sources"), sources.join("\n"))?;
        // Fails when one of several archives lacks the suite; a package that is missing says so below.
        let _ = tools::quietly(self.command("apt-get").arg("update"));
        let mut depends = self.command("apt-cache");
        depends.args([
            "depends",
            "--recurse",
            "--no-recommends",
            "--no-suggests",
            "--no-conflicts",
            "--no-breaks",
        ]);
        let listed = tools::quietly(depends.args(["--no-replaces", "--no-enhances"]).args(packages))?;
        let names = listed
            .lines()
            .filter(|line| line.starts_with(|it: char| it.is_ascii_alphanumeric()));
        let folder = self.dir.0.join("package");
        tools::quietly(self.command("apt-get").current_dir(&folder).arg("download").args(names))?;
        let files = fs::read_dir(&folder)?.filter_map(Result::ok).map(|entry| entry.path());
        Ok(files
            .filter(|path| path.extension().is_some_and(|it| it == "deb"))
            .collect())
    }

    fn fetch_from(&self, suite: &str, package: &str, matches: impl Fn(&str) -> bool) -> Result<Option<PathBuf>> {
        let sources: Vec<String> = self.archives.iter().map(|archive| archive.stanza(suite)).collect();
        fs::write(self.dir.0.join("fairlead.sources"), sources.join("\n"))?;
        // Fails when one of several archives lacks the suite; what was fetched counts.
        let updated = tools::quietly(self.command("apt-get").arg("update"));
        let listed = tools::quietly(self.command("apt-cache").args(["madison", package]))?;
        let Some(found) = versions(&listed).find(|it| matches(it)) else {
            return updated.map(|_| None);
        };
        let folder = self.dir.0.join("package");
        tools::quietly(
            self.command("apt-get")
                .current_dir(&folder)
                .arg("download")
                .arg(format!("{package}={found}")),
        )?;
        let mut files = fs::read_dir(&folder)?.filter_map(Result::ok).map(|entry| entry.path());
        let file = files.find(|path| path.extension().is_some_and(|extension| extension == "deb"));
        Ok(Some(file.context("apt-get download wrote no package")?))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("LC_ALL", "C.UTF-8")
            .arg("-q")
            .arg("-c")
            .arg(self.dir.0.join("apt.conf"));
        command
    }
}

/// The versions in the output of `apt-cache madison`: `package | version | source`.
fn versions(madison: &str) -> impl Iterator<Item = &str> {
    madison.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim)
}

/// A directory that goes when its owner does. Never one that was there before: a name in `/tmp` may be a trap.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Makes it.
    ///
    /// # Errors
    /// It is there, or cannot be made.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        if path.symlink_metadata().is_ok() {
            bail!("{} is in the way: remove it", path.display());
        }
        fs::create_dir(path).with_context(|| path.display().to_string())?;
        Ok(Self(path.to_owned()))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_a_listing() {
        let madison = "  kubectl | 1.36.4-1 | http://mirror/debian sid/main amd64 Packages\n  \
                       kubectl | 1.32.3+ds-2 | http://mirror/debian trixie/main amd64 Packages\n";
        assert_eq!(versions(madison).collect::<Vec<_>>(), ["1.36.4-1", "1.32.3+ds-2"]);
        assert_eq!(versions("N: Unable to locate package kubectl\n").count(), 0);
    }
}
