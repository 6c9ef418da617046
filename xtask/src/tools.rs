//! Running other programs: quiet until they fail, then with their own last words.

use anyhow::{Context as _, Result, bail};
use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Lines of a failed program's output that are worth showing.
const LAST_WORDS: usize = 15;

/// Runs `command` without showing its output.
///
/// # Errors
/// It could not start, or it failed: with its last lines.
pub(crate) fn quietly(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    // A backtrace of theirs would push the cause out of the last words.
    command.env("RUST_BACKTRACE", "0");
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{name} could not start"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    // What went wrong is on stderr; some programs say it on stdout.
    let said = if output.stderr.is_empty() {
        output.stdout
    } else {
        output.stderr
    };
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    bail!(
        "{name}: {}\n{}",
        output.status,
        lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
    );
}

/// A program on `PATH` or where administrators' programs are, which is not on every user's `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

/// The cargo that runs this program, else the one on `PATH`.
pub(crate) fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Whether this process may change the machine. Asks `/proc`, whose owner is the effective user.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// The command as a user would type it: without the directory of the program.
pub(crate) fn typed(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program)
        .chain(command.get_args())
        .map(OsStr::to_string_lossy);
    words.collect::<Vec<_>>().join(" ")
}
