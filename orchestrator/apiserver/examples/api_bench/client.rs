//! One connection: HTTP/1.1 over TLS, as cheap as a client can be, so that the server is what is measured.

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request,
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::{net::SocketAddr, sync::Arc};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, rustls::ClientConfig};

pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr, tls: Arc<ClientConfig>) -> Result<Self> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let stream = TlsConnector::from(tls).connect(address.ip().into(), socket).await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    async fn send(&mut self, method: Method, path: &str, body: Option<&Value>) -> Result<hyper::Response<Incoming>> {
        let bytes = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "bench")
            .header("content-type", "application/json")
            .header("accept", "application/json")
            .body(Full::new(Bytes::from(bytes)))?;
        self.sender.ready().await?;
        Ok(self.sender.send_request(request).await?)
    }

    async fn answer(&mut self, method: Method, path: &str, body: Option<&Value>) -> Result<Bytes> {
        let response = self.send(method, path, body).await?;
        let code = response.status();
        let bytes = response.into_body().collect().await?.to_bytes();
        if !code.is_success() {
            bail!("{path}: {code} {}", String::from_utf8_lossy(&bytes));
        }
        Ok(bytes)
    }

    pub(crate) async fn post(&mut self, path: &str, object: &Value) -> Result<()> {
        self.answer(Method::POST, path, Some(object)).await.map(drop)
    }

    pub(crate) async fn get(&mut self, path: &str) -> Result<Bytes> {
        self.answer(Method::GET, path, None).await
    }

    /// The newest revision.
    pub(crate) async fn revision(mut self) -> Result<String> {
        let list: Value = serde_json::from_slice(&self.get("/api/v1/namespaces?limit=1").await?)?;
        let revision = list["metadata"]["resourceVersion"]
            .as_str()
            .context("a list without a revision")?;
        Ok(revision.to_owned())
    }

    pub(crate) async fn watch(mut self, path: &str) -> Result<Events> {
        let response = self.send(Method::GET, path, None).await?;
        if !response.status().is_success() {
            bail!("{path}: {}", response.status());
        }
        Ok(Events {
            body: response.into_body(),
            rest: Vec::new(),
            _client: self,
        })
    }
}

/// Events of a watch.
pub(crate) struct Events {
    body: Incoming,
    rest: Vec<u8>,
    /// The connection lives as long as its sender.
    _client: Client,
}

impl Events {
    pub(crate) async fn next(&mut self) -> Result<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Ok(serde_json::from_slice(&line)?);
            }
            let frame = self.body.frame().await.context("the watch ended")??;
            if let Ok(data) = frame.into_data() {
                self.rest.extend_from_slice(&data);
            }
        }
    }
}
