//! The process that is measured.

use crate::client::Client;
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

/// Time until a server must be ready, and until it must have ended.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Server {
    program: PathBuf,
    directory: Arc<TempDir>,
    child: Option<Child>,
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    /// From the start of the process to its first 200.
    pub(crate) ready_after: Duration,
}

impl Server {
    pub(crate) async fn start(program: &Path) -> Result<Self> {
        Self::start_in(program, Arc::new(tempfile::tempdir()?)).await
    }

    async fn start_in(program: &Path, directory: Arc<TempDir>) -> Result<Self> {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let begun = Instant::now();
        let child = Command::new(program)
            .args([
                "apiserver",
                "--bind-address",
                "127.0.0.1",
                "--log-level",
                "warn",
                "--secure-port",
            ])
            .arg(port.to_string())
            .arg("--data-dir")
            .arg(directory.path())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| {
                format!(
                    "{} cannot be started: build it with `cargo xtask build`",
                    program.display()
                )
            })?;
        let mut server = Self {
            program: program.to_owned(),
            directory,
            child: Some(child),
            address,
            tls: Arc::new(no_identity()?),
            ready_after: Duration::ZERO,
        };
        let authority = server.directory.path().join("pki/ca.crt");
        loop {
            if begun.elapsed() > PATIENCE {
                bail!("the server was not ready after {} s", PATIENCE.as_secs());
            }
            if authority.exists() {
                server.tls = Arc::new(identity(server.directory.path(), program).await?);
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        loop {
            if begun.elapsed() > PATIENCE {
                bail!("the server was not ready after {} s", PATIENCE.as_secs());
            }
            if let Ok(mut client) = server.client().await
                && client.get("/readyz").await.is_ok()
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.ready_after = begun.elapsed();
        Ok(server)
    }

    pub(crate) async fn client(&self) -> Result<Client> {
        Client::connect(self.address, Arc::clone(&self.tls)).await
    }

    /// Ends the process and starts another over the same directory.
    pub(crate) async fn restart(mut self) -> Result<Self> {
        self.end().await?;
        Self::start_in(&self.program, Arc::clone(&self.directory)).await
    }

    pub(crate) async fn stop(mut self) -> Result<()> {
        self.end().await
    }

    fn id(&self) -> Result<u32> {
        self.child
            .as_ref()
            .and_then(Child::id)
            .context("the server has ended by itself")
    }

    fn signal(&self, signal: &str) -> Result<()> {
        std::process::Command::new("kill")
            .args([signal, &self.id()?.to_string()])
            .status()?;
        Ok(())
    }

    async fn end(&mut self) -> Result<()> {
        self.signal("-TERM")?;
        let mut child = self.child.take().context("the server has ended by itself")?;
        tokio::time::timeout(PATIENCE, child.wait())
            .await
            .context("the server did not end")??;
        Ok(())
    }

    /// Resident memory.
    pub(crate) fn resident_mb(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()?))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("no VmRSS")?;
        let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kilobytes / 1024.0)
    }

    /// Processor time so far, milliseconds.
    pub(crate) fn cpu_ms(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id()?))?;
        let behind = stat.rsplit_once(')').context("odd stat")?.1;
        let fields: Vec<&str> = behind.split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        // 100 ticks a second on every Linux that matters.
        Ok(ticks * 10.0)
    }
}

fn no_identity() -> Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    Ok(builder
        .with_safe_default_protocol_versions()?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth())
}

/// An administrator's, from the kubeconfig that the program makes of the server's authority.
async fn identity(directory: &Path, program: &Path) -> Result<ClientConfig> {
    let made = Command::new(program)
        .args(["kubeconfig", "--data-dir"])
        .arg(directory)
        .output()
        .await?;
    if !made.status.success() {
        bail!("no kubeconfig: {}", String::from_utf8_lossy(&made.stderr));
    }
    let text = String::from_utf8(made.stdout)?;
    let field = |name: &str| -> Result<Vec<u8>> {
        use base64::{Engine as _, prelude::BASE64_STANDARD};
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
        let value = line.with_context(|| format!("the kubeconfig lacks {name}"))?;
        Ok(BASE64_STANDARD.decode(value.trim_start_matches(':').trim())?)
    };
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&field("certificate-authority-data")?)?)?;
    let certificate = CertificateDer::from_pem_slice(&field("client-certificate-data")?)?;
    let key = PrivateKeyDer::from_pem_slice(&field("client-key-data")?)?;
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    Ok(builder.with_client_auth_cert(vec![certificate], key)?)
}
