//! The certificate for an approved request, by the cluster's CA.

use super::request::{Asked, Unfit, check};
use crate::cluster::config::AuthorityPem;
use rcgen::{
    CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::{fmt, time::Duration};

/// Longest life of a certificate, and that of one whose request does not say, seconds: a year.
const LIFE_S: i64 = 365 * 24 * 3600;
/// Shortest life that may be asked for, seconds. Source: `spec.expirationSeconds`.
const MIN_LIFE_S: i64 = 600;
/// How far back certificates begin, seconds: clocks of nodes differ.
const BACKDATE_S: i64 = 300;

/// The cluster's CA, ready to sign. Debug output shows no key.
pub(crate) struct Signer {
    issuer: Issuer<'static, KeyPair>,
    /// End of the CA's own certificate, seconds since 1970.
    not_after: i64,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}

impl Signer {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// What cannot be understood.
    pub(crate) fn new(authority: &AuthorityPem) -> Result<Self, String> {
        let key = KeyPair::from_pem(&authority.key).map_err(|error| format!("the CA's key: {error}"))?;
        let issuer = Issuer::from_ca_cert_pem(&authority.certificate, key)
            .map_err(|error| format!("the CA's certificate: {error}"))?;
        let (_, pem) = x509_parser::pem::parse_x509_pem(authority.certificate.as_bytes())
            .map_err(|error| format!("the CA's certificate: {error}"))?;
        let certificate = pem
            .parse_x509()
            .map_err(|error| format!("the CA's certificate: {error}"))?;
        let not_after = certificate.validity().not_after.timestamp();
        Ok(Self { issuer, not_after })
    }

    /// The certificate in PEM. `life`: `spec.expirationSeconds`. `now`: seconds since 1970.
    ///
    /// # Errors
    /// What the signer does not allow.
    pub(crate) fn sign(
        &self,
        signer: &str,
        pem: &[u8],
        asked: &Asked,
        usages: &[String],
        life: Option<i32>,
        now: i64,
    ) -> Result<String, Unfit> {
        check(signer, asked, usages)?;
        // The library that signs keeps one organization, and to sign for fewer groups than were approved would be a lie.
        if asked.organizations.len() > 1 {
            return Err(Unfit(
                "more than one organization (O) in the subject; ask for one group, and bind roles to it".to_owned(),
            ));
        }
        let text = String::from_utf8_lossy(pem);
        let parsed = CertificateSigningRequestParams::from_pem(&text);
        let mut request = parsed.map_err(|error| Unfit(format!("spec.request: {error}")))?;
        let params = &mut request.params;
        // The subject that was approved, whatever else the request's own has.
        params.distinguished_name = DistinguishedName::new();
        for organization in &asked.organizations {
            params
                .distinguished_name
                .push(DnType::OrganizationName, organization.as_str());
        }
        params
            .distinguished_name
            .push(DnType::CommonName, asked.common_name.as_str());
        // What counts are the usages of the object, which were approved, not those inside the request.
        params.is_ca = IsCa::NoCa;
        params.name_constraints = None;
        params.custom_extensions.clear();
        params.key_usages.clear();
        params.extended_key_usages.clear();
        for usage in usages {
            match usage.as_str() {
                "digital signature" => params.key_usages.push(KeyUsagePurpose::DigitalSignature),
                "key encipherment" => params.key_usages.push(KeyUsagePurpose::KeyEncipherment),
                "client auth" => params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ClientAuth),
                _ => params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ServerAuth),
            }
        }
        params.use_authority_key_identifier_extension = true;
        let life = life.map_or(LIFE_S, i64::from).clamp(MIN_LIFE_S, LIFE_S);
        let since = |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + since(now - BACKDATE_S);
        params.not_after = epoch + since((now + life).min(self.not_after));
        let certificate = request
            .signed_by(&self.issuer)
            .map_err(|error| Unfit(error.to_string()))?;
        Ok(certificate.pem())
    }
}
