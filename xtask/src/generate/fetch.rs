//! Downloads of upstream's published packages: pinned by name and SHA-256, kept in the user's cache.

use crate::{progress::Progress, tools};
use anyhow::{Context as _, Result, bail};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A file that upstream or a distribution published.
struct Package {
    /// Its file name, also in the cache.
    file: &'static str,
    sha256: &'static str,
    /// Where it may be, in order: a distribution's pool forgets old versions, its archive of snapshots does not.
    urls: &'static [&'static str],
}

/// Debian's packages of the Go libraries; each unpacks below `usr/share/gocode/src`.
const GO: [Package; 5] = [
    Package {
        file: "golang-k8s-api-dev_0.36.4-1_all.deb",
        sha256: "0b5f0e6bb3c55edf6a564496c5997b729e0b03c6597891a32dac9b6d71b9e109",
        urls: &[
            "http://deb.debian.org/debian/pool/main/g/golang-k8s-api/golang-k8s-api-dev_0.36.4-1_all.deb",
            "http://snapshot.debian.org/file/11886380f4df39e3aa9287b4c030e50d862b7a7b",
        ],
    },
    Package {
        file: "golang-k8s-apimachinery-dev_0.36.4-3_all.deb",
        sha256: "020045b2e32576be3350f382133cefaa6342f17ab8df24175667f6882b32925b",
        urls: &[
            "http://deb.debian.org/debian/pool/main/g/golang-k8s-apimachinery/golang-k8s-apimachinery-dev_0.36.4-3_all.deb",
            "http://snapshot.debian.org/file/2b86658571e92a894c093849c0a7fd704693a88a",
        ],
    },
    Package {
        file: "golang-k8s-apiextensions-apiserver-dev_0.36.4-1_all.deb",
        sha256: "2b99dfbbdbea3372c625abfb6fcbdaf9ea79e36110bf06a66ac014c25f9babf8",
        urls: &[
            "http://deb.debian.org/debian/pool/main/g/golang-k8s-apiextensions-apiserver/golang-k8s-apiextensions-apiserver-dev_0.36.4-1_all.deb",
            "http://snapshot.debian.org/file/bb75b10abd8dd04c5719fb2c6873485dbc4cfdf5",
        ],
    },
    Package {
        file: "golang-k8s-client-go-dev_0.36.4-1_all.deb",
        sha256: "959e75cd6a104d00a7b0262867f5064141a092dfd3ad55915033474c774e628a",
        urls: &[
            "http://deb.debian.org/debian/pool/main/g/golang-k8s-client-go/golang-k8s-client-go-dev_0.36.4-1_all.deb",
            "http://snapshot.debian.org/file/e24079ba1ca7e8d3887c64c21ba6067380680e87",
        ],
    },
    Package {
        file: "golang-k8s-metrics-dev_0.36.5-1_all.deb",
        sha256: "bec457b67431b5c54d80df463926ec25b880c5d33eb20589bfb7fe37aa118d7a",
        urls: &[
            "http://deb.debian.org/debian/pool/main/g/golang-k8s-metrics/golang-k8s-metrics-dev_0.36.5-1_all.deb",
            "http://snapshot.debian.org/file/acd2d289387a9b156bee18eac5a4a974988825e1",
        ],
    },
];

/// The published JSON schemas of all served types.
const SCHEMAS: Package = Package {
    file: "kubernetes_validate-1.37.0-py3-none-any.whl",
    sha256: "85136d018a27b50ec7fc049d902bfa5193f5976807e6c0f408e3ab6fe078cad9",
    urls: &[
        "https://files.pythonhosted.org/packages/b0/50/104f3b5a41aba6737c5f2ffe76270398f3a7320dc4a4f3f88dfd5bc9af63/kubernetes_validate-1.37.0-py3-none-any.whl",
    ],
};

/// The member of [`SCHEMAS`] that is read.
const SCHEMA_MEMBER: &str = "kubernetes_validate/kubernetes-json-schema/v1.36.0-local/_definitions.json";

/// What was fetched, unpacked.
pub(super) struct Sources {
    /// Folders of Go import paths, one per package.
    pub(super) go: Vec<PathBuf>,
    /// The JSON schemas' definitions.
    pub(super) schemas: PathBuf,
}

/// Fetches and unpacks what the cache lacks.
///
/// # Errors
/// No address gave the file, its checksum differs, or `curl`, `sha256sum`, `dpkg-deb` or `unzip` failed.
pub(super) fn sources(progress: &Progress) -> Result<Sources> {
    for program in ["curl", "sha256sum", "dpkg-deb", "unzip", "gzip"] {
        tools::find(program).with_context(|| format!("{program} is not on this machine; install it"))?;
    }
    let cache = cache()?;
    let mut go = Vec::new();
    for package in &GO {
        let dir = package.unpacked(&cache, progress, |file, to| {
            let mut command = Command::new("dpkg-deb");
            command.arg("-x").arg(file).arg(to);
            command
        })?;
        go.push(dir.join("usr/share/gocode/src"));
    }
    let dir = SCHEMAS.unpacked(&cache, progress, |file, to| {
        let mut command = Command::new("unzip");
        command.arg("-q").arg(file).arg(SCHEMA_MEMBER).arg("-d").arg(to);
        command
    })?;
    Ok(Sources {
        go,
        schemas: dir.join(SCHEMA_MEMBER),
    })
}

/// `$XDG_CACHE_HOME/fairlead/upstream`.
fn cache() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    let dir = base
        .context("neither XDG_CACHE_HOME nor HOME says where downloads are kept")?
        .join("fairlead/upstream");
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    Ok(dir)
}

impl Package {
    /// The folder of its content. Unpacks beside it and renames, so that what is there is complete.
    fn unpacked(
        &self,
        cache: &Path,
        progress: &Progress,
        command: impl Fn(&Path, &Path) -> Command,
    ) -> Result<PathBuf> {
        let dir = cache.join(format!("{}.d", self.file));
        if dir.is_dir() {
            return Ok(dir);
        }
        let file = self.fetch(cache, progress)?;
        let unpacking = cache.join(format!("{}.{}", self.file, std::process::id()));
        fs::create_dir_all(&unpacking).with_context(|| unpacking.display().to_string())?;
        let done = tools::quietly(&mut command(&file, &unpacking))
            .and_then(|_| fs::rename(&unpacking, &dir).with_context(|| dir.display().to_string()));
        if done.is_err() {
            fs::remove_dir_all(&unpacking).with_context(|| unpacking.display().to_string())?;
        }
        done.map(|()| dir)
    }

    /// The downloaded file.
    fn fetch(&self, cache: &Path, progress: &Progress) -> Result<PathBuf> {
        let path = cache.join(self.file);
        if path.is_file() && sha256(&path)? == self.sha256 {
            return Ok(path);
        }
        let step = progress.begin(format_args!("fetching {}", self.file));
        let part = cache.join(format!("{}.{}.part", self.file, std::process::id()));
        let mut failures = Vec::new();
        for url in self.urls {
            match self.download(url, &part) {
                Ok(()) => {
                    fs::rename(&part, &path).with_context(|| path.display().to_string())?;
                    step.done();
                    return Ok(path);
                }
                Err(error) => failures.push(format!("{url}: {error:#}")),
            }
        }
        step.failed();
        bail!(
            "{} could not be fetched; put it at {} by hand\n{}",
            self.file,
            path.display(),
            failures.join("\n")
        )
    }

    fn download(&self, url: &str, part: &Path) -> Result<()> {
        let arguments = ["--fail", "--silent", "--show-error", "--location", "--max-time", "300"];
        let mut curl = Command::new("curl");
        curl.args(arguments).arg("--output").arg(part).arg(url);
        let done = tools::quietly(&mut curl).and_then(|_| match sha256(part)? {
            found if found == self.sha256 => Ok(()),
            found => bail!("its SHA-256 is {found}, not {}", self.sha256),
        });
        if done.is_err() && part.exists() {
            fs::remove_file(part).with_context(|| part.display().to_string())?;
        }
        done
    }
}

fn sha256(path: &Path) -> Result<String> {
    let said = tools::quietly(Command::new("sha256sum").arg(path))?;
    Ok(said.split_whitespace().next().unwrap_or_default().to_owned())
}
