//! GET requests of probes and hooks.

use super::action::HttpGet;
use http::{HeaderName, HeaderValue, Request, Uri, header};
use http_body_util::Empty;
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use std::sync::Arc;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// What to do with an answer that points elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Redirects {
    /// It is an answer.
    Ignore,
    /// Follow it to the same host; to another one it is an answer. Source: upstream's probes.
    SameHost,
}

/// Most requests of one probe.
const MOST_REDIRECTS: usize = 10;

/// Asks; the status code of the answer.
///
/// # Errors
/// In words: no connection, no HTTP, too many redirects, headers that are none.
pub(crate) async fn get(get: &HttpGet, redirects: Redirects) -> Result<u16, String> {
    let mut get = get.clone();
    for _ in 0..=MOST_REDIRECTS {
        let answer = once(&get).await.map_err(|error| {
            let scheme = if get.tls { "https" } else { "http" };
            format!("Get \"{scheme}://{}{}\": {error}", authority(&get), get.path)
        })?;
        let code = answer.status();
        let next = answer.headers().get(header::LOCATION);
        let next = next.filter(|_| code.is_redirection() && redirects == Redirects::SameHost);
        match next.and_then(|it| redirected(&get, it.to_str().ok()?)) {
            Some(next) => get = next,
            None => return Ok(code.as_u16()),
        }
    }
    Err(format!("stopped after {MOST_REDIRECTS} redirects"))
}

/// The same request there; none: that is another host, or nothing that can be asked.
fn redirected(get: &HttpGet, location: &str) -> Option<HttpGet> {
    let mut next = get.clone();
    if let Some(rest) = location.strip_prefix("//") {
        return redirected(get, &format!("{}://{rest}", if get.tls { "https" } else { "http" }));
    }
    let uri: Uri = location.parse().ok()?;
    if let Some(scheme) = uri.scheme_str().filter(|_| uri.authority().is_some()) {
        next.tls = scheme == "https";
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
        if host != get.host || !matches!(scheme, "http" | "https") {
            return None;
        }
        next.port = uri.port_u16().unwrap_or(if next.tls { 443 } else { 80 });
        next.path = uri.path_and_query().map_or("/", |it| it.as_str()).to_owned();
    } else if location.starts_with('/') {
        location.clone_into(&mut next.path);
    } else {
        return None;
    }
    Some(next)
}

fn authority(get: &HttpGet) -> String {
    if get.host.contains(':') {
        format!("[{}]:{}", get.host, get.port)
    } else {
        format!("{}:{}", get.host, get.port)
    }
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

async fn once(get: &HttpGet) -> Result<http::Response<hyper::body::Incoming>, Failed> {
    let mut request = Request::get(get.path.as_str()).body(Empty::<Bytes>::new())?;
    let headers = request.headers_mut();
    headers.insert(header::HOST, HeaderValue::from_str(&authority(get))?);
    headers.insert(header::USER_AGENT, HeaderValue::from_static("kube-probe/1.36"));
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    let mut given: Vec<HeaderName> = Vec::new();
    for (name, value) in &get.headers {
        let name = HeaderName::try_from(name.as_str())?;
        let value = HeaderValue::from_str(value)?;
        // The pod's own words replace ours; a name that they have twice is sent twice.
        if given.contains(&name) {
            headers.append(name, value);
        } else {
            headers.insert(name.clone(), value);
            given.push(name);
        }
    }
    let socket = TcpStream::connect((get.host.as_str(), get.port)).await?;
    if !get.tls {
        return send(socket, request).await;
    }
    let name = ServerName::try_from(get.host.clone())?;
    let connector = TlsConnector::from(tls_to_anyone()?);
    send(connector.connect(name, socket).await?, request).await
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<http::Response<hyper::body::Incoming>, Failed> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Whichever comes first: dropping this future closes the connection, so that a probe leaves nothing behind.
    let answered = sender.send_request(request);
    tokio::pin!(connection, answered);
    tokio::select! {
        biased;
        answer = &mut answered => Ok(answer?),
        ended = &mut connection => {
            ended?;
            Ok(answered.await?)
        }
    }
}

/// TLS that believes every certificate: pods have theirs from anywhere. Source: upstream's probes.
fn tls_to_anyone() -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)));
    Ok(Arc::new(builder.with_no_client_auth()))
}

#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _between: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_redirects_lead() {
        let from = HttpGet {
            tls: false,
            host: "10.1.0.5".to_owned(),
            port: 8080,
            path: "/a".to_owned(),
            headers: Vec::new(),
        };
        let to = |location| redirected(&from, location).map(|it| (it.tls, it.port, it.path));
        assert_eq!(to("/b?c"), Some((false, 8080, "/b?c".to_owned())));
        assert_eq!(to("https://10.1.0.5/b"), Some((true, 443, "/b".to_owned())));
        assert_eq!(to("//10.1.0.5:81/"), Some((false, 81, "/".to_owned())));
        for elsewhere in ["http://10.1.0.6/", "ftp://10.1.0.5/", "b", "", "\u{7f}"] {
            assert_eq!(to(elsewhere), None, "{elsewhere}");
        }
    }
}
