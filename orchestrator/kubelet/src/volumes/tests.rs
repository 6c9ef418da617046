//! Volumes as a whole, on a real disk with real mounts; time and objects are the test's.

use super::{kernel::tests::Scratch, *};
use crate::{cri::v1::MountPropagation, objects::fake::Fake, pod::tests::pod_of, podspec::hosts_file_of_node};
use serde_json::{Value, json};
use std::{os::unix::fs::PermissionsExt, time::Duration};

struct Node {
    scratch: Scratch,
    objects: Arc<Fake>,
    volumes: Volumes,
    stop: CancellationToken,
}

impl Node {
    /// `None` without the right to mount. Time is the test's: it goes on when all is done.
    fn new() -> Option<Self> {
        let it = Self::still()?;
        let (volumes, stop) = (it.volumes.clone(), it.stop.clone());
        tokio::spawn(async move { volumes.run(stop).await });
        Some(it)
    }

    /// One on which nothing happens by itself.
    fn still() -> Option<Self> {
        let scratch = Scratch::new()?;
        let objects = Fake::new();
        let facts = Facts {
            cluster_domain: "cluster.local".into(),
            ..Facts::default()
        };
        let volumes = Volumes::new(&scratch.path().join("kubelet"), Arc::new(facts), objects.clone()).unwrap();
        Some(Self {
            scratch,
            objects,
            volumes,
            stop: CancellationToken::new(),
        })
    }

    /// So much later; before that, all that is due is done.
    async fn later(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[allow(clippy::needless_pass_by_value)] // literals read better by value
fn pod(volumes: Value) -> Pod {
    let mut it = pod_of(json!({"containers": [{"name": "app"}], "volumes": volumes}));
    it.metadata.labels = Some([("app".to_owned(), "web".to_owned())].into());
    it
}

fn read(mounted: &Mounted, volume: &str, file: &str) -> String {
    let path = mounted.path(volume).unwrap().join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| format!("{}: {error}", path.display()))
}

fn all_kinds() -> Pod {
    pod(json!([
        {"name": "disk", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "host", "hostPath": {"path": "/proc"}},
        {"name": "conf", "configMap": {"name": "conf"}},
        {"name": "secret", "secret": {"secretName": "sec"}},
        {"name": "down", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        {"name": "access", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}},
            {"configMap": {"name": "root", "optional": true}}]}},
    ]))
}

#[tokio::test(start_paused = true)]
async fn all_kinds_are_made_kept_over_a_restart_and_taken_away() {
    let Some(node) = Node::still() else { return };
    node.objects.set_config_map("conf", json!({"color": "red"}));
    node.objects.set_secret("sec", json!({"pass": "c2VjcmV0"}));
    let pod = all_kinds();
    let mounted = node.volumes.set_up(&pod).await.unwrap();
    assert_eq!(read(&mounted, "conf", "color"), "red");
    assert_eq!(read(&mounted, "secret", "pass"), "secret");
    assert_eq!(read(&mounted, "down", "labels"), "app=\"web\"");
    assert_eq!(read(&mounted, "access", "token"), "token-1");
    assert_eq!(mounted.path("host"), Some(Path::new("/proc")));
    for (volume, memory) in [
        ("secret", true),
        ("access", true),
        ("down", true),
        ("memory", true),
        ("conf", false),
        ("disk", false),
    ] {
        assert_eq!(
            kernel::is_mount(mounted.path(volume).unwrap()).unwrap(),
            memory,
            "{volume}"
        );
    }
    for volume in ["disk", "memory"] {
        fs::write(mounted.path(volume).unwrap().join("kept"), volume).unwrap();
    }
    assert_eq!(node.objects.held.lock().unwrap().len(), 1);

    // Another process over the same directory knows nothing but finds all.
    let fresh = Volumes::new(
        &node.scratch.path().join("kubelet"),
        Arc::default(),
        node.objects.clone(),
    )
    .unwrap();
    assert_eq!(fresh.leftovers().await.unwrap(), [pod::uid(&pod)]);
    let again = fresh.set_up(&pod).await.unwrap();
    for volume in ["disk", "memory"] {
        assert_eq!(read(&again, volume, "kept"), volume);
    }
    let tear_down = || fresh.tear_down(pod::uid(&pod));
    tear_down().await.unwrap();
    assert!(fresh.leftovers().await.unwrap().is_empty());
    assert!(node.objects.held.lock().unwrap().is_empty());
    tear_down().await.unwrap();
    assert!(Path::new("/proc/self").exists());
}

#[tokio::test(start_paused = true)]
async fn files_follow_objects_and_the_pod() {
    let Some(node) = Node::new() else { return };
    node.objects.set_config_map("conf", json!({"color": "red", "old": "x"}));
    node.objects.set_secret("sec", json!({"pass": "MQ=="}));
    let mut pod = all_kinds();
    let mounted = node.volumes.set_up(&pod).await.unwrap();
    node.objects
        .set_config_map("conf", json!({"color": "blue", "new": "y"}));
    node.objects.set_secret("sec", json!({"pass": "Mg=="}));
    node.objects.set_config_map("root", json!({"ca.crt": "pem"}));
    node.objects.set_config_map("unrelated", json!({"color": "green"}));
    node.later(1).await;
    assert_eq!(
        (read(&mounted, "conf", "color"), read(&mounted, "conf", "new")),
        ("blue".into(), "y".into())
    );
    assert!(!mounted.path("conf").unwrap().join("old").exists());
    assert_eq!(read(&mounted, "secret", "pass"), "2");
    assert_eq!(read(&mounted, "access", "ca.crt"), "pem", "optional, and there now");
    assert_eq!(node.objects.tokens.lock().unwrap().len(), 1, "no new token for that");
    let entries = || fs::read_dir(mounted.path("conf").unwrap()).unwrap().count();
    assert_eq!(entries(), 5, "two names, the link, the new files and the old");
    node.later(10).await;
    assert_eq!(entries(), 4, "the old files are gone");
    pod.metadata.labels = Some([("app".to_owned(), "other".to_owned())].into());
    node.volumes.update(&pod).await;
    assert_eq!(read(&mounted, "down", "labels"), "app=\"other\"");
    // Gone: the files stay as they were.
    node.objects.set_config_map("conf", Value::Null);
    node.later(1).await;
    assert_eq!(read(&mounted, "conf", "color"), "blue");
    node.objects.set_config_map("conf", json!({"color": "back"}));
    node.later(1).await;
    assert_eq!(read(&mounted, "conf", "color"), "back");
    node.volumes.tear_down(pod::uid(&pod)).await.unwrap();
    node.objects.set_config_map("conf", json!({"color": "late"}));
    node.later(60).await;
    assert!(
        node.volumes.leftovers().await.unwrap().is_empty(),
        "nothing is written after the end"
    );
}

#[tokio::test(start_paused = true)]
async fn tokens_are_renewed_before_they_end() {
    let Some(node) = Node::new() else { return };
    let token = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 600}});
    let short = json!({"serviceAccountToken": {"path": "vault", "expirationSeconds": 1200, "audience": "vault"}});
    let pod = pod(
        json!([{"name": "v", "projected": {"sources": [token, short]}}, {"name": "w", "projected": {"sources": [token]}}]),
    );
    let mounted = node.volumes.set_up(&pod).await.unwrap();
    let given = || node.objects.tokens.lock().unwrap().len();
    assert_eq!(given(), 2, "one for each audience");
    assert_eq!(read(&mounted, "v", "token"), read(&mounted, "w", "token"));
    let first = read(&mounted, "v", "token");
    node.later(479).await;
    assert_eq!(read(&mounted, "v", "token"), first);
    node.later(2).await;
    assert_eq!((given(), read(&mounted, "v", "token")), (3, "token-3".to_owned()));
    assert_eq!(read(&mounted, "w", "token"), "token-3");
    // The API server is away: the old one stays, and is tried again.
    *node.objects.refuse.lock().unwrap() = Some("away".into());
    node.later(490).await;
    assert_eq!((given(), read(&mounted, "v", "token")), (3, "token-3".to_owned()));
    *node.objects.refuse.lock().unwrap() = None;
    node.later(11).await;
    assert_eq!(given(), 5);
    assert!(["token-4", "token-5"].contains(&read(&mounted, "w", "token").as_str()));
    let audiences: Vec<_> = node
        .objects
        .tokens
        .lock()
        .unwrap()
        .iter()
        .map(|it| it.spec.clone().unwrap().audiences.unwrap())
        .collect();
    assert_eq!(
        audiences.iter().filter(|it| it.contains(&"vault".to_owned())).count(),
        2
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_is_told_and_the_rest_is_there() {
    let Some(node) = Node::new() else { return };
    *node.objects.refuse.lock().unwrap() = Some("away".into());
    let shop = pod(json!([
        {"name": "a", "configMap": {"name": "gone"}},
        {"name": "b", "emptyDir": {}},
        {"name": "c", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
    ]));
    let error = node.volumes.set_up(&shop).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "MountVolume.SetUp failed for volume \"a\" : configmap \"gone\" not found; \
         MountVolume.SetUp failed for volume \"c\" : cannot read a token of default: away"
    );
    assert_eq!(error.pod, "shop/web");
    let container = ContainerRef::named(&shop, "app").unwrap();
    assert!(
        node.volumes
            .mounts(&shop, &container, &Environment::default(), 0, &[])
            .await
            .is_ok()
    );
    *node.objects.refuse.lock().unwrap() = None;
    node.objects.set_config_map("gone", json!({"a": "1"}));
    let mounted = node.volumes.set_up(&shop).await.unwrap();
    assert_eq!(read(&mounted, "a", "a"), "1");
    let none = pod(json!([]));
    assert_eq!(node.volumes.set_up(&none).await.unwrap(), Mounted::default());
}

#[tokio::test(start_paused = true)]
async fn a_container_gets_its_mounts() {
    let Some(node) = Node::new() else { return };
    node.objects.set_config_map("conf", json!({"color": "red"}));
    let mounts = json!([
        {"name": "disk", "mountPath": "/data", "mountPropagation": "HostToContainer"},
        {"name": "disk", "mountPath": "sub", "subPathExpr": "logs/$(NAME)", "readOnly": true},
        {"name": "conf", "mountPath": "/etc/color", "subPath": "color"},
        {"name": "conf", "mountPath": "/conf", "recursiveReadOnly": "IfPossible"},
    ]);
    let pod = pod_of(json!({
        "containers": [{"name": "app", "volumeMounts": mounts, "terminationMessagePath": "/dev/end"},
            {"name": "own", "volumeMounts": [{"name": "conf", "mountPath": "/etc/hosts", "subPath": "color"}]},
            {"name": "bad", "volumeMounts": [{"name": "disk", "mountPath": "/x", "subPathExpr": "$(NONE)"}]},
            {"name": "worse", "volumeMounts": [{"name": "disk", "mountPath": "/x", "subPath": "out"}]},
            {"name": "none", "volumeMounts": [{"name": "other", "mountPath": "/x"}]}],
        "volumes": [{"name": "disk", "emptyDir": {}}, {"name": "conf", "configMap": {"name": "conf"}}],
    }));
    let mounted = node.volumes.set_up(&pod).await.unwrap();
    std::os::unix::fs::symlink("/etc", mounted.path("disk").unwrap().join("out")).unwrap();
    let env = Environment {
        variables: vec![("NAME".into(), "web".into())],
        skipped: vec![],
    };
    let ips = ["10.1.0.5".parse().unwrap()];
    let of = async |name: &str, attempt: u32| {
        let container = ContainerRef::named(&pod, name).unwrap();
        node.volumes.mounts(&pod, &container, &env, attempt, &ips).await
    };
    let all = of("app", 3).await.unwrap();
    let paths: Vec<_> = all.iter().map(|it| (it.container_path.as_str(), it.readonly)).collect();
    let want = [
        ("/data", false),
        ("/sub", true),
        ("/etc/color", true),
        ("/conf", true),
        ("/etc/hosts", false),
        ("/dev/end", false),
    ];
    assert_eq!(paths, want);
    assert_eq!(all[0].propagation, MountPropagation::PropagationHostToContainer as i32);
    assert!(!all[3].recursive_read_only);
    let disk = mounted.path("disk").unwrap();
    assert!(disk.join("logs/web").is_dir());
    fs::write(disk.join("logs/web/x"), "there").unwrap();
    assert_eq!(
        fs::read_to_string(Path::new(&all[1].host_path).join("x")).unwrap(),
        "there"
    );
    let hosts = fs::read_to_string(&all[4].host_path).unwrap();
    assert!(hosts.ends_with("10.1.0.5\tweb\n"), "{hosts}");
    let message = node.volumes.termination_message(pod::uid(&pod), "app", 3).unwrap();
    assert_eq!(Path::new(&all[5].host_path), message);
    assert_eq!(fs::metadata(&message).unwrap().permissions().mode() & 0o777, 0o666);

    // A subPath keeps what it was, until the container starts anew.
    node.objects.set_config_map("conf", json!({"color": "blue"}));
    node.later(1).await;
    assert_eq!(read(&mounted, "conf", "color"), "blue");
    assert_eq!(fs::read_to_string(&all[2].host_path).unwrap(), "red");
    for attempt in 4..7 {
        let again = of("app", attempt).await.unwrap();
        assert_eq!(fs::read_to_string(&again[2].host_path).unwrap(), "blue");
    }
    let words = fs::read_dir(message.parent().unwrap()).unwrap().count();
    assert_eq!(
        (words, message.exists()),
        (2, false),
        "the last words of two starts are kept"
    );

    let own: Vec<_> = of("own", 0)
        .await
        .unwrap()
        .into_iter()
        .map(|it| it.container_path)
        .collect();
    assert_eq!(own, ["/etc/hosts", "/dev/termination-log"]);
    assert_eq!(of("bad", 0).await.unwrap_err().message(), "missing value for \"NONE\"");
    let error = of("worse", 0).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "pod shop/web, container worse: volumeMounts[0]: failed to prepare subPath for volumeMount \"disk\": \
         subPath \"out\" leads out of the volume"
    );
    assert_eq!(
        of("none", 0).await.unwrap_err().message(),
        "volume \"other\" is not mounted yet"
    );
    node.volumes.tear_down(pod::uid(&pod)).await.unwrap();
    assert!(node.volumes.leftovers().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_pod_on_the_nodes_network_sees_the_nodes_hosts() {
    let Some(node) = Node::new() else { return };
    let pod = pod_of(json!({"hostNetwork": true, "containers": [{"name": "app"}]}));
    let container = ContainerRef::named(&pod, "app").unwrap();
    let all = node
        .volumes
        .mounts(&pod, &container, &Environment::default(), 0, &[])
        .await
        .unwrap();
    assert_eq!(all[0].container_path, "/etc/hosts");
    let text = fs::read_to_string(&all[0].host_path).unwrap();
    assert_eq!(
        text,
        hosts_file_of_node(&pod, &fs::read_to_string("/etc/hosts").unwrap())
    );
    node.volumes.tear_down(pod::uid(&pod)).await.unwrap();
}
