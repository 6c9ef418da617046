//! One try: asks a container what a probe asks.

use super::{Action, Attempt, action::HttpGet, grpc, http};
use crate::cri::{Runtime, RuntimeError};
use futures::future::{BoxFuture, FutureExt as _};
use std::time::Duration;
use tokio::net::TcpStream;

/// Makes tries. Tests have one of their own.
pub trait Check: Send + Sync {
    /// Asks this container, and gives up after `timeout`, which is a failure.
    fn check<'a>(&'a self, container_id: &'a str, action: &'a Action, timeout: Duration) -> BoxFuture<'a, Attempt>;
}

/// Asks real containers: commands through the runtime, everything else from the node.
#[derive(Clone, Debug)]
pub struct RuntimeCheck {
    runtime: Runtime,
}

impl RuntimeCheck {
    /// Runs commands through this runtime.
    #[must_use]
    pub fn new(runtime: Runtime) -> Self {
        Self { runtime }
    }
}

impl Check for RuntimeCheck {
    fn check<'a>(&'a self, container_id: &'a str, action: &'a Action, timeout: Duration) -> BoxFuture<'a, Attempt> {
        async move {
            let trying = async {
                match action {
                    // The runtime keeps the time itself, and ends the command then.
                    Action::Exec { command } => return exec(&self.runtime, container_id, command, timeout).await,
                    Action::Tcp { host, port } => tcp(host, *port).await,
                    Action::Http(get) => http_get(get).await,
                    Action::Grpc { host, port, service } => grpc::check(host, *port, service).await,
                }
            };
            if matches!(action, Action::Exec { .. }) {
                return trying.await;
            }
            let tried = tokio::time::timeout(timeout, trying).await;
            tried.unwrap_or_else(|_| Attempt::Failure(format!("no answer within {} s", timeout.as_secs())))
        }
        .boxed()
    }
}

async fn exec(runtime: &Runtime, container_id: &str, command: &[String], timeout: Duration) -> Attempt {
    match runtime.exec_sync(container_id, command.to_vec(), timeout).await {
        Ok(answer) if answer.exit_code == 0 => Attempt::Success,
        Ok(answer) => {
            let output = [answer.stdout, answer.stderr].concat();
            Attempt::Failure(excerpt(&output, answer.exit_code))
        }
        Err(error) if timed_out(&error) => Attempt::Failure(format!(
            "command {:?} timed out after {} s",
            command.join(" "),
            timeout.as_secs()
        )),
        Err(error) => Attempt::Unknown(error.to_string()),
    }
}

/// The runtime ended the command. containerd has a code for it only in some versions.
pub(crate) fn timed_out(error: &RuntimeError) -> bool {
    error.code == tonic::Code::DeadlineExceeded || error.message.contains("context deadline exceeded")
}

/// What a command said, short enough for an event.
pub(crate) fn excerpt(output: &[u8], exit_code: i32) -> String {
    const MOST: usize = 10 << 10;
    let text = String::from_utf8_lossy(&output[..output.len().min(MOST)]);
    match text.trim_end() {
        "" => format!("command exited with code {exit_code}"),
        text => text.to_owned(),
    }
}

async fn tcp(host: &str, port: u16) -> Attempt {
    match TcpStream::connect((host, port)).await {
        Ok(_) => Attempt::Success,
        Err(error) => Attempt::Failure(format!("connect to {host}, port {port}: {error}")),
    }
}

async fn http_get(get: &HttpGet) -> Attempt {
    match http::get(get, http::Redirects::SameHost).await {
        Ok(answer) if (200..400).contains(&answer) => Attempt::Success,
        Ok(answer) => Attempt::Failure(format!("HTTP probe failed with statuscode: {answer}")),
        Err(error) => Attempt::Failure(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    fn checker() -> RuntimeCheck {
        RuntimeCheck::new(Runtime::new(std::path::Path::new("/nowhere.sock")).unwrap())
    }

    /// A server that gives one answer per connection; its port, and what it was asked.
    async fn server(answers: Vec<String>) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                asked.push(String::from_utf8(head).unwrap().to_ascii_lowercase());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            asked
        });
        (port, asked)
    }

    fn get(port: u16, path: &str, headers: &[(&str, &str)]) -> Action {
        Action::Http(HttpGet {
            tls: false,
            host: "127.0.0.1".to_owned(),
            port,
            path: path.to_owned(),
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        })
    }

    fn answer(code: u16, more: &str) -> String {
        format!("HTTP/1.1 {code} X\r\nContent-Length: 0\r\n{more}\r\n")
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn http_codes() {
        for (code, works) in [(200, true), (399, true), (400, false), (503, false)] {
            let (port, asked) = server(vec![answer(code, "")]).await;
            let attempt = checker()
                .check("c", &get(port, "/p?q", &[("Host", "web"), ("X-A", "1")]), LONG)
                .await;
            assert_eq!(attempt == Attempt::Success, works, "{attempt:?}");
            let asked = asked.await.unwrap().remove(0);
            assert!(asked.starts_with("get /p?q http/1.1\r\n"), "{asked}");
            for header in [
                "host: web\r\n",
                "x-a: 1\r\n",
                "user-agent: kube-probe/",
                "accept: */*\r\n",
            ] {
                assert!(asked.contains(header), "{asked}");
            }
            assert_eq!(asked.matches("host:").count(), 1);
        }
    }

    #[tokio::test]
    async fn any_certificate_will_do() {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["elsewhere".to_owned()]).unwrap();
        let certificate = certificate.self_signed(&key).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config =
            rustls::ServerConfig::builder_with_provider(std::sync::Arc::new(rustls::crypto::ring::default_provider()));
        let config = config
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth();
        let config = config.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let Action::Http(mut over_tls) = get(listener.local_addr().unwrap().port(), "/", &[]) else {
            panic!();
        };
        over_tls.tls = true;
        tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            let mut stream = acceptor.accept(socket).await.unwrap();
            // Its head is longer than this.
            stream.read_exact(&mut [0; 10]).await.unwrap();
            stream.write_all(answer(204, "").as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            let _ = stream.read_u8().await;
        });
        let attempt = checker().check("c", &Action::Http(over_tls), LONG).await;
        assert_eq!(attempt, Attempt::Success);
    }

    #[tokio::test]
    async fn redirects_are_followed_on_the_same_host_only() {
        let (port, asked) = server(vec![answer(302, "Location: /next\r\n"), answer(500, "")]).await;
        let attempt = checker().check("c", &get(port, "/", &[]), LONG).await;
        assert_eq!(
            attempt,
            Attempt::Failure("HTTP probe failed with statuscode: 500".to_owned())
        );
        assert!(asked.await.unwrap()[1].starts_with("get /next "));
        let (port, _) = server(vec![answer(301, "Location: http://192.0.2.1/\r\n")]).await;
        assert_eq!(checker().check("c", &get(port, "/", &[]), LONG).await, Attempt::Success);
        let (port, _) = server(vec![answer(302, "Location: /\r\n"); 20]).await;
        let attempt = checker().check("c", &get(port, "/", &[]), LONG).await;
        assert!(matches!(attempt, Attempt::Failure(_)), "{attempt:?}");
    }

    #[tokio::test]
    async fn who_does_not_answer_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let tcp = Action::Tcp {
            host: "127.0.0.1".to_owned(),
            port,
        };
        assert_eq!(checker().check("c", &tcp, LONG).await, Attempt::Success);
        // Accepted by the kernel, answered by nobody.
        let attempt = checker()
            .check("c", &get(port, "/", &[]), Duration::from_millis(1))
            .await;
        assert!(matches!(attempt, Attempt::Failure(_)), "{attempt:?}");
        drop(listener);
        for action in [tcp, get(port, "/", &[])] {
            let attempt = checker().check("c", &action, LONG).await;
            assert!(matches!(attempt, Attempt::Failure(_)), "{attempt:?}");
        }
        let exec = Action::Exec { command: vec![] };
        let attempt = checker().check("c", &exec, LONG).await;
        assert!(matches!(attempt, Attempt::Unknown(_)), "{attempt:?}");
    }
}
