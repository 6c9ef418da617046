//! Sets of paths, and `FieldsV1`, their text.

use super::element::PathElement;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, btree_map::Entry};

/// A set of paths. A path in it says nothing of those above and below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// No node is empty.
    nodes: BTreeMap<PathElement, Node>,
}

/// One step from a [`FieldSet`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Node {
    /// The path that ends here is in the set.
    member: bool,
    below: FieldSet,
}

impl Node {
    fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }
}

impl FieldSet {
    /// Whether no path is in the set.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Adds a path. The empty path is nothing that one could own.
    pub fn insert(&mut self, path: &[PathElement]) {
        if let Some((first, rest)) = path.split_first() {
            let node = self.nodes.entry(first.clone()).or_default();
            if rest.is_empty() {
                node.member = true;
            } else {
                node.below.insert(rest);
            }
        }
    }

    /// Adds a path of field names.
    pub fn insert_fields<'a>(&mut self, path: impl IntoIterator<Item = &'a str>) {
        let path: Vec<_> = path.into_iter().map(PathElement::field).collect();
        self.insert(&path);
    }

    /// Whether a path is in the set.
    pub fn contains(&self, path: &[PathElement]) -> bool {
        match path.split_first() {
            None => false,
            Some((first, [])) => self.nodes.get(first).is_some_and(|node| node.member),
            Some((first, rest)) => self.nodes.get(first).is_some_and(|node| node.below.contains(rest)),
        }
    }

    /// Whether a path of one step is in the set.
    pub(super) fn has(&self, element: &PathElement) -> bool {
        self.nodes.get(element).is_some_and(|node| node.member)
    }

    /// The paths below a step, without it; `None` where there are none.
    pub(super) fn below(&self, element: &PathElement) -> Option<&Self> {
        self.nodes
            .get(element)
            .map(|node| &node.below)
            .filter(|below| !below.is_empty())
    }

    /// Every step from here: whether the path ends with it, and what is below.
    pub(super) fn steps(&self) -> impl Iterator<Item = (&PathElement, bool, &Self)> {
        self.nodes
            .iter()
            .map(|(element, node)| (element, node.member, &node.below))
    }

    /// Puts a step with everything below it.
    pub(super) fn put(&mut self, element: PathElement, member: bool, below: Self) {
        let node = Node { member, below };
        if node.is_empty() {
            return;
        }
        match self.nodes.entry(element) {
            Entry::Vacant(vacant) => {
                vacant.insert(node);
            }
            Entry::Occupied(mut occupied) => {
                let old = occupied.get_mut();
                old.member |= node.member;
                old.below = old.below.union(&node.below);
            }
        }
    }

    /// Paths of either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut union = self.clone();
        for (element, node) in &other.nodes {
            let old = union.nodes.entry(element.clone()).or_default();
            old.member |= node.member;
            old.below = if old.below.is_empty() {
                node.below.clone()
            } else {
                old.below.union(&node.below)
            };
        }
        union
    }

    /// Paths of both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.combine(other, |node, other| {
            let other = other?;
            Some(Node {
                member: node.member && other.member,
                below: node.below.intersection(&other.below),
            })
        })
    }

    /// Paths of this set that the other lacks.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.combine(other, |node, other| {
            let Some(other) = other else { return Some(node.clone()) };
            Some(Node {
                member: node.member && !other.member,
                below: node.below.difference(&other.below),
            })
        })
    }

    /// Paths of this set that are neither in the other nor below a path in it.
    #[must_use]
    pub fn without_trees(&self, other: &Self) -> Self {
        self.combine(other, |node, other| match other {
            None => Some(node.clone()),
            Some(other) if other.member => None,
            Some(other) => Some(Node {
                member: node.member,
                below: node.below.without_trees(&other.below),
            }),
        })
    }

    fn combine(&self, other: &Self, rule: impl Fn(&Node, Option<&Node>) -> Option<Node>) -> Self {
        let nodes = self.nodes.iter().filter_map(|(element, node)| {
            let node = rule(node, other.nodes.get(element)).filter(|node| !node.is_empty())?;
            Some((element.clone(), node))
        });
        Self { nodes: nodes.collect() }
    }

    /// Every path, parents before children.
    pub fn paths(&self) -> Vec<Vec<PathElement>> {
        let mut paths = Vec::new();
        self.collect(&mut Vec::new(), &mut paths);
        paths
    }

    fn collect(&self, path: &mut Vec<PathElement>, paths: &mut Vec<Vec<PathElement>>) {
        for (element, node) in &self.nodes {
            path.push(element.clone());
            if node.member {
                paths.push(path.clone());
            }
            node.below.collect(path, paths);
            path.pop();
        }
    }

    /// Reads `fieldsV1`. `null` is the empty set; steps of unknown kinds are left out.
    ///
    /// # Errors
    /// The text says which key is wrong.
    pub fn decode(fields: &Value) -> Result<Self, String> {
        let mut set = Self::default();
        let map = match fields {
            Value::Null => return Ok(set),
            Value::Object(map) => map,
            _ => return Err("fieldsV1 must be an object of objects".into()),
        };
        for (key, value) in map {
            if key == "." {
                continue;
            }
            let Some(element) = PathElement::parse(key)? else {
                continue;
            };
            let below = Self::decode(value)?;
            // A step that leads nowhere further is a path of its own.
            let member = below.is_empty() || value.get(".").is_some();
            set.put(element, member, below);
        }
        Ok(set)
    }

    /// The value of `fieldsV1`.
    pub fn encode(&self) -> Value {
        let fields = self.nodes.iter().map(|(element, node)| {
            let mut below = match node.below.encode() {
                Value::Object(below) => below,
                _ => Map::new(),
            };
            if node.member && !below.is_empty() {
                below.insert(".".into(), Value::Object(Map::new()));
            }
            (element.encode(), Value::Object(below))
        });
        Value::Object(fields.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn set(fields: &Value) -> FieldSet {
        FieldSet::decode(fields).unwrap()
    }

    #[test]
    fn fields_v1_is_read_and_written() {
        let fields = json!({
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {
                "f:ports": {".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}},
                "f:finalizers": {"v:\"x\"": {}},
            },
        });
        let set = set(&fields);
        assert_eq!(set.encode(), fields);
        let paths: Vec<_> = set
            .paths()
            .iter()
            .map(|path| super::super::element::path_text(path))
            .collect();
        let wanted = [
            ".metadata.labels",
            ".metadata.labels.app",
            ".spec.finalizers[=\"x\"]",
            ".spec.ports",
            ".spec.ports[port=80,protocol=\"TCP\"]",
            ".spec.ports[port=80,protocol=\"TCP\"].port",
        ];
        assert_eq!(paths, wanted);
    }

    #[test]
    fn odd_fields_v1() {
        assert!(set(&json!(null)).is_empty());
        assert!(set(&json!({".": {}})).is_empty());
        assert!(set(&json!({"z:future": {"f:a": {}}})).is_empty());
        assert_eq!(set(&json!({"f:a": {".": {}}})).encode(), json!({"f:a": {}}));
        assert_eq!(set(&json!({"f:a": null})).encode(), json!({"f:a": {}}));
        assert_eq!(set(&json!({"v:1": {}, "v:1.0": {"f:a": {}}})).paths().len(), 2);
        for bad in [
            json!([]),
            json!("x"),
            json!({"f:a": 1}),
            json!({"a": {}}),
            json!({"k:1": {}}),
        ] {
            assert!(FieldSet::decode(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_tree_is_left_out_with_its_root() {
        let fields = set(&json!({"f:status": {".": {}, "f:a": {}}, "f:spec": {"f:a": {}}}));
        let status = set(&json!({"f:status": {}}));
        assert_eq!(fields.without_trees(&status), set(&json!({"f:spec": {"f:a": {}}})));
        assert_eq!(
            fields.difference(&status),
            set(&json!({"f:status": {"f:a": {}}, "f:spec": {"f:a": {}}}))
        );
    }

    fn sets() -> impl Strategy<Value = FieldSet> {
        let element = prop_oneof![
            "[ab]".prop_map(|name| PathElement::field(&name)),
            (0..3i64).prop_map(|value| PathElement::Value(json!(value))),
            (0..3i64).prop_map(|value| PathElement::key(vec![("k".into(), json!(value))])),
        ];
        let path = prop::collection::vec(element, 1..4);
        prop::collection::vec(path, 0..8).prop_map(|paths| {
            let mut set = FieldSet::default();
            paths.iter().for_each(|path| set.insert(path));
            set
        })
    }

    proptest! {
        #[test]
        fn sets_obey_the_laws_of_sets(a in sets(), b in sets()) {
            let (union, both) = (a.union(&b), a.intersection(&b));
            let (left, right) = (a.difference(&b), b.difference(&a));
            prop_assert_eq!(&union, &b.union(&a));
            prop_assert_eq!(&both, &b.intersection(&a));
            prop_assert_eq!(&left.union(&both), &a);
            prop_assert_eq!(left.union(&both).union(&right), union.clone());
            prop_assert!(left.intersection(&b).is_empty());
            prop_assert!(a.difference(&a).is_empty());
            prop_assert!(a.without_trees(&b).difference(&left).is_empty());
            prop_assert!(union.paths().iter().all(|path| a.contains(path) || b.contains(path)));
            prop_assert_eq!(both.paths().len() + left.paths().len(), a.paths().len());
        }

        #[test]
        fn fields_v1_keeps_every_path(set in sets()) {
            prop_assert_eq!(FieldSet::decode(&set.encode()).unwrap(), set);
        }
    }
}
