//! Objects that pods name, watched through a real API server as the node that the pods are on.

use fairlead_apiserver::{
    Inside, Settings,
    authn::User,
    open::{Running, Start},
};
use fairlead_kubelet::objects::{Cached, ObjectRef, Objects};
use fairlead_store::testing::EtcdDouble;
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{ConfigMap, Namespace, Node, Pod, Secret, Service, ServiceAccount},
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fmt::Debug, sync::Arc};
use tokio::{net::TcpListener, sync::broadcast::Receiver};

struct Cluster {
    _directory: tempfile::TempDir,
    running: Running,
    admin: Client,
}

impl Cluster {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let start = Start::new(directory.path().to_owned(), listener.local_addr().unwrap().port());
        let running = Running::start(Arc::new(EtcdDouble::new()), Settings::default(), &start, listener)
            .await
            .unwrap();
        let admin = client(&running, "admin", &["system:masters"]);
        let it = Self {
            _directory: directory,
            running,
            admin,
        };
        for name in ["shop", "default"] {
            let namespaces: Api<Namespace> = Api::all(it.admin.clone());
            let namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
            // Some are there from the start.
            let _ = namespaces.create(&PostParams::default(), &namespace).await;
        }
        let nodes: Api<Node> = Api::all(it.admin.clone());
        let node = serde_json::from_value(json!({"metadata": {"name": "n1"}})).unwrap();
        nodes.create(&PostParams::default(), &node).await.unwrap();
        it.create::<ServiceAccount>(json!({"metadata": {"name": "default"}}))
            .await;
        it
    }

    fn node(&self) -> Cached {
        Cached::new(client(&self.running, "system:node:n1", &["system:nodes"]))
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.admin.clone(), "shop")
    }

    async fn create<K>(&self, object: Value) -> K
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + Serialize,
    {
        let object = serde_json::from_value(object).unwrap();
        self.api().create(&PostParams::default(), &object).await.unwrap()
    }

    /// A pod on the node that names each ConfigMap of `maps`, and this Secret.
    async fn pod(&self, name: &str, maps: &[&str], secret: Option<&str>) -> Pod {
        let maps = maps
            .iter()
            .map(|it| json!({"configMapRef": {"name": it, "optional": true}}));
        let secret = secret.map(|it| json!({"secretRef": {"name": it, "optional": true}}));
        let from: Vec<_> = maps.chain(secret).collect();
        let spec = json!({"nodeName": "n1", "containers": [{"name": "a", "image": "a", "envFrom": from}],
            "automountServiceAccountToken": false});
        self.create(json!({"metadata": {"name": name}, "spec": spec})).await
    }
}

fn client(running: &Running, name: &str, groups: &[&str]) -> Client {
    let user = User {
        name: name.to_owned(),
        groups: groups.iter().map(|it| (*it).to_owned()).collect(),
        ..User::default()
    };
    Client::new(Inside::new(running.server.clone(), user), "default")
}

fn map(name: &str) -> ObjectRef {
    ObjectRef::ConfigMap {
        namespace: "shop".into(),
        name: name.into(),
    }
}

fn value(map: Option<Arc<ConfigMap>>) -> Option<String> {
    map?.data.as_ref()?.get("k").cloned()
}

/// The next change that is told, which must be of this object.
async fn changed(changes: &mut Receiver<ObjectRef>, object: &ObjectRef) {
    assert_eq!(changes.recv().await.as_ref(), Ok(object));
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_followed_while_a_pod_holds_them() {
    let cluster = Cluster::start().await;
    let objects = cluster.node();
    let maps: Api<ConfigMap> = cluster.api();
    cluster
        .create::<ConfigMap>(json!({"metadata": {"name": "conf"}, "data": {"k": "1"}}))
        .await;
    cluster
        .create::<ConfigMap>(json!({"metadata": {"name": "foreign"}, "data": {"k": "9"}}))
        .await;
    cluster
        .create::<Secret>(json!({"metadata": {"name": "sec"}, "stringData": {"k": "s"}}))
        .await;
    let pod = cluster.pod("web", &["conf", "later"], Some("sec")).await;
    let mut changes = objects.changes();
    objects.hold("u1", ObjectRef::of_pod(&pod));
    assert_eq!(
        value(objects.config_map("shop", "conf").await.unwrap()),
        Some("1".into())
    );
    assert_eq!(value(objects.config_map("shop", "later").await.unwrap()), None);
    let secret = objects.secret("shop", "sec").await.unwrap().unwrap();
    assert_eq!(secret.data.as_ref().unwrap().get("k").unwrap().0, b"s");

    let patch = Patch::Merge(json!({"data": {"k": "2"}}));
    maps.patch("conf", &PatchParams::default(), &patch).await.unwrap();
    changed(&mut changes, &map("conf")).await;
    assert_eq!(
        value(objects.config_map("shop", "conf").await.unwrap()),
        Some("2".into())
    );
    cluster
        .create::<ConfigMap>(json!({"metadata": {"name": "later"}, "data": {"k": "3"}}))
        .await;
    changed(&mut changes, &map("later")).await;
    assert_eq!(
        value(objects.config_map("shop", "later").await.unwrap()),
        Some("3".into())
    );
    maps.delete("conf", &DeleteParams::default()).await.unwrap();
    changed(&mut changes, &map("conf")).await;
    assert_eq!(objects.config_map("shop", "conf").await.unwrap(), None);

    // What no pod of this node names is refused, and that is no "not found".
    let error = objects.config_map("shop", "foreign").await.unwrap_err();
    assert!(
        error.to_string().starts_with("cannot read configmap shop/foreign: "),
        "{error}"
    );
    objects.hold("u2", BTreeSet::from([map("foreign")]));
    assert!(objects.config_map("shop", "foreign").await.is_err());

    // Held by nobody, it is asked for each time.
    objects.release("u1");
    let patch = Patch::Merge(json!({"data": {"k": "4"}}));
    maps.patch("later", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(
        value(objects.config_map("shop", "later").await.unwrap()),
        Some("4".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_could_not_be_read_is_told_when_it_can() {
    let cluster = Cluster::start().await;
    let objects = cluster.node();
    let mut changes = objects.changes();
    cluster
        .create::<ConfigMap>(json!({"metadata": {"name": "conf"}, "data": {"k": "1"}}))
        .await;
    // Before the API server knows of the pod, as after a start of both.
    objects.hold("u1", BTreeSet::from([map("conf")]));
    assert!(objects.config_map("shop", "conf").await.is_err());
    cluster.pod("web", &["conf"], None).await;
    changed(&mut changes, &map("conf")).await;
    assert_eq!(
        value(objects.config_map("shop", "conf").await.unwrap()),
        Some("1".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn services_and_tokens_are_had_as_the_node() {
    let cluster = Cluster::start().await;
    let objects = cluster.node();
    let spec = json!({"ports": [{"port": 80}]});
    cluster
        .create::<Service>(json!({"metadata": {"name": "db"}, "spec": spec}))
        .await;
    let services = objects.services("shop").await.unwrap();
    let names: BTreeSet<_> = services.iter().filter_map(|it| it.metadata.name.clone()).collect();
    assert!(names.contains("db"), "{names:?}");
    let elsewhere = objects.services("default").await.unwrap();
    assert!(elsewhere.iter().all(|it| it.metadata.name.as_deref() != Some("db")));

    let pod = cluster.pod("web", &[], None).await;
    let request = |uid: Option<String>| TokenRequest {
        spec: Some(TokenRequestSpec {
            bound_object_ref: serde_json::from_value(
                json!({"kind": "Pod", "apiVersion": "v1", "name": "web", "uid": uid}),
            )
            .unwrap(),
            expiration_seconds: Some(600),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let good = objects
        .token("shop", "default", &request(pod.metadata.uid))
        .await
        .unwrap();
    assert!(good.status.unwrap().token.is_some_and(|it| !it.is_empty()));
    let error = objects
        .token("shop", "default", &request(Some("other".into())))
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("cannot read a token of serviceaccount shop/default: "),
        "{error}"
    );
}
