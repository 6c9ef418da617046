//! Lines of JSON as writes to one Deployment: `-` before a line makes it an update, `+` an apply by force, else it is an
//! apply that may conflict. Managers take turns. Nothing panics, entries stay readable, and what was applied can be applied
//! again without a trace.
#![no_main]

use fairlead_apiserver::managed_fields::{Tracked, Write, apply, check, keep_times, managed_fields, update};
use fairlead_schema::{TypeId, Types};
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use std::sync::{Arc, LazyLock};

static TYPES: LazyLock<(Arc<Types>, TypeId)> = LazyLock::new(|| {
    let types = Types::builtin();
    let deployment = types.kind_of("apps/v1", "Deployment").expect("a built-in kind");
    (types, deployment)
});

fuzz_target!(|bytes: &[u8]| {
    let (types, ty) = &*TYPES;
    let tracked = Tracked::except(&["status"]);
    let mut live: Option<Value> = None;
    for (at, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let (sign, json) = match line.split_first() {
            Some((sign @ (b'-' | b'+'), rest)) => (*sign, rest),
            _ => (b' ', line),
        };
        let Ok(mut object) = serde_json::from_slice::<Value>(json) else {
            continue;
        };
        if let Value::Object(fields) = &mut object {
            fields.insert("apiVersion".into(), "apps/v1".into());
            fields.insert("kind".into(), "Deployment".into());
        }
        let write = |seconds: usize| Write {
            types,
            ty: *ty,
            api_version: "apps/v1",
            kind: "Deployment",
            manager: ["a", "b", "kubectl"][at % 3],
            subresource: "",
            tracked: &tracked,
            versions: &[],
            now: Timestamp::from_second(seconds as i64).unwrap_or_default(),
        };
        if sign == b'-' {
            update(&write(at), live.as_ref(), &mut object);
            assert_eq!(check(&object), Ok(()));
            live = Some(object);
        } else if let Ok(applied) = apply(&write(at), sign == b'+', live.as_ref(), &object) {
            assert_eq!(check(&applied), Ok(()));
            // What owns nothing leaves an object that nobody tracks.
            let tracked = managed_fields(&applied).is_some();
            if let (true, Ok(mut again)) = (tracked, apply(&write(at + 1), false, Some(&applied), &object)) {
                keep_times(&applied, &mut again);
                assert_eq!(managed_fields(&again), managed_fields(&applied));
            }
            live = Some(applied);
        }
    }
});
