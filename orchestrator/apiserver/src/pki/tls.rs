//! TLS of the API server: client certificates optional, verified against the CA; TLS 1.2 and 1.3; HTTP/2 or 1.1.

use super::{Authority, Identity, PkiError};
use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::CertificateDer,
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use std::sync::Arc;

/// The serving certificate, which can be replaced while connections go on.
#[derive(Debug)]
pub struct Serving {
    current: ArcSwap<CertifiedKey>,
    /// Shown after it: who joins knows the CA by its digest alone.
    authority: CertificateDer<'static>,
}

impl Serving {
    /// Serves with this identity.
    ///
    /// # Errors
    /// A key that TLS cannot use.
    pub fn new(identity: &Identity, authority: &Authority) -> Result<Arc<Self>, PkiError> {
        let authority = authority.der().clone();
        Ok(Arc::new(Self {
            current: ArcSwap::new(certified(identity, &authority)?),
            authority,
        }))
    }

    /// New connections see this identity.
    ///
    /// # Errors
    /// A key that TLS cannot use; the old one stays.
    pub fn replace(&self, identity: &Identity) -> Result<(), PkiError> {
        self.current.store(certified(identity, &self.authority)?);
        Ok(())
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certified(identity: &Identity, authority: &CertificateDer<'static>) -> Result<Arc<CertifiedKey>, PkiError> {
    let (certificate, key) = identity.der()?;
    let key = CertifiedKey::from_der(vec![certificate, authority.clone()], key, &provider());
    Ok(Arc::new(key.map_err(|error| PkiError::issue("the API server", error))?))
}

/// What the listener on 6443 needs. A client may show a certificate; one that is not the CA's ends the handshake.
///
/// # Errors
/// A CA that TLS cannot use.
pub fn server_config(authority: &Authority, serving: Arc<Serving>) -> Result<Arc<ServerConfig>, PkiError> {
    let failed = |error: &dyn std::fmt::Display| PkiError::issue("the API server", error);
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone()).map_err(|error| failed(&error))?;
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).allow_unauthenticated();
    let clients = clients.build().map_err(|error| failed(&error))?;
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder
        .map_err(|error| failed(&error))?
        .with_client_cert_verifier(clients);
    let mut config = builder.with_cert_resolver(serving);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
