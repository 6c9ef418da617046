use super::*;
use crate::model::Change;
use std::{
    os::unix::fs::symlink,
    sync::atomic::{AtomicU32, Ordering},
};

/// A folder of our own, removed with its contents.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("fairlead-manifests-{}-{n}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    /// Writes elsewhere and renames, as careful writers do.
    fn replace(&self, name: &str, content: impl AsRef<[u8]>) {
        let temporary = self.path(&format!(".{name}.tmp"));
        fs::write(&temporary, content).unwrap();
        fs::rename(temporary, self.path(name)).unwrap();
    }

    fn follow(&self) -> Events {
        follow(self.0.clone(), "node-a".into()).unwrap()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn service(name: &str, last: u8) -> String {
    format!("{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{clusterIP: 10.96.0.{last}}}}}\n")
}

async fn next(events: &mut Events) -> Vec<String> {
    let batch = events.recv().await.expect("the source lives");
    let lines = batch.into_iter().map(|event| match event {
        Event::Service(Change::Apply(service)) => format!("+ {} {}", service.name.name, service.cluster_ips[0]),
        Event::Service(Change::Delete(name)) => format!("- {}", name.name),
        Event::Init => "init".to_owned(),
        Event::InitDone => "done".to_owned(),
        Event::Skipped(skipped) => format!("! {skipped}"),
        Event::Reviewed { subject } => format!("~ {subject}"),
        other => format!("{other:?}"),
    });
    lines.collect()
}

#[tokio::test]
async fn the_first_batch_is_everything() {
    let dir = Dir::new();
    dir.write("b.yaml", service("b", 2));
    dir.write("a.yml", service("a", 1));
    dir.write(".hidden.yaml", service("hidden", 3));
    dir.write("notes.txt", "none");
    fs::create_dir(dir.path("dir.yaml")).unwrap();
    assert_eq!(
        next(&mut dir.follow()).await,
        ["init", "+ a 10.96.0.1", "+ b 10.96.0.2", "done"]
    );
    let empty = Dir::new();
    assert_eq!(next(&mut empty.follow()).await, ["init", "done"]);
}

#[tokio::test]
async fn files_come_change_and_go() {
    let dir = Dir::new();
    let mut events = dir.follow();
    next(&mut events).await;
    dir.write("a.yaml", service("a", 1));
    assert_eq!(next(&mut events).await, ["+ a 10.96.0.1"]);
    dir.replace("a.yaml", service("a", 2));
    assert_eq!(next(&mut events).await, ["+ a 10.96.0.2"]);
    fs::rename(dir.path("a.yaml"), dir.path("a.yaml.off")).unwrap();
    assert_eq!(next(&mut events).await, ["- a"]);
    fs::hard_link(dir.path("a.yaml.off"), dir.path("a.yaml")).unwrap();
    assert_eq!(next(&mut events).await, ["+ a 10.96.0.2"]);
    fs::remove_file(dir.path("a.yaml")).unwrap();
    assert_eq!(next(&mut events).await, ["- a"]);
}

#[tokio::test]
async fn a_broken_edit_keeps_what_was() {
    let dir = Dir::new();
    dir.write("a.yaml", service("a", 1));
    let mut events = dir.follow();
    next(&mut events).await;
    dir.write("a.yaml", "{{{");
    let got = next(&mut events).await;
    assert_eq!(got.len(), 1);
    assert!(got[0].starts_with("! a.yaml, document 1: "), "{got:?}");
    dir.write("a.yaml", service("a", 2));
    assert_eq!(next(&mut events).await, ["~ a.yaml, document 1", "+ a 10.96.0.2"]);
}

#[tokio::test]
async fn a_config_map_volume_is_swapped_at_once() {
    let dir = Dir::new();
    for (version, last) in [("..v1", 1), ("..v2", 11)] {
        fs::create_dir(dir.path(version)).unwrap();
        dir.write(&format!("{version}/a.yaml"), service("a", last));
        dir.write(&format!("{version}/b.yaml"), service("b", last + 1));
    }
    symlink("..v1", dir.path("..data")).unwrap();
    symlink("..data/a.yaml", dir.path("a.yaml")).unwrap();
    symlink("..data/b.yaml", dir.path("b.yaml")).unwrap();
    let mut events = dir.follow();
    assert_eq!(
        next(&mut events).await,
        ["init", "+ a 10.96.0.1", "+ b 10.96.0.2", "done"]
    );
    symlink("..v2", dir.path("..data_tmp")).unwrap();
    fs::rename(dir.path("..data_tmp"), dir.path("..data")).unwrap();
    assert_eq!(next(&mut events).await, ["+ a 10.96.0.11", "+ b 10.96.0.12"]);
}

#[tokio::test]
async fn the_folder_itself_may_be_replaced() {
    let outer = Dir::new();
    for (version, last) in [("v1", 1), ("v2", 2), ("v3", 3)] {
        fs::create_dir(outer.path(version)).unwrap();
        outer.write(&format!("{version}/a.yaml"), service("a", last));
    }
    symlink("v1", outer.path("now")).unwrap();
    let mut events = follow(outer.path("now"), "node-a".into()).unwrap();
    assert_eq!(next(&mut events).await, ["init", "+ a 10.96.0.1", "done"]);
    symlink("v2", outer.path("next")).unwrap();
    fs::rename(outer.path("next"), outer.path("now")).unwrap();
    assert_eq!(next(&mut events).await, ["+ a 10.96.0.2"]);
    fs::remove_file(outer.path("now")).unwrap();
    fs::rename(outer.path("v2"), outer.path("v2-gone")).unwrap();
    let got = next(&mut events).await;
    assert!(
        got.len() == 1 && got[0].contains("stays until it can be read again"),
        "{got:?}"
    );
    fs::rename(outer.path("v3"), outer.path("now")).unwrap();
    let over = format!("~ manifest folder {}", outer.path("now").display());
    assert_eq!(next(&mut events).await, [&over, "+ a 10.96.0.3"]);
    outer.write("now/b.yaml", service("b", 4));
    assert_eq!(next(&mut events).await, ["+ b 10.96.0.4"]);
}

#[tokio::test]
async fn a_missing_folder_is_an_error_with_a_remedy() {
    let err = follow("/nonexistent/manifests".into(), "node-a".into())
        .unwrap_err()
        .to_string();
    assert_eq!(
        err,
        "manifest folder /nonexistent/manifests: follow: No such file or directory (os error 2); create it, or name \
         another one with --manifests"
    );
}

#[tokio::test]
async fn a_source_ends_with_its_receiver() {
    let dir = Dir::new();
    let watch = Watch::new(&dir.0).unwrap();
    let (sender, mut receiver) = mpsc::channel(1);
    let task = tokio::spawn(run(dir.0.clone(), Folder::new("node-a"), watch, sender));
    receiver.recv().await.unwrap();
    drop(receiver);
    task.await.unwrap();
}
