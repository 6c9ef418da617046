//! [`Authority`]: the CA that signs everything in the cluster.

use super::files::{self, PkiError};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use std::{fmt, path::Path, time::Duration};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// How long a new CA certificate is good, seconds: ten years.
pub const CA_LIFE_S: i64 = 10 * 365 * 24 * 3600;
/// How far back certificates begin, seconds: clocks of nodes differ.
pub(crate) const BACKDATE_S: i64 = 300;

/// A certificate authority. Debug output shows no key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
    not_after: i64,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// The CA of a directory (`ca.key`, `ca.crt`), which is made if there is none. Past 80 % of its life the certificate is
    /// made anew over the same key and name, so that everything it signed stays good. `now` in seconds since 1970.
    ///
    /// # Errors
    /// What could not be read, made or understood. A certificate without its key is never replaced silently.
    pub fn open(directory: &Path, now: i64) -> Result<Self, PkiError> {
        files::make_directory(directory)?;
        let (key_path, path) = (directory.join("ca.key"), directory.join("ca.crt"));
        let key = match files::read(&key_path)? {
            Some(pem) => KeyPair::from_pem(&pem).map_err(|it| PkiError::damaged(&key_path, it))?,
            None if files::read(&path)?.is_some() => {
                return Err(PkiError::damaged(&key_path, "missing beside ca.crt"));
            }
            None => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|it| PkiError::issue("the CA", it))?;
                files::write_private(&key_path, key.serialize_pem().as_bytes())?;
                key
            }
        };
        if let Some(pem) = files::read(&path)? {
            let certificate = CertificateDer::from_pem_slice(pem.as_bytes());
            let certificate = certificate.map_err(|it| PkiError::damaged(&path, format!("{it:?}")))?;
            let (begin, end) = {
                let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|it| PkiError::damaged(&path, it))?;
                if parsed.public_key().raw != rcgen::PublicKeyData::subject_public_key_info(&key) {
                    return Err(PkiError::damaged(&path, "belongs to another key than ca.key"));
                }
                (
                    parsed.validity().not_before.timestamp(),
                    parsed.validity().not_after.timestamp(),
                )
            };
            if !due(begin, end, now) {
                let issuer = Issuer::from_ca_cert_der(&certificate, key);
                let issuer = issuer.map_err(|it| PkiError::damaged(&path, it))?;
                return Ok(Self {
                    issuer,
                    certificate,
                    pem,
                    not_after: end,
                });
            }
        }
        let params = params(now);
        let certificate = params.self_signed(&key).map_err(|it| PkiError::issue("the CA", it))?;
        let pem = certificate.pem();
        files::write_private(&path, pem.as_bytes())?;
        let not_after = now + CA_LIFE_S;
        let issuer = Issuer::new(params, key);
        Ok(Self {
            issuer,
            certificate: certificate.into(),
            pem,
            not_after,
        })
    }

    /// The certificate, for clients: `ca.crt`, `certificate-authority-data`, the ConfigMap `kube-root-ca.crt`.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The certificate in DER.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// End of the certificate, seconds since 1970.
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    pub(crate) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }
}

/// Whether a certificate is past 80 % of its life, or not good at all at this time.
pub(crate) fn due(begin: i64, end: i64, now: i64) -> bool {
    now < begin || now >= begin + (end - begin) / 5 * 4
}

fn params(now: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "fairlead-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    set_validity(&mut params, now - BACKDATE_S, now + CA_LIFE_S);
    params
}

/// Sets begin and end, seconds since 1970.
pub(crate) fn set_validity(params: &mut CertificateParams, begin: i64, end: i64) {
    let since = |seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since(begin);
    params.not_after = epoch + since(end);
}
