//! What every namespace has: the ServiceAccount `default`, and the certificate by which its pods know the API server.

use crate::frame::{Cache, Controller, Frame, Key, Next, Outcome, Writer};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::core::ObjectMeta;
use std::{collections::BTreeMap, sync::Arc};

const ACCOUNT: &str = "default";
const CERTIFICATE_MAP: &str = "kube-root-ca.crt";
const CERTIFICATE_KEY: &str = "ca.crt";

/// The only objects that the publisher looks at.
const CERTIFICATE_MAPS: &str = "metadata.name=kube-root-ca.crt";
/// The only accounts that the account controller looks at.
const DEFAULT_ACCOUNTS: &str = "metadata.name=default";

fn is_open(namespaces: &Cache<Namespace>, name: &str) -> bool {
    let namespace = namespaces.get("", name);
    namespace.is_some_and(|it| it.metadata.deletion_timestamp.is_none())
}

/// Keys of both controllers are namespaces.
fn namespace_key(namespace: Option<&str>) -> Key {
    Key::new("", namespace.unwrap_or_default())
}

/// Keeps the ServiceAccount `default` in every namespace.
pub(crate) fn service_account(frame: &Arc<Frame>) -> Controller {
    const NAME: &str = "service-account-controller";
    let writer = Writer::new(frame.client(NAME));
    let (namespaces, accounts) = (
        frame.cache::<Namespace>(),
        frame.caches.of_selected::<ServiceAccount>(DEFAULT_ACCOUNTS),
    );
    let (written, namespace_cache, account_cache) =
        (writer.written().clone(), Arc::clone(&namespaces), Arc::clone(&accounts));
    Controller::new(NAME, 2, move |key: Key| {
        let (writer, namespaces, accounts) = (writer.clone(), Arc::clone(&namespaces), Arc::clone(&accounts));
        async move {
            if !is_open(&namespaces, &key.name) || accounts.get(&key.name, ACCOUNT).is_some() {
                return Ok(Next::Change);
            }
            let account = ServiceAccount {
                metadata: ObjectMeta {
                    name: Some(ACCOUNT.to_owned()),
                    namespace: Some(key.name.to_string()),
                    ..ObjectMeta::default()
                },
                ..ServiceAccount::default()
            };
            settled(writer.create(&key, &accounts, &account).await.map(|_| ()))
        }
    })
    .after(&written)
    .on_own(&namespace_cache)
    .on(&account_cache, |change, queue| {
        queue.add(namespace_key(change.latest().metadata.namespace.as_deref()));
    })
}

/// Somebody else was faster, or the namespace is going: both are fine.
fn settled(written: Result<(), crate::frame::Fault>) -> Outcome {
    match written {
        Err(fault) if !fault.is_already_exists() && !fault.is_namespace_terminating() => Err(fault),
        _ => Ok(Next::Change),
    }
}

/// The ConfigMap as it should be; `None` where it is.
fn certificate_map(namespace: &str, pem: &str, existing: Option<&ConfigMap>) -> Option<ConfigMap> {
    let data = BTreeMap::from([(CERTIFICATE_KEY.to_owned(), pem.to_owned())]);
    let mut map = existing.cloned().unwrap_or_else(|| ConfigMap {
        metadata: ObjectMeta {
            name: Some(CERTIFICATE_MAP.to_owned()),
            namespace: Some(namespace.to_owned()),
            annotations: Some(BTreeMap::from([(
                "kubernetes.io/description".to_owned(),
                "The certificate that the API server of this cluster is known by inside it.".to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    });
    if existing.is_some() && map.data.as_ref() == Some(&data) {
        return None;
    }
    map.data = Some(data);
    Some(map)
}

/// Keeps the ConfigMap `kube-root-ca.crt` in every namespace.
pub(crate) fn root_ca(frame: &Arc<Frame>) -> Controller {
    const NAME: &str = "root-ca-cert-publisher";
    let writer = Writer::new(frame.client(NAME));
    let pem: Arc<str> = frame.config.cluster.root_ca_pem.as_str().into();
    let (namespaces, maps) = (
        frame.cache::<Namespace>(),
        frame.caches.of_selected::<ConfigMap>(CERTIFICATE_MAPS),
    );
    let (written, namespace_cache, map_cache) = (writer.written().clone(), Arc::clone(&namespaces), Arc::clone(&maps));
    Controller::new(NAME, 2, move |key: Key| {
        let (writer, namespaces, maps) = (writer.clone(), Arc::clone(&namespaces), Arc::clone(&maps));
        let pem = Arc::clone(&pem);
        async move {
            if pem.is_empty() || !is_open(&namespaces, &key.name) {
                return Ok(Next::Change);
            }
            let existing = maps.get(&key.name, CERTIFICATE_MAP);
            let Some(map) = certificate_map(&key.name, &pem, existing.as_deref()) else {
                return Ok(Next::Change);
            };
            let written = match existing {
                None => writer.create(&key, &maps, &map).await,
                Some(_) => writer.replace(&key, &maps, &map).await,
            };
            settled(written.map(|_| ()))
        }
    })
    .after(&written)
    .on_own(&namespace_cache)
    .on(&map_cache, |change, queue| {
        queue.add(namespace_key(change.latest().metadata.namespace.as_deref()));
    })
}
