//! The sources of the standard library of the rustc in use, which `-Z build-std` compiles for BPF.
//!
//! First choice is rustup. Where it has none to give, the distribution's `rust-src` package of exactly this version is
//! fetched with a private apt configuration and its `library` folder put into the sysroot. The host's own apt
//! configuration is read, never changed, and nothing is installed.

mod archives;

use crate::{bpf, progress::Progress, tools};
use anyhow::{Context as _, Result, anyhow, bail};
use archives::Archive;
use std::{
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Suites that may carry the version, after the host's own and its backports.
const SUITES: [&str; 4] = ["trixie", "trixie-backports", "forky", "sid"];

/// Makes sure that they are there.
pub(crate) fn run(progress: &Progress) -> Result<()> {
    let sysroot = bpf::sysroot().map_err(|cause| anyhow!("{cause}; install Rust, see rust-version in Cargo.toml"))?;
    if bpf::has_library(&sysroot) {
        progress.there(format_args!("rust-src ({})", bpf::library_dir(&sysroot).display()));
        return Ok(());
    }
    let version = rustc_version()?;
    let step = progress.begin(format_args!("installing rust-src {version} with rustup"));
    let rustup = match from_rustup(&sysroot) {
        Ok(()) => {
            step.done();
            return Ok(());
        }
        Err(error) => error,
    };
    step.failed();
    progress.say(format_args!("{rustup:#}"));
    let step = progress.begin(format_args!(
        "fetching the distribution's rust-src {version}, to unpack it into {}",
        sysroot.display()
    ));
    match from_distribution(&sysroot, &version) {
        Ok(()) => {
            step.done();
            Ok(())
        }
        Err(distribution) => {
            step.failed();
            bail!(
                "the standard library's sources for rustc {version} are missing and could not be fetched\n\
                 rustup: {rustup:#}\n\
                 distribution: {distribution:#}\n\
                 remedy: give one of the two network access and run again, or put the folder `library` of the \
                 rust-src component {version} at {}",
                bpf::library_dir(&sysroot).display()
            )
        }
    }
}

/// As in `1.95.0`, or `1.97.0-nightly`, which no distribution has.
fn rustc_version() -> Result<String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let text = tools::quietly(Command::new(rustc).arg("--version"))?;
    Ok(text
        .split_whitespace()
        .nth(1)
        .context("rustc --version names no version")?
        .to_owned())
}

fn from_rustup(sysroot: &Path) -> Result<()> {
    let rustup = tools::find("rustup").context("not on PATH")?;
    let toolchains = sysroot.parent().filter(|parent| parent.ends_with("toolchains"));
    let name = toolchains.and(sysroot.file_name());
    let name = name.with_context(|| format!("rustc's sysroot {} is not one of its toolchains", sysroot.display()))?;
    tools::quietly(
        Command::new(rustup)
            .args(["component", "add", "rust-src", "--toolchain"])
            .arg(name),
    )?;
    if !bpf::has_library(sysroot) {
        let name = name.display();
        bail!(
            "it takes rust-src for installed, yet the files are gone; `rustup component remove rust-src --toolchain {name}`"
        );
    }
    Ok(())
}

fn from_distribution(sysroot: &Path, version: &str) -> Result<()> {
    if sysroot == Path::new("/usr") {
        bail!("this rustc is the distribution's own: install its package rust-src of the same version");
    }
    for program in ["apt-get", "apt-cache", "dpkg-deb", "tar"] {
        tools::find(program).with_context(|| format!("{program} is not on this machine"))?;
    }
    let target = bpf::library_dir(sysroot);
    let parent = target.parent().context("the sysroot has no parent")?;
    fs::create_dir_all(parent)
        .with_context(|| format!("{} is not writable for this user: run as its owner", parent.display()))?;

    let apt = PrivateApt::new(&env::temp_dir())?;
    let package = apt.fetch(version)?;
    unpack(&package, version, parent, &target)
}

/// Unpacks beside the target and renames, so that an interrupted run leaves nothing that looks complete.
fn unpack(package: &Path, version: &str, parent: &Path, target: &Path) -> Result<()> {
    let unpacking = Scratch::new(parent.join(format!(".unpacking-{}", std::process::id())))?;
    let folder = format!("usr/src/rustc-{version}/library");
    let mut archive = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("dpkg-deb could not start")?;
    let stream = archive.stdout.take().context("dpkg-deb has no stdout")?;
    let status = Command::new("tar")
        .args(["--extract", "--no-same-owner", "--file", "-", "--directory"])
        .arg(&unpacking.0)
        .arg(format!("./{folder}"))
        .stdin(stream)
        .status()
        .context("tar could not start")?;
    let archive = archive.wait()?;
    if !status.success() || !archive.success() {
        bail!(
            "{} could not be unpacked (dpkg-deb: {archive}, tar: {status})",
            package.display()
        );
    }
    if target.symlink_metadata().is_ok() {
        fs::remove_dir_all(target).with_context(|| format!("the incomplete {}", target.display()))?;
    }
    fs::rename(unpacking.0.join(&folder), target).with_context(|| target.display().to_string())?;
    let sysroot = parent.ancestors().nth(4).context("the sysroot has no parent")?;
    if !bpf::has_library(sysroot) {
        bail!("{} holds no complete standard library", package.display());
    }
    Ok(())
}

/// apt with its own state, cache and sources; proxies, credentials and keys stay the host's.
struct PrivateApt {
    dir: Scratch,
    archives: Vec<Archive>,
}

impl PrivateApt {
    fn new(temp: &Path) -> Result<Self> {
        let archives = archives::of_host()?;
        let dir = Scratch::new(temp.join(format!("fairlead-rust-src-{}", std::process::id())))?;
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

    /// The package of this version, from the first suite that has it.
    fn fetch(&self, version: &str) -> Result<PathBuf> {
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
            match self.fetch_from(suite, version) {
                Ok(Some(package)) => return Ok(package),
                Ok(None) => {}
                Err(error) => last = Some(error),
            }
        }
        let uris: Vec<&str> = self.archives.iter().map(|archive| archive.uri.as_str()).collect();
        let cause = format!("no rust-src {version} in {} of {}", suites.join(", "), uris.join(", "));
        Err(match last {
            Some(error) => error.context(cause),
            None => anyhow!(cause),
        })
    }

    fn fetch_from(&self, suite: &str, version: &str) -> Result<Option<PathBuf>> {
        let sources: Vec<String> = self.archives.iter().map(|archive| archive.stanza(suite)).collect();
        fs::write(self.dir.0.join("fairlead.sources"), sources.join("\n"))?;
        // Fails when one of several archives lacks the suite; what was fetched counts.
        let updated = tools::quietly(self.command("apt-get").arg("update"));
        let listed = tools::quietly(self.command("apt-cache").args(["madison", "rust-src"]))?;
        let Some(found) = matching(&listed, version) else {
            return updated.map(|_| None);
        };
        let folder = self.dir.0.join("package");
        tools::quietly(
            self.command("apt-get")
                .current_dir(&folder)
                .arg("download")
                .arg(format!("rust-src={found}")),
        )?;
        let package = fs::read_dir(&folder)?.filter_map(Result::ok).map(|entry| entry.path());
        let package = package
            .into_iter()
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
        Ok(Some(package.context("apt-get download wrote no package")?))
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

/// The package version of an upstream version in the output of `apt-cache madison`: `package | version | source`.
fn matching<'a>(madison: &'a str, version: &str) -> Option<&'a str> {
    let prefix = format!("{version}+dfsg");
    madison
        .lines()
        .filter_map(|line| line.split('|').nth(1))
        .map(str::trim)
        .find(|found| found.starts_with(&prefix))
}

/// A directory that goes when its owner does. Never one that was there before: a name in `/tmp` may be a trap.
struct Scratch(PathBuf);

impl Scratch {
    fn new(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
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
    fn only_exactly_this_version_matches() {
        let madison = "  rust-src | 1.96.1+dfsg1-2~bpo13+1 | http://mirror/debian trixie-backports/main amd64 Packages\n  \
                       rust-src | 1.95.0+dfsg1-2~bpo13+1 | http://mirror/debian trixie-backports/main amd64 Packages\n";
        assert_eq!(matching(madison, "1.95.0"), Some("1.95.0+dfsg1-2~bpo13+1"));
        assert_eq!(matching(madison, "1.95"), None);
        assert_eq!(matching(madison, "1.95.0-nightly"), None);
        assert_eq!(matching("N: Unable to locate package rust-src\n", "1.95.0"), None);
    }
}
