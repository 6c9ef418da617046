//! `CertificateApproval`, `CertificateSigning` and `CertificateSubjectRestriction`: who may say yes to a CSR.

use super::{Operation, Plugin, Request};
use crate::{
    authn::names,
    authz::{self, Attributes, Authorizer as _},
    objects::{items, text},
    pki::csr,
    status::Status,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

const GROUP: &str = "certificates.k8s.io";
const CSRS: &str = "certificatesigningrequests";

pub(super) struct ApproveAndSign(pub(super) authz::Chain);

impl Plugin for ApproveAndSign {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    fn validate(&self, request: &Request<'_>, object: Option<&Value>) -> Result<(), Status> {
        let (Some(object), Some(old)) = (object, request.old) else {
            return Ok(());
        };
        let failed = |it: &Value| {
            items(it, "/status/conditions")
                .iter()
                .any(|it| text(it, "/type") == "Failed")
        };
        let verb = if request.attributes.is(GROUP, CSRS, "approval") {
            "approve"
        } else if request.attributes.is(GROUP, CSRS, "status")
            && (object.pointer("/status/certificate") != old.pointer("/status/certificate")
                || failed(object) != failed(old))
        {
            "sign"
        } else {
            return Ok(());
        };
        // The signer of the stored object: the request's own could name one that is allowed.
        let signer = text(old, "/spec/signerName");
        let allowed = |name: &str| {
            let request = Attributes {
                name,
                ..Attributes::resource(request.attributes.user, verb, GROUP, "signers")
            };
            self.0.authorize(&request).allowed()
        };
        let domain = signer.split('/').next().unwrap_or_default();
        if allowed(signer) || allowed(&format!("{domain}/*")) {
            return Ok(());
        }
        Err(request.forbidden(format!(
            "user not permitted to {verb} requests with signerName {signer:?}"
        )))
    }
}

pub(super) struct SubjectRestriction;

impl Plugin for SubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn validate(&self, request: &Request<'_>, object: Option<&Value>) -> Result<(), Status> {
        let create = request.attributes.operation == Operation::Create && request.attributes.is(GROUP, CSRS, "");
        let Some(object) = object.filter(|_| create) else {
            return Ok(());
        };
        if text(object, "/spec/signerName") != csr::CLIENT {
            return Ok(());
        }
        let pem = STANDARD.decode(text(object, "/spec/request")).unwrap_or_default();
        let groups = csr::groups(&pem).map_err(|error| request.forbidden(error))?;
        if groups.iter().any(|it| it == names::MASTERS) {
            return Err(request.forbidden(format!(
                "use of {} signer with {} group is not allowed",
                csr::CLIENT,
                names::MASTERS
            )));
        }
        Ok(())
    }
}
