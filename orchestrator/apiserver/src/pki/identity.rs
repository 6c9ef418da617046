//! [`Identity`]: a certificate with its key, and the [`Profile`]s of all that the cluster needs.

use super::{
    authority::{Authority, BACKDATE_S, due, set_validity},
    files::{self, PkiError},
};
use crate::authn::names;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use std::{collections::BTreeSet, fmt, net::IpAddr, path::Path};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// How long certificates of users and servers are good, seconds: a year.
pub const LIFE_S: i64 = 365 * 24 * 3600;

/// What a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// CN: the user.
    pub name: String,
    /// O: the user's group.
    pub group: Option<String>,
    /// Names by which clients reach the server.
    pub dns: BTreeSet<String>,
    /// Addresses by which clients reach the server.
    pub addresses: BTreeSet<IpAddr>,
    /// Good for servers.
    pub server: bool,
    /// Good for clients.
    pub client: bool,
    /// Seconds.
    pub life_s: i64,
}

impl Profile {
    /// A client certificate.
    pub fn user(name: impl Into<String>, group: Option<&str>) -> Self {
        Self {
            name: name.into(),
            group: group.map(str::to_owned),
            dns: BTreeSet::new(),
            addresses: BTreeSet::new(),
            server: false,
            client: true,
            life_s: LIFE_S,
        }
    }

    /// Who may do everything: the first kubeconfig.
    pub fn admin() -> Self {
        Self::user("kubernetes-admin", Some(names::MASTERS))
    }

    /// A node.
    pub fn kubelet(node: &str) -> Self {
        Self::user(format!("{}{node}", names::NODE_PREFIX), Some(names::NODES))
    }

    /// The service proxy of the nodes.
    pub fn proxy() -> Self {
        Self::user("system:kube-proxy", None)
    }

    /// The controllers.
    pub fn controller_manager() -> Self {
        Self::user("system:kube-controller-manager", None)
    }

    /// The scheduler.
    pub fn scheduler() -> Self {
        Self::user("system:kube-scheduler", None)
    }

    /// What the API server shows to kubelets.
    pub fn kubelet_client() -> Self {
        Self::user("kube-apiserver-kubelet-client", Some(names::MASTERS))
    }

    /// What the API server shows to its clients: loopback, the host's names and addresses, the service `kubernetes` by every
    /// name and by `service`, the first address of the service range.
    pub fn serving(
        hosts: impl IntoIterator<Item = String>,
        addresses: impl IntoIterator<Item = IpAddr>,
        service: Option<IpAddr>,
        cluster_domain: &str,
    ) -> Self {
        let fixed = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
        ];
        let mut dns: BTreeSet<String> = fixed.map(str::to_owned).into();
        dns.insert(format!("kubernetes.default.svc.{cluster_domain}"));
        dns.extend(hosts.into_iter().filter(|it| !it.is_empty()));
        let mut all: BTreeSet<IpAddr> = [[127, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into()].into();
        all.extend(addresses.into_iter().chain(service));
        let user = Self::user("kube-apiserver", None);
        Self {
            dns,
            addresses: all,
            server: true,
            client: false,
            ..user
        }
    }

    /// What a kubelet shows to the API server.
    pub fn kubelet_serving(
        node: &str,
        hosts: impl IntoIterator<Item = String>,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let mut dns: BTreeSet<String> = hosts.into_iter().filter(|it| !it.is_empty()).collect();
        dns.insert(node.to_owned());
        let addresses = addresses.into_iter().collect();
        Self {
            dns,
            addresses,
            server: true,
            client: false,
            ..Self::kubelet(node)
        }
    }

    fn params(&self, now: i64) -> Result<CertificateParams, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(group) = &self.group {
            params.distinguished_name.push(DnType::OrganizationName, group.as_str());
        }
        params.distinguished_name.push(DnType::CommonName, self.name.as_str());
        for name in &self.dns {
            let name = name.as_str().try_into().map_err(|it| PkiError::issue(&self.name, it))?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params
            .subject_alt_names
            .extend(self.addresses.iter().copied().map(SanType::IpAddress));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if self.server {
            params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if self.client {
            params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ClientAuth);
        }
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, now - BACKDATE_S, now + self.life_s);
        Ok(params)
    }
}

/// A certificate and its key. Debug output shows no key.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate in PEM.
    pub certificate: String,
    /// Its private key, PKCS #8 in PEM.
    pub key: String,
    /// Begin, seconds since 1970.
    pub not_before: i64,
    /// End, seconds since 1970.
    pub not_after: i64,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("certificate", &self.certificate)
            .field("key", &"redacted")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// A new certificate over a new key. `now` in seconds since 1970.
    ///
    /// # Errors
    /// What the profile asks that no certificate can hold.
    pub fn issue(authority: &Authority, profile: &Profile, now: i64) -> Result<Self, PkiError> {
        let failed = |error| PkiError::issue(&profile.name, error);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let certificate = profile
            .params(now)?
            .signed_by(&key, authority.issuer())
            .map_err(failed)?;
        Ok(Self {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            not_before: now - BACKDATE_S,
            not_after: now + profile.life_s,
        })
    }

    /// The identity of a file, certificate and key in one so that they always fit; made anew if there is none, if it is past
    /// 80 % of its life, from another CA, or for another profile. `now` in seconds since 1970.
    ///
    /// # Errors
    /// What could not be read or written.
    pub fn open(path: &Path, authority: &Authority, profile: &Profile, now: i64) -> Result<Self, PkiError> {
        if let Some(pem) = files::read(path)?
            && let Some(identity) = Self::read(&pem)
            && identity.fits(authority, profile)
            && !identity.due(now)
        {
            return Ok(identity);
        }
        let identity = Self::issue(authority, profile, now)?;
        if let Some(directory) = path.parent() {
            files::make_directory(directory)?;
        }
        files::write_private(path, format!("{}{}", identity.certificate, identity.key).as_bytes())?;
        Ok(identity)
    }

    /// Whether it is time for a new one: 80 % of the life is over.
    pub fn due(&self, now: i64) -> bool {
        due(self.not_before, self.not_after, now)
    }

    /// Certificate and key as TLS takes them.
    ///
    /// # Errors
    /// What is not PEM.
    pub fn der(&self) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), PkiError> {
        let failed = |error: rustls::pki_types::pem::Error| PkiError::issue("a TLS peer", format!("{error:?}"));
        let certificate = CertificateDer::from_pem_slice(self.certificate.as_bytes()).map_err(failed)?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(failed)?;
        Ok((certificate, key))
    }

    fn read(pem: &str) -> Option<Self> {
        let at = pem.find("-----BEGIN PRIVATE KEY-----")?;
        let (certificate, key) = pem.split_at(at);
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).ok()?;
        let (_, parsed) = X509Certificate::from_der(&der).ok()?;
        let pair = KeyPair::from_pem(key).ok()?;
        (parsed.public_key().raw == pair.subject_public_key_info()).then(|| Self {
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        })
    }

    /// Whether this CA made it, for this profile.
    fn fits(&self, authority: &Authority, profile: &Profile) -> bool {
        let Ok(der) = CertificateDer::from_pem_slice(self.certificate.as_bytes()) else {
            return false;
        };
        let Ok((_, parsed)) = X509Certificate::from_der(&der) else {
            return false;
        };
        let Ok((_, ca)) = X509Certificate::from_der(authority.der()) else {
            return false;
        };
        let subject = parsed.subject();
        let name = subject.iter_common_name().next().and_then(|it| it.as_str().ok());
        let group = subject.iter_organization().next().and_then(|it| it.as_str().ok());
        let (mut dns, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        for san in parsed
            .subject_alternative_name()
            .ok()
            .flatten()
            .iter()
            .flat_map(|it| &it.value.general_names)
        {
            match san {
                GeneralName::DNSName(name) => {
                    dns.insert((*name).to_owned());
                }
                GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
                _ => {}
            }
        }
        parsed.verify_signature(Some(ca.public_key())).is_ok()
            && name == Some(profile.name.as_str())
            && group == profile.group.as_deref()
            && dns == profile.dns
            && addresses == profile.addresses
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(four.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}
