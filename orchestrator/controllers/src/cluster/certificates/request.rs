//! What a `CertificateSigningRequest` asks for, and whether it is one that may be approved without a human: pure.

use k8s_openapi::api::{certificates::v1::CertificateSigningRequest, core::v1::Node};
use std::{collections::BTreeSet, net::IpAddr};
use x509_parser::{
    certification_request::X509CertificationRequest, extensions::GeneralName, extensions::ParsedExtension,
    prelude::FromDer as _,
};

/// Users of the API server.
pub(crate) const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Nodes as users of the API server.
pub(crate) const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Nodes as servers.
pub(crate) const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// The group of all nodes: organization of their certificates.
const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";
/// The group that may become nobody by a certificate.
const MASTERS: &str = "system:masters";

/// Why a request is not signed, for its author to read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unfit(pub(crate) String);

fn unfit<T>(why: impl Into<String>) -> Result<T, Unfit> {
    Err(Unfit(why.into()))
}

/// What the request itself holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) common_name: String,
    pub(crate) organizations: Vec<String>,
    pub(crate) names: BTreeSet<String>,
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// Names of other kinds: mail, URI.
    pub(crate) odd: bool,
}

/// Reads `spec.request`.
///
/// # Errors
/// It holds no request, or one whose signature is not by its own key.
pub(crate) fn read(pem: &[u8]) -> Result<Asked, Unfit> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem)
        .map_err(|_| Unfit("spec.request holds no CERTIFICATE REQUEST in PEM".to_owned()))?;
    let (_, request) =
        X509CertificationRequest::from_der(&pem.contents).map_err(|error| Unfit(format!("spec.request: {error}")))?;
    let subject = &request.certification_request_info.subject;
    let text = |it: &x509_parser::x509::AttributeTypeAndValue<'_>| it.as_str().unwrap_or_default().to_owned();
    // Of several, one reader takes the first and another the last: who is approved must be who is signed.
    let mut common_names = subject.iter_common_name().map(text);
    let common_name = common_names.next().unwrap_or_default();
    if common_names.next().is_some() {
        return unfit("the subject has more than one common name (CN)");
    }
    let mut asked = Asked {
        common_name,
        organizations: subject.iter_organization().map(text).collect(),
        ..Asked::default()
    };
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(all) = extension else {
            continue;
        };
        for name in &all.general_names {
            match name {
                GeneralName::DNSName(name) => drop(asked.names.insert((*name).to_owned())),
                GeneralName::IPAddress(bytes) => match address(bytes) {
                    Some(address) => drop(asked.addresses.insert(address)),
                    None => asked.odd = true,
                },
                _ => asked.odd = true,
            }
        }
    }
    Ok(asked)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let six = || <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| six()).ok()
}

/// Whether a signer of ours may sign this. Source: the API's description of each signer.
///
/// # Errors
/// What it may not sign.
pub(crate) fn check(signer: &str, asked: &Asked, usages: &[String]) -> Result<(), Unfit> {
    let needed = match signer {
        CLIENT | KUBELET_CLIENT => "client auth",
        KUBELET_SERVING => "server auth",
        _ => return unfit(format!("no signer {signer:?} here")),
    };
    if !usages.iter().any(|it| it == needed) {
        return unfit(format!("spec.usages must hold {needed:?} for {signer}"));
    }
    let allowed = [needed, "digital signature", "key encipherment"];
    if let Some(odd) = usages.iter().find(|it| !allowed.contains(&it.as_str())) {
        return unfit(format!("spec.usages may not hold {odd:?} for {signer}"));
    }
    if asked.organizations.iter().any(|it| it == MASTERS) {
        return unfit(format!("nobody gets a certificate of the group {MASTERS} this way"));
    }
    if signer == CLIENT {
        return Ok(());
    }
    if asked.organizations != [NODES] {
        return unfit(format!("subject organization is not {NODES}"));
    }
    if asked.common_name.strip_prefix(NODE_PREFIX).is_none_or(str::is_empty) {
        return unfit(format!("subject common name does not begin with {NODE_PREFIX}"));
    }
    let bare = asked.names.is_empty() && asked.addresses.is_empty();
    match signer {
        KUBELET_CLIENT if !bare || asked.odd => unfit("subject alternative names are not allowed"),
        KUBELET_SERVING if bare => unfit("DNS or IP subject alternative name is required"),
        KUBELET_SERVING if asked.odd => unfit("only DNS and IP subject alternative names are allowed"),
        _ => Ok(()),
    }
}

/// How a request may be approved without a human.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// If its author may create this subresource of CertificateSigningRequests: `selfnodeclient`, `nodeclient`.
    May(&'static str),
    /// It may, at once.
    Now,
    /// Not (yet); why.
    Not(String),
}

/// How a request may be approved. `node`: the Node that the subject names.
pub(crate) fn way(request: &CertificateSigningRequest, asked: &Asked, node: Option<&Node>) -> Way {
    let spec = &request.spec;
    let usages = spec.usages.as_deref().unwrap_or_default();
    if let Err(why) = check(&spec.signer_name, asked, usages) {
        return Way::Not(why.0);
    }
    let itself = spec.username.as_deref() == Some(asked.common_name.as_str());
    match spec.signer_name.as_str() {
        KUBELET_CLIENT if itself => Way::May("selfnodeclient"),
        KUBELET_CLIENT => Way::May("nodeclient"),
        KUBELET_SERVING => serving(request, asked, node, itself),
        _ => Way::Not(format!("requests for {} are approved by people", spec.signer_name)),
    }
}

fn serving(request: &CertificateSigningRequest, asked: &Asked, node: Option<&Node>, itself: bool) -> Way {
    let grouped = request.spec.groups.iter().flatten().any(|it| it == NODES);
    if !itself || !grouped {
        return Way::Not("only the node itself may ask for its serving certificate".to_owned());
    }
    let Some(node) = node else {
        return Way::Not(format!("{} is no Node", asked.common_name));
    };
    let known = node
        .status
        .as_ref()
        .and_then(|it| it.addresses.as_deref())
        .unwrap_or_default();
    let is_known = |text: &str| known.iter().any(|it| it.address.eq_ignore_ascii_case(text));
    let name = node.metadata.name.as_deref().unwrap_or_default();
    if let Some(odd) = asked.names.iter().find(|it| *it != name && !is_known(it)) {
        return Way::Not(format!("DNS name {odd} is not in status.addresses of node {name}"));
    }
    let foreign = asked
        .addresses
        .iter()
        .find(|asked| !known.iter().any(|it| it.address.parse() == Ok(**asked)));
    if let Some(odd) = foreign {
        return Way::Not(format!("address {odd} is not in status.addresses of node {name}"));
    }
    Way::Now
}

/// The node that a subject names.
pub(crate) fn node_name(asked: &Asked) -> Option<&str> {
    asked.common_name.strip_prefix(NODE_PREFIX)
}
