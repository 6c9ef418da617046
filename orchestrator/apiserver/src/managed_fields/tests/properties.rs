//! What holds for all objects. Most are of a type that has every kind of list and map, in every combination.

use super::{deployment, json};
use crate::{
    managed_fields::{
        Tracked, Write, apply, check, element::PathElement, entries::decode, keep_times, managed_fields,
        merge::Comparison, set::FieldSet, typed::Typed, update,
    },
    patch::strategic_merge_patch,
    value::same,
};
use fairlead_schema::types::{Field, ListKind, Object, PatchStrategy, Scalar, Type, TypeId, Types};
use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Map, Value};
use std::sync::LazyLock;

/// A recursive type: `Node { s, any, m, am, o, ao, set, list, atomic, keyed, byTwo }`.
static NODE: LazyLock<(Types, TypeId)> = LazyLock::new(|| {
    let mut types = Types::default();
    let node = types.declare("Node");
    let text = types.push(Type::Scalar(Scalar::String));
    let any = types.push(Type::Any);
    let map = types.push(Type::Map {
        value: node,
        atomic: false,
    });
    let atomic_map = types.push(Type::Map {
        value: text,
        atomic: true,
    });
    let set = types.push(Type::List {
        item: text,
        kind: ListKind::Set,
    });
    let list = types.push(Type::List {
        item: node,
        kind: ListKind::Atomic,
    });
    let keyed = types.push(Type::List {
        item: node,
        kind: ListKind::Map { keys: vec!["s".into()] },
    });
    let by_two = types.push(Type::List {
        item: node,
        kind: ListKind::Map {
            keys: vec!["k".into(), "s".into()],
        },
    });
    let field = |ty| Field {
        ty,
        required: false,
        default: None,
        patch: PatchStrategy::default(),
        wire: None,
    };
    let atomic = types.push(Type::Object(Object {
        name: "Atomic".into(),
        fields: [("s".into(), field(text)), ("o".into(), field(node))].into(),
        atomic: true,
        ..Object::default()
    }));
    let defaulted = Field {
        default: Some("d".into()),
        ..field(text)
    };
    let fields = [
        ("s", field(text)),
        ("k", defaulted),
        ("any", field(any)),
        ("m", field(map)),
        ("am", field(atomic_map)),
        ("o", field(node)),
        ("ao", field(atomic)),
        ("set", field(set)),
        ("list", field(list)),
        ("keyed", field(keyed)),
        ("byTwo", field(by_two)),
    ];
    let fields = fields.into_iter().map(|(name, field)| (name.into(), field)).collect();
    types.define(
        "Node",
        Type::Object(Object {
            name: "Node".into(),
            fields,
            ..Object::default()
        }),
    );
    let root = [
        ("apiVersion", field(text)),
        ("kind", field(text)),
        ("metadata", field(any)),
        ("spec", field(node)),
    ];
    let fields = root.into_iter().map(|(name, field)| (name.into(), field)).collect();
    let root = types.define(
        "Root",
        Type::Object(Object {
            name: "Root".into(),
            fields,
            ..Object::default()
        }),
    );
    (types, root)
});

fn write(manager: &str, now_s: i64) -> Write<'_> {
    Write {
        types: &NODE.0,
        ty: NODE.1,
        api_version: "v1",
        kind: "Root",
        manager,
        subresource: "",
        tracked: &Tracked::All,
        versions: &[],
        now: Timestamp::from_second(now_s).unwrap(),
    }
}

fn root(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Root", "metadata": {"name": "x"}, "spec": spec})
}

fn text() -> impl Strategy<Value = Value> + Clone {
    prop::sample::select(vec!["a", "b", "c"]).prop_map(Value::from)
}

/// A `Node` that fits its type, so that it can be applied. No nulls.
fn node() -> impl Strategy<Value = Value> {
    let leaf = (
        prop::option::of(text()),
        prop::option::of(prop::collection::btree_set("[abc]", 0..3)),
    )
        .prop_map(|(s, set)| {
            let mut node = Map::new();
            node.extend(s.map(|s| ("s".to_owned(), s)));
            node.extend(set.map(|set| ("set".to_owned(), Value::from_iter(set))));
            Value::Object(node)
        });
    leaf.prop_recursive(4, 24, 4, |inner| {
        let items = prop::collection::vec((text(), prop::option::of(text()), inner.clone()), 0..3);
        let keyed = items.clone().prop_map(|items| keyed_items(items, false));
        let by_two = items.prop_map(|items| keyed_items(items, true));
        let map = prop::collection::btree_map("[xyz]", inner.clone(), 0..3);
        let field = prop_oneof![
            inner.clone().prop_map(|o| ("o", o)),
            map.prop_map(|m| ("m", m.into_iter().collect())),
            prop::collection::btree_map("[xyz]", text(), 0..3).prop_map(|m| ("am", m.into_iter().collect())),
            text().prop_map(|s| ("ao", json!({"s": s}))),
            prop::collection::vec(inner.clone(), 0..3).prop_map(|list| ("list", Value::Array(list))),
            keyed.prop_map(|items| ("keyed", items)),
            by_two.prop_map(|items| ("byTwo", items)),
            any_value().prop_map(|any| ("any", any)),
        ];
        (inner, prop::collection::vec(field, 0..4)).prop_map(|(node, fields)| {
            let mut node = node.as_object().cloned().unwrap_or_default();
            node.extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
            Value::Object(node)
        })
    })
}

fn keyed_items(items: Vec<(Value, Option<Value>, Value)>, by_two: bool) -> Value {
    let mut seen = Vec::new();
    let mut list = Vec::new();
    for (s, k, mut item) in items {
        // The default is the same as the value itself.
        let key = (
            s.clone(),
            if by_two {
                k.clone().unwrap_or("d".into())
            } else {
                Value::Null
            },
        );
        if !seen.contains(&key) {
            seen.push(key);
            item["s"] = s;
            if let Some(k) = k {
                item["k"] = k;
            }
            list.push(item);
        }
    }
    Value::Array(list)
}

/// Any JSON without nulls.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        text(),
        any::<bool>().prop_map(Value::from),
        (0..3i64).prop_map(Value::from)
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[xyz]", inner, 0..3).prop_map(|map| map.into_iter().collect::<Value>()),
        ]
    })
}

/// JSON that fits nothing, with the names of the type.
fn wild() -> impl Strategy<Value = Value> {
    let name = "(s|k|any|m|am|o|ao|set|list|keyed|byTwo|spec|metadata|managedFields|x)";
    let leaf = prop_oneof![
        any_value(),
        Just(Value::Null),
        Just(json!(1.0)),
        Just(json!(u64::MAX)),
        Just(json!(1e300))
    ];
    leaf.prop_recursive(6, 48, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name, inner, 0..5).prop_map(|map| map.into_iter().collect::<Value>()),
        ]
    })
}

/// All that is owned, by anybody.
fn all_owned(object: &Value) -> FieldSet {
    let managers = decode(managed_fields(object)).unwrap();
    managers
        .values()
        .fold(FieldSet::default(), |all, owned| all.union(&owned.fields))
}

fn without_entries(object: &Value) -> Value {
    let mut object = object.clone();
    object["metadata"].as_object_mut().unwrap().remove("managedFields");
    object
}

fn typed() -> Typed<'static> {
    Typed::new(&NODE.0, NODE.1)
}

proptest! {
    #[test]
    fn apply_is_idempotent(live in node(), config in node()) {
        let mut live = root(live);
        update(&write("u", 1), None, &mut live);
        let once = apply(&write("a", 2), true, Some(&live), &root(config.clone())).unwrap();
        let twice = apply(&write("a", 3), false, Some(&once), &root(config)).unwrap();
        prop_assert_eq!(serde_json::to_string(&twice).unwrap(), serde_json::to_string(&once).unwrap());
    }

    #[test]
    fn what_is_applied_is_there_and_owned(live in node(), config in node()) {
        let mut live = root(live);
        update(&write("u", 1), None, &mut live);
        let config = root(config);
        let applied = apply(&write("a", 2), true, Some(&live), &config).unwrap();
        // Nothing of the configuration is missing or different: merging it again changes nothing.
        let plain = without_entries(&applied);
        let merged = typed().merge(Some(&plain), Some(&config)).unwrap();
        prop_assert!(same(&plain, &merged), "{plain} {merged}");
        // Ownership covers both.
        let fields = typed().fields(&config);
        let owned = all_owned(&applied);
        let missing = fields.difference(&owned);
        prop_assert!(missing.paths().iter().all(|path| path.len() <= 2 && path[0] != PathElement::field("spec")));
    }

    #[test]
    fn a_first_apply_is_a_merge(live in node(), config in node()) {
        let mut live = root(live);
        update(&write("u", 1), None, &mut live);
        let config = root(config);
        let applied = apply(&write("a", 2), true, Some(&live), &config).unwrap();
        let merged = typed().merge(Some(&without_entries(&live)), Some(&config)).unwrap();
        prop_assert!(same(&without_entries(&applied), &merged));
    }

    #[test]
    fn applying_nothing_takes_everything_back(live in node(), config in node()) {
        let mut live = root(live);
        update(&write("u", 1), None, &mut live);
        if let Ok(applied) = apply(&write("a", 2), false, Some(&live), &root(config)) {
            let nothing = json!({"apiVersion": "v1", "kind": "Root", "metadata": {"name": "x"}});
            let back = apply(&write("a", 3), false, Some(&applied), &nothing).unwrap();
            // Leaves are as before; empty parents that only the applier owned, or nobody, may be gone or left.
            let changes = Comparison::of(typed(), &without_entries(&live), &without_entries(&back));
            let u = |object: &Value| decode(managed_fields(object)).unwrap().into_values().next().map(|it| it.fields);
            prop_assert!(changes.modified.is_empty(), "{changes:?}");
            prop_assert!(changes.removed.intersection(&u(&live).unwrap_or_default()).is_empty(), "{changes:?}");
            prop_assert_eq!(u(&back), u(&live));
        }
    }

    #[test]
    fn disjoint_appliers_do_not_conflict(a in node(), b in node()) {
        let (a, b) = (root(json!({"m": {"a": a}})), root(json!({"m": {"b": b}})));
        let one = apply(&write("a", 1), false, None, &a).unwrap();
        let both = apply(&write("b", 2), false, Some(&one), &b).unwrap();
        let other = apply(&write("a", 2), false, Some(&apply(&write("b", 1), false, None, &b).unwrap()), &a).unwrap();
        prop_assert!(same(&without_entries(&both), &without_entries(&other)));
        prop_assert_eq!(all_owned(&both), all_owned(&other));
        // One goes, and the other is as if alone.
        let nothing = json!({"apiVersion": "v1", "kind": "Root", "metadata": {"name": "x"}});
        let left = apply(&write("b", 3), false, Some(&both), &nothing).unwrap();
        prop_assert!(same(&left, &one), "{left} {one}");
    }

    #[test]
    fn an_update_owns_exactly_what_it_changed(old in node(), new in node()) {
        let mut live = root(old);
        update(&write("a", 1), None, &mut live);
        let mut next = root(new);
        update(&write("b", 2), Some(&live), &mut next);
        let managers = decode(managed_fields(&next)).unwrap();
        let (a, b) = managers.iter().partition::<Vec<_>, _>(|(manager, _)| manager.name == "a");
        let of = |list: Vec<(_, &crate::managed_fields::entries::Owned)>| {
            list.first().map_or_else(FieldSet::default, |(_, owned)| owned.fields.clone())
        };
        let (a, b) = (of(a), of(b));
        let changes = Comparison::of(typed(), &without_entries(&live), &without_entries(&next));
        prop_assert_eq!(&b, &changes.written());
        prop_assert!(a.intersection(&b).is_empty());
        prop_assert!(a.difference(&all_owned(&live)).is_empty());
        prop_assert!(a.intersection(&changes.removed).is_empty());
        prop_assert_eq!(changes.written().is_empty() && changes.removed.is_empty(), same_but_order(&without_entries(&live), &without_entries(&next)));
    }

    #[test]
    fn comparison_is_antisymmetric(a in node(), b in node()) {
        let (a, b) = (root(a), root(b));
        let (there, back) = (Comparison::of(typed(), &a, &b), Comparison::of(typed(), &b, &a));
        prop_assert_eq!(&there.modified.union(&there.added), &back.modified.union(&back.removed));
        let none = Comparison::of(typed(), &a, &a);
        prop_assert!(none.written().is_empty() && none.removed.is_empty());
    }

    #[test]
    fn nothing_panics_whatever_the_objects(live in wild(), new in wild(), config in wild(), entries in wild()) {
        let mut live = json!({"apiVersion": "v1", "kind": "Root", "metadata": {"name": "x"}, "spec": live});
        update(&write("u", 1), None, &mut live);
        prop_assert_eq!(check(&live), Ok(()));
        let mut next = root(new);
        update(&write("v", 2), Some(&live), &mut next);
        prop_assert_eq!(check(&next), Ok(()));
        next["metadata"]["managedFields"] = entries;
        let _ = apply(&write("a", 3), true, Some(&next), &root(config.clone()));
        update(&write("v", 2), Some(&live), &mut next);
        if let Ok(applied) = apply(&write("a", 3), true, Some(&next), &root(config.clone())) {
            prop_assert_eq!(check(&applied), Ok(()));
            let mut again = apply(&write("a", 4), false, Some(&applied), &root(config)).unwrap();
            keep_times(&applied, &mut again);
            prop_assert_eq!(again, applied);
        }
    }

    #[test]
    fn apply_and_strategic_merge_patch_agree_on_pods(
        names in prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4),
        image in "[xy]", labels in prop::collection::btree_map("[abc]", "[xy]", 0..3), replicas in 0..3i64,
    ) {
        // Where nothing is removed and the list is only extended behind, both are the same merge.
        let mut history = deployment();
        let container = |name: &str, image: &str| json!({"name": name, "image": image});
        history.put("u", json!({"metadata": {"labels": {"a": "z"}}, "spec": {"template": {"spec": {"containers": [
            container("a", "z"), container("b", "z")]}}}}));
        let mut names = names;
        names.sort_unstable();
        names.dedup();
        let items: Vec<_> = names.iter().map(|name| container(name, &image)).collect();
        let config = json!({"metadata": {"labels": labels}, "spec": {"replicas": replicas, "template": {"spec": {"containers": items}}}});
        let ty = history.types.kind_of("apps/v1", "Deployment").unwrap();
        let live = history.live.clone().unwrap();
        let patched = strategic_merge_patch(&history.types, ty, &live, &config).unwrap();
        history.try_apply("a", true, &config).unwrap();
        let applied = without_entries(history.live.as_ref().unwrap());
        let sorted = |object: Value| same_order(&without_entries(&object));
        prop_assert_eq!(sorted(patched), same_order(&applied));
    }
}

/// With the items of all lists sorted.
fn same_order(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.clone(), same_order(value)))
            .collect(),
        Value::Array(items) => {
            let mut items: Vec<_> = items.iter().map(same_order).collect();
            items.sort_by_key(ToString::to_string);
            Value::Array(items)
        }
        scalar => scalar.clone(),
    }
}

/// Equal but for the order of items that are known by name, and of sets.
fn same_but_order(a: &Value, b: &Value) -> bool {
    fn normal(typed: Typed<'_>, value: &Value) -> Value {
        match (typed.shape(value), value) {
            (crate::managed_fields::typed::Shape::Fields(_), Value::Object(fields)) => fields
                .iter()
                .map(|(name, value)| (name.clone(), normal(typed.field(name), value)))
                .collect(),
            (crate::managed_fields::typed::Shape::Items(_), Value::Array(items)) => {
                let mut items: Vec<_> = items.iter().map(|item| normal(typed.item(), item)).collect();
                items.sort_by_key(ToString::to_string);
                Value::Array(items)
            }
            (_, other) => other.clone(),
        }
    }
    same(&normal(typed(), a), &normal(typed(), b))
}
