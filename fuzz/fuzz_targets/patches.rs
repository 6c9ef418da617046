//! Two lines of JSON: an object and a patch, as each kind of patch to a Deployment. None panics, what comes out can be read
//! again, and no directive or null of a strategic merge patch stays behind.
#![no_main]

use fairlead_apiserver::{
    patch::{json_patch, merge_patch, strategic_merge_patch},
    value::{MAX_DEPTH, deeper_than},
};
use fairlead_schema::{TypeId, Types};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use std::sync::{Arc, LazyLock};

static TYPES: LazyLock<(Arc<Types>, TypeId)> = LazyLock::new(|| {
    let types = Types::builtin();
    let deployment = types.kind_of("apps/v1", "Deployment").expect("a built-in kind");
    (types, deployment)
});

fuzz_target!(|bytes: &[u8]| {
    let mut lines = bytes.split(|byte| *byte == b'\n').map(serde_json::from_slice::<Value>);
    let (Some(Ok(object)), Some(Ok(patch))) = (lines.next(), lines.next()) else {
        return;
    };
    let (types, deployment) = &*TYPES;
    let patched = [
        json_patch(&object, &patch),
        merge_patch(&object, &patch),
        strategic_merge_patch(types, *deployment, &object, &patch),
    ];
    for patched in patched.into_iter().flatten() {
        assert!(!deeper_than(&patched, 2 * MAX_DEPTH));
    }
    // An object without any shows what the patch leaves behind.
    if let Ok(patched) = strategic_merge_patch(types, *deployment, &Value::Object(Default::default()), &patch) {
        assert_clean(&patched);
    }
});

fn assert_clean(value: &Value) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            assert!(!value.is_null() && name != "$patch" && name != "$retainKeys", "{name}");
            assert_clean(value);
        }),
        Value::Array(items) => items.iter().for_each(assert_clean),
        _ => {}
    }
}
