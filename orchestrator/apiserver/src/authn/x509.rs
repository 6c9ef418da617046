//! Users from client certificates: CN is the name, each O a group.

use super::User;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The user that a certificate names. TLS has verified it before.
///
/// # Errors
/// Why the certificate names nobody.
pub fn user(der: &[u8]) -> Result<User, String> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| format!("no certificate: {error}"))?;
    let subject = certificate.subject();
    let name = subject
        .iter_common_name()
        .next()
        .and_then(|it| it.as_str().ok())
        .unwrap_or_default();
    if name.is_empty() {
        return Err("the certificate has no common name; issue one whose CN is the user's name".to_owned());
    }
    let groups = subject.iter_organization().filter_map(|it| it.as_str().ok());
    let mut user = User::authenticated(name, groups);
    // As upstream: which certificate it was, for the audit log.
    let digest = <sha2::Sha256 as sha2::Digest>::digest(der);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let id = format!("X509SHA256={digest}");
    user.extra
        .insert("authentication.kubernetes.io/credential-id".to_owned(), vec![id]);
    Ok(user)
}
