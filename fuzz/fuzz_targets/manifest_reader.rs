//! Any bytes as a manifest file, beside a sound one that must arrive and stay.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy::{
    model::{Change, Event},
    source::manifests::{FileState, Folder},
};

const SOUND: &[u8] =
    b"{apiVersion: v1, kind: Service, metadata: {namespace: sound, name: sound}, spec: {clusterIP: 10.96.0.1}}";

fuzz_target!(|bytes: &[u8]| {
    for name in ["b.yaml", "b.json"] {
        let mut folder = Folder::new("node-a");
        let hostile = (name.into(), FileState::Content(bytes.to_vec()));
        let events = folder.update([("a.yaml".into(), FileState::Content(SOUND.to_vec())), hostile]);
        let arrived =
            |event: &Event| matches!(event, Event::Service(Change::Apply(s)) if &*s.name.namespace == "sound");
        assert!(events.iter().any(arrived));
        // What came, goes: nothing of the file is left behind.
        folder.update([(name.into(), FileState::Gone)]);
        let events = folder.update([("a.yaml".into(), FileState::Gone)]);
        assert_eq!(events.len(), 1);
    }
});
