//! Certificates by `CertificateSigningRequest`: the key never leaves this machine.

use super::read;
use crate::orchestrator::kubeconfig::write;
use anyhow::{Context as _, Result, bail};
use k8s_openapi::{
    ByteString,
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, ResourceExt as _, api::PostParams, runtime::wait};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use std::{
    net::IpAddr,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// Time until a request must have been signed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Past this share of its life, in percent, a certificate is asked for anew.
const DUE: i64 = 80;

/// What a certificate is for.
pub(super) enum Kind<'a> {
    /// The node towards the API server.
    Node(&'a str),
    /// The kubelet towards its clients, by its addresses.
    Kubelet(&'a str, &'a [IpAddr]),
}

/// A certificate and its key in PEM. Debug shows neither.
pub(super) struct Pair {
    pub(super) certificate: String,
    pub(super) key: String,
}

impl Pair {
    /// That of two files, unless it is due.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) fn read(path: &Path) -> Result<Option<Self>> {
        let (certificate, key) = (read(&path.with_extension("crt"))?, read(&path.with_extension("key"))?);
        let (Some(certificate), Some(key)) = (certificate, key) else {
            return Ok(None);
        };
        let pair = Self { certificate, key };
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .context("the clock is before 1970")?;
        let now = i64::try_from(now.as_secs())?;
        let good = pair.look(|it| {
            let (begin, end) = (
                it.validity().not_before.timestamp(),
                it.validity().not_after.timestamp(),
            );
            now < begin + (end - begin) / 100 * DUE
        });
        Ok((good == Some(true)).then_some(pair))
    }

    /// Keeps it in two files.
    ///
    /// # Errors
    /// One cannot be written.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        write(&path.with_extension("key"), &self.key)?;
        write(&path.with_extension("crt"), &self.certificate)
    }

    /// Whether it is good for all of these addresses.
    pub(super) fn names(&self, addresses: &[IpAddr]) -> bool {
        let held = self.look(|it| {
            let names = it.subject_alternative_name().ok().flatten();
            let names = names.map(|it| it.value.general_names.clone()).unwrap_or_default();
            let octets = |address: &IpAddr| match address {
                IpAddr::V4(it) => it.octets().to_vec(),
                IpAddr::V6(it) => it.octets().to_vec(),
            };
            addresses.iter().all(|address| {
                names
                    .iter()
                    .any(|it| matches!(it, GeneralName::IPAddress(held) if *held == octets(address)))
            })
        });
        held == Some(true)
    }

    fn look<T>(&self, at: impl FnOnce(&X509Certificate<'_>) -> T) -> Option<T> {
        let der = CertificateDer::from_pem_slice(self.certificate.as_bytes()).ok()?;
        let (_, certificate) = X509Certificate::from_der(&der).ok()?;
        Some(at(&certificate))
    }
}

/// Asks for a certificate, and waits until it is signed.
///
/// # Errors
/// The request is refused, or nobody signs it.
pub(super) async fn ask(client: &Client, kind: &Kind<'_>) -> Result<Pair> {
    let (node, signer, usages, addresses): (_, _, &[&str], &[IpAddr]) = match kind {
        Kind::Node(node) => (
            node,
            "kubernetes.io/kube-apiserver-client-kubelet",
            &["digital signature", "client auth"],
            &[],
        ),
        Kind::Kubelet(node, addresses) => (
            node,
            "kubernetes.io/kubelet-serving",
            &["digital signature", "server auth"],
            addresses,
        ),
    };
    let key = KeyPair::generate().context("no key")?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params
        .distinguished_name
        .push(DnType::CommonName, format!("system:node:{node}"));
    params.subject_alt_names = addresses.iter().map(|it| SanType::IpAddress(*it)).collect();
    let request = params
        .serialize_request(&key)
        .context("no certificate request")?
        .pem()?;
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let object = CertificateSigningRequest {
        metadata: ObjectMeta {
            generate_name: Some(format!("node-{node}-")),
            ..ObjectMeta::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request.into_bytes()),
            signer_name: signer.to_owned(),
            usages: Some(usages.iter().map(|it| (*it).to_owned()).collect()),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let made = requests
        .create(&PostParams::default(), &object)
        .await
        .context("the certificate cannot be asked for; is --token still good?")?;
    let name = made.name_any();
    let decided = |it: Option<&CertificateSigningRequest>| {
        let status = it.and_then(|it| it.status.as_ref());
        status.is_some_and(|it| it.certificate.is_some() || refusal(it.conditions.as_deref()).is_some())
    };
    let waited = tokio::time::timeout(PATIENCE, wait::await_condition(requests, &name, decided)).await;
    let Ok(found) = waited else {
        bail!(
            "CertificateSigningRequest {name} was not signed within {} s; see `kubectl describe csr {name}`",
            PATIENCE.as_secs()
        );
    };
    let status = found?.and_then(|it| it.status).unwrap_or_default();
    if let Some(why) = refusal(status.conditions.as_deref()) {
        bail!("CertificateSigningRequest {name} was refused: {why}");
    }
    let certificate = status.certificate.context("the request was deleted")?;
    Ok(Pair {
        certificate: String::from_utf8(certificate.0).context("the certificate is no PEM")?,
        key: key.serialize_pem(),
    })
}

fn refusal(
    conditions: Option<&[k8s_openapi::api::certificates::v1::CertificateSigningRequestCondition]>,
) -> Option<String> {
    let refused = conditions?
        .iter()
        .find(|it| matches!(it.type_.as_str(), "Denied" | "Failed"))?;
    Some(refused.message.clone().unwrap_or_else(|| refused.type_.clone()))
}
