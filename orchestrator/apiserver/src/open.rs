//! Opening a server: store, keys, certificates, first objects, tasks.

use crate::{
    admission,
    authn::{Authenticator, User, keys::KeyRing},
    authz::{
        Chain, aggregate,
        node::{self, NodeAuthorizer},
        rbac::{self, Rbac},
        rule::PolicyRule,
    },
    bootstrap, convert,
    core::{ApiServer, Settings, StoredObjects},
    crd,
    hooks::services::Services,
    indexer::FieldIndexer,
    inside::Inside,
    metrics::Metrics,
    objects::Objects,
    pki::{Authority, Identity, Profile, tls},
    service::{ITSELF, Limits},
    stream::OutgoingTls,
};
use anyhow::{Context as _, Result};
use arc_swap::ArcSwap;
use fairlead_schema::{Registry, Types, openapi::OpenApi};
use fairlead_store::{Backend, Cache, StoreError, WatchEnd};
use http::Method;
use jiff::Timestamp;
use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, atomic::AtomicBool, atomic::Ordering},
    time::Duration,
};
use tokio_rustls::{TlsAcceptor, rustls};

/// What only the start needs.
#[derive(Clone, Debug)]
pub struct Start {
    /// Keys, certificates and the store live here.
    pub data_dir: PathBuf,
    /// Names of this host for the serving certificate.
    pub hosts: Vec<String>,
    /// Addresses of this host for the serving certificate, and for the endpoints of the Service `kubernetes`.
    pub addresses: Vec<IpAddr>,
    /// Port that clients reach the server at.
    pub port: u16,
    /// As `cluster.local`.
    pub cluster_domain: String,
}

impl Start {
    /// A server of this host alone, named `localhost`, for the domain `cluster.local`.
    pub fn new(data_dir: PathBuf, port: u16) -> Self {
        Self {
            data_dir,
            hosts: Vec::new(),
            addresses: Vec::new(),
            port,
            cluster_domain: "cluster.local".to_owned(),
        }
    }
}

/// Keys and certificates of a server.
pub struct Pki {
    /// Signs everything else.
    pub authority: Authority,
    /// Shown to clients; renewed while serving.
    pub serving: Arc<tls::Serving>,
    /// For the listener.
    pub acceptor: TlsAcceptor,
    profile: Profile,
    path: PathBuf,
}

/// How often certificates are looked at. They are renewed at four fifths of their life, which is months.
const RENEWAL: Duration = Duration::from_secs(3600);

fn now_s() -> i64 {
    Timestamp::now().as_second()
}

impl Pki {
    /// Reads keys and certificates, and makes what is missing.
    ///
    /// # Errors
    /// What could not be read or made, by its path.
    pub fn open(start: &Start, service: Option<IpAddr>) -> Result<Self> {
        let directory = start.data_dir.join("pki");
        let authority = Authority::open(&directory, now_s())?;
        let profile = Profile::serving(
            start.hosts.iter().cloned(),
            start.addresses.iter().copied(),
            service,
            &start.cluster_domain,
        );
        let path = directory.join("apiserver");
        let identity = Identity::open(&path, &authority, &profile, now_s())?;
        let serving = tls::Serving::new(&identity, &authority)?;
        let config = tls::server_config(&authority, Arc::clone(&serving))?;
        Ok(Self {
            authority,
            serving,
            acceptor: TlsAcceptor::from(config),
            profile,
            path,
        })
    }

    /// Renews the serving certificate when it is time.
    fn renew(&self) -> Result<()> {
        let identity = Identity::open(&self.path, &self.authority, &self.profile, now_s())?;
        self.serving.replace(&identity)?;
        Ok(())
    }

    /// TLS towards kubelets, with a certificate that is made anew when it is time.
    fn kubelet_tls(&self) -> Result<Arc<rustls::ClientConfig>> {
        let profile = Profile::kubelet_client();
        let path = self.path.with_file_name("kubelet-client");
        let identity = Identity::open(&path, &self.authority, &profile, now_s())?;
        let (certificate, key) = identity.der()?;
        Ok(Arc::new(
            self.outgoing()?.with_client_auth_cert(vec![certificate], key)?,
        ))
    }

    /// TLS towards others, who must show a certificate of this cluster's authority.
    fn outgoing(&self) -> Result<rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.authority.der().clone())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider);
        Ok(builder
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots))
    }
}

impl ApiServer {
    /// Opens a server over a backend: reads everything, repairs, writes what every cluster has. Serves nothing yet.
    ///
    /// # Errors
    /// What could not be read or written.
    pub async fn open(backend: Arc<dyn Backend>, settings: Settings, start: &Start, pki: &Pki) -> Result<Arc<Self>> {
        let registry = Registry::builtin();
        let indexer = Arc::new(FieldIndexer::new(&registry));
        let cache = Cache::open_with(backend, Arc::clone(&indexer) as _, settings.history)
            .await
            .context("reading the store")?;
        let keys = KeyRing::open(&start.data_dir.join("pki/service-accounts"), &settings.issuer)?;
        let objects = StoredObjects::new(Arc::clone(&cache));
        let rbac = Arc::new(Rbac::load(&objects));
        let node = Arc::new(NodeAuthorizer::new());
        for prefix in node::PREFIXES {
            // One by one: parsed, all pods of a large cluster would take gigabytes.
            for entry in cache.snapshot(prefix).entries(None, None) {
                let object = serde_json::from_slice(&entry.json).unwrap_or_default();
                node.apply(prefix, &entry.key.namespace, &entry.key.name, Some(&object));
            }
        }
        let authorizer = Chain(vec![Arc::clone(&node) as _, Arc::clone(&rbac) as _]);
        let services = Services::new(settings.service_cidrs.clone(), settings.node_ports);
        let (stop, _) = tokio::sync::watch::channel(false);
        let server = Arc::new(Self {
            limits: Limits::new(settings.max_reads, settings.max_writes),
            authenticator: Authenticator {
                keys: Arc::new(keys),
                audiences: vec![settings.issuer.clone()],
                anonymous: true,
            },
            admission: admission::Chain::builtin().guarded(Arc::clone(&rbac), authorizer.clone()),
            authorizer,
            settings,
            cache,
            registry: ArcSwap::from_pointee(registry),
            openapi: OpenApi::default(),
            types: Types::builtin(),
            rbac,
            node,
            followed: Mutex::default(),
            services,
            metrics: Metrics::default(),
            ready: AtomicBool::new(false),
            stop,
            crds: crd::Watcher::default(),
            outgoing: OutgoingTls {
                kubelet: ArcSwap::new(pki.kubelet_tls()?),
                nobody: Arc::new(pki.outgoing()?.with_no_client_auth()),
            },
            objects,
        });
        let stored = server.list("core/services", None);
        for fault in server.services.load(stored.iter().map(|it| &**it)) {
            tracing::error!(fault, "two Services claim the same; delete one of them");
        }
        crd::task::load(&server).await;
        bootstrap::run(&server, start, pki).await?;
        server.ready.store(true, Ordering::Release);
        tokio::spawn(crd::task::run(Arc::clone(&server)));
        tokio::spawn(expire(Arc::clone(&server)));
        tokio::spawn(aggregate(Arc::clone(&server)));
        Ok(server)
    }

    /// The server for its own purposes: may do everything.
    pub fn itself(self: &Arc<Self>) -> Inside {
        Inside::new(Arc::clone(self), User::authenticated(ITSELF, ["system:masters"]))
    }

    /// Tells the authorizers that an object changed. What they see is what is stored now.
    pub(crate) fn follow(&self, prefix: &str, namespace: &str, name: &str) {
        // Most objects are nobody's business here, and parsing them would be most of what a write costs.
        let quota = || {
            let quotas = self.cache.snapshot("core/resourcequotas");
            quotas.entries(Some(namespace), None).next().is_some()
        };
        let is_quota = prefix == "core/resourcequotas";
        if !(is_quota || rbac::PREFIXES.contains(&prefix) || node::PREFIXES.contains(&prefix) || quota()) {
            return;
        }
        let _in_order = self.followed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let object = self.get(prefix, namespace, name);
        self.rbac.apply(prefix, namespace, name, object.as_deref());
        self.node.apply(prefix, namespace, name, object.as_deref());
        self.admission.follow(prefix, namespace, name, object.as_deref());
    }
}

/// Renews certificates until the server stops.
pub async fn renew(server: Arc<ApiServer>, pki: Arc<Pki>) {
    let mut timer = tokio::time::interval(RENEWAL);
    timer.tick().await;
    loop {
        tokio::select! {
            () = server.stopping() => return,
            _ = timer.tick() => {
                let renewed = pki.renew().and_then(|()| pki.kubelet_tls());
                match renewed {
                    Ok(kubelet) => server.outgoing.kubelet.store(kubelet),
                    Err(error) => tracing::error!(error = format!("{error:#}"), "certificates could not be renewed"),
                }
            }
        }
    }
}

/// Keeps aggregated ClusterRoles in step with those that they gather, until the server stops.
async fn aggregate(server: Arc<ApiServer>) {
    loop {
        let revision = server.cache.revision();
        let roles = server.list(rbac::CLUSTER_ROLES, None);
        for (name, rules) in aggregate::updates(roles.iter().map(|it| &**it)) {
            let path = format!("/apis/{}/v1/clusterroles/{name}", rbac::GROUP);
            let rules: Vec<_> = rules.iter().map(PolicyRule::write).collect();
            let patch = serde_json::json!({ "rules": rules });
            let itself = server.itself();
            let patched = itself
                .request(Method::PATCH, &path, "application/merge-patch+json", Some(&patch))
                .await;
            if patched.0 >= 400 {
                tracing::warn!(
                    role = name,
                    code = patched.0,
                    "an aggregated role could not be brought up to date"
                );
            }
        }
        let mut changes = match server.cache.watch(rbac::CLUSTER_ROLES, revision) {
            Ok(changes) => changes,
            Err(StoreError::Compacted { .. }) => continue,
            Err(_) => return,
        };
        tokio::select! {
            () = server.stopping() => return,
            change = changes.next() => if matches!(change, Err(WatchEnd::Closed)) { return },
        }
    }
}

/// How often objects with a limited life are looked at.
const EXPIRY: Duration = Duration::from_secs(60);

/// Deletes Events whose time is over, until the server stops.
async fn expire(server: Arc<ApiServer>) {
    let mut timer = tokio::time::interval(EXPIRY);
    loop {
        tokio::select! {
            () = server.stopping() => return,
            _ = timer.tick() => {}
        }
        let registry = server.registry.load_full();
        let mortal = registry.resources().filter(|it| convert::is_stored_version(it));
        for resource in mortal {
            let Some((storage, ttl_s)) = resource.storage.as_ref().and_then(|it| Some((it, it.ttl_s?))) else {
                continue;
            };
            crate::expiry::sweep(&server, &storage.prefix, ttl_s, Timestamp::now()).await;
        }
    }
}

/// A server that serves.
pub struct Running {
    /// The server; [`ApiServer::begin_stop`] ends it.
    pub server: Arc<ApiServer>,
    /// Its keys and certificates.
    pub pki: Arc<Pki>,
    /// Where it listens.
    pub address: std::net::SocketAddr,
    listener: tokio::task::JoinHandle<()>,
}

impl Running {
    /// Opens a server and serves on a socket that is bound already: nothing can fail for want of a port later.
    ///
    /// # Errors
    /// As [`ApiServer::open`].
    pub async fn start(
        backend: Arc<dyn Backend>,
        settings: Settings,
        start: &Start,
        listener: tokio::net::TcpListener,
    ) -> Result<Self> {
        let first = settings.service_cidrs.first().and_then(|range| range.hosts().next());
        let pki = Arc::new(Pki::open(start, first)?);
        let server = ApiServer::open(backend, settings, start, &pki).await?;
        let address = listener.local_addr().context("the listener has no address")?;
        tokio::spawn(renew(Arc::clone(&server), Arc::clone(&pki)));
        let serve = crate::listen::serve(Arc::clone(&server), listener, pki.acceptor.clone());
        Ok(Self {
            server,
            pki,
            address,
            listener: tokio::spawn(serve),
        })
    }

    /// A kubeconfig for an administrator who reaches the server at `url`.
    ///
    /// # Errors
    /// A certificate that could not be made.
    pub fn admin_kubeconfig(&self, url: &str) -> Result<String> {
        let identity = Identity::issue(&self.pki.authority, &Profile::admin(), now_s())?;
        Ok(crate::pki::kubeconfig::kubeconfig(
            "fairlead",
            "admin",
            url,
            &self.pki.authority,
            &identity,
        ))
    }

    /// Ends watches, lets open requests finish, closes the socket.
    pub async fn stop(self) {
        self.server.begin_stop();
        // A listener that panicked has ended too.
        let _ = self.listener.await;
    }
}
