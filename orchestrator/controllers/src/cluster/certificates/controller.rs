//! The certificate controller: approves what nodes may have, signs what is approved, removes what is over.

use super::{
    request::{self, Way},
    sign::Signer,
};
use crate::frame::{Cache, Change, Clock, Controller, Fault, Frame, Key, Next, Outcome, Queue, Recorder};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    ByteString,
    api::{
        authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
        certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition},
        core::v1::Node,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams, Preconditions},
};
use std::{sync::Arc, time::Duration};

const NAME: &str = "certificate-controller";
const GROUP: &str = "certificates.k8s.io";
/// How long decided requests stay. Source: upstream's cleaner.
const DECIDED: SignedDuration = SignedDuration::from_hours(1);
/// How long undecided requests stay.
const PENDING: SignedDuration = SignedDuration::from_hours(24);

struct Certificates {
    client: Client,
    recorder: Recorder,
    clock: Clock,
    signer: Option<Signer>,
    requests: Arc<Cache<CertificateSigningRequest>>,
    nodes: Arc<Cache<Node>>,
}

pub(crate) fn controller(frame: &Arc<Frame>) -> Controller {
    let authority = frame.config.cluster.authority.as_ref();
    let signer = authority.and_then(|it| {
        Signer::new(it)
            .inspect_err(|fault| tracing::error!(fault, "no certificate can be signed"))
            .ok()
    });
    let this = Arc::new(Certificates {
        client: frame.client(NAME),
        recorder: frame.recorder(NAME),
        clock: frame.clock(),
        signer,
        requests: frame.cache(),
        nodes: frame.cache(),
    });
    let (requests, nodes, by_node) = (Arc::clone(&this.requests), Arc::clone(&this.nodes), Arc::clone(&this));
    Controller::new(NAME, 2, move |key: Key| {
        let this = Arc::clone(&this);
        async move { this.reconcile(&key).await }
    })
    .on_own(&requests)
    .on(&nodes, move |change: &Change<Node>, queue: &Queue| {
        let addresses = |it: &Option<Arc<Node>>| {
            let status = it.as_ref().and_then(|it| it.status.as_ref());
            status.and_then(|it| it.addresses.clone()).unwrap_or_default()
        };
        if addresses(&change.old) == addresses(&change.new) {
            return;
        }
        // It may have asked for a certificate before it said where it is.
        let user = format!(
            "system:node:{}",
            change.latest().metadata.name.as_deref().unwrap_or_default()
        );
        for request in by_node.requests.all() {
            if request.spec.username.as_ref() == Some(&user) && !is_decided(&request) {
                queue.add(Key::of(&*request));
            }
        }
    })
}

fn condition<'a>(request: &'a CertificateSigningRequest, kind: &str) -> Option<&'a CertificateSigningRequestCondition> {
    let all = request.status.as_ref().and_then(|it| it.conditions.as_ref());
    all.into_iter().flatten().find(|it| it.type_ == kind)
}

fn is_decided(request: &CertificateSigningRequest) -> bool {
    condition(request, "Approved").is_some() || condition(request, "Denied").is_some()
}

fn certificate(request: &CertificateSigningRequest) -> Option<&ByteString> {
    let status = request.status.as_ref()?;
    status.certificate.as_ref().filter(|it| !it.0.is_empty())
}

/// When a request is over. Source: upstream's cleaner.
pub(crate) fn over_at(request: &CertificateSigningRequest) -> Option<Timestamp> {
    let created = request.metadata.creation_timestamp.as_ref()?.0;
    let decided = ["Approved", "Denied", "Failed"]
        .iter()
        .filter_map(|kind| condition(request, kind))
        .filter_map(|it| it.last_update_time.as_ref())
        .map(|it| it.0)
        .max();
    let (from, life) = match decided {
        Some(at) => (at, DECIDED),
        None if is_decided(request) => (created, DECIDED),
        None => (created, PENDING),
    };
    from.checked_add(life).ok()
}

impl Certificates {
    async fn reconcile(&self, key: &Key) -> Outcome {
        let Some(request) = self.requests.get("", &key.name) else {
            return Ok(Next::Change);
        };
        let now = self.clock.now();
        let over = over_at(&request);
        if over.is_some_and(|it| it <= now) {
            return self.remove(&request).await;
        }
        let approved = condition(&request, "Approved").is_some();
        let denied = condition(&request, "Denied").is_some() || condition(&request, "Failed").is_some();
        if !denied && certificate(&request).is_none() {
            if approved {
                self.sign(&request, now).await?;
            } else {
                self.approve(&request, now).await?;
            }
        }
        let wait = over.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
        Ok(wait.map_or(Next::Change, Next::After))
    }

    async fn remove(&self, request: &CertificateSigningRequest) -> Outcome {
        let name = request.metadata.name.clone().unwrap_or_default();
        let options = DeleteParams::default().preconditions(Preconditions {
            uid: request.metadata.uid.clone(),
            resource_version: None,
        });
        let api: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        let deleted = api.delete(&name, &options).await;
        match deleted.map_err(|error| Fault::api(format!("delete certificate signing request {name}"), error)) {
            Err(fault) if !fault.is_not_found() && !fault.is_conflict() => Err(fault),
            _ => Ok(Next::Change),
        }
    }

    async fn approve(&self, request: &CertificateSigningRequest, now: Timestamp) -> Result<(), Fault> {
        if ![request::KUBELET_CLIENT, request::KUBELET_SERVING].contains(&request.spec.signer_name.as_str()) {
            return Ok(());
        }
        let asked = match request::read(&request.spec.request.0) {
            Ok(asked) => asked,
            Err(why) => return self.leave(request, &why.0),
        };
        let node = request::node_name(&asked).and_then(|name| self.nodes.get("", name));
        let message = match request::way(request, &asked, node.as_deref()) {
            Way::Not(why) => return self.leave(request, &why),
            Way::Now => "Auto approving kubelet server certificate after comparison with the Node.",
            Way::May(subresource) if self.may(request, subresource).await? => {
                "Auto approving kubelet client certificate after SubjectAccessReview."
            }
            Way::May(subresource) => {
                let who = request.spec.username.as_deref().unwrap_or_default();
                let why = format!("{who} may not create certificatesigningrequests/{subresource}");
                return self.leave(request, &why);
            }
        };
        let mut approved = request.clone();
        let conditions = approved
            .status
            .get_or_insert_default()
            .conditions
            .get_or_insert_default();
        conditions.push(new_condition("Approved", "AutoApproved", message, now));
        let name = request.metadata.name.clone().unwrap_or_default();
        let api: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        let done = api
            .replace_subresource("approval", &name, &PostParams::default(), &approved)
            .await;
        done.map_err(|error| Fault::api(format!("approve certificate signing request {name}"), error))?;
        Ok(())
    }

    /// It waits for a human; its author may read why.
    fn leave(&self, request: &CertificateSigningRequest, why: &str) -> Result<(), Fault> {
        self.recorder
            .normal(request, "NotApproved", format!("Not approved automatically: {why}"));
        Ok(())
    }

    async fn may(&self, request: &CertificateSigningRequest, subresource: &str) -> Result<bool, Fault> {
        let spec = &request.spec;
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: spec.username.clone(),
                uid: spec.uid.clone(),
                groups: spec.groups.clone(),
                extra: spec.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    group: Some(GROUP.to_owned()),
                    version: Some("*".to_owned()),
                    resource: Some("certificatesigningrequests".to_owned()),
                    verb: Some("create".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await;
        let answer = answer.map_err(|error| Fault::api("create subject access review", error))?;
        Ok(answer.status.is_some_and(|it| it.allowed))
    }

    async fn sign(&self, request: &CertificateSigningRequest, now: Timestamp) -> Result<(), Fault> {
        let Some(signer) = &self.signer else { return Ok(()) };
        let spec = &request.spec;
        let ours = [request::CLIENT, request::KUBELET_CLIENT, request::KUBELET_SERVING];
        if !ours.contains(&spec.signer_name.as_str()) {
            return Ok(());
        }
        let pem = &spec.request.0;
        let usages = spec.usages.as_deref().unwrap_or_default();
        let signed = request::read(pem).and_then(|asked| {
            signer.sign(
                &spec.signer_name,
                pem,
                &asked,
                usages,
                spec.expiration_seconds,
                now.as_second(),
            )
        });
        let mut new = request.clone();
        let status = new.status.get_or_insert_default();
        match signed {
            Ok(certificate) => status.certificate = Some(ByteString(certificate.into_bytes())),
            Err(why) => status.conditions.get_or_insert_default().push(new_condition(
                "Failed",
                "SignerValidationFailure",
                &why.0,
                now,
            )),
        }
        let name = request.metadata.name.clone().unwrap_or_default();
        let api: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        let done = api.replace_status(&name, &PostParams::default(), &new).await;
        done.map_err(|error| Fault::api(format!("sign certificate signing request {name}"), error))?;
        Ok(())
    }
}

fn new_condition(kind: &str, reason: &str, message: &str, now: Timestamp) -> CertificateSigningRequestCondition {
    CertificateSigningRequestCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}
