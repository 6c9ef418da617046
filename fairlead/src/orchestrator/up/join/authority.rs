//! The server and its CA, found by the CA's digest: nobody between can show another one.

use super::certificate::Pair;
use crate::orchestrator::up::token::digest;
use anyhow::{Context as _, Result, anyhow, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::Uri;
use kube::{Client, Config, config::AuthInfo};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The API server and how it is known.
pub(super) struct Server {
    url: Uri,
    /// The CA's certificate.
    pub(super) pem: String,
    der: CertificateDer<'static>,
}

impl Server {
    /// With a CA that is known.
    ///
    /// # Errors
    /// The URL or the certificate makes no sense.
    pub(super) fn known(url: &str, pem: &str) -> Result<Self> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| anyhow!("the CA's certificate is damaged ({error:?}); remove ca.crt and join again"))?;
        Ok(Self {
            url: parse(url)?,
            pem: pem.to_owned(),
            der,
        })
    }

    /// Asks the server for its CA, and believes it if its digest is `expected`.
    ///
    /// # Errors
    /// The server cannot be reached, or is another one.
    pub(super) async fn find(url: &str, expected: &str) -> Result<Self> {
        let uri = parse(url)?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(443);
        let verifier = Arc::new(Pinned {
            expected: expected.to_owned(),
            found: Mutex::default(),
            provider: Arc::new(ring::default_provider()),
        });
        let builder = ClientConfig::builder_with_provider(Arc::clone(&verifier.provider));
        let config = builder
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as _)
            .with_no_client_auth();
        let stream = TcpStream::connect((host.as_str(), port))
            .await
            .with_context(|| format!("--server {url} cannot be reached"))?;
        let name = ServerName::try_from(host).with_context(|| format!("--server {url}: no host name"))?;
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .with_context(|| format!("--server {url} is not the one that --token is for"))?;
        let found = verifier.found.lock().unwrap_or_else(PoisonError::into_inner).take();
        let der = found.context("the server showed no CA")?;
        Ok(Self {
            url: uri,
            pem: pem(&der),
            der,
        })
    }

    /// SHA-256 of the CA's certificate, hexadecimal.
    pub(super) fn digest(&self) -> String {
        digest(&self.der)
    }

    /// A client that shows a bearer token.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub(super) fn client_with_token(&self, token: &str) -> Result<Client> {
        self.build(AuthInfo {
            token: Some(token.to_owned().into()),
            ..AuthInfo::default()
        })
    }

    /// A client that shows a certificate.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub(super) fn client(&self, pair: &Pair) -> Result<Client> {
        self.build(AuthInfo {
            client_certificate_data: Some(STANDARD.encode(&pair.certificate)),
            client_key_data: Some(STANDARD.encode(&pair.key).into()),
            ..AuthInfo::default()
        })
    }

    fn build(&self, who: AuthInfo) -> Result<Client> {
        let mut config = Config::new(self.url.clone());
        config.root_cert = Some(vec![self.der.to_vec()]);
        config.auth_info = who;
        // Watches are silent for as long as nothing happens.
        config.read_timeout = None;
        Client::try_from(config).with_context(|| format!("no client for {}", self.url))
    }
}

fn parse(url: &str) -> Result<Uri> {
    let uri: Uri = url
        .parse()
        .with_context(|| format!("--server {url:?}: write https://ADDRESS:6443"))?;
    if uri.scheme_str() != Some("https") || uri.host().is_none() {
        bail!("--server {url:?}: write https://ADDRESS:6443");
    }
    Ok(uri)
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(String::from_utf8_lossy);
    let lines: Vec<_> = lines.collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

/// Believes a server whose chain holds the CA with this digest, and whose own certificate that CA signed.
#[derive(Debug)]
struct Pinned {
    expected: String,
    found: Mutex<Option<CertificateDer<'static>>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = intermediates.iter().find(|it| digest(it) == self.expected);
        let authority = authority.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        let verified = verifier.verify_server_cert(end_entity, &[], server_name, ocsp, now)?;
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        *found = Some(authority.clone().into_owned());
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_apiserver::pki::{Authority, Identity, Profile};

    fn chain(authority: &Authority, address: &str) -> [CertificateDer<'static>; 2] {
        let profile = Profile::serving([], [address.parse().unwrap()], None, "cluster.local");
        let now = jiff::Timestamp::now().as_second();
        let (certificate, _) = Identity::issue(authority, &profile, now).unwrap().der().unwrap();
        [certificate, authority.der().clone()]
    }

    fn verify(pin: &str, chain: &[CertificateDer<'static>], name: &str) -> Option<CertificateDer<'static>> {
        let verifier = Pinned {
            expected: pin.to_owned(),
            found: Mutex::default(),
            provider: Arc::new(ring::default_provider()),
        };
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let verified = verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::now());
        assert_eq!(verified.is_ok(), verifier.found.lock().unwrap().is_some());
        verifier.found.into_inner().unwrap()
    }

    #[test]
    fn only_the_ca_of_the_token_is_believed_and_only_for_what_it_signed() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let now = jiff::Timestamp::now().as_second();
        let (ours, other) = (
            Authority::open(here.path(), now).unwrap(),
            Authority::open(there.path(), now).unwrap(),
        );
        let pin = digest(ours.der());
        let good = chain(&ours, "192.0.2.1");
        assert_eq!(verify(&pin, &good, "192.0.2.1").as_ref(), Some(ours.der()));
        assert_eq!(verify(&pin, &good, "192.0.2.2"), None, "another address");
        assert_eq!(verify(&pin, &good[..1], "192.0.2.1"), None, "no CA shown");
        assert_eq!(
            verify(&pin, &chain(&other, "192.0.2.1"), "192.0.2.1"),
            None,
            "another CA"
        );
        let stolen = [chain(&other, "192.0.2.1")[0].clone(), ours.der().clone()];
        assert_eq!(
            verify(&pin, &stolen, "192.0.2.1"),
            None,
            "our CA beside another's certificate"
        );
    }

    #[test]
    fn pem_is_what_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path(), jiff::Timestamp::now().as_second()).unwrap();
        let server = Server::known("https://192.0.2.1:6443", &pem(authority.der())).unwrap();
        assert_eq!(&server.der, authority.der());
        assert!(Server::known("http://x", authority.pem()).is_err());
    }
}
