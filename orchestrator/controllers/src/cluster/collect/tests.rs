//! The graph and the verdicts: tables, and the graph against a naive model.

use super::{
    FOREGROUND, ORPHAN,
    decide::{Own, Owner, Policy, Verdict, decide},
    graph::{Graph, Identity, Node, Uid, Work},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn reference(uid: &str, blocks: bool) -> OwnerReference {
    OwnerReference {
        api_version: "v1".to_owned(),
        kind: "ConfigMap".to_owned(),
        name: uid.to_owned(),
        uid: uid.to_owned(),
        block_owner_deletion: Some(blocks),
        controller: None,
    }
}

fn identity(namespace: &str, name: &str) -> Identity {
    Identity {
        api_version: "v1".into(),
        kind: "ConfigMap".into(),
        namespace: namespace.into(),
        name: name.into(),
    }
}

fn meta(owners: &[(&str, bool)], finalizers: &[&str], deleting: bool) -> ObjectMeta {
    ObjectMeta {
        owner_references: Some(owners.iter().map(|it| reference(it.0, it.1)).collect()),
        finalizers: Some(finalizers.iter().map(|it| (*it).to_owned()).collect()),
        deletion_timestamp: deleting.then_some(Time(jiff::Timestamp::UNIX_EPOCH)),
        ..ObjectMeta::default()
    }
}

fn see(graph: &mut Graph, uid: &str, meta: &ObjectMeta) -> Vec<Work> {
    let uid: Uid = uid.into();
    let node = Node::of(identity("a", &uid), meta);
    graph.observe(&uid, &node, meta).0
}

fn judge(uid: &str) -> Work {
    Work::Judge(uid.into())
}

#[test]
fn verdicts() {
    use Owner::{Absent, Leaving, Solid};
    let go = |policy| Verdict::Go { policy, unblock: false };
    let own = Own::default();
    let parent = Own {
        has_dependents: true,
        ..own
    };
    let circle = Own {
        dependent_waits: true,
        ..parent
    };
    let (orphan, foreground) = ([ORPHAN.to_owned()], [FOREGROUND.to_owned()]);
    let table = [
        (&[][..], own, Verdict::Stay),
        (&[Solid], own, Verdict::Stay),
        (&[Absent], own, go(Policy::Background)),
        (
            &[Absent],
            Own {
                finalizers: &orphan,
                ..own
            },
            go(Policy::Orphan),
        ),
        (
            &[Absent],
            Own {
                finalizers: &foreground,
                ..own
            },
            go(Policy::Foreground),
        ),
        (&[Solid, Absent], own, Verdict::Forget(vec![reference("0", true)])),
        (&[Leaving, Solid], parent, Verdict::Forget(vec![reference("1", true)])),
        (&[Leaving], own, go(Policy::Background)),
        (&[Leaving], parent, go(Policy::Foreground)),
        (
            &[Leaving, Absent],
            circle,
            Verdict::Go {
                policy: Policy::Foreground,
                unblock: true,
            },
        ),
    ];
    for (owners, own, wanted) in table {
        let owners: Vec<_> = owners
            .iter()
            .enumerate()
            .map(|(at, it)| (reference(&at.to_string(), true), *it))
            .collect();
        assert_eq!(decide(&owners, own), wanted, "{owners:?} {own:?}");
    }
}

#[test]
fn what_a_change_asks_for() {
    let mut graph = Graph::default();
    assert_eq!(see(&mut graph, "owner", &meta(&[], &[], false)), []);
    assert_eq!(
        see(&mut graph, "child", &meta(&[("owner", true)], &[], false)),
        [],
        "its owner is there"
    );
    assert_eq!(
        see(&mut graph, "stray", &meta(&[("nobody", false)], &[], false)),
        [judge("stray")]
    );
    assert_eq!(see(&mut graph, "free", &meta(&[("owner", false)], &[], false)), []);
    let mut all = see(&mut graph, "owner", &meta(&[], &[FOREGROUND], true));
    all.sort();
    assert_eq!(all, [judge("child"), judge("free"), judge("owner")]);
    assert_eq!(
        see(&mut graph, "owner", &meta(&[], &[FOREGROUND], true)),
        [],
        "said once"
    );
    assert_eq!(
        see(&mut graph, "late", &meta(&[("owner", true)], &[], false)),
        [judge("late")]
    );
    assert_eq!(graph.blocking("owner").len(), 2);
    assert_eq!(
        see(&mut graph, "late", &meta(&[], &[], false)),
        [judge("owner")],
        "one less blocks"
    );
    assert_eq!(
        see(&mut graph, "child", &meta(&[("owner", false)], &[], false)),
        [judge("owner")]
    );
    assert!(graph.blocking("owner").is_empty());
    let mut all = graph.gone("owner");
    all.sort();
    assert_eq!(all, [judge("child"), judge("free")]);
    assert_eq!(
        see(&mut graph, "sad", &meta(&[], &[ORPHAN], true)),
        [Work::Orphan("sad".into())]
    );
    assert_eq!(graph.gone("unknown"), []);
}

#[test]
fn owners_in_other_namespaces_are_reported_in_either_order() {
    for owner_first in [true, false] {
        let mut graph = Graph::default();
        let mut misplaced = Vec::new();
        let (plain, owned) = (meta(&[], &[], false), meta(&[("owner", true)], &[], false));
        let mut order = [("far", "owner", &plain), ("near", "child", &owned)];
        if !owner_first {
            order.reverse();
        }
        for (namespace, name, meta) in order {
            let uid: Uid = name.into();
            let node = Node::of(identity(namespace, name), meta);
            misplaced.extend(graph.observe(&uid, &node, meta).1);
        }
        assert_eq!(misplaced.len(), 1, "owner first: {owner_first}");
        assert_eq!(&*misplaced[0].owner_identity.namespace, "far");
    }
}

proptest! {
    /// After any history the graph knows exactly who names whom, and whatever lost its owner was asked for.
    #[test]
    fn the_graph_equals_the_naive_model(
        steps in prop::collection::vec((0u8..8, prop::option::of(prop::collection::btree_map(0u8..8, any::<bool>(), 0..3))), 1..80),
    ) {
        let mut graph = Graph::default();
        let mut model: BTreeMap<u8, BTreeMap<u8, bool>> = BTreeMap::new();
        for (number, owners) in steps {
            let uid = number.to_string();
            match owners {
                Some(owners) => {
                    let names: Vec<(String, bool)> = owners.iter().map(|(it, blocks)| (it.to_string(), *blocks)).collect();
                    let names: Vec<(&str, bool)> = names.iter().map(|it| (it.0.as_str(), it.1)).collect();
                    let work = see(&mut graph, &uid, &meta(&names, &[], false));
                    let before = model.insert(number, owners.clone()).unwrap_or_default();
                    let lost = owners.keys().any(|it| !before.contains_key(it) && !model.contains_key(it));
                    prop_assert!(!lost || work.contains(&judge(&uid)));
                }
                None => {
                    let work: BTreeSet<Work> = graph.gone(&uid).into_iter().collect();
                    if model.remove(&number).is_some() {
                        for (dependent, owners) in &model {
                            prop_assert!(!owners.contains_key(&number) || work.contains(&judge(&dependent.to_string())));
                        }
                    }
                }
            }
            for owner in 0u8..8 {
                let names = |all: Vec<(Uid, Node)>| -> BTreeSet<String> { all.into_iter().map(|it| it.0.to_string()).collect() };
                let of = |blocking: bool| -> BTreeSet<String> {
                    let all = model.iter().filter(|it| it.1.get(&owner).is_some_and(|blocks| *blocks || !blocking));
                    all.map(|it| it.0.to_string()).collect()
                };
                prop_assert_eq!(names(graph.dependents(&owner.to_string())), of(false));
                prop_assert_eq!(names(graph.blocking(&owner.to_string())), of(true));
            }
        }
    }
}
