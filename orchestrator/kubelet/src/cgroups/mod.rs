//! [`Cgroups`]: the cgroups of pods, which the kubelet makes before the sandbox and removes after it. The runtime makes
//! those of containers below them, and leaves the pod's own behind.
//!
//! `hierarchy.rs` finds what the kernel has mounted, `limits.rs` is what is written where (pure), `remove.rs` ends and
//! removes.

mod hierarchy;
mod limits;
mod remove;

use crate::{
    pod::{self, Qos},
    podspec::{
        CgroupVersion,
        resources::{Asks, MIN_SHARES, PodLimits, shares},
    },
};
use hierarchy::Hierarchy;
use k8s_openapi::api::core::v1::Pod;
use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// How long the processes of a pod may take to die of SIGKILL, before the caller is told.
const PATIENCE: Duration = Duration::from_secs(5);
/// The directory that all pods are below, in each hierarchy.
const PODS: &str = "kubepods";

/// The cgroup of a pod in each hierarchy, as `/fairlead/kubepods/burstable/pod<uid>`: what CRI calls `cgroup_parent`.
pub fn parent(root: &str, pod: &Pod) -> String {
    let root = root.trim_matches('/');
    let below = below(Qos::of(pod), pod::uid(pod));
    format!(
        "{}/{}",
        if root.is_empty() {
            String::new()
        } else {
            format!("/{root}")
        },
        below.display()
    )
}

fn class(qos: Qos) -> PathBuf {
    match qos {
        Qos::Guaranteed => PODS.into(),
        Qos::Burstable => Path::new(PODS).join("burstable"),
        Qos::BestEffort => Path::new(PODS).join("besteffort"),
    }
}

fn below(qos: Qos, uid: &str) -> PathBuf {
    class(qos).join(format!("pod{uid}"))
}

/// The cgroups of all pods of this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cgroups(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    hierarchies: Vec<Hierarchy>,
    /// Below each hierarchy; empty for its top.
    root: PathBuf,
    /// What burstable pods ask, in thousandths of a CPU: together they get as much against the others.
    burstable: Mutex<HashMap<String, i64>>,
}

impl Cgroups {
    /// All pods' cgroups will be below `root`, as `/` or `/fairlead`, in every hierarchy that is mounted.
    ///
    /// # Errors
    /// No hierarchy with controllers of CPU and memory is mounted, or a root that leads elsewhere.
    pub fn new(root: &str) -> io::Result<Self> {
        Self::over(hierarchy::mounted()?, root)
    }

    fn over(hierarchies: Vec<Hierarchy>, root: &str) -> io::Result<Self> {
        for controller in ["cpu", "memory"] {
            if !hierarchies.iter().any(|it| it.has(controller)) {
                let text =
                    format!("no cgroup hierarchy with the {controller} controller is mounted below /sys/fs/cgroup");
                return Err(io::Error::new(io::ErrorKind::Unsupported, text));
            }
        }
        let root = Path::new(root.trim_matches('/'));
        if !root
            .components()
            .all(|it| matches!(it, std::path::Component::Normal(_)))
        {
            return Err(io::Error::other(format!(
                "cgroup root {} must be a plain path",
                root.display()
            )));
        }
        Ok(Self(Arc::new(Inner {
            hierarchies,
            root: root.to_owned(),
            burstable: Mutex::default(),
        })))
    }

    /// Which kind of cgroups containers are put into.
    pub fn version(&self) -> CgroupVersion {
        let two = self.0.hierarchies.iter().find(|it| it.two && it.has("memory"));
        match two {
            Some(it) => CgroupVersion::V2 {
                swap: it.accounts_swap(),
            },
            None => CgroupVersion::V1,
        }
    }

    /// Makes the cgroup of a pod with its limits, and those above it. Also for a pod that runs already, after a restart.
    ///
    /// # Errors
    /// What the kernel refused, with the file.
    pub async fn create(&self, pod: &Pod) -> io::Result<()> {
        let (uid, qos, limits) = (checked(pod::uid(pod))?.to_owned(), Qos::of(pod), PodLimits::of(pod));
        let asked = Asks::of_pod(pod).requests.cpu_milli.unwrap_or(0);
        self.blocking(move |it| it.create_now(&uid, qos, limits, asked)).await
    }

    /// All pods together get no more than this: CPU in thousandths (against other cgroups of the node) and memory in
    /// bytes. Source: `Node.status.allocatable`.
    ///
    /// # Errors
    /// What the kernel refused, with the file.
    pub async fn limit_all(&self, cpu_milli: i64, memory: i64) -> io::Result<()> {
        let limits = PodLimits {
            cpu_shares: shares(cpu_milli),
            cpu_quota_us: None,
            memory: Some(memory),
        };
        self.blocking(move |it| it.make(Path::new(PODS), &limits)).await
    }

    /// Ends what still runs in a pod, and removes its cgroups. Idempotent.
    ///
    /// # Errors
    /// Processes that do not die, or what the kernel refused; to be called again.
    pub async fn remove(&self, uid: &str) -> io::Result<()> {
        let uid = checked(uid)?.to_owned();
        self.blocking(move |it| it.remove_now(&uid)).await
    }

    /// The uids of all pods that have cgroups, known or not.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub async fn leftovers(&self) -> io::Result<Vec<String>> {
        self.blocking(Inner::uids).await
    }

    /// Ends and removes all pods, and the root itself where it is not the top: nothing is left of this kubelet.
    ///
    /// # Errors
    /// As [`Cgroups::remove`]; all that can be removed is.
    pub async fn remove_all(&self) -> io::Result<()> {
        self.blocking(|it| {
            let dirs: Vec<_> = it
                .hierarchies
                .iter()
                .map(|hierarchy| it.at(hierarchy, Path::new(PODS)))
                .collect();
            let removed = remove::all(&dirs, PATIENCE);
            if it.root.as_os_str().is_empty() {
                return removed;
            }
            // Only if nobody else has anything there.
            let roots = it.hierarchies.iter().map(|hierarchy| hierarchy.mount.join(&it.root));
            roots.for_each(|it| drop(fs::remove_dir(it)));
            removed
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let inner = self.0.clone();
        let done = tokio::task::spawn_blocking(move || work(&inner)).await;
        done.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

impl Inner {
    fn at(&self, hierarchy: &Hierarchy, below: &Path) -> PathBuf {
        hierarchy.mount.join(&self.root).join(below)
    }

    fn create_now(&self, uid: &str, qos: Qos, limits: PodLimits, asked: i64) -> io::Result<()> {
        if qos == Qos::Burstable {
            let mut all = self.burstable.lock().unwrap_or_else(PoisonError::into_inner);
            all.insert(uid.to_owned(), asked);
        }
        self.classes()?;
        self.make(&below(qos, uid), &limits)
    }

    /// Both classes: as a whole the one gets what its pods ask, the other what is left.
    fn classes(&self) -> io::Result<()> {
        let asked = self.burstable.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = asked.values().fold(0i64, |sum, it| sum.saturating_add(*it));
        for (qos, cpu_shares) in [(Qos::Burstable, shares(asked)), (Qos::BestEffort, MIN_SHARES)] {
            self.make(
                &class(qos),
                &PodLimits {
                    cpu_shares,
                    cpu_quota_us: None,
                    memory: None,
                },
            )?;
        }
        Ok(())
    }

    fn make(&self, below: &Path, limits: &PodLimits) -> io::Result<()> {
        for hierarchy in self.hierarchies.iter().filter(|it| it.takes_containers()) {
            let dir = hierarchy.make(&self.root.join(below))?;
            for (file, value) in limits::files(hierarchy, limits) {
                hierarchy::set(&dir.join(file), &value)?;
            }
        }
        Ok(())
    }

    fn remove_now(&self, uid: &str) -> io::Result<()> {
        let was = self
            .burstable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(uid);
        let classes = [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort];
        let dirs = self.hierarchies.iter().flat_map(|hierarchy| {
            // After a restart nobody knows any more which class it was.
            classes.map(|qos| self.at(hierarchy, &below(qos, uid)))
        });
        remove::all(&dirs.collect::<Vec<_>>(), PATIENCE)?;
        if was.is_some() { self.classes() } else { Ok(()) }
    }

    fn uids(&self) -> io::Result<Vec<String>> {
        let mut out = BTreeSet::new();
        for hierarchy in &self.hierarchies {
            for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
                let entries = match fs::read_dir(self.at(hierarchy, &class(qos))) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    entries => entries?,
                };
                for entry in entries {
                    let entry = entry?;
                    let name = entry.file_name();
                    let uid = name.to_str().and_then(|it| it.strip_prefix("pod"));
                    if let Some(uid) = uid.filter(|_| entry.file_type().is_ok_and(|it| it.is_dir())) {
                        out.insert(uid.to_owned());
                    }
                }
            }
        }
        Ok(out.into_iter().collect())
    }
}

/// It becomes the name of a directory that is removed.
fn checked(uid: &str) -> io::Result<&str> {
    if uid.is_empty() || uid.contains(['/', '\0']) || uid.starts_with('.') {
        return Err(io::Error::other(format!("{uid:?} cannot be the uid of a pod")));
    }
    Ok(uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod_of;
    use serde_json::{Value, json};
    use std::process::{Child, Command, Stdio};

    #[allow(clippy::needless_pass_by_value)] // literals read better by value
    fn pod(uid: &str, resources: Value) -> Pod {
        let mut it = pod_of(json!({"containers": [{"name": "a", "resources": resources}]}));
        it.metadata.uid = Some(uid.to_owned());
        it
    }

    fn burstable(uid: &str) -> Pod {
        pod(
            uid,
            json!({"requests": {"cpu": "500m"}, "limits": {"cpu": "1", "memory": "64Mi"}}),
        )
    }

    #[test]
    fn parents_are_what_other_tools_expect() {
        let limits = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        for (root, resources, want) in [
            ("/", limits.clone(), "/kubepods/podu"),
            ("", json!({}), "/kubepods/besteffort/podu"),
            (
                "/fairlead",
                json!({"requests": {"cpu": "1"}}),
                "/fairlead/kubepods/burstable/podu",
            ),
            ("/a/b/", limits, "/a/b/kubepods/podu"),
        ] {
            assert_eq!(parent(root, &pod("u", resources)), want);
        }
    }

    /// A tree that looks like cgroup v2 to those who read and write its files.
    fn fake_two() -> (tempfile::TempDir, Cgroups) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
        let hierarchies = vec![Hierarchy::two(dir.path().to_owned()).unwrap()];
        let cgroups = Cgroups::over(hierarchies, "/top").unwrap();
        (dir, cgroups)
    }

    #[allow(clippy::needless_pass_by_value)] // literals read better by value
    fn read(path: PathBuf) -> String {
        fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            .trim()
            .to_owned()
    }

    #[tokio::test]
    async fn version_two_has_one_file_per_limit() {
        let (dir, cgroups) = fake_two();
        assert_eq!(cgroups.version(), CgroupVersion::V2 { swap: false });
        cgroups.create(&burstable("u")).await.unwrap();
        let pods = dir.path().join("top/kubepods");
        let at = |path: &str| read(pods.join(path));
        assert_eq!(at("burstable/podu/cpu.weight"), "20");
        assert_eq!(at("burstable/podu/cpu.max"), "100000 100000");
        assert_eq!(at("burstable/podu/memory.max"), (64 << 20).to_string());
        assert_eq!(at("burstable/cpu.weight"), "20");
        assert_eq!(at("besteffort/cpu.weight"), "1");
        assert_eq!(at("burstable/memory.max"), "max");
        for path in ["", "burstable/", "burstable/podu/"] {
            // A file keeps the last of what was written; the kernel would add them up.
            assert_eq!(at(&format!("{path}cgroup.subtree_control")), "+pids", "{path}");
        }
        cgroups
            .create(&pod("v", json!({"requests": {"cpu": "1"}})))
            .await
            .unwrap();
        assert_eq!(at("burstable/cpu.weight"), weight_of(1500));
        cgroups.limit_all(2000, 1 << 30).await.unwrap();
        assert_eq!(at("memory.max"), (1 << 30).to_string());
        assert_eq!(cgroups.leftovers().await.unwrap(), ["u", "v"]);
    }

    fn weight_of(milli: i64) -> String {
        crate::podspec::resources::weight(shares(milli)).to_string()
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        let (_dir, cgroups) = fake_two();
        let hierarchies = cgroups.0.hierarchies.clone();
        assert!(Cgroups::over(hierarchies, "/a/../b").is_err());
        let error = Cgroups::over(Vec::new(), "/").unwrap_err();
        assert!(error.to_string().contains("cpu controller"));
        for bad in ["", "../x", "a/b", "."] {
            assert!(checked(bad).is_err(), "{bad}");
        }
    }

    /// Cgroups of the real kernel below a root of our own; gone at the end.
    struct Real(Cgroups);

    impl Real {
        fn new(name: &str) -> Option<Self> {
            let root = format!("/fairlead-test-{}-{name}", std::process::id());
            let cgroups = match Cgroups::new(&root) {
                Ok(it) => it,
                Err(error) => {
                    eprintln!("SKIPPED: {error}");
                    return None;
                }
            };
            if let Err(error) = cgroups.0.make(
                Path::new(PODS),
                &PodLimits {
                    cpu_shares: 1024,
                    ..PodLimits::default()
                },
            ) {
                eprintln!("SKIPPED: cannot make cgroups: {error}");
                return None;
            }
            Some(Self(cgroups))
        }

        fn dirs(&self, below: &str) -> Vec<PathBuf> {
            let all = self.0.0.hierarchies.iter().map(|it| self.0.0.at(it, Path::new(below)));
            all.filter(|it| it.exists()).collect()
        }

        fn file(&self, controller: &str, below: &str) -> String {
            let hierarchy = self.0.0.hierarchies.iter().find(|it| it.has(controller)).unwrap();
            read(self.0.0.at(hierarchy, Path::new(below)))
        }
    }

    impl Drop for Real {
        fn drop(&mut self) {
            let dirs = self.dirs("");
            let _ = remove::all(&dirs, PATIENCE);
        }
    }

    fn sleeper() -> Child {
        Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap()
    }

    #[tokio::test]
    async fn a_pod_is_limited_and_removed_with_all_that_runs_in_it() {
        let Some(real) = Real::new("pod") else { return };
        let cgroups = &real.0;
        for _ in 0..2 {
            cgroups.create(&burstable("u")).await.unwrap();
        }
        cgroups.create(&pod("other", json!({}))).await.unwrap();
        if cgroups.version() == CgroupVersion::V1 {
            let at = |controller: &str, file: &str| real.file(controller, &format!("kubepods/burstable/podu/{file}"));
            assert_eq!(at("cpu", "cpu.shares"), "512");
            assert_eq!(at("cpu", "cpu.cfs_quota_us"), "100000");
            assert_eq!(at("memory", "memory.limit_in_bytes"), (64 << 20).to_string());
            assert!(!at("cpuset", "cpuset.cpus").is_empty());
            assert_eq!(real.file("cpu", "kubepods/burstable/cpu.shares"), "512");
            assert_eq!(real.file("cpu", "kubepods/besteffort/cpu.shares"), "2");
        }
        assert_eq!(cgroups.leftovers().await.unwrap(), ["other", "u"]);
        // One process in the pod's own cgroups, one in a container's, as a runtime that died leaves it.
        let dirs = real.dirs("kubepods/burstable/podu");
        let mut children = [sleeper(), sleeper()];
        for dir in &dirs {
            let container = dir.join("container");
            fs::create_dir(&container).unwrap();
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(value) = fs::read(dir.join(file)) {
                    fs::write(container.join(file), value).unwrap();
                }
            }
            if dir.join("cgroup.subtree_control").exists() {
                fs::write(container.join("cgroup.procs"), children[0].id().to_string()).unwrap();
            } else {
                fs::write(dir.join("cgroup.procs"), children[0].id().to_string()).unwrap();
            }
            fs::write(container.join("cgroup.procs"), children[1].id().to_string()).unwrap();
        }
        cgroups.remove("u").await.unwrap();
        for child in &mut children {
            use std::os::unix::process::ExitStatusExt;
            assert_eq!(child.wait().unwrap().signal(), Some(9));
        }
        assert!(real.dirs("kubepods/burstable/podu").is_empty());
        assert_eq!(cgroups.leftovers().await.unwrap(), ["other"]);
        cgroups.remove("u").await.unwrap();
        if cgroups.version() == CgroupVersion::V1 {
            assert_eq!(real.file("cpu", "kubepods/burstable/cpu.shares"), "2");
        }
        cgroups.remove_all().await.unwrap();
        assert!(real.dirs("").is_empty());
    }

    #[tokio::test]
    async fn a_kubelet_that_knows_nothing_finds_and_removes() {
        let Some(real) = Real::new("restart") else { return };
        real.0.create(&burstable("u")).await.unwrap();
        real.0
            .create(&pod("g", json!({"limits": {"cpu": "1", "memory": "1Gi"}})))
            .await
            .unwrap();
        let root = format!("/{}", real.0.0.root.display());
        let fresh = Cgroups::new(&root).unwrap();
        assert_eq!(fresh.leftovers().await.unwrap(), ["g", "u"]);
        for uid in ["g", "u"] {
            fresh.remove(uid).await.unwrap();
        }
        assert!(fresh.leftovers().await.unwrap().is_empty());
    }
}
