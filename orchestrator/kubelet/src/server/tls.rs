//! TLS of the kubelet's port.

use crate::ServingTls;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use std::{fmt::Display, sync::Arc};

/// Certificates that cannot be served with.
#[derive(Debug, thiserror::Error)]
#[error("{what} of the kubelet's port: {cause}")]
pub struct TlsError {
    /// Which part.
    pub what: &'static str,
    /// In words.
    pub cause: String,
}

/// TLS 1.2 and 1.3 with these certificates. A client may show one of its own; if an authority in `client_ca` has not signed
/// it, the handshake ends. Without one, a client needs a token.
///
/// # Errors
/// What is no PEM, a key that does not fit.
pub fn tls_config(tls: &ServingTls) -> Result<Arc<ServerConfig>, TlsError> {
    fn failed(what: &'static str, cause: impl Display) -> TlsError {
        let cause = cause.to_string();
        TlsError { what, cause }
    }
    fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|error| failed(what, error))
    }
    let chain = certificates("the certificate", &tls.certificates)?;
    let key = PrivateKeyDer::from_pem_slice(&tls.key).map_err(|error| failed("the key", error))?;
    let mut roots = RootCertStore::empty();
    for root in certificates("the client authority", &tls.client_ca)? {
        roots.add(root).map_err(|error| failed("the client authority", error))?;
    }
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| failed("the setting", error))?;
    let builder = if roots.is_empty() {
        builder.with_no_client_auth()
    } else {
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).allow_unauthenticated();
        let clients = clients.build().map_err(|error| failed("the client authority", error))?;
        builder.with_client_cert_verifier(clients)
    };
    let config = builder.with_single_cert(chain, key);
    let mut config = config.map_err(|error| failed("the certificate", error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
