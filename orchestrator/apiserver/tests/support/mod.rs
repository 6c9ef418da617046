//! A server of its own for each test: in a directory that goes with it, on a loopback port that the system chose.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "each test program uses a part; nothing else sees it"
)]

use fairlead_apiserver::{
    Inside, Settings,
    authn::User,
    open::{Running, Start},
};
use fairlead_store::{Backend, testing::EtcdDouble};
use http::Method;
use serde_json::Value;
use std::{path::PathBuf, sync::Arc};
use tempfile::TempDir;
use tokio::net::TcpListener;

/// A running server. Dropped with its runtime, which ends its tasks.
pub struct TestServer {
    pub directory: TempDir,
    pub running: Running,
    pub url: String,
}

impl TestServer {
    /// In memory, with the usual settings.
    pub async fn start() -> Self {
        Self::over(Arc::new(EtcdDouble::new()), Settings::default()).await
    }

    pub async fn over(backend: Arc<dyn Backend>, settings: Settings) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let start = Start::new(directory.path().to_owned(), listener.local_addr().unwrap().port());
        let running = Running::start(backend, settings, &start, listener).await.unwrap();
        let url = format!("https://{}", running.address);
        Self {
            directory,
            running,
            url,
        }
    }

    /// An administrator's kubeconfig in a file.
    pub fn kubeconfig(&self) -> PathBuf {
        let path = self.directory.path().join("kubeconfig");
        std::fs::write(&path, self.running.admin_kubeconfig(&self.url).unwrap()).unwrap();
        path
    }

    /// The inner door for a user.
    pub fn as_user(&self, name: &str, groups: &[&str]) -> Inside {
        Inside::new(
            Arc::clone(&self.running.server),
            User::authenticated(name, groups.iter().copied()),
        )
    }

    /// The inner door for an administrator.
    pub fn admin(&self) -> Inside {
        self.as_user("admin", &["system:masters"])
    }

    /// A real client over TLS.
    pub async fn client(&self) -> kube::Client {
        let text = self.running.admin_kubeconfig(&self.url).unwrap();
        let config = kube::config::Kubeconfig::from_yaml(&text).unwrap();
        let config = kube::Config::from_custom_kubeconfig(config, &Default::default())
            .await
            .unwrap();
        kube::Client::try_from(config).unwrap()
    }

    /// A real client by the inner door.
    pub fn inner_client(&self) -> kube::Client {
        kube::Client::new(self.admin(), "default")
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.admin().request(Method::GET, path, "application/json", None).await
    }

    pub async fn post(&self, path: &str, object: &Value) -> (u16, Value) {
        self.admin()
            .request(Method::POST, path, "application/json", Some(object))
            .await
    }

    pub async fn put(&self, path: &str, object: &Value) -> (u16, Value) {
        self.admin()
            .request(Method::PUT, path, "application/json", Some(object))
            .await
    }

    pub async fn patch(&self, path: &str, kind: &str, patch: &Value) -> (u16, Value) {
        let kind = format!("application/{kind}");
        self.admin().request(Method::PATCH, path, &kind, Some(patch)).await
    }

    pub async fn delete(&self, path: &str, options: Option<&Value>) -> (u16, Value) {
        self.admin()
            .request(Method::DELETE, path, "application/json", options)
            .await
    }
}
