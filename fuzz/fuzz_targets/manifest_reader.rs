//! Any bytes as versions of a manifest file (0xff ends one, which no UTF-8 holds), beside a sound one that must arrive
//! and stay: nothing is taken back that was not said, and what came goes with the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy::{
    model::{Change, Event},
    source::manifests::{FileState, Folder},
};
use std::collections::BTreeSet;

const SOUND: &[u8] =
    b"{apiVersion: v1, kind: Service, metadata: {namespace: sound, name: sound}, spec: {clusterIP: 10.96.0.1}}";

/// What the events so far have left standing.
#[derive(Debug, Default)]
struct Standing {
    objects: BTreeSet<String>,
    subjects: BTreeSet<String>,
}

impl Standing {
    fn take(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Service(Change::Apply(service)) => _ = self.objects.insert(format!("service {}", service.name)),
                Event::Slice(Change::Apply(slice)) => _ = self.objects.insert(format!("slice {}", slice.name)),
                Event::Node(Change::Apply(node)) => _ = self.objects.insert(format!("node {}", node.name)),
                Event::Service(Change::Delete(name)) => assert!(self.objects.remove(&format!("service {name}"))),
                Event::Slice(Change::Delete(name)) => assert!(self.objects.remove(&format!("slice {name}"))),
                Event::Node(Change::Delete(name)) => assert!(self.objects.remove(&format!("node {name}"))),
                Event::Skipped(skipped) => _ = self.subjects.insert(skipped.object),
                Event::Reviewed { subject } => assert!(self.subjects.remove(&subject), "{subject}"),
                Event::Init | Event::InitDone => panic!("only a source says that"),
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    for name in ["b.yaml", "b.json"] {
        let mut folder = Folder::new("node-a");
        let mut standing = Standing::default();
        standing.take(folder.update([("a.yaml".into(), FileState::Content(SOUND.to_vec()))]));
        for version in bytes.split(|byte| *byte == 0xff).take(8) {
            standing.take(folder.update([(name.into(), FileState::Content(version.to_vec()))]));
            assert!(standing.objects.contains("service sound/sound"));
            // The same again is no news.
            assert_eq!(folder.update([(name.into(), FileState::Content(version.to_vec()))]), []);
        }
        standing.take(folder.update([(name.into(), FileState::Gone)]));
        assert_eq!(standing.objects.len(), 1, "{standing:?}");
        assert_eq!(standing.subjects.len(), 0, "{standing:?}");
        standing.take(folder.update([("a.yaml".into(), FileState::Gone)]));
        assert_eq!(standing.objects.len(), 0, "{standing:?}");
    }
});
