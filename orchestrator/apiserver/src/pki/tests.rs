//! Certificates made, renewed, shown and believed.

use super::{
    authority::CA_LIFE_S,
    csr,
    identity::LIFE_S,
    kubeconfig::kubeconfig,
    tls::{Serving, server_config},
    *,
};
use crate::authn::{names, x509};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use std::{
    io::{Read, Write},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::Arc,
};

const NOW: i64 = 1_800_000_000;

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn keys_are_their_owners_alone_and_survive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let pki = directory.path().join("deep/pki");
    let first = Authority::open(&pki, NOW).unwrap();
    let again = Authority::open(&pki, NOW).unwrap();
    assert_eq!((first.pem(), first.not_after()), (again.pem(), again.not_after()));
    let path = pki.join("admin.pem");
    let admin = Identity::open(&path, &first, &Profile::admin(), NOW).unwrap();
    assert_eq!(Identity::open(&path, &again, &Profile::admin(), NOW).unwrap(), admin);
    for file in ["ca.key", "ca.crt", "admin.pem"] {
        assert_eq!(mode(&pki.join(file)), 0o600, "{file}");
    }
    assert_eq!(mode(&pki), 0o700);
    let left: Vec<_> = std::fs::read_dir(&pki)
        .unwrap()
        .map(|it| it.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn certificates_are_renewed_at_four_fifths_of_their_life() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::open(directory.path(), NOW).unwrap();
    let path = directory.path().join("admin.pem");
    let open = |profile: &Profile, at| Identity::open(&path, &authority, profile, at).unwrap();
    let admin = open(&Profile::admin(), NOW);
    assert_eq!(open(&Profile::admin(), NOW + LIFE_S / 5 * 4 - 400), admin);
    let renewed = open(&Profile::admin(), NOW + LIFE_S / 5 * 4 + 1);
    assert_ne!(renewed.key, admin.key);
    // Another profile, a damaged file, another CA: made anew as well.
    let other = open(&Profile::kubelet("n"), NOW);
    assert_ne!(other, renewed);
    std::fs::write(&path, "garbage").unwrap();
    assert_ne!(open(&Profile::kubelet("n"), NOW), other);
    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = Authority::open(elsewhere.path(), NOW).unwrap();
    let before = open(&Profile::kubelet("n"), NOW);
    assert_ne!(
        Identity::open(&path, &stranger, &Profile::kubelet("n"), NOW).unwrap(),
        before
    );
}

#[test]
fn the_ca_is_renewed_over_its_key_so_that_what_it_signed_stays_good() {
    let directory = tempfile::tempdir().unwrap();
    let start = now();
    let old = Authority::open(directory.path(), start - CA_LIFE_S / 5 * 4 - 1000).unwrap();
    let serving = Identity::issue(&old, &profile(), start).unwrap();
    let new = Authority::open(directory.path(), start).unwrap();
    assert_ne!(old.pem(), new.pem());
    assert!(new.not_after() > old.not_after());
    let server = server_config(&new, Serving::new(&serving, &new).unwrap()).unwrap();
    let (_, alpn) = handshake(server, &new, None, "localhost").unwrap();
    assert_eq!(alpn.as_deref(), Some(&b"h2"[..]));
}

#[test]
fn a_ca_without_its_key_is_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    Authority::open(directory.path(), NOW).unwrap();
    std::fs::remove_file(directory.path().join("ca.key")).unwrap();
    let error = Authority::open(directory.path(), NOW).unwrap_err();
    assert!(error.to_string().contains("ca.key"), "{error}");
}

#[test]
fn certificates_name_users() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::open(directory.path(), NOW).unwrap();
    for (profile, name, group) in [
        (Profile::admin(), "kubernetes-admin", Some(names::MASTERS)),
        (Profile::kubelet("n"), "system:node:n", Some(names::NODES)),
        (Profile::proxy(), "system:kube-proxy", None),
        (Profile::controller_manager(), "system:kube-controller-manager", None),
        (Profile::scheduler(), "system:kube-scheduler", None),
    ] {
        let identity = Identity::issue(&authority, &profile, NOW).unwrap();
        let user = x509::user(&identity.der().unwrap().0).unwrap();
        assert_eq!(user.name, name);
        let groups: Vec<&str> = group.into_iter().chain([names::AUTHENTICATED]).collect();
        assert_eq!(user.groups, groups);
        assert!(!format!("{identity:?} {authority:?}").contains("PRIVATE"));
    }
}

fn profile() -> Profile {
    let address = [10, 96, 0, 1].into();
    Profile::serving(
        ["host.example".to_owned()],
        [[192, 168, 0, 5].into()],
        Some(address),
        "cluster.local",
    )
}

/// The server's view of the client's certificate, and the protocol that was agreed on.
type Shaken = (Option<Vec<u8>>, Option<Vec<u8>>);

/// Shakes hands in memory.
fn handshake(
    server: Arc<ServerConfig>,
    authority: &Authority,
    client: Option<&Identity>,
    host: &str,
) -> Result<Shaken, String> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = builder.with_root_certificates(roots);
    let mut config = match client {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let (certificate, key) = identity.der().unwrap();
            builder.with_client_auth_cert(vec![certificate], key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    let mut wire = Vec::new();
    while client.is_handshaking() || server.is_handshaking() {
        wire.clear();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets().map_err(|it| it.to_string())?;
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets().map_err(|it| it.to_string())?;
    }
    client.writer().write_all(b"hello").unwrap();
    wire.clear();
    client.write_tls(&mut wire).unwrap();
    server.read_tls(&mut wire.as_slice()).unwrap();
    server.process_new_packets().map_err(|it| it.to_string())?;
    let mut said = [0; 5];
    server.reader().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"hello");
    let shown = server
        .peer_certificates()
        .and_then(|it| it.first())
        .map(|it| it.to_vec());
    Ok((shown, server.alpn_protocol().map(<[u8]>::to_vec)))
}

#[test]
fn clients_are_strangers_or_ours() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let start = now();
    let authority = Authority::open(here.path(), start).unwrap();
    let stranger = Authority::open(there.path(), start).unwrap();
    let serving = Serving::new(&Identity::issue(&authority, &profile(), start).unwrap(), &authority).unwrap();
    let server = server_config(&authority, Arc::clone(&serving)).unwrap();
    let names = [
        "localhost",
        "127.0.0.1",
        "::1",
        "kubernetes",
        "kubernetes.default.svc",
        "host.example",
        "192.168.0.5",
        "10.96.0.1",
        "kubernetes.default.svc.cluster.local",
    ];
    for host in names {
        assert!(handshake(Arc::clone(&server), &authority, None, host).is_ok(), "{host}");
    }
    assert!(handshake(Arc::clone(&server), &authority, None, "other.example").is_err());
    let admin = Identity::issue(&authority, &Profile::admin(), start).unwrap();
    let (shown, _) = handshake(Arc::clone(&server), &authority, Some(&admin), "localhost").unwrap();
    assert_eq!(x509::user(&shown.unwrap()).unwrap().name, "kubernetes-admin");
    let expired = Identity::issue(&authority, &Profile::admin(), start - 2 * LIFE_S).unwrap();
    let foreign = Identity::issue(&stranger, &Profile::admin(), start).unwrap();
    let server_only = Identity::issue(&authority, &profile(), start).unwrap();
    for (bad, why) in [
        (expired, "expired"),
        (foreign, "foreign"),
        (server_only, "no client usage"),
    ] {
        assert!(
            handshake(Arc::clone(&server), &authority, Some(&bad), "localhost").is_err(),
            "{why}"
        );
    }
    // A new certificate is shown without a new configuration.
    let only = Profile {
        dns: ["new.example".to_owned()].into(),
        ..profile()
    };
    serving
        .replace(&Identity::issue(&authority, &only, start).unwrap())
        .unwrap();
    assert!(handshake(Arc::clone(&server), &authority, None, "new.example").is_ok());
}

#[test]
fn requests_are_signed_by_the_rules_of_their_signer() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::open(directory.path(), NOW).unwrap();
    let request = |name: &str, group: Option<&str>, sans: &[&str]| {
        let key = rcgen::KeyPair::generate().unwrap();
        let sans: Vec<String> = sans.iter().map(|it| (*it).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(sans).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        if let Some(group) = group {
            params.distinguished_name.push(rcgen::DnType::OrganizationName, group);
        }
        params.serialize_request(&key).unwrap().pem().unwrap()
    };
    let (client, server) = (
        ["digital signature", "client auth"],
        ["digital signature", "server auth"],
    );
    let (node, nodes) = ("system:node:n", Some(names::NODES));
    for (signer, pem, usages, signed) in [
        (csr::CLIENT, request("bob", Some("dev"), &[]), &client[..], true),
        (csr::CLIENT, request("bob", None, &[]), &server[..], false),
        (
            csr::CLIENT,
            request("bob", None, &[]),
            &["client auth", "cert sign"],
            false,
        ),
        (csr::KUBELET_CLIENT, request(node, nodes, &[]), &client, true),
        (csr::KUBELET_CLIENT, request(node, Some("dev"), &[]), &client, false),
        (csr::KUBELET_CLIENT, request("bob", nodes, &[]), &client, false),
        (csr::KUBELET_CLIENT, request(node, nodes, &["n"]), &client, false),
        (
            csr::KUBELET_SERVING,
            request(node, nodes, &["n", "10.0.0.1"]),
            &server,
            true,
        ),
        (csr::KUBELET_SERVING, request(node, nodes, &[]), &server, false),
        (csr::KUBELET_SERVING, request(node, nodes, &["n"]), &client, false),
        ("example.com/other", request("bob", None, &[]), &client, false),
        (csr::CLIENT, "garbage".to_owned(), &client, false),
    ] {
        let result = csr::sign(&authority, signer, pem.as_bytes(), usages, Some(3600), NOW);
        assert_eq!(result.is_ok(), signed, "{signer} {usages:?} {result:?}");
        let Ok(certificate) = result else { continue };
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert!(!parsed.is_ca());
        assert_eq!(parsed.validity().not_after.timestamp(), NOW + 3600);
        let (_, ca) = x509_parser::parse_x509_certificate(authority.der()).unwrap();
        assert!(parsed.verify_signature(Some(ca.public_key())).is_ok());
    }
}

#[test]
fn a_kubeconfig_is_understood_by_a_client() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::open(directory.path(), NOW).unwrap();
    let identity = Identity::issue(&authority, &Profile::admin(), NOW).unwrap();
    let text = kubeconfig("fair: lead", "admin", "https://127.0.0.1:6443", &authority, &identity);
    let read = kube::config::Kubeconfig::from_yaml(&text).unwrap();
    assert_eq!(read.current_context.as_deref(), Some("admin@fair: lead"));
    let cluster = read.clusters[0].cluster.as_ref().unwrap();
    assert_eq!(cluster.server.as_deref(), Some("https://127.0.0.1:6443"));
    let user = read.auth_infos[0].auth_info.as_ref().unwrap();
    assert!(user.client_certificate_data.is_some() && user.client_key_data.is_some());
}
