//! OCI archives without docker: files, and programs of the distribution, put into layers.

use crate::{
    apt::{PrivateApt, Scratch},
    bpf, programs,
    progress::Progress,
    tools,
    workspace::Workspace,
};
use anyhow::{Context as _, Result};
use clap::ValueEnum;
use fairlead_images::{Image, Layer};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The test image's name; tests use it.
const TEST_IMAGE: &str = "fairlead.dev/testbox:1";
/// The agent image's name.
const AGENT_IMAGE: &str = concat!("fairlead.dev/fairlead:", env!("CARGO_PKG_VERSION"));
/// Packages of the test image: a shell with tools, a client of HTTP, glibc's own resolver.
const TEST_PACKAGES: [&str; 3] = ["busybox-static", "curl", "libc-bin"];
/// Packages of the agent's image.
const AGENT_PACKAGES: [&str; 2] = ["libc6", "libgcc-s1"];
/// What nobody reads in an image.
const LEFT_OUT: [&str; 6] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/info",
    "usr/share/doc-base",
];
/// Busybox's programs that tests call by name.
const APPLETS: [&str; 24] = [
    "sh", "ls", "cat", "echo", "sleep", "tar", "id", "env", "grep", "nslookup", "ping", "nc", "ip", "mount", "df",
    "touch", "rm", "mkdir", "head", "wc", "stat", "hostname", "true", "false",
];

/// An image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Which {
    /// `fairlead` itself, for a DaemonSet.
    Agent,
    /// What holds a pod's namespaces.
    Pause,
    /// HTTP and UDP servers and clients, a shell, curl.
    Test,
}

/// Makes them.
///
/// # Errors
/// What could not be built, fetched or written.
pub(crate) fn run(workspace: &Workspace, progress: &Progress, which: &[Which], output: Option<PathBuf>) -> Result<()> {
    let output = output.unwrap_or_else(|| workspace.target.join("images"));
    fs::create_dir_all(&output).with_context(|| output.display().to_string())?;
    for one in Which::value_variants()
        .iter()
        .filter(|it| which.is_empty() || which.contains(it))
    {
        let path = match one {
            Which::Pause => write(&output, "pause", fairlead_images::pause()?)?,
            Which::Test => test(workspace, progress, &output)?,
            Which::Agent => {
                programs::build_agent(workspace, progress, false)?;
                let base = base(progress, "agent", &AGENT_PACKAGES)?;
                let mut layer = Layer::default();
                layer.file(
                    "usr/bin/fairlead",
                    0o755,
                    &fs::read(workspace.binary("release", "fairlead"))?,
                )?;
                let image = Image::new(AGENT_IMAGE, vec![base, layer]).entrypoint(["/usr/bin/fairlead"]);
                write(&output, "agent", image)?
            }
        };
        progress.say(path.display());
    }
    Ok(())
}

/// Makes the test image, unless it is there and newer than its sources.
///
/// # Errors
/// As [`run`].
pub(crate) fn test(workspace: &Workspace, progress: &Progress, output: &Path) -> Result<PathBuf> {
    let source = workspace.root.join("images/testbox/testbox.rs");
    let path = output.join("test.tar");
    let changed = |path: &Path| fs::metadata(path).and_then(|it| it.modified()).ok();
    // A set-up that was removed is made again, too.
    let there = rootfs("test")?.is_dir();
    if there && changed(&path).is_some_and(|made| changed(&source).is_some_and(|it| it < made)) {
        return Ok(path);
    }
    let base = base(progress, "test", &TEST_PACKAGES)?;
    fs::create_dir_all(output).with_context(|| output.display().to_string())?;
    let step = progress.begin("making the test image");
    let program = output.join("testbox");
    let mut rustc = Command::new("rustc");
    rustc.args([
        "--edition",
        "2024",
        "-O",
        "-C",
        "target-feature=+crt-static",
        "-C",
        "panic=abort",
        "-C",
        "strip=symbols",
    ]);
    tools::quietly(rustc.arg("-o").arg(&program).arg(&source)).context("testbox could not be compiled")?;
    let mut layer = Layer::default();
    layer.directory("tmp", 0o1777)?;
    layer.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    )?;
    layer.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    layer.file("etc/nsswitch.conf", 0o644, b"passwd: files\nhosts: files dns\n")?;
    layer.file("usr/bin/testbox", 0o755, &fs::read(&program)?)?;
    for applet in APPLETS {
        layer.link(&format!("usr/local/bin/{applet}"), "/bin/busybox")?;
    }
    // Debian's packages are for a file system whose /bin is /usr/bin, and some still say /bin.
    layer.link("usr/bin/sh", "/bin/busybox")?;
    let image = Image::new(TEST_IMAGE, vec![base, layer])
        .command(["/usr/bin/testbox", "serve"])
        .environment(["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"]);
    write(output, "test", image)?;
    fs::remove_file(&program)?;
    step.done();
    Ok(path)
}

fn write(output: &Path, name: &str, image: Image) -> Result<PathBuf> {
    let path = output.join(format!("{name}.tar"));
    let temporary = output.join(format!(".{name}.{}", std::process::id()));
    let file = fs::File::create(&temporary).with_context(|| temporary.display().to_string())?;
    image.write(std::io::BufWriter::new(file))?;
    fs::rename(&temporary, &path).with_context(|| path.display().to_string())?;
    Ok(path)
}

fn rootfs(name: &str) -> Result<PathBuf> {
    let tools_dir = bpf::tools_dir().context("no directory for tools: set FAIRLEAD_TOOLS, or HOME")?;
    Ok(tools_dir.join(format!("rootfs-{name}-1")))
}

/// A layer of packages and what they depend on. Unpacked once, into the tools directory.
fn base(progress: &Progress, name: &str, packages: &[&str]) -> Result<Layer> {
    let root = rootfs(name)?;
    if !root.is_dir() {
        let step = progress.begin(format_args!(
            "fetching {} and what they need, to unpack them into {}",
            packages.join(" "),
            root.display()
        ));
        let result = unpack(&root, packages);
        match &result {
            Ok(()) => step.done(),
            Err(_) => step.failed(),
        }
        result.with_context(|| format!("the {name} image's packages could not be fetched: check the network"))?;
    }
    let mut layer = Layer::default();
    layer.tree(&root)?;
    Ok(layer)
}

fn unpack(root: &Path, packages: &[&str]) -> Result<()> {
    let apt = PrivateApt::new()?;
    let parent = root.parent().context("the tools directory has no parent")?;
    fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    let name = root.file_name().unwrap_or_default().to_string_lossy();
    let unpacking = Scratch::new(&parent.join(format!(".unpacking-{name}-{}", std::process::id())))?;
    for package in apt.closure(packages)? {
        tools::quietly(Command::new("dpkg-deb").arg("-x").arg(&package).arg(unpacking.path()))?;
    }
    for path in LEFT_OUT.map(|it| unpacking.path().join(it)) {
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
    }
    fs::rename(unpacking.path(), root).with_context(|| root.display().to_string())
}
