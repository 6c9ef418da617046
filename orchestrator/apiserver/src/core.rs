//! [`ApiServer`]: everything that answering a request needs, without sockets.

use crate::{
    admission,
    authn::Authenticator,
    authz::{Chain, node::NodeAuthorizer, rbac::Rbac},
    crd,
    handlers::Call,
    hooks::services::Services,
    http::{Body, Payload, body},
    metrics::Metrics,
    objects::Objects,
    status::{Result, Status},
    stream::OutgoingTls,
};
use arc_swap::ArcSwap;
use bytes::Bytes;
use fairlead_schema::{Registry, Resource, Types, openapi::OpenApi, strict};
use fairlead_store::{Cache, Entry, Key};
use http::HeaderMap;
use serde_json::Value;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::watch;

/// Settings of the server.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `iss` of service account tokens, and where OIDC discovery says the server is.
    pub issuer: String,
    /// Addresses of ClusterIPs, one range for each family, the first family being the default.
    pub service_cidrs: Vec<ipnet::IpNet>,
    /// Ports of NodePorts, both ends included.
    pub node_ports: (u16, u16),
    /// Reading requests at one time, watches not counted.
    pub max_reads: usize,
    /// Writing requests at one time.
    pub max_writes: usize,
    /// Time for any request but watches and streams.
    pub request_timeout: Duration,
    /// How much of the past watches and pages of lists can reach.
    pub history: fairlead_store::Limits,
}

impl Default for Settings {
    /// Upstream's values.
    fn default() -> Self {
        Self {
            issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
            service_cidrs: vec![ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 96, 0, 0), 16).into()],
            node_ports: (30000, 32767),
            max_reads: 400,
            max_writes: 200,
            request_timeout: Duration::from_secs(60),
            history: fairlead_store::Limits::default(),
        }
    }
}

/// The server without its doors.
pub struct ApiServer {
    /// Settings.
    pub settings: Settings,
    /// Everything that is read and written.
    pub cache: Arc<Cache>,
    /// The same, parsed.
    pub(crate) objects: StoredObjects,
    /// All resources, those of CRDs included.
    pub registry: ArcSwap<Registry>,
    /// Documents about the registry, made when asked for.
    pub openapi: OpenApi,
    /// Built-in types.
    pub types: Arc<Types>,
    /// Who asks.
    pub authenticator: Authenticator,
    /// May they.
    pub authorizer: Chain,
    /// Kept in step with the stored roles.
    pub rbac: Arc<Rbac>,
    /// Kept in step with the stored pods and volumes.
    pub(crate) node: Arc<NodeAuthorizer>,
    /// Held while an authorizer takes a change in.
    pub(crate) followed: Mutex<()>,
    /// What objects must look like besides being valid.
    pub admission: admission::Chain,
    /// Addresses and ports of Services.
    pub services: Services,
    /// Counters.
    pub metrics: Metrics,
    pub(crate) limits: crate::service::Limits,
    pub(crate) ready: std::sync::atomic::AtomicBool,
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) crds: crd::Watcher,
    pub(crate) outgoing: OutgoingTls,
}

/// Parsed objects that decisions read again and again, valid for one revision each.
#[derive(Default)]
struct Parsed(Mutex<HashMap<Key, (u64, Arc<Value>)>>);

/// Objects remembered at most; beyond it all are forgotten.
const MAX_PARSED: usize = 1024;

/// Resources whose objects are remembered: small, few, and read by admission at almost every write. A parsed object takes
/// ten times the memory of its text.
const REMEMBERED: [&str; 8] = [
    "core/namespaces",
    "core/limitranges",
    "core/resourcequotas",
    "core/serviceaccounts",
    "networking.k8s.io/ingressclasses",
    "node.k8s.io/runtimeclasses",
    "scheduling.k8s.io/priorityclasses",
    "storage.k8s.io/storageclasses",
];

impl Parsed {
    fn get(&self, entry: &Entry) -> Arc<Value> {
        let parse = || Arc::new(serde_json::from_slice(&entry.json).unwrap_or_default());
        if !REMEMBERED.contains(&&*entry.key.prefix) {
            return parse();
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((revision, value)) = known.get(&entry.key)
            && *revision == entry.revision
        {
            return Arc::clone(value);
        }
        let value: Arc<Value> = parse();
        if known.len() >= MAX_PARSED {
            known.clear();
        }
        known.insert(entry.key.clone(), (entry.revision, Arc::clone(&value)));
        value
    }
}

/// What decisions read.
pub(crate) struct StoredObjects {
    cache: Arc<Cache>,
    parsed: Parsed,
}

impl StoredObjects {
    pub(crate) fn new(cache: Arc<Cache>) -> Self {
        Self {
            cache,
            parsed: Parsed::default(),
        }
    }
}

impl Objects for ApiServer {
    fn get(&self, prefix: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.objects.get(prefix, namespace, name)
    }

    fn list(&self, prefix: &str, namespace: Option<&str>) -> Vec<Arc<Value>> {
        self.objects.list(prefix, namespace)
    }
}

impl Objects for StoredObjects {
    fn get(&self, prefix: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let key = Key {
            prefix: prefix.into(),
            namespace: namespace.into(),
            name: name.into(),
        };
        self.cache.get(&key).map(|entry| self.parsed.get(&entry))
    }

    fn list(&self, prefix: &str, namespace: Option<&str>) -> Vec<Arc<Value>> {
        let snapshot = self.cache.snapshot(prefix);
        let entries = snapshot.entries(namespace, None);
        entries.map(|entry| self.parsed.get(entry)).collect()
    }
}

impl ApiServer {
    /// Completes when the server stops.
    pub async fn stopping(&self) {
        let mut stop = self.stop.subscribe();
        // An error means that the sender is gone, which is a stop too.
        let _ = stop.wait_for(|stop| *stop).await;
    }

    /// Ends watches and streams and refuses new requests.
    pub fn begin_stop(&self) {
        self.stop.send_replace(true);
    }

    /// Reads a body that holds this built-in kind, whatever the path is about: `DeleteOptions`, `Scale`, `Eviction`.
    /// `Null` for no body.
    ///
    /// # Errors
    /// 400 for another kind, or for fields of the wrong type: what was meant must not be read as nothing.
    pub(crate) fn builtin(&self, headers: &HeaderMap, body: &Bytes, api_version: &str, kind: &str) -> Result<Value> {
        let mut value = Payload::read(&self.types, headers, body)?.value;
        if value.is_null() {
            return Ok(value);
        }
        let said = value["kind"].as_str().unwrap_or(kind);
        if said != kind && !said.is_empty() {
            return Err(Status::bad_request(format!(
                "the body must hold a {kind}, not a {said}"
            )));
        }
        self.normalise(api_version, kind, &mut value)?;
        Ok(value)
    }

    /// Checks the types of the fields of a built-in kind.
    pub(crate) fn normalise(&self, api_version: &str, kind: &str, value: &mut Value) -> Result<()> {
        let ty = self.types.kind_of(api_version, kind);
        let ty = ty.ok_or_else(|| Status::internal(format!("the types lack {api_version} {kind}")))?;
        strict::normalise(&self.types, ty, value).map_err(|problems| {
            let why: Vec<_> = problems.iter().map(ToString::to_string).collect();
            Status::bad_request(format!("{kind} cannot be read: {}", why.join(", ")))
        })
    }

    /// Something about CustomResourceDefinitions changed; their task looks.
    pub(crate) fn crds_changed(&self) {
        self.crds.changed();
    }

    /// The resource of a path.
    pub(crate) fn resource(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        self.registry.load().resource(group, version, plural).map(Arc::clone)
    }

    /// Takes one allowed disruption of the budget of a pod, if it has one.
    ///
    /// # Errors
    /// 429 when the budget allows none.
    pub(crate) async fn spend_disruption(self: &Arc<Self>, pod: &Value) -> Result<()> {
        crate::hooks::disruption::spend(self, pod).await
    }
}

impl Call {
    /// The same call about another namespace (deleting a collection across namespaces).
    pub(crate) fn for_namespace(&self, namespace: &str) -> Self {
        let mut info = self.info.clone();
        namespace.clone_into(&mut info.namespace);
        Self {
            server: Arc::clone(&self.server),
            resource: Arc::clone(&self.resource),
            info,
            user: self.user.clone(),
            query: self.query.clone(),
            headers: self.headers.clone(),
            accept: self.accept,
            now: self.now,
            method: self.method.clone(),
            on_upgrade: Mutex::default(),
            warnings: Mutex::default(),
        }
    }
}

/// `Status` for what the caller named and the server does not know.
pub(crate) fn unknown_resource() -> Status {
    Status::no_such_path()
}

/// An answer without a body.
pub(crate) fn empty() -> Body {
    body::full(Bytes::new())
}
