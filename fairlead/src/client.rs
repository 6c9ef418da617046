//! A GET to the agent: HTTP/1.0, one request per connection.

use anyhow::{Context, bail, ensure};
use std::{
    io::{Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::Duration,
};

/// Longer than the agent's own long poll (`proxy::http::LONG_POLL`).
const TIMEOUT: Duration = Duration::from_secs(35);

/// The body of `path` at `address`.
///
/// # Errors
/// The agent does not answer, or answers with something else than 200.
pub(crate) fn get(address: &str, path: &str) -> anyhow::Result<String> {
    let remedy = "is `fairlead proxy` running on this node, and is this its --metrics-bind-address?";
    let socket = address
        .to_socket_addrs()
        .ok()
        .and_then(|mut sockets| sockets.next())
        .with_context(|| format!("--address {address:?} is not an address and port; write it as in 127.0.0.1:10249"))?;
    let mut stream = TcpStream::connect_timeout(&socket, Duration::from_secs(5))
        .with_context(|| format!("no agent answers at {address}; {remedy}"))?;
    let mut response = Vec::new();
    let mut exchange = || {
        stream.set_read_timeout(Some(TIMEOUT))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
        stream.read_to_end(&mut response)
    };
    exchange().with_context(|| format!("the agent at {address} broke off its answer; see its log"))?;
    let response = String::from_utf8_lossy(&response);
    let (head, body) = response
        .split_once("\r\n\r\n")
        .with_context(|| format!("what listens at {address} does not speak HTTP; {remedy}"))?;
    let code = head.split(' ').nth(1).unwrap_or_default();
    if code == "404" {
        bail!("what listens at {address} has no {path}; {remedy}");
    }
    ensure!(
        code == "200",
        "the agent at {address} answered {path} with {code}: {}",
        body.trim()
    );
    Ok(body.to_owned())
}
