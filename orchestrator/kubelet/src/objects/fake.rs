//! Objects in memory, for tests.

use super::{ObjectRef, Objects, Unreadable};
use futures::future::BoxFuture;
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestStatus},
    core::v1::{ConfigMap, Secret, Service},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
};
use tokio::sync::broadcast;

/// Objects of the namespace `shop`; tests change them.
pub(crate) struct Fake {
    config_maps: Mutex<HashMap<String, Arc<ConfigMap>>>,
    secrets: Mutex<HashMap<String, Arc<Secret>>>,
    pub(crate) held: Mutex<BTreeMap<String, BTreeSet<ObjectRef>>>,
    /// Tokens given so far.
    pub(crate) tokens: Mutex<Vec<TokenRequest>>,
    /// Why no token is given.
    pub(crate) refuse: Mutex<Option<String>>,
    changes: broadcast::Sender<ObjectRef>,
}

impl Fake {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            config_maps: Mutex::default(),
            secrets: Mutex::default(),
            held: Mutex::default(),
            tokens: Mutex::default(),
            refuse: Mutex::default(),
            changes: broadcast::channel(64).0,
        })
    }

    /// Null removes.
    #[allow(clippy::needless_pass_by_value)] // literals read better by value
    pub(crate) fn set_config_map(&self, name: &str, data: Value) {
        let map = (!data.is_null()).then(|| Arc::new(serde_json::from_value(json!({"data": data})).unwrap()));
        let mut all = self.config_maps.lock().unwrap();
        match map {
            Some(map) => drop(all.insert(name.to_owned(), map)),
            None => drop(all.remove(name)),
        }
        let _ = self.changes.send(ObjectRef::ConfigMap {
            namespace: "shop".into(),
            name: name.into(),
        });
    }

    #[allow(clippy::needless_pass_by_value)] // literals read better by value
    pub(crate) fn set_secret(&self, name: &str, data: Value) {
        let secret = serde_json::from_value(json!({"data": data})).unwrap();
        self.secrets.lock().unwrap().insert(name.to_owned(), Arc::new(secret));
        let _ = self.changes.send(ObjectRef::Secret {
            namespace: "shop".into(),
            name: name.into(),
        });
    }
}

impl Objects for Fake {
    fn config_map<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<ConfigMap>>, Unreadable>> {
        assert_eq!(namespace, "shop");
        let found = self.config_maps.lock().unwrap().get(name).cloned();
        Box::pin(async move { Ok(found) })
    }

    fn secret<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<Secret>>, Unreadable>> {
        assert_eq!(namespace, "shop");
        let found = self.secrets.lock().unwrap().get(name).cloned();
        Box::pin(async move { Ok(found) })
    }

    fn services<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<Arc<Service>>, Unreadable>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn token<'a>(
        &'a self,
        _: &'a str,
        account: &'a str,
        request: &'a TokenRequest,
    ) -> BoxFuture<'a, Result<TokenRequest, Unreadable>> {
        Box::pin(async move {
            if let Some(cause) = self.refuse.lock().unwrap().clone() {
                return Err(Unreadable {
                    object: format!("a token of {account}"),
                    cause,
                });
            }
            let mut tokens = self.tokens.lock().unwrap();
            tokens.push(request.clone());
            let token = Some(format!("token-{}", tokens.len()));
            let status = Some(TokenRequestStatus {
                token,
                ..TokenRequestStatus::default()
            });
            Ok(TokenRequest {
                status,
                ..request.clone()
            })
        })
    }

    fn hold(&self, uid: &str, objects: BTreeSet<ObjectRef>) {
        self.held.lock().unwrap().insert(uid.to_owned(), objects);
    }

    fn release(&self, uid: &str) {
        self.held.lock().unwrap().remove(uid);
    }

    fn changes(&self) -> broadcast::Receiver<ObjectRef> {
        self.changes.subscribe()
    }
}
