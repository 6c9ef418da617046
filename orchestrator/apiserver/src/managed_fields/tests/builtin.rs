//! Objects of every built-in kind, made from its type: some that fit, some that almost do.

use super::json;
use crate::{
    managed_fields::{Tracked, Write, apply, check, keep_times, managed_fields, update},
    patch::{merge_patch, strategic_merge_patch},
    value::same,
};
use fairlead_schema::types::{ListKind, Scalar, Type, TypeId, Types};
use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Map, Value};
use std::sync::{Arc, LazyLock};

static TYPES: LazyLock<Arc<Types>> = LazyLock::new(Types::builtin);

/// Kinds with metadata, as `(apiVersion, kind, type)`.
static KINDS: LazyLock<Vec<(String, String, TypeId)>> = LazyLock::new(|| {
    let mut kinds = Vec::new();
    for (_, id) in TYPES.names() {
        if let Type::Object(object) = TYPES.get(id)
            && object.fields.contains_key("metadata")
            && !object.fields.contains_key("items")
        {
            for kind in &object.group_version_kinds {
                let slash = if kind.group.is_empty() { "" } else { "/" };
                kinds.push((
                    format!("{}{slash}{}", kind.group, kind.version),
                    kind.kind.to_string(),
                    id,
                ));
            }
        }
    }
    kinds.sort();
    kinds
});

/// Random choices, from proptest's bytes; zeros when they are used up.
struct Choices(std::vec::IntoIter<u8>);

impl Choices {
    fn pick(&mut self, among: usize) -> usize {
        usize::from(self.0.next().unwrap_or_default()) % among.max(1)
    }

    /// A value of a type. One in 64 is something else where `wild`.
    fn value(&mut self, ty: TypeId, depth: usize, wild: bool) -> Value {
        if wild && self.pick(64) == 63 {
            let odd = [
                json!(null),
                json!("x"),
                json!(-1),
                json!(true),
                json!([null]),
                json!({"name": {}}),
                json!([]),
            ];
            return odd[self.pick(odd.len())].clone();
        }
        match TYPES.get(ty) {
            Type::Any => json!({"x": self.pick(2)}),
            Type::Scalar(scalar) => match scalar {
                Scalar::Int32 | Scalar::Int64 | Scalar::Double => json!(self.pick(3)),
                Scalar::Boolean => json!(self.pick(2) == 1),
                _ => Value::from(["a", "b", "c"][self.pick(3)]),
            },
            Type::Map { value, .. } => {
                let count = if depth == 0 { 0 } else { self.pick(3) };
                (0..count)
                    .map(|at| (["x", "y", "z"][at], self.value(*value, depth - 1, wild)))
                    .collect()
            }
            Type::List { item: item_ty, kind } => {
                let count = if depth == 0 { 0 } else { self.pick(4) };
                let mut items: Vec<Value> = (0..count).map(|_| self.value(*item_ty, depth - 1, wild)).collect();
                if let (ListKind::Map { keys }, false) = (kind, wild) {
                    for item in &mut items {
                        for key in keys {
                            if item.get(&**key).is_some() {
                                continue;
                            }
                            let ty = TYPES.field(*item_ty, key).map(|field| field.ty);
                            item[&**key] = ty.map_or(Value::Null, |ty| self.value(ty, 0, false));
                        }
                    }
                }
                if !wild && *kind != ListKind::Atomic {
                    let names = |item: &Value| match kind {
                        ListKind::Map { keys } => keys.iter().map(|key| item[&**key].to_string()).collect(),
                        _ => vec![item.to_string()],
                    };
                    let mut seen = std::collections::BTreeSet::new();
                    items.retain(|item| seen.insert(names(item)));
                }
                Value::Array(items)
            }
            Type::Object(object) => {
                let mut fields = Map::new();
                let count = if depth == 0 { 0 } else { self.pick(6) };
                for _ in 0..count {
                    let at = self.pick(256) + self.pick(256);
                    if let Some((name, field)) = object.fields.iter().nth(at % object.fields.len().max(1)) {
                        fields.insert(name.to_string(), self.value(field.ty, depth - 1, wild));
                    }
                }
                Value::Object(fields)
            }
        }
    }

    fn object(&mut self, (api_version, kind, ty): &(String, String, TypeId), wild: bool) -> Value {
        let mut object = self.value(*ty, 7, wild);
        if !object.is_object() {
            object = json!({});
        }
        object["apiVersion"] = json!(api_version);
        object["kind"] = json!(kind);
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
        object
    }
}

/// Without metadata that only was there for the entries.
fn without_entries(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        metadata.remove("managedFields");
        if metadata.is_empty()
            && let Some(object) = object.as_object_mut()
        {
            object.remove("metadata");
        }
    }
    object
}

proptest! {
    #[test]
    fn writes_to_any_kind_keep_the_rules(
        bytes in prop::collection::vec(any::<u8>(), 0..1500), kind in any::<prop::sample::Index>(), wild in any::<bool>(),
    ) {
        let kind = &KINDS[kind.index(KINDS.len())];
        let mut choices = Choices(bytes.into_iter());
        let objects: Vec<_> = (0..4).map(|_| choices.object(kind, wild)).collect();
        let write = |manager, now_s| Write {
            types: &TYPES,
            ty: kind.2,
            api_version: &kind.0,
            kind: &kind.1,
            manager,
            subresource: "",
            tracked: &Tracked::All,
            versions: &[],
            now: Timestamp::from_second(now_s).unwrap(),
        };
        let mut live = objects[0].clone();
        update(&write("u", 1), None, &mut live);
        prop_assert_eq!(check(&live), Ok(()));
        for (at, config) in (2..).zip(&objects[1..]) {
            let applied = apply(&write("a", at), true, Some(&live), config);
            prop_assert!(wild || applied.is_ok(), "{applied:?}");
            let Ok(applied) = applied else { continue };
            prop_assert_eq!(check(&applied), Ok(()));
            // What owns nothing, as `status: {conditions: []}`, leaves an object that nobody tracks.
            if managed_fields(&applied).is_none() {
                live = applied;
                continue;
            }
            let mut again = apply(&write("a", at + 10), false, Some(&applied), config).unwrap();
            prop_assert!(wild || again == applied, "{again} {applied}");
            keep_times(&applied, &mut again);
            prop_assert_eq!(&again, &applied);
            // A write back of what is there is no write.
            let mut same_again = applied.clone();
            update(&write("u", at + 20), Some(&applied), &mut same_again);
            prop_assert!(same(&same_again, &applied));
            let mut next = merge_patch(&applied, &objects[0]).unwrap();
            update(&write("u", at + 30), Some(&applied), &mut next);
            prop_assert_eq!(check(&next), Ok(()));
            let merged = merge_patch(&without_entries(&applied), &objects[0]).unwrap();
            prop_assert!(same(&without_entries(&next), &without_entries(&merged)), "{next} {merged}");
            if let Ok(mut patched) = strategic_merge_patch(&TYPES, kind.2, &applied, &objects[0]) {
                update(&write("p", at + 40), Some(&applied), &mut patched);
                prop_assert!(managed_fields(&patched).is_none() || check(&patched).is_ok());
            }
            live = applied;
        }
    }
}
