//! containerd as a child: configuration, start, adoption of one that outlived us, images from archives.

use super::layout::Layout;
use anyhow::{Context as _, Result, anyhow, bail};
use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    net::UnixStream,
    process::Command,
    time::{Instant, sleep},
};

/// Time until containerd must answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time until containerd must have ended after SIGTERM.
const END: Duration = Duration::from_secs(10);
/// Pause between two looks at another process, which tells nobody when its socket is there.
const LOOK: Duration = Duration::from_millis(5);
/// containerd's namespace of Kubernetes.
const NAMESPACE: &str = "k8s.io";

/// A container runtime that answers.
#[derive(Debug)]
pub(crate) struct Runtime {
    /// Its CRI socket.
    pub(crate) socket: PathBuf,
    /// What it is, for people.
    pub(crate) described: String,
}

/// Where containerd's things are.
struct Paths {
    config: PathBuf,
    root: PathBuf,
    state: PathBuf,
    socket: PathBuf,
    pid: PathBuf,
    log: PathBuf,
}

impl Paths {
    fn of(layout: &Layout) -> Self {
        let run = layout.run.join("containerd");
        Self {
            config: layout.data.join("containerd.toml"),
            root: layout.data.join("containerd"),
            socket: run.join("containerd.sock"),
            pid: layout.run.join("containerd.pid"),
            log: layout.log().join("containerd.log"),
            state: run,
        }
    }
}

/// Where the CNI plugin and its configuration lie.
#[derive(Clone, Debug)]
pub(crate) struct CniPaths {
    /// Plugin binaries.
    pub(crate) bin: PathBuf,
    /// Network configuration.
    pub(crate) conf: PathBuf,
}

impl CniPaths {
    /// Those of a cluster.
    pub(crate) fn of(layout: &Layout) -> Self {
        Self {
            bin: layout.data.join("cni/bin"),
            conf: layout.data.join("cni/net.d"),
        }
    }
}

/// Starts containerd, or adopts the one that an earlier run of this cluster left with its pods.
///
/// # Errors
/// containerd or runc is not installed, or containerd does not come up: the end of its log is in the error.
pub(crate) async fn start(layout: &Layout, pause: &str) -> Result<Runtime> {
    let paths = Paths::of(layout);
    let described = version().await?;
    let text = config(&paths, &CniPaths::of(layout), pause, major(&described));
    let unchanged = fs::read_to_string(&paths.config).is_ok_and(|it| it == text);
    if let Some(pid) = running(&paths) {
        if unchanged && answers(&paths.socket).await {
            return Ok(Runtime {
                socket: paths.socket,
                described: format!("{described}, still running (process {pid})"),
            });
        }
        // Its containers go on under their shims.
        end(&paths, pid).await?;
    }
    let refused = |path: &Path| {
        let path = path.display().to_string();
        move || format!("{path} cannot be written")
    };
    fs::create_dir_all(&paths.state).with_context(refused(&paths.state))?;
    fs::write(&paths.config, text).with_context(refused(&paths.config))?;
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&paths.log)
        .with_context(refused(&paths.log))?;
    let mut child = Command::new("containerd")
        .arg("--config")
        .arg(&paths.config)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Out of the terminal's group: Ctrl-C is for us, and pods outlive this process.
        .process_group(0)
        .spawn()
        .context("containerd cannot be started")?;
    let pid = child.id().context("containerd ended at once")?;
    fs::write(&paths.pid, pid.to_string()).with_context(refused(&paths.pid))?;
    let begun = Instant::now();
    while !answers(&paths.socket).await {
        if let Some(status) = child.try_wait()? {
            bail!(
                "containerd ended ({status}) before it answered; its log {} ends:\n{}",
                paths.log.display(),
                tail(&paths.log)
            );
        }
        if begun.elapsed() > PATIENCE {
            bail!(
                "containerd does not answer on {} after {} s; its log {} ends:\n{}",
                paths.socket.display(),
                PATIENCE.as_secs(),
                paths.log.display(),
                tail(&paths.log)
            );
        }
        sleep(LOOK).await;
    }
    // Reaped whenever it ends.
    tokio::spawn(async move { child.wait().await });
    Ok(Runtime {
        socket: paths.socket,
        described,
    })
}

/// Ends containerd, if it runs; containers have been ended before.
///
/// # Errors
/// It does not end.
pub(crate) async fn stop(layout: &Layout) -> Result<bool> {
    let paths = Paths::of(layout);
    let Some(pid) = running(&paths) else { return Ok(false) };
    end(&paths, pid).await?;
    Ok(true)
}

/// The socket of a containerd of this cluster that runs.
pub(crate) fn socket_of_running(layout: &Layout) -> Option<PathBuf> {
    let paths = Paths::of(layout);
    running(&paths).map(|_| paths.socket)
}

async fn end(paths: &Paths, pid: u32) -> Result<()> {
    let target = nix::unistd::Pid::from_raw(i32::try_from(pid)?);
    // Gone already is as good.
    let _ = nix::sys::signal::kill(target, nix::sys::signal::Signal::SIGTERM);
    let begun = Instant::now();
    while running(paths) == Some(pid) {
        if begun.elapsed() > END {
            bail!("containerd (process {pid}) does not end; end it by hand: kill -9 {pid}");
        }
        sleep(LOOK).await;
    }
    let _ = fs::remove_file(&paths.pid);
    Ok(())
}

/// The process of the pid file, if it is a containerd with our configuration: process ids are used again.
fn running(paths: &Paths) -> Option<u32> {
    let pid: u32 = fs::read_to_string(&paths.pid).ok()?.trim().parse().ok()?;
    let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let config = paths.config.as_os_str().as_encoded_bytes();
    words.split(|byte| *byte == 0).any(|word| word == config).then_some(pid)
}

async fn answers(socket: &Path) -> bool {
    UnixStream::connect(socket).await.is_ok()
}

/// `containerd 1.6.20`, and a check that runc is there too.
async fn version() -> Result<String> {
    let remedy = "install containerd and runc (Debian: apt-get install containerd runc), or name a running runtime with \
                  --container-runtime-endpoint";
    for (program, argument) in [("runc", "--version"), ("containerd", "--version")] {
        let output = Command::new(program).arg(argument).output().await;
        let output = output.map_err(|error| anyhow!("{program} cannot be run: {error}; {remedy}"))?;
        if program == "containerd" {
            let text = String::from_utf8_lossy(&output.stdout);
            let version = text
                .split_whitespace()
                .find(|it| it.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit()));
            let version = version.map(|it| it.trim_start_matches('v')).unwrap_or_default();
            let version = version.split(['~', '+', '-']).next().unwrap_or_default();
            return Ok(format!("containerd {version}"));
        }
    }
    bail!("containerd says no version; {remedy}")
}

fn major(described: &str) -> u32 {
    let version = described.rsplit(' ').next().unwrap_or_default();
    version.split('.').next().and_then(|it| it.parse().ok()).unwrap_or(1)
}

/// The configuration, for containerd 1.x and 2.x.
fn config(paths: &Paths, cni: &CniPaths, pause: &str, major: u32) -> String {
    let quoted = |path: &Path| serde_json::Value::from(path.display().to_string()).to_string();
    let mut text = format!(
        "# Written by fairlead at every start.\nversion = {}\nroot = {}\nstate = {}\noom_score = 0\n\
         disabled_plugins = [\"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.zfs\", \
         \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.blockfile\", \
         \"io.containerd.nri.v1.nri\", \"io.containerd.tracing.processor.v1.otlp\", \"io.containerd.internal.v1.opt\"]\n\
         [grpc]\naddress = {}\n[metrics]\naddress = \"\"\n",
        if major >= 2 { 3 } else { 2 },
        quoted(&paths.root),
        quoted(&paths.state),
        quoted(&paths.socket),
    );
    // A write to a string cannot fail.
    let _ = if major >= 2 {
        write!(
            text,
            "[plugins.\"io.containerd.cri.v1.images\"]\nuse_local_image_pull = true\n\
             [plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = {pause:?}\n\
             [plugins.\"io.containerd.cri.v1.runtime\"]\n{}\
             [plugins.\"io.containerd.cri.v1.runtime\".cni]\nbin_dirs = [{}]\nconf_dir = {}\n\
             [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\
             [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc.options]\nSystemdCgroup = false\n",
            RUNTIME,
            quoted(&cni.bin),
            quoted(&cni.conf),
        )
    } else {
        write!(
            text,
            "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = {pause:?}\n\
             disable_tcp_service = true\nstream_server_address = \"127.0.0.1\"\nstream_server_port = \"0\"\n{}\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = {}\nconf_dir = {}\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\nSystemdCgroup = false\n",
            RUNTIME,
            quoted(&cni.bin),
            quoted(&cni.conf),
        )
    };
    text
}

/// Settings that both generations share: without `CAP_SYS_RESOURCE` scores cannot be lowered, so that is not tried; network
/// namespaces lie below our own state, where `down` finds them.
const RUNTIME: &str = "restrict_oom_score_adj = true\ndisable_apparmor = true\nnetns_mounts_under_state_dir = true\n";

/// Last lines of a log.
fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(8).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// Imports the pause image, the archives of the data directory's folder `images`, and `more`; what was imported before and
/// is unchanged is left alone. Returns the names of the images in these archives, and how many archives were imported now.
///
/// # Errors
/// An archive that containerd refuses: which and why.
pub(crate) async fn import(layout: &Layout, socket: &Path, more: &[PathBuf]) -> Result<(Vec<String>, usize)> {
    let marks = layout.data.join("imported");
    fs::create_dir_all(&marks).with_context(|| format!("{} cannot be made", marks.display()))?;
    let pause = layout.run.join("pause.tar");
    let known = format!("name=={}", fairlead_images::PAUSE_IMAGE);
    let known = ctr(socket, &["images", "list", "--quiet", &known]).await?;
    if known.trim().is_empty() {
        let file = fs::File::create(&pause).with_context(|| format!("{} cannot be written", pause.display()))?;
        fairlead_images::pause()?.write(file)?;
        import_archive(socket, &pause).await.context("the pause image")?;
        fs::remove_file(&pause)?;
    }
    let images = layout.images();
    let entries = fs::read_dir(&images).with_context(|| format!("{} cannot be read", images.display()))?;
    let mut archives = entries
        .map(|it| it.map(|it| it.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    archives.sort();
    archives.extend(more.iter().cloned());
    let (mut names, mut imported) = (Vec::new(), 0);
    for archive in archives {
        let shown = archive.display();
        let meta = fs::metadata(&archive).with_context(|| format!("the image archive {shown} cannot be read"))?;
        if !meta.is_file() {
            continue;
        }
        // A file that was changed is imported again, also where a copy kept its time.
        let name = archive.file_name().unwrap_or_default().to_string_lossy();
        let mark = format!(
            "{name}@{}-{}-{}.{}",
            meta.size(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ino()
        );
        let mark = marks.join(mark);
        let found = match fs::read_to_string(&mark) {
            Ok(found) => found,
            Err(_) => {
                let said = import_archive(socket, &archive).await?;
                // `unpacking NAME (DIGEST)...done`
                let found = said
                    .lines()
                    .filter_map(|line| line.strip_prefix("unpacking ")?.split(' ').next());
                let found = found.collect::<Vec<_>>().join("\n");
                fs::write(&mark, &found).with_context(|| format!("{} cannot be written", mark.display()))?;
                imported += 1;
                found
            }
        };
        names.extend(found.lines().map(str::to_owned));
    }
    Ok((names, imported))
}

/// Imports one archive: OCI layout or `docker save`, also compressed.
///
/// # Errors
/// What containerd says.
pub(crate) async fn import_archive(socket: &Path, archive: &Path) -> Result<String> {
    let shown = archive.display().to_string();
    ctr(socket, &["images", "import", &shown])
        .await
        .with_context(|| format!("{shown} cannot be imported; it must be an OCI archive or what `docker save` writes"))
}

async fn ctr(socket: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("ctr")
        .arg("--address")
        .arg(socket)
        .args(["--namespace", NAMESPACE])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .context("ctr cannot be run; it comes with containerd")?;
    if !output.status.success() {
        bail!("ctr: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_toml_of_their_generation() {
        let layout = Layout::of(Path::new("/data/\"x"), Some(Path::new("/run/x"))).unwrap();
        for (major, version, section) in [
            (1, 2, "io.containerd.grpc.v1.cri"),
            (2, 3, "io.containerd.cri.v1.runtime"),
        ] {
            let text = config(
                &Paths::of(&layout),
                &CniPaths::of(&layout),
                "fairlead.dev/pause:1",
                major,
            );
            let value: toml::Table = text.parse().unwrap();
            assert_eq!(value["version"].as_integer(), Some(version));
            assert_eq!(value["root"].as_str(), Some("/data/\"x/containerd"));
            let runtime = &value["plugins"][section];
            assert_eq!(runtime["restrict_oom_score_adj"].as_bool(), Some(true));
            assert_eq!(
                runtime["containerd"]["runtimes"]["runc"]["options"]["SystemdCgroup"].as_bool(),
                Some(false)
            );
            assert_eq!(runtime["cni"]["conf_dir"].as_str(), Some("/data/\"x/cni/net.d"));
        }
        assert_eq!(
            (
                major("containerd 1.6.20"),
                major("containerd 2.1.9"),
                major("containerd")
            ),
            (1, 2, 1)
        );
    }

    #[test]
    fn another_process_with_the_same_id_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::of(&dir.path().join("d"), Some(&dir.path().join("r"))).unwrap();
        let paths = Paths::of(&layout);
        fs::create_dir_all(&layout.run).unwrap();
        fs::write(&paths.pid, std::process::id().to_string()).unwrap();
        assert_eq!(running(&paths), None);
    }
}
