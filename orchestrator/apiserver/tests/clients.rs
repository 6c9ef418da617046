//! Clients other than kubectl, unmodified: a controller by kube-rs, and programs by the Python client.

#[path = "clients/controller.rs"]
mod controller;
#[path = "clients/election.rs"]
mod election;
#[path = "kubectl/programs.rs"]
mod programs;
#[path = "support/mod.rs"]
mod support;

use std::{path::Path, process::Stdio};
use support::TestServer;
use tokio::process::Command;

/// Runs a part of `clients/python.py` against a server of its own.
async fn python(part: &str) {
    let server = TestServer::start().await;
    let output = Command::new(programs::python())
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/python.py"))
        .arg(server.kubeconfig())
        .arg(part)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let (said, complained) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{part}: {}\n{said}{complained}", output.status);
}

/// One test per part.
macro_rules! python {
    ($($part:ident)*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $part() {
            python(stringify!($part)).await;
        }
    )* };
}

python! { objects watches elections tokens custom }
