//! Which requests are approved, which are signed, and what the certificates say.

use super::{
    controller::over_at,
    request::{self, Asked, CLIENT, KUBELET_CLIENT, KUBELET_SERVING, Way, check, read, way},
    sign::Signer,
};
use crate::cluster::config::AuthorityPem;
use k8s_openapi::api::{certificates::v1::CertificateSigningRequest, core::v1::Node};
use rcgen::{CertificateParams, DnType, IsCa, KeyPair, SanType};
use serde_json::json;

fn pem(name: &str, organizations: &[&str], sans: Vec<SanType>) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    for organization in organizations {
        params.distinguished_name.push(DnType::OrganizationName, *organization);
    }
    params.subject_alt_names = sans;
    let key = KeyPair::generate().unwrap();
    params.serialize_request(&key).unwrap().pem().unwrap().into_bytes()
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn usages(all: &[&str]) -> Vec<String> {
    all.iter().map(|it| (*it).to_owned()).collect()
}

fn request(signer: &str, user: &str, usage: &str) -> CertificateSigningRequest {
    serde_json::from_value(json!({
        "metadata": { "name": "r", "creationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": {
            "signerName": signer, "username": user, "groups": ["system:nodes", "system:authenticated"],
            "usages": ["digital signature", usage], "request": "",
        },
    }))
    .unwrap()
}

fn node() -> Node {
    serde_json::from_value(json!({
        "metadata": { "name": "n1" },
        "status": { "addresses": [{ "type": "InternalIP", "address": "192.168.0.1" }, { "type": "Hostname", "address": "N1" }, { "type": "InternalIP", "address": "fd00::1" }] },
    }))
    .unwrap()
}

#[test]
fn requests_are_read() {
    let sans = vec![
        dns("n1"),
        SanType::IpAddress("192.168.0.1".parse().unwrap()),
        SanType::IpAddress("fd00::1".parse().unwrap()),
    ];
    let asked = read(&pem("system:node:n1", &["system:nodes"], sans)).unwrap();
    assert_eq!(asked.common_name, "system:node:n1");
    assert_eq!(asked.organizations, ["system:nodes"]);
    assert_eq!((asked.names.len(), asked.addresses.len(), asked.odd), (1, 2, false));
    assert_eq!(request::node_name(&asked), Some("n1"));
    assert!(read(b"nonsense").is_err());
    assert!(read(b"-----BEGIN CERTIFICATE REQUEST-----\nMDAw\n-----END CERTIFICATE REQUEST-----\n").is_err());
}

#[test]
fn what_signers_sign() {
    let node = |names: &[&str]| Asked {
        common_name: "system:node:n1".to_owned(),
        organizations: vec!["system:nodes".to_owned()],
        names: names.iter().map(|it| (*it).to_owned()).collect(),
        ..Asked::default()
    };
    let user = Asked {
        common_name: "jane".to_owned(),
        ..Asked::default()
    };
    let master = Asked {
        organizations: vec!["system:masters".to_owned()],
        ..user.clone()
    };
    let table = [
        (CLIENT, user.clone(), &["client auth"][..], true),
        (CLIENT, user.clone(), &["server auth"], false),
        (CLIENT, user.clone(), &["client auth", "cert sign"], false),
        (CLIENT, master, &["client auth"], false),
        (KUBELET_CLIENT, node(&[]), &["client auth", "digital signature"], true),
        (KUBELET_CLIENT, node(&["n1"]), &["client auth"], false),
        (KUBELET_CLIENT, user.clone(), &["client auth"], false),
        (KUBELET_SERVING, node(&["n1"]), &["server auth"], true),
        (KUBELET_SERVING, node(&[]), &["server auth"], false),
        (
            KUBELET_SERVING,
            Asked {
                odd: true,
                ..node(&["n1"])
            },
            &["server auth"],
            false,
        ),
        (
            KUBELET_SERVING,
            Asked {
                common_name: "system:node:".to_owned(),
                ..node(&["n1"])
            },
            &["server auth"],
            false,
        ),
        ("example.com/mine", user, &["client auth"], false),
    ];
    for (signer, asked, use_for, wanted) in table {
        let found = check(signer, &asked, &usages(use_for));
        assert_eq!(found.is_ok(), wanted, "{signer} {asked:?} {use_for:?}: {found:?}");
    }
}

#[test]
fn a_node_gets_what_is_its_own() {
    let asked = |names: &[&str], addresses: &[&str]| Asked {
        common_name: "system:node:n1".to_owned(),
        organizations: vec!["system:nodes".to_owned()],
        names: names.iter().map(|it| (*it).to_owned()).collect(),
        addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
        odd: false,
    };
    let node = node();
    let itself = request(KUBELET_SERVING, "system:node:n1", "server auth");
    let is_now = |it: Way| it == Way::Now;
    assert!(is_now(way(
        &itself,
        &asked(&["n1"], &["192.168.0.1", "fd00::1"]),
        Some(&node)
    )));
    assert!(!is_now(way(&itself, &asked(&["n2"], &[]), Some(&node))));
    assert!(!is_now(way(&itself, &asked(&["n1"], &["192.168.0.2"]), Some(&node))));
    assert!(!is_now(way(&itself, &asked(&["n1"], &[]), None)));
    let another = request(KUBELET_SERVING, "system:node:n2", "server auth");
    assert!(!is_now(way(&another, &asked(&["n1"], &[]), Some(&node))));
    let mut loner = itself.clone();
    loner.spec.groups = None;
    assert!(!is_now(way(&loner, &asked(&["n1"], &[]), Some(&node))));
    let client = |user: &str| way(&request(KUBELET_CLIENT, user, "client auth"), &asked(&[], &[]), None);
    assert_eq!(client("system:node:n1"), Way::May("selfnodeclient"));
    assert_eq!(client("system:bootstrap:abc"), Way::May("nodeclient"));
    assert!(matches!(
        way(&request(CLIENT, "jane", "client auth"), &asked(&[], &[]), None),
        Way::Not(_)
    ));
}

fn signer() -> Signer {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap().pem();
    Signer::new(&AuthorityPem {
        certificate,
        key: key.serialize_pem(),
    })
    .unwrap()
}

#[test]
fn certificates_say_what_was_approved() {
    let pem = pem("system:node:n1", &["system:nodes"], vec![dns("n1")]);
    let asked = read(&pem).unwrap();
    let now = 1_800_000_000;
    let signed = signer()
        .sign(
            KUBELET_SERVING,
            &pem,
            &asked,
            &usages(&["server auth", "digital signature"]),
            Some(3600),
            now,
        )
        .unwrap();
    let (_, parsed) = x509_parser::pem::parse_x509_pem(signed.as_bytes()).unwrap();
    let certificate = parsed.parse_x509().unwrap();
    assert!(!certificate.is_ca());
    assert_eq!(certificate.validity().not_after.timestamp(), now + 3600);
    assert_eq!(certificate.validity().not_before.timestamp(), now - 300);
    let extended = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && !extended.client_auth);
    assert_eq!(
        certificate
            .subject()
            .iter_common_name()
            .next()
            .unwrap()
            .as_str()
            .unwrap(),
        "system:node:n1"
    );
    let two = Asked {
        organizations: usages(&["a", "b"]),
        ..asked
    };
    let refused = signer().sign(CLIENT, &pem, &two, &usages(&["client auth"]), None, now);
    assert!(refused.is_err(), "the library would drop one of them");
}

#[test]
fn requests_do_not_stay_for_ever() {
    let mut request = request(CLIENT, "jane", "client auth");
    assert_eq!(over_at(&request).unwrap().to_string(), "2026-01-02T00:00:00Z");
    request.status = serde_json::from_value(json!({
        "conditions": [{ "type": "Denied", "status": "True", "lastUpdateTime": "2026-01-01T05:00:00Z" }],
    }))
    .unwrap();
    assert_eq!(over_at(&request).unwrap().to_string(), "2026-01-01T06:00:00Z");
}
