//! Signing what others ask for: the signers of certificates.k8s.io that this cluster's CA serves.

use super::{
    authority::{Authority, BACKDATE_S, set_validity},
    identity::LIFE_S,
};
use crate::authn::names;
use rcgen::{CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};
use rustls::pki_types::{CertificateSigningRequestDer, pem::PemObject as _};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer as _};

/// `kubernetes.io/kube-apiserver-client`: users of the API server.
pub const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// `kubernetes.io/kube-apiserver-client-kubelet`: nodes as users of the API server.
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// `kubernetes.io/kubelet-serving`: nodes as servers.
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";

/// Shortest life that may be asked for, seconds: `spec.expirationSeconds`.
const MIN_LIFE_S: i64 = 600;

/// Why a request is not signed: goes into the condition `Failed`, for its author to read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unsigned(String);

fn refuse<T>(why: impl Into<String>) -> Result<T, Unsigned> {
    Err(Unsigned(why.into()))
}

/// Signs a request that was approved, and returns the certificate in PEM.
///
/// `signer`: `spec.signerName`. `pem`: `spec.request`, decoded from base64. `usages`: `spec.usages`. `life`:
/// `spec.expirationSeconds`; a year if not given, and never more. `now` in seconds since 1970.
///
/// # Errors
/// What the signer does not allow; the rules are those of the API's documentation of each signer.
pub fn sign(
    authority: &Authority,
    signer: &str,
    pem: &[u8],
    usages: &[&str],
    life: Option<i64>,
    now: i64,
) -> Result<String, Unsigned> {
    let der = CertificateSigningRequestDer::from_pem_slice(pem);
    let der = der.map_err(|_| Unsigned("spec.request holds no CERTIFICATE REQUEST in PEM".to_owned()))?;
    let subject = Subject::read(&der)?;
    let parsed = CertificateSigningRequestParams::from_der(&der);
    let mut request = parsed.map_err(|error| Unsigned(format!("spec.request: {error}")))?;
    check(signer, &subject, &request.params.subject_alt_names, usages)?;
    let params = &mut request.params;
    // What counts are the usages of the object, which were approved, not those inside the request.
    params.is_ca = IsCa::NoCa;
    params.name_constraints = None;
    params.custom_extensions.clear();
    params.key_usages.clear();
    params.extended_key_usages.clear();
    for usage in usages {
        match *usage {
            "digital signature" => params.key_usages.push(KeyUsagePurpose::DigitalSignature),
            "key encipherment" => params.key_usages.push(KeyUsagePurpose::KeyEncipherment),
            "client auth" => params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ClientAuth),
            _ => params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ServerAuth),
        }
    }
    params.use_authority_key_identifier_extension = true;
    let life = life.unwrap_or(LIFE_S).clamp(MIN_LIFE_S, LIFE_S);
    set_validity(params, now - BACKDATE_S, (now + life).min(authority.not_after()));
    let certificate = request
        .signed_by(authority.issuer())
        .map_err(|error| Unsigned(error.to_string()))?;
    Ok(certificate.pem())
}

/// The groups that a request in PEM asks for: the organizations of its subject.
///
/// # Errors
/// What is not a request.
pub(crate) fn groups(pem: &[u8]) -> Result<Vec<String>, Unsigned> {
    let der = CertificateSigningRequestDer::from_pem_slice(pem);
    let der = der.map_err(|_| Unsigned("spec.request holds no CERTIFICATE REQUEST in PEM".to_owned()))?;
    Ok(Subject::parse(&der)?.groups)
}

struct Subject {
    name: String,
    groups: Vec<String>,
}

impl Subject {
    fn read(der: &[u8]) -> Result<Self, Unsigned> {
        let subject = Self::parse(der)?;
        // The library that signs keeps one organization, and to sign for fewer groups than were approved would be a lie.
        if subject.groups.len() > 1 {
            return refuse("more than one organization (O) in the subject; ask for one group, and bind roles to it");
        }
        Ok(subject)
    }

    fn parse(der: &[u8]) -> Result<Self, Unsigned> {
        let parsed = X509CertificationRequest::from_der(der);
        let (_, request) = parsed.map_err(|error| Unsigned(format!("spec.request: {error}")))?;
        let subject = &request.certification_request_info.subject;
        let text = |it: &x509_parser::x509::AttributeTypeAndValue<'_>| it.as_str().unwrap_or_default().to_owned();
        Ok(Self {
            name: subject.iter_common_name().next().map(text).unwrap_or_default(),
            groups: subject.iter_organization().map(text).collect(),
        })
    }
}

fn check(signer: &str, subject: &Subject, sans: &[SanType], usages: &[&str]) -> Result<(), Unsigned> {
    let (needed, optional): (&[&str], &[&str]) = match signer {
        CLIENT | KUBELET_CLIENT => (&["client auth"], &["digital signature", "key encipherment"]),
        KUBELET_SERVING => (&["server auth"], &["digital signature", "key encipherment"]),
        _ => return refuse(format!("no signer {signer:?} here")),
    };
    if let Some(missing) = needed.iter().find(|it| !usages.contains(it)) {
        return refuse(format!("spec.usages must hold {missing:?} for {signer}"));
    }
    if let Some(odd) = usages.iter().find(|it| !needed.contains(it) && !optional.contains(it)) {
        return refuse(format!("spec.usages may not hold {odd:?} for {signer}"));
    }
    if signer == CLIENT {
        return Ok(());
    }
    if subject.groups != [names::NODES] {
        return refuse(format!("subject organization is not {}", names::NODES));
    }
    if !subject.name.starts_with(names::NODE_PREFIX) {
        return refuse(format!(
            "subject common name does not begin with {}",
            names::NODE_PREFIX
        ));
    }
    let served = sans
        .iter()
        .all(|it| matches!(it, SanType::DnsName(_) | SanType::IpAddress(_)));
    match signer {
        KUBELET_CLIENT if !sans.is_empty() => refuse("subject alternative names are not allowed"),
        KUBELET_SERVING if sans.is_empty() => refuse("DNS or IP subject alternative name is required"),
        KUBELET_SERVING if !served => refuse("only DNS and IP subject alternative names are allowed"),
        _ => Ok(()),
    }
}
