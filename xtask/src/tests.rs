//! Every check and every test, in one report.

mod tally;

use crate::{
    bpf, dependencies, image,
    programs::AGENT_VARIABLE,
    progress::{Progress, Step},
    setup, tools,
    workspace::Workspace,
};
use anyhow::{Context as _, Result, bail};
use std::{
    env,
    ffi::OsString,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, ExitCode, Stdio},
};
use tally::Tally;

/// A test that cannot run here appends one line, `name: reason`, to the file that this variable names, and passes.
const SKIPS_VARIABLE: &str = "FAIRLEAD_SKIPS";
/// Set to 1 by `--no-kernel`: tests that need root or a kernel skip themselves.
const NO_KERNEL_VARIABLE: &str = "FAIRLEAD_NO_KERNEL";

/// Runs everything, and goes on after failures.
///
/// # Errors
/// Set-up failed, or the tests may not run as this user; nothing was run.
pub(crate) fn run(
    workspace: &Workspace,
    progress: &Progress,
    no_kernel: bool,
    arguments: &[OsString],
) -> Result<ExitCode> {
    if !no_kernel && !tools::is_root() {
        bail!(
            "only root may make network namespaces and load BPF programs, so the end-to-end tests and the tests of the \
             programs in the kernel would not run; run as root, or leave them out with `cargo xtask test --no-kernel`"
        );
    }
    setup::run(progress)?;
    setup::components(progress)?;
    if !no_kernel {
        image::test(workspace, progress, &workspace.target.join("images"))?;
    }
    let mut run = Run {
        workspace,
        progress,
        tally: Tally::default(),
        failures: Vec::new(),
    };
    run.checks()?;
    run.tests(no_kernel, arguments)?;
    Ok(run.report())
}

struct Run<'a> {
    workspace: &'a Workspace,
    progress: &'a Progress,
    tally: Tally,
    /// What failed, for the end of the report.
    failures: Vec<String>,
}

impl Run<'_> {
    fn checks(&mut self) -> Result<()> {
        self.cargo(&["fmt", "--all", "--check"], &[])?;
        self.dependencies();
        self.cargo(&["clippy", "--all-targets", "--", "-D", "warnings"], &[])?;
        self.clippy_of_programs()?;
        self.cargo(
            &["doc", "--no-deps", "--document-private-items"],
            &[("RUSTDOCFLAGS", "-D warnings")],
        )
    }

    /// A cargo command whose exit status is the verdict.
    fn cargo(&mut self, arguments: &[&str], variables: &[(&str, &str)]) -> Result<()> {
        let step = self.progress.begin(format_args!("cargo {}", arguments.join(" ")));
        let mut cargo = tools::cargo();
        cargo
            .args(arguments)
            .envs(variables.iter().copied())
            .current_dir(&self.workspace.root)
            .stdin(Stdio::null());
        let status = cargo.status().context("cargo could not start")?;
        self.judge(step, status.success(), &format!("cargo {}", arguments.join(" ")));
        Ok(())
    }

    fn dependencies(&mut self) {
        let step = self.progress.begin("dependencies against deny.toml");
        let checked = dependencies::check(self.workspace);
        if let Err(violations) = &checked {
            self.progress.line(format_args!("{violations:#}"));
        }
        self.judge(step, checked.is_ok(), "dependencies against deny.toml");
    }

    /// The BPF programs are no default member: they are linted for their own target.
    fn clippy_of_programs(&mut self) -> Result<()> {
        let what = format!("cargo clippy of the BPF programs for {}", bpf::TARGET);
        let step = self.progress.begin(&what);
        let sysroot = bpf::sysroot().map_err(anyhow::Error::msg)?;
        let target = self.workspace.target.join("bpf");
        let mut cargo = bpf::cargo("clippy", &self.workspace.root, &target, &sysroot, env::consts::ARCH);
        let status = cargo
            .args(["--", "-D", "warnings"])
            .stdin(Stdio::null())
            .status()
            .context("cargo could not start")?;
        self.judge(step, status.success(), &what);
        Ok(())
    }

    fn judge(&mut self, step: Step, passed: bool, what: &str) {
        if passed {
            return step.done();
        }
        step.failed();
        self.tally.failed += 1;
        self.failures.push(what.to_owned());
    }

    fn tests(&mut self, no_kernel: bool, arguments: &[OsString]) -> Result<()> {
        let mut packages = Vec::new();
        if no_kernel {
            packages.extend([
                "--workspace",
                "--exclude",
                "fairlead-proxy-ebpf",
                "--exclude",
                "fairlead-tests",
            ]);
        }
        // The end-to-end tests run the agent itself, which no test depends on as a crate. Built together with the tests it
        // shares their features, so that nothing is compiled twice.
        self.cargo(&[&["build", "--bins", "--tests"], packages.as_slice()].concat(), &[])?;
        let skips = self
            .workspace
            .target
            .join(format!("skipped-tests-{}", std::process::id()));
        fs::write(&skips, "").with_context(|| skips.display().to_string())?;

        let mut cargo = tools::cargo();
        cargo.args(["test", "--no-fail-fast"]).args(packages);
        cargo.current_dir(&self.workspace.root).stdin(Stdio::null());
        cargo.env(AGENT_VARIABLE, self.workspace.binary("debug", "fairlead"));
        cargo.env(SKIPS_VARIABLE, &skips);
        if no_kernel {
            cargo.env(NO_KERNEL_VARIABLE, "1");
        }
        let step = self.progress.begin(tools::typed(&cargo));
        let failed_before = self.tally.failed;
        let passed = self.count(cargo.arg("--").args(arguments))?;
        // A test that failed is counted already; one that did not compile, or killed its process, is not.
        if passed {
            step.done();
        } else {
            step.failed();
            self.tally.failed = self.tally.failed.max(failed_before + 1);
            self.failures
                .push("cargo test: the names are above, each under `failures:`".to_owned());
        }
        self.skips(&skips, no_kernel)
    }

    /// Runs the tests, shows what they print and adds up their results.
    fn count(&mut self, cargo: &mut Command) -> Result<bool> {
        let mut child = cargo.stdout(Stdio::piped()).spawn().context("cargo could not start")?;
        let stdout = child.stdout.take().context("cargo has no stdout")?;
        // Lines may hold bytes of the network that are no UTF-8.
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line?;
            let mut out = std::io::stdout().lock();
            let _ = out.write_all(&line).and_then(|()| out.write_all(b"\n"));
            self.tally.add(&String::from_utf8_lossy(&line));
        }
        Ok(child.wait()?.success())
    }

    fn skips(&mut self, file: &Path, no_kernel: bool) -> Result<()> {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        fs::remove_file(file)?;
        for reason in text.lines().filter(|line| !line.trim().is_empty()) {
            self.progress.line(format_args!("skipped: {reason}"));
            self.tally.skip();
        }
        if no_kernel {
            self.progress
                .line("not run: the end-to-end tests of fairlead-tests (--no-kernel)");
        }
        Ok(())
    }

    fn report(self) -> ExitCode {
        for failure in &self.failures {
            self.progress.line(format_args!("failed: {failure}"));
        }
        self.progress.line(self.tally);
        if self.tally.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}
