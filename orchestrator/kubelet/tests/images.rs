//! Images: pull policies, back-off, and a registry that asks for a password.

mod support;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, api::PostParams};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use support::{Cluster, WAIT, container, isolated, phase, waiting};
use tokio::net::TcpStream;

fn spec(image: &str, policy: &str) -> Value {
    json!({"containers": [{"name": "app", "image": image, "imagePullPolicy": policy, "command": ["/bin/sh", "-c", WAIT]}]})
}

#[test]
fn an_image_that_cannot_be_had_is_told() {
    isolated("an_image_that_cannot_be_had_is_told", |directory| async {
        let cluster = Cluster::start(directory).await;
        cluster.create("never", spec("fairlead.test/none:1", "Never")).await;
        cluster.create("invalid", spec("Not//An:Image", "IfNotPresent")).await;
        // Nothing listens there.
        cluster.create("pull", spec("127.0.0.1:1/none:1", "IfNotPresent")).await;
        let is = |reason: &'static str| move |pod: &_| waiting(pod, "app") == Some(reason);
        cluster.until("never", "refused", is("ErrImageNeverPull")).await;
        cluster
            .until_event("never", "ErrImageNeverPull", "is not present with pull policy of Never")
            .await;
        cluster.until("invalid", "refused", is("InvalidImageName")).await;
        cluster.until("pull", "refused", is("ErrImagePull")).await;
        let pod = cluster.until("pull", "in back-off", is("ImagePullBackOff")).await;
        assert_eq!(phase(&pod), "Pending");
        let state = container(&pod, "app").unwrap().state.clone().unwrap().waiting.unwrap();
        let message = state.message.unwrap();
        assert!(
            message.starts_with("Back-off pulling image \"127.0.0.1:1/none:1\": ErrImagePull: "),
            "{message}"
        );
        cluster
            .until_event("pull", "Pulling", "Pulling image \"127.0.0.1:1/none:1\"")
            .await;
        cluster.until_event("pull", "BackOff", "Back-off pulling image").await;
        // What cannot start can go.
        for name in ["never", "invalid", "pull"] {
            cluster.delete(name).await;
        }
        cluster.end().await;
    });
}

/// The distribution's registry on a loopback port; everybody is user `ann` with password `secret`.
struct Registry {
    child: Child,
    address: String,
}

impl Registry {
    async fn start(directory: &Path) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let address = format!("127.0.0.1:{port}");
        // `htpasswd -Bbn ann secret`.
        let passwords = directory.join("htpasswd");
        std::fs::write(
            &passwords,
            "ann:$2y$04$5xEHmMOx/w5V2gXKyxdAe.wEdvcsBQpG22Jr5UvJPRypCV24LEXni\n",
        )
        .unwrap();
        let configuration = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {0}}}}}\nhttp: {{addr: \"{address}\"}}\nauth: {{htpasswd: {{realm: test, path: {1}}}}}\n",
            directory.join("registry").display(),
            passwords.display(),
        );
        let file = directory.join("registry.yml");
        std::fs::write(&file, configuration).unwrap();
        let child = Command::new(support::programs::unpacked("docker-registry"))
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is not installed");
        while TcpStream::connect(&address).await.is_err() {
            // Its socket comes when it comes; there is nothing to wait on.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Self { child, address }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn pulled_with_a_secret(directory: PathBuf) {
    let cluster = Cluster::start(directory.clone()).await;
    let registry = Registry::start(&directory).await;
    let image = format!("{}/team/tools:2", registry.address);
    cluster.containerd.import(support::tools(&image));
    cluster
        .containerd
        .ctr(&["images", "push", "--plain-http", "--user", "ann:secret", &image]);
    cluster.containerd.ctr(&["images", "rm", "--sync", &image]);
    cluster.create("refused", spec(&image, "IfNotPresent")).await;
    cluster
        .until("refused", "refused", |it| waiting(it, "app") == Some("ErrImagePull"))
        .await;
    let auth = STANDARD.encode("ann:secret");
    let file = json!({"auths": {registry.address.clone(): {"auth": auth}}}).to_string();
    let secret: Secret = serde_json::from_value(json!({
        "metadata": {"name": "pull"}, "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": STANDARD.encode(file)},
    }))
    .unwrap();
    let secrets: Api<Secret> = Api::namespaced(cluster.admin.clone(), "default");
    secrets.create(&PostParams::default(), &secret).await.unwrap();
    let mut with_secret = spec(&image, "Always");
    with_secret["imagePullSecrets"] = json!([{"name": "pull"}]);
    cluster.create("pulled", with_secret).await;
    cluster.until_running("pulled").await;
    cluster
        .until_event("pulled", "Pulled", "Successfully pulled image")
        .await;
    drop(registry);
    cluster.end().await;
}

#[test]
fn a_registry_with_a_password_is_used_with_the_pods_secret() {
    isolated(
        "a_registry_with_a_password_is_used_with_the_pods_secret",
        pulled_with_a_secret,
    );
}
