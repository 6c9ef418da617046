//! `fairlead-cni`: the CNI plugin. It asks the node agent and prints what that says.

use fairlead_cni_plugin::{
    spec::{Code, Environment, Failure, VERSIONS},
    verbs,
};
use std::{
    env,
    ffi::OsStr,
    io::{self, Read as _, Write as _},
    path::Path,
    process::ExitCode,
};

fn main() -> ExitCode {
    let Some(command) = env::var("CNI_COMMAND").ok().filter(|command| !command.is_empty()) else {
        // Somebody who looks what this is.
        eprintln!(
            "fairlead-cni, a CNI plugin; it speaks the versions {}",
            VERSIONS.join(", ")
        );
        eprintln!(
            "Container runtimes start it with CNI_COMMAND in the environment and a configuration on standard input."
        );
        let failure = Failure::new(Code::InvalidEnvironment, "CNI_COMMAND is not set", "");
        return print(&failure.to_json("1.1.0"), false);
    };
    let loopback = env::args_os()
        .next()
        .is_some_and(|name| Path::new(&name).file_name() == Some(OsStr::new("loopback")));
    let mut input = Vec::new();
    if let Err(error) = io::stdin().lock().read_to_end(&mut input) {
        let failure = Failure::new(Code::Io, "standard input cannot be read", error.to_string());
        return print(&failure.to_json("1.1.0"), false);
    }
    let outcome = verbs::run(&command, &Environment::read(), &input, loopback);
    match outcome.output {
        Some(output) => print(&output, outcome.success),
        None => ExitCode::SUCCESS,
    }
}

fn print(output: &serde_json::Value, success: bool) -> ExitCode {
    if writeln!(io::stdout().lock(), "{output}").is_ok() && success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
